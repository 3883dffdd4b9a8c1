"""Straight paths of flow matching; the default prediction is the velocity dx/dt.

    Linear  alpha = 1 - t, sigma = t             Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, 2209.03003
    Poly    alpha = 1 - t^n, sigma = t^n

The libraries of flow matching run t the other way: t_there = 1 - t, v_there = -v.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.gaussian import GaussianPath


@dataclass(frozen=True)
class Poly(GaussianPath):
    """sigma = t^power on the straight line between data and noise."""

    default_kind: ClassVar[str] = "velocity"

    power: float = 2.0
    _: KW_ONLY
    t_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power <= 0.0:
            raise ScidiffError(f"The power of a polynomial path must be positive, not {self.power}.")

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.dsigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t**self.power

    def dsigma(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1.0)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam) ** (1.0 / self.power)


@dataclass(frozen=True)
class Linear(GaussianPath):
    """Rectified flow: x_t = (1 - t) x0 + t eps."""

    default_kind: ClassVar[str] = "velocity"

    _: KW_ONLY
    t_max: float = 0.999

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def dalpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)
