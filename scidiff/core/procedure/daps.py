"""DAPS: noise levels are decoupled; each starts from a fresh draw around an image that already fits the measurement.

    x0 = the end of the ODE from x_t (`ode` steps)
    x' ~ exp(-|y - A x'|^2 / (2 sigma_y^2) - |x' - x0|^2 / (2 rho^2)),       rho = sigma_t / alpha_t
    x_s = alpha_s x' + c_s mu + sigma_s xi;                                  the last x' is the sample

The local law takes x0 given x_t to be as wide as rho, which is right for priors much wider than rho. Levels fall from
rho_max to rho_min. Source: Zhang et al. 2025, arXiv 2407.01521.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scidiff.core.errors import UsageError
from scidiff.core.posterior.cost import Effort
from scidiff.core.posterior.problem import Problem
from scidiff.core.procedure.base import Inner, Memory, Procedure, ratios, time_of_ratio
from scidiff.core.procedure.local import Local
from scidiff.core.run import Run
from scidiff.core.spec import Context


@dataclass(frozen=True)
class DAPS(Procedure):
    """levels: of noise, rho_max to rho_min. ode: evaluations of each inner ODE."""

    levels: int = 200
    ode: int = 5
    rho_max: float = 100.0
    rho_min: float = 0.1
    local: Local = field(default_factory=Local)

    def __post_init__(self) -> None:
        if self.levels < 1 or self.ode < 1:
            raise UsageError("DAPS needs a level and an evaluation at each.")

    @property
    def turns(self) -> int:
        return self.levels

    @property
    def calls(self) -> int:
        return self.ode

    def begin(self, problem: Problem, ctx: Context, run: Run) -> Memory:
        self._time(self.levels - 1, problem)  # a level below the path's is said before anything is computed
        site = problem.site(ctx)
        k = problem.level(self._time(0, problem))
        return {"x": problem.path.shifted(k.sigma * problem.noise(ctx, run, "source"), k.c, site)}

    def turn(self, k: int, memory: Memory, problem: Problem, ctx: Context, run: Run) -> Memory:
        t = self._time(k, problem)
        rough = Inner.of(problem, self.ode, 0.0)(memory["x"], t, k, ctx, run)
        clean = self.local(rough, problem.level(t).rho, problem, ctx, run)
        if k + 1 == self.levels:
            return {"x": clean}
        return {"x": problem.corrupted(clean, self._time(k + 1, problem), ctx, run, "level")[0]}

    def _time(self, k: int, problem: Problem) -> float:
        return time_of_ratio(problem, ratios(problem, self.levels, self.rho_max, self.rho_min)[k])

    def effort(self, problem: Problem) -> Effort:
        return Effort(self.local.projections(problem), 0, 11, 4, 4, self.local.krylov(problem))
