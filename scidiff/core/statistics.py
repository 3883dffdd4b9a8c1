"""Statistics of samples, in float64, each with its uncertainty.

Samples are [n, d] (or [n]). An `Estimate` is a value with a central interval. Estimators are unbiased where that is
possible: a squared MMD or an energy distance of two samples of one law is zero on average and may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError


class Estimate(NamedTuple):
    """A value and the interval that holds the truth with the stated confidence."""

    value: float
    low: float
    high: float


def _quantile(level: float) -> float:
    """z such that N(0, 1) lies within +-z with probability `level`."""
    return float(torch.special.ndtri(torch.tensor(0.5 + 0.5 * level, dtype=torch.float64)))


def _rows(x: Tensor) -> Tensor:
    x = torch.as_tensor(x).to(torch.float64)
    x = x.unsqueeze(-1) if x.dim() == 1 else x.flatten(1)
    if x.shape[0] < 2:
        raise ScidiffError("This statistic needs at least two samples.")
    return x


def wilson(successes: int, count: int, level: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927); an empty count gives (nan, 0, 1)."""
    if count <= 0:
        return Estimate(math.nan, 0.0, 1.0)
    z, p = _quantile(level), successes / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap(statistic: Callable[[Tensor], float | Tensor], x: Tensor, draws: int = 1000, seed: int = 0,
              level: float = 0.95) -> Estimate:
    """The statistic of x with the percentile interval over resampled rows (Efron 1979)."""
    x = torch.as_tensor(x)
    g = torch.Generator().manual_seed(seed)
    picks = torch.randint(x.shape[0], (draws, x.shape[0]), generator=g)
    values = torch.tensor([float(statistic(x[i])) for i in picks], dtype=torch.float64)
    tail = 0.5 * (1 - level)
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(float(statistic(x)), low, high)


def mean_interval(values: Tensor, level: float = 0.95) -> Estimate:
    """A mean with its normal interval."""
    v = torch.as_tensor(values).to(torch.float64).flatten()
    half = _quantile(level) * float(v.std()) / math.sqrt(v.numel()) if v.numel() > 1 else math.inf
    m = float(v.mean())
    return Estimate(m, m - half, m + half)


def median_bandwidth(x: Tensor, y: Tensor, limit: int = 1000) -> float:
    """Median distance between samples of the pooled set, the usual scale of a Gaussian kernel."""
    pooled = torch.cat([_rows(x)[:limit], _rows(y)[:limit]])
    return float(torch.pdist(pooled).median())


def _unbiased(kxx: Tensor, kyy: Tensor, kxy: Tensor) -> tuple[float, float]:
    """Unbiased MMD^2 and its variance from Gram matrices."""
    n, m = kxx.shape[0], kyy.shape[0]
    kxx, kyy = kxx - torch.diag(kxx.diagonal()), kyy - torch.diag(kyy.diagonal())
    value = kxx.sum() / (n * (n - 1)) + kyy.sum() / (m * (m - 1)) - 2 * kxy.mean()
    first = (kxx.sum(1) / (n - 1) - kxy.mean(1)).var() / n + (kyy.sum(1) / (m - 1) - kxy.mean(0)).var() / m
    return float(value), 4 * float(first)


def _degenerate(kxx: Tensor, kyy: Tensor, kxy: Tensor, n: int, m: int) -> float:
    """The second-order part of the variance, which alone remains where the two laws agree."""
    def centred(k: Tensor) -> Tensor:
        return k - k.mean(0, keepdim=True) - k.mean(1, keepdim=True) + k.mean()

    def squares(k: Tensor) -> float:
        c = centred(k)
        return float((c * c).sum() - (c.diagonal() ** 2).sum()) / (k.shape[0] * (k.shape[0] - 1))

    cross = float((centred(kxy) ** 2).mean())
    return 2 * squares(kxx) / (n * (n - 1)) + 2 * squares(kyy) / (m * (m - 1)) + 4 * cross / (n * m)


def _deviation(first: float, second: float) -> float:
    """Standard deviation from both orders; the plug-in first order exceeds the truth by twice the second on average."""
    return math.sqrt(max(first - 2 * second, 0.0) + max(second, 0.0))


def mmd2_linear(x: Tensor, y: Tensor, level: float = 0.95, limit: int = 1500) -> Estimate:
    """Unbiased squared MMD with the kernel x.y: |E x - E y|^2, in O(n d) (Gretton et al. 2012).

    The interval uses both orders of the variance of the U-statistic, the second from at most `limit` rows.
    """
    x, y = _rows(x), _rows(y)
    n, m = x.shape[0], y.shape[0]
    # Both samples move together, so the value stays and the sums of squares do not cancel.
    shift = y.mean(0)
    x, y = x - shift, y - shift
    mx, my = x.mean(0), y.mean(0)
    within_x = (n * n * (mx @ mx) - (x * x).sum()) / (n * (n - 1))
    within_y = (m * m * (my @ my) - (y * y).sum()) / (m * (m - 1))
    value = float(within_x + within_y - 2 * mx @ my)
    gap = mx - my
    first = 4 * float((x @ gap).var() / n + (y @ gap).var() / m)
    a, b = x[:limit], y[:limit]
    half = _quantile(level) * _deviation(first, _degenerate(a @ a.T, b @ b.T, a @ b.T, n, m))
    return Estimate(value, value - half, value + half)


def mmd2_rbf(x: Tensor, y: Tensor, bandwidth: float | None = None, level: float = 0.95) -> Estimate:
    """Unbiased squared MMD with exp(-|x - y|^2 / 2 bandwidth^2) (default: the median distance), in O(n^2 d)."""
    x, y = _rows(x), _rows(y)
    scale = median_bandwidth(x, y) if bandwidth is None else float(bandwidth)
    if not scale > 0.0:
        raise ScidiffError("A Gaussian kernel needs a positive bandwidth.")

    def gram(a: Tensor, b: Tensor) -> Tensor:
        return (-0.5 * torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / scale**2).exp()

    kxx, kyy, kxy = gram(x, x), gram(y, y), gram(x, y)
    value, first = _unbiased(kxx, kyy, kxy)
    half = _quantile(level) * _deviation(first, _degenerate(kxx, kyy, kxy, x.shape[0], y.shape[0]))
    return Estimate(value, value - half, value + half)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased (Szekely & Rizzo 2013)."""
    x, y = _rows(x), _rows(y)
    return float(2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean())


def crps(ensemble: Tensor, truth: Tensor) -> Tensor:
    """Fair continuous ranked probability score (Ferro 2014), elementwise: ensemble [M, ...], truth [...].

    E|X - y| - E|X - X'| / 2 with the second mean over distinct members, so that its expectation does not depend on M.
    """
    members = torch.as_tensor(ensemble).to(torch.float64)
    count = members.shape[0]
    if count < 2:
        raise ScidiffError("The fair CRPS needs at least two members.")
    error = (members - torch.as_tensor(truth).to(torch.float64)).abs().mean(0)
    rank = torch.arange(1, count + 1, dtype=torch.float64, device=members.device)
    weight = (2 * rank - count - 1).view(-1, *[1] * (members.dim() - 1))
    return error - (members.sort(0).values * weight).sum(0) / (count * (count - 1))


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128, seed: int = 0, order: float = 2.0) -> float:
    """Mean over random directions of W_order^order of the projections, to the power 1/order (Bonneel et al. 2015).

    Samples of different sizes are compared on the quantiles of the larger one.
    """
    x, y = _rows(x), _rows(y)
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, dtype=torch.float64, generator=g).to(x.device)
    directions = directions / directions.norm(dim=0, keepdim=True)
    a, b = (x @ directions).sort(0).values, (y @ directions).sort(0).values
    if a.shape[0] != b.shape[0]:
        n = max(a.shape[0], b.shape[0])
        q = (torch.arange(n, dtype=torch.float64, device=x.device) + 0.5) / n
        a, b = _at_quantiles(a, q), _at_quantiles(b, q)
    return float((a - b).abs().pow(order).mean() ** (1.0 / order))


def _at_quantiles(ordered: Tensor, q: Tensor) -> Tensor:
    """Columns of a sorted sample [n, p] read at probabilities q, linearly between the plotting positions."""
    n = ordered.shape[0]
    place = (q * n - 0.5).clamp(0, n - 1)
    left = place.floor().clamp(max=max(n - 2, 0)).long()
    share = (place - left).unsqueeze(-1)
    right = (left + 1).clamp(max=n - 1)
    return ordered[left] * (1 - share) + ordered[right] * share
