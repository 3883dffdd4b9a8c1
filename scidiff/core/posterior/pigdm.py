"""PiGDM: the estimate of the clean image given the measurement too (a wrapper).

With C_t the covariance of x0 given x_t,

    D' = D + C_t A^T (A C_t A^T + sigma_y^2)^-1 (y - A D),        C_t = (sigma^2 / alpha) dD / dx_t

is E[x0 | x_t, y] exactly where x0 given x_t is Gaussian, and the derivative is that covariance for every prior
(Tweedie). covariance="exact" solves with it by conjugate gradients, one backprop an iteration: the reference sampler,
for its integral reaches p(x0 | y) of a Gaussian prior as the grid is refined. covariance="isotropic" is the published
rule: inside the inverse C_t is r^2 I, r^2 = rho^2 std^2 / (rho^2 + std^2) with rho = sigma / alpha, so one backprop is
enough; the mean is then biased and the spread too wide where the prior has structure. The derivative is used
transposed, which for an exact denoiser is the same. Source: Song et al. 2023, PseudoInverse-guided diffusion models
(ICLR); the exact covariance: Boys et al. 2023, arXiv 2310.06721; Rozet et al. 2024, arXiv 2405.13712.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times
from scidiff.core.errors import UsageError
from scidiff.core.krylov import conjugate_gradient
from scidiff.core.posterior.base import Effort, Guided, Linearised
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Rule
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import Grid, LambdaGrid
from scidiff.core.spec import Context, State

COVARIANCES = ("isotropic", "exact")


@dataclass(frozen=True)
class PiGDM(Guided):
    """data_std: the prior's standard deviation in r^2. cg: iterations of the inner solve (isotropic: where the operator
    has no SVD). eta: fresh noise of the ancestral integrator, 0 for the flow's own ODE."""

    role: ClassVar[str] = "wrapper"

    steps: int = 100
    covariance: str = "isotropic"
    data_std: float = 1.0
    cg: int = 20
    tolerance: float = 1e-6
    eta: float = 0.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.covariance not in COVARIANCES:
            raise UsageError(f"The covariance of PiGDM is 'isotropic' or 'exact', not {self.covariance!r}.")
        if not (self.data_std > 0.0 and self.cg >= 1):
            raise UsageError("PiGDM needs a positive data_std and at least one iteration of CG.")

    def driver(self, problem: Problem) -> Fixed:
        return Fixed(Ancestral(self.eta, last="data"), self.steps, self.grid or LambdaGrid(), t_end=problem.t_end)

    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        return _Pulled(problem, self), ()

    def effort(self, problem: Problem) -> Effort:
        if self.covariance == "exact":
            return Effort(2 + 2 * self.cg, 1 + self.cg, 10, 5)
        krylov = problem.measurement.operator.svd() is None
        return Effort(problem.measurement.iterations_cost(self.cg), 1, 12 if krylov else 10, 4, krylov=krylov)


class _Pulled(Denoiser):
    needs_grad = True

    def __init__(self, problem: Problem, settings: PiGDM) -> None:
        super().__init__()
        self.problem, self.settings, self.denoiser, self.spec = problem, settings, problem.denoiser, problem.spec
        self.self_conditioning = self.denoiser.self_conditioning

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        problem, k = self.problem, self.problem.level(t)
        line = Linearised(problem, state, t, ctx, run)
        width = k.sigma * k.sigma / k.alpha
        move = self._exact if self.settings.covariance == "exact" else self._isotropic
        with torch.no_grad():
            return line.predictions(line.clean + width * line.pull(move(line, width, k)))

    def _isotropic(self, line: Linearised, width: float, k: Any) -> Tensor:
        """A^T (r^2 A A^T + sigma_y^2)^-1 (y - A D), which is (prox(D) - D) / r^2."""
        m, std2 = self.problem.measurement, self.settings.data_std**2
        r2 = k.rho**2 * std2 / (k.rho**2 + std2)
        gamma = r2 / m.sigma**2 if m.sigma > 0.0 else float("inf")
        return (m.prox(line.clean, gamma, self.settings.cg, self.settings.tolerance) - line.clean) / r2

    def _exact(self, line: Linearised, width: float, k: Any) -> Tensor:
        """A^T w, (A C A^T + sigma_y^2) w = y - A D."""
        m = self.problem.measurement

        def seen(w: Tensor) -> Tensor:
            return m.forward(width * line.pull(m.adjoint(w))) + m.sigma**2 * w

        return m.adjoint(conjugate_gradient(seen, m.residual(line.clean), None, self.settings.cg,
                                            self.settings.tolerance))
