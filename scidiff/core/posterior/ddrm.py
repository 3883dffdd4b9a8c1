"""DDRM: the step is made in the singular basis of the operator, direction by direction (a rule).

With A = U diag(s_i) V^T, y_i = (U^T y)_i / s_i known up to w_i = sigma_y / s_i, coefficients D_i, E_i, xi_i of V^T, and
rho = sigma / alpha at the time reached,

    s_i = 0        x_i = D_i + rho ( sqrt(1 - eta^2) E_i + eta xi_i )
    rho < w_i      x_i = D_i + rho ( sqrt(1 - eta^2) (y_i - D_i) / w_i + eta xi_i )
    rho >= w_i     x_i = (1 - eta_b) D_i + eta_b y_i + sqrt(rho^2 - eta_b^2 w_i^2) xi_i

and x_s = alpha_s x + c_s mu. Source: Kawar et al. 2022, arXiv 2201.11793.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions
from scidiff.core.errors import UsageError
from scidiff.core.operator import SVD
from scidiff.core.posterior.base import Effort, Guided
from scidiff.core.posterior.mix import Mix
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Rule
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import Grid
from scidiff.core.spec import Context, State


@dataclass(frozen=True)
class DDRM(Guided):
    """eta: fresh noise where the measurement says nothing or little; eta_b: weight of y where it says more."""

    role: ClassVar[str] = "rule"

    steps: int = 20
    eta: float = 0.85
    eta_b: float = 1.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if not (0.0 <= self.eta <= 1.0 and 0.0 <= self.eta_b <= 1.0):
            raise UsageError("The shares eta and eta_b of DDRM lie in [0, 1].")

    def driver(self, problem: Problem) -> Fixed:
        return Fixed(Mix(0.0), self.steps, self.grid, t_end=problem.t_end)

    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        svd = problem.measurement.operator.svd()
        if svd is None:
            raise UsageError(f"DDRM needs the singular values of the operator, and {problem.measurement.operator} has "
                             "none in closed form.", "Use posterior=dds or posterior=diffpir.")
        return problem.denoiser, (_Spectral(problem, svd, self),)

    def effort(self, problem: Problem) -> Effort:
        return Effort(5, 0, 11, 4)


class _Spectral:
    needs_grad = False

    def __init__(self, problem: Problem, svd: SVD, settings: DDRM) -> None:
        self.problem, self.svd, self.settings = problem, svd, settings

    def __call__(self, z_next: State, z_t: State, preds: Predictions, t: Any, s: Any, ctx: Context, run: Run) -> State:
        problem, name, eta = self.problem, self.problem.name, self.settings.eta
        pred, site = preds[name], self.problem.site(ctx)
        then = problem.reached(t, s)
        if then.sigma == 0.0 and problem.measurement.sigma > 0.0:
            return {name: pred.data}
        xi = problem.noise(ctx, run, "ddrm")
        rho = then.sigma / then.alpha
        blind = pred.data + rho * (math.sqrt(1.0 - eta * eta) * pred.noise + eta * xi)
        out = then.alpha * self._seen(blind, pred.data, xi, rho)
        return {name: problem.path.shifted(out, then.c, site) if then.c != 0.0 else out}

    def _seen(self, blind: Tensor, clean: Tensor, xi: Tensor, rho: float) -> Tensor:
        """`blind` with the coefficients that the measurement knows something about replaced."""
        m, eta, eta_b = self.problem.measurement, self.settings.eta, self.settings.eta_b
        goal, d, z = self.svd.ut(m.y), self.svd.vt(m.fold(clean)), self.svd.vt(m.fold(xi))
        s = self.svd.along(d)
        known = s > float(s.max()) * torch.finfo(s.dtype).eps * 16
        safe = torch.where(known, s, 1.0)
        goal, w = goal / safe, m.sigma / safe
        coarse = d + rho * (math.sqrt(1.0 - eta * eta) * (goal - d) / w.clamp(min=torch.finfo(w.dtype).tiny) + eta * z)
        fine = (1.0 - eta_b) * d + eta_b * goal + (rho * rho - (eta_b * w) ** 2).clamp(min=0.0).sqrt() * z
        new = torch.where(w <= rho, fine, coarse)
        return blind + m.flat(self.svd.v(torch.where(known, new - self.svd.vt(m.fold(blind)), 0.0)))
