"""Variance-preserving schedules, and sub-VP: alpha falls to nearly zero while sigma rises to one.

    VP          alpha = exp(-(b1 - b0) t^2 / 4 - b0 t / 2), sigma = sqrt(1 - alpha^2)     Song et al. 2021, 2011.13456
    SubVP       the same alpha, sigma = 1 - alpha^2                                       Song et al. 2021, 2011.13456
    Cosine      alpha = cos(angle), sigma = sin(angle), angle = pi/2 (t + o)/(1 + o)      Nichol & Dhariwal 2021
    LinearVP    alpha = 1 - t, sigma = sqrt(1 - alpha^2)
    DiscreteDDPM  the table of a discrete model, log alpha interpolated linearly between its steps

All are rows of `GaussianPath`; t in [0, 1] runs from data to source.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.gaussian import GaussianPath


@dataclass(frozen=True)
class VP(GaussianPath):
    """Linear beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def beta(self, t: Tensor) -> Tensor:
        """The rate of the SDE dx = -beta x / 2 dt + g dW."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def dalpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t) * self.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2.0 * self._log_alpha(t))).sqrt()

    def dsigma(self, t: Tensor) -> Tensor:
        return 0.5 * self.beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def lam(self, t: Tensor) -> Tensor:
        la = self._log_alpha(t)
        return la - 0.5 * (-torch.expm1(2.0 * la)).log()

    def _time_of_decay(self, decay: Tensor) -> Tensor:
        """t at which -2 log alpha = decay."""
        slope = self.beta_max - self.beta_min
        return 2.0 * decay / ((self.beta_min**2 + 2.0 * slope * decay).sqrt() + self.beta_min)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return self._time_of_decay(F.softplus(-2.0 * lam, threshold=800.0))


@dataclass(frozen=True)
class SubVP(VP):
    """The alpha of VP with sigma = 1 - alpha^2; g^2 = beta (1 - alpha^4)."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2.0 * self._log_alpha(t))

    def dsigma(self, t: Tensor) -> Tensor:
        return self.beta(t) * self.alpha(t) ** 2

    def lam(self, t: Tensor) -> Tensor:
        la = self._log_alpha(t)
        return la - (-torch.expm1(2.0 * la)).log()

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        # sigma / alpha = 1/alpha - alpha = 2 sinh(-log alpha)
        return self._time_of_decay(2.0 * torch.asinh(0.5 * (-lam).exp()))


@dataclass(frozen=True)
class Cosine(GaussianPath):
    """Trigonometric path; with `offset` 0.008 the cosine schedule of improved DDPM without its renormalisation."""

    _: KW_ONLY
    t_max: float = 0.999
    offset: float = 0.0

    @property
    def _speed(self) -> float:
        return 0.5 * math.pi / (1.0 + self.offset)

    def _angle(self, t: Tensor) -> Tensor:
        return self._speed * (t + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        # The sine of the complement keeps its relative accuracy where the cosine nearly vanishes.
        return torch.sin(self._speed * (1.0 - t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -self._speed * torch.sin(self._angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))

    def dsigma(self, t: Tensor) -> Tensor:
        return self._speed * torch.sin(self._speed * (1.0 - t))

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return torch.atan((-lam).exp()) / self._speed - self.offset


@dataclass(frozen=True)
class LinearVP(GaussianPath):
    """alpha = 1 - t with unit variance kept."""

    _: KW_ONLY
    t_max: float = 0.999

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def dalpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return (t * (2.0 - t)).sqrt()

    def dsigma(self, t: Tensor) -> Tensor:
        return (1.0 - t) / self.sigma(t)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return -torch.expm1(-0.5 * F.softplus(-2.0 * lam, threshold=800.0))


@dataclass(frozen=True)
class DiscreteDDPM(GaussianPath):
    """A discrete model's table abar_k, k = 0 .. steps - 1, at times t_k = (k + 1) / steps.

    The table comes from `rule` ("linear" or "scaled_linear" betas between beta_start and beta_end) unless
    `alphas_bar` gives it. Between the knots log alpha is linear; at t = 0 it is 0.
    """

    _: KW_ONLY
    t_min: float = 0.0
    steps: int = 1000
    rule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    alphas_bar: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas_bar", tuple(float(a) for a in self.alphas_bar))
        if self.alphas_bar:
            object.__setattr__(self, "steps", len(self.alphas_bar))
        elif self.rule not in ("linear", "scaled_linear"):
            raise ScidiffError(f"A discrete schedule is 'linear' or 'scaled_linear', not {self.rule!r}.")
        if self.t_min <= 0.0:
            object.__setattr__(self, "t_min", 1.0 / self.steps)
        super().__post_init__()
        table = self._table()
        if float(table[1:].max()) >= 0.0 or bool((table.diff() >= 0).any()):
            raise ScidiffError("The table of a discrete schedule must fall strictly between 1 and 0.")
        object.__setattr__(self, "_knots", table)

    def _table(self) -> Tensor:
        if self.alphas_bar:
            log_alpha = 0.5 * torch.tensor(self.alphas_bar, dtype=torch.float64).log()
        else:
            power = 0.5 if self.rule == "scaled_linear" else 1.0
            betas = torch.linspace(self.beta_start**power, self.beta_end**power, self.steps, dtype=torch.float64)
            log_alpha = 0.5 * torch.log1p(-(betas ** (1.0 / power))).cumsum(0)
        return torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha])

    def time_of_step(self, k: int) -> float:
        """The time of the discrete model's step k = 0 .. steps - 1."""
        return (k + 1) / self.steps

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Knot to the left, slope of log alpha, log alpha."""
        knots = self.__dict__["_knots"].to(t.device)
        # Rounding must not push a knot's own time into the piece before it.
        left = (t.detach() * self.steps + 1e-9).floor().clamp(0, self.steps - 1).long()
        slope = (knots[left + 1] - knots[left]) * self.steps
        return left, slope, knots[left] + (t - left.to(t.dtype) / self.steps) * slope

    def alpha(self, t: Tensor) -> Tensor:
        return self._piece(t)[2].exp()

    def dalpha(self, t: Tensor) -> Tensor:
        _, slope, la = self._piece(t)
        return slope * la.exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2.0 * self._piece(t)[2])).sqrt()

    def dsigma(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.dalpha(t) / self.sigma(t)

    def lam(self, t: Tensor) -> Tensor:
        la = self._piece(t)[2]
        return la - 0.5 * (-torch.expm1(2.0 * la)).log()

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        target = 0.5 * F.softplus(-2.0 * lam, threshold=800.0)
        rising = -self.__dict__["_knots"].to(lam.device)
        left = (torch.searchsorted(rising, target.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        share = (target - rising[left]) / (rising[left + 1] - rising[left])
        return (left + share) / self.steps
