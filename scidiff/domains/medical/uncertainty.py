"""What several samples of one volume say: mean, spread, quantiles, coverage, and how much of a picture is invented.

    mean, M2    Welford's recursion: n <- n + 1, e = x - mean, mean <- mean + e / n, M2 <- M2 + e (x - mean)
    quantile    of N samples at level p: the order statistic at place p (N + 1), linear in between, within 1 .. N.
                A truth exchangeable with the samples lies between places i < j with probability (j - i) / (N + 1)
    split       x = A^+ A x + (I - A^+ A) x: what the measurement can see of x, and what the prior has added
    conformal   the smallest c with |truth - centre| <= c half for a share `level` of voxels of a calibration subject

The conformal factor is fitted on a subject kept for it and multiplies the half widths of intervals on others
(Angelopoulos and Bates 2021, arXiv 2107.07511). Voxels of one subject are not independent: the guarantee is that of
subjects, and one subject gives an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator, dot
from scidiff.core.statistics import Estimate, bootstrap
from scidiff.domains.medical.streaming import CHUNK, by_slabs, slabs


class Welford:
    """Running mean and standard deviation of volumes that come one after the other; none of them is kept.

    Accumulates in `dtype` (float64: two volumes of twice the size). Complex volumes have a complex mean and the
    standard deviation of the distance from it. `merge` joins what was gathered elsewhere.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype, self.count = dtype, 0
        self._mean: Tensor | None = None
        self._square: Tensor | None = None

    def add(self, x: Tensor) -> None:
        if self._mean is None or self._square is None:
            kind = self.dtype.to_complex() if x.is_complex() else self.dtype
            self._mean = torch.zeros_like(x, dtype=kind)
            self._square = torch.zeros_like(x, dtype=self.dtype)
        if x.shape != self._mean.shape:
            raise UsageError(f"Samples of one volume have one shape, not {tuple(x.shape)} and "
                             f"{tuple(self._mean.shape)}.")
        self.count += 1
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            error = x[part].to(self._mean.dtype) - self._mean[part]
            self._mean[part] += error / self.count
            self._square[part] += error.abs().square() * ((self.count - 1) / self.count)

    def merge(self, other: Welford) -> None:
        """Adds all that `other` has seen (Chan et al. 1979)."""
        if other._mean is None or other._square is None:
            return
        if self._mean is None or self._square is None:
            self.count, self._mean, self._square = other.count, other._mean.clone(), other._square.clone()
            return
        total = self.count + other.count
        gap = other._mean - self._mean
        self._mean += gap * (other.count / total)
        self._square += other._square + gap.abs().square() * (self.count * other.count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        if self._mean is None:
            raise UsageError("There is no mean before the first sample.")
        return self._mean

    @property
    def std(self) -> Tensor:
        """With n - 1 in the denominator; zero for one sample."""
        if self._square is None:
            raise UsageError("There is no standard deviation before the first sample.")
        return (self._square / max(self.count - 1, 1)).sqrt()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self._mean, "square": self._square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self._mean, self._square = state["count"], state["mean"], state["square"]


def quantile_maps(samples: Tensor, levels: Sequence[float] = (0.05, 0.95), chunk: int | None = CHUNK) -> Tensor:
    """Samples [N, Z, ...] -> their quantiles [levels, Z, ...]; few samples do not reach beyond their extremes."""
    count = len(samples)
    if count < 1 or not levels or not all(0 < p < 1 for p in levels):
        raise UsageError(f"Quantiles need samples and levels between 0 and 1, not {count} and {list(levels)}.")
    places = [min(max(p * (count + 1) - 1, 0.0), count - 1.0) for p in levels]

    def slab(*parts: Tensor) -> Tensor:
        ordered = torch.stack(parts).sort(0).values
        found = []
        for place in places:
            low = min(math.floor(place), count - 1)
            found.append(torch.lerp(ordered[low], ordered[min(low + 1, count - 1)], place - low))
        return torch.stack(found, 1)

    return by_slabs(slab, *samples, chunk=chunk).movedim(1, 0)


@dataclass(frozen=True)
class Split:
    """What the measurement can see of a volume, what it cannot, and the share of |x|^2 of the latter."""

    seen: Tensor
    invented: Tensor
    share: float


def split(x: Tensor, operator: LinearOperator, iterations: int = 100, tolerance: float = 1e-4,
          chunk: int | None = CHUNK) -> Split:
    """x [Z, C, Y, X] = A^+ A x + rest. Without an SVD A^+ is CGLS, whose early stop leaves a little of the range."""
    if not operator.slice_separable:
        seen = operator.pinv(operator.forward(x[None]), iterations, tolerance)[0]
    else:
        seen = torch.empty_like(x)
        for start, stop in slabs(len(x), chunk):
            part = operator.slab(start, stop)
            seen[start:stop] = part.pinv(part.forward(x[start:stop]), iterations, tolerance)
    rest = x - seen
    whole = float(dot(x, x).sum())
    return Split(seen, rest, float(dot(rest, rest).sum()) / whole if whole > 0 else 0.0)


def _share(inside: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """(hits, voxels) of each slice, float64 [Z]."""
    chosen = torch.ones_like(inside) if where is None else where.expand_as(inside)
    return (inside & chosen).flatten(1).double().sum(1), chosen.flatten(1).double().sum(1)


def coverage(low: Tensor, high: Tensor, truth: Tensor, where: Tensor | None = None, seed: int = 0,
             level: float = 0.95) -> Estimate:
    """The share of voxels (those in the mask `where`) with low <= truth <= high; its interval by resampled slices."""
    hits, voxels = _share((truth >= low) & (truth <= high), where)
    kept = voxels > 0
    if not bool(kept.any()):
        raise UsageError("Coverage is asked for in a mask without voxels.")
    rows = torch.stack([hits[kept], voxels[kept]], 1).cpu()
    return bootstrap(lambda part: part[:, 0].sum() / part[:, 1].sum(), rows, seed=seed, level=level)


def conformal_factor(centre: Tensor, half: Tensor, truth: Tensor, level: float = 0.9,
                     where: Tensor | None = None) -> float:
    """c such that centre +- c half covers the share `level` of n voxels: the score of rank ceil((n + 1) level).

    `half` is the half width that is corrected: a multiple of the standard deviation, or half of a quantile interval.
    Infinite where too many voxels have no width but an error, or where n is too small for the level.
    """
    if not 0 < level < 1:
        raise UsageError(f"An interval covers a share between 0 and 1, not {level:g}.")
    error, width = (truth - centre).abs().double(), half.double()
    score = torch.where(width > 0, error / width.clamp(min=1e-300), torch.where(error > 0, math.inf, 0.0))
    score = score.flatten() if where is None else score[where.expand_as(score)]
    rank = math.ceil((score.numel() + 1) * level)
    return float(score.kthvalue(rank).values) if 0 < rank <= score.numel() else math.inf


def scaled_interval(low: Tensor, high: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The interval about the same centre, `factor` times as wide."""
    centre, half = (low + high) / 2, (high - low) / 2 * factor
    return centre - half, centre + half
