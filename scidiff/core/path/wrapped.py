"""Wrapped normal diffusion on a torus: coordinates that repeat with a period P.

    x_t = (x0 + sigma(t) eps) mod P,     sigma = sigma_min^{1-t} sigma_max^t (in the units of the coordinates)
    log p(x_t | x0) = log sum_k exp(-(d + k P)^2 / 2 sigma^2) + const,   d = shortest x_t - x0
    score = -sum_k (d + k P) w_k / (sigma^2 sum_k w_k),   w_k = exp(-(d + k P)^2 / 2 sigma^2)

Since alpha = 1 there is no drift, and every solver in noise or velocity form is a pure increment along the tangent
E = -sigma score, v = sigma' E: the multistep solvers of flat space serve unchanged. At t = 1 the law is uniform (to
2 exp(-2 pi^2 (sigma_max / P)^2): 1 % at 0.5). "data" is wrap(x - sigma E), a point estimate, not a mean.
The raw kind "unit_score" is score / sqrt(lambda), lambda = E score^2, of unit variance at every t (Jing et al. 2022,
arXiv 2206.01729; Jiao et al. 2023, arXiv 2309.04475).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.base import Corrupted, Prediction, Time
from scidiff.core.path.edm import VE
from scidiff.core.path.gaussian import fit_to

if TYPE_CHECKING:
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site


def _images(d: Tensor, sigma: Tensor, period: float, count: int) -> tuple[Tensor, Tensor]:
    """Offsets to the 2 count + 1 images and the log of their unnormalised weights, [..., 2 count + 1]."""
    k = torch.arange(-count, count + 1, dtype=d.dtype, device=d.device) * period
    off = d.unsqueeze(-1) + k
    return off, -0.5 * (off / sigma.unsqueeze(-1)) ** 2


def wrapped_log_density(d: Tensor, sigma: Tensor, period: float = 1.0, count: int = 10) -> Tensor:
    """log of the wrapped normal density at displacement d (sigma broadcasts against d), series cut at |k| <= count."""
    _, log_w = _images(d, sigma.expand_as(d), period, count)
    return torch.logsumexp(log_w, -1) - sigma.log() - 0.5 * math.log(2 * math.pi)


def wrapped_score(d: Tensor, sigma: Tensor, period: float = 1.0, count: int = 10) -> Tensor:
    """d log density / dd."""
    off, log_w = _images(d, sigma.expand_as(d), period, count)
    return -(torch.softmax(log_w, -1) * off).sum(-1) / sigma**2


@lru_cache(maxsize=16)
def _norm_table(sigma_min: float, sigma_max: float, period: float, count: int, points: int = 513) -> Tensor:
    """sqrt(E score^2) sigma on a grid uniform in log sigma, by the midpoint rule over one period; float64 [points]."""
    sigma = torch.linspace(math.log(sigma_min), math.log(sigma_max), points, dtype=torch.float64).exp()
    out = []
    for s in sigma:
        # Below a period the density is a narrow peak: integrate where it lives.
        half = min(0.5 * period, 10.0 * float(s))
        d = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 * 2 * half - half
        density = wrapped_log_density(d, s, period, count).exp()
        value = (density * wrapped_score(d, s, period, count) ** 2).sum() * (2 * half / 2000)
        out.append(value.sqrt() * s)
    return torch.stack(out)


@dataclass(frozen=True)
class WrappedPath(VE):
    """Wrapped normal path; weight "own" or "unit" (the score's error over lambda: a unit-variance target)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"noise", "score", "velocity", "data", "unit_score"})
    default_kind: ClassVar[str] = "noise"

    sigma_min: float = 0.005
    sigma_max: float = 0.5
    images: int = 10

    def __post_init__(self) -> None:
        if self.weight not in ("own", "unit"):
            raise ScidiffError(f"A wrapped path has the weights 'own' and 'unit', not {self.weight!r}.")
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ScidiffError("A wrapped path needs 0 < sigma_min < sigma_max.")
        if self.centred:
            raise ScidiffError("A wrapped path has no centre.")

    def validate(self, space: Space) -> None:
        if not space.wraps:
            raise ScidiffError(f"A wrapped path lives on a torus, not on a {type(space).__name__} component.")

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        """Uniform on the torus."""
        if ctx.given_source is not None:
            return ctx.given_source
        x = noise.uniform("source") * ctx.space.period  # type: ignore[attr-defined]
        return ctx.space.project(x.to(noise.dtype), ctx.mask)

    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        """x_t, and as `eps` the target -sigma score of its own wrapped normal."""
        if x1 is not None:
            raise ScidiffError("A wrapped path starts from a uniform law; it takes no coupling.")
        sigma = self.coefficients(t).sigma
        move = noise.normal("corrupt", torch.float64)
        z = ctx.space.wrap(x0 + (fit_to(sigma, move) * move).to(x0.dtype))
        z = z if ctx.mask is None else z * ctx.mask.to(z.dtype)
        return Corrupted(z, self.tangent(x0, z, t, ctx), None)

    def tangent(self, x0: Tensor, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """-sigma score of p(z | x0)."""
        sigma = torch.as_tensor(fit_to(self.coefficients(t).sigma, z), dtype=z.dtype, device=z.device)
        period = ctx.space.period  # type: ignore[attr-defined]
        return -sigma * wrapped_score(ctx.space.log(x0, z), sigma, period, self.images)

    def norm(self, t: Time, period: float = 1.0) -> Any:
        """sqrt(E score^2) at t, by quadrature: 1/sigma for narrow noise, falling to 0 for the uniform limit."""
        sigma = self.coefficients(t).sigma
        table = _norm_table(self.sigma_min, self.sigma_max, period, self.images)
        place = torch.as_tensor(t, dtype=torch.float64).clamp(0.0, 1.0) * (len(table) - 1)
        table = table.to(place.device)
        left = place.floor().clamp(max=len(table) - 2).long()
        share = place - left
        value = (table[left] * (1 - share) + table[left + 1] * share) / sigma
        return value if isinstance(t, Tensor) else float(value)

    def read(self, raw: Tensor, z: Tensor, t: Time, ctx: Site, kind: str) -> Prediction:
        if kind != "unit_score":
            return super().read(raw, z, t, ctx, kind)
        scale = self.norm(t, ctx.space.period)  # type: ignore[attr-defined]
        return super().read(raw * fit_to(scale, raw), z, t, ctx, "score")

    def convert(self, value: Tensor, have: str, want: str, z: Tensor, t: Time, ctx: Site | None) -> Tensor:
        if have == want:
            return value
        if ctx is None and "data" in (have, want):
            raise ScidiffError("Data predictions on a torus need to know its period.")
        if have == "data" and ctx is not None:
            value = z - ctx.space.log(value, z)
        out = super().convert(value, have, want, z, t, ctx)
        return ctx.space.wrap(out) if want == "data" and ctx is not None else out

    def target(self, kind: str, x0: Tensor, noised: Corrupted, t: Time, ctx: Site | None) -> Tensor:
        if kind == "data":
            return x0
        if noised.eps is None:
            raise ScidiffError("The loss of a wrapped path needs the target that `corrupt` returned.")
        return self.convert(noised.eps, "noise", kind, noised.z, t, ctx)

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Mean squared error per sample; differences of data are taken along the torus."""
        target = self.target(pred.kind, x0, noised, t, ctx).to(pred.value.dtype)
        error = ctx.space.log(target, pred.value) if pred.kind == "data" else pred.value - target
        weight = ctx.entries().to(error.dtype)
        each = (error * error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)
        if self.weight == "own":
            return each
        sigma = self.coefficients(t).sigma
        to_score = {"score": 1.0, "noise": 1.0 / sigma, "velocity": 1.0 / (sigma * self._rate * sigma),
                    "data": 1.0 / (sigma * sigma)}[pred.kind]
        factor = (to_score / self.norm(t, ctx.space.period)) ** 2  # type: ignore[attr-defined]
        return each * (factor.to(each.dtype) if isinstance(factor, Tensor) else factor)

    def posterior(self, z: Tensor, pred: Prediction, t: Time, s: Time, ctx: Site, noise: Noise, tag: str = "step",
                  eta: float = 1.0) -> Tensor:
        """The ancestral step as a tangent increment: (k - sigma_t) E + fresh noise, wrapped."""
        now, then = self.coefficients(t).sigma, self.coefficients(s).sigma
        fresh = eta * self.fresh_noise(t, s)
        keep = (then * then - fresh * fresh) ** 0.5
        move = pred.noise * fit_to(keep - now, z)
        move = move + fit_to(fresh, z) * noise.normal(tag, z.dtype)
        return ctx.space.retract(z, move, ctx.mask)

    def renoise(self, z: Tensor, t: Time, s: Time, ctx: Site, noise: Noise, tag: str = "renoise") -> Tensor:
        return ctx.space.wrap(super().renoise(z, t, s, ctx, noise, tag))
