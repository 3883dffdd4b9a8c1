"""Bayesian flows: the state is a belief about the data, sharpened by noisy sightings of known accuracy.

A sender shows y ~ p(y | x, alpha), a receiver updates its belief by Bayes' rule, and the network sees the belief. After
the flat prior (t = 1) the belief gains accuracy until t = 0; the literature's time is 1 - t. At t = 0 the state is no
longer a belief: the last row of every solver puts the data themselves there. Kernel "bayes", by `row.form`:

    redraw   the belief at s drawn anew from the flow of the predicted data (end-back sampling)
    update   the belief at t after sightings of the predicted data, which raise its accuracy to that at s (vanilla)
    sample, mode   the predicted data; classes are drawn from their law, or the most probable ones are taken

For classes, redraw takes the predicted probabilities for the data with `row.a` = 1, and a class drawn from them with
`row.a` = 0 (then a perfect prediction keeps the marginals exact). Source: Graves et al. 2023, arXiv 2308.07037;
end-back sampling as in Wu et al. 2025, arXiv 2502.02016.

`GaussianBelief` holds z = mu / sqrt(gamma), mu the mean of the belief, because that makes it an ordinary Gaussian path,
alpha = sqrt(gamma), sigma = sqrt(1 - gamma), which every solver of the core moves; networks see mu = sqrt(gamma) z.

    1 - gamma = sigma_1^{2 (1 - t)},   mu ~ N(gamma x, gamma (1 - gamma)),   precision rho = 1 / (1 - gamma)
    update    mu_s = (rho_t mu_t + (rho_s - rho_t) y) / rho_s,   y ~ N(x, 1 / (rho_s - rho_t))

An update equals an ancestral step of that path with eta = 1: the posterior of a Wiener process given its end.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.path.base import Path, Prediction, Time
from scidiff.core.path.conversion import conversion
from scidiff.core.path.gaussian import WEIGHTS, GaussianPath, fit_to

if TYPE_CHECKING:
    from scidiff.core.plan import Row
    from scidiff.core.run import Noise
    from scidiff.core.spec import Site

FORMS = ("redraw", "update", "sample", "mode")
SIGMA_1 = 1e-3**0.5


def block(noise: Noise, tag: str, sizes: tuple[int, ...], law: str = "normal", open_end: bool = False) -> Tensor:
    """Counter-based float64 noise with further axes, [B, *dims, *sizes], not projected; keyed like every noise. With
    `open_end` a number does not depend on the lengths of the further axes."""
    site = noise.site
    padded = (*site.padded, *(open_end for _ in sizes))
    return noise.run.noise(site.name, tag, (*site.dims, *sizes), site.ctx, law, padded, site.space.symmetric)


def hidden(x: Tensor, ctx: Site) -> Tensor:
    """x [B, *dims, ...] with zeros on padding."""
    if ctx.mask is None:
        return x
    mask = ctx.mask.view(*ctx.mask.shape, *[1] * (x.dim() - ctx.mask.dim()))
    return x * mask.to(x.dtype)


def per_sample(value: Any, like: Tensor) -> Any:
    """A float as it is, a tensor [B] as float64 [B, 1, ...] against `like`."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return value.to(torch.float64).view(-1, *[1] * (like.dim() - 1))


def precision_gain(t: Time, rate: float, steps: int) -> Any:
    """What (x - x_hat)^2 costs in nats: half the precision gained at t per unit of time, or in the next of `steps`
    sightings times their number. `rate` is -2 log sigma_1."""
    u: Any = 1.0 - t
    if steps:
        u = u.clamp(max=1.0 - 1.0 / steps) if isinstance(u, Tensor) else min(u, 1.0 - 1.0 / steps)
    scale = -0.5 * steps * math.expm1(-rate / steps) * math.exp(rate / steps) if steps else 0.5 * rate
    return scale * ((rate * u).exp() if isinstance(u, Tensor) else math.exp(rate * u))


@dataclass(frozen=True)
class Belief(Path):
    """What a Bayesian flow adds to a path: the kernel "bayes"."""

    kernels: ClassVar[frozenset[str]] = frozenset({"bayes"})

    @abstractmethod
    def redraw(self, pred: Prediction, s: float, mean: bool, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """The belief at s from the flow of the predicted data."""

    @abstractmethod
    def update(self, z: Tensor, pred: Prediction, t: float, s: float, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """The belief z at t after the sightings up to s."""

    def finish(self, pred: Prediction, sample: bool, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """The data."""
        return pred.data

    def apply(self, row: Row, base: Tensor, pred: Prediction | None, ctx: Site, noise: Noise) -> Tensor:
        if row.kernel != "bayes":
            return super().apply(row, base, pred, ctx, noise)
        if row.form not in FORMS:
            raise ScidiffError(f"The kernel 'bayes' has no form {row.form!r}.", nearest(row.form, FORMS))
        if pred is None:
            raise ScidiffError("The kernel 'bayes' needs a prediction.")
        if row.form == "redraw":
            return self.redraw(pred, row.s, row.a == 1.0, ctx, noise, row.tag)
        if row.form == "update":
            return self.update(base, pred, row.t, row.s, ctx, noise, row.tag)
        return self.finish(pred, row.form == "sample", ctx, noise, row.tag)


def uncoupled(x1: Tensor | None) -> None:
    """ScidiffError where a coupling gave a far end: a belief starts from the flat prior."""
    if x1 is not None:
        raise ScidiffError("A Bayesian flow starts from a flat prior; it takes no coupling.")


@dataclass(frozen=True)
class GaussianBelief(Belief, GaussianPath):
    """Real numbers of about unit variance. sigma_1: standard deviation of the last belief. weight "bayes": the loss in
    nats of `steps` sightings (0: of continuous time); the other weights are those of every Gaussian path."""

    kernels: ClassVar[frozenset[str]] = GaussianPath.kernels | Belief.kernels
    default_kind: ClassVar[str] = "data"

    sigma_1: float = SIGMA_1
    steps: int = 0
    _: KW_ONLY
    t_min: float = 0.0
    weight: str = "bayes"

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_1 < 1.0:
            raise ScidiffError(f"The sigma_1 of a Bayesian flow lies between 0 and 1, unlike {self.sigma_1}.")
        if self.steps < 0:
            raise ScidiffError(f"A Bayesian flow has no {self.steps} steps.", "0 means continuous time.")
        if self.weight != "bayes" and self.weight not in WEIGHTS:
            raise ScidiffError(f"A Gaussian belief has no loss weight {self.weight!r}.",
                               nearest(self.weight, ("bayes", *WEIGHTS)))
        if not 0.0 <= self.t_min < self.t_max <= 1.0:
            raise ScidiffError(f"A path's bounds must satisfy 0 <= t_min < t_max <= 1, not {self.t_min}, {self.t_max}.")

    @property
    def rate(self) -> float:
        """-2 log sigma_1."""
        return -2.0 * math.log(self.sigma_1)

    def alpha(self, t: Tensor) -> Tensor:
        return (-torch.expm1(self.rate * (t - 1.0))).sqrt()

    def dalpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.rate * self.sigma(t) ** 2 / self.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return (0.5 * self.rate * (t - 1.0)).exp()

    def dsigma(self, t: Tensor) -> Tensor:
        return 0.5 * self.rate * self.sigma(t)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        return 1.0 - torch.nn.functional.softplus(2.0 * lam) / self.rate

    def features(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """The mean of the belief, mu = sqrt(gamma) z; zero at the prior."""
        return fit_to(self.coefficients(t).alpha, z) * z

    def loss_factor(self, have: str, t: Time) -> Any:
        if self.weight != "bayes":
            return super().loss_factor(have, t)
        gain = precision_gain(t, self.rate, self.steps)
        if have == "data":
            return gain
        k = self.coefficients(t)
        return gain * conversion(have, "data", k.alpha, k.sigma, k.dalpha, k.dsigma)[1] ** 2

    def redraw(self, pred: Prediction, s: float, mean: bool, ctx: Site, noise: Noise, tag: str) -> Tensor:
        k = self.coefficients(s)
        return pred.data * k.alpha + noise.normal(tag, pred.data.dtype) * k.sigma

    def update(self, z: Tensor, pred: Prediction, t: float, s: float, ctx: Site, noise: Noise, tag: str) -> Tensor:
        return self.posterior(z, pred, t, s, ctx, noise, tag, 1.0)
