"""DDNM, DiffPIR, DDS: the clean estimate is brought to agree with the measurement, without backprops (wrappers).

    DDNM      D' = D + A^+ (y - A D)                                           keeps E        eta 0.85
    DiffPIR   D' = argmin |y - A x|^2 + p |x - D|^2,  p = lam sigma_y^2/rho^2  E from D'      eta = sqrt(xi)
    DDS       D' = M iterations of CG from D on A^T A x = A^T y, or, with a weight g, on
                   (I + g A^T A) x = D + g A^T y; or a data step given from outside            keeps E, eta 0.85

and a step mixes D' with noise (`Mix`). Conjugate gradients are a regulariser themselves: few iterations leave alone
what the measurement says little about. With `stop` they rest at the noise level |y - A x| = sqrt(m) sigma_y; without,
DDNM and DDS fit the noise. Sources: Wang et al. 2023, arXiv 2212.00490; Zhu et al. 2023, arXiv 2305.08995; Chung et al.
2024, arXiv 2303.05754.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Times
from scidiff.core.errors import UsageError
from scidiff.core.krylov import conjugate_gradient
from scidiff.core.operator import LinearOperator
from scidiff.core.posterior.base import Corrected, Effort, Guided
from scidiff.core.posterior.mix import Mix
from scidiff.core.posterior.problem import Measurement, Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Rule
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import Grid

STEP = "posterior/step"


class DataStep(Protocol):
    """A data step from outside: step(x, y, operator, memory) -> x that agrees better with y.

    x is the whole volume, [Z, *in_shape] slice by slice, or [1, *in_shape] where the operator measures volumes.
    `memory` is a dictionary of the run: what is put there (duals, as tensors) is there at the next step, belongs to
    this volume alone and is kept in checkpoints. `pairs` (optional) counts applications of A^T A in a step.
    """

    def __call__(self, x: Tensor, y: Tensor, operator: LinearOperator, memory: MutableMapping[str, Any]) -> Tensor: ...


def stepped(step: DataStep, x: Tensor, measurement: Measurement, run: Run | None) -> Tensor:
    """A data step on x [B, *dims]."""
    memory = {} if run is None else run.memory.setdefault(STEP, {})
    return measurement.flat(step(measurement.fold(x), measurement.y, measurement.operator, memory))


def step_cost(step: DataStep) -> int:
    """Applications of A or A^T in a data step, as far as it says; the first may need one more."""
    return 2 * int(getattr(step, "pairs", 0))


class _Consistent(Guided):
    """What the three share: a correction of D, made from the level of noise, and a mixing step."""

    role: ClassVar[str] = "wrapper"
    keeps_noise: ClassVar[bool] = True

    steps: int
    grid: Grid | None

    def share(self) -> float:
        raise NotImplementedError

    def correction(self, problem: Problem) -> Callable[[Tensor, Times, Run | None], Tensor]:
        raise NotImplementedError

    def driver(self, problem: Problem) -> Fixed:
        return Fixed(Mix(self.share()), self.steps, self.grid, t_end=problem.t_end)

    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        # Another integrator may move by E alone; a noise estimate left as it was would hide the correction from it.
        return Corrected(problem, self.correction(problem), self.keeps_noise and own), ()


@dataclass(frozen=True)
class DDNM(_Consistent):
    """iterations: of CGLS, where A^+ has no closed form or has to stop at the noise level."""

    steps: int = 100
    eta: float = 0.85
    iterations: int = 50
    stop: bool = True
    grid: Grid | None = None

    def share(self) -> float:
        return self.eta

    def correction(self, problem: Problem) -> Callable[[Tensor, Times, Run | None], Tensor]:
        m, noise = problem.measurement, problem.measurement.sigma if self.stop else 0.0
        return lambda clean, t, run: clean + m.pinv(m.residual(clean), self.iterations, noise)

    def effort(self, problem: Problem) -> Effort:
        m = problem.measurement
        direct = m.operator.svd() is not None and not (self.stop and m.sigma > 0.0)
        return Effort(3, 0, 10, 4) if direct else Effort(2 + 2 * self.iterations, 0, 12, 4, krylov=True)


@dataclass(frozen=True)
class DiffPIR(_Consistent):
    """lam: how much the prior counts against the measurement. xi: share of fresh noise in the variance."""

    keeps_noise: ClassVar[bool] = False

    steps: int = 100
    lam: float = 1.0
    xi: float = 1.0
    iterations: int = 50
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if not self.lam > 0.0 or not 0.0 <= self.xi <= 1.0:
            raise UsageError("DiffPIR needs a positive lam and a share xi in [0, 1].")

    def share(self) -> float:
        return math.sqrt(self.xi)

    def correction(self, problem: Problem) -> Callable[[Tensor, Times, Run | None], Tensor]:
        m = problem.measurement

        def correct(clean: Tensor, t: Times, run: Run | None) -> Tensor:
            rho, p = problem.level(t).rho, self.lam * m.sigma**2
            return m.prox(clean, rho * rho / p if p > 0.0 else math.inf, self.iterations)

        return correct

    def effort(self, problem: Problem) -> Effort:
        krylov = problem.measurement.operator.svd() is None
        return Effort(problem.measurement.iterations_cost(self.iterations), 0, 11 if krylov else 10, 4, krylov=krylov)


@dataclass(frozen=True)
class DDS(_Consistent):
    """weight: g; None solves for the measurement alone. relative: g is in units of 1 / sigma_y^2. step: a data step
    from outside, such as ADMM with total variation along z, in place of CG; the batch is then one volume."""

    steps: int = 50
    eta: float = 0.85
    cg: int = 5
    weight: float | None = None
    relative: bool = False
    stop: bool = True
    step: DataStep | None = None
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.cg < 1 or (self.weight is not None and not self.weight > 0.0):
            raise UsageError("DDS needs at least one iteration of CG and a positive weight.")

    @property
    def couples(self) -> bool:
        return self.step is not None

    def share(self) -> float:
        return self.eta

    def correction(self, problem: Problem) -> Callable[[Tensor, Times, Run | None], Tensor]:
        m, step = problem.measurement, self.step
        if step is not None:
            return lambda clean, t, run: stepped(step, clean, m, run)
        if self.weight is None or (self.relative and m.sigma == 0.0):
            return lambda clean, t, run: m.fitted(clean, self.cg, self.stop)
        weight = self.weight / m.sigma**2 if self.relative else self.weight
        return lambda clean, t, run: self._pulled(m, clean, weight)

    def _pulled(self, m: Measurement, clean: Tensor, weight: float) -> Tensor:
        """CG on (I + g A^T A) x = D + g A^T y from D, in the operator's layout: one Krylov space a measurement."""
        start, a = m.fold(clean), m.operator
        rest = (lambda x, r: m.fits(x)) if self.stop and m.sigma > 0.0 else None
        rhs = torch.add(start, a.adjoint(m.y), alpha=weight)
        return m.flat(conjugate_gradient(lambda p: torch.add(p, a.normal(p), alpha=weight), rhs, start, self.cg, 1e-6,
                                         rest))

    def effort(self, problem: Problem) -> Effort:
        if self.step is not None:
            return Effort(step_cost(self.step), 0, 12, 4, krylov=True, once=1)
        if self.weight is None or (self.relative and problem.measurement.sigma == 0.0):
            return Effort(3 + 2 * self.cg, 0, 11, 4, krylov=True)
        looks = self.cg if self.stop and problem.measurement.sigma > 0.0 else 0
        return Effort(3 + 2 * self.cg + looks, 0, 11, 4, krylov=True)
