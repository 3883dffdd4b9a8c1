"""RED-diff: the image is optimised, with the prior as a regulariser seen through fresh noise at falling levels.

    mu <- Adam on  w_y |y - A mu|^2 / 2 + lam w(t) < stop(E(x_t) - eps), mu >,     x_t = alpha mu + c centre + sigma eps

w(t) is a function of rho = sigma / alpha ("linear": rho itself). Both terms are sums, so lam means the same for every
number of measurements. The law that is fitted has no width: restarts with other noise scatter less than the posterior,
and the result is an estimate near its mode, not a sample. Source: Mardani et al. 2024, arXiv 2305.04391.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from scidiff.core.errors import UsageError, nearest
from scidiff.core.posterior.cost import Effort
from scidiff.core.posterior.problem import Problem
from scidiff.core.procedure.base import Memory, Procedure, start
from scidiff.core.run import Run
from scidiff.core.solvers.grid import Grid, PowerGrid
from scidiff.core.spec import Context

WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda rho: rho, "sqrt": math.sqrt, "square": lambda rho: rho * rho, "log": math.log1p,
    "clip": lambda rho: min(rho, 1.0), "two_thirds": lambda rho: rho ** (2.0 / 3.0), "constant": lambda rho: 1.0,
}


@dataclass(frozen=True)
class REDDiff(Procedure):
    """rate, betas: of Adam. iterations: of the pseudo-inverse that it starts from."""

    steps: int = 100
    lam: float = 0.25
    w_y: float = 1.0
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight: str = "linear"
    iterations: int = 50
    grid: Grid = field(default_factory=PowerGrid)

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise UsageError(f"RED-diff has no weight {self.weight!r}.", nearest(self.weight, WEIGHTS))
        if self.steps < 1 or not (self.rate > 0.0 and self.lam >= 0.0 and self.w_y >= 0.0):
            raise UsageError("RED-diff needs a step, a positive rate and weights from 0 on.")

    @property
    def turns(self) -> int:
        return self.steps

    @property
    def calls(self) -> int:
        return 1

    def begin(self, problem: Problem, ctx: Context, run: Run) -> Memory:
        x = start(problem, self.iterations)
        return {"x": x, "first": torch.zeros_like(x), "second": torch.zeros_like(x)}

    def turn(self, k: int, memory: Memory, problem: Problem, ctx: Context, run: Run) -> Memory:
        t = self.grid(problem.path, max(self.steps - 1, 1), problem.path.bounds[1], problem.end)[k]
        m, mu, level = problem.measurement, memory["x"], problem.level(t)
        z, eps = problem.corrupted(mu, t, ctx, run, "red-diff")
        pull = problem.predict(z, t, ctx, run).noise - eps
        slope = self.lam * WEIGHTS[self.weight](level.rho) * pull - self.w_y * m.adjoint(m.residual(mu))
        b1, b2 = self.betas
        first = b1 * memory["first"] + (1.0 - b1) * slope
        second = b2 * memory["second"] + (1.0 - b2) * slope * slope
        step = first / (1.0 - b1 ** (k + 1)) / ((second / (1.0 - b2 ** (k + 1))).sqrt() + 1e-8)
        return {"x": mu - self.rate * step, "first": first, "second": second}

    def effort(self, problem: Problem) -> Effort:
        return Effort(2, 0, 10, 3, once=1 + 2 * self.iterations)
