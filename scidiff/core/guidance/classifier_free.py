"""Classifier-free guidance: the conditional and the unconditional prediction in one batched call (a wrapper).

    real components        D = D_u + w (D_c - D_u)                       Ho & Salimans 2022, arXiv 2207.12598
    categorical ones       logits l = w l_c + (1 - w) l_u                the geometric mixture p_c^w p_u^(1 - w)
    rescale phi            D <- (phi std(D_c) / std(D) + 1 - phi) D      Lin et al. 2023, arXiv 2305.08891, per sample

All kinds of a Gaussian prediction are affine in one another at given x and t with the same two numbers, so mixing in
the network's own kind is mixing in data. w = 1 is the plain conditional model, w = 0 the unconditional one.

`interval` says where guidance acts (Kynkaanniemi et al. 2024, arXiv 2404.07724): in t (0 data, 1 source), or, with
clock="lambda", in lambda = log(alpha / sigma). Outside, and with w = 1, the batch is called once as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.denoiser import MEMORY, Denoiser, Predictions, Times, time_of
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.path.base import Prediction, Time, spread
from scidiff.core.spec import Context, Site, State, StateSpec

if TYPE_CHECKING:
    from scidiff.core.run import Run

ABSENT = MEMORY + "/unconditional"


class ClassifierFree(Denoiser):
    """Guides `denoiser` towards the conditions of its context with strength `weight`.

    interval: (low, high), both included, on the clock "t" or "lambda". rescale: phi in [0, 1]. spec: only for the clock
    "lambda", where the denoiser does not know it. Time may be a float, [B], or either per component; a time [B] makes
    the interval a choice per sample. Each half of the doubled batch is conditioned on its own past estimate.
    """

    def __init__(self, denoiser: Denoiser, weight: float = 2.0, interval: Sequence[float] = (0.0, 1.0),
                 clock: str = "t", rescale: float = 0.0, spec: StateSpec | None = None) -> None:
        super().__init__()
        if clock not in ("t", "lambda"):
            raise UsageError(f"The clock of guidance is 't' or 'lambda', not {clock!r}.")
        if len(interval) != 2 or not float(interval[0]) < float(interval[1]):
            raise UsageError(f"A guidance interval is [low, high] with low < high, not {list(interval)}.")
        if not 0.0 <= float(rescale) <= 1.0:
            raise UsageError(f"The rescaling of guidance lies in [0, 1], not {rescale}.")
        self.denoiser, self.weight, self.clock, self.rescale = denoiser, float(weight), clock, float(rescale)
        self.low, self.high = float(interval[0]), float(interval[1])
        self.needs_grad = denoiser.needs_grad
        self.self_conditioning = denoiser.self_conditioning
        known = spec if spec is not None else getattr(denoiser, "spec", None)
        self.spec = known if isinstance(known, StateSpec) else None
        if clock == "lambda" and self._lead() is None:
            raise UsageError("Guidance on the clock 'lambda' needs a state with a Gaussian component.", "Use clock=t.")
        self._pair: tuple[Context, Any, Run | None, Context] | None = None

    def _lead(self) -> str | None:
        """The component whose lambda stands for those that have none."""
        return next((n for n, c in (self.spec or {}).items() if hasattr(c.path, "t_of_lambda")), None)

    def strength(self, t: Times, name: str) -> Any:
        """The weight of one component at time t: a float, or [B] for a time [B]."""
        when: Time = time_of(t, name)
        if self.clock == "lambda" and self.spec is not None:
            lead = name if hasattr(self.spec[name].path, "t_of_lambda") else self._lead()
            when = self.spec[lead].path.coefficients(time_of(t, lead)).lam  # type: ignore[index, arg-type, attr-defined]
        if isinstance(when, (int, float)):
            return self.weight if self.low <= when <= self.high else 1.0
        inside = (when >= self.low) & (when <= self.high)
        return torch.where(inside, self.weight, 1.0).to(when.dtype)

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        strength = {n: self.strength(t, n) for n in state}
        if not ctx.cond or all(not isinstance(w, Tensor) and w == 1.0 for w in strength.values()):
            if run is not None:
                run.memory.pop(ABSENT, None)
            return self.denoiser(state, t, ctx, run)
        both = self._doubled(ctx, run)
        self._recall(run)
        twice = {n: torch.cat([x, x]) for n, x in state.items()}
        preds = self.denoiser(twice, _twice(t), both, run)
        self._store(run, ctx.batch)
        return {n: self._mixed(p, strength[n], state[n], time_of(t, n), ctx, n) for n, p in preds.items()}

    def _doubled(self, ctx: Context, run: Run | None) -> Context:
        """The doubled context, made once a run (its masks are kept with it).

        Not once a context: its buffers may be filled anew between two runs, as those of a captured graph are.
        """
        pair = self._pair
        if run is None or pair is None or pair[0] is not ctx or pair[1] is not ctx.cond or pair[2] is not run:
            pair = self._pair = (ctx, ctx.cond, run, ctx.doubled())
        return pair[3]

    def _recall(self, run: Run | None) -> None:
        """Puts the past estimates of both halves where the denoiser looks for them."""
        if run is None or MEMORY not in run.memory:
            return
        with_, without = run.memory[MEMORY], run.memory.get(ABSENT) or run.memory[MEMORY]
        run.memory[MEMORY] = {n: torch.cat([v, without[n]]) for n, v in with_.items()}

    def _store(self, run: Run | None, batch: int) -> None:
        """Splits them again: the conditional half serves plain calls too."""
        if run is not None and MEMORY in run.memory:
            kept = run.memory[MEMORY]
            run.memory[MEMORY] = {n: v[:batch] for n, v in kept.items()}
            run.memory[ABSENT] = {n: v[batch:] for n, v in kept.items()}

    def _mixed(self, pred: Prediction, w: Any, z: Tensor, t: Time, ctx: Context, name: str) -> Prediction:
        conditional, free = pred.value.chunk(2)
        w = spread(w, conditional) if isinstance(w, Tensor) else w
        site = None if pred.site is None else ctx.at(name, pred.site.component)
        if site is not None and site.space.wraps and pred.kind == "data":  # points of a torus, not vectors
            value = site.space.retract(free, w * site.space.log(free, conditional), site.mask)
        else:
            value = free + w * (conditional - free)
        out = Prediction(pred.kind, value, None if site is None else pred.path, z, t, site)
        if self.rescale == 0.0 or pred.kind == "logits":
            return out
        if site is None:
            raise ScidiffError("Rescaled guidance needs predictions that are bound to their path.")
        goal = Prediction(pred.kind, conditional, pred.path, z, t, site).data
        clean = out.data
        ratio = _deviation(goal, site) / _deviation(clean, site).clamp(min=1e-12)
        return out.replace(clean * spread(self.rescale * ratio + 1.0 - self.rescale, clean))


def _twice(t: Times) -> Times:
    if isinstance(t, Mapping):
        return {n: _twice(v) for n, v in t.items()}  # type: ignore[misc]
    return t if isinstance(t, (int, float)) or t.dim() == 0 else torch.cat([t, t])


def _deviation(x: Tensor, site: Site) -> Tensor:
    """Standard deviation over the real entries of each sample, [B]."""
    real = torch.ones_like(x) if site.mask is None else site.mask.expand_as(x).to(x.dtype)
    count = real.flatten(1).sum(1).clamp(min=1.0)
    mean = (x * real).flatten(1).sum(1) / count
    off = (x - spread(mean, x)) * real
    return ((off * off).flatten(1).sum(1) / count).sqrt()
