"""Two priors of two-dimensional slices that take turns on one volume (a wrapper).

    D(X) = D_1 of the slices across z, or, every K-th step, D_2 of the slices across y

The score of p(X) ~ p_1(slices across z)^b p_2(slices across y)^(1-b), b = 1 - 1/K, is the mean of the two over many
steps. The batch of the state holds the slices of volumes, [V Z, C, Y, X], and D_2 sees [V Y, C, Z, X]. K is a whole
number (every K-th step is D_2's) or a fraction, when D_2 takes each step with probability 1/K, by a draw that depends
on seed, sample and step alone. Source: Lee et al. 2023 (TPDM), arXiv 2303.08440.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import UsageError
from scidiff.core.path.base import Prediction
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.run import Run, uniform
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, State

KEPT = "perpendicular"


class Perpendicular(Denoiser):
    """`primary` knows the component `name` on `path`; `other` (its component `theirs`) the slices across y of volumes
    of `depth` slices. every: K."""

    def __init__(self, primary: Denoiser, other: Denoiser, name: str, path: GaussianPath, depth: int,
                 theirs: str | None = None, every: float = 2.0) -> None:
        super().__init__()
        if depth < 1 or not every >= 1.0:
            raise UsageError(f"Perpendicular priors need a volume and a turn every 1 step or more, not {depth} slices "
                             f"and {every:g}.")
        self.primary, self.other, self.name, self.theirs = primary, other, name, theirs or name
        self.path, self.depth, self.every = path, int(depth), float(every)
        self.spec = getattr(primary, "spec", None)
        self.needs_grad = primary.needs_grad or other.needs_grad
        self.self_conditioning = primary.self_conditioning
        self._across: tuple[Context, Context] | None = None

    def turn(self, ctx: Context, run: Run | None) -> bool:
        """Whether the other prior takes this step."""
        step = 0 if run is None else run.step
        if self.every == int(self.every):
            return step % int(self.every) == int(self.every) - 1
        seed, stream = (0, 0) if run is None else (run.seed, run.stream)
        return float(uniform(seed, ctx.ids[:1].cpu(), f"{KEPT}-{stream}-{step}")) < 1.0 / self.every

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        if not self.turn(ctx, run):
            return self.primary(state, t, ctx, run)
        x, when = state[self.name], time_of(t, self.name)
        across = self._turned(x)
        there, inner = self._context(ctx, across.shape[0] // (len(x) // self.depth)), None
        if run is not None:  # what a network remembers of one kind of slices is no use to the other
            inner = Run(run.seed, run.stream)
            inner.step, inner.memory = run.step, run.memory.setdefault(KEPT, {})
        pred = self.other({self.theirs: across}, when, there, inner)[self.theirs]
        component = Component(Euclidean(), self.path, tuple(across.shape[1:]))
        clean = pred.bind(self.path, across, when, there.at(self.theirs, component)).data
        site = ctx.at(self.name, Component(Euclidean(), self.path, tuple(x.shape[1:])))
        return {self.name: Prediction("data", self._back(clean, x), self.path, x, when, site)}

    def _turned(self, x: Tensor) -> Tensor:
        """[V Z, C, Y, X] to [V Y, C, Z, X]."""
        if len(x) % self.depth:
            raise UsageError(f"{len(x)} slices are no volumes of {self.depth}.")
        return x.unflatten(0, (-1, self.depth)).permute(0, 3, 2, 1, 4).flatten(0, 1).contiguous()

    def _back(self, across: Tensor, x: Tensor) -> Tensor:
        """The inverse of `_turned`, in the shape of x."""
        return across.unflatten(0, (len(x) // self.depth, -1)).permute(0, 3, 2, 1, 4).flatten(0, 1).contiguous()

    def _context(self, ctx: Context, rows: int) -> Context:
        """The context of the slices across y: what is known of a volume's first slice is known of all of them."""
        if self._across is None or self._across[0] is not ctx:
            volumes = ctx.batch // self.depth
            first = torch.arange(volumes, device=ctx.device).repeat_interleave(rows) * self.depth
            made: Any = ctx.take(first)
            self._across = ctx, made
        return self._across[1]
