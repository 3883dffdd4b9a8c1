"""The von Mises Bayesian flow: coordinates that repeat, sighted through von Mises noise.

    y_i ~ vM(x, alpha_i),    c_i e^{i m_i} = c_{i-1} e^{i m_{i-1}} + alpha_i e^{i y_i},    m_0 uniform, c_0 = 0

The state is the belief (m, c), m in the coordinate's unit, so [B, N, ..., 2]. Concentrations may fall, therefore time
does not label the noise, and networks see (log c - log 1e-7) / (log final - log 1e-7) of every entry. `steps` sightings
are fixed with the network: the legal times are t = 1 - i / steps before sighting i + 1. The accuracies make the
expected entropy fall linearly (`entropy_schedule`).

After i sightings the belief is R_i = sum_{j <= i} alpha_j e^{i y_j}. `flow_sampler` "exact" draws every y_j; "clt"
draws R_i e^{-ix} from the normal law of its mean and variances along and across x from `EXACT` sightings on (one draw
instead of i, Kolmogorov distance below 0.04), and exactly before. Source: Wu et al. 2025, arXiv 2502.02016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.base import Prediction, Time
from scidiff.core.path.belief import block, hidden, per_sample
from scidiff.core.path.circular import TURN, CircularBelief, unit
from scidiff.core.path.entropy_schedule import Moments, accuracies, moments
from scidiff.core.path.von_mises import draw

if TYPE_CHECKING:
    from scidiff.core.run import Noise
    from scidiff.core.spec import Site

EXACT = 8
_TOGETHER = 32  # sightings drawn at a time
_FLOOR = math.log(1e-7)


@dataclass(frozen=True)
class VonMisesBelief(CircularBelief):
    """`steps` sightings up to concentration `final`; flow_sampler: "exact" or "clt"."""

    steps: int = 50
    final: float = 1e3
    flow_sampler: str = "clt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flow_sampler not in ("exact", "clt"):
            raise ScidiffError(f"A von Mises belief has no flow sampler {self.flow_sampler!r}.", "Use exact or clt.")
        if self.steps < 1 or not self.final > 1e-6:
            raise ScidiffError("A von Mises belief needs steps >= 1 and a positive final concentration.")

    @property
    def levels(self) -> tuple[float, ...]:
        """The legal times, rising."""
        return tuple(k / self.steps for k in range(1, self.steps + 1))

    def sightings(self, t: Time) -> Any:
        """How many sightings the belief at t holds: an int, or int64 [B]."""
        if isinstance(t, Tensor):
            return torch.round(self.steps * (1.0 - torch.as_tensor(t, dtype=torch.float64))).long()
        return round(self.steps * (1.0 - t))

    def _moments(self, device: torch.device) -> Moments:
        return moments(self.steps, self.final, device)

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        """The flat prior."""
        if ctx.given_source is not None:
            return ctx.given_source
        m = noise.uniform("source") * ctx.space.period  # type: ignore[attr-defined]
        return hidden(torch.stack([m, torch.zeros_like(m)], -1), ctx).to(noise.dtype)

    def _drawn(self, first: int, last: int, count: Any, noise: Noise, tag: str) -> Tensor:
        """Sum of sightings first .. last - 1 relative to x, those from `count` on left out; [B, *dims, 2]."""
        alpha, total = accuracies(self.steps, self.final), torch.zeros((), dtype=torch.float64)
        for start in range(first, last, _TOGETHER):
            stop = min(start + _TOGETHER, last)
            y = draw(alpha[start:stop], block(noise, f"{tag}/{start}", (stop - start,), "uniform", True))
            number = torch.arange(start, stop, device=y.device)
            gain = self._moments(y.device).alpha[start:stop]
            if isinstance(count, Tensor):
                gain = gain * (number < count.view(-1, *[1] * (y.dim() - 1)))
            total = total.to(y.device) + (gain.unsqueeze(-1) * unit(y)).sum(-2)
        return total

    def _normal(self, first: int, last: Any, noise: Noise, tag: str) -> Tensor:
        """The same sum in the normal limit."""
        xi = block(noise, f"{tag}/sum", (2,))
        mean, along, across = (v[last] - v[first] for v in self._moments(xi.device)[:3])
        like = xi[..., 0]
        return torch.stack([per_sample(mean, like) + per_sample(along.sqrt(), like) * xi[..., 0],
                            per_sample(across.sqrt(), like) * xi[..., 1]], -1)

    def seen(self, first: int, last: Any, noise: Noise, tag: str) -> Tensor:
        """sum of alpha_j e^{i (y_j - x)} over sightings first .. last - 1 as a plane vector, float64 [B, *dims, 2];
        `last` an int or, with first = 0, int64 [B]."""
        exact = self.flow_sampler == "exact"
        if not isinstance(last, Tensor):
            return self._drawn(first, last, last, noise, tag) if exact or last - first < EXACT else (
                self._normal(first, last, noise, tag))
        if exact:
            return self._drawn(0, self.steps, last, noise, tag)
        few = self._drawn(0, min(EXACT - 1, self.steps), last, noise, tag)
        many = last.view(-1, *[1] * (few.dim() - 1)) >= EXACT
        return torch.where(many, self._normal(0, last, noise, tag), few)

    def flow(self, x: Tensor, t: Time, ctx: Site, noise: Noise, tag: str) -> Tensor:
        count = self.sightings(t)
        if not isinstance(count, Tensor) and (count == 0 or t <= 0.0):
            return self._edge(x, count, ctx, noise, tag)
        belief = self._polar(x, self.seen(0, count, noise, tag), ctx)
        if not isinstance(count, Tensor):
            return belief
        count = count.view(-1, *[1] * x.dim())
        belief = torch.where(count == 0, self._edge(x, 0, ctx, noise, tag), belief)
        return torch.where(per_sample(t, belief) <= 0.0, self._edge(x, self.steps, ctx, noise, tag), belief)

    def clean(self, x0: Tensor, ctx: Site) -> Tensor:
        return hidden(torch.stack([self.coordinates(self.angles(x0, ctx), ctx), torch.full_like(x0, self.final)], -1),
                      ctx)

    def _edge(self, x: Tensor, count: int, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """The flat prior (count 0), or certainty: x itself with the final concentration."""
        m = noise.uniform(f"{tag}/prior") * TURN if count == 0 else x
        return torch.stack([self.coordinates(m, ctx), torch.full_like(x, self.final if count else 0.0)], -1)

    def _polar(self, x: Tensor, total: Tensor, ctx: Site) -> Tensor:
        """A sum of phasors relative to x as (m, c)."""
        angle = x + torch.atan2(total[..., 1], total[..., 0])
        return torch.stack([self.coordinates(angle, ctx), torch.hypot(total[..., 0], total[..., 1])], -1)

    def shown(self, z: Tensor, t: Time, ctx: Site) -> tuple[Tensor, Tensor]:
        sharp = (z[..., 1].clamp(min=1e-7).log() - _FLOOR) / (math.log(self.final) - _FLOOR)
        return z[..., 0], sharp

    def phasor(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        return z[..., 1:] * unit(self.angles(z[..., 0], ctx))

    def gain(self, t: Time) -> Any:
        """steps alpha A(alpha) of the next sighting."""
        count = torch.as_tensor(self.sightings(t)).clamp(max=self.steps - 1)
        m = self._moments(count.device)
        value = self.steps * m.alpha[count] * m.resultant[count]
        return value if isinstance(t, Tensor) else float(value)

    def update(self, z: Tensor, pred: Prediction, t: float, s: float, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """The belief after the sightings between t and s, all of the predicted coordinate."""
        x = self.angles(pred.data.to(torch.float64), ctx)
        gained = self.seen(self.sightings(t), self.sightings(s), noise, tag)
        m = self.angles(z[..., 0].to(torch.float64), ctx) - x
        total = gained + z[..., 1:].to(torch.float64) * unit(m)
        return hidden(self._polar(x, total, ctx), ctx).to(z.dtype)
