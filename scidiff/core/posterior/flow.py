"""FlowDPS and FlowChef: gradients of the misfit with respect to D alone, so the network is never differentiated.

    FlowDPS (a wrapper)   D' = D + u (Dh - D),  Dh = `inner` gradient steps from D;  x_s from D', sqrt(u_s) E and
                          sqrt(1 - u_s) xi  (`Mix` with flow)
    FlowChef (a rule)     x_s = alpha_s D + sigma_s E - step grad_D misfit

u = rho / (1 + rho) is the time on the straight path with the same noise, so both act on every Gaussian path. The misfit
is |A^T (y - A D)|^2 / 2, with `image=False` |y - A D|^2 / 2; steps are in units of the inverse curvature. FlowDPS's
weight u vanishes near the data: `final` makes the last correction a full one.
Sources: Kim et al. 2025, arXiv 2503.08136; Patel et al. 2024, arXiv 2412.00100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times
from scidiff.core.errors import UsageError
from scidiff.core.posterior.base import Corrected, Effort, Guided
from scidiff.core.posterior.mix import Mix
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Rule
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import Grid
from scidiff.core.spec import Context, State


def stable(step: float) -> None:
    """UsageError for a step at which gradient descent diverges."""
    if not 0.0 < step < 2.0:
        raise UsageError(f"A gradient step lies between 0 and 2 inverse curvatures, unlike {step}.")


@dataclass(frozen=True)
class FlowDPS(Guided):
    """inner: gradient steps at each evaluation, of length `step`."""

    role: ClassVar[str] = "wrapper"

    steps: int = 28
    inner: int = 3
    step: float = 1.0
    image: bool = True
    final: bool = True
    grid: Grid | None = None

    def __post_init__(self) -> None:
        stable(self.step)

    def driver(self, problem: Problem) -> Fixed:
        return Fixed(Mix(flow=True), self.steps, self.grid, t_end=problem.t_end)

    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        return Corrected(problem, self._correction(problem), own), ()

    def _correction(self, problem: Problem) -> Callable[[Tensor, Times, Run | None], Tensor]:
        m = problem.measurement
        least = problem.path.coefficients(problem.end).sigma * (1.0 + 1e-6)

        def correct(clean: Tensor, t: Times, run: Run | None) -> Tensor:
            k, better = problem.level(t), clean
            for _ in range(self.inner):
                better = torch.add(better, m.slope(better, self.image), alpha=self.step)
            whole = self.final and k.sigma <= least
            return better if whole else torch.lerp(clean, better, k.sigma / (k.alpha + k.sigma))

        return correct

    def effort(self, problem: Problem) -> Effort:
        return Effort(self.inner * (4 if self.image else 2), 0, 9, 3)


@dataclass(frozen=True)
class FlowChef(Guided):
    """step: length of the move after each step of the flow."""

    role: ClassVar[str] = "rule"

    steps: int = 100
    step: float = 1.0
    image: bool = True
    grid: Grid | None = None

    def __post_init__(self) -> None:
        stable(self.step)

    def driver(self, problem: Problem) -> Fixed:
        return Fixed(Mix(0.0), self.steps, self.grid, t_end=problem.t_end)

    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        name = problem.name

        def steer(z_next: State, z_t: State, preds: Predictions, t: Any, s: Any, ctx: Context, run: Run) -> State:
            slope = problem.measurement.slope(preds[name].data, self.image)
            return {name: torch.add(z_next[name], slope, alpha=self.step)}

        return problem.denoiser, (steer,)

    def effort(self, problem: Problem) -> Effort:
        return Effort(4 if self.image else 2, 0, 9, 3, held=0)
