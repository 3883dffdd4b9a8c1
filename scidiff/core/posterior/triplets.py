"""A prior of triplets of slices as a denoiser of volumes (a wrapper).

At each step the slices of a volume are divided into triplets, from a new offset; at even steps of neighbours
(i, i + 1, i + 2), at odd ones of slices that lie apart, (i, i + j, i + 2 j). Each slice takes its clean estimate from
the one triplet that owns it, so the score of a step is that of a product of triplet laws, and the blend over steps
couples the whole volume. Slices at the ends that the division leaves out get triplets of their own, which overlap
others.

The batch of the state holds the slices of volumes, [V Z, 1, Y, X]; the inner denoiser sees [., 3, Y, X] and, as the
condition `spacing`, how far the slices of a triplet lie apart. Offsets depend on seed, sample and step alone.
Source: Song et al. 2024 (DiffusionBlend), arXiv 2406.10211.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import UsageError
from scidiff.core.path.base import Prediction
from scidiff.core.run import Run, uniform
from scidiff.core.spec import Component, Context, State, StateSpec

SPACING = "spacing"
SIZE = 3


def of_slices(spec: StateSpec, name: str) -> StateSpec:
    """The spec of single slices [1, Y, X] that belongs to one of triplets [3, Y, X]."""
    own = spec[name]
    return StateSpec({**spec, name: Component(own.space, own.path, (1, *own.shape[1:]))})


@lru_cache(maxsize=256)
def division(depth: int, offset: int, jump: int) -> tuple[list[list[int]], list[int]]:
    """(triplets, owner): the slices of each triplet, and for slice z the place 3 g + i of its estimate.

    Whole blocks of 3 `jump` slices from `offset` on are divided; each slice outside of them gets the first of the
    triplets through it that lies inside of the volume, unless an earlier one holds it already.
    """
    if jump < 1 or depth < SIZE * jump:
        raise UsageError(f"Triplets of slices {jump} apart need volumes of {SIZE * jump} slices, not {depth}.")
    block = SIZE * jump
    groups = [[start + i + k * jump for k in range(SIZE)]
              for start in range(offset % block, depth - block + 1, block) for i in range(jump)]
    owner = [-1] * depth
    for g, group in enumerate(groups):
        for i, z in enumerate(group):
            owner[z] = SIZE * g + i
    for z in range(depth):
        if owner[z] >= 0:
            continue
        first = next(z - k * jump for k in range(SIZE) if z >= k * jump and z + (SIZE - 1 - k) * jump < depth)
        groups.append([first + k * jump for k in range(SIZE)])
        for i, other in enumerate(groups[-1]):
            if owner[other] < 0:
                owner[other] = SIZE * (len(groups) - 1) + i
    return groups, owner


class Triplets(Denoiser):
    """`denoiser` of triplets with the StateSpec `spec`, on volumes of `depth` slices. jump: how far apart slices are at
    odd steps; volumes of fewer than 3 `jump` slices are divided into neighbours alone."""

    def __init__(self, denoiser: Denoiser, spec: StateSpec, depth: int, jump: int = 3) -> None:
        super().__init__()
        self.name = next(iter(spec))
        if len(spec) != 1 or spec[self.name].shape[0] != SIZE:
            raise UsageError(f"A prior of triplets makes {SIZE} slices, not states of shape {spec[self.name].shape}.")
        if depth < SIZE:
            raise UsageError(f"A prior of triplets needs a volume of {SIZE} slices or more, not {depth}.")
        if jump < 1:
            raise UsageError(f"Slices lie 1 or more apart, not {jump}.")
        self.denoiser, self.inner, self.depth = denoiser, spec[self.name], int(depth)
        self.jump = jump if depth >= SIZE * jump else 1
        self.spec = of_slices(spec, self.name)
        self.needs_grad, self.self_conditioning = denoiser.needs_grad, False
        self._made: tuple[Context, dict[tuple[int, int], Context]] | None = None

    def divided(self, ctx: Context, run: Run | None) -> tuple[list[list[int]], list[int], int]:
        """(triplets, owner, spacing) of this step."""
        step, seed, stream = (0, 0, 0) if run is None else (run.step, run.seed, run.stream)
        jump = self.jump if step % 2 else 1
        draw = float(uniform(seed, ctx.ids[:1].cpu(), f"triplets-{stream}-{step}"))
        return (*division(self.depth, int(draw * SIZE * jump), jump), jump)

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        x, when = state[self.name], time_of(t, self.name)
        if len(x) % self.depth:
            raise UsageError(f"{len(x)} slices are no volumes of {self.depth}.")
        groups, owner, spacing = self.divided(ctx, run)
        seen = self._gathered(x, groups)
        there = self._context(ctx, len(groups), spacing)
        pred = self.denoiser({self.name: seen}, when, there, None)[self.name]
        clean = pred.bind(self.inner.path, seen, when, there.at(self.name, self.inner)).data
        own = self.spec[self.name]
        return {self.name: Prediction("data", self._owned(clean, owner, x), own.path, x, when,
                                      ctx.at(self.name, own))}

    def _gathered(self, x: Tensor, groups: list[list[int]]) -> Tensor:
        """[V Z, 1, Y, X] to [V G, 3, Y, X]."""
        volumes = x[:, 0].unflatten(0, (-1, self.depth))
        return volumes[:, torch.tensor(groups, device=x.device)].flatten(0, 1)

    def _owned(self, clean: Tensor, owner: list[int], x: Tensor) -> Tensor:
        """[V G, 3, Y, X] to [V Z, 1, Y, X], each slice from the triplet that owns it."""
        each = clean.unflatten(0, (len(x) // self.depth, -1)).flatten(1, 2)
        return each[:, torch.tensor(owner, device=x.device)].flatten(0, 1)[:, None]

    def _context(self, ctx: Context, count: int, spacing: int) -> Context:
        if self._made is None or self._made[0] is not ctx:
            self._made = ctx, {}
        made = self._made[1]
        if (count, spacing) not in made:
            first = torch.arange(ctx.batch // self.depth, device=ctx.device).repeat_interleave(count) * self.depth
            one = ctx.take(first)
            one.cond[SPACING] = (torch.full_like(one.ids, spacing).float(), torch.ones_like(one.ids, dtype=torch.bool))
            made[count, spacing] = one
        return made[count, spacing]
