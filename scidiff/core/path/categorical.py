"""Categorical paths: discrete flow and discrete diffusion towards a fixed law q.

    p(x_t | x0) = (1 - m(t)) delta(x_t, x0) + m(t) q(x_t),      m(0) = 0, m(1) = 1, t = 0 data, t = 1 source

`MarginalPath` (q = class frequencies of the data), `UniformPath` (q = 1/K) and `AbsorbingPath` (q = an extra class K,
the mask) differ in q alone. States are int64 class indices [B, ...]; networks return logits [B, ..., K]; every draw is
by inverse CDF in float64, because float32 uniforms truncate rare events.

Kernels for a step t -> s < t, with p = softmax(logits) the predicted law of x0 and c the current class:
  posterior  Bayes: x_s ~ sum_{x0} p(x0) p(x_s | x_t = c, x0) (Austin et al. 2021, arXiv 2107.03006)
  jump       mixture velocity: P_j = a p_j + (1 - a) delta(j, c), a = 1 - m_s/m_t (raised by re-noising), then a share
             `row.c` of the entries is redrawn from q. No division by a small probability. `row.b`, where given, holds
             the inverse temperature of p.
  rate       one draw x1 ~ p, then the closed-form rate towards j (Campbell et al. 2024, arXiv 2402.04997; Qin et al.
             2024, arXiv 2410.04263): relu(dp_j - dp_c)/(Z p_c) + eta p_j + omega [j = x1 != c]/(Z p_c)
  unmask     first hitting: one masked entry, chosen uniformly, takes a draw (Zheng et al. 2024, arXiv 2409.02908)
  renoise    a share `row.c` of the entries is redrawn from q
  mode       the most probable class (the usual last step)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.base import Corrupted, Path, Prediction, Time

if TYPE_CHECKING:
    from scidiff.core.plan import Row
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """Class indices [...] by inverse CDF in float64: probs [..., K] (any positive total), u [...] in (0, 1)."""
    cdf = probs.to(torch.float64).cumsum(-1)
    return (u.unsqueeze(-1) * cdf[..., -1:] >= cdf[..., :-1]).sum(-1)


@lru_cache(maxsize=64)
def _law(q: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(q, dtype=torch.float64, device=device)


def _at(t: Time, like: Tensor) -> Any:
    """A time-like quantity that broadcasts against a state: a float stays a float, [B] becomes [B, 1, ...]."""
    if not isinstance(t, Tensor):
        return t
    return torch.as_tensor(t, dtype=torch.float64).view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class CategoricalPath(Path):
    """Common mathematics; `schedule` is "linear" (m = t) or "cosine" (m = 1 - cos^2(pi t / 2))."""

    kernels: ClassVar[frozenset[str]] = frozenset({"posterior", "jump", "rate", "renoise", "mode"})
    kinds: ClassVar[frozenset[str]] = frozenset({"logits"})
    default_kind: ClassVar[str] = "logits"
    absorbing: ClassVar[bool] = False

    schedule: str = "linear"

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine"):
            raise ScidiffError(f"A categorical schedule is 'linear' or 'cosine', not {self.schedule!r}.")

    def law(self, ctx: Site) -> Tensor:
        """q as float64 [K] (or [K + 1] where an extra class absorbs)."""
        raise ScidiffError(f"{type(self).__name__} has no source law.")

    def classes(self, space: Space) -> int:
        """How many values a state may take."""
        return space.classes + (1 if self.absorbing else 0)  # type: ignore[attr-defined]

    def validate(self, space: Space) -> None:
        if not space.categorical:
            raise ScidiffError(f"{type(self).__name__} moves categories, not a {type(space).__name__} component.")

    def mass(self, t: Time) -> Any:
        """m(t): the share of entries that follow q."""
        if self.schedule == "linear":
            return t
        half = torch.as_tensor(t, dtype=torch.float64) * (torch.pi / 2)
        m = torch.sin(half) ** 2
        return m if isinstance(t, Tensor) else float(m)

    def mass_rate(self, t: Time) -> Any:
        """m'(t)."""
        if self.schedule == "linear":
            return torch.ones_like(t) if isinstance(t, Tensor) else 1.0
        r = torch.sin(torch.as_tensor(t, dtype=torch.float64) * torch.pi) * (torch.pi / 2)
        return r if isinstance(t, Tensor) else float(r)

    def _clean(self, x: Tensor, ctx: Site) -> Tensor:
        """Padding (and the diagonal of pairs) back to class 0."""
        if ctx.mask is not None:
            x = x * ctx.mask.to(x.dtype)
        if ctx.space.symmetric:
            x = x - torch.diag_embed(x.diagonal(dim1=1, dim2=2)) if x.dim() == 3 else x
        return x

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        given = ctx.given_source
        return given if given is not None else self._clean(self._from_law(ctx, noise.uniform("source")), ctx)

    def _from_law(self, ctx: Site, u: Tensor) -> Tensor:
        q = self.law(ctx)
        return draw(q.expand(*u.shape, q.shape[0]), u)

    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        x1 = self._from_law(ctx, noise.uniform("source")) if x1 is None else x1
        moved = noise.uniform("corrupt") < _at(self.mass(t), x0)
        return Corrupted(self._clean(torch.where(moved, x1, x0), ctx), None, x1)

    def features(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """One-hot classes [B, ..., K], zero on padding."""
        hot = F.one_hot(z, self.classes(ctx.space)).to(torch.float32)
        return hot if ctx.mask is None else hot * ctx.mask.unsqueeze(-1).to(hot.dtype)

    def read(self, raw: Tensor, z: Tensor, t: Time, ctx: Site, kind: str) -> Prediction:
        self.accept(kind)
        return Prediction("logits", raw, self, z, t, ctx)

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Cross-entropy of the clean classes (nats), mean over the independent real entries of each sample."""
        logits = pred.logits.float()
        nats = F.cross_entropy(logits.flatten(0, -2), x0.flatten(), reduction="none").view(x0.shape)
        weight = ctx.entries()
        return (nats * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)

    def apply(self, row: Row, base: Tensor, pred: Prediction | None, ctx: Site, noise: Noise) -> Tensor:
        if row.kernel == "renoise":
            return self._clean(self._redraw(base, row.c, ctx, noise, row.tag), ctx)
        if pred is None:
            raise ScidiffError(f"The {row.kernel!r} kernel needs a prediction.")
        if row.kernel == "mode":
            return self._clean(pred.logits.argmax(-1), ctx)
        if row.kernel == "posterior":
            return self.posterior(base, pred, row.t, row.s, ctx, noise, row.tag)
        if row.kernel == "jump":
            probs = torch.softmax(pred.logits * row.b[0], -1) if row.b else pred.probs
            x = self._mixture(base, probs, row.a, noise.uniform(row.tag))
            return self._clean(self._redraw(x, row.c, ctx, noise, row.tag + "/redraw"), ctx)
        if row.kernel == "rate":
            return self._rate(base, pred, row, ctx, noise)
        return super().apply(row, base, pred, ctx, noise)

    def _mixture(self, z: Tensor, probs: Tensor, a: Time, u: Tensor) -> Tensor:
        """With probability a a draw from probs, else z: one uniform serves both decisions."""
        a = _at(a, z)
        hit = u < a
        return torch.where(hit, draw(probs, (u / a).clamp(max=1.0) if isinstance(a, Tensor) else u / max(a, 1e-300)), z)

    def _redraw(self, z: Tensor, share: float, ctx: Site, noise: Noise, tag: str) -> Tensor:
        if not isinstance(share, Tensor) and share <= 0.0:
            return z
        u = noise.uniform(tag)
        return torch.where(u < share, self._from_law(ctx, (u / share).clamp(max=1.0)), z)

    def posterior(self, z: Tensor, pred: Prediction, t: Time, s: Time, ctx: Site, noise: Noise,
                  tag: str = "step") -> Tensor:
        """x_s ~ p(x_s | x_t) by Bayes, the clean classes averaged over the prediction."""
        return self._clean(draw(self.transition(z, pred.probs, t, s, ctx), noise.uniform(tag)), ctx)

    def transition(self, z: Tensor, probs: Tensor, t: Time, s: Time, ctx: Site) -> Tensor:
        """p(x_s = j | x_t = z) [..., K], float64, with x0 averaged over `probs` [..., K]."""
        q = self.law(ctx)
        mt, ms = _at(self.mass(t), probs), _at(self.mass(s), probs)
        here = F.one_hot(z, q.shape[0]).to(torch.float64)
        p0 = F.pad(probs.to(torch.float64), (0, q.shape[0] - probs.shape[-1]))
        q_here = q[z].unsqueeze(-1)
        evidence = (1 - mt) * here + mt * q_here  # p(x_t = z | x0) for every x0
        w = torch.where(evidence > 0, p0 / evidence.clamp(min=1e-300), torch.zeros_like(p0))
        keep = (1 - mt) / (1 - ms)
        out = (keep * here + (1 - keep) * q_here) * ((1 - ms) * w + ms * q * w.sum(-1, keepdim=True))
        total = out.sum(-1, keepdim=True)
        return torch.where(total > 0, out / total.clamp(min=1e-300), here)

    def _rate(self, z: Tensor, pred: Prediction, row: Row, ctx: Site, noise: Noise) -> Tensor:
        eta, omega = row.b
        q = self.law(ctx)
        k = q.shape[0]
        x1 = draw(pred.probs, noise.uniform(row.tag + "/x1"))
        end, here = F.one_hot(x1, k).to(torch.float64), F.one_hot(z, k).to(torch.float64)
        m, dm = _at(self.mass(row.t), end), _at(self.mass_rate(row.t), end)
        p = (1 - m) * end + m * q
        p_here = (p * here).sum(-1, keepdim=True)
        slope = dm * (end - q)
        slope_here = (slope * here).sum(-1, keepdim=True)
        z_support = (p > 0).sum(-1, keepdim=True)
        scale = torch.where(p_here > 0, 1 / (z_support * p_here).clamp(min=1e-300), torch.zeros_like(p_here))
        differs = (x1 != z).unsqueeze(-1)
        rate = torch.where(p > 0, (slope - slope_here).clamp(min=0) * scale, torch.zeros_like(p))
        rate = rate + eta * p + omega * end * differs * scale
        leave = rate * (1 - here) * row.a
        total = leave.sum(-1, keepdim=True)
        leave = leave / total.clamp(min=1.0)
        stay = (1 - total).clamp(min=0.0)
        return self._clean(draw(leave + stay * here, noise.uniform(row.tag)), ctx)


@dataclass(frozen=True)
class UniformPath(CategoricalPath):
    """q = 1/K for every class."""

    def law(self, ctx: Site) -> Tensor:
        k = ctx.space.classes  # type: ignore[attr-defined]
        return _law((1.0 / k,) * k, ctx.ctx.device)


@dataclass(frozen=True)
class MarginalPath(CategoricalPath):
    """q = class frequencies of the training data (Vignac et al. 2023, arXiv 2209.14734); filled in by `fit`."""

    marginal: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "marginal", tuple(float(x) for x in self.marginal))
        if self.marginal and (min(self.marginal) < 0 or abs(sum(self.marginal) - 1) > 1e-5):
            raise ScidiffError("The marginal of a categorical path must be a probability vector.")

    def fit(self, statistics: Any) -> MarginalPath:
        """The path with the marginal set from class frequencies, unless it was given."""
        if self.marginal:
            return self
        total = float(sum(statistics))
        return replace(self, marginal=tuple(float(x) / total for x in statistics))

    def law(self, ctx: Site) -> Tensor:
        if len(self.marginal) != ctx.space.classes:  # type: ignore[attr-defined]
            raise ScidiffError(f"Component {ctx.name!r} has {ctx.space.classes} classes but its marginal path "  # type: ignore[attr-defined]
                               f"has {len(self.marginal)}; the path is filled in by the data's statistics.")
        return _law(self.marginal, ctx.ctx.device)


@dataclass(frozen=True)
class AbsorbingPath(CategoricalPath):
    """q = the mask, an extra class with index K (masked diffusion; Shi et al. 2024, arXiv 2406.04329)."""

    kernels: ClassVar[frozenset[str]] = CategoricalPath.kernels | {"unmask"}
    absorbing: ClassVar[bool] = True

    weighted: bool = False  # ELBO weight m'/m on masked entries instead of the plain mean

    def law(self, ctx: Site) -> Tensor:
        k = ctx.space.classes  # type: ignore[attr-defined]
        return _law((0.0,) * k + (1.0,), ctx.ctx.device)

    def masked(self, z: Tensor, ctx: Site) -> Tensor:
        """Boolean: independent real entries that are still masked."""
        return (z == ctx.space.classes) & (ctx.entries() > 0)  # type: ignore[attr-defined]

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Cross-entropy over masked entries; `weighted` gives the ELBO in nats per sample."""
        nats = F.cross_entropy(pred.logits.float().flatten(0, -2), x0.flatten(), reduction="none").view(x0.shape)
        where = self.masked(noised.z, ctx).to(nats.dtype)
        total = (nats * where).flatten(1).sum(1)
        if self.weighted:
            ratio = self.mass_rate(t) / self.mass(t)
            return total * (ratio.to(total.dtype) if isinstance(ratio, Tensor) else ratio)
        return total / where.flatten(1).sum(1).clamp(min=1.0)

    def _mixture(self, z: Tensor, probs: Tensor, a: Time, u: Tensor) -> Tensor:
        moved = super()._mixture(z, probs, a, u)
        return torch.where(z == probs.shape[-1], moved, z)

    def apply(self, row: Row, base: Tensor, pred: Prediction | None, ctx: Site, noise: Noise) -> Tensor:
        if row.kernel == "mode" and pred is not None:
            x = pred.logits.argmax(-1)
            return self._clean(torch.where(base == pred.logits.shape[-1], x, base), ctx)
        if row.kernel == "unmask" and pred is not None:
            return self._unmask(base, pred, ctx, noise, row.tag)
        return super().apply(row, base, pred, ctx, noise)

    def _unmask(self, z: Tensor, pred: Prediction, ctx: Site, noise: Noise, tag: str) -> Tensor:
        open_ = self.masked(z, ctx)
        order = torch.where(open_, noise.uniform(tag + "/site"), torch.full(z.shape, 2.0, dtype=torch.float64,
                                                                           device=z.device))
        first = F.one_hot(order.flatten(1).argmin(1), order[0].numel()).view(z.shape).bool() & open_
        if ctx.space.symmetric:
            first = first | first.transpose(1, 2)
        return self._clean(torch.where(first, draw(pred.probs, noise.uniform(tag)), z), ctx)


