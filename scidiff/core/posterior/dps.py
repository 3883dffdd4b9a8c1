"""DPS: after every step the state moves down the slope of the misfit, taken through the network (a rule).

    x_s <- x_s - zeta grad_{x_t} |y - A D(x_t)| = x_s + zeta J^T A^T (y - A D) / |y - A D|

The norm belongs to a sample (to a volume where the operator measures volumes). The gradient is taken while the network
is called, so a step costs one evaluation. zeta depends on the prior, the operator and the steps; it is tuned.
Source: Chung et al. 2023, arXiv 2209.14687.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from scidiff.core.denoiser import Denoiser, Predictions, Times
from scidiff.core.krylov import scaled
from scidiff.core.posterior.base import Effort, Guided, Linearised
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Rule
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import Grid, PowerGrid
from scidiff.core.spec import Context, State

SLOPE = "posterior/slope"


@dataclass(frozen=True)
class DPS(Guided):
    """zeta: length of the move. eta: fresh noise of the ancestral integrator."""

    role: ClassVar[str] = "rule"

    steps: int = 1000
    zeta: float = 1.0
    eta: float = 1.0
    grid: Grid | None = None

    def driver(self, problem: Problem) -> Fixed:
        return Fixed(Ancestral(self.eta, last="data"), self.steps, self.grid or PowerGrid(), t_end=problem.t_end)

    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        name, zeta = problem.name, self.zeta

        def descend(z_next: State, z_t: State, preds: Predictions, t: Any, s: Any, ctx: Context, run: Run) -> State:
            slope = run.memory.pop(SLOPE)
            return {name: torch.add(z_next[name], slope.to(z_next[name].dtype), alpha=-zeta)}

        return _Sloped(problem), (descend,)

    def effort(self, problem: Problem) -> Effort:
        return Effort(2, 1, 8, 3, held=4)


class _Sloped(Denoiser):
    """The denoiser as it is, which leaves grad_{x_t} |y - A D| in the memory of the run."""

    needs_grad = True

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem, self.denoiser, self.spec = problem, problem.denoiser, problem.spec
        self.self_conditioning = self.denoiser.self_conditioning

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        m = self.problem.measurement
        line = Linearised(self.problem, state, t, ctx, run)
        with torch.no_grad():
            r = m.residual(line.clean)
            unit = scaled(m.length(r).clamp(min=1e-30).reciprocal(), r)
            if run is not None:
                run.memory[SLOPE] = -line.pull(m.adjoint(unit))
            return line.predictions(line.clean)
