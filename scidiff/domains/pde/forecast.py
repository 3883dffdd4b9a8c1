"""A forecast: ensembles of rollouts from developed or given first states, beside what the equation says of them.

    trajectory i starts from a state that depends on (seed, i) alone, or from state number i of a file;
    member m of it meets the noise of (seed, i, m, step), so members of one trajectory differ by their noise alone

Rows (a member of a trajectory each) are computed in blocks of one fixed size, the last one filled up. Every network
call then has the same shape, so other members or trajectories leave a row as it is to the last bit, which matters where
differences grow exponentially. Frames are float32; every `PART` steps the new ones are stored, and a resumed run goes
on from them. A row that leaves the physical range has blown up: its later frames are NaN, the others go on.

The reference is solved in float64 for the equation of the model, on its grid, with the parameters that were asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Samples, Verdict, sample_id
from scidiff.domains.pde.codec import Scaling
from scidiff.domains.pde.data import library, to_dataset
from scidiff.domains.pde.readers import READ_OPTIONS, init_state
from scidiff.domains.pde.reference import Progress, developed, future
from scidiff.domains.pde.rollout import Conditions, Stepper, march, row_ids
from scidiff.store import checkpoint

if TYPE_CHECKING:
    from scidiff.domains.model import Drawing, Model
    from scidiff.domains.pde import PdeDomain

PART = 25
"""Steps of one stored part: what an interruption costs at most."""
TRAJECTORIES = 8
"""Forecasts where nothing else is said."""
GROUP = 8
"""Trajectories that are solved together."""
LARGEST = 8e9
"""Bytes of frames that a forecast may hold."""
FAR = 10.0
"""Standard deviations from the mean of the training data at which a condition means nothing to a network."""
POINTS = {"cpu": (1 << 12, 8, 32), "cuda": (1 << 18, 16, 512)}
"""Grid points of a block, and the fewest and most rows in it."""
READING = (*(o for o in READ_OPTIONS if o in ("time", "trajectory", "member", "extent", "boundary", "drop_endpoint")),
           "at", "resample")
"""Options of a rollout: how the file of the first state is read."""


class Store(Protocol):
    """Where parts of a forecast are kept; nothing is written before the request is known to be possible."""

    def has_part(self, name: str) -> bool: ...

    def write_part(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> Any: ...

    def read_part(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]: ...


@dataclass(frozen=True)
class Ask:
    """What is asked of a forecast. `calls`: network calls a step (None: the model's own). `chunk`: rows of a block.

    trajectories: None is `TRAJECTORIES`, or every state of the file `init`. options: see `READING`.
    """

    members: int = 16
    steps: int = 200
    trajectories: int | None = None
    seed: int = 0
    init: str | Path | None = None
    truth: bool = True
    equation: str | None = None
    condition: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: int | None = None
    chunk: int | None = None
    solver: Mapping[str, Any] | None = None
    guidance: Mapping[str, Any] | None = None
    device: str = "cpu"
    precision: int = 32

    def __post_init__(self) -> None:
        for name in ("members", "steps", "trajectories", "chunk"):
            value = getattr(self, name)
            if value is None and name in ("trajectories", "chunk"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                what = {"steps": "time steps", "chunk": "rows computed together"}.get(name, name)
                raise UsageError(f"The number of {what} must be a whole number above 0, not {value!r}.")
        for name in self.options:
            if name not in READING:
                raise UsageError(f"A rollout has no option {name!r}.", nearest(name, READING))
        if self.options and self.init is None:
            raise UsageError(f"The option {next(iter(self.options))!r} says how a file of first states is read, and no "
                             "file is named.", "Name one with --init.")


class Blocks(Stepper):
    """A Stepper whose network calls all have `rows` rows: what is missing is filled up with copies of the last one.

    A row is sound while its physical values are finite and within `largest`, [C].
    """

    def __init__(self, drawing: Drawing, domain: PdeDomain, rows: int, largest: Sequence[float]) -> None:
        super().__init__(drawing.sampler, domain.transition, len(domain.fields), domain.joint, band=domain.bandlimit,
                         conserve=domain.conserve)
        self.rows, self.scaling = rows, domain.scaling
        self.largest = torch.tensor(list(largest), dtype=torch.float64, device=drawing.device)

    def __call__(self, previous: Tensor, ids: Tensor, seed: int, step: int, cond: Conditions | None = None) -> Tensor:
        count = len(ids)
        if count < self.rows:
            index = torch.arange(self.rows, device=ids.device).clamp(max=count - 1)
            previous, ids = previous[index], ids[index]
            cond = None if cond is None else {k: (v[index], p[index]) for k, (v, p) in cond.items()}
        return super().__call__(previous, ids, seed, step, cond)[:count]

    def sound(self, frame: Tensor) -> Tensor:
        size = physical(frame, self.scaling, 1).flatten(2).abs().amax(2).to(torch.float64)
        return torch.isfinite(frame).flatten(1).all(1) & (size <= self.largest).all(1)


def physical(scaled: Tensor, scaling: Scaling, axis: int) -> Tensor:
    """Scaled frames in the units of the fields, float32: as they are judged and as they are stored."""
    return scaling.undo(scaled.to(torch.float32), axis)


def forecast(domain: PdeDomain, model: Model | None, ask: Mapping[str, Any] | Ask, store: Store | None = None,
             progress: Progress | None = None) -> Samples:
    """One Dataset (member, time, x) for each trajectory, with `<field>_true` (time, x) where the equation is known.

    UsageError for what is impossible, before anything is stored. `meta` tells the cost: network calls a step, seconds,
    milliseconds a step for all rows (None where a part was computed before).
    """
    asked = ask if isinstance(ask, Ask) else Ask(**ask)
    if asked.equation is not None:
        _same_equation(domain, model, asked.equation)
    if model is None:
        raise UsageError("Say which model to roll out.", "Name one with --from; 'scidiff list models' shows them.")
    library()
    model.agree(asked.guidance, asked.condition)
    values, cond = _conditions(model, asked.condition)
    there = _with_parameters(domain, values)
    held, notes = store.read_part("first") if store is not None and store.has_part("first") else ({}, {})
    first = held["frames"] if held else _first_states(there, asked)
    trajectories = len(first) if first is not None else asked.trajectories or TRAJECTORIES
    solved = asked.truth and there.equation is not None
    _afford(domain, asked, trajectories, solved)
    if first is None:
        there.law  # noqa: B018 - says what is missing where no state can be made
    rules: tuple[Any, ...] = ()
    if domain.joint:
        from scidiff.core.guidance import Clamp

        rules = (Clamp(model.spec),)
    drawing = model.drawing(asked.solver, asked.calls, asked.guidance, asked.device, asked.precision, rules)
    if asked.calls not in (None, drawing.nfe) and next(iter(model.spec.values())).path.levels is not None:
        raise UsageError(f"The solver visits {drawing.nfe} level{'s' * (drawing.nfe != 1)}, one network call each, so "
                         f"{asked.calls} calls a step cannot be had.", "Choose the levels with solver.levels=[...].")
    rows = int(notes.get("rows") or asked.chunk or _block(domain.shape, drawing.device.type))
    if first is None:
        first = _developed(there, trajectories, asked.seed, progress)
    truth = held.get("truth")
    if not held:
        truth = _truth(there, first[:, -1], asked.steps, progress) if solved else None
        if store is not None:
            states = {"frames": first} if truth is None else {"frames": first, "truth": truth}
            store.write_part("first", states, {"rows": rows})
    from scidiff.domains.pde import LIMIT

    stepper = Blocks(drawing, domain, rows, [LIMIT * x for x in domain.largest])
    frames, last, seconds = _rolled(stepper, first, asked, cond, drawing, store, progress)
    objects = []
    marks = {"model": model.name, "seed": asked.seed, **{k: v for k, v in values.items() if k not in ("dt", "dx")}}
    if asked.init is not None:
        marks["init"] = Path(asked.init).name
    for i, members in enumerate(frames.unflatten(0, (trajectories, asked.members))):
        true = None if truth is None else torch.cat([first[i, -1:].to(torch.float32), truth[i]])
        objects.append(to_dataset(members, interval=there.interval, attrs={**marks, "id": sample_id(i)}, truth=true,
                                  domain=there))
    verdicts = [_verdict(row, asked.steps, there) for row in last.unflatten(0, (trajectories, asked.members))]
    done = int(last.max())
    meta = {"model": model.name, "steps": drawing.nfe, "seconds": None if seconds is None else round(seconds, 2),
            "ms per step": round(1e3 * seconds / done, 4) if seconds and done else None, "time steps": asked.steps,
            "interval": there.interval, "time unit": _unit(there), "members": asked.members, "rows together": rows}
    return Samples(objects, [sample_id(i) for i in range(trajectories)], asked.seed, verdicts, domain, meta=meta)


# -- what is asked


def _same_equation(domain: PdeDomain, model: Model | None, name: str) -> None:
    """UsageError unless the model was trained on this equation."""
    from scidiff.domains.pde.equations import EQUATIONS

    if name not in EQUATIONS:
        known = [*EQUATIONS]
        if model is None:
            known += [n for m in checkpoint.shipped() if m.domain == domain.name for n in (m.experiment, m.alias) if n]
        raise UsageError(f"There is no equation {'or model ' if model is None else ''}named {name!r}.",
                         nearest(name, known))
    if model is None:
        raise UsageError(f"No shipped model knows the equation {name!r}.",
                         "Train one ('scidiff list experiments') and name it with --from.")
    own = (domain.equation or {}).get("name")
    if own != name:
        taught = f"{own!r}" if own else "fields without a known equation"
        raise UsageError(f"The model {model.name!r} was trained on {taught}, not on {name!r}.")


def _conditions(model: Model, asked: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Every scalar that the model knows, as it is and standardised; the training mean where none is asked for."""
    known = model.conditions
    for name, value in asked.items():
        if name not in known:
            raise UsageError(f"The model {model.name!r} knows no condition {name!r}.",
                             nearest(name, known) if known else "It was trained without conditions.")
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise UsageError(f"The condition {name} must be a number, not {value!r}.",
                             f"In the training data it was {known[name]['mean']:.3g} +- {known[name]['std']:.2g}.")
        if value is not None and abs(value - known[name]["mean"]) > FAR * known[name]["std"]:
            raise UsageError(f"{name} = {value:g} is far from all that the model was trained on.",
                             f"In the training data it was {known[name]['mean']:.3g} +- {known[name]['std']:.2g}.")
    values = {n: float(about["mean"] if asked.get(n) is None else asked[n]) for n, about in known.items()}
    return values, {n: torch.tensor((values[n] - known[n]["mean"]) / known[n]["std"]) for n in known}


def _with_parameters(domain: PdeDomain, values: Mapping[str, float]) -> PdeDomain:
    """The domain with the parameters of the equation, the interval and the box that the conditions name."""
    law, more = dict(domain.equation or {}), {}
    for name, value in values.items():  # dt and dx are those of the data's frames
        if name in law:
            law[name] = value
        elif name == "dt":
            more["interval"] = domain.stride * value
        elif name == "dx":
            more["extent"] = [n * value for n in domain.shape]
    return type(domain)(**{**domain.options(), "equation": law or None, **more})


def _first_states(domain: PdeDomain, asked: Ask) -> Tensor | None:
    """Histories [T, H, C, *space], float64, of the file that was named; None where the equation is to make them."""
    if asked.init is None:
        return None
    try:
        found = init_state(asked.init, domain.fields, domain.shape, domain.extent, domain.history,
                           interval=domain.interval, **asked.options)
    except UsageError as error:  # a setting of the reader is one of `domain.options` here
        remedy = re.sub(rf"\b({'|'.join(READING)})=", r"domain.options.\1=", error.remedy)
        raise UsageError(error.message, remedy) from error
    name = Path(asked.init).name
    if asked.trajectories is not None and asked.trajectories > len(found):
        raise UsageError(f"{name} holds {len(found)} first states, fewer than the {asked.trajectories} trajectories "
                         "asked for.", "Leave --trajectories out to take them all.")
    found = found[: asked.trajectories].to(torch.float64)
    from scidiff.domains.pde import LIMIT

    sizes = found.movedim(2, 0).flatten(1).abs().amax(1).tolist()
    for unknown, size, known in zip(domain.fields, sizes, domain.largest, strict=True):
        if size > LIMIT * known:
            raise UsageError(f"|{unknown}| reaches {size:.3g} in {name}, but {known:.3g} in the training data.",
                             f"A rollout starts within {LIMIT:g} times that.")
    return found


def _afford(domain: PdeDomain, asked: Ask, trajectories: int, solved: bool) -> None:
    """UsageError where the frames would fill the memory."""
    values = trajectories * (asked.steps + 1) * len(domain.fields) * math.prod(domain.shape)
    size = values * (asked.members * asked.precision // 8 + (12 if solved else 0))
    if size > LARGEST:
        raise UsageError(f"{trajectories} trajectories of {asked.members} members and {asked.steps} steps take "
                         f"{size / 1e9:.3g} GB of memory; at most {LARGEST / 1e9:g} GB are allowed.",
                         "Take fewer now, and others with another seed.")


def _block(shape: Sequence[int], device: str) -> int:
    points, least, most = POINTS[device]
    return max(min(points // math.prod(shape), most), least)


def _developed(domain: PdeDomain, count: int, seed: int, progress: Progress | None) -> Tensor:
    """First states [T, H, C, *space], float64, in groups of fixed numbers: no trajectory depends on others."""
    out = []
    for start in range(0, count, GROUP):
        out.append(developed(domain, torch.arange(start, start + GROUP), seed))
        if progress is not None:
            progress("Solving for the first states", min(start + GROUP, count), count)
    return torch.cat(out)[:count]


def _truth(domain: PdeDomain, state: Tensor, steps: int, progress: Progress | None) -> Tensor:
    """The reference [T, S, C, *space] as float32, in the same groups."""
    from scidiff.domains.pde.equations import BlowUp

    out = []
    for start in range(0, len(state), GROUP):
        group = state[torch.arange(start, start + GROUP).clamp(max=len(state) - 1)]
        try:
            out.append(future(domain, group, steps).to(torch.float32)[: len(state) - start])
        except BlowUp as error:
            raise UsageError(f"The reference solution of trajectory {start + error.samples[0]} blows up at time "
                             f"{error.time:.4g}.", "Leave it out with sampling.truth=false.") from error
        if progress is not None:
            progress("Solving the reference", min(start + GROUP, len(state)), len(state))
    return torch.cat(out)


# -- the rollout


def part_name(start: int) -> str:
    """Name of the part that holds the steps after step `start`."""
    return f"steps_{start:06d}"


def _rolled(stepper: Blocks, first: Tensor, asked: Ask, cond: Mapping[str, Tensor], drawing: Drawing,
            store: Store | None, progress: Progress | None) -> tuple[Tensor, Tensor, float | None]:
    """Physical frames [R, S + 1, C, *space] float32, the last sound step [R], and the seconds (None where resumed)."""
    history, scaling = stepper.transition.history, stepper.scaling
    dtype = torch.float64 if asked.precision == 64 else torch.float32
    ids = row_ids(torch.arange(len(first)), asked.members)
    scaled = scaling.apply(first).to(dtype).repeat_interleave(asked.members, 0)
    out = torch.full((len(ids), asked.steps + 1, *first.shape[2:]), torch.nan, dtype=dtype)
    out[:, 0] = scaled[:, -1]
    last, alive, done = torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool), 0
    for start in range(0, asked.steps, PART):
        if store is None or not store.has_part(part_name(start)):
            break
        held, _ = store.read_part(part_name(start))
        done = start + held["frames"].shape[1]
        out[:, start + 1 : done + 1], last, alive = held["frames"], held["last"], held["alive"]
    resumed = done > 0
    earlier = torch.cat([scaled[:, :-1], out[:, : done + 1]], 1)[:, -history:]
    place = drawing.device
    rows = {k: (v.to(place, dtype).expand(len(ids)), torch.ones(len(ids), dtype=torch.bool, device=place))
            for k, v in cond.items()}
    begun = monotonic()
    for step, frame, sound in march(stepper, earlier.to(place), ids.to(place), asked.seed, asked.steps, done,
                                    stepper.rows, rows or None, alive.to(place)):
        out[:, step] = frame.cpu()
        alive = sound.cpu()
        last[alive] = step
        start = (step - 1) // PART * PART
        if store is not None and (step == asked.steps or step - start == PART):
            store.write_part(part_name(start), {"frames": out[:, start + 1 : step + 1], "last": last, "alive": alive})
        if progress is not None:
            progress("Rolling out", step, asked.steps)
    seconds = None if resumed else monotonic() - begun
    frames = physical(out, scaling, 2)
    frames[:, 0] = first[:, -1].to(torch.float32).repeat_interleave(asked.members, 0)
    return frames, last, seconds


def _unit(domain: PdeDomain) -> str:
    return "time units" if domain.time_unit == "1" else domain.time_unit


def _verdict(last: Tensor, steps: int, domain: PdeDomain) -> Verdict:
    """The judgement of one trajectory from the last sound step of its members."""
    bad = last[last < steps]
    if not len(bad):
        return Verdict(True)
    step = int(bad.min()) + 1
    when = f"at step {step} of {steps} ({step * float(domain.interval or 1.0):g} {_unit(domain)})"
    if len(last) == 1:
        return Verdict(False, f"blew up {when}")
    who = f"all {len(last)} members" if len(bad) == len(last) else \
        f"{len(bad)} of {len(last)} members" if len(bad) > 1 else "one member"
    return Verdict(False, f"{who} blew up, {'the first ' if len(bad) > 1 else ''}{when}")
