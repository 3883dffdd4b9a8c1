"""Fields that evolve in time: one step of an equation as a conditional generative model.

State: the target y of the next frame, [C, *space] (channels are the fields, space the periodic grid), in units of its
own spread; with `joint` the history stands before it in the channels. Context: the frames before, `cond["previous"]`.
Native object: `xarray.Dataset`, one trajectory (time, x) or (time, y, x) with its equation in the attributes; encoding
one means encoding its last step. A domain instance holds the equation, grid, box, time between two steps and scaling of
the set that it was fitted to. `rollout` draws step after step: a forecast, or an ensemble of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import UsageError
from scidiff.domains.base import Domain, Metric, Records, Request, Samples, Verdict

if TYPE_CHECKING:
    from torch import Tensor
    from xarray import Dataset

    from scidiff.core.space import Space
    from scidiff.core.spec import Context, Shape, State, StateSpec
    from scidiff.domains.pde.codec import Scaling, Transition
    from scidiff.domains.pde.data import About

LIMIT = 3.0
"""A state beyond this many times the largest training value has blown up."""


class PdeDomain(Domain):
    """equation: its JSON form (None: fields without a known equation). shape, extent: of grid and box. interval: time
    between two steps of the model; stride: data frames in it. history, target, scale: see Transition. mean, std,
    largest: of every field in the training data, physical units. joint: the state holds the history as well. burn_in:
    time units before a first state is developed (None: the equation's own). solve_shape: grid on which the equation is
    solved for first states and references (None: `shape`). bandlimit: the largest wavenumber index that a rollout keeps
    on every axis of a periodic grid; "auto" takes it from the data (None: all).
    conserve: whether a rollout keeps the mean of every field over space, or "auto".
    """

    name: ClassVar[str] = "pde"
    title: ClassVar[str] = "Fields that evolve in time"
    requires: ClassVar[dict[str, str]] = {"xarray": "pip install xarray h5netcdf"}
    extensions: ClassVar[tuple[str, ...]] = (".nc",)

    def __init__(self, equation: Mapping[str, Any] | None = None, fields: Sequence[str] = ("u",),
                 units: Sequence[str] = (), shape: Sequence[int] = (), extent: Sequence[float] = (),
                 interval: float | None = None, stride: int = 1, history: int = 1, target: str = "residual",
                 scale: float = 1.0, mean: Sequence[float] = (), std: Sequence[float] = (),
                 largest: Sequence[float] = (), joint: bool = False, time_unit: str = "1",
                 space_unit: str = "1", burn_in: float | None = None, solve_shape: Sequence[int] | None = None,
                 bandlimit: Sequence[int] | str | None = None, conserve: bool | str = False) -> None:
        self.equation = dict(equation) if equation else None
        self.fields, self.units = tuple(fields), tuple(units) or ("1",) * len(fields)
        self.shape, self.extent = tuple(int(n) for n in shape), tuple(float(x) for x in extent)
        self.interval, self.stride, self.history = interval, int(stride), int(history)
        self.target, self.scale, self.joint = target, float(scale), bool(joint)
        self.mean, self.std = tuple(float(x) for x in mean), tuple(float(x) for x in std)
        self.largest = tuple(float(x) for x in largest)
        self.time_unit, self.space_unit = time_unit, space_unit
        self.burn_in = burn_in
        self.solve_shape = None if solve_shape is None else tuple(int(n) for n in solve_shape)
        if bandlimit is None or bandlimit == "auto":
            self.bandlimit: Any = bandlimit
        elif isinstance(bandlimit, str) or len(bandlimit) != max(len(self.shape), 1) or min(bandlimit) < 1:
            raise UsageError(f"bandlimit is 'auto', null or one positive wavenumber index an axis, not {bandlimit!r}.")
        else:
            self.bandlimit = tuple(int(k) for k in bandlimit)
        if conserve not in (True, False, "auto"):
            raise UsageError(f"conserve is true, false or 'auto', not {conserve!r}.")
        self.conserve: Any = conserve

    @property
    def transition(self) -> Transition:
        from scidiff.domains.pde.codec import Transition

        return Transition(self.history, self.target, self.scale)

    @property
    def scaling(self) -> Scaling:
        """UsageError before `fit`."""
        from scidiff.domains.pde.codec import Scaling

        if not self.mean:
            raise UsageError("This PDE domain knows no field yet: fit it to trajectories, or load a model.")
        return Scaling(self.mean, self.std)

    def options(self) -> dict[str, Any]:
        return {"equation": self.equation, "fields": list(self.fields), "units": list(self.units),
                "shape": list(self.shape), "extent": list(self.extent), "interval": self.interval,
                "stride": self.stride, "history": self.history, "target": self.target, "scale": self.scale,
                "mean": list(self.mean), "std": list(self.std), "largest": list(self.largest), "joint": self.joint,
                "time_unit": self.time_unit, "space_unit": self.space_unit, "burn_in": self.burn_in,
                "solve_shape": None if self.solve_shape is None else list(self.solve_shape),
                "bandlimit": list(self.bandlimit) if isinstance(self.bandlimit, tuple) else self.bandlimit,
                "conserve": self.conserve}

    def components(self) -> dict[str, tuple[Space, Shape]]:
        from scidiff.core.space import Euclidean

        channels = len(self.fields) * (self.history + 1 if self.joint else 1)
        return {"u": (Euclidean(), (channels, *self.shape))}

    def fit(self, objects: Sequence[Dataset]) -> tuple[PdeDomain, dict[str, Any]]:
        from scidiff.domains.pde.codec import Scaling, Transition, band, conserves_mean
        from scidiff.domains.pde.data import stacked

        if not objects:
            raise UsageError("There are no trajectories to learn from.")
        about = _agreed(objects)
        frames = stacked(objects, about.fields)
        stride = max(round(self.interval / about.interval), 1) if self.interval else self.stride
        if self.interval and abs(stride * about.interval - self.interval) > 1e-6 * self.interval:
            raise UsageError(f"The frames lie {about.interval:g} apart, so a step of {self.interval:g} is no multiple "
                             "of that.", f"Take domain.options.interval={stride * about.interval:g}.")
        scaling = Scaling.fit(frames)
        transition = Transition(self.history, self.target).fit(scaling.apply(frames), stride)
        largest = frames.abs().movedim(2, 0).flatten(1).amax(1).tolist()
        fitted = PdeDomain(about.equation, about.fields, about.units, about.shape, about.extent,
                           stride * about.interval, stride, self.history, self.target, transition.scale, scaling.mean,
                           scaling.std, largest, self.joint, about.time_unit, about.space_unit,
                           objects[0].attrs.get("burn_in", self.burn_in),
                           objects[0].attrs.get("solve_shape", self.solve_shape),
                           band(frames, len(about.shape)) if self.bandlimit == "auto" else self.bandlimit,
                           conserves_mean(frames, len(about.shape)) if self.conserve == "auto" else self.conserve)
        return fitted, {}

    def read(self, path: str | Path, **options: Any) -> Records:
        from scidiff.domains.pde.readers import read

        return read(path, **options)

    def dataset(self, files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None,
                limit: int | None = None) -> Records:
        from scidiff.domains.pde.data import dataset

        return dataset(files, reader, options, split, limit)

    def properties(self, objects: Sequence[Dataset], names: Sequence[str]) -> dict[str, Tensor]:
        """Scalars of the equation or the grid that differ among trajectories (viscosity, dt, dx): attributes."""
        import torch

        found = {}
        for name in names:
            if not all(isinstance(o.attrs.get(name), Real) for o in objects):
                known = ", ".join(sorted(k for k, v in objects[0].attrs.items() if isinstance(v, Real)))
                raise UsageError(f"The trajectories have no attribute {name!r} that is a number.",
                                 f"They have: {known or 'none'}.")
            found[name] = torch.tensor([float(o.attrs[name]) for o in objects])
        return found

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        from scidiff.domains.pde.data import write_netcdf

        return write_netcdf(samples, folder)

    def encode(self, objects: Sequence[Dataset]) -> tuple[State, Context]:
        import torch

        from scidiff.core.spec import Context
        from scidiff.domains.pde.codec import FRAMES, PREVIOUS
        from scidiff.domains.pde.data import stacked

        frames = self.scaling.apply(stacked(objects, self.fields)).to(torch.float32)
        if len(frames) != len(objects):
            raise UsageError(f"These {len(objects)} trajectories hold {len(frames)} members; a sample is a single one.",
                             "Write every member as a trajectory of its own.")
        need = self.stride * self.history + 1
        if frames.shape[1] < need:
            raise UsageError(f"A step needs {need} frames; these trajectories have {frames.shape[1]}.")
        previous = frames[:, -need:-1:self.stride]
        y = self.transition.encode(previous, frames[:, -1])
        yes = torch.ones(len(objects), dtype=torch.bool)
        seen = self.transition.seen(previous)
        cond = {PREVIOUS: (seen, yes), FRAMES: (frames, yes)}
        state = torch.cat([seen, y], 1) if self.joint else y
        return {"u": state}, Context(torch.arange(len(objects)), cond=cond)

    def decode(self, state: State, ctx: Context) -> list[Dataset]:
        import torch

        from scidiff.domains.pde.codec import FRAMES, PREVIOUS
        from scidiff.domains.pde.data import to_dataset

        channels = len(self.fields)
        previous = self.transition.unseen(ctx.cond[PREVIOUS][0], channels)
        following = self.transition.decode(previous, state["u"][:, -channels:]).unsqueeze(1)
        dense = FRAMES in ctx.cond
        before = ctx.cond[FRAMES][0][:, :-1] if dense else previous
        frames = self.scaling.undo(torch.cat([before, following.to(before.dtype)], 1))
        step = (self.interval or 1.0) / (self.stride if dense else 1)
        return [to_dataset(one, interval=step, domain=self) for one in frames]

    def template(self, request: Request) -> Context:
        """Developed states of the equation (burnt in), one for each id."""
        import torch

        from scidiff.core.spec import Context
        from scidiff.domains.pde.codec import PREVIOUS
        from scidiff.domains.pde.reference import developed

        frames = developed(self, request.ids, request.seed)
        seen = self.transition.seen(self.scaling.apply(frames).to(torch.float32))
        return Context(request.ids, cond={PREVIOUS: (seen, torch.ones_like(request.ids, dtype=torch.bool))})

    def check(self, objects: Sequence[Dataset]) -> list[Verdict]:
        from scidiff.domains.pde.data import verdict

        return [verdict(o, self.fields, [LIMIT * x for x in self.largest]) for o in objects]

    def metrics(self, objects: Sequence[Dataset], verdicts: Sequence[Verdict], reference: Any = None,
                seed: int = 0) -> list[Metric]:
        from scidiff.domains.pde.metrics import of_datasets

        return of_datasets(objects, verdicts, self, seed)

    def view(self, objects: Sequence[Dataset], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Any = None) -> dict[str, str | bytes]:
        from scidiff.domains.pde.view import pictures

        return pictures(objects, verdicts, ids)

    def table(self, objects: Sequence[Dataset], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        from scidiff.domains.pde.data import row

        return [row(o, self.fields) for o in objects]

    def backbone_options(self, spec: StateSpec) -> dict[str, Any]:
        """Channels and dimensions of the network, for those that the config leaves open."""
        fields, steps = len(self.fields), self.history
        return {"channels_in": fields * (steps + 1), "channels_out": fields * (steps + 1 if self.joint else 1),
                "dims": len(self.shape)}

    def objective_options(self) -> dict[str, Any]:
        """What the objective has to know of a step."""
        return {**self.transition.to_options(), "stride": self.stride, "joint": self.joint}

    def settle(self, model: Any) -> tuple[dict[str, Any], str]:
        """The refinement levels that pay, where a model has any."""
        from scidiff.domains.pde.levels import settle

        return settle(self, model)

    def rollout(self, model: Any, ask: Mapping[str, Any], store: Any = None, progress: Any = None) -> Samples:
        """Forecasts with their reference where the equation is known; see `scidiff.domains.pde.forecast`."""
        from scidiff.domains.pde.forecast import forecast

        return forecast(self, model, ask, store, progress)

    def examples(self) -> list[Dataset]:
        """Four short trajectories of the Kuramoto-Sivashinsky equation."""
        from scidiff.domains.pde.data import dataset

        options = {"equation": {"name": "ks"}, "shape": [32], "extent": [22.0], "interval": 0.5, "frames": 5,
                   "count": 4, "burn_in": 30.0, "solver_dt": 0.1}
        return dataset({}, "equation", options, "train").objects

    @property
    def law(self) -> Any:
        """The equation as an object; UsageError where none is known."""
        from scidiff.domains.pde.equations import EQUATIONS

        if self.equation is None:
            raise UsageError("These fields come from no known equation, so nothing can be solved for them.",
                             "Give the first state with --init.")
        config = json.loads(json.dumps(self.equation))
        return EQUATIONS[config["name"]].from_config(config)


def _agreed(objects: Sequence[Dataset]) -> About:
    """What the trajectories say of themselves; UsageError where they differ in clock, box or units."""
    from scidiff.domains.pde.data import describe

    first, *others = map(describe, objects)
    for other in others:
        for what, a, b in (("time between two frames", (first.interval,), (other.interval,)),
                           ("lengths of the box", first.extent, other.extent)):
            if any(abs(x - y) > 1e-3 * x for x, y in zip(a, b, strict=False)):
                told = " and ".join(", ".join(f"{x:g}" for x in values) for values in (a, b))
                raise UsageError(f"The trajectories differ in the {what}: {told}.",
                                 "Read one kind at a time, or say what stands for all of them with "
                                 "data.options.nominal={extent: [...], interval: ...}.")
        for what, a, b in (("the fields", first.units, other.units), ("time", (first.time_unit,), (other.time_unit,)),
                           ("space", (first.space_unit,), (other.space_unit,))):
            if a != b:
                raise UsageError(f"The trajectories differ in the units of {what}: {', '.join(a)} and {', '.join(b)}.",
                                 "Bring them to the same units first.")
    return first
