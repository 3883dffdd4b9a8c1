"""PnP-DM: a split Gibbs sampler that alternates between measurement and prior at a falling coupling r.

    z ~ exp(-|y - A z|^2 / (2 sigma_y^2) - |z - x|^2 / (2 r^2))
    x ~ p(x0 | z = x0 + r eps): the reverse SDE from the level rho = r (`sde` steps)

r falls from r_max by `decay` a turn to r_min, and the stationary law widens the posterior by about r: turns at r_min
make the samples right, up to that. Source: Wu et al. 2024, arXiv 2405.18782.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scidiff.core.errors import UsageError
from scidiff.core.posterior.cost import Effort
from scidiff.core.posterior.problem import Problem
from scidiff.core.procedure.base import Inner, Memory, Procedure, start, time_of_ratio
from scidiff.core.procedure.local import Local
from scidiff.core.run import Run
from scidiff.core.spec import Context


@dataclass(frozen=True)
class PnPDM(Procedure):
    """rounds: of both draws. sde: evaluations of each inner SDE."""

    rounds: int = 100
    sde: int = 20
    r_max: float = 10.0
    r_min: float = 0.1
    decay: float = 0.9
    local: Local = field(default_factory=Local)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.sde < 1 or not (0.0 < self.r_min <= self.r_max and 0.0 < self.decay <= 1.0):
            raise UsageError("PnP-DM needs a round, an evaluation in each, 0 < r_min <= r_max and a decay in (0, 1].")

    @property
    def turns(self) -> int:
        return self.rounds

    @property
    def calls(self) -> int:
        return self.sde

    def coupling(self, k: int) -> float:
        """r of turn k."""
        return max(self.r_max * self.decay**k, self.r_min)

    def begin(self, problem: Problem, ctx: Context, run: Run) -> Memory:
        time_of_ratio(problem, self.coupling(self.rounds - 1))  # a level below the path's is said before anything else
        return {"x": start(problem, self.local.iterations)}

    def turn(self, k: int, memory: Memory, problem: Problem, ctx: Context, run: Run) -> Memory:
        t = time_of_ratio(problem, self.coupling(k))
        level = problem.level(t)
        z = self.local(memory["x"], level.rho, problem, ctx, run)
        noisy = problem.path.shifted(level.alpha * z, level.c, problem.site(ctx))
        return {"x": Inner.of(problem, self.sde, 1.0)(noisy, t, k, ctx, run)}

    def effort(self, problem: Problem) -> Effort:
        krylov = self.local.krylov(problem)
        return Effort(self.local.projections(problem), 0, 11, 4, 5, krylov, 1 + 2 * self.local.iterations)
