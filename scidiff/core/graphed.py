"""The loop of a fixed plan as one CUDA graph: captured once for each set of shapes, replayed for every seed and batch.

A graph repeats kernels on fixed memory, so everything that differs between runs lies in static buffers that are filled
before a replay: the tensors of the context (ids, sizes, conditions, centres ...) and the keys of the counter noise, one
int64 a sample, which are all that a seed decides. Salts of the noise (stream, step, tag, component) and the
coefficients of the plan are constants of the graph. Masks are computed inside it, from the static sizes.

Refused: plans that look at the state (adaptive, first hitting), rules, and anything that needs gradients. A network
that synchronises with the host cannot be captured. Weights must keep their storage while a graph lives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.path.base import Prediction
from scidiff.core.path.categorical import CategoricalPath
from scidiff.core.run import Run, _index
from scidiff.core.solvers.fixed import Fixed, Stored
from scidiff.core.spec import Context

if TYPE_CHECKING:
    from scidiff.core.sampler import Loop, Result, Sampler

KEPT = 8  # graphs held at once; each has its own memory
Capture = Callable[[Callable[[], Any], Callable[[], Any]], tuple[Any, Callable[[], None]]]


def tensors(ctx: Context) -> dict[str, Tensor]:
    """Every tensor of a context by name."""
    out = {"ids": ctx.ids}
    if ctx.sizes is not None:
        out["sizes"] = ctx.sizes
    for group in ("cond", "known"):
        for name, pair in getattr(ctx, group).items():
            out[f"{group}/{name}/0"], out[f"{group}/{name}/1"] = pair
    for group in ("centre", "source", "meta"):
        out.update({f"{group}/{n}": v for n, v in getattr(ctx, group).items() if isinstance(v, Tensor)})
    return out


def copied(ctx: Context) -> Context:
    """A context with tensors of its own and nothing remembered."""
    def pair(v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return v[0].clone(), v[1].clone()

    return replace(
        ctx, ids=ctx.ids.clone(), sizes=None if ctx.sizes is None else ctx.sizes.clone(),
        cond={k: pair(v) for k, v in ctx.cond.items()}, known={k: pair(v) for k, v in ctx.known.items()},
        centre={k: v.clone() for k, v in ctx.centre.items()}, source={k: v.clone() for k, v in ctx.source.items()},
        meta={k: v.clone() if isinstance(v, Tensor) else v for k, v in ctx.meta.items()}, _masks={}, _time=None)


def cuda_capture(warm_up: Callable[[], Any], record: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Runs `warm_up` beside the main stream, captures `record`; returns what it returned and the replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        warm_up()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = record()
    return out, graph.replay


@dataclass
class _Graph:
    """One captured loop: its buffers, what it computes into, and what must stay alive with it."""

    buffers: dict[str, Tensor]
    keys: Tensor
    fixed_meta: dict[str, Any]
    loop: Loop
    replay: Callable[[], None]
    held: list[Tensor]


class GraphedLoop:
    """Runs a Sampler's fixed plan as a CUDA graph. `capture` is `cuda_capture` except in tests."""

    def __init__(self, sampler: Sampler, capture: Capture = cuda_capture) -> None:
        if not isinstance(sampler.driver, (Fixed, Stored)):
            name = type(sampler.driver).__name__
            raise UsageError(f"solver.cuda_graph=true captures fixed plans, and {name} makes none.",
                             "Leave it out with this solver.")
        if sampler.rules or sampler.needs_grad:
            raise UsageError("solver.cuda_graph=true captures plans without rules and gradients.",
                             "Leave it out where entries are clamped or a measurement guides.")
        self.sampler, self._capture = sampler, capture
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()

    def run(self, ctx: Context, seed: int | Run) -> Result:
        """The samples of `Sampler.run(ctx, seed)` from the source, bit for bit those of the loop without a graph."""
        from scidiff.core.errors import NonFinite
        from scidiff.core.sampler import Result

        if self._capture is cuda_capture and ctx.device.type != "cuda":
            raise UsageError(f"solver.cuda_graph=true needs the samples on a GPU; they are on the {ctx.device.type}.",
                             "Set device=cuda.")
        run = seed if isinstance(seed, Run) else Run(seed)
        if run.memory:
            return self.sampler.run(ctx, run, on_step=_nothing)
        with torch.inference_mode():
            graph = self._graph(ctx, run)
            for name, value in tensors(ctx).items():
                graph.buffers[name].copy_(value)
            graph.keys.copy_(run.keys(ctx.ids))
            graph.replay()
            loop = graph.loop
            finite = self.sampler._finite(loop)
            state = {n: x.clone() for n, x in loop.state.items()}
            predictions = {n: self._own(n, p, ctx) for n, p in loop.predictions.items()}
        if not finite:
            self.sampler.run(ctx, run.seed, on_step=_nothing)  # names the step and the component
            raise NonFinite("The captured run ended with values that are not finite, the run without a graph did not.",
                            "Leave solver.cuda_graph out, and report this.")
        run.step = loop.run.step
        return Result(state, predictions, loop.nfe, run)

    def _own(self, name: str, pred: Prediction, ctx: Context) -> Prediction:
        """A prediction whose tensors outlive the next replay."""
        z = None if pred.z is None else pred.z.clone()
        site = None if pred.site is None else ctx.at(name, self.sampler.spec[name])
        return Prediction(pred.kind, pred.value.clone(), pred.path, z, pred.t, site)

    def _graph(self, ctx: Context, run: Run) -> _Graph:
        """The graph for these shapes, captured when they are first met or the fixed part of `meta` has changed."""
        shapes = tuple((n, tuple(v.shape), v.dtype) for n, v in tensors(ctx).items())
        key = (shapes, ctx.n_max, str(ctx.device), run.stream, run.step)
        fixed_meta = {k: v for k, v in ctx.meta.items() if not isinstance(v, Tensor)}
        found = self._graphs.get(key)
        if found is None or found.fixed_meta != fixed_meta:
            self._graphs.pop(key, None)
            while len(self._graphs) >= KEPT:
                self._graphs.popitem(last=False)
            found = self._graphs[key] = self._captured(ctx, run, fixed_meta)
        self._graphs.move_to_end(key)
        return found

    def _captured(self, ctx: Context, run: Run, fixed_meta: dict[str, Any]) -> _Graph:
        sampler = self.sampler
        static, keys = copied(ctx), run.keys(ctx.ids).clone()
        # Tables that modules remember across runs: the graph reads their memory, so it keeps them alive.
        held = [_index((1,), (False,), False, ctx.device)]
        for name, c in sampler.spec.items():
            site = static.at(name, c)
            held.append(_index(site.dims, site.padded, c.space.symmetric, ctx.device))
            if isinstance(c.path, CategoricalPath):
                held.append(c.path.law(site))
        static._masks.clear()

        def warm_up() -> None:
            # Contexts of their own: whatever is remembered for a context must be computed anew inside the graph.
            for _ in range(2):
                self._loop(copied(ctx), run.keys(ctx.ids), run)

        loop, replay = self._capture(warm_up, lambda: self._loop(static, keys, run))
        return _Graph(tensors(static), keys, fixed_meta, loop, replay, held)

    def _loop(self, ctx: Context, keys: Tensor, like: Run) -> Loop:
        """The whole loop on one context, with given noise keys."""
        own = Run(like.seed, like.stream)
        own.step = like.step
        own._keys, own._keys_for = keys, ctx.ids
        loop = self.sampler._begin(ctx, own, None, None)
        self.sampler._loop(loop, 1.0, None, check=False)
        return loop


def _nothing(loop: Loop) -> None:
    """A callback, which keeps the Sampler from using its graph."""
