"""Predictor guidance: a function f(x_t, t) of the noisy state pulls the samples to where it is large (a wrapper).

    real components     score + k grad f                  Dhariwal & Nichol 2021, arXiv 2105.05233
    categorical ones    logits l_j + k df / d[x = j]      Vignac et al. 2023, arXiv 2209.14734; Nisonoff et al. 2024,
                                                          arXiv 2406.01572

For f = log p(y | x_t) and k = 1 the samples follow the law given y. The second line is the first order of the rates
R_j exp(k [f(x with entry = j) - f(x)]), the derivative being taken with respect to the one-hot features: the current
class shifts all logits alike and drops out, and where the classes of an entry enter f linearly the difference is exact.
Tilting the predicted law of the clean class instead of the rate keeps every step a probability whatever its length; for
masked entries both are one. The two entries (i, j) and (j, i) of a pair are one degree of freedom, so their derivatives
add up.

f takes (features [as networks see them], time [B], ctx) and returns [B]; it must have been made for noisy states. For
Gaussian data N(m, s^2), f = w.E[x0 | x_t] guides exactly to N(m + k s^2 w, s^2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.core.path.base import Prediction, Time, spread
from scidiff.core.path.conversion import KINDS, conversion
from scidiff.core.path.gaussian import GaussianPath, fit_to
from scidiff.core.spec import Context, Site, State, StateSpec

if TYPE_CHECKING:
    from scidiff.core.run import Run

Predictor = Callable[[dict[str, Tensor], Tensor, Context], Tensor]


class PredictorGuidance(Denoiser):
    """Guides `denoiser` to large values of `predictor` with strength `weight` (negative: to small ones).

    components: which ones are guided (default: all). interval: times (low, high), both included, between which guidance
    acts. spec: only where the denoiser does not know it. The network itself runs without gradients.
    """

    needs_grad = True

    def __init__(self, denoiser: Denoiser, predictor: Predictor, weight: float = 1.0,
                 interval: Sequence[float] = (0.0, 1.0), components: Sequence[str] | None = None,
                 spec: StateSpec | None = None) -> None:
        super().__init__()
        if len(interval) != 2 or not float(interval[0]) < float(interval[1]):
            raise UsageError(f"A guidance interval is [low, high] with low < high, not {list(interval)}.")
        known = spec if spec is not None else getattr(denoiser, "spec", None)
        if not isinstance(known, StateSpec):
            raise UsageError("Predictor guidance needs to know the state.", "Pass spec=.")
        for name in components or ():
            if name not in known:
                raise UsageError(f"The state has no component {name!r} to guide.", nearest(name, known))
        if isinstance(predictor, nn.Module):
            place = next((p.device for p in denoiser.parameters()), None)
            predictor = predictor.eval() if place is None else predictor.eval().to(place)
        self.denoiser, self.predictor, self.spec = denoiser, predictor, known
        self.weight, self.low, self.high = float(weight), float(interval[0]), float(interval[1])
        self.components = tuple(known if components is None else components)
        self.self_conditioning = denoiser.self_conditioning

    def strength(self, t: Times, name: str) -> Any:
        """The weight of one component at time t: a float, or [B] for a time [B]."""
        when: Time = time_of(t, name)
        if isinstance(when, (int, float)):
            return self.weight if self.low <= when <= self.high else 0.0
        inside = (when >= self.low) & (when <= self.high)
        return torch.where(inside, self.weight, 0.0).to(when.dtype)

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        with torch.no_grad():
            preds = self.denoiser(state, t, ctx, run)
        strength = {n: self.strength(t, n) for n in self.components}
        acting = [n for n, w in strength.items() if isinstance(w, Tensor) or w != 0.0]
        if not acting:
            return preds
        slopes = self.slopes(state, t, ctx, acting)
        out = dict(preds)
        for name in acting:
            site = ctx.at(name, self.spec[name])
            preds[name].bind(self.spec[name].path, state[name], time_of(t, name), site)
            out[name] = _guided(preds[name], strength[name], slopes[name], site)
        return out

    def slopes(self, state: State, t: Times, ctx: Context, names: Sequence[str]) -> dict[str, Tensor]:
        """d sum_b f / d features of some components, per degree of freedom: pairs summed over both of their entries."""
        with torch.enable_grad():
            features = {}
            for name, c in self.spec.items():
                site = ctx.at(name, c)
                features[name] = c.path.features(state[name], time_of(t, name), site).detach()
                features[name].requires_grad_(name in names)
            value = self.predictor(features, ctx.time(time_of(t, next(iter(self.spec)))), ctx)
            if value.shape != (ctx.batch,):
                raise ScidiffError(f"A predictor returns one number a sample, [{ctx.batch}], not {list(value.shape)}.")
            found = torch.autograd.grad(value.sum(), [features[n] for n in names], allow_unused=True)
        out = {}
        for name, slope in zip(names, found, strict=True):
            slope = torch.zeros_like(features[name]) if slope is None else slope
            site = ctx.at(name, self.spec[name])
            if not site.space.categorical:
                slope = site.space.project(slope, site.mask)
                out[name] = 2.0 * slope if site.space.symmetric else slope
            else:
                out[name] = slope + slope.transpose(1, 2) if site.space.symmetric else slope
        return out


def _guided(pred: Prediction, weight: Any, slope: Tensor, site: Site) -> Prediction:
    """The prediction with its score (or its logits) moved by weight times the slope."""
    if pred.kind == "logits":
        move = slope[..., : pred.value.shape[-1]].to(pred.value.dtype)  # a mask is no clean class
        return Prediction("logits", pred.value + fit_to(weight, move) * move, pred.path, pred.z, pred.t, site)
    path, t = pred.path, pred.t
    if not isinstance(path, GaussianPath) or t is None:
        raise ScidiffError(f"A predictor cannot guide a component on a {type(path).__name__}.")
    move = fit_to(weight, slope) * slope
    if site.space.wraps or pred.kind not in KINDS:
        return Prediction("score", pred.score + move, path, pred.z, t, site)
    value = pred.value + _per_score(path, pred.kind, t, pred.value) * move.to(pred.value.dtype)
    return Prediction(pred.kind, value, path, pred.z, t, site)


def _per_score(path: GaussianPath, kind: str, t: Time, like: Tensor) -> Any:
    """How a prediction of `kind` changes with the score; nothing where the state carries no signal."""
    k = path.coefficients(t)
    if isinstance(k.alpha, Tensor):
        silent = k.alpha == 0.0
        q = conversion("score", kind, torch.where(silent, 1.0, k.alpha), k.sigma, k.dalpha, k.dsigma)[1]
        q = torch.as_tensor(q, dtype=torch.float64).expand_as(k.alpha)
        return spread(torch.where(silent, 0.0, q), like)
    return 0.0 if k.alpha == 0.0 else conversion("score", kind, k.alpha, k.sigma, k.dalpha, k.dsigma)[1]
