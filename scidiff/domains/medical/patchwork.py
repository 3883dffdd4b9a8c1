"""A prior of patches on planes (or blocks) of any size: patches that tile the plane, anew at every step, and blend.

    D(x) = sum_p w_p D_p(x restricted to p) / sum_p w_p,      w a cosine bump over the patch

The tiles begin at an offset that changes from step to step, so no seam stays at its place: over many steps this is the
average over all partitions (PaDIS: Hu et al. 2024, arXiv 2406.02462). At the border tiles are moved inwards, since
priors are trained on patches that lie inside of the plane, and overlap; the others touch. With `overlap` neighbours
share that many pixels everywhere. Offsets depend on seed, stream and step of the run alone.

A convolutional prior (`nn.patch`) denoises whole planes faster; this wrapper keeps the network's work at the patches
that it was trained on, and bounds its memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import UsageError
from scidiff.core.run import Run, uniform
from scidiff.core.spec import Context, State, StateSpec
from scidiff.nn.patch import POSITION, placed

LEAST_WEIGHT = 0.02  # of the middle of a patch, at its corner


class Patchwork(Denoiser):
    """`denoiser` on patches of `patch` pixels a side of the one component of `spec`; `chunk` patches a call."""

    def __init__(self, denoiser: Denoiser, spec: StateSpec, patch: int = 64, overlap: int = 0,
                 chunk: int = 64) -> None:
        super().__init__()
        if len(spec) != 1:
            raise UsageError("A patchwork denoises one component.")
        if not 0 <= overlap < patch or chunk < 1:
            raise UsageError(f"Patches of {patch} pixels overlap by 0 to {patch - 1} pixels, not {overlap}.")
        self.denoiser, self.spec, self.patch = denoiser, spec, int(patch)
        self.overlap, self.chunk = int(overlap), int(chunk)
        self.name = next(iter(spec))
        self.needs_grad = denoiser.needs_grad

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        z, when = state[self.name], time_of(t, self.name)
        sides = tuple(min(self.patch, n) for n in z.shape[2:])
        corners = self.corners(z.shape[2:], run)
        weight = bump(sides).to(z)
        total, shares = torch.zeros_like(z), torch.zeros(z.shape[2:], dtype=z.dtype, device=z.device)
        place = placed(ctx, z)
        for some in _parted(corners, max(self.chunk // len(z), 1)):
            windows = [(..., *(slice(c, c + s) for c, s in zip(corner, sides, strict=True))) for corner in some]
            cleaned = self._cleaned(torch.cat([z[w] for w in windows]), _moved(place, some), when, ctx)
            for window, one in zip(windows, cleaned.split(len(z)), strict=True):
                total[window] += weight * one
                shares[window] += weight
        c = self.spec[self.name]
        return {self.name: c.path.read(total / shares, z, when, ctx.at(self.name, c), "data")}

    def _cleaned(self, patches: Tensor, place: Tensor, when: Any, ctx: Context) -> Tensor:
        """The data estimates of patches [P B, C, *sides] that lie at `place`."""
        count = len(patches) // ctx.batch
        there = ctx.take(torch.arange(ctx.batch, device=patches.device).repeat(count))
        yes = torch.ones(len(patches), dtype=torch.bool, device=patches.device)
        there = replace(there, cond={**there.cond, POSITION: (place, yes)})
        asked = when.repeat(count) if isinstance(when, Tensor) and when.dim() else when
        return self.denoiser({self.name: patches}, asked, there, None)[self.name].data

    def corners(self, space: Sequence[int], run: Run | None = None) -> list[tuple[int, ...]]:
        """The first pixel of every patch at the step of a run."""
        pitch = max(self.patch - self.overlap, 1)
        seed, stream, step = (0, 0, 0) if run is None else (run.seed, run.stream, run.step)
        u = uniform(seed, torch.zeros(1, dtype=torch.int64), f"patchwork-{stream}-{step}", len(space))[0].tolist()
        each = []
        for n, v in zip(space, u, strict=True):
            last = max(n - self.patch, 0)
            starts = range(int(v * pitch) - pitch, n, pitch)
            each.append(sorted({min(max(start, 0), last) for start in starts}))
        return list(itertools.product(*each))


def bump(sides: Sequence[int]) -> Tensor:
    """Weights of a patch: products of cosine bumps, 1 in the middle, never zero."""
    out = torch.ones((), dtype=torch.float64)
    for n in sides:
        along = torch.sin(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        out = out[..., None] * along.clamp(min=LEAST_WEIGHT)
    return out


def _moved(place: Tensor, corners: Sequence[tuple[int, ...]]) -> Tensor:
    """(start, step) [P B, d, 2] of the patches that begin at `corners`, from those [B, d, 2] of the plane."""
    start, step = place[..., 0], place[..., 1]
    return torch.cat([torch.stack([start + step * place.new_tensor(c), step], -1) for c in corners])


def _parted(corners: Sequence[tuple[int, ...]], number: int) -> list[Sequence[tuple[int, ...]]]:
    return [corners[i : i + number] for i in range(0, len(corners), number)]
