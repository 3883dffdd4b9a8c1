"""How far a rollout follows the truth: correlation, the time it lasts, and relative errors.

Rollouts are [T, M, S, C, *space] (trajectories, members, steps, fields, space; the first state is not among the steps),
truths [T, S, C, *space]; all arithmetic is float64, over groups of trajectories that fit into memory. With e the error:

    correlation   Pearson over fields and space at once, biased std; 0 where a field is constant or not finite
    time          with c(n) the mean correlation over trajectories (and members) after step n of length D:
                  first      D (n* - 1), n* the first step with c(n*) <= threshold: the last step before the curve falls
                  own        mean over trajectories of the same figure of each one (of each of its members)
                  published  D #{n : c(n) > threshold}, which also counts steps after a recovery (Lippe et al. 2023)
    relative L2   |e| / |u|, norms over fields and space (Li et al. 2021)
    nRMSE         sum over fields of |e_c| / |u_c| (Koehler et al. 2024); geometric mean over the first 100 steps
    VRMSE         mean over fields of sqrt(<e_c^2> / (var u_c + 1e-7)) (Ohana et al. 2024)

Intervals come from resampling trajectories (Efron 1979), which keeps the steps and members of one together. Errors of a
rollout that is no longer finite are infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.statistics import Estimate

THRESHOLDS = (0.8, 0.9, 0.95)
VARIANCE_FLOOR = 1e-7
GROUP = 1 << 22
"""Values that are held in float64 at a time."""


def by_trajectory(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(parts of the tensors along dimension 0, in float64), joined along dimension 0."""
    largest = max(t[:1].numel() for t in tensors)
    group = max(GROUP // max(largest, 1), 1)
    return torch.cat([function(*(p.to(torch.float64) for p in parts))
                      for parts in zip(*(t.split(group) for t in tensors), strict=True)])


def require_rollout(predicted: Tensor, truth: Tensor) -> None:
    """UsageError unless the shapes are [T, M, S, C, *space] and [T, S, C, *space]."""
    expected = (*predicted.shape[:1], *predicted.shape[2:])
    if predicted.dim() < 5 or tuple(truth.shape) != expected:
        raise UsageError(f"A rollout [trajectory, member, step, field, *space] of shape {list(predicted.shape)} cannot "
                         f"be held against a truth [trajectory, step, field, *space] of shape {list(truth.shape)}.")
    if not truth.numel() or not predicted.numel():
        raise UsageError("There is no rollout to evaluate: it has no trajectory, member or step.")


def resampled(statistic: Callable[[Tensor], Tensor], rows: Tensor, draws: int = 1000, seed: int = 0,
              level: float = 0.95) -> Estimate:
    """A statistic of the mean of rows [T, ...], with the percentile interval over resampled rows.

    `statistic` maps means [draws, ...] to values [draws]; one product with the resampling weights gives all of them.
    """
    rows = rows.to(torch.float64)
    count = rows.shape[0]
    picks = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed)).to(rows.device)
    weights = torch.zeros(draws, count, dtype=torch.float64, device=rows.device)
    weights.scatter_add_(1, picks, torch.full_like(weights, 1.0 / count))
    values = statistic((weights @ rows.flatten(1)).unflatten(1, rows.shape[1:]) if rows.dim() > 1 else weights @ rows)
    tail = 0.5 * (1.0 - level)
    levels = torch.tensor([tail, 1.0 - tail], dtype=torch.float64, device=rows.device)
    low, high = values.to(torch.float64).quantile(levels).tolist()
    return Estimate(float(statistic(rows.mean(0, keepdim=True))), low, high)


def _itself(means: Tensor) -> Tensor:
    return means


def mean_of(rows: Tensor, draws: int = 1000, seed: int = 0) -> Estimate:
    """The mean of rows [T] with its bootstrap interval."""
    return resampled(_itself, rows, draws, seed)


def correlation(pred: Tensor, truth: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Pearson correlation over `dims` (space and fields), float64; the shapes broadcast."""
    a, b = pred.to(torch.float64), truth.to(torch.float64)
    a, b = a - a.mean(dims, keepdim=True), b - b.mean(dims, keepdim=True)
    scale = (a.square().mean(dims) * b.square().mean(dims)).sqrt()
    value = (a * b).mean(dims) / scale
    return torch.where(torch.isfinite(value), value, torch.zeros_like(value)).clamp(-1.0, 1.0)


def _field_dims(truth: Tensor) -> tuple[int, ...]:
    """Field and space axes of [T, S, C, *space], counted from the end."""
    return tuple(range(2 - truth.dim(), 0))


def correlations(predicted: Tensor, truth: Tensor) -> Tensor:
    """[T, M, S]: the correlation of every member with the truth at every step."""
    require_rollout(predicted, truth)
    dims = _field_dims(truth)
    return by_trajectory(lambda p, u: correlation(p, u.unsqueeze(1), dims), predicted, truth)


def crossing(corr: Tensor, threshold: float) -> Tensor:
    """Number of steps [...] before a curve [..., S] first fails to exceed the threshold (S: it never does)."""
    return (corr > threshold).to(torch.int64).cumprod(-1).sum(-1)


def _by_member(corr: Tensor) -> Tensor:
    """[T, S] or [T, M, S] -> [T, M, S], float64."""
    if corr.dim() not in (2, 3) or not corr.numel():
        raise UsageError(f"Correlations are [trajectory, step] or [trajectory, member, step], not {list(corr.shape)}.")
    return corr.to(torch.float64).view(corr.shape[0], -1, corr.shape[-1])


@dataclass(frozen=True)
class CorrelationTime:
    """How long rollouts correlate with the truth above a threshold, in time units; see the module docstring.

    `censored`: the mean curve never falls to the threshold, so `first` is the horizon and a lower bound;
    `censored_share`: the share of rollouts for which the same is true.
    """

    threshold: float
    first: Estimate
    own: Estimate
    published: Estimate
    censored: bool
    censored_share: float
    horizon: float
    count: int


def high_correlation_time(corr: Tensor, interval: float, threshold: float = 0.8, draws: int = 1000,
                          seed: int = 0) -> CorrelationTime:
    """From correlations [T, S] or [T, M, S] after steps of length `interval`; trajectories are resampled."""
    each = _by_member(corr)
    steps = each.shape[-1]
    curve, kept = each.mean(1), crossing(each, threshold)
    first = resampled(lambda means: interval * crossing(means, threshold).double(), curve, draws, seed)
    published = resampled(lambda means: interval * (means > threshold).double().sum(-1), curve, draws, seed)
    censored = round(first.value / interval) == steps
    return CorrelationTime(threshold, first, mean_of(interval * kept.double().mean(1), draws, seed), published,
                           censored, float((kept == steps).double().mean()), interval * steps, len(each))


@dataclass(frozen=True)
class PairedDifference:
    """Correlation times of a against b on the same trajectories: a - b in time units and a / b.

    `first`, `first_ratio` compare the crossings of the mean curves, `own`, `own_ratio` the means over trajectories.
    `censored`: one of the mean curves never falls to the threshold, so differences are bounds.
    """

    threshold: float
    first: Estimate
    first_ratio: Estimate
    own: Estimate
    own_ratio: Estimate
    censored: bool
    count: int


def paired_difference(corr_a: Tensor, corr_b: Tensor, interval: float, threshold: float = 0.8, draws: int = 1000,
                      seed: int = 0) -> PairedDifference:
    """Resamples the trajectories of both [T, S] or [T, M, S] together; members may differ in number."""
    a, b = _by_member(corr_a), _by_member(corr_b)
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[2]:
        raise UsageError(f"A paired comparison needs the same trajectories and steps, not {a.shape[0]} x {a.shape[2]} "
                         f"and {b.shape[0]} x {b.shape[2]}.")
    curves = torch.stack([a.mean(1), b.mean(1)], 1)
    own = torch.stack([crossing(x, threshold).double().mean(1) for x in (a, b)], 1)

    def times(means: Tensor) -> Tensor:
        return crossing(means, threshold).double()

    def difference(pair: Tensor) -> Tensor:
        return interval * (pair[:, 0] - pair[:, 1])

    def ratio(pair: Tensor) -> Tensor:
        return pair[:, 0] / pair[:, 1]

    censored = int(times(curves.mean(0)).max()) == a.shape[2]
    return PairedDifference(
        threshold, resampled(lambda m: difference(times(m)), curves, draws, seed),
        resampled(lambda m: ratio(times(m)), curves, draws, seed), resampled(difference, own, draws, seed),
        resampled(ratio, own, draws, seed), censored, len(a))


def _squares(p: Tensor, u: Tensor) -> Tensor:
    """[T, M, S, C, 3] of a part: <e^2>, <u^2> and var u over space; an error that is not a number is infinite."""
    space = tuple(range(3 - u.dim(), 0))
    error = (p - u.unsqueeze(1)).square().mean(space)
    error = torch.where(error.isnan(), torch.full_like(error, math.inf), error)
    size, variance = u.square().mean(space).unsqueeze(1), u.var(space, unbiased=False).unsqueeze(1)
    return torch.stack([error, size.expand_as(error), variance.expand_as(error)], -1)


def squares(predicted: Tensor, truth: Tensor) -> Tensor:
    """[T, M, S, C, 3]: mean squared error, mean square of the truth and its variance, over space."""
    require_rollout(predicted, truth)
    return by_trajectory(_squares, predicted, truth)


def relative_l2(predicted: Tensor, truth: Tensor) -> Tensor:
    """[T, M, S]: |e| / |u| over fields and space."""
    total = squares(predicted, truth).sum(3)
    return (total[..., 0] / total[..., 1]).sqrt()


def nrmse(predicted: Tensor, truth: Tensor) -> Tensor:
    """[T, M, S]: the sum over fields of |e_c| / |u_c|; the curve nRMSE(t) is its mean over T and M."""
    found = squares(predicted, truth)
    return (found[..., 0] / found[..., 1]).sqrt().sum(-1)


def vrmse(predicted: Tensor, truth: Tensor) -> Tensor:
    """[T, M, S]: the mean over fields of the RMSE in units of the spatial spread; 1 is a constant forecast."""
    found = squares(predicted, truth)
    return (found[..., 0] / (found[..., 2] + VARIANCE_FLOOR)).sqrt().mean(-1)


def geometric_mean(curve: Tensor, steps: int = 100) -> Tensor:
    """Geometric mean over the first `steps` of a curve [..., S] (over all, where there are fewer)."""
    return curve[..., :steps].to(torch.float64).log().mean(-1).exp()


@dataclass(frozen=True)
class OneStep:
    """Mean squared error of one step: in squared units of the fields, and as a share of the mean squared increment."""

    mse: Estimate
    share: Estimate
    count: int


def one_step_mse(predicted: Tensor, truth: Tensor, previous: Tensor, draws: int = 1000, seed: int = 0) -> OneStep:
    """Of predictions [B, C, *space] or [B, M, C, *space] of `truth` from `previous`, both [B, C, *space].

    The error is summed over fields and averaged over space, members and batch. A share of 1 is persistence.
    """
    one, many = tuple(truth.shape), (*truth.shape[:1], *predicted.shape[1:2], *truth.shape[1:])
    if tuple(previous.shape) != one or tuple(predicted.shape) not in (one, many):
        raise UsageError(f"A one-step error needs states of one shape, not {list(predicted.shape)}, "
                         f"{list(truth.shape)} and {list(previous.shape)}.")
    members = predicted if predicted.dim() > truth.dim() else predicted.unsqueeze(1)
    error = _squares(members.double().unsqueeze(2), truth.double().unsqueeze(1))[..., 0].sum((2, 3)).mean(1)
    moved = (truth.double() - previous.double()).square().flatten(2).mean(2).sum(1)
    return OneStep(mean_of(error, draws, seed),
                   resampled(lambda m: m[:, 0] / m[:, 1], torch.stack([error, moved], 1), draws, seed), len(truth))
