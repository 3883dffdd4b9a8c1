"""What an ensemble knows of its own error.

Members are [T, M, S, C, *space], the truth [T, S, C, *space]; float64, over groups of trajectories.

    CRPS          fair: E|X - y| - E|X - X'| / 2 over distinct members, averaged over fields and space (Ferro 2014)
    spread/skill  sqrt((M + 1)/M <s^2> / <(mean - truth)^2>), s^2 the unbiased variance of the members, means over
                  trajectories, fields and space: 1 where the truth is like one more member (Fortin et al. 2014)
    ranks         of the truth among the members, ties broken by lot: uniform on 0..M where it is like one more member
    flatness      T sum_r (h_r - 1/(M + 1))^2 / sum_r var_t(h_tr), h_tr the share of rank r in trajectory t. Points of
                  one trajectory are not independent, so the variance between trajectories takes the place that the
                  multinomial one has in a chi-square. Expected for an exchangeable truth: 1, whatever the correlation
    divergence    predicted: the first time when the mean correlation of two members falls to the threshold; true: the
                  same for the mean correlation of a member and the truth. For a truth that is exchangeable with the
                  members both have one expectation, which the ensemble mean (a smoother field) would not have
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.statistics import Estimate, crps
from scidiff.domains.pde.skill import (
    by_trajectory,
    correlation,
    correlations,
    crossing,
    mean_of,
    require_rollout,
    resampled,
)


def _require(members: Tensor, truth: Tensor) -> None:
    require_rollout(members, truth)
    if members.shape[1] < 2:
        raise UsageError("An ensemble needs at least two members.", "Roll out with --members 16, say.")


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """[T, S]: fair CRPS averaged over fields and space; its mean over T is the curve over lead times."""
    _require(members, truth)
    return by_trajectory(lambda x, y: crps(x.transpose(0, 1), y).flatten(2).mean(2), members, truth)


@dataclass(frozen=True)
class SpreadSkill:
    """Variance of the members and squared error of their mean, both [T, S], for `members` members."""

    variance: Tensor
    error: Tensor
    members: int

    @property
    def spread(self) -> Tensor:
        """[S]: root mean variance, corrected for the ensemble size so that it is comparable with `skill`."""
        return (self.variance.mean(0) * (self.members + 1) / self.members).sqrt()

    @property
    def skill(self) -> Tensor:
        """[S]: root mean squared error of the ensemble mean."""
        return self.error.mean(0).sqrt()

    @property
    def ratio(self) -> Tensor:
        """[S]: spread / skill by lead time."""
        return self.spread / self.skill

    def over(self, steps: slice = slice(None), draws: int = 1000, seed: int = 0) -> Estimate:
        """Spread / skill of the pooled steps, with the bootstrap interval over trajectories."""
        pairs = torch.stack([self.variance[:, steps].mean(1), self.error[:, steps].mean(1)], 1)
        factor = (self.members + 1) / self.members
        return resampled(lambda m: (factor * m[:, 0] / m[:, 1]).sqrt(), pairs, draws, seed)


def spread_skill(members: Tensor, truth: Tensor) -> SpreadSkill:
    """Spread and skill of every trajectory and lead time."""
    _require(members, truth)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([x.var(1).flatten(2).mean(2), (x.mean(1) - y).square().flatten(2).mean(2)], -1)

    found = by_trajectory(both, members, truth)
    return SpreadSkill(found[..., 0], found[..., 1], members.shape[1])


@dataclass(frozen=True)
class RankHistogram:
    """Shares of the ranks 0..M, [T, M + 1], in every trajectory."""

    shares: Tensor

    @property
    def histogram(self) -> Tensor:
        """[M + 1]: shares over all trajectories."""
        return self.shares.mean(0)

    @property
    def flatness(self) -> float:
        """See the module docstring: 1 is expected, larger is less flat; nan for one trajectory."""
        count, ranks = self.shares.shape
        if count < 2:
            return math.nan
        gap = (self.histogram - 1.0 / ranks).square().sum()
        return float(count * gap / self.shares.var(0).sum())

    def outside(self, draws: int = 1000, seed: int = 0) -> Estimate:
        """Share of truths below or above all members over its expectation 2/(M + 1): above 1, the spread is small."""
        ranks = self.shares.shape[1]
        return mean_of(0.5 * ranks * (self.shares[:, 0] + self.shares[:, -1]), draws, seed)


def rank_histogram(members: Tensor, truth: Tensor, seed: int = 0) -> RankHistogram:
    """Ranks of the truth among the members over all steps, fields and points."""
    _require(members, truth)
    count = members.shape[1]
    chance = torch.Generator().manual_seed(seed)

    def shares(x: Tensor, y: Tensor) -> Tensor:
        y = y.unsqueeze(1)
        rank, ties = (x < y).sum(1), (x == y).sum(1)
        if bool(ties.any()):
            lot = torch.rand(rank.shape, generator=chance, dtype=torch.float64).to(rank.device)
            rank = rank + (lot * (ties + 1)).floor().to(rank.dtype)
        place = rank.flatten(1)
        out = torch.zeros(place.shape[0], count + 1, dtype=torch.float64, device=x.device)
        return out.scatter_add_(1, place, torch.full(place.shape, 1.0 / place.shape[1], dtype=out.dtype,
                                                     device=x.device))

    return RankHistogram(by_trajectory(shares, members, truth))


def pairwise_correlation(members: Tensor) -> Tensor:
    """[T, S]: the mean correlation over all pairs of distinct members, in O(M): |sum z|^2 = sum over all pairs z.z'."""
    count = members.shape[1]
    if count < 2:
        raise UsageError("An ensemble needs at least two members.", "Roll out with --members 16, say.")
    dims = tuple(range(3 - members.dim(), 0))

    def mean(x: Tensor) -> Tensor:
        z = x - x.mean(dims, keepdim=True)
        z = z / z.square().sum(dims, keepdim=True).sqrt()
        z = torch.where(torch.isfinite(z), z, torch.zeros_like(z))
        return (z.sum(1).square().sum(dims) - z.square().sum(dims).sum(1)) / (count * (count - 1))

    return by_trajectory(mean, members)


def mean_correlation(members: Tensor, truth: Tensor) -> Tensor:
    """[T, S]: the correlation of the ensemble mean with the truth."""
    require_rollout(members, truth)
    dims = tuple(range(2 - truth.dim(), 0))
    return by_trajectory(lambda x, y: correlation(x.mean(1), y, dims), members, truth)


def divergence_time(members: Tensor, interval: float, threshold: float = 0.8) -> Tensor:
    """[T]: predicted time until the members have diverged from each other; infinite where they never do."""
    corr = pairwise_correlation(members)
    kept = crossing(corr, threshold)
    return torch.where(kept < corr.shape[-1], interval * kept.double(), math.inf)


@dataclass(frozen=True)
class Divergence:
    """Predicted against true divergence time, both [T] in time units (inf: not within the horizon).

    `r2` is the squared correlation of the two (the share of variance that a fitted line explains), `slope` that of the
    line true = a + slope predicted, `bias` the mean of predicted - true; all over the `used` trajectories in which both
    times lie within the horizon. Fewer than three: nan.
    """

    predicted: Tensor
    true: Tensor
    r2: Estimate
    slope: Estimate
    bias: Estimate
    used: int


def divergence(members: Tensor, truth: Tensor, interval: float, threshold: float = 0.8, draws: int = 1000,
               seed: int = 0) -> Divergence:
    """How well the spread of the members predicts when they leave the truth; trajectories are resampled."""
    _require(members, truth)
    corr = correlations(members, truth).mean(1)
    kept = crossing(corr, threshold)
    true = torch.where(kept < corr.shape[-1], interval * kept.double(), math.inf)
    return compare_times(divergence_time(members, interval, threshold), true, draws, seed)


def compare_times(predicted: Tensor, true: Tensor, draws: int = 1000, seed: int = 0) -> Divergence:
    """The figures of `Divergence` for times [T] (inf: not within the horizon)."""
    both = torch.isfinite(predicted) & torch.isfinite(true)
    x, y = predicted[both].double(), true[both].double()
    used = int(both.sum())
    if used < 3:
        none = Estimate(math.nan, math.nan, math.nan)
        return Divergence(predicted, true, none, none, none, used)
    # Moments about the sample's own means do not cancel.
    u, v = x - x.mean(), y - y.mean()
    moments = torch.stack([u, v, u * u, u * v, v * v], 1)

    def central(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return m[:, 2] - m[:, 0] ** 2, m[:, 3] - m[:, 0] * m[:, 1], m[:, 4] - m[:, 1] ** 2

    def r2(m: Tensor) -> Tensor:
        xx, xy, yy = central(m)
        return xy.square() / (xx * yy)

    def slope(m: Tensor) -> Tensor:
        xx, xy, _ = central(m)
        return xy / xx

    return Divergence(predicted, true, resampled(r2, moments, draws, seed), resampled(slope, moments, draws, seed),
                      mean_of(x - y, draws, seed), used)
