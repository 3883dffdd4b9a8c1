"""A denoiser that sees a few samples at a time: what the network needs no longer grows with the batch.

The answer is the same, since samples do not meet in a network. Where gradients are asked for, a chunk is computed
once more on the way back instead of being kept (one more evaluation), so the bound holds there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scidiff.core.denoiser import MEMORY, Denoiser, Predictions, Times, time_of
from scidiff.core.errors import UsageError
from scidiff.core.path.base import Prediction
from scidiff.core.run import Run
from scidiff.core.spec import Context, State

Kinds = list[tuple[str, str]]


class Chunked(Denoiser):
    """`denoiser` on at most `chunk` samples a call."""

    def __init__(self, denoiser: Denoiser, chunk: int) -> None:
        super().__init__()
        if chunk < 1:
            raise UsageError(f"A chunk holds at least one sample, not {chunk}.")
        self.denoiser, self.chunk = denoiser, int(chunk)
        self.needs_grad, self.self_conditioning = denoiser.needs_grad, denoiser.self_conditioning
        self.spec = getattr(denoiser, "spec", None)
        self._parts: tuple[Context, list[tuple[slice, Context]]] | None = None

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        if ctx.batch <= self.chunk:
            return self.denoiser(state, t, ctx, run)
        done = [self._part(state, t, rows, part, run) for rows, part in self._split(ctx)]
        kinds = done[0][0]
        values = [torch.cat([out[i] for _, out, _ in done]) for i in range(len(kinds))]
        if run is not None:
            for key in done[0][2]:
                kept = [memory[key] for _, _, memory in done]
                run.memory[key] = {n: torch.cat([m[n] for m in kept]) for n in kept[0]}
        preds: Predictions = {}
        for (name, kind), value in zip(kinds, values, strict=True):
            if name in preds:
                preds[name].values[kind] = value
            else:
                preds[name] = Prediction(kind, value)
        if isinstance(self.spec, Mapping):
            for name, pred in preds.items():
                pred.bind(self.spec[name].path, state[name], time_of(t, name), ctx.at(name, self.spec[name]))
        return preds

    def _split(self, ctx: Context) -> list[tuple[slice, Context]]:
        """Rows of the batch and their contexts, made once a context."""
        if self._parts is None or self._parts[0] is not ctx:
            rows = [slice(i, min(i + self.chunk, ctx.batch)) for i in range(0, ctx.batch, self.chunk)]
            every = torch.arange(ctx.batch, device=ctx.device)
            self._parts = ctx, [(r, ctx.take(every[r])) for r in rows]
        return self._parts[1]

    def _part(self, state: State, t: Times, rows: slice, ctx: Context,
              run: Run | None) -> tuple[Kinds, tuple[Tensor, ...], dict[str, dict[str, Tensor]]]:
        """One chunk: which predictions came, their values, and what the network will remember of it."""
        names, kinds, later = list(state), [], {}
        before = {} if run is None else {k: v for k, v in run.memory.items() if k.startswith(MEMORY)}

        def call(*parts: Tensor) -> tuple[Tensor, ...]:
            inner = None
            if run is not None:  # a scratch run: computing a chunk again must meet the memory of the first time
                inner = Run(run.seed, run.stream)
                inner.step = run.step
                inner.memory = {k: {n: x[rows] for n, x in v.items()} for k, v in before.items()}
            preds = self.denoiser(dict(zip(names, parts, strict=True)), _rows(t, rows), ctx, inner)
            kinds[:] = [(n, kind) for n, p in preds.items() for kind in _first(p)]
            later.update({} if inner is None else {k: v for k, v in inner.memory.items() if k.startswith(MEMORY)})
            return tuple(preds[n].values[kind] for n, kind in kinds)

        inputs = [state[n][rows] for n in names]
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            out: Any = checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            out = call(*inputs)
        return list(kinds), out, dict(later)


def _first(pred: Prediction) -> list[str]:
    """The kinds that a prediction came with, its own first."""
    return [pred.kind, *(k for k in pred.values if k != pred.kind)]


def _rows(t: Times, rows: slice) -> Times:
    if isinstance(t, Mapping):
        return {n: _rows(v, rows) for n, v in t.items()}  # type: ignore[misc]
    return t if isinstance(t, (int, float)) or t.dim() == 0 else t[rows]
