"""The local step of split samplers: a draw of exp(-|y - A z|^2 / (2 sigma^2) - |z - x|^2 / (2 width^2)).

"exact"      both Gaussian terms are perturbed by their own noise and the least-squares problem is solved (Papandreou &
             Yuille 2010): an exact draw for a linear operator, down to the tolerance of the solver
"langevin"   `count` unadjusted Langevin steps from x, z <- z - h grad + sqrt(2 h) xi, with h = rate over the largest
             curvature |A|^2 / sigma^2 + 1 / width^2; directions of little curvature need many of them
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.spec import Context

KINDS = ("exact", "langevin")


@dataclass(frozen=True)
class Local:
    """iterations: of CG for the exact draw. tau: standard deviation to use for the measurement (default: its own)."""

    kind: str = "exact"
    iterations: int = 50
    count: int = 100
    rate: float = 0.1
    tau: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"A local step is 'exact' or 'langevin', not {self.kind!r}.")
        if not 0.0 < self.rate < 1.0 or (self.tau is not None and not self.tau > 0.0):
            raise UsageError("A local step needs a rate in (0, 1) and a positive tau.")

    def __call__(self, x: Tensor, width: float, problem: Problem, ctx: Context, run: Run) -> Tensor:
        sigma = problem.measurement.sigma if self.tau is None else self.tau
        return (self._exact if self.kind == "exact" else self._langevin)(x, width, sigma, problem, ctx, run)

    def projections(self, problem: Problem) -> int:
        return problem.measurement.iterations_cost(self.iterations) if self.kind == "exact" else 2 * self.count

    def krylov(self, problem: Problem) -> bool:
        """Whether conjugate gradients are run."""
        return self.kind == "exact" and problem.measurement.operator.svd() is None

    def _exact(self, x: Tensor, width: float, sigma: float, problem: Problem, ctx: Context, run: Run) -> Tensor:
        m = problem.measurement
        around = x + width * problem.noise(ctx, run, "local")
        if sigma == 0.0:
            return m.prox(around, math.inf, self.iterations)
        y = m.y + sigma * problem.measured_noise(ctx, run, "local")
        return m.prox(around, (width / sigma) ** 2, self.iterations, y=y)

    def _langevin(self, x: Tensor, width: float, sigma: float, problem: Problem, ctx: Context, run: Run) -> Tensor:
        m = problem.measurement
        if sigma == 0.0:
            raise UsageError("Langevin steps need noise in the measurement.", "Set tau, or take exact local steps.")
        h = self.rate / ((m.operator.norm() / sigma) ** 2 + 1.0 / width**2)
        z = x
        for i in range(self.count):
            slope = (z - x) / width**2 - m.adjoint(m.residual(z)) / sigma**2
            z = z - h * slope + math.sqrt(2.0 * h) * problem.noise(ctx, run, f"langevin{i}")
        return z
