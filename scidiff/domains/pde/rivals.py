"""What a forecast has to be held against where its equation is known: the solver itself, and white error.

    solver        the pseudo-spectral solver with the largest part of the model's step that stays finite
    white error   the accurate solver with white noise after every step, of the model's own one-step error

A model that keeps a shorter correlation time than white error of its own size spends its error on the wavenumbers that
grow. Both rows are computed on the trajectories of the forecast (at most as many as `WORK` values allow).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from scidiff.core.errors import NonFinite, UsageError
from scidiff.domains.base import Metric
from scidiff.domains.pde.calibration import solver_row
from scidiff.domains.pde.equations import SpectralSolver
from scidiff.domains.pde.equations.perturbed import perturbed_rollout
from scidiff.domains.pde.skill import correlations, high_correlation_time

WORK = 4e7
"""Values of a rollout that are solved for at most: trajectories x steps x points."""
THRESHOLD = 0.8


def rivals(equation: Any, truth: Tensor, initial: Tensor, interval: float, extent: tuple[float, ...], mse: float,
           unit: str, seed: int = 0) -> list[Metric]:
    """Correlation times of the solver and of white error beside a model of one-step error `mse` (summed over fields).

    truth [T, S, C, *space], initial [T, C, *space] in physical units. Empty where the equation varies among the
    trajectories, or its solver refuses the grid.
    """
    several = any(isinstance(v, (list, tuple)) for v in equation.to_config().values())
    count = min(len(truth), int(WORK / max(truth[0].numel(), 1)))
    if several or count < 1:
        return []
    true, start = truth[:count].double(), initial[:count].double()
    every = max(math.ceil(interval / equation.typical.dt - 1e-9), 1)
    try:
        row = solver_row(equation, true, start, interval, extent, thresholds=(THRESHOLD,), seed=seed)
        solver = SpectralSolver(equation, tuple(true.shape[3:]), extent, interval / every, dtype=true.dtype)
        sigma = math.sqrt(max(mse, 0.0) / true.shape[2])
        noisy = perturbed_rollout(solver, start, true.shape[1], every, sigma, seed).unsqueeze(1)
    except (UsageError, NonFinite):
        return []
    white = high_correlation_time(correlations(noisy, true), interval, THRESHOLD, seed=seed).first
    own = row.times[THRESHOLD].first
    name = f"correlation time {THRESHOLD:g}"
    return [
        Metric(f"{name}, solver", own.value, (own.low, own.high), None,
               f"pseudo-spectral solver with steps of {row.dt:g}, the largest stable part of the model's", "", count,
               "higher", unit),
        Metric(f"{name}, white error", white.value, (white.low, white.high), None,
               f"accurate solver with white noise of rms {sigma:.2g}, the model's one-step error, after every step", "",
               count, "higher", unit),
    ]
