"""The entry: samples of p(x0 | y) from a measurement, a prior and a posterior solver.

    draw(operator, y, denoiser, spec, posterior, sigma_y, samples=8)  ->  Draws.samples [8, B, *dims]

The noise of sample j of item i of the measurement depends on (seed, id_i, j) alone: neither on how many samples are
drawn, nor on how many run `together`, nor on `chunk`, the number that the network sees at once. Solvers that couple the
slices of a volume run one sample at a time, so that duals and norms belong to one volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator
from scidiff.core.plan import Driver
from scidiff.core.posterior.base import OnStep, Posterior
from scidiff.core.posterior.chunked import Chunked
from scidiff.core.posterior.cost import Cost
from scidiff.core.posterior.problem import Measurement, Problem
from scidiff.core.sampler import Result
from scidiff.core.spec import Context, StateSpec

_STRIDE = 1 << 32  # between the ids of two samples of one item


@dataclass
class Draws:
    """samples [S, B, *dims]; nfe: network calls for each; cost: what was expected for all that run together."""

    samples: Tensor
    nfe: int
    cost: Cost

    @property
    def mean(self) -> Tensor:
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples; zeros of one sample."""
        return self.samples.std(0, correction=1) if len(self.samples) > 1 else torch.zeros_like(self.samples[0])


def problem_of(operator: LinearOperator, y: Tensor, denoiser: Denoiser, spec: StateSpec, sigma: float = 0.0,
               component: str | None = None, unit_norm: bool = True, chunk: int | None = None,
               dtype: torch.dtype = torch.float32) -> Problem:
    """The problem as solvers take it: checked, in the precision of the run and, by default, at norm 1."""
    name = component or next(iter(spec))
    dims = spec[name].shape if name in spec else operator.in_shape
    measurement = Measurement(operator, y, sigma, dims).to(dtype)  # type: ignore[arg-type]
    if unit_norm:
        measurement = measurement.normalised()
    prior = denoiser if chunk is None else Chunked(denoiser, chunk)
    return Problem(prior, spec, measurement, name, dtype)


def stream(problem: Problem, posterior: Posterior, samples: int = 1, seed: int = 0, solver: Driver | None = None,
           context: Context | None = None, together: int | None = None, on_step: OnStep | None = None,
           start: int = 0, resume: Mapping[str, Any] | None = None) -> Iterator[tuple[range, Result]]:
    """Groups of samples as they are done: (their numbers, Result with a state [group * B, *dims], sample by sample).

    Nothing is kept here, so moments of many samples can be gathered on the way. `start` leaves out the samples before
    that number; `resume`, the `state_dict()` of what `on_step` was called with, continues the first group.
    """
    if samples < 1 or (together is not None and together < 1):
        raise UsageError(f"At least one sample is drawn at a time, not {samples} in groups of {together}.")
    measurement, batch = problem.measurement, problem.measurement.count
    item = context if context is not None else Context.of(batch, measurement.y.device)
    if item.batch != batch:
        raise UsageError(f"The context describes {item.batch} samples and the measurement {batch}.")
    width = 1 if posterior.couples else min(together or samples, samples)
    every = torch.arange(batch, device=item.device)
    for first in range(start, samples, width):
        numbers = range(first, min(first + width, samples))
        index = every.repeat(len(numbers))
        ctx = item.take(index)
        offset = torch.arange(first, numbers.stop, device=item.device).repeat_interleave(batch) * _STRIDE
        ctx = replace(ctx, ids=ctx.ids + offset)
        part = replace(problem, measurement=measurement.repeated(len(numbers)))
        begun = resume if first == start else None
        yield numbers, posterior.run(part, ctx, seed, solver, begun, on_step)


def draw(operator: LinearOperator, y: Tensor, denoiser: Denoiser, spec: StateSpec, posterior: Posterior,
         sigma: float = 0.0, samples: int = 1, seed: int = 0, solver: Driver | None = None,
         component: str | None = None, context: Context | None = None, together: int | None = None,
         chunk: int | None = None, unit_norm: bool = True, dtype: torch.dtype = torch.float32,
         on_step: OnStep | None = None) -> Draws:
    """Samples of x0 given y = A x0 + sigma n.

    y [B, *out_shape] holds B measurements, or [V, *out_shape] of volumes whose slices are the batch. solver: an
    integrator in place of the posterior's own. context: conditions and ids of the B items. together: samples that run
    at once (default: all). chunk: items that the network sees at once. unit_norm: divide operator, y and sigma by the
    operator's norm, so that settings mean the same for every operator.
    """
    problem = problem_of(operator, y, denoiser, spec, sigma, component, unit_norm, chunk, dtype)
    batch, width = problem.measurement.count, 1 if posterior.couples else min(together or samples, samples)
    cost = posterior.cost(problem, batch * width, solver, chunk=chunk)
    done, calls = [], 0
    for numbers, result in stream(problem, posterior, samples, seed, solver, context, together, on_step):
        done.append(result.state[problem.name].unflatten(0, (len(numbers), batch)))
        calls = result.nfe
    return Draws(torch.cat(done), calls, cost)
