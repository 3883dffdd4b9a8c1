"""Rows that every table of rollouts carries beside the models: white error of known size, and the solver itself.

Calibration curve: the accurate solver with white noise of rms sigma after every interval (`equations/perturbed.py`) has
the one-step MSE sigma^2 and keeps a certain correlation time. A model above the curve at its own one-step MSE has an
error that is better distributed over the wavenumbers than white noise, one below it a worse one.

Solver rows: the pseudo-spectral solver with the model's own step where it is stable (else with the largest stable part
of it), and the one that a given time buys. They are the honest rivals wherever the equation is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scidiff.core.errors import NonFinite, UsageError
from scidiff.domains.pde.equations.perturbed import perturbed_rollout
from scidiff.domains.pde.equations.spectral import SpectralSolver
from scidiff.domains.pde.skill import CorrelationTime, OneStep, correlations, high_correlation_time, one_step_mse

SIGMAS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
LEVELS = (0.8, 0.9)
Progress = Callable[[str, int, int | None], None]


def _row(times: dict[float, CorrelationTime], error: OneStep) -> dict[str, Any]:
    out: dict[str, Any] = {"mse": error.mse.value, "mse_interval": [error.mse.low, error.mse.high]}
    for level, found in times.items():
        out[f"time_{level:g}"] = found.first.value
        out[f"time_{level:g}_interval"] = [found.first.low, found.first.high]
        out[f"time_{level:g}_censored"] = found.censored
    return out


@dataclass(frozen=True)
class CalibrationRow:
    """White noise of rms `sigma` after every interval: measured one-step error and correlation times by threshold."""

    sigma: float
    error: OneStep
    times: dict[float, CorrelationTime]

    def to_json(self) -> dict[str, Any]:
        return {"sigma": self.sigma, **_row(self.times, self.error)}


def calibration_curve(solver: SpectralSolver, every: int, initial: Tensor, steps: int,
                      sigmas: Sequence[float] = SIGMAS, thresholds: Sequence[float] = LEVELS,
                      truth: Tensor | None = None, seed: int = 0, progress: Progress | None = None
                      ) -> list[CalibrationRow]:
    """One row for each sigma, largest first, for states [T, C, *space] and intervals of `every` solver steps.

    `solver` should be as accurate as the reference (float64). `truth` [T, S, C, *space] saves solving for it; it must
    come from these states by such a solver.
    """
    if not isinstance(solver.dt, float):
        raise UsageError("The calibration curve needs one solver step for all trajectories.")
    state = initial.to(solver.dtype)
    true = solver.rollout(state, steps * every, every) if truth is None else truth[:, :steps]
    interval = every * solver.dt
    ordered = sorted(sigmas, reverse=True)

    def row(number: int, sigma: float) -> CalibrationRow:
        frames = perturbed_rollout(solver, state, steps, every, sigma, seed).unsqueeze(1)
        if progress is not None:
            progress("Calibration curve", number + 1, len(ordered))
        return CalibrationRow(sigma, one_step_mse(frames[:, :, 0], true[:, 0], state, seed=seed),
                              _times(frames, true, interval, thresholds, seed))

    return [row(number, sigma) for number, sigma in enumerate(ordered)]


def _times(frames: Tensor, truth: Tensor, interval: float, thresholds: Sequence[float],
           seed: int) -> dict[float, CorrelationTime]:
    corr = correlations(frames, truth)
    return {level: high_correlation_time(corr, interval, level, seed=seed) for level in thresholds}


def white_error_time(rows: Sequence[CalibrationRow], mse: float, threshold: float = 0.8) -> float:
    """The correlation time that white error of this one-step MSE would keep: linear in log MSE between the rows.

    nan outside of the rows, and beyond the first whose time is only a lower bound (the horizon).
    """
    known = [(math.log(r.error.mse.value), r.times[threshold].first.value) for r in rows
             if not r.times[threshold].censored]
    known.sort()
    if not mse > 0.0:
        return math.nan
    place = math.log(mse)
    for (x0, y0), (x1, y1) in zip(known, known[1:], strict=False):
        if x0 <= place <= x1:
            return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
    return math.nan


@dataclass(frozen=True)
class SolverRow:
    """The solver with steps of `dt`: one-step error, correlation times, and its cost.

    `seconds` an interval and trajectory, all trajectories in one batch; `affordable`: no more than was asked for.
    """

    dt: float
    steps_per_interval: int
    shape: tuple[int, ...]
    precision: int
    error: OneStep
    times: dict[float, CorrelationTime]
    seconds: float
    affordable: bool

    def to_json(self) -> dict[str, Any]:
        about = {"dt": self.dt, "steps_per_interval": self.steps_per_interval, "shape": list(self.shape),
                 "precision": self.precision, "seconds": self.seconds, "affordable": self.affordable}
        return {**about, **_row(self.times, self.error)}


def solver_row(equation: Any, truth: Tensor, initial: Tensor, interval: float, extent: Sequence[float],
               seconds: float | None = None, order: int = 4, dtype: torch.dtype = torch.float64,
               thresholds: Sequence[float] = LEVELS, seed: int = 0) -> SolverRow:
    """Held against truths [T, S, C, *space] from states [T, C, *space], on their grid and their device.

    Without `seconds`: the largest step interval / n that stays finite. With `seconds` (an interval and trajectory): the
    smallest step that costs no more, but not below the equation's own accurate step; where even the largest stable
    step costs more, that one, marked as not affordable.
    """
    shape, horizon = tuple(truth.shape[3:]), truth.shape[1]
    finest = max(math.ceil(interval / equation.typical.dt - 1e-9), 1)
    state = initial.to(dtype)

    def make(n: int) -> SpectralSolver:
        return SpectralSolver(equation, shape, tuple(extent), interval / n, order=order, dtype=dtype,
                              device=initial.device)

    make(finest)  # what is wrong with grid, box or equation is said here, not taken for an unstable step

    def attempt(n: int) -> tuple[SpectralSolver, Tensor] | None:
        try:
            solver = make(n)
            return solver, solver.rollout(state, horizon * n, n)
        except (UsageError, NonFinite):  # refused, or blown up
            if n >= finest:
                raise
            return None

    def first_stable(least: int) -> tuple[int, SpectralSolver, Tensor]:
        tried = ((n, attempt(n)) for n in range(least, finest + 1))
        return next((n, *found) for n, found in tried if found is not None)

    n, solver, frames = first_stable(1)
    cost = _seconds(solver, state, n)
    if seconds is not None and n < finest and seconds > cost:
        bought = min(int(n * seconds / cost), finest)
        if bought > n:
            n, solver, frames = first_stable(bought)
            cost = _seconds(solver, state, n)
    error = one_step_mse(frames[:, 0], truth[:, 0], initial, seed=seed)
    return SolverRow(interval / n, n, shape, torch.finfo(dtype).bits, error,
                     _times(frames.unsqueeze(1), truth, interval, thresholds, seed), cost,
                     seconds is None or cost <= 1.1 * seconds)


def _seconds(solver: SpectralSolver, state: Tensor, every: int, repeats: int = 3) -> float:
    """Best wall time of an interval (`every` steps) a trajectory; the loading of the state is shared by many."""
    many = max(16 // every, 1) * every

    def once() -> float:
        began = time.perf_counter()
        solver.rollout(state, many, many)
        if state.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return min(once() for _ in range(repeats)) * every / many / len(state)
