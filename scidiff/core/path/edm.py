"""Variance-exploding schedules: alpha = 1, the noise grows, the data stay.

    VE    sigma = sigma_min^{1-t} sigma_max^t                       Song et al. 2021, arXiv 2011.13456
    EDM   sigma = sigma_max t: the noise itself is the clock        Karras et al. 2022, arXiv 2206.00364
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.gaussian import GaussianPath


@dataclass(frozen=True)
class VE(GaussianPath):
    """Geometric noise; sigma_min > 0, so t = 0 is legal."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    _: KW_ONLY
    t_min: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ScidiffError(f"A VE path needs 0 < sigma_min < sigma_max, not {self.sigma_min}, {self.sigma_max}.")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self._rate * t).exp()

    def dsigma(self, t: Tensor) -> Tensor:
        return self._rate * self.sigma(t)

    def lam(self, t: Tensor) -> Tensor:
        return -self._rate * t - math.log(self.sigma_min)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / self._rate


@dataclass(frozen=True)
class EDM(GaussianPath):
    """t = sigma / sigma_max, from sigma_min to sigma_max; the default weight is EDM's for data_std 0.5."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    _: KW_ONLY
    t_min: float = 0.0
    weight: str = "edm"
    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ScidiffError(f"An EDM path needs 0 < sigma_min < sigma_max, not {self.sigma_min}, {self.sigma_max}.")
        if self.t_min <= 0.0:
            object.__setattr__(self, "t_min", self.sigma_min / self.sigma_max)
        super().__post_init__()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def dsigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return (-lam).exp() / self.sigma_max
