"""Gaussian paths: one-sided, with an optional centre.

    x_t = alpha(t) x0 + c(t) mu + sigma(t) eps,      eps ~ N(0, I),  t = 0 data, t = 1 source

mu is the component's `Context.centre` (a degraded image, a coarse state); c = 0 for ordinary diffusion, and 1 - alpha
with `centred=True`. Subtracting c mu turns every centred path into an ordinary one, so solvers see y = x - c mu alone.
lambda = log(alpha / sigma) falls strictly with t. Coefficients and their exact derivatives are float64.

    velocity  v = f (x - c mu) + c' mu - g^2 score / 2,   f = alpha'/alpha,   g^2 = -2 sigma^2 lambda'
    ancestral x_s = alpha_s D + c_s mu + k E + sqrt(sigma_s^2 - k^2) xi,       0 <= k <= sigma_s
    forward   x_s = (alpha_s / alpha_t) (x_t - c_t mu) + c_s mu + sigma_s sqrt(1 - e^{2 (lambda_s - lambda_t)}) xi

k = sigma_s is DDIM (Song et al. 2021, arXiv 2010.02502); k = sigma_s e^{lambda_t - lambda_s} the Ornstein-Uhlenbeck
posterior (Ho et al. 2020, arXiv 2006.11239); k = sigma_s^2 / sigma_t the residual-shift posterior. `eta` scales the
standard deviation of the fresh noise between the first (0) and the path's own posterior (1).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.path.base import Corrupted, Path, Prediction, Time, spread
from scidiff.core.path.conversion import KINDS, NEEDS_SIGNAL, conversion

if TYPE_CHECKING:
    from scidiff.core.plan import Row
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site

WEIGHTS = ("own", "data", "noise", "score", "velocity", "angular", "min_snr", "likelihood", "edm")
_CACHED = 1 << 14


class Coefficients(NamedTuple):
    """The numbers of a path at one time: floats, or float64 tensors [B]."""

    alpha: Any
    sigma: Any
    c: Any
    dalpha: Any
    dsigma: Any
    dc: Any
    lam: Any

    @property
    def rho(self) -> Any:
        """sigma / alpha."""
        return self.sigma / self.alpha

    @property
    def drift(self) -> Any:
        """f = alpha'/alpha."""
        return self.dalpha / self.alpha

    @property
    def delta(self) -> Any:
        """alpha' sigma - alpha sigma' = alpha sigma lambda'."""
        return self.dalpha * self.sigma - self.alpha * self.dsigma

    @property
    def dlam(self) -> Any:
        """lambda'."""
        return self.delta / (self.alpha * self.sigma)

    @property
    def g2(self) -> Any:
        """Squared diffusion g^2 = -2 sigma^2 lambda'."""
        return -2.0 * self.sigma * self.delta / self.alpha


def exp(x: Any) -> Any:
    """e^x of a float or a tensor."""
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def one_minus_exp(x: Any) -> Any:
    """1 - e^x for x <= 0, of a float or a tensor, without cancellation."""
    return -torch.expm1(x) if isinstance(x, Tensor) else -math.expm1(x)


def root(x: Any) -> Any:
    """sqrt(max(x, 0)) of a float or a tensor."""
    return x.clamp(min=0.0).sqrt() if isinstance(x, Tensor) else math.sqrt(max(x, 0.0))


def fit_to(value: Any, like: Tensor) -> Any:
    """A coefficient that broadcasts against `like`: floats stay floats, [B] becomes [B, 1, ...] in its dtype."""
    return spread(value, like) if isinstance(value, Tensor) and value.dim() else value


def combine(p: Any, x: Tensor, q: Any, y: Tensor) -> Tensor:
    """p x + q y. The larger factor is pulled out, so that differences of nearly equal tensors are taken first."""
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return fit_to(p, x) * x + fit_to(q, y) * y
    if p == 0.0:
        return y * q
    if abs(p) >= abs(q):
        return torch.add(x, y, alpha=q / p).mul_(p)
    return torch.add(y, x, alpha=p / q).mul_(q)


def rising_root(f: Any, target: Tensor, low: float, high: float) -> Tensor:
    """t in [low, high] with f(t) = target for an increasing f, by bisection to the last bit (float64)."""
    a, b = torch.full_like(target, low), torch.full_like(target, high)
    for _ in range(64):
        mid = 0.5 * (a + b)
        below = f(mid) < target
        a, b = torch.where(below, mid, a), torch.where(below, b, mid)
    return 0.5 * (a + b)


@dataclass(frozen=True)
class GaussianPath(Path):
    """Shared behaviour; a row of the family gives alpha, sigma, their derivatives and the inverse of lambda.

    t_min, t_max bound where the path is evaluated. weight is the loss: "own" is the mean squared error of whatever
    kind the network predicts; another kind's name gives that kind's error whatever is predicted; "min_snr" caps the
    data error's weight at `gamma` (Hang et al. 2023, arXiv 2303.09556), "likelihood" is g^2 (Song et al. 2021, arXiv
    2101.09258), "edm" the unit-variance weight for data of standard deviation `data_std` (arXiv 2206.00364).
    source_std: standard deviation of the source where it is not sigma at t_max (short schedules started from N(0, 1)).
    """

    kernels: ClassVar[frozenset[str]] = frozenset({"affine", "posterior", "renoise", "langevin"})
    kinds: ClassVar[frozenset[str]] = frozenset(KINDS)
    default_kind: ClassVar[str] = "noise"

    _: KW_ONLY
    t_min: float = 1e-3
    t_max: float = 1.0
    centred: bool = False
    weight: str = "own"
    gamma: float = 5.0
    data_std: float = 1.0
    source_std: float | None = None

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ScidiffError(f"A Gaussian path has no loss weight {self.weight!r}.", nearest(self.weight, WEIGHTS))
        if self.source_std is not None and not self.source_std > 0.0:
            raise ScidiffError(f"The standard deviation of a source is positive, unlike {self.source_std}.")
        if not 0.0 <= self.t_min < self.t_max <= 1.0 and self.levels is None:
            raise ScidiffError(f"A path's bounds must satisfy 0 <= t_min < t_max <= 1, not {self.t_min}, {self.t_max}.")

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at float64 times of any shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def dsigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    @abstractmethod
    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        """The inverse of `lam`, on float64 tensors."""

    def c(self, t: Tensor) -> Tensor:
        """Weight of the centre."""
        return 1.0 - self.alpha(t) if self.centred else torch.zeros_like(t)

    def dc(self, t: Tensor) -> Tensor:
        """d c / dt."""
        return -self.dalpha(t) if self.centred else torch.zeros_like(t)

    def lam(self, t: Tensor) -> Tensor:
        """lambda = log(alpha / sigma)."""
        return self.alpha(t).log() - self.sigma(t).log()

    @property
    def bounds(self) -> tuple[float, float]:
        return (self.t_min, self.t_max)

    def validate(self, space: Space) -> None:
        if space.categorical or space.wraps:
            raise ScidiffError(f"{type(self).__name__} moves real numbers, not a {type(space).__name__} component.")

    def coefficients(self, t: Time) -> Coefficients:
        """All coefficients: floats for a float (remembered), float64 tensors for a tensor."""
        if isinstance(t, Tensor):
            return self._coefficients(torch.as_tensor(t, dtype=torch.float64))
        # A frozen dataclass still has a __dict__; remembering here avoids hashing long tables at every look-up.
        seen: dict[float, Coefficients] = vars(self).setdefault("_seen", {})
        found = seen.get(t)
        if found is None:
            if len(seen) >= _CACHED:
                seen.clear()
            found = Coefficients(*(float(v) for v in self._coefficients(torch.tensor(t, dtype=torch.float64))))
            seen[t] = found
        return found

    def _coefficients(self, t: Tensor) -> Coefficients:
        return Coefficients(self.alpha(t), self.sigma(t), self.c(t), self.dalpha(t), self.dsigma(t), self.dc(t),
                            self.lam(t))

    def t_of_lambda(self, lam: Time) -> Any:
        """The time at which log(alpha / sigma) = lam; a float for a float."""
        if isinstance(lam, Tensor):
            return self._t_of_lambda(torch.as_tensor(lam, dtype=torch.float64))
        return float(self._t_of_lambda(torch.tensor(lam, dtype=torch.float64)))

    def preconditioning(self, t: Time, data_std: float | None = None) -> tuple[Any, Any, Any]:
        """(skip, gain, scale_in) of D = skip x + gain F(scale_in x); F and its input have unit variance (EDM)."""
        k = self.coefficients(t)
        sd = self.data_std if data_std is None else data_std
        total = k.alpha * k.alpha * sd * sd + k.sigma * k.sigma
        return k.alpha * sd * sd / total, k.sigma * sd / total**0.5, total**-0.5

    def centre(self, ctx: Site | None) -> Tensor | None:
        """mu of this component; None where the path has no centre."""
        if not self.centred:
            return None
        mu = None if ctx is None else ctx.centre
        if mu is None:
            name = "a component" if ctx is None else f"component {ctx.name!r}"
            raise ScidiffError(f"The path of {name} runs to a centre, but the context gives none.",
                               "Set Context.centre for it.")
        return mu

    def shifted(self, z: Tensor, weight: Any, ctx: Site | None) -> Tensor:
        """z + weight mu; z itself without a centre."""
        mu = self.centre(ctx)
        return z if mu is None else z + fit_to(weight, z) * mu.to(z.dtype)

    @property
    def _source_std(self) -> float:
        return self.coefficients(self.t_max).sigma if self.source_std is None else self.source_std

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        """c mu + sigma eps at t_max (or source_std eps), or the source that the context gives."""
        if ctx.given_source is not None:
            return ctx.given_source
        return self.shifted(noise.normal("source") * self._source_std, self.coefficients(self.t_max).c, ctx)

    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        """x_t given x0; x1, a draw of the source, fixes eps = (x1 - c mu) / its standard deviation."""
        k = self.coefficients(t)
        if x1 is None:
            eps = noise.normal("corrupt", x0.dtype)
        else:
            eps = self.shifted(x1.to(x0.dtype), -self.coefficients(self.t_max).c, ctx) / self._source_std
        z = fit_to(k.alpha, x0) * x0 + fit_to(k.sigma, x0) * eps
        return Corrupted(self.shifted(z, k.c, ctx), eps, x1)

    def convert(self, value: Tensor, have: str, want: str, z: Tensor, t: Time, ctx: Site | None) -> Tensor:
        if have == want:
            return value
        self.accept(have)
        self.accept(want)
        k = self.coefficients(t)
        if (have, want) in NEEDS_SIGNAL and not isinstance(t, Tensor) and k.alpha == 0.0:
            raise ScidiffError(f"A {have!r} prediction at t = {t:g} carries no signal and cannot become {want!r}.",
                               "Predict data, velocity or angular there.")
        p, q = conversion(have, want, k.alpha, k.sigma, k.dalpha, k.dsigma)
        if have == "velocity":
            value = self.shifted(value, -k.dc, ctx)
        out = combine(p, self.shifted(z, -k.c, ctx), q, value)
        return self.shifted(out, k.dc, ctx) if want == "velocity" else out

    def target(self, kind: str, x0: Tensor, noised: Corrupted, t: Time, ctx: Site | None) -> Tensor:
        """What a perfect sample-wise prediction of `kind` would be."""
        if kind == "data":
            return x0
        k = self.coefficients(t)
        eps = noised.eps
        if eps is None:
            return self.convert(x0, "data", kind, noised.z, t, ctx)
        if kind == "noise":
            return eps
        if kind == "score":
            return -eps / fit_to(k.sigma, eps)
        if kind == "velocity":
            return self.shifted(fit_to(k.dalpha, x0) * x0 + fit_to(k.dsigma, eps) * eps, k.dc, ctx)
        radius = (k.alpha * k.alpha + k.sigma * k.sigma) ** 0.5
        return fit_to(k.alpha / radius, eps) * eps - fit_to(k.sigma / radius, x0) * x0

    def loss_factor(self, have: str, t: Time) -> Any:
        """What the squared error of a `have` prediction is multiplied with: a float or a float64 tensor [B]."""
        if self.weight in ("own", have):
            return 1.0
        k = self.coefficients(t)
        scales = (k.alpha, k.sigma, k.dalpha, k.dsigma)
        if self.weight in KINDS:
            return conversion(have, self.weight, *scales)[1] ** 2
        if self.weight == "likelihood":
            return conversion(have, "score", *scales)[1] ** 2 * k.g2
        to_data = conversion(have, "data", *scales)[1] ** 2
        if self.weight == "edm":
            sd2 = self.data_std**2
            return to_data * (k.alpha**2 * sd2 + k.sigma**2) / (k.sigma**2 * sd2)
        snr = (k.alpha / k.sigma) ** 2
        return to_data * (snr.clamp(max=self.gamma) if isinstance(snr, Tensor) else min(snr, self.gamma))

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Weighted mean squared error over the independent real entries of each sample, [B]."""
        error = pred.value - self.target(pred.kind, x0, noised, t, ctx).to(pred.value.dtype)
        weight = ctx.entries().to(error.dtype)
        each = (error * error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)
        factor = self.loss_factor(pred.kind, t)
        return each * (factor.to(each.dtype) if isinstance(factor, Tensor) else factor)

    def fresh_noise(self, t: Time, s: Time) -> Any:
        """Standard deviation of the noise that the path's own posterior (eta = 1) adds in a step t -> s < t."""
        now, then = self.coefficients(t), self.coefficients(s)
        return then.sigma * root(one_minus_exp(2.0 * (now.lam - then.lam)))

    def posterior(self, z: Tensor, pred: Prediction, t: Time, s: Time, ctx: Site, noise: Noise, tag: str = "step",
                  eta: float = 1.0) -> Tensor:
        """x_s given x_t and the prediction, s < t: DDIM at eta = 0, the path's own posterior at eta = 1."""
        then = self.coefficients(s)
        fresh = eta * self.fresh_noise(t, s)
        keep = root(then.sigma * then.sigma - fresh * fresh)
        clean = pred.data
        out = combine(then.alpha, clean, keep, pred.noise) if _nonzero(keep) else fit_to(then.alpha, clean) * clean
        if _nonzero(fresh):
            out = out + fit_to(fresh, out) * noise.normal(tag, out.dtype)
        return self.shifted(out, then.c, ctx)

    def renoise(self, z: Tensor, t: Time, s: Time, ctx: Site, noise: Noise, tag: str = "renoise") -> Tensor:
        """x_s given x_t for s > t: the forward process of the path."""
        now, then = self.coefficients(t), self.coefficients(s)
        y = self.shifted(z, -now.c, ctx)
        spreadness = then.sigma * root(one_minus_exp(2.0 * (then.lam - now.lam)))
        ratio = then.alpha / now.alpha
        y = fit_to(ratio, y) * y + fit_to(spreadness, y) * noise.normal(tag, y.dtype)
        return self.shifted(y, then.c, ctx)

    def langevin(self, z: Tensor, score: Tensor, snr: float, factor: float, scale: float, ctx: Site, noise: Noise,
                 tag: str = "langevin", whole_batch: bool = False) -> Tensor:
        """One corrector step of size 2 factor (snr |xi| / |score|)^2 (arXiv 2011.13456, algorithm 5).

        Norms are per sample; `whole_batch` averages them over the batch, as the published code of GDSS does.
        """
        xi = noise.normal(tag, z.dtype)
        score = ctx.space.project(score, ctx.mask)
        of_noise, of_score = ctx.space.inner(xi, xi).sqrt(), ctx.space.inner(score, score).sqrt()
        if whole_batch:
            of_noise, of_score = of_noise.mean().expand_as(of_noise), of_score.mean().expand_as(of_score)
        step = 2.0 * factor * (snr * of_noise / of_score.clamp(min=1e-15)) ** 2
        move = spread(step, z) * score + spread((2.0 * step).sqrt() * scale, z) * xi
        return ctx.space.retract(z, move, ctx.mask)

    def apply(self, row: Row, base: Tensor, pred: Prediction | None, ctx: Site, noise: Noise) -> Tensor:
        if row.kernel == "renoise":
            return self.renoise(base, row.t, row.s, ctx, noise, row.tag)
        if row.kernel in self.kernels and pred is None:
            raise ScidiffError(f"The {row.kernel!r} kernel needs a prediction.")
        if row.kernel == "posterior" and pred is not None:
            return self.posterior(base, pred, row.t, row.s, ctx, noise, row.tag, row.a)
        if row.kernel == "langevin" and pred is not None:
            factor = row.b[0] if row.b else 1.0
            return self.langevin(base, pred.score, row.a, factor, row.c, ctx, noise, row.tag, row.form == "batch")
        return super().apply(row, base, pred, ctx, noise)


def _nonzero(x: Any) -> bool:
    return isinstance(x, Tensor) or x != 0.0
