"""Two-sided stochastic interpolants: from data x0 to any source x1, with noise in between.

    x_t = a(t) x0 + b(t) x1 + gamma(t) z,   z ~ N(0, I),  a(0) = b(1) = 1, a(1) = b(0) = gamma(0) = gamma(1) = 0

    slope    u = E[a' x0 + b' x1 | x_t]      noise  E = E[z | x_t]
    velocity v = u + gamma' E                score  s = -E / gamma

Any w(t) >= 0 gives the same marginals: backward, x <- x - h (v - w s) + sqrt(2 w h) xi. w = 0 needs the velocity
alone, w > 0 both heads. Source: Albergo, Boffi & Vanden-Eijnden 2023, arXiv 2303.08797; the posterior of the Brownian
bridge is that of Liu et al. 2023 (I2SB), arXiv 2302.05872.

The kind "pair" is a raw output [..., 2] = (slope, noise): both targets are bounded, so the square-root gamma of a
Brownian bridge, whose derivative diverges at both ends, does no harm. With the kind "velocity" alone that divergence
stays in the target; `StandardObjective(antithetic=True)` then pairs +z with -z (`mirror`), which removes it.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.path.base import Corrupted, Path, Prediction, Time
from scidiff.core.path.gaussian import fit_to

if TYPE_CHECKING:
    from scidiff.core.plan import Row
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site

_INTERPOLANTS = ("linear", "trig", "encdec")
_GAMMAS = ("brownian", "sine", "none")


class BridgeCoefficients(NamedTuple):
    """a, b, gamma and their derivatives: floats, or float64 tensors [B]."""

    a: Any
    b: Any
    gamma: Any
    da: Any
    db: Any
    dgamma: Any


@dataclass(frozen=True)
class Bridge(Path):
    """interpolant: "linear", "trig" or "encdec" (through pure noise at t = 1/2); gamma: "brownian" (scale
    sqrt(t (1 - t))), "sine" (scale sin^2(pi t)) or "none". x1 is `Context.source`, a coupling's choice or drawn from
    N(0, source_std^2).
    """

    kernels: ClassVar[frozenset[str]] = frozenset({"affine", "posterior"})
    kinds: ClassVar[frozenset[str]] = frozenset({"pair", "slope", "velocity", "noise", "score", "data"})
    default_kind: ClassVar[str] = "pair"

    interpolant: str = "linear"
    gamma: str = "brownian"
    scale: float = 1.0
    _: KW_ONLY
    source_std: float = 1.0
    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        if self.interpolant not in _INTERPOLANTS:
            raise ScidiffError(f"A bridge has no interpolant {self.interpolant!r}.",
                               nearest(self.interpolant, _INTERPOLANTS))
        if self.gamma not in _GAMMAS:
            raise ScidiffError(f"A bridge has no gamma {self.gamma!r}.", nearest(self.gamma, _GAMMAS))
        if self.scale <= 0.0:
            raise ScidiffError("The scale of a bridge must be positive.", "For no noise choose gamma 'none'.")

    @property
    def bounds(self) -> tuple[float, float]:
        return (self.t_min, self.t_max)

    def validate(self, space: Space) -> None:
        if space.categorical or space.wraps:
            raise ScidiffError(f"A bridge moves real numbers, not a {type(space).__name__} component.")

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.interpolant == "linear":
            return 1.0 - t, t.clone(), -torch.ones_like(t), torch.ones_like(t)
        if self.interpolant == "trig":
            w = 0.5 * math.pi
            return (w * (1 - t)).sin(), (w * t).sin(), -w * (w * t).sin(), w * (w * (1 - t)).sin()
        cos2, slope = (math.pi * t).cos() ** 2, -math.pi * (2 * math.pi * t).sin()
        early, zero = t < 0.5, torch.zeros_like(t)
        return (torch.where(early, cos2, zero), torch.where(early, zero, cos2),
                torch.where(early, slope, zero), torch.where(early, zero, slope))

    def _gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.gamma == "none":
            return torch.zeros_like(t), torch.zeros_like(t)
        if self.gamma == "sine":
            return self.scale * (math.pi * t).sin() ** 2, self.scale * math.pi * (2 * math.pi * t).sin()
        g = (t * (1.0 - t)).sqrt()
        return self.scale * g, self.scale * (0.5 - t) / g

    def coefficients(self, t: Time) -> BridgeCoefficients:
        """Floats for a float, float64 tensors for a tensor."""
        at = torch.as_tensor(t, dtype=torch.float64)
        a, b, da, db = self._weights(at)
        g, dg = self._gamma(at)
        out = (a, b, g, da, db, dg)
        return BridgeCoefficients(*(out if isinstance(t, Tensor) else (float(v) for v in out)))

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        given = ctx.given_source
        return noise.normal("source") * self.source_std if given is None else given

    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        k = self.coefficients(t)
        x1 = (self.source(ctx, noise) if x1 is None else x1).to(x0.dtype)
        eps = noise.normal("corrupt", x0.dtype)
        z = fit_to(k.a, x0) * x0 + fit_to(k.b, x0) * x1 + fit_to(k.gamma, x0) * eps
        return Corrupted(z, eps, x1)

    def mirror(self, noised: Corrupted, t: Time) -> Corrupted:
        """The antithetic partner: the same x0, x1 and t with -z."""
        if noised.eps is None:
            raise ScidiffError("Only a corrupted sample that keeps its noise has a mirror image.")
        g = fit_to(self.coefficients(t).gamma, noised.z)
        return Corrupted(noised.z - 2.0 * g * noised.eps, -noised.eps, noised.x1)

    def read(self, raw: Tensor, z: Tensor, t: Time, ctx: Site, kind: str) -> Prediction:
        self.accept(kind)
        if kind != "pair":
            return super().read(raw, z, t, ctx, kind)
        slope, eps = (ctx.space.project(h, ctx.mask) for h in raw.unbind(-1))
        return self.pair(slope, eps, z, t, ctx)

    def pair(self, slope: Tensor, eps: Tensor, z: Tensor, t: Time, ctx: Site | None) -> Prediction:
        """A prediction from both heads: it knows its velocity, score and (where x0 is determined) data."""
        k = self.coefficients(t)
        pred = Prediction("velocity", slope + fit_to(k.dgamma, eps) * eps, self, z, t, ctx)
        pred.values.update(slope=slope, noise=eps)
        if self.gamma != "none":
            pred.values["score"] = eps * fit_to(-1.0 / k.gamma, eps)
        if self.interpolant != "encdec":
            pred.values["data"] = self._data(slope, z - fit_to(k.gamma, eps) * eps, k)
        return pred

    def _data(self, slope: Tensor, smooth: Tensor, k: BridgeCoefficients) -> Tensor:
        """x0 from a x0 + b x1 = smooth and a' x0 + b' x1 = slope."""
        det = k.a * k.db - k.da * k.b
        return fit_to(k.db / det, smooth) * smooth - fit_to(k.b / det, slope) * slope

    def convert(self, value: Tensor, have: str, want: str, z: Tensor, t: Time, ctx: Site | None) -> Tensor:
        k = self.coefficients(t)
        if have == "noise" and want == "score" and self.gamma != "none":
            return value * fit_to(-1.0 / k.gamma, value)
        if have == "score" and want == "noise" and self.gamma != "none":
            return value * fit_to(-k.gamma, value)
        if have in ("velocity", "slope") and self.gamma == "none":
            if want in ("velocity", "slope"):
                return value
            if want == "data" and self.interpolant != "encdec":
                return self._data(value, z, k)
        return super().convert(value, have, want, z, t, ctx)

    def target(self, kind: str, x0: Tensor, noised: Corrupted, t: Time) -> Tensor:
        """What a perfect sample-wise prediction of `kind` would be."""
        k = self.coefficients(t)
        eps, x1 = noised.eps, noised.x1
        if eps is None or x1 is None:
            raise ScidiffError("The loss of a bridge needs the noise and the far end of the corrupted sample.")
        if kind == "data":
            return x0
        if kind == "noise":
            return eps
        if kind == "score":
            return eps * fit_to(-1.0 / k.gamma, eps)
        slope = fit_to(k.da, x0) * x0 + fit_to(k.db, x0) * x1
        return slope if kind == "slope" else slope + fit_to(k.dgamma, eps) * eps

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Mean squared error of what was predicted; slope plus noise where both heads answered."""
        kinds = ("slope", "noise") if "slope" in pred.values and "noise" in pred.values else (pred.kind,)
        weight = ctx.entries()
        count = weight.flatten(1).sum(1).clamp(min=1.0)
        total = torch.zeros_like(count)
        for kind in kinds:
            error = pred.values[kind] - self.target(kind, x0, noised, t).to(pred.values[kind].dtype)
            total = total + (error * error * weight).flatten(1).sum(1) / count
        return total

    def posterior(self, z: Tensor, pred: Prediction, t: Time, s: Time, ctx: Site, noise: Noise, tag: str = "step",
                  eta: float = 1.0) -> Tensor:
        """x_s along the Brownian bridge from x0 = D: N(D + (s/t)(x_t - D), eta^2 scale^2 s (t - s) / t)."""
        if self.interpolant != "linear" or self.gamma == "sine":
            raise ScidiffError("The posterior kernel of a bridge needs a linear interpolant and brownian or no gamma.")
        share = s / t
        out = z * fit_to(share, z) + pred.data * fit_to(1.0 - share, z)
        if self.gamma == "brownian" and eta > 0.0:
            variance = share * (t - s)
            out = out + fit_to(eta * self.scale * variance**0.5, out) * noise.normal(tag, out.dtype)
        return out

    def apply(self, row: Row, base: Tensor, pred: Prediction | None, ctx: Site, noise: Noise) -> Tensor:
        if row.kernel == "posterior" and pred is not None:
            return self.posterior(base, pred, row.t, row.s, ctx, noise, row.tag, row.a)
        return super().apply(row, base, pred, ctx, noise)
