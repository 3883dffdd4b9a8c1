"""What a posterior solver will ask for, said before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.run import Run
from scidiff.core.spec import Context

if TYPE_CHECKING:
    from scidiff.core.posterior.problem import Problem

NOISE_BYTES = 40  # per number while noise is drawn: 64-bit counters and float64 normals, whatever the state's precision
PIECE = 1 << 22  # numbers that a dot product turns into float64 at a time


@dataclass(frozen=True)
class Cost:
    """evaluations and backprops of the network a sample; projections: applications of A or A^T a sample, at most (an
    early stop saves some); memory: bytes at the peak for the whole batch, an estimate."""

    evaluations: int
    backprops: int
    projections: int
    memory: int

    def __str__(self) -> str:
        return (f"{self.evaluations} evaluations, {self.backprops} backprops, at most {self.projections} projections, "
                f"about {self.memory / 1e6:.3g} MB")


@dataclass(frozen=True)
class Effort:
    """What a solver needs for one evaluation of the network (a rule: for one step): projections and backprops, and how
    many arrays of the size of the state (images) and of the measurement (data) are alive at once, in CG with its dot
    products (krylov) and while noise is drawn (held). once: projections before the first or after the last step."""

    projections: int = 0
    backprops: int = 0
    images: int = 8
    data: int = 3
    held: int = 3
    krylov: bool = False
    once: int = 0


def memory(problem: Problem, batch: int, effort: Effort, network: float = 0.0, chunk: int | None = None) -> int:
    """Peak bytes of a run of `batch` samples; `network` is what one sample takes inside the network.

    Arrays of the solver, the noise of one step, and the activations of one chunk. Tables of the operator and weights of
    the network are there before and are not counted.
    """
    m, wide = problem.measurement, problem.dtype.itemsize
    image = math.prod(m.dims) * batch
    data = m.numbers * (batch // max(m.slices, 1))
    solving = (effort.images * image + effort.data * data) * wide + (16 * min(image, PIECE) if effort.krylov else 0)
    drawing = effort.held * image * wide + image * NOISE_BYTES
    return round(max(solving, drawing) + network * min(chunk or batch, batch))


def network_bytes(problem: Problem, t: float = 0.5) -> int:
    """Bytes that one sample keeps inside the network for a backprop, by one call; without gradients it takes less."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    ctx, run = Context.of(1, problem.measurement.y.device), Run(0)
    weights = {p.untyped_storage().data_ptr() for p in problem.denoiser.parameters()}
    state: dict[str, Any] = {n: torch.zeros(1, *ctx.dims(c.shape), dtype=problem.dtype, device=ctx.device)
                             for n, c in problem.spec.items()}
    state[problem.name].requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = problem.bound(problem.denoiser(state, t, ctx, run)[problem.name], state, t, ctx).data
    size = sum(n for place, n in kept.items() if place not in weights)
    del value
    return size
