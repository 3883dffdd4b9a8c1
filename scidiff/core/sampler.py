"""The loop: the only place where a path is integrated.

    for each stage:  predictions = denoiser(state, t);  rows update the components;  rules may change the result

One network call per stage for the whole state. Fixed plans never wait for the device: coefficients are Python floats,
noise is counted, and whether everything stayed finite is asked once, at the end; if not, the run is replayed with
checks (its noise repeats) to name the step and the component. Gradients exist only where the denoiser or a rule sets
`needs_grad`. Plans are unpacked into tuples once per Sampler, and the noise of small states is drawn for several steps
at a time: with a small network the loop itself is what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scidiff.core.ahead import NoiseAhead
from scidiff.core.denoiser import Denoiser, NetworkDenoiser, Predictions, time_of
from scidiff.core.errors import NonFinite, ScidiffError, UsageError
from scidiff.core.plan import Driver, Row, Stage
from scidiff.core.run import Noise, Run
from scidiff.core.spec import Context, Site, State, StateSpec

Rule = Callable[[State, State, Predictions, Any, Any, Context, Run], State]
OnStep = Callable[["Loop"], None]
Step = tuple[Any, ...]
Table = tuple[list[tuple[str, str, int]], list[Step] | None]


@dataclass
class Result:
    """What a run returns: the state at t = 0, the last predictions, the number of network calls, the run."""

    state: State
    predictions: Predictions
    nfe: int
    run: Run


class Loop:
    """Where a run stands: the state, the state at the start of the step, past predictions, the stage number.

    `stage` counts the stages done. Drivers that look at the loop may change `history` and `run.memory` between stages.
    """

    __slots__ = ("bad", "context", "history", "nfe", "noises", "predictions", "run", "s", "seen", "sites", "spec",
                 "stage", "start", "state", "t", "t_start", "total")

    def __init__(self, spec: StateSpec, state: State, ctx: Context, run: Run, sites: dict[str, Site],
                 noises: dict[str, Noise], history: dict[str, dict[str, list[Tensor]]], t_start: float = 1.0) -> None:
        self.spec, self.state, self.start, self.context, self.run = spec, state, dict(state), ctx, run
        self.sites, self.noises, self.history, self.t_start = sites, noises, history, t_start
        self.predictions: Predictions = {}
        self.seen: State = {}
        self.nfe = self.stage = self.total = 0
        self.t: Any = 1.0
        self.s: Any = 1.0
        self.bad: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint of the run between two steps; `Sampler.run(resume=...)` continues from it."""
        return {"state": dict(self.state), "start": dict(self.start), "stage": self.stage, "nfe": self.nfe,
                "t_start": self.t_start,
                "history": {n: {f: list(h) for f, h in kinds.items()} for n, kinds in self.history.items()},
                "run": self.run.state_dict()}

    def bound(self) -> Predictions:
        """The last predictions, able to convert among kinds at the state that the network saw."""
        for name, pred in self.predictions.items():
            if pred.path is None and name in self.seen:
                pred.bind(self.spec[name].path, self.seen[name], time_of(self.t, name), self.sites[name])
        return self.predictions


class Sampler:
    """Draws samples of `spec` with a denoiser and a driver; `rules` act after each step, in order.

    dtype: float32 or float64 for continuous components. compile: compile its networks, in place. cuda_graph: capture
    the whole loop of a fixed plan as one CUDA graph (refused without CUDA).
    """

    def __init__(self, spec: StateSpec, denoiser: Denoiser, driver: Driver, rules: Sequence[Rule] = (),
                 dtype: torch.dtype = torch.float32, compile: bool = False, cuda_graph: bool = False) -> None:
        self.spec, self.driver, self.rules, self.dtype = spec, driver, tuple(rules), dtype
        self.denoiser: Any = denoiser
        self.needs_grad = bool(getattr(denoiser, "needs_grad", False)
                               or any(getattr(r, "needs_grad", False) for r in rules))
        self._ready: dict[float, Table] = {}
        self._prepare(1.0)
        self._graph: Any = None
        if compile:
            self._compile(denoiser)
        if cuda_graph:
            if not torch.cuda.is_available():
                raise UsageError("solver.cuda_graph=true needs a CUDA GPU, and none is visible.",
                                 "Leave it out on this machine.")
            from scidiff.core.graphed import GraphedLoop

            self._graph = GraphedLoop(self)

    def _compile(self, denoiser: Denoiser) -> None:
        """Compiles what is given times as tensors: a float t would be a constant, and each step another program."""
        networks = [m.backbone for m in denoiser.modules() if isinstance(m, NetworkDenoiser)]
        for network in networks:
            network.compile()
        if not networks:
            self.denoiser = torch.compile(denoiser)

    def source(self, ctx: Context, run: Run) -> State:
        """A draw at t = 1."""
        return {n: c.path.source(ctx.at(n, c), run.handle(ctx.at(n, c), self.dtype)) for n, c in self.spec.items()}

    def run(self, ctx: Context, seed: int | Run, start: State | None = None, t_start: float = 1.0,
            resume: Mapping[str, Any] | None = None, on_step: OnStep | None = None) -> Result:
        """Integrates from t_start (default: the source) to the end of the driver's grid.

        `start` is the state at t_start (default: a draw of the source). `resume` is a `Loop.state_dict()`, which knows
        where its run started. `on_step` is called with the Loop after each step. Raises NonFinite if a network
        returned NaN or infinity.
        """
        if start is None and t_start != 1.0 and resume is None:
            raise ScidiffError("Starting before the source (t_start < 1) needs a start state.")
        if self._graph is not None and isinstance(seed, int) and start is None and resume is None and on_step is None:
            return self._graph.run(ctx, seed)
        memory = dict(seed.memory) if isinstance(seed, Run) else {}
        with torch.inference_mode(not self.needs_grad):
            loop = self._begin(ctx, seed, start, t_start, resume)
            self._loop(loop, on_step)
            if not self._finite(loop):
                again: int | Run = seed
                if isinstance(seed, Run):
                    again = Run(seed.seed, seed.stream)
                    again.memory.update(memory)
                self._loop(self._begin(ctx, again, start, t_start, resume), None, self._locate)
                raise NonFinite("The run ended with values that are not finite.")
        return Result(loop.state, loop.bound(), loop.nfe, loop.run)

    def _begin(self, ctx: Context, seed: int | Run, start: State | None, t_start: float,
               resume: Mapping[str, Any] | None) -> Loop:
        run = seed if isinstance(seed, Run) else Run(seed)
        if resume is not None:
            run, t_start = Run.from_state_dict(resume["run"]), resume["t_start"]
        sites = {n: ctx.at(n, c) for n, c in self.spec.items()}
        noises = {n: run.handle(site, self.dtype) for n, site in sites.items()}
        if resume is not None:
            state = dict(resume["state"])
        else:
            state = dict(start) if start is not None else self.source(ctx, run)
            missing = set(self.spec) - set(state)
            if missing:
                raise ScidiffError(f"The start state has no component {', '.join(sorted(missing))}.")
        history: dict[str, dict[str, list[Tensor]]] = {}
        for name, form, _ in self._prepare(t_start)[0]:
            history.setdefault(name, {})[form] = [] if resume is None else list(resume["history"][name][form])
        loop = Loop(self.spec, state, ctx, run, sites, noises, history, t_start)
        if resume is not None:
            loop.start, loop.stage, loop.nfe = dict(resume["start"]), resume["stage"], resume["nfe"]
        return loop

    def _prepare(self, t_start: float) -> Table:
        """What is remembered of predictions, and the unpacked stages of a plan (None where the driver has none)."""
        found = self._ready.get(t_start)
        if found is None:
            make: Any = getattr(self.driver, "plan", None)
            plan = None if make is None else make(self.spec, t_start)
            need = self.driver.history(self.spec) if plan is None else plan.history()
            kept = [(n, form, depth) for n, kinds in need.items() for form, depth in kinds.items()]
            found = kept, None if plan is None else [self._unpack(stage, kept) for stage in plan.stages]
            self._ready[t_start] = found
        return found

    def _unpack(self, stage: Stage, kept: list[tuple[str, str, int]]) -> Step:
        """A stage as nested tuples: what the loop touches, in the order in which it does."""
        place, rows = {(n, form): i for i, (n, form, _) in enumerate(kept)}, []
        for r in stage.rows:
            space = self.spec[r.name].space
            affine = r.kernel == "affine"
            terms = tuple(zip(r.b, r.on, strict=True)) if affine else ()
            rows.append((r.name, affine, r.base == "start", r.a, place.get((r.name, r.form)), terms, r.m, r.c, r.tag,
                         space.wrap if space.wraps else None, r.keep, r))
        return stage.t, stage.s, stage.evaluate, stage.last, tuple(rows), stage

    def _call(self) -> Any:
        """The denoiser without the detour through nn.Module.__call__ where it has no hooks."""
        d = self.denoiser
        plain = type(d).__call__ is torch.nn.Module.__call__ if isinstance(d, Denoiser) else False
        hooked = plain and (d._forward_hooks or d._forward_pre_hooks or d._backward_hooks or d._backward_pre_hooks)
        return d.forward if plain and not hooked else d

    def _loop(self, loop: Loop, on_step: OnStep | None, check: Callable[[Loop], None] | None = None) -> None:
        ctx, run, state, start, rules = loop.context, loop.run, loop.state, loop.start, self.rules
        remembered, planned = self._prepare(loop.t_start)
        past = [loop.history[name][form] for name, form, _ in remembered]
        push = [(name, form, depth, kept) for (name, form, depth), kept in zip(remembered, past, strict=True)]
        loop.total = self.driver.total(self.spec, loop.t_start)
        predict, mul, add, centre = self._call(), torch.mul, torch.add, ctx.centre
        steps: Iterable[Step] = ()
        if planned is None:
            steps = (self._unpack(stage, remembered) for stage in self.driver.stages(loop, loop.t_start))
        else:
            steps = planned[loop.stage:]
        # A Run with noise of its own is asked for it step by step.
        ahead = NoiseAhead(loop, (planned or ()) if type(run) is Run else ())
        number = loop.stage
        for t, s, evaluate, last, rows, stage in steps:
            run.step, loop.t, loop.s = number, t, s
            if evaluate:
                loop.predictions = preds = predict(state, t, ctx, run)
                loop.nfe += 1
                loop.seen = dict(state)
                for name, form, depth, kept in push:
                    pred = preds[name]
                    value = pred.values.get(form)
                    if value is None:
                        bound = pred.bind(self.spec[name].path, state[name], time_of(t, name), loop.sites[name])
                        value = bound.to(form)
                    kept.insert(0, value)
                    if len(kept) > depth:
                        kept.pop()
            before = dict(state) if rules and last else None
            for name, affine, from_start, a, place, terms, m, c, tag, wrap, keep, row in rows:
                base = start[name] if from_start else state[name]
                if affine:
                    if terms:
                        kept = past[place]
                        b, k = terms[0]
                        x = add(base, kept[k], alpha=b) if a == 1.0 else mul(base, a).add_(kept[k], alpha=b)
                        for b, k in terms[1:]:
                            x.add_(kept[k], alpha=b)
                    else:
                        x = mul(base, a)
                    if m != 0.0 and name in centre:
                        x.add_(centre[name], alpha=m)
                    if c != 0.0:
                        x = add(x, ahead.normal(name, tag, number), alpha=c)
                    if wrap is not None:
                        x = wrap(x)
                else:
                    x = self._apply(loop, stage, row, base)
                state[name] = x
                if keep:
                    start[name] = x
            number += 1
            loop.stage = number
            if check is not None:
                check(loop)
            if last:
                if rules:
                    preds = loop.bound()
                    for rule in rules:
                        state.update(rule(dict(state), before, preds, t, s, ctx, run))  # type: ignore[arg-type]
                start.update(state)
                if on_step is not None:
                    on_step(loop)

    def _apply(self, loop: Loop, stage: Stage, row: Row, base: Tensor) -> Tensor:
        pred = loop.predictions.get(row.name)
        component = self.spec[row.name]
        if pred is not None and stage.evaluate:
            pred.bind(component.path, loop.seen[row.name], time_of(stage.t, row.name), loop.sites[row.name])
            if component.space.categorical:
                bad = torch.isfinite(pred.value).all().logical_not()
                loop.bad = bad if loop.bad is None else loop.bad | bad
        return component.path.apply(row, base, pred, loop.sites[row.name], loop.noises[row.name])

    def _finite(self, loop: Loop) -> bool:
        """Whether the run ended well: the one question that waits for the device."""
        good = [torch.isfinite(x).all() for x in loop.state.values() if x.is_floating_point()]
        if loop.bad is not None:
            good.append(loop.bad.logical_not())
        if not good:
            return True
        return bool(good[0] if len(good) == 1 else torch.stack(good).all())

    def _locate(self, loop: Loop) -> None:
        where = f"at step {loop.stage} of {loop.total} (t = {_text(loop.t)})"
        for name, pred in loop.predictions.items():
            if not bool(torch.isfinite(pred.value).all()):
                raise NonFinite(f"The network returned values that are not finite for component {name!r} {where}.",
                                "Check the training run, or sample with precision=64 or device=cpu.")
        for name, x in loop.state.items():
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise NonFinite(
                    f"Component {name!r} stopped being finite {where}, though the network's output was finite.",
                    "Use more steps or a lower order.",
                )


def _text(t: Any) -> str:
    return f"{t:.4g}" if isinstance(t, float) else "per sample or component"
