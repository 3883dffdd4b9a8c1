"""PnP-Flow: gradient steps on the misfit, alternated with the prior's mean denoiser at falling noise.

    x <- x - step u^a A^T (A x - y) / |A|^2
    x <- mean over `draws` of D(alpha x + c mu + sigma eps)       at the level sigma / (alpha + sigma) = u,  u: 1 -> 0

On a straight path u is the time itself. The result is an estimate with little of the posterior's spread.
Source: Martin et al. 2025, arXiv 2410.02423.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from scidiff.core.errors import UsageError
from scidiff.core.posterior.cost import Effort
from scidiff.core.posterior.flow import stable
from scidiff.core.posterior.problem import Problem
from scidiff.core.procedure.base import Memory, Procedure, start
from scidiff.core.run import Run
from scidiff.core.spec import Context


@dataclass(frozen=True)
class PnPFlow(Procedure):
    """power: a, how fast the gradient steps shrink. draws: noise draws a step."""

    steps: int = 100
    draws: int = 5
    power: float = 1.0
    step: float = 1.0
    iterations: int = 50

    def __post_init__(self) -> None:
        stable(self.step)
        if self.steps < 1 or self.draws < 1 or self.power < 0.0:
            raise UsageError("PnP-Flow needs a step, a draw in each and a power from 0 on.")

    @property
    def turns(self) -> int:
        return self.steps

    @property
    def calls(self) -> int:
        return self.draws

    def begin(self, problem: Problem, ctx: Context, run: Run) -> Memory:
        return {"x": start(problem, self.iterations)}

    def turn(self, k: int, memory: Memory, problem: Problem, ctx: Context, run: Run) -> Memory:
        u = 1.0 - k / self.steps
        low, high = problem.end, problem.path.bounds[1]
        t = high if u == 1.0 else float(problem.path.t_of_lambda(-math.log(u / (1.0 - u))))
        t = min(max(t, low), high)
        x = memory["x"]
        x = torch.add(x, problem.measurement.slope(x), alpha=self.step * u**self.power)
        total = torch.zeros_like(x)
        for i in range(self.draws):
            noisy, _ = problem.corrupted(x, t, ctx, run, f"draw{i}")
            total = total + problem.predict(noisy, t, ctx, run).data
        return {"x": total / self.draws}

    def effort(self, problem: Problem) -> Effort:
        return Effort(2, 0, 9, 3, once=1 + 2 * self.iterations)
