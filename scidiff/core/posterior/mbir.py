"""DiffusionMBIR: a predictor-corrector walk, and a data step on the whole volume after each level (a rule).

    predictor   x <- x + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) xi          (on a VE path)
    corrector   x <- x + e score + sqrt(2 e) xi,   e = 2 (snr |xi| / |score|)^2, norms over the volume
    data step   x <- alpha_s step((x - c mu) / alpha_s)

The batch is one volume, slice by slice. `step` is any `DataStep`: the method of the paper is one iteration of ADMM with
total variation between slices, whose duals live through all levels. Without one, `cg` iterations of CGLS from x take
its place (no term between slices). At the end the misfit is spread back once, x <- x + A^T (y - A x) / A^T A 1.
Two evaluations a level. On paths that scale the signal, the predictor is the path's own posterior.
Source: Chung et al. 2023, arXiv 2211.10655.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions
from scidiff.core.errors import UsageError
from scidiff.core.posterior.base import Effort, Guided
from scidiff.core.posterior.consistency import DataStep, step_cost, stepped
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Rule
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import PowerGrid
from scidiff.core.solvers.predictor_corrector import PredictorCorrector
from scidiff.core.solvers.reverse import Reverse
from scidiff.core.spec import Context, State


@dataclass(frozen=True)
class MBIR(Guided):
    """levels: of noise. t_end: time of the last one (default: the path's own). snr: of the corrector; 0 leaves it out.
    final: the last correction."""

    role: ClassVar[str] = "rule"

    levels: int = 2000
    snr: float = 0.16
    step: DataStep | None = None
    cg: int = 1
    t_end: float | None = None
    final: bool = True

    def __post_init__(self) -> None:
        if self.levels < 2 or self.snr < 0.0 or self.cg < 1:
            raise UsageError("DiffusionMBIR needs two levels or more, snr >= 0 and an iteration of CG.")

    @property
    def couples(self) -> bool:
        return True

    def driver(self, problem: Problem) -> Fixed:
        still = problem.path.coefficients(problem.path.bounds[1]).drift == 0.0
        method = PredictorCorrector(Reverse() if still else Ancestral(1.0, last="data"), 1 if self.snr > 0.0 else 0,
                                    self.snr or 1.0, batch_norms=True)
        return Fixed(method, self.levels, PowerGrid(), t_end=self.t_end or problem.t_end)

    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        return problem.denoiser, (_Volume(problem, self),)

    def effort(self, problem: Problem) -> Effort:
        own = 3 + 2 * self.cg if self.step is None else step_cost(self.step)
        once = (4 if self.final else 0) + (0 if self.step is None else 1)
        return Effort(own, 0, 12, 4, krylov=True, once=once)


class _Volume:
    needs_grad = False

    def __init__(self, problem: Problem, settings: MBIR) -> None:
        self.problem, self.settings = problem, settings

    def __call__(self, z_next: State, z_t: State, preds: Predictions, t: Any, s: Any, ctx: Context, run: Run) -> State:
        problem, name, site = self.problem, self.problem.name, self.problem.site(ctx)
        k = problem.reached(t, s, self.settings.t_end)
        clean = problem.path.shifted(z_next[name], -k.c, site) if k.c != 0.0 else z_next[name]
        clean = self._step(clean / k.alpha, run)
        if k.sigma == 0.0:
            return {name: self._spread(clean) if self.settings.final else clean}
        return {name: problem.path.shifted(k.alpha * clean, k.c, site)}

    def _step(self, v: Tensor, run: Run) -> Tensor:
        m, step = self.problem.measurement, self.settings.step
        return m.fitted(v, self.settings.cg, False) if step is None else stepped(step, v, m, run)

    def _spread(self, x: Tensor) -> Tensor:
        m = self.problem.measurement
        weight = m.normal(torch.ones_like(x))
        seen = weight > 1e-6 * weight.max()
        return x + torch.where(seen, m.adjoint(m.residual(x)) / torch.where(seen, weight, 1.0), 0.0)
