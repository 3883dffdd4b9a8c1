"""Noise of measurements, y -> noisy y: functions of a seed and of the samples' ids, never of the batch.

    Gaussian    y + sigma z, both parts where y is complex
    Poisson     N ~ Poisson(I0 exp(-mu y)) photons are counted, and -log(N / I0) / mu is what is known of y
    Ring        y + r with one r for each detector cell, the same in all views and slices: rings in the reconstruction

Photons are drawn by inverting the distribution function P(N <= k) = Q(k + 1, lambda), the regularised upper incomplete
gamma function, at a uniform number, so a draw is exact whatever lambda.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.run import Run
from scidiff.core.spec import Context


def _draw(y: Tensor, seed: int, ids: Tensor, tag: str, law: str = "normal") -> Tensor:
    """float64 [B, ...] of the shape of y: a function of (seed, id, place in the sample)."""
    return Run(seed).noise("measurement", tag, tuple(y.shape[1:]), Context(ids), law)


def poisson(rate: Tensor, u: Tensor) -> Tensor:
    """The smallest k with P(N <= k) >= u for N ~ Poisson(rate), float64 in the shape of both (rate > 0)."""
    z = torch.special.ndtri(u)
    k = (rate + rate.sqrt() * z + (z * z - 1) / 6).floor().clamp(min=0.0)  # Cornish-Fisher: off by one or so
    open_ = torch.ones_like(k, dtype=torch.bool)
    while bool(open_.any()):
        at, lam, level = k[open_], rate[open_], u[open_]
        low = (torch.special.gammaincc(at, lam) >= level) & (at > 0)  # P(N <= k - 1) is enough already
        high = torch.special.gammaincc(at + 1, lam) < level
        k[open_] = at + high.double() - low.double()
        open_[open_.clone()] = low | high
    return k


@dataclass(frozen=True)
class Gaussian:
    """White noise of standard deviation `sigma` in every real number."""

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise UsageError(f"The standard deviation of noise is not negative, as {self.sigma} is.")

    def __call__(self, y: Tensor, seed: int, ids: Tensor) -> Tensor:
        z = _draw(y, seed, ids, "gaussian")
        if y.is_complex():
            z = torch.complex(z, _draw(y, seed, ids, "gaussian-imaginary"))
        return y + self.sigma * z.to(y.dtype)


@dataclass(frozen=True)
class Poisson:
    """Photon counts: `i0` enter each ray, `absorption` (1/mm for a value of 1) turns y into an exponent.

    A cell that counts nothing is taken for half a photon.
    """

    i0: float
    absorption: float = 1.0

    def __post_init__(self) -> None:
        if not (self.i0 > 0 and self.absorption > 0):
            raise UsageError(f"Poisson noise needs positive numbers of photons and absorption, not {self.i0:g} and "
                             f"{self.absorption:g}.")

    def counts(self, y: Tensor, seed: int, ids: Tensor) -> Tensor:
        """Photons behind line integrals y, float64."""
        if y.is_complex():
            raise UsageError("Photons are counted behind real line integrals, not complex measurements.")
        rate = self.i0 * torch.exp(-self.absorption * y.double())
        return poisson(rate.clamp(min=1e-12), _draw(y, seed, ids, "poisson", "uniform"))

    def __call__(self, y: Tensor, seed: int, ids: Tensor) -> Tensor:
        return (-torch.log(self.counts(y, seed, ids).clamp(min=0.5) / self.i0) / self.absorption).to(y.dtype)

    def std(self, y: Tensor) -> Tensor:
        """Standard deviation of the noisy line integral, to first order: sqrt(exp(mu y) / I0) / mu."""
        return torch.exp(0.5 * self.absorption * y) / (self.i0**0.5 * self.absorption)


@dataclass(frozen=True)
class Ring:
    """An offset of standard deviation `sigma` in a `share` of the cells; y [B, 1, views, *cells].

    It belongs to the detector: the seed alone decides it, all samples share it.
    """

    sigma: float
    share: float = 1.0

    def __post_init__(self) -> None:
        if not (self.sigma >= 0 and 0 <= self.share <= 1):
            raise UsageError(f"Rings have a standard deviation >= 0 in a share of 0 to 1 of the cells, not "
                             f"{self.sigma:g} in {self.share:g}.")

    def __call__(self, y: Tensor, seed: int, ids: Tensor) -> Tensor:
        detector, one = y[:1, 0, 0], torch.zeros(1, dtype=torch.int64, device=y.device)
        hit = _draw(detector, seed, one, "ring-cells", "uniform") < self.share
        offset = torch.where(hit, self.sigma * _draw(detector, seed, one, "ring"), 0.0)
        return y + offset.to(y.dtype)[:, None, None]
