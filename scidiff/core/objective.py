"""Objectives: what is minimised. The standard one is coupling + time sampler + weighting + the paths' own losses.

    loss = mean_b sum_k w_k weight(t_b) L_k(prediction, x0, x_t, t_b)

With `clean` a component is shown as it is, at its own time 0, to a random share of the samples, whose other components
are then learned given that one (a structure given its composition); its loss is the mean over the other samples.

Any callable `loss(denoiser, (state, ctx), run) -> (loss, metrics)` is an objective. Random numbers come from the run's
counter noise, keyed by (seed, sample id, step), so an interrupted training repeats exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from scidiff.core.denoiser import MEMORY, Denoiser, Predictions, Times, time_of
from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.core.path.base import Corrupted
from scidiff.core.run import Run, hash_text, mix_int
from scidiff.core.spec import Context, State, StateSpec

Batch = tuple[State, Context]


class Objective(Protocol):
    """What training minimises."""

    def loss(self, denoiser: Denoiser, batch: Batch, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar with gradient and detached scalars to log."""
        ...


@dataclass(frozen=True)
class UniformTime:
    """t ~ U(low, high)."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class BetaTime:
    """t = (1 - u)^power: power 2 is Beta(1/2, 1) read from the source side, dense near the data.

    The clean-side emphasis of discrete flows (graph.md 4.3: 2u - u^2 with data at 1) is power 2 here.
    """

    power: float = 2.0

    def __call__(self, u: Tensor) -> Tensor:
        return (1.0 - u) ** self.power


@dataclass(frozen=True)
class LogitNormalTime:
    """t = sigmoid(mean + std n), n ~ N(0, 1) (Esser et al. 2024, arXiv 2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class ModeTime:
    """t = 1 - u - s (cos^2(pi u / 2) - 1 + u) (Esser et al. 2024, arXiv 2403.03206)."""

    scale: float = 1.29

    def __call__(self, u: Tensor) -> Tensor:
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


@dataclass(frozen=True)
class ShiftedTime:
    """t' = a t / (1 + (a - 1) t) on top of another law: a = sqrt(n_new / n_old) for a larger resolution."""

    base: UniformTime | LogitNormalTime | ModeTime
    shift: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        t = self.base(u)
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
class LogNormalSigmaTime:
    """sigma = exp(mean + std n) on the EDM clock (t = sigma / sigma_max is the path's own map)."""

    mean: float = -1.2
    std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __call__(self, u: Tensor) -> Tensor:
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return sigma.clamp(self.sigma_min, self.sigma_max) / self.sigma_max


@dataclass(frozen=True)
class LevelTime:
    """The times of a path that exists at levels only: finest first, with `probabilities` (default: all alike).

    Without `levels` the objective fills in those of its path.
    """

    probabilities: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def of(self, levels: tuple[float, ...]) -> LevelTime:
        """The law on these levels."""
        if self.probabilities and len(self.probabilities) != len(levels):
            raise UsageError(f"{len(self.probabilities)} probabilities do not fit a path of {len(levels)} levels.")
        return replace(self, levels=tuple(levels))

    def __call__(self, u: Tensor) -> Tensor:
        p = torch.tensor(self.probabilities or (1.0,) * len(self.levels), dtype=torch.float64, device=u.device)
        cdf = (p / p.sum()).cumsum(0)
        place = torch.searchsorted(cdf, u.to(torch.float64), right=True).clamp(max=len(self.levels) - 1)
        return torch.tensor(self.levels, dtype=torch.float64, device=u.device)[place]


class StandardObjective:
    """Coupling, one time per sample, and the weighted sum of the components' losses.

    weights: component -> factor (default 1). drop_condition: chance that a sample's conditions are absent (guidance
    without classifier). self_condition: chance that a step sees its own first estimate. stratified: the times of a
    batch cover [0, 1) evenly (lower variance, same law). antithetic: bridges are seen at +z and -z, which keeps the
    gradient's variance finite where gamma' diverges (two network calls a step). clean: component -> chance that a
    sample shows it clean; the denoiser then sees a time for each component (`separate_times`).
    """

    def __init__(self, spec: StateSpec, time: object | None = None, weights: Mapping[str, float] | None = None,
                 coupling: object | None = None, drop_condition: float = 0.0, self_condition: float = 0.5,
                 stratified: bool = True, antithetic: bool = False, clean: Mapping[str, float] | None = None) -> None:
        unknown = set(weights or {}) - set(spec)
        if unknown:
            raise ScidiffError(f"The objective weighs unknown components: {', '.join(sorted(unknown))}.")
        self.clean = {n: float(share) for n, share in (clean or {}).items() if share}
        for name, share in self.clean.items():
            if name not in spec:
                raise UsageError(f"The objective shows an unknown component {name!r} clean.", nearest(name, spec))
            if not 0.0 < share <= 1.0:
                raise UsageError(f"The chance that {name!r} is shown clean lies in [0, 1], unlike {share}.")
        levels = next((c.path.levels for c in spec.values() if c.path.levels is not None), None)
        if levels is not None:
            time = LevelTime() if time is None else time
            if not isinstance(time, LevelTime):
                raise UsageError("A path of levels is trained at its levels.", "Set objective.time to LevelTime.")
            time = time.of(levels)
        if coupling is not None and any(getattr(c.path, "centred", False) for c in spec.values()):
            raise UsageError("A coupling exchanges sources between samples, but a centred path binds each source to "
                             "its own sample.", "Use no coupling.")
        self.antithetic = antithetic
        self.spec, self.time, self.coupling = spec, time or UniformTime(), coupling
        self.weights = {n: float((weights or {}).get(n, 1.0)) for n in spec}
        self.drop_condition, self.self_condition, self.stratified = drop_condition, self_condition, stratified

    def times(self, ctx: Context, run: Run) -> Tensor:
        """One time per sample, float64 [B]."""
        u = run.noise("", "time", (1,), ctx, "uniform")[:, 0]
        if self.stratified:
            offset = mix_int(hash_text("strata") ^ mix_int(run.seed) ^ run.step) / 2.0**64
            place = torch.arange(ctx.batch, device=u.device, dtype=torch.float64)
            u = ((place + offset * ctx.batch + u) % ctx.batch) / ctx.batch
        t = self.time(u.clamp(1e-7, 1 - 1e-7))  # type: ignore[operator]
        low = max(c.path.bounds[0] for c in self.spec.values())
        high = min(c.path.bounds[1] for c in self.spec.values())
        return t.clamp(low, high)

    def own_times(self, t: Tensor, ctx: Context, run: Run) -> Times:
        """t [B], or one time [B] a component where some are shown clean, at time 0."""
        if not self.clean:
            return t
        out: dict[str, Tensor] = dict.fromkeys(self.spec, t)
        for name, share in self.clean.items():
            shown = run.noise("", f"clean/{name}", (1,), ctx, "uniform")[:, 0] < share
            out[name] = torch.where(shown, torch.zeros_like(t), t)
        return out

    def corrupt(self, state: State, t: Times, ctx: Context, run: Run) -> dict[str, Corrupted]:
        """Every component at its time."""
        out = {}
        for name, c in self.spec.items():
            site = ctx.at(name, c)
            noise = run.handle(site)
            x1 = None
            if self.coupling is not None and not c.space.categorical:
                x1 = self.coupling(state[name], c.path.source(site, noise), ctx)  # type: ignore[operator]
            made = c.path.corrupt(state[name], time_of(t, name), site, noise, x1)
            if name in self.clean:
                whole = c.path.clean(state[name], site).to(made.z.dtype)
                shown = (torch.as_tensor(time_of(t, name)) <= 0.0).view(-1, *[1] * (whole.dim() - 1))
                made = made._replace(z=torch.where(shown, whole, made.z))
            out[name] = made
        return out

    def loss(self, denoiser: Denoiser, batch: Batch, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        state, ctx = batch
        if self.drop_condition > 0 and ctx.cond:
            keep = run.noise("", "drop", (1,), ctx, "uniform")[:, 0] >= self.drop_condition
            ctx = ctx.take(torch.arange(ctx.batch, device=ctx.device))
            ctx.cond = {k: (v, p & keep) for k, (v, p) in ctx.cond.items()}
        if self.clean and not getattr(denoiser, "separate_times", True):
            raise UsageError("Components that are shown clean need times of their own.",
                             "Set process.denoiser.separate_times=true, or objective.clean={}.")
        t = self.own_times(self.times(ctx, run), ctx, run)
        noised = self.corrupt(state, t, ctx, run)
        z = {name: c.z for name, c in noised.items()}
        run.memory.pop(MEMORY, None)
        coin = mix_int(hash_text("self-condition") ^ mix_int(run.seed) ^ run.step) / 2.0**64
        if denoiser.self_conditioning and coin < self.self_condition:
            with torch.no_grad():
                denoiser(z, t, ctx, run)
        preds = denoiser(z, t, ctx, run)
        run.memory.pop(MEMORY, None)
        each = self._losses(preds, state, noised, t, ctx)
        if self.antithetic:
            mirrored = {n: self.spec[n].path.mirror(c, time_of(t, n)) if hasattr(self.spec[n].path, "mirror") else c  # type: ignore[attr-defined]
                        for n, c in noised.items()}
            other = self._losses(denoiser({n: c.z for n, c in mirrored.items()}, t, ctx, run), state, mirrored, t, ctx)
            run.memory.pop(MEMORY, None)
            each = {n: 0.5 * (v + other[n]) for n, v in each.items()}
        total = torch.zeros((), device=ctx.device)
        for name, value in each.items():
            total = total + self.weights[name] * value
        more = {} if torch.is_grad_enabled() else self.report(preds, state, t, ctx)
        return total, {"loss": total.detach(), **{n: v.detach() for n, v in each.items()}, **more}

    def report(self, preds: Predictions, state: State, t: Times, ctx: Context) -> dict[str, Tensor]:
        """Further figures for validation, where no gradient is taken."""
        return {}

    def _losses(self, preds: Predictions, state: State, noised: dict[str, Corrupted], t: Times,
                ctx: Context) -> dict[str, Tensor]:
        """Mean loss of every component."""
        return {name: self._mean(name, c.path.loss(preds[name], state[name], noised[name], time_of(t, name),
                                                   ctx.at(name, c)), t) for name, c in self.spec.items()}

    def _mean(self, name: str, loss: Tensor, t: Times) -> Tensor:
        """The mean of a loss [B] over the samples that do not show the component clean (0 where all do)."""
        if name not in self.clean:
            return loss.mean()
        hidden = (torch.as_tensor(time_of(t, name)) > 0.0).to(loss.dtype)
        return (loss * hidden).sum() / hidden.sum().clamp(min=1.0)
