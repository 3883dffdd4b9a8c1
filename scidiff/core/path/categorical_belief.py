"""A Bayesian flow over K classes: the belief is a softmax of accumulated evidence.

    beta(t) = beta_1 (1 - t)^2,   z ~ N(beta (K e_x - 1), beta K I),   theta = softmax(z),   z = 0 at the prior (t = 1)
    a sighting of accuracy a      z <- z + N(a (K e_x - 1), a K I)

States are evidence z [B, ..., K]; networks see theta and return logits of p = p(x | z). Losses, in nats:

    steps = 0     K beta_1 (1 - t) |e_x - p|^2                                            (continuous time)
    steps = n     n E_xi [-log sum_k p_k exp(-a K [k != x] - sqrt(a K) (xi_x - xi_k))],   a = beta_1 (2 i - 1) / n^2,
                  i = n (1 - t) + 1, xi ~ N(0, I): log of sender over receiver, by `draws` of xi

A clean entry (t = 0) is a class index, or in a batch of mixed times the evidence `CERTAIN` for its class, whose softmax
is exactly one-hot. Source: Graves et al. 2023, arXiv 2308.07037, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.base import Corrupted, Prediction, Time
from scidiff.core.path.belief import Belief, block, hidden, per_sample, uncoupled
from scidiff.core.path.categorical import draw

if TYPE_CHECKING:
    from scidiff.core.run import Noise
    from scidiff.core.space import Space
    from scidiff.core.spec import Site

CERTAIN = 1e4


@dataclass(frozen=True)
class CategoricalBelief(Belief):
    """beta_1: accuracy of the last belief. steps: sightings of the discrete-time loss, 0 for continuous time."""

    kinds: ClassVar[frozenset[str]] = frozenset({"logits"})
    default_kind: ClassVar[str] = "logits"

    beta_1: float = 0.5
    steps: int = 0
    draws: int = 1

    def __post_init__(self) -> None:
        if not self.beta_1 > 0.0:
            raise ScidiffError(f"The beta_1 of a Bayesian flow over classes is positive, unlike {self.beta_1}.")
        if self.steps < 0 or self.draws < 1:
            raise ScidiffError("A Bayesian flow over classes needs steps >= 0 (0: continuous time) and draws >= 1.")

    def validate(self, space: Space) -> None:
        if not space.categorical:
            raise ScidiffError(f"{type(self).__name__} moves categories, not a {type(space).__name__} component.")

    def accuracy(self, t: Time) -> Any:
        """beta(t)."""
        return self.beta_1 * (1.0 - t) ** 2

    def source(self, ctx: Site, noise: Noise) -> Tensor:
        """No evidence at all."""
        if ctx.given_source is not None:
            return ctx.given_source
        k = ctx.space.classes  # type: ignore[attr-defined]
        return torch.zeros(ctx.batch, *ctx.dims, k, dtype=noise.dtype, device=ctx.ctx.device)

    def sighted(self, p: Tensor, accuracy: Any, ctx: Site, noise: Noise, tag: str) -> Tensor:
        """Evidence of sightings of total accuracy [B, 1, ...] or a float; p [..., K] is one-hot or a law."""
        k = p.shape[-1]
        p = p.to(torch.float64)
        spread = (accuracy * k) ** 0.5
        return accuracy * (k * p - 1.0) + spread * block(noise, tag, (k,))

    def _one_hot(self, x: Tensor, ctx: Site) -> Tensor:
        return F.one_hot(x.long(), ctx.space.classes)  # type: ignore[attr-defined]

    def corrupt(self, x0: Tensor, t: Time, ctx: Site, noise: Noise, x1: Tensor | None = None) -> Corrupted:
        """Evidence at t; `eps` the noise of the discrete-time loss [B, ..., K, draws]."""
        uncoupled(x1)
        hot = self._one_hot(x0, ctx)
        z = self.sighted(hot, per_sample(self.accuracy(t), hot), ctx, noise, "corrupt")
        if isinstance(t, Tensor):
            z = torch.where(per_sample(t, hot) <= 0.0, CERTAIN * hot, z)
        elif t <= 0.0:
            z = CERTAIN * hot.to(torch.float64)
        eps = block(noise, "sender", (hot.shape[-1], self.draws)).to(noise.dtype) if self.steps else None
        return Corrupted(hidden(z, ctx).to(noise.dtype), eps)

    def clean(self, x0: Tensor, ctx: Site) -> Tensor:
        return hidden(CERTAIN * self._one_hot(x0, ctx), ctx)

    def features(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """The probabilities of the belief [B, ..., K], one-hot for classes, zero on padding."""
        theta = torch.softmax(z, -1) if z.is_floating_point() else self._one_hot(z, ctx).to(torch.float32)
        return hidden(theta, ctx)

    def read(self, raw: Tensor, z: Tensor, t: Time, ctx: Site, kind: str) -> Prediction:
        self.accept(kind)
        return Prediction("logits", raw, self, z, t, ctx)

    def loss(self, pred: Prediction, x0: Tensor, noised: Corrupted, t: Time, ctx: Site) -> Tensor:
        """Nats per independent real entry, [B]."""
        hot = self._one_hot(x0, ctx).to(pred.logits.dtype)
        weight = ctx.entries().to(hot.dtype)
        each = self._discrete(pred, hot, noised, t) if self.steps else self._continuous(pred, hot, t)
        return (each * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)

    def _continuous(self, pred: Prediction, hot: Tensor, t: Time) -> Tensor:
        rate = per_sample(hot.shape[-1] * self.beta_1 * (1.0 - t), hot[..., 0])
        return ((hot - pred.probs) ** 2).sum(-1) * (rate.to(hot.dtype) if isinstance(rate, Tensor) else rate)

    def _discrete(self, pred: Prediction, hot: Tensor, noised: Corrupted, t: Time) -> Tensor:
        if noised.eps is None:
            raise ScidiffError("The discrete-time loss of a belief needs the noise that `corrupt` returned.")
        n, k = self.steps, hot.shape[-1]
        i = torch.as_tensor(n * (1.0 - t) + 1.0, dtype=torch.float64, device=hot.device).clamp(max=float(n))
        step = per_sample(self.beta_1 * (2.0 * i - 1.0) / n**2 * k, noised.eps).to(hot.dtype)
        xi, true = noised.eps.to(hot.dtype), hot.unsqueeze(-1)
        gap = (xi * true).sum(-2, keepdim=True) - xi
        terms = torch.log_softmax(pred.logits, -1).unsqueeze(-1) - step * (1.0 - true) - step.sqrt() * gap
        return -n * torch.logsumexp(terms, -2).mean(-1)

    def _drawn(self, pred: Prediction, noise: Noise, tag: str) -> Tensor:
        return draw(pred.probs, noise.uniform(tag + "/class"))

    def redraw(self, pred: Prediction, s: float, mean: bool, ctx: Site, noise: Noise, tag: str) -> Tensor:
        p = pred.probs if mean else self._one_hot(self._drawn(pred, noise, tag), ctx)
        return hidden(self.sighted(p, self.accuracy(s), ctx, noise, tag), ctx).to(noise.dtype)

    def update(self, z: Tensor, pred: Prediction, t: float, s: float, ctx: Site, noise: Noise, tag: str) -> Tensor:
        hot = self._one_hot(self._drawn(pred, noise, tag), ctx)
        gained = self.sighted(hot, self.accuracy(s) - self.accuracy(t), ctx, noise, tag)
        return hidden(z + gained.to(z.dtype), ctx)

    def finish(self, pred: Prediction, sample: bool, ctx: Site, noise: Noise, tag: str) -> Tensor:
        x = hidden(self._drawn(pred, noise, tag) if sample else pred.logits.argmax(-1), ctx)
        return x - torch.diag_embed(x.diagonal(dim1=1, dim2=2)) if ctx.space.symmetric and x.dim() == 3 else x
