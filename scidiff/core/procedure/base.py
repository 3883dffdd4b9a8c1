"""Outer algorithms: turns that call the network, or a whole inner Sampler, and never integrate the path as one run.

    memory = begin();   for k = 0 .. turns - 1:  memory = turn(k, memory);   the samples are memory["x"]

A procedure is a posterior solver like the others (`run` and `cost`). Between two turns a run is its memory, a handful
of tensors: `on_step` is called with a `Progress`, whose `state_dict()` continues the run elsewhere. The noise of turn k
is keyed by step k; an inner Sampler draws from streams of its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import NonFinite, UsageError
from scidiff.core.plan import Driver
from scidiff.core.posterior.base import OnStep, Posterior
from scidiff.core.posterior.cost import Cost, Effort, memory
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Result, Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.spec import Context

Memory = dict[str, Tensor]
_INNER = 16  # bits of the streams that inner samplers take beside the run's own


@dataclass
class Progress:
    """Where a procedure stands: turns done (`stage` of `total`), its tensors, the run."""

    stage: int
    total: int
    memory: Memory
    run: Run
    name: str

    @property
    def state(self) -> dict[str, Tensor]:
        return {self.name: self.memory["x"]}

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "memory": dict(self.memory), "run": self.run.state_dict()}


class Procedure(Posterior):
    """A posterior solver that is an outer algorithm."""

    role: ClassVar[str] = "procedure"

    @property
    @abstractmethod
    def turns(self) -> int:
        """How many turns there are."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Evaluations of the network in one turn."""

    @abstractmethod
    def begin(self, problem: Problem, ctx: Context, run: Run) -> Memory:
        """The tensors before the first turn; `x` is the estimate, [B, *dims]."""

    @abstractmethod
    def turn(self, k: int, memory: Memory, problem: Problem, ctx: Context, run: Run) -> Memory:
        """The tensors after turn k."""

    @abstractmethod
    def effort(self, problem: Problem) -> Effort:
        """What one turn takes; `once`: projections before the first."""

    def run(self, problem: Problem, ctx: Context, seed: int | Run, solver: Driver | None = None,
            resume: Mapping[str, Any] | None = None, on_step: OnStep | None = None) -> Result:
        if solver is not None:
            raise UsageError(f"{type(self).__name__} has no integrator that could be replaced.",
                             "Leave the solver out.")
        if len(problem.spec) != 1:
            raise UsageError(f"{type(self).__name__} moves states of one component, not of {len(problem.spec)}.",
                             "Choose a wrapper or a rule, such as posterior=dds.")
        run = seed if isinstance(seed, Run) else Run(seed)
        first = 0
        with torch.inference_mode(not problem.denoiser.needs_grad):
            if resume is not None:
                run, first, memory = Run.from_state_dict(resume["run"]), resume["stage"], dict(resume["memory"])
            else:
                run.step = 0
                memory = self.begin(problem, ctx, run)
            for k in range(first, self.turns):
                run.step = k
                memory = {n: v.detach() for n, v in self.turn(k, memory, problem, ctx, run).items()}
                if on_step is not None:
                    on_step(Progress(k + 1, self.turns, memory, run, problem.name))
        if not bool(torch.isfinite(memory["x"]).all()):
            raise NonFinite(f"{type(self).__name__} ended with values that are not finite.",
                            "Take smaller steps, or precision=64.")
        return Result({problem.name: memory["x"]}, {}, self.turns * self.calls, run)

    def cost(self, problem: Problem, batch: int = 1, solver: Driver | None = None, network: float = 0.0,
             chunk: int | None = None) -> Cost:
        effort = self.effort(problem)
        return Cost(self.turns * self.calls, 0, self.turns * effort.projections + effort.once,
                    memory(problem, batch, effort, network, chunk))


class Inner:
    """Integrates the path from a state at time t to the data, as a part of a turn; eta = 0: the ODE, 1: the SDE."""

    def __init__(self, problem: Problem, steps: int, eta: float) -> None:
        driver = Fixed(Ancestral(eta, last="data"), steps, t_end=problem.t_end)
        self.name = problem.name
        self.sampler = Sampler(problem.spec, problem.denoiser, driver, dtype=problem.dtype)

    @classmethod
    def of(cls, problem: Problem, steps: int, eta: float) -> Inner:
        """The one of a problem, made once: its plans are kept."""
        made = problem.made
        if (steps, eta) not in made:
            made[steps, eta] = cls(problem, steps, eta)
        return made[steps, eta]

    def __call__(self, x: Tensor, t: float, k: int, ctx: Context, run: Run) -> Tensor:
        """x_t [B, *dims] to a sample (or the end of the ODE) at t = 0, with noise of turn k alone."""
        step, stream, kept = run.step, run.stream, run.memory
        run.stream, run.memory = stream + ((k + 1) << _INNER), {}
        try:
            return self.sampler.run(ctx, run, start={self.name: x}, t_start=t).state[self.name]
        finally:
            run.step, run.stream, run.memory = step, stream, kept


def time_of_ratio(problem: Problem, rho: float) -> float:
    """The time at which sigma / alpha = rho, within the bounds of the path and off its very end."""
    least = problem.path.coefficients(problem.end).rho
    if rho <= least * (1.0 + 1e-6):
        raise UsageError(f"The level of noise {rho:g} lies below those of the path, from {least:.3g} on.",
                         "End at a higher level.")
    return float(min(problem.path.t_of_lambda(-math.log(rho)), problem.path.bounds[1]))


def ratios(problem: Problem, count: int, high: float, low: float, rho: float = 7.0) -> list[float]:
    """`count` falling levels sigma / alpha, even in their 1/rho-th power (Karras et al. 2022, arXiv 2206.00364)."""
    top = min(high, problem.path.coefficients(problem.path.bounds[1]).rho)
    if not 0.0 < low < top:
        raise UsageError(f"Levels of noise fall from {top:g} to a smaller positive number, unlike {low:g}.")
    a, b = top ** (1.0 / rho), low ** (1.0 / rho)
    return [(a + (b - a) * i / max(count - 1, 1)) ** rho for i in range(count)]


def start(problem: Problem, iterations: int) -> Tensor:
    """A^+ y, stopped at the noise level: where a procedure begins, [B, *dims]."""
    m = problem.measurement
    return m.pinv(m.y, iterations, m.sigma)
