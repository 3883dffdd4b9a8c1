"""The interface of all posterior solvers: settings that know how to run and what that costs.

    run(problem, ctx, seed) -> Result         samples of p(x0 | y), one for each id of the context
    cost(problem, batch)    -> Cost           before running

A solver is one of three things. A wrapper changes the prediction and a rule the state after a step: both are handed to
the Sampler (`Guided`). A procedure is an outer algorithm of its own (scidiff.core.procedure). Rules are written on the
estimates D = E[x0 | x_t] of data and E = (x_t - c mu - alpha D) / sigma of noise, and so serve diffusions and flows.
Operators are best given at norm 1 (`draw` sees to it): weights and step lengths below are meant for that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.path.base import Prediction
from scidiff.core.plan import Driver
from scidiff.core.posterior.cost import Cost, Effort, memory
from scidiff.core.posterior.problem import Problem
from scidiff.core.run import Run
from scidiff.core.sampler import Result, Rule, Sampler
from scidiff.core.spec import Context, State

OnStep = Callable[[Any], None]


class Posterior(ABC):
    """Settings of one posterior solver; `role` is wrapper, rule or procedure."""

    role: ClassVar[str]

    @property
    def couples(self) -> bool:
        """Whether the samples of a batch are the slices of one volume and depend on each other."""
        return False

    @abstractmethod
    def run(self, problem: Problem, ctx: Context, seed: int | Run, solver: Driver | None = None,
            resume: Mapping[str, Any] | None = None, on_step: OnStep | None = None) -> Result:
        """Samples, as many as the context has ids. `solver` replaces the integrator of those that have one; `resume`
        is the `state_dict()` of what `on_step` was called with."""

    @abstractmethod
    def cost(self, problem: Problem, batch: int = 1, solver: Driver | None = None, network: float = 0.0,
             chunk: int | None = None) -> Cost:
        """What `run` will need for `batch` samples; `network`: bytes of one sample inside the network."""


class Guided(Posterior):
    """A wrapper or a rule, carried by the Sampler."""

    @abstractmethod
    def driver(self, problem: Problem) -> Driver:
        """The solver's own integrator for a problem."""

    @abstractmethod
    def attach(self, problem: Problem, own: bool = True) -> tuple[Denoiser, Sequence[Rule]]:
        """The denoiser and the rules for a Sampler; `own`: they will be used with the solver's own integrator."""

    @abstractmethod
    def effort(self, problem: Problem) -> Effort:
        """What comes with one evaluation of the network; for a rule, with one step."""

    def run(self, problem: Problem, ctx: Context, seed: int | Run, solver: Driver | None = None,
            resume: Mapping[str, Any] | None = None, on_step: OnStep | None = None) -> Result:
        denoiser, rules = self.attach(problem, solver is None)
        sampler = Sampler(problem.spec, denoiser, solver or self.driver(problem), rules, dtype=problem.dtype)
        return sampler.run(ctx, seed, resume=resume, on_step=on_step)

    def cost(self, problem: Problem, batch: int = 1, solver: Driver | None = None, network: float = 0.0,
             chunk: int | None = None) -> Cost:
        driver: Any = solver or self.driver(problem)
        plan = driver.plan(problem.spec) if hasattr(driver, "plan") else None
        calls = driver.total(problem.spec, 1.0) if plan is None else plan.nfe
        acting = plan.steps if plan is not None and self.role == "rule" else calls
        effort = self.effort(problem)
        return Cost(calls, effort.backprops * calls, effort.projections * acting + effort.once,
                    memory(problem, batch, effort, network, chunk))


class Corrected(Denoiser):
    """Replaces the clean estimate D of the measured component by correct(D, t, run).

    `keep_noise` leaves the estimate of the noise beside it as it was; it is computed from the new one otherwise.
    """

    def __init__(self, problem: Problem, correct: Callable[[Tensor, Times, Run | None], Tensor],
                 keep_noise: bool) -> None:
        super().__init__()
        self.problem, self.denoiser, self.spec = problem, problem.denoiser, problem.spec
        self.correct, self.keep_noise = correct, keep_noise
        self.needs_grad, self.self_conditioning = self.denoiser.needs_grad, self.denoiser.self_conditioning

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        preds = self.denoiser(state, t, ctx, run)
        pred = self.problem.bound(preds[self.problem.name], state, t, ctx)
        changed = pred.replace(self.correct(pred.data, t, run), self.keep_noise)
        return {**preds, self.problem.name: changed}


class Linearised:
    """A denoiser at one state: its clean estimate D [B, *dims] and products with J = dD / dx_t.

    The graph of one call is kept until this object goes. Everything handed out is free of it.
    """

    def __init__(self, problem: Problem, state: State, t: Times, ctx: Context, run: Run | None) -> None:
        name = problem.name
        with torch.enable_grad():
            self.x = state[name].detach().clone().requires_grad_()
            moving = {**state, name: self.x}
            preds = problem.denoiser(moving, t, ctx, run)
            self._clean = problem.bound(preds[name], moving, t, ctx).data
        self.clean = self._clean.detach()
        self.others = {n: Prediction(p.kind, p.value.detach()) for n, p in preds.items() if n != name}
        self._t, self._site, self._problem = t, problem.site(ctx), problem

    def pull(self, v: Tensor) -> Tensor:
        """J^T v."""
        return torch.autograd.grad(self._clean, self.x, v.to(self._clean.dtype), retain_graph=True)[0].detach()

    def predictions(self, clean: Tensor) -> Predictions:
        """The predictions of all components, with `clean` as the estimate of the measured one."""
        p = self._problem
        own = Prediction("data", clean, p.path, self.x.detach(), time_of(self._t, p.name), self._site)
        return {**self.others, p.name: own}
