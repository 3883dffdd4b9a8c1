"""Flow matching on a torus: straight lines along the shortest way from data to a uniform source.

    v = log(x0, x1) less its mean over the points of a sample (with `centred`),   x_t = x0 + t v mod P,   dx/dt = v

t = 0 is data, t = 1 the uniform source x1, so v points away from the data and sampling follows -v. Moving all points of
a sample alike changes nothing that a shift-invariant network could see, which is why the mean of v is left out of
target, prediction and path: the relative coordinates at t = 1 are those of x1. Set centred=False where absolute
positions matter (fixed sites, one point per sample).

Source: Chen & Lipman 2024, arXiv 2302.03660; on crystals Miller et al. 2024, arXiv 2406.04713.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.base import Corrupted, Path, Prediction, Time
from scidiff.core.path.gaussian import fit_to

if TYPE_CHECKING:
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site


@dataclass(frozen=True)
class TorusFlow(Path):
    """Geodesic flow; points along axis 1, one common shift per remaining index."""

    kernels: ClassVar[frozenset[str]] = frozenset({"affine"})
    kinds: ClassVar[frozenset[str]] = frozenset({"velocity", "data"})
    default_kind: ClassVar[str] = "velocity"

    centred: bool = True

    def validate(self, space: Space) -> None:
        if not space.wraps:
            raise ScidiffError(f"A torus flow lives on a torus, not on a {type(space).__name__} component.")

    def tangent(self, v: Tensor, ctx: Site) -> Tensor:
        """v without padding and, with `centred`, without its mean over the real points."""
        v = ctx.space.project(v, ctx.mask)
        if not self.centred:
            return v
        weight = ctx.entries().to(v.dtype)
        mean = v.sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1.0)
        return ctx.space.project(v - mean, ctx.mask)

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        """Uniform on the torus."""
        if ctx.given_source is not None:
            return ctx.given_source
        x = noise.uniform("source") * ctx.space.period  # type: ignore[attr-defined]
        return ctx.space.project(x.to(noise.dtype), ctx.mask)

    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        """x_t, and as `eps` the velocity of its line."""
        x1 = self.source(ctx, noise).to(x0.dtype) if x1 is None else x1
        v = self.tangent(ctx.space.log(x0, x1), ctx)
        z = ctx.space.retract(x0, fit_to(t, x0) * v, ctx.mask)
        return Corrupted(ctx.space.project(z, ctx.mask), v, x1)

    def read(self, raw: Tensor, z: Tensor, t: Time, ctx: Site, kind: str) -> Prediction:
        self.accept(kind)
        value = self.tangent(raw, ctx) if kind == "velocity" else ctx.space.project(raw, ctx.mask)
        return Prediction(kind, value, self, z, t, ctx)

    def convert(self, value: Tensor, have: str, want: str, z: Tensor, t: Time, ctx: Site | None) -> Tensor:
        """data = x_t - t v mod P, velocity = log(data, x_t) / t."""
        if have == want:
            return value
        self.accept(have)
        self.accept(want)
        if ctx is None:
            raise ScidiffError("Predictions on a torus need to know its period.")
        if want == "data":
            return ctx.space.wrap(z - fit_to(t, z) * value)
        return self.tangent(ctx.space.log(value, z) / fit_to(t, z), ctx)

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Mean squared error of the velocity, or of data along the torus, over the real entries of each sample."""
        if noised.eps is None:
            raise ScidiffError("The loss of a torus flow needs the velocity that `corrupt` returned.")
        if pred.kind == "velocity":
            error = pred.value - noised.eps.to(pred.value.dtype)
        else:
            error = ctx.space.log(x0.to(pred.value.dtype), pred.value)
        weight = ctx.entries().to(error.dtype)
        return (error * error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)
