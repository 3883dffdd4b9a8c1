"""The figures of a set of rollouts, each with interval, floor, protocol and count.

stable                trajectories whose members all stay finite and below 3 times the training maximum
correlation time      skill.py: first crossing of the mean curve, mean of the trajectories' own, published count
one-step MSE          of the first step of the rollouts; beside it its share of the squared increment
relative L2, nRMSE, VRMSE   skill.py
energy drift, log-spectral distance, W1, budget gap   spectra.py, over the second half of the rollout (the climate)
CRPS, spread / skill, ranks, divergence   ensemble.py, from two members on
correlation times of the solver and of white error beside the model's: rivals.py, where the equation is known

Intervals are 95 % bootstraps over trajectories (Wilson for shares); members and steps of a trajectory stay together.
The floor of a distance is the one between the two halves (even and odd trajectories) of the truth, and that of the
budget gap the truth's. What needs finite fields is computed over the stable trajectories; the count is their number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.statistics import Estimate, wilson
from scidiff.domains.base import Metric, Verdict
from scidiff.domains.pde import LIMIT, ensemble, skill, spectra
from scidiff.domains.pde.rivals import rivals

if TYPE_CHECKING:
    from xarray import Dataset

    from scidiff.domains.pde import PdeDomain

LEAD = 20.0
"""Time units after which the calibration of an ensemble is judged."""
EXPONENTS = {22.0: 0.048, 64.0: 0.0865, 100.0: 0.091, 200.0: 0.0955}
"""Leading Lyapunov exponents of the Kuramoto-Sivashinsky equation by L / sqrt(nu), per time unit times nu; measured."""
_Z = 1.959963984540054
_DRAWS = 60  # resamplings of a marginal: each one sorts
_SORTED = 1 << 14  # values of a marginal in each of them
_VALUES = 1 << 24  # values of which a derivative is taken


@dataclass(frozen=True)
class _Set:
    """Rollouts with what their figures need; `unit` of the fields ("" for none), `time` the name of the time unit."""

    predicted: Tensor
    truth: Tensor
    initial: Tensor
    interval: float
    extent: tuple[float, ...]
    fields: tuple[str, ...]
    equation: Any
    seed: int
    unit: str
    time: str
    kept: Tensor
    lost: int
    exponent: float | None

    @property
    def steps(self) -> int:
        return self.truth.shape[1]

    def stable(self, start: int = 0) -> tuple[Tensor, Tensor]:
        """Rollouts and truths of the stable trajectories from a step on."""
        p, u = self.predicted[:, :, start:], self.truth[:, start:]
        return (p, u) if bool(self.kept.all()) else (p[self.kept], u[self.kept])

    def metric(self, name: str, value: Estimate | float, protocol: str, better: str = "lower", unit: str = "",
               floor: float | None = None, note: str = "", count: int | None = None) -> Metric:
        """A Metric; figures that are not numbers become None with a reason, intervals need two trajectories."""
        count = len(self.truth) if count is None else count
        one, *ends = value if isinstance(value, Estimate) else (value,)
        if not math.isfinite(one):
            why = f"{self.lost} of {len(self.kept)} trajectories are not finite" if self.lost else "undefined here"
            return Metric(name, None, None, None, protocol, "", count, better, unit, f"not computed: {why}")
        interval = (ends[0], ends[1]) if ends and count > 1 and all(map(math.isfinite, ends)) else None
        floor = floor if floor is not None and math.isfinite(floor) else None
        return Metric(name, one, interval, floor, protocol, "", count, better, unit, note)


def rollout_metrics(predicted: Tensor, truth: Tensor, initial: Tensor, interval: float, extent: Sequence[float],
                    equation: Any = None, train_max: float | Sequence[float] | None = None, seed: int = 0, *,
                    fields: Sequence[str] = (), unit: str = "", time_unit: str = "time units") -> list[Metric]:
    """All figures of the module docstring; those of ensembles from two members on.

    predicted [T, M, S, C, *space], truth [T, S, C, *space], initial [T, C, *space] (or [T, F, C, *space]: its last
    frame counts); `interval` is the time of a step, `train_max` the largest |u| in the training data, of all fields or
    of each (None: of the truth). `equation` adds the budget and the Lyapunov time where they are known.
    """
    skill.require_rollout(predicted, truth)
    dims = truth.dim() - 3
    if len(extent) != dims:
        raise UsageError(f"The box has {len(extent)} lengths, but the fields live in {dims} dimensions.")
    initial = initial[:, -1] if initial.dim() == truth.dim() else initial
    names = tuple(fields) or (("u",) if truth.shape[2] == 1 else tuple(f"u{i}" for i in range(truth.shape[2])))
    largest = torch.as_tensor(truth.abs().max() if train_max is None else train_max, dtype=torch.float64)
    stability = spectra.stable(predicted, LIMIT * largest, dims)
    lost = int((~torch.isfinite(predicted).flatten(1).all(1)).sum())
    mine = _Set(predicted, truth, initial, float(interval), tuple(float(x) for x in extent), names, equation, seed,
                unit, time_unit, stability.kept, lost, lyapunov_exponent(equation, extent))
    note = f"the first failure is at step {stability.earliest} of {mine.steps}" if stability.earliest else ""
    origin = "truth's" if train_max is None else "training"
    out = [mine.metric("stable", stability.share, f"every member finite and below {LIMIT:g} times the {origin} maximum "
                       f"for {mine.steps} steps", "higher", note=note)]
    out += _times(mine)
    out += _errors(mine)
    if bool(mine.kept.any()):
        out += _climate(mine)
        if predicted.shape[1] > 1:
            out += _ensemble(mine)
    return out


def lyapunov_exponent(equation: Any, extent: Sequence[float]) -> float | None:
    """The measured leading exponent, per time unit, where one is known (see EXPONENTS; within 2 % of such a box)."""
    nu = getattr(equation, "viscosity", None)
    if getattr(equation, "name", "") != "ks" or not isinstance(nu, (int, float)):
        return None
    scaled = float(extent[0]) / math.sqrt(nu)
    return next((rate / nu for size, rate in EXPONENTS.items() if abs(scaled - size) <= 0.02 * size), None)


def _times(s: _Set) -> Iterator[Metric]:
    """Correlation times at every threshold."""
    corr = skill.correlations(s.predicted, s.truth)
    members = "" if corr.shape[1] == 1 else f", members one by one ({corr.shape[1]})"
    for threshold in skill.THRESHOLDS:
        found = skill.high_correlation_time(corr, s.interval, threshold, seed=s.seed)
        notes = []
        if found.censored:
            notes.append(f"a lower bound: the mean curve stays above {threshold:g} to the horizon")
        if s.exponent:
            notes.append(f"{found.first.value * s.exponent:.2f} Lyapunov times")
        name = f"correlation time {threshold:g}"
        yield s.metric(name, found.first, f"last step before the mean Pearson correlation falls to {threshold:g}"
                       f"{members}; steps of {s.interval:g}, horizon {found.horizon:g}", "higher", s.time,
                       note="; ".join(notes))
        yield s.metric(f"{name}, own", found.own, "mean over trajectories of their own first crossing", "higher",
                       s.time, note=f"{found.censored_share:.0%} reach the horizon" if found.censored_share else "")
        yield s.metric(f"{name}, published count", found.published, f"steps with mean correlation above {threshold:g} "
                       "times the interval, recoveries included", "higher", s.time)
    if corr.shape[1] > 1:
        mean = ensemble.mean_correlation(s.predicted, s.truth)
        found = skill.high_correlation_time(mean, s.interval, 0.8, seed=s.seed)
        yield s.metric("correlation time 0.8, ensemble mean", found.first, f"of the mean of {corr.shape[1]} members",
                       "higher", s.time, note="a lower bound: the horizon" if found.censored else "")


def _errors(s: _Set) -> Iterator[Metric]:
    """Errors of one step and of many."""
    one = skill.one_step_mse(s.predicted[:, :, 0], s.truth[:, 0], s.initial, seed=s.seed)
    yield s.metric("one-step MSE", one.mse, "first step, summed over fields, mean over space and members", "lower",
                   f"({s.unit})^2" if s.unit else "")
    yield s.metric("one-step MSE / increment", one.share, "over the mean squared increment; persistence is 1")
    yield s.metric("relative L2, step 1", skill.mean_of(skill.relative_l2(s.predicted[:, :, :1], s.truth[:, :1])
                   .mean((1, 2)), seed=s.seed), "|error| / |truth|")
    norm = skill.nrmse(s.predicted, s.truth).mean(1)
    steps = min(100, s.steps)
    yield s.metric(f"nRMSE GMean{steps}", skill.resampled(lambda m: skill.geometric_mean(m, steps), norm, seed=s.seed),
                   f"geometric mean over the first {steps} steps of the nRMSE averaged over trajectories")
    spread = skill.vrmse(s.predicted, s.truth).mean(1)
    for first, last in ((1, 1), (6, 12), (13, 30)):
        if last <= s.steps:
            name = f"VRMSE, step {first}" if first == last else f"VRMSE, steps {first} to {last}"
            yield s.metric(name, skill.mean_of(spread[:, first - 1:last].mean(1), seed=s.seed),
                           "RMSE over the spatial standard deviation of the truth; a constant forecast is 1")


def _climate(s: _Set) -> Iterator[Metric]:
    """What the second half of the rollout looks like, whatever the phase."""
    start = s.steps // 2
    p, u = s.stable(start)
    count = len(u)
    over = f"steps {start + 1} to {s.steps}, stable trajectories"
    energies = torch.stack([spectra.energy(p, s.extent).mean((1, 2)), spectra.energy(u, s.extent).mean(1)], 1)
    yield s.metric("energy drift", skill.resampled(lambda m: m[:, 0] / m[:, 1] - 1.0, energies, seed=s.seed),
                   f"<|u|^2> / that of the truth - 1; {over}", "zero", count=count)
    both = torch.stack([spectra.mean_spectrum(x, s.extent)[1] for x in (p, u)], 1)
    true = both[:, 1].mean(0)
    last = 2.0 * math.pi / max(s.extent) * spectra.floor_wavenumber(true)
    yield s.metric("log-spectral distance", skill.resampled(
        lambda m: spectra.log_spectral_distance(m[:, 0], true), both, draws=200, seed=s.seed),
        f"rms over 0 < k < {last:.3g} of 10 log10 E / E_true; {over}", "lower", "dB", count=count,
        floor=_between_halves(both[:, 1], lambda a, b: float(spectra.log_spectral_distance(a.mean(0), b.mean(0)))))
    yield from _marginals(s, p, u, over)
    if getattr(s.equation, "name", "") == "ks" and len(s.extent) == 1:
        yield _budget(s, p, u, over)


def _between_halves(rows: Tensor, distance: Callable[[Tensor, Tensor], float]) -> float | None:
    """A distance between the even and the odd trajectories; None for one trajectory."""
    return distance(rows[0::2], rows[1::2]) if len(rows) > 1 else None


def _fewer(frames: Tensor) -> Tensor:
    """Frames [T, M, S, C, *space] with so many of their steps left out that a derivative of all fits into memory."""
    return frames[:, :, :: max(-(-frames.numel() // _VALUES), 1)]


def _marginals(s: _Set, p: Tensor, u: Tensor, over: str) -> Iterator[Metric]:
    """Wasserstein-1 distances of every field and of its derivative along x."""
    p, u = _fewer(p), _fewer(u.unsqueeze(1))
    slopes = [skill.by_trajectory(lambda x: spectra.derivative(x, s.extent), x) for x in (p, u)]
    for number, field in enumerate(s.fields):
        for name, (a, b) in ((field, (p, u)), (f"d{field}/dx", slopes)):
            a, b = a[:, :, :, number].flatten(1), b[:, :, :, number].flatten(1)
            value = spectra.wasserstein1(a, b)
            half = _Z * _deviation(a, b, s.seed)
            yield s.metric(f"W1 of {name}", Estimate(value, max(value - half, 0.0), value + half),
                           f"Wasserstein-1 distance of the marginals; {over}", "lower",
                           s.unit if name == field else "", _between_halves(b, spectra.wasserstein1), count=len(a))


def _deviation(a: Tensor, b: Tensor, seed: int) -> float:
    """Bootstrap deviation of W1 under the draw of the trajectories of a [T, n].

    Resampling adds a distance of its own, so only its spread is used, around the value itself.
    """
    few = a[:, :: max(-(-a.numel() // _SORTED), 1) | 1]
    against = spectra.thinned(b, _SORTED)
    g = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(few), (_DRAWS, len(few)), generator=g).to(few.device)
    return float(torch.tensor([spectra.wasserstein1(few[i], against) for i in picks], dtype=torch.float64).std())


def _budget(s: _Set, p: Tensor, u: Tensor, over: str) -> Metric:
    """<u_x^2> - nu <u_xx^2> of the Kuramoto-Sivashinsky equation, over <u_x^2>."""
    nu = s.equation.viscosity
    nu = nu.double()[s.kept.to(nu.device)] if isinstance(nu, Tensor) and nu.dim() else float(nu)

    def terms(frames: Tensor) -> Tensor:
        each = skill.by_trajectory(lambda x: spectra.budget_terms(x, s.extent).flatten(1, -2).mean(1), frames)
        return torch.stack([each[:, 0], each[:, 0] - nu * each[:, 1]], 1)

    def share(means: Tensor) -> Tensor:
        return means[:, 1] / means[:, 0]

    return s.metric("budget gap", skill.resampled(share, terms(p), seed=s.seed),
                    f"(<u_x^2> - nu <u_xx^2>) / <u_x^2>, 0 for a stationary run; {over}", "zero", count=len(u),
                    floor=float(share(terms(u).mean(0, keepdim=True))))


def _ensemble(s: _Set) -> Iterator[Metric]:
    """Scores of the distribution that the members draw."""
    p, u = s.stable()
    members, count = p.shape[1], len(u)
    lead = max(min(round(LEAD / s.interval), s.steps), 1)
    when = f"{lead * s.interval:g} {s.time}"
    rps = ensemble.fair_crps(p, u)
    about = f"fair, {members} members, mean over space; stable trajectories"
    yield s.metric(f"CRPS at {when}", skill.mean_of(rps[:, lead - 1], seed=s.seed), about, "lower", s.unit, count=count)
    yield s.metric("CRPS, all steps", skill.mean_of(rps.mean(1), seed=s.seed), about, "lower", s.unit, count=count)
    calibration = ensemble.spread_skill(p, u)
    about = f"factor (M + 1)/M, M = {members}; 1 is calibrated, below 1 the spread is too small; stable trajectories"
    yield s.metric(f"spread / skill at {when}", calibration.over(slice(lead - 1, lead), seed=s.seed), about, "one",
                   count=count)
    yield s.metric("spread / skill, all steps", calibration.over(seed=s.seed), about, "one", count=count)
    ranks = ensemble.rank_histogram(p[:, :, :lead], u[:, :lead], s.seed)
    yield s.metric("rank flatness", ranks.flatness, f"ranks of the truth up to {when}: squared gap from uniform over "
                   "its variance between trajectories; 1 is expected of an exchangeable truth", "one", count=count)
    yield s.metric("truth outside the ensemble", ranks.outside(seed=s.seed), f"share of extreme ranks up to {when} "
                   "over 2/(M + 1); above 1 the spread is too small", "one", count=count)
    known = ensemble.divergence(p, u, s.interval, 0.8, seed=s.seed)
    about = "time until members correlate below 0.8 with each other, against the time with the truth; both seen"
    for name, value, better, unit in (("R^2", known.r2, "higher", ""), ("slope", known.slope, "one", ""),
                                      ("bias", known.bias, "zero", s.time)):
        if known.used >= 3:
            yield s.metric(f"divergence {name}", value, about, better, unit, count=known.used)
        else:
            yield Metric(f"divergence {name}", None, None, None, about, "", known.used, better, unit,
                         "not computed: fewer than three trajectories diverge before the horizon")


def persistence(initial: Tensor, steps: int) -> Tensor:
    """The rollout [T, 1, S, C, *space] of a forecast that nothing changes, from states [T, C, *space]; a view."""
    return initial[:, None, None].expand(-1, 1, steps, *initial.shape[1:])


def climatology(frames: Tensor, trajectories: int, steps: int, members: int = 1, seed: int = 0) -> Tensor:
    """The rollout [T, M, S, C, *space] of a forecast that knows the training frames [n, C, *space] alone.

    One member: their mean, at every step (a view). More: frames drawn by lot, anew for every member and step.
    """
    if members == 1:
        mean = frames.to(torch.float64).mean(0).to(frames.dtype)
        return mean.expand(trajectories, 1, steps, *mean.shape)
    g = torch.Generator().manual_seed(seed)
    return frames[torch.randint(len(frames), (trajectories, members, steps), generator=g).to(frames.device)]


def of_datasets(objects: Sequence[Dataset], verdicts: Sequence[Verdict], domain: PdeDomain,
                seed: int = 0) -> list[Metric]:
    """Figures of trajectories: of those with a reference (`<field>_true`) all, of others the share that is sound."""
    from scidiff.domains.pde.data import TRUTH, describe, from_dataset

    if not objects:
        raise UsageError("There are no trajectories to evaluate.")
    about = describe(objects[0])
    fields = domain.fields if domain.mean else about.fields
    chosen = [o for o in objects if all(f + TRUTH in o.data_vars for f in fields)]
    if not chosen:
        sound = sum(v.valid for v in verdicts)
        return [Metric("stable", sound / len(objects), wilson(sound, len(objects))[1:], None,
                       f"finite and below {LIMIT:g} times the training maximum", "", len(objects), "higher", "",
                       "no reference solution to compare with")]
    parts = []
    for o in chosen:
        frames, times, _, _ = from_dataset(o, fields)
        frames = frames if "member" in o.sizes else frames.unsqueeze(0)
        true = from_dataset(o, [f + TRUTH for f in fields])[0]
        ahead = times > 1e-9 * max(abs(about.interval), 1e-9)
        if not bool(ahead.any()) or bool(ahead.all()):
            raise UsageError("A rollout needs its first state at time 0 and at least one step after it.")
        parts.append((frames[:, ahead], true[ahead], true[~ahead][-1]))
        if parts[-1][0].shape != parts[0][0].shape:
            raise UsageError("The rollouts differ in members, steps or grid.", "Evaluate one kind at a time.")
    predicted, truth, initial = (torch.stack(x) for x in zip(*parts, strict=True))
    units = set(about.units)
    unit, law = units.pop() if len(units) == 1 else "", _law(chosen)
    time_unit = "time units" if about.time_unit == "1" else about.time_unit
    found = rollout_metrics(
        predicted, truth, initial, about.interval, about.extent, law, list(domain.largest) or None, seed,
        fields=fields, unit="" if unit == "1" else unit, time_unit=time_unit)
    error = next((m.value for m in found if m.name == "one-step MSE"), None)
    if law is not None and error is not None:
        found += rivals(law, truth, initial, about.interval, tuple(about.extent), error, time_unit, seed)
    return found


def _law(objects: Sequence[Dataset]) -> Any:
    """The equation that the trajectories name, a parameter that varies as a tensor [T]; None where it is unknown."""
    from scidiff.domains.pde.equations import EQUATIONS

    texts = [o.attrs.get("equation") for o in objects]
    if not all(isinstance(t, str) for t in texts):
        return None
    configs = [json.loads(t) for t in texts]
    first = configs[0]
    if any(c.get("name") not in EQUATIONS or c["name"] != first["name"] or c.keys() != first.keys() for c in configs):
        return None
    merged = {k: v if all(c[k] == v for c in configs) else [c[k] for c in configs] for k, v in first.items()}
    return EQUATIONS[first["name"]].from_config(merged)
