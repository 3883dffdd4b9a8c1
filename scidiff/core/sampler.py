"""The loop: the only place where a path is integrated.

    for each stage:  predictions = denoiser(state, t);  rows update the components;  rules may change the result

One network call per stage for the whole state. Fixed plans never wait for the device: coefficients are Python floats,
noise is counted, and whether everything stayed finite is asked once, at the end; if not, the run is replayed with
checks (its noise repeats) to name the step and the component. Gradients exist only where the denoiser or a rule sets
`needs_grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions
from scidiff.core.errors import NonFinite, ScidiffError, UsageError
from scidiff.core.plan import Driver, Row, Stage
from scidiff.core.run import Noise, Run
from scidiff.core.spec import Context, Site, State, StateSpec

Rule = Callable[[State, State, Predictions, Any, Any, Context, Run], State]
OnStep = Callable[["Loop"], None]


@dataclass
class Result:
    """What a run returns: the state at t = 0, the last predictions, the number of network calls, the run."""

    state: State
    predictions: Predictions
    nfe: int
    run: Run


class Loop:
    """Where a run stands: the state, the state at the start of the step, past predictions, the stage number."""

    __slots__ = ("bad", "context", "history", "nfe", "noises", "predictions", "run", "s", "sites", "stage", "start",
                 "state", "t", "total")

    def __init__(self, state: State, ctx: Context, run: Run, sites: dict[str, Site], noises: dict[str, Noise],
                 history: dict[str, dict[str, list[Tensor]]], total: int) -> None:
        self.state, self.start, self.context, self.run = state, dict(state), ctx, run
        self.sites, self.noises, self.history, self.total = sites, noises, history, total
        self.predictions: Predictions = {}
        self.nfe = self.stage = 0
        self.t: Any = 1.0
        self.s: Any = 1.0
        self.bad: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint of the run between two stages; `Sampler.run(resume=...)` continues from it."""
        return {"state": dict(self.state), "start": dict(self.start), "stage": self.stage, "nfe": self.nfe,
                "history": {n: {f: list(h) for f, h in kinds.items()} for n, kinds in self.history.items()},
                "run": self.run.state_dict()}


class Sampler:
    """Draws samples of `spec` with a denoiser and a driver; `rules` act after each step, in order.

    dtype: float32 or float64 for continuous components. compile: torch.compile the denoiser. cuda_graph: capture the
    whole loop of a fixed plan as one CUDA graph (refused without CUDA).
    """

    def __init__(self, spec: StateSpec, denoiser: Denoiser, driver: Driver, rules: Sequence[Rule] = (),
                 dtype: torch.dtype = torch.float32, compile: bool = False, cuda_graph: bool = False) -> None:
        self.spec, self.driver, self.rules, self.dtype = spec, driver, tuple(rules), dtype
        self.denoiser: Any = denoiser
        self.needs_grad = bool(getattr(denoiser, "needs_grad", False)
                               or any(getattr(r, "needs_grad", False) for r in rules))
        self._history = driver.history(spec)
        self._push = [(n, f, depth) for n, kinds in self._history.items() for f, depth in kinds.items()]
        self._wraps = {n: c.space.wraps for n, c in spec.items()}
        self._graph: Any = None
        if compile:
            self.denoiser = torch.compile(denoiser)
        if cuda_graph:
            if not torch.cuda.is_available():
                raise UsageError("solver.cuda_graph=true needs a CUDA GPU, and none is visible.",
                                 "Leave it out on this machine.")
            from scidiff.core.graphed import GraphedLoop

            self._graph = GraphedLoop(self)

    def source(self, ctx: Context, run: Run) -> State:
        """A draw at t = 1."""
        return {n: c.path.source(ctx.at(n, c), run.handle(ctx.at(n, c), self.dtype)) for n, c in self.spec.items()}

    def run(self, ctx: Context, seed: int | Run, start: State | None = None, t_start: float = 1.0,
            resume: Mapping[str, Any] | None = None, on_step: OnStep | None = None) -> Result:
        """Integrates from t_start (default: the source) to the end of the driver's grid.

        `start` is the state at t_start (default: a draw of the source). `resume` is a `Loop.state_dict()`. `on_step`
        is called with the Loop after each step. Raises NonFinite if a network returned NaN or infinity.
        """
        if start is None and t_start != 1.0 and resume is None:
            raise ScidiffError("Starting before the source (t_start < 1) needs a start state.")
        if self._graph is not None and start is None and resume is None and on_step is None:
            return self._graph.run(ctx, seed)
        with torch.inference_mode(not self.needs_grad):
            loop = self._begin(ctx, seed, start, resume)
            self._loop(loop, t_start, on_step, check=False)
            if not self._finite(loop):
                again = self._begin(ctx, seed if isinstance(seed, int) else seed.seed, start, resume)
                self._loop(again, t_start, None, check=True)
                raise NonFinite("The run ended with values that are not finite.")
        return Result(loop.state, loop.predictions, loop.nfe, loop.run)

    def _begin(self, ctx: Context, seed: int | Run, start: State | None, resume: Mapping[str, Any] | None) -> Loop:
        run = seed if isinstance(seed, Run) else Run(seed)
        if resume is not None:
            run = Run.from_state_dict(resume["run"])
        sites = {n: ctx.at(n, c) for n, c in self.spec.items()}
        noises = {n: run.handle(site, self.dtype) for n, site in sites.items()}
        if resume is not None:
            state = dict(resume["state"])
        else:
            state = dict(start) if start is not None else self.source(ctx, run)
            missing = set(self.spec) - set(state)
            if missing:
                raise ScidiffError(f"The start state has no component {', '.join(sorted(missing))}.")
        history = {n: {f: [] for f in kinds} for n, kinds in self._history.items()}
        loop = Loop(state, ctx, run, sites, noises, history, 0)
        if resume is not None:
            loop.start, loop.stage, loop.nfe = dict(resume["start"]), resume["stage"], resume["nfe"]
            loop.history = {n: {f: list(h) for f, h in kinds.items()} for n, kinds in resume["history"].items()}
        return loop

    def _loop(self, loop: Loop, t_start: float, on_step: OnStep | None, check: bool) -> None:
        denoiser, ctx, run, spec, push = self.denoiser, loop.context, loop.run, self.spec, self._push
        state, history, start = loop.state, loop.history, loop.start
        rules, wraps, add, mul = self.rules, self._wraps, torch.add, torch.mul
        loop.total = self.driver.total(spec, t_start)
        skip = loop.stage
        for number, stage in enumerate(self.driver.stages(loop, t_start)):
            if number < skip:
                continue
            run.step = number
            loop.t, loop.s = stage.t, stage.s
            if stage.evaluate:
                preds = denoiser(state, stage.t, ctx, run)
                loop.predictions = preds
                loop.nfe += 1
                for name, form, depth in push:
                    pred = preds[name]
                    value = pred.values.get(form)
                    if value is None:
                        t = stage.t[name] if isinstance(stage.t, Mapping) else stage.t
                        value = pred.bind(spec[name].path, state[name], t, loop.sites[name]).to(form)
                    kept = history[name][form]
                    kept.insert(0, value)
                    del kept[depth:]
            before = dict(state) if rules else None
            for row in stage.rows:
                name = row.name
                base = state[name] if row.base == "current" else start[name]
                if row.kernel == "affine":
                    kept = history[name][row.form] if row.on else ()
                    x = mul(base, row.a)
                    for b, k in zip(row.b, row.on, strict=True):
                        x.add_(kept[k], alpha=b)
                    if row.m != 0.0 and name in ctx.centre:
                        x.add_(ctx.centre[name], alpha=row.m)
                    if row.c != 0.0:
                        x = add(x, loop.noises[name].normal(row.tag), alpha=row.c)
                    if wraps[name]:
                        x = spec[name].space.wrap(x)
                else:
                    x = self._apply(loop, stage, row, base)
                state[name] = x
                if row.keep:
                    start[name] = x
            if check:
                self._locate(loop, number)
            loop.stage = number + 1
            if stage.last:
                if rules:
                    for rule in rules:
                        changed = rule(dict(state), before, loop.predictions, stage.t, stage.s, ctx, run)  # type: ignore[arg-type]
                        state.update(changed)
                    start.update(state)
                if on_step is not None:
                    on_step(loop)

    def _apply(self, loop: Loop, stage: Stage, row: Row, base: Tensor) -> Tensor:
        pred = loop.predictions.get(row.name)
        component = self.spec[row.name]
        if pred is not None and stage.evaluate:
            t = stage.t[row.name] if isinstance(stage.t, Mapping) else stage.t
            pred.bind(component.path, loop.state[row.name], t, loop.sites[row.name])
            if component.space.categorical:
                bad = torch.isfinite(pred.value).all().logical_not()
                loop.bad = bad if loop.bad is None else loop.bad | bad
        return component.path.apply(row, base, pred, loop.sites[row.name], loop.noises[row.name])

    def _finite(self, loop: Loop) -> bool:
        flags = [torch.isfinite(x).all() for x in loop.state.values() if x.is_floating_point()]
        if loop.bad is not None:
            flags.append(loop.bad.logical_not())
        return all(bool(f) for f in flags)

    def _locate(self, loop: Loop, number: int) -> None:
        for name, pred in loop.predictions.items():
            if not bool(torch.isfinite(pred.value).all()):
                raise NonFinite(f"The network returned values that are not finite for component {name!r} at step "
                                f"{number + 1} of {loop.total} (t = {_text(loop.t)}).",
                                "Check the training run, or sample with precision=64 or device=cpu.")
        for name, x in loop.state.items():
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise NonFinite(f"Component {name!r} stopped being finite at step {number + 1} of {loop.total} "
                                f"(t = {_text(loop.t)}), though the network's output was finite.",
                                "Use more steps or a lower order.")


def _text(t: Any) -> str:
    return f"{t:.4g}" if isinstance(t, float) else "per component"
