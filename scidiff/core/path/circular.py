"""Bayesian flows of coordinates that repeat with a period P, and the target that knows no global shift.

The data are angles x = 2 pi (coordinate) / P, [B, N, ...] with the points along axis 1; the state is a belief with one
more axis. Networks see [B, N, ..., 2]: the position of the belief in units of the period, and how sharp it is. Their
raw kind "turn" is a displacement in units of the period: x_hat = position + turn, so that a network of differences
alone predicts equivariantly. A "scaled_turn" counts in units of the belief's width, a number of order one at all times
(of `PlanarBelief`, whose time tells the width: sigma radians).

Where all shifts of a sample are equally likely, x is known up to one common shift phi per axis. With the belief of each
entry written as a phasor b_j (x_j given b_j is von Mises with mean arg b_j and concentration |b_j|),

    S = sum_j conj(b_j) e^{i x_j},   phi | z ~ vM(-arg S, |S|),   E[e^{i (x_j + phi)} | z] = A(|S|) e^{i (x_j - arg S)}

target "mean" is this posterior mean, in closed form: the loss averaged over phi. "aligned" keeps its direction alone,
"fixed" is x_j itself. With d = x_hat - target and weight w(t), a loss is w (1 - A cos d) ("cosine", the divergence of
two von Mises laws, exact) or w A d^2 ("square", d wrapped), A = 1 unless the target is "mean".

`PlanarBelief` is the Gaussian flow of u = (cos x, sin x): mu ~ N(gamma u, gamma (1 - gamma) I) as in
`GaussianBelief`; the state is mu / sqrt(gamma), which has a random direction at the prior, and b = mu / (1 - gamma).
Accuracies add, so time labels the noise and any grid may be used.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.path.base import Corrupted, Prediction, Time
from scidiff.core.path.belief import (
    SIGMA_1,
    Belief,
    GaussianBelief,
    block,
    hidden,
    per_sample,
    precision_gain,
    uncoupled,
)
from scidiff.core.path.gaussian import fit_to
from scidiff.core.path.von_mises import resultant

if TYPE_CHECKING:
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site

TARGETS = ("fixed", "aligned", "mean")
LOSSES = ("cosine", "square")
TURN = 2.0 * math.pi


def common_shift(x: Tensor, phasor: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """arg S and |S| of one shift per axis, [B, 1, ...], from angles x [B, N, ...], phasors [B, N, ..., 2] and weights
    [B, N, ...] (0 on padding)."""
    cosine, sine = x.cos(), x.sin()
    real = ((phasor[..., 0] * cosine + phasor[..., 1] * sine) * weight).sum(1, keepdim=True)
    imaginary = ((phasor[..., 0] * sine - phasor[..., 1] * cosine) * weight).sum(1, keepdim=True)
    return torch.atan2(imaginary, real), torch.hypot(real, imaginary)


def unit(angle: Tensor) -> Tensor:
    """(cos, sin) along a new last axis."""
    return torch.stack([angle.cos(), angle.sin()], -1)


@dataclass(frozen=True)
class CircularBelief(Belief):
    """Shared behaviour. target: "fixed", "aligned", "mean"; error: "cosine", "square"; weight: "bayes" for nats, "own"
    for the plain mean."""

    kinds: ClassVar[frozenset[str]] = frozenset({"data", "turn"})
    default_kind: ClassVar[str] = "turn"

    def turn(self, raw: Tensor, t: Time, kind: str) -> Tensor:
        """A raw prediction as a displacement in units of the period."""
        return raw

    target: str = "fixed"
    error: str = "cosine"
    weight: str = "bayes"

    def __post_init__(self) -> None:
        for value, known, what in ((self.target, TARGETS, "target"), (self.error, LOSSES, "error"),
                                   (self.weight, ("bayes", "own"), "loss weight")):
            if value not in known:
                raise ScidiffError(f"A circular belief has no {what} {value!r}.", nearest(value, known))

    @abstractmethod
    def shown(self, z: Tensor, t: Time, ctx: Site) -> tuple[Tensor, Tensor]:
        """Position of the belief in [0, period) and its sharpness, both [B, *dims]."""

    @abstractmethod
    def phasor(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """The belief as a von Mises law: concentration times (cos, sin) of its mean, [B, *dims, 2]."""

    @abstractmethod
    def gain(self, t: Time) -> Any:
        """Weight of the loss in nats, a float or float64 [B]."""

    @abstractmethod
    def flow(self, x: Tensor, t: Time, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """The belief at t about angles x, float64 [B, *dims, 2]."""

    def validate(self, space: Space) -> None:
        if not space.wraps:
            raise ScidiffError(f"{type(self).__name__} lives on a torus, not on a {type(space).__name__} component.")

    def angles(self, x: Tensor, ctx: Site) -> Tensor:
        """Coordinates as radians."""
        return x * (TURN / ctx.space.period)  # type: ignore[attr-defined]

    def coordinates(self, angle: Tensor, ctx: Site) -> Tensor:
        """Radians as coordinates in [0, period)."""
        return ctx.space.wrap(angle * (ctx.space.period / TURN))  # type: ignore[attr-defined]

    def _clean(self, z: Tensor, ctx: Site) -> bool:
        """Whether z is data (t = 0) and not a belief."""
        return z.dim() == 1 + len(ctx.dims)

    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        uncoupled(x1)
        z = self.flow(self.angles(x0.to(torch.float64), ctx), t, ctx, noise, "corrupt")
        return Corrupted(hidden(z, ctx).to(x0.dtype))

    def features(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """[B, *dims, 2]: position in units of the period and sharpness, zero on padding."""
        where, sharp = (z, torch.ones_like(z)) if self._clean(z, ctx) else self.shown(z, t, ctx)
        return hidden(torch.stack([where / ctx.space.period, sharp], -1), ctx)  # type: ignore[attr-defined]

    def read(self, raw: Tensor, z: Tensor, t: Time, ctx: Site, kind: str) -> Prediction:
        self.accept(kind)
        if kind != "data":
            raw = self.turn(raw, t, kind)
            where = z if self._clean(z, ctx) else self.shown(z, t, ctx)[0]
            raw = ctx.space.wrap(where.to(raw.dtype) + raw * ctx.space.period)  # type: ignore[attr-defined]
        return Prediction("data", hidden(raw, ctx), self, z, t, ctx)

    def aim(self, x0: Tensor, z: Tensor, t: Time, ctx: Site) -> tuple[Tensor, Any]:
        """Target angles [B, *dims] and their mean resultant A (1.0 unless the target is "mean")."""
        x = self.angles(x0, ctx)
        if self.target == "fixed":
            return x, 1.0
        shift, sharp = common_shift(x, self.phasor(z, t, ctx).to(x.dtype), ctx.entries().to(x.dtype))
        return x - shift, resultant(sharp) if self.target == "mean" else 1.0

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Mean over the real entries of each sample, [B]."""
        x, sharp = self.aim(x0, noised.z, t, ctx)
        gap = torch.remainder(self.angles(pred.data, ctx) - x + math.pi, TURN) - math.pi
        each = sharp * gap**2 if self.error == "square" else (1.0 - sharp) + sharp * 2.0 * (0.5 * gap).sin() ** 2
        entries = ctx.entries().to(each.dtype)
        mean = (each * entries).flatten(1).sum(1) / entries.flatten(1).sum(1).clamp(min=1.0)
        if self.weight == "own":
            return mean
        gain = self.gain(t)
        return mean * (gain.to(mean.dtype) if isinstance(gain, Tensor) else gain)

    def finish(self, pred: Prediction, sample: bool, ctx: Site, noise: Noise, tag: str) -> Tensor:
        return hidden(ctx.space.wrap(pred.data), ctx)

    def redraw(self, pred: Prediction, s: float, mean: bool, ctx: Site, noise: Noise, tag: str) -> Tensor:
        z = self.flow(self.angles(pred.data.to(torch.float64), ctx), s, ctx, noise, tag)
        return hidden(z, ctx).to(pred.data.dtype)


@dataclass(frozen=True)
class PlanarBelief(CircularBelief):
    """The circle in the plane; sigma_1 is the standard deviation (radians) of the last belief, `steps` the sightings
    of the loss (0: continuous time)."""

    kinds: ClassVar[frozenset[str]] = CircularBelief.kinds | {"scaled_turn"}

    target: str = "mean"
    sigma_1: float = SIGMA_1
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["_flow"] = GaussianBelief(self.sigma_1, self.steps)

    @property
    def plane(self) -> GaussianBelief:
        """The flow of each coordinate of the plane."""
        return vars(self)["_flow"]

    def turn(self, raw: Tensor, t: Time, kind: str) -> Tensor:
        return raw * fit_to(self.plane.coefficients(t).sigma, raw) if kind == "scaled_turn" else raw

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        """No evidence: standard normal in the plane, every direction alike."""
        if ctx.given_source is not None:
            return ctx.given_source
        return hidden(block(noise, "source", (2,)), ctx).to(noise.dtype)

    def flow(self, x: Tensor, t: Time, ctx: Site, noise: Noise, tag: str) -> Tensor:
        k, u = self.plane.coefficients(t), unit(x)
        z = per_sample(k.alpha, u) * u + per_sample(k.sigma, u) * block(noise, tag, (2,))
        if isinstance(t, Tensor):
            return torch.where(per_sample(t, u) <= 0.0, per_sample(k.alpha, u) * u, z)
        return k.alpha * u if t <= 0.0 else z

    def clean(self, x0: Tensor, ctx: Site) -> Tensor:
        return hidden(self.plane.coefficients(0.0).alpha * unit(self.angles(x0, ctx)), ctx)

    def shown(self, z: Tensor, t: Time, ctx: Site) -> tuple[Tensor, Tensor]:
        alpha = per_sample(self.plane.coefficients(t).alpha, z[..., 0])
        length = torch.hypot(z[..., 0], z[..., 1])
        return (self.coordinates(torch.atan2(z[..., 1], z[..., 0]), ctx),
                length * (alpha.to(z.dtype) if isinstance(alpha, Tensor) else alpha))

    def phasor(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        k = self.plane.coefficients(t)
        scale = per_sample(k.alpha / k.sigma**2, z)
        return z * (scale.to(z.dtype) if isinstance(scale, Tensor) else scale)

    def gain(self, t: Time) -> Any:
        """|u - u_hat|^2 = 2 (1 - cos d), each unit of which costs `precision_gain`."""
        factor = 2.0 if self.error == "cosine" else 1.0
        return factor * precision_gain(t, self.plane.rate, self.steps)

    def update(self, z: Tensor, pred: Prediction, t: float, s: float, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """The ancestral step of the plane's Gaussian path, towards (cos, sin) of the predicted angle."""
        now, then = self.plane.coefficients(t), self.plane.coefficients(s)
        fresh = self.plane.fresh_noise(t, s)
        keep = (max(then.sigma**2 - fresh**2, 0.0)) ** 0.5
        u = unit(self.angles(pred.data.to(torch.float64), ctx))
        noise_now = (z.to(torch.float64) - now.alpha * u) / now.sigma
        new = then.alpha * u + keep * noise_now + fresh * block(noise, tag, (2,))
        return hidden(new, ctx).to(z.dtype)
