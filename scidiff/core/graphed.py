"""The whole loop of a fixed plan as one CUDA graph.

A small network on a GPU is bound by launches: a hundred steps are thousands of kernels of a few microseconds. Since a
fixed plan holds floats only and never waits for the device, the loop can be captured once and replayed for every chunk
of the same shape. What changes between chunks lives in static buffers that are filled before a replay: the sample ids
with the keys of their noise, sizes, conditions, centres, known entries. Step numbers, tags and the stream are
constants of the graph; the seed enters through the keys. Denoisers may keep tensors in the run's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Predictions, time_of
from scidiff.core.errors import UsageError
from scidiff.core.path.base import Prediction
from scidiff.core.run import Run, sample_keys
from scidiff.core.spec import Context, State

if TYPE_CHECKING:
    from scidiff.core.sampler import Loop, Result, Sampler

WARM = 2


@dataclass
class Captured:
    """A graph with its static inputs and outputs."""

    graph: Any
    ctx: Context
    keys: Tensor
    loop: Loop


class GraphedLoop:
    """Captures on the first run of a chunk shape, replays afterwards; used by `Sampler(cuda_graph=True)`."""

    def __init__(self, sampler: Sampler) -> None:
        if sampler.needs_grad or sampler.rules:
            raise UsageError("solver.cuda_graph=true does not go with rules or gradients in the sampling loop.",
                             "Leave it out for this task.")
        if not hasattr(sampler.driver, "plan"):
            raise UsageError("solver.cuda_graph=true needs a solver with a fixed plan.")
        self.sampler = sampler
        self._captured: dict[tuple[Any, ...], Captured] = {}

    def run(self, ctx: Context, seed: int) -> Result:
        """The same Result as the plain loop; the last predictions are those of the final stage."""
        from scidiff.core.sampler import Result

        key = tuple((name, tuple(x.shape), x.dtype) for name, x in tensors(ctx))
        with torch.inference_mode():
            found = self._captured.get(key)
            if found is None:
                found = self._captured[key] = self._capture(ctx, seed)
            for (_, old), (_, new) in zip(tensors(found.ctx), tensors(ctx), strict=True):
                old.copy_(new)
            # Masks are made from sizes inside the graph's warm-up; they are buffers too.
            for shape, mask in found.ctx._masks.items():
                fresh = ctx.mask(shape)
                if mask is not None and fresh is not None:
                    mask.copy_(fresh)
            found.keys.copy_(sample_keys(seed, ctx.ids))
            found.graph.replay()
            loop = found.loop
            if not self.sampler._finite(loop):
                plain = self.sampler._begin(ctx, seed, None, 1.0, None)
                self.sampler._loop(plain, None, self.sampler._locate)
            state: State = {name: x.clone() for name, x in loop.state.items()}
            predictions = detached(loop, ctx)
        run = Run(seed)
        run.step = loop.run.step
        return Result(state, predictions, loop.nfe, run)

    def _capture(self, ctx: Context, seed: int) -> Captured:
        static = ctx._map(lambda x: x.clone())
        keys = sample_keys(seed, static.ids)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self._once(static, seed, keys)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loop = self._once(static, seed, keys)
        return Captured(graph, static, keys, loop)

    def _once(self, ctx: Context, seed: int, keys: Tensor) -> Loop:
        run = Run(seed)
        run._keys, run._keys_for = keys, ctx.ids
        loop = self.sampler._begin(ctx, run, None, 1.0, None)
        self.sampler._loop(loop, None)
        return loop


def detached(loop: Loop, ctx: Context) -> Predictions:
    """The last predictions as copies, for the next replay writes into the buffers and conversions are remembered."""
    out = {}
    for name, p in loop.predictions.items():
        c = loop.spec[name]
        out[name] = Prediction(p.kind, p.value.clone(), c.path, loop.seen[name].clone(), time_of(loop.t, name),
                               ctx.at(name, c))
    return out


def tensors(ctx: Context) -> list[tuple[str, Tensor]]:
    """Every tensor of a context that differs among chunks, in a fixed order."""
    out = [("ids", ctx.ids)]
    if ctx.sizes is not None:
        out.append(("sizes", ctx.sizes))
    for name, (value, present) in sorted(ctx.cond.items()):
        out += [(f"cond/{name}", value), (f"cond/{name}/present", present)]
    for name, (value, where) in sorted(ctx.known.items()):
        out += [(f"known/{name}", value), (f"known/{name}/where", where)]
    for group, entries in (("centre", ctx.centre), ("source", ctx.source)):
        out += [(f"{group}/{name}", value) for name, value in sorted(entries.items())]
    return out + [(f"meta/{name}", value) for name, value in sorted(ctx.meta.items()) if isinstance(value, Tensor)]
