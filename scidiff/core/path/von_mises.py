"""The von Mises law on a circle, and draws from it by inverse CDF.

    p(y | m, c) = exp(c cos(y - m)) / (2 pi I0(c)),     E e^{i (y - m)} = A(c) = I1(c) / I0(c)
    entropy H(c) = log(2 pi) + log i0e(c) + c - c A(c),     i0e(c) = e^{-c} I0(c)

Angles are radians in float64. A draw is the inverse of a tabulated distribution function at a uniform number, so it is
a function of the counter-based noise alone: repeatable, and the same for a sample whatever its batch. The table has
4001 points on |y| <= min(pi, 12 / sqrt(c)), where all but 1e-30 of the mass lies; between them the density is constant.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

POINTS = 4001
REACH = 12.0  # standard deviations of a narrow law


def resultant(c: Tensor) -> Tensor:
    """A(c) = I1(c) / I0(c), the length of the mean of e^{iy}; c >= 0 of any size."""
    return torch.special.i1e(c) / torch.special.i0e(c)


def second_resultant(c: Tensor) -> Tensor:
    """I2(c) / I0(c), the length of the mean of e^{2iy}, for c > 0."""
    return 1.0 - 2.0 * resultant(c) / c


def entropy(c: Tensor) -> Tensor:
    """Differential entropy in nats; log(2 pi) at c = 0."""
    return math.log(2.0 * math.pi) + torch.special.i0e(c).log() + c - c * resultant(c)


def half_width(c: Tensor) -> Tensor:
    """Where a quadrature over the law may stop: min(pi, 12 / sqrt(c))."""
    return (REACH / c.clamp(min=1e-12).sqrt()).clamp(max=math.pi)


@lru_cache(maxsize=64)
def _table(concentrations: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Half widths [J] and distribution functions [J, POINTS] of centred laws."""
    with torch.inference_mode(False):
        c = torch.tensor(concentrations, dtype=torch.float64)
        half = half_width(c)
        y = torch.linspace(-1.0, 1.0, POINTS, dtype=torch.float64) * half[:, None]
        density = (c[:, None] * (y.cos() - 1.0)).exp()
        cells = 0.5 * (density[:, 1:] + density[:, :-1])
        cdf = torch.cat([torch.zeros(len(c), 1, dtype=torch.float64), cells.cumsum(1)], 1)
        return half.to(device), (cdf / cdf[:, -1:]).to(device)


def draw(concentrations: tuple[float, ...], u: Tensor) -> Tensor:
    """Centred draws [..., J], one law for each of J concentrations, from uniforms u [..., J] in (0, 1)."""
    half, cdf = _table(concentrations, u.device)
    rows = u.to(torch.float64).movedim(-1, 0).reshape(len(concentrations), -1).contiguous()
    right = torch.searchsorted(cdf, rows, right=True).clamp(1, POINTS - 1)
    low, high = cdf.gather(1, right - 1), cdf.gather(1, right)
    place = (right - 1 + (rows - low) / (high - low).clamp(min=1e-300)) / (0.5 * (POINTS - 1)) - 1.0
    return (place * half[:, None]).reshape(len(concentrations), *u.shape[:-1]).movedim(0, -1)
