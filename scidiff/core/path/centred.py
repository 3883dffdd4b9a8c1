"""Paths that run from clean data to a degraded observation mu (`Context.centre`) plus noise.

    MeanReverting  alpha = e^{-Theta}, c = 1 - alpha, sigma = stationary sqrt(1 - alpha^2)   IR-SDE, arXiv 2301.11699
    ResShift       alpha = 1 - eta, c = eta, sigma = kappa sqrt(eta)                         arXiv 2307.12348
    RDDM           alpha = 1 - abar, c = abar, sigma = bbar                                  arXiv 2308.13712

On y = x - c mu they are ordinary Gaussian paths. The posterior of MeanReverting is the Ornstein-Uhlenbeck one, that of
ResShift and RDDM shifts the residual: k = sigma_s^2 / sigma_t (module docstring of `gaussian`). RDDM's own eta scales
the variance of the fresh noise, so its eta is the square of ours.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.base import Time
from scidiff.core.path.gaussian import GaussianPath, rising_root, root


@dataclass(frozen=True)
class MeanReverting(GaussianPath):
    """dx = theta (mu - x) dt + g dW with g^2 = 2 stationary^2 theta; Theta = int theta, Theta(1) = -log(terminal).

    schedule: "cosine" (theta ~ 1 - cos^2(w (t + 0.008)) / cos^2(0.008 w)), "linear" (theta ~ t) or "constant".
    """

    stationary: float = 50.0 / 255.0
    schedule: str = "cosine"
    terminal: float = 0.005
    _: KW_ONLY
    t_min: float = 0.01
    centred: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ScidiffError(f"A mean-reverting schedule is 'cosine', 'linear' or 'constant', not {self.schedule!r}.")
        if not 0.0 < self.terminal < 1.0 or self.stationary <= 0.0:
            raise ScidiffError("A mean-reverting path needs 0 < terminal < 1 and a positive stationary deviation.")

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Theta and theta up to their common factor."""
        if self.schedule == "constant":
            return t, torch.ones_like(t)
        if self.schedule == "linear":
            return 0.5 * t * t, t
        w = 0.5 * math.pi / 1.008
        start = math.cos(0.008 * w) ** 2
        area = t - (0.5 * t + (torch.sin(2 * w * (t + 0.008)) - math.sin(0.016 * w)) / (4 * w)) / start
        return area, 1.0 - torch.cos(w * (t + 0.008)) ** 2 / start

    @property
    def _factor(self) -> float:
        return -math.log(self.terminal) / float(self._raw(torch.ones((), dtype=torch.float64))[0])

    def decay(self, t: Tensor) -> Tensor:
        """Theta(t)."""
        return self._raw(t)[0] * self._factor

    def theta(self, t: Tensor) -> Tensor:
        """The rate of return to mu."""
        return self._raw(t)[1] * self._factor

    def alpha(self, t: Tensor) -> Tensor:
        return (-self.decay(t)).exp()

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.theta(t) * self.alpha(t)

    def c(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.decay(t))

    def dc(self, t: Tensor) -> Tensor:
        return -self.dalpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.stationary * (-torch.expm1(-2.0 * self.decay(t))).sqrt()

    def dsigma(self, t: Tensor) -> Tensor:
        return self.stationary**2 * self.theta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        decay = 0.5 * F.softplus(-2.0 * (lam + math.log(self.stationary)), threshold=800.0)
        return rising_root(self.decay, decay, 0.0, 1.0)


@dataclass(frozen=True)
class ResidualShift(GaussianPath):
    """Common posterior of ResShift and RDDM."""

    kinds: ClassVar[frozenset[str]] = GaussianPath.kinds
    default_kind: ClassVar[str] = "data"

    _: KW_ONLY
    centred: bool = True

    def fresh_noise(self, t: Time, s: Time) -> Any:
        now, then = self.coefficients(t).sigma, self.coefficients(s).sigma
        return then * root(1.0 - (then / now) ** 2)


@dataclass(frozen=True)
class ResShift(ResidualShift):
    """sqrt(eta) = r0 (end / r0)^{t^power}, r0 = min(noise_min / kappa, noise_min); step i of T is t = i / (T - 1).

    Released settings: kappa 2, power 0.3, noise_min 0.2 with T = 4, and 0.04 with T = 15.
    """

    kappa: float = 2.0
    power: float = 0.3
    noise_min: float = 0.2
    end: float = 0.99
    _: KW_ONLY
    t_min: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self._start < self.end < 1.0:
            raise ScidiffError("A ResShift path needs 0 < min(noise_min / kappa, noise_min) < end < 1.")

    @property
    def _start(self) -> float:
        return min(self.noise_min / self.kappa, self.noise_min)

    @property
    def _span(self) -> float:
        return math.log(self.end / self._start)

    def _root_eta(self, t: Tensor) -> Tensor:
        return self._start * (self._span * t**self.power).exp()

    def _droot_eta(self, t: Tensor) -> Tensor:
        # The slope of t^power is infinite at t = 0, a time that ancestral steps use and velocities never do.
        slope = self.power * t.clamp(min=1e-12) ** (self.power - 1.0)
        return self._root_eta(t) * self._span * slope

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - self._root_eta(t) ** 2

    def dalpha(self, t: Tensor) -> Tensor:
        return -2.0 * self._root_eta(t) * self._droot_eta(t)

    def c(self, t: Tensor) -> Tensor:
        return self._root_eta(t) ** 2

    def dc(self, t: Tensor) -> Tensor:
        return -self.dalpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.kappa * self._root_eta(t)

    def dsigma(self, t: Tensor) -> Tensor:
        return self.kappa * self._droot_eta(t)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        b = self.kappa * lam.exp()
        r = 2.0 / (b + (b * b + 4.0).sqrt())
        return ((r / self._start).log() / self._span).clamp(min=0.0) ** (1.0 / self.power)


_GROWTH = {"average": lambda t: t, "increased": lambda t: t * t, "decreased": lambda t: t * (2.0 - t)}
_SLOPE = {"average": torch.ones_like, "increased": lambda t: 2.0 * t, "decreased": lambda t: 2.0 * (1.0 - t)}


@dataclass(frozen=True)
class RDDM(ResidualShift):
    """abar and bbar^2 / noise^2 grow from 0 to 1 by their own rules.

    "average" is t, "increased" t^2, "decreased" 2t - t^2: the names say how the steps change with t, as in the paper.
    `noise` is bbar(1).
    """

    residual_rule: str = "decreased"
    noise_rule: str = "increased"
    noise: float = 0.1
    _: KW_ONLY
    t_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in (self.residual_rule, self.noise_rule):
            if rule not in _GROWTH:
                raise ScidiffError(f"An RDDM rule is one of {', '.join(_GROWTH)}, not {rule!r}.")
        if self.noise <= 0.0:
            raise ScidiffError("The noise of an RDDM path must be positive.")

    def alpha(self, t: Tensor) -> Tensor:
        # (1 - t)^2 exactly, where 1 - (2t - t^2) would cancel.
        return (1.0 - t) ** 2 if self.residual_rule == "decreased" else 1.0 - _GROWTH[self.residual_rule](t)

    def dalpha(self, t: Tensor) -> Tensor:
        return -_SLOPE[self.residual_rule](t)

    def c(self, t: Tensor) -> Tensor:
        return _GROWTH[self.residual_rule](t)

    def dc(self, t: Tensor) -> Tensor:
        return _SLOPE[self.residual_rule](t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.noise * _GROWTH[self.noise_rule](t).sqrt()

    def dsigma(self, t: Tensor) -> Tensor:
        return 0.5 * self.noise**2 * _SLOPE[self.noise_rule](t) / self.sigma(t)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return rising_root(lambda t: -self.lam(t), -lam, 0.0, 1.0)
