"""Which refinement levels pay: measured on validation states, never assumed.

Level k leaves an error e_k = sigma_k rms(v_hat - v) when it is shown the truth under noise sigma_k; a level that is
only half trained overwrites a good first guess. So levels are admitted from the coarsest on, each only if the
chain with it has a lower one-step error than the chain without it, and the whole selection only if it correlates
with the truth at least as long as the first call alone.

Noise that a trained level removes again leaves little spread. One number, the gain of the fresh noise, is fitted so
that on validation trajectories the spread of an ensemble equals its error at a lead of 20 time units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.path import LevelPath
from scidiff.core.run import Run
from scidiff.core.spec import Context
from scidiff.domains.pde.codec import PREVIOUS
from scidiff.domains.pde.ensemble import spread_skill
from scidiff.domains.pde.reference import developed, future
from scidiff.domains.pde.rollout import Stepper, rolled_out
from scidiff.domains.pde.skill import correlations, high_correlation_time

if TYPE_CHECKING:
    from scidiff.core.denoiser import Denoiser
    from scidiff.core.spec import StateSpec
    from scidiff.domains.model import Model
    from scidiff.domains.pde import PdeDomain
    from scidiff.domains.pde.codec import Transition

GAINS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
MakeStepper = Callable[[Sequence[int]], Stepper]
SEED, HORIZON, LEAD = 20_001, 80, 20.0
"""Seed of the validation states (no bank of trajectories uses it), intervals in one of their rollouts, and the time at
which the spread of an ensemble is calibrated."""


@dataclass(frozen=True)
class LevelRow:
    """sigma of a level, rms error of the raw (angular) prediction and of the data estimate, in units of the target."""

    level: int
    sigma: float
    rms_v: float
    error: float


@dataclass(frozen=True)
class Selection:
    """The levels to visit; one-step mean squared errors (scaled units) and correlation times of the choices tried."""

    levels: tuple[int, ...]
    errors: dict[tuple[int, ...], float]
    times: dict[tuple[int, ...], float]


def by_level(spec: StateSpec, denoiser: Denoiser, transition: Transition, previous: Tensor, following: Tensor,
             seed: int = 0) -> list[LevelRow]:
    """The diagnostics of every level on transitions [B, H, C, *space] -> [B, C, *space], scaled units; finest first."""
    name, component = next(iter(spec.items()))
    path = component.path
    if not isinstance(path, LevelPath):
        return []
    yes = torch.ones(len(previous), dtype=torch.bool)
    ctx = Context(torch.arange(len(previous)), cond={PREVIOUS: (transition.seen(previous), yes)})
    site, y = ctx.at(name, component), transition.encode(previous, following)

    @torch.no_grad()
    def row(level: int, t: float) -> LevelRow:
        noised = path.corrupt(y, t, site, Run(seed, level).handle(site))
        pred = denoiser({name: noised.z}, t, ctx)[name]
        raw = pred.angular - path.target("angular", y, noised, t, site)
        return LevelRow(level, path.stds[level], float(raw.pow(2).mean().sqrt()),
                        float((pred.data - y).pow(2).mean().sqrt()))

    return [row(level, t) for level, t in enumerate(path.levels)]


def one_step_error(stepper: Stepper, frames: Tensor, places: int = 8, seed: int = 0) -> float:
    """Mean squared error of one step from at most `places` moments of trajectories [B, F, C, *space], scaled units."""
    history, total = stepper.transition.history, []
    starts = range(0, frames.shape[1] - history, -(-(frames.shape[1] - history) // places))
    for start in starts:
        guess = stepper(frames[:, start:start + history], torch.arange(len(frames)), seed, 1 + start)
        total.append(float((guess - frames[:, start + history]).double().pow(2).mean()))
    return sum(total) / len(total)


def select_levels(make: MakeStepper, count: int, frames: Tensor, interval: float, threshold: float = 0.8) -> Selection:
    """Levels of a path of `count` levels, chosen on validation trajectories [B, F, C, *space] in scaled units."""
    first = (count - 1,)
    chosen, errors = first, {first: one_step_error(make(first), frames)}
    for level in range(count - 2, -1, -1):
        longer = (level, *chosen)
        errors[longer] = one_step_error(make(longer), frames)
        if errors[longer] < errors[chosen]:
            chosen = longer
    times = {}
    for levels in dict.fromkeys((first, chosen)):
        stepper = make(levels)
        start = stepper.transition.history
        out, _ = rolled_out(stepper, frames[:, :start], frames.shape[1] - start)
        corr = correlations(out.nan_to_num(0.0), frames[:, start:])
        times[levels] = high_correlation_time(corr, interval, threshold, draws=1).own.value
    return Selection(chosen if times[chosen] >= times[first] else first, errors, times)


def noise_gain(make: Callable[[float], Stepper], frames: Tensor, interval: float, lead: float = LEAD, members: int = 8,
               gains: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0)) -> tuple[float, dict[float, float]]:
    """The gain at which spread / skill is 1 at time `lead`, and the ratio at every gain that was tried.

    `make` gives the stepper of a gain; frames [T, F, C, *space] in scaled units. Between the gains the logarithm of the
    ratio is taken as linear in that of the gain; the nearest end where the ratio never crosses 1. No larger gain is
    tried once a rollout is not finite.
    """
    start, steps = make(1.0).transition.history, max(round(lead / interval), 1)
    truth, ratios = frames[:, start:start + steps], {}
    for gain in gains:
        out, _ = rolled_out(make(gain), frames[:, :start], truth.shape[1], members=members)
        ratio = float(spread_skill(out, truth).ratio[-1])
        if not math.isfinite(ratio):
            break
        ratios[gain] = ratio
        if ratio >= 1.0:
            break
    if not ratios:
        return 1.0, ratios
    known = [(math.log(g), math.log(max(r, 1e-12))) for g, r in ratios.items()]
    if known[0][1] >= 0.0 or known[-1][1] < 0.0:
        return math.exp((known[0] if known[0][1] >= 0.0 else known[-1])[0]), ratios
    (x0, y0), (x1, y1) = known[-2:]
    return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0)), ratios


def settle(domain: PdeDomain, model: Model, trajectories: int = 64) -> tuple[dict[str, Any], str]:
    """The solver of a refiner with the levels that pay and a calibrated spread, and tables for its card.

    Levels that the solver's config names are kept as they are: an ensemble needs one level whose noise makes its
    members differ, whether it pays for a single forecast or not. Nothing for other models.
    """
    path = next(iter(model.spec.values())).path
    if not isinstance(path, LevelPath) or len(path.stds) < 2 or domain.equation is None:
        return {}, ""
    solver = dict(model.config["solver"])
    if domain.joint or model.conditions or not str(solver.get("_target_")).endswith(".Fixed"):
        return {}, ""  # what would have to be clamped, told or left out is not known here
    count = trajectories if len(domain.shape) == 1 else max(trajectories // 8, 4)
    first = developed(domain, torch.arange(count), SEED)
    frames = domain.scaling.apply(torch.cat([first, future(domain, first[:, -1], HORIZON)], 1)).float()

    def make(levels: Sequence[int], gain: float | None = None) -> Stepper:
        changed = {"levels": list(levels), **({} if gain is None else {"method": {"gain": gain}})}
        return Stepper(model.drawing(changed).sampler, domain.transition, len(domain.fields), band=domain.bandlimit,
                       conserve=domain.conserve)

    interval = float(domain.interval or 1.0)
    rows = by_level(model.spec, model.denoiser, domain.transition, frames[:, :domain.history],
                    frames[:, domain.history])
    found = select_levels(make, len(path.stds), frames, interval)
    lines = [f"## Levels, on {count} validation trajectories", "",
             "| level | sigma | rms error of v | error e_k (units of the target) |", "|---|---|---|---|",
             *(f"| {r.level} | {r.sigma:.3g} | {r.rms_v:.3g} | {r.error:.3g} |" for r in rows), "",
             "One-step mean squared error of the chains, scaled units: "
             + "; ".join(f"{_named(k)}: {v:.2e}" for k, v in found.errors.items()) + ".",
             f"Those that pay for a single forecast: {_named(found.levels)}."]
    visited = tuple(sorted(solver.get("levels") or found.levels))
    solver["levels"] = list(visited)
    lines += [f"Visited in a rollout: {_named(visited)}."]
    if len(visited) > 1 and str(solver["method"]["_target_"]).endswith(".Ancestral"):
        lead = min(LEAD, HORIZON * interval)
        gain, ratios = noise_gain(lambda g: make(visited, g), frames, interval, lead, gains=GAINS)
        solver["method"] = {**solver["method"], "gain": round(gain, 3)}
        tried = ", ".join(f"{g:g}: {r:.2f}" for g, r in ratios.items())
        lines += ["", f"Gain of the noise: {gain:.3g}, for a spread equal to the error after {lead:g} time units. "
                  f"Spread over error there by gain: {tried}."]
    return {"solver": solver}, "\n".join(lines)


def _named(levels: Sequence[int]) -> str:
    return "-".join(map(str, sorted(levels, reverse=True)))
