"""What the equation itself says: developed first states, and the future that a forecast is held against.

References are solved in float64 with the equation's own accurate step (Kuramoto-Sivashinsky: 0.05; a reference made
with 0.2 is itself wrong after 79 time units at L = 64). Where the data come from a finer grid (`solve_shape`), so do
first states and references: a first state is carried to that grid (its unresolved scales are zero there), solved, and
the solution is cut to the domain's own grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scidiff.domains.pde.data import resample

if TYPE_CHECKING:
    from scidiff.domains.pde import PdeDomain
    from scidiff.domains.pde.equations import SpectralSolver

Progress = Callable[[str, int, int | None], None]


def solver(domain: PdeDomain, dtype: torch.dtype = torch.float64,
           dt: float | None = None) -> tuple[SpectralSolver, int]:
    """A solver on the grid of the data, whose step divides the domain's interval, and the steps in one interval."""
    from scidiff.domains.pde.equations import SpectralSolver

    law, interval = domain.law, float(domain.interval or 1.0)
    every = max(math.ceil(interval / (dt or law.typical.dt) - 1e-9), 1)
    grid = domain.solve_shape or domain.shape
    return SpectralSolver(law, grid, domain.extent, interval / every, dtype=dtype), every


def developed(domain: PdeDomain, ids: Tensor, seed: int, burn_in: float | None = None) -> Tensor:
    """`history` frames [B, H, C, *space] on the attractor (float64, physical units), by (seed, id) alone."""
    stepper, every = solver(domain)
    law = domain.law
    start = law.initial(ids, seed, domain.solve_shape or domain.shape, domain.extent, torch.float64)
    waiting = next(x for x in (burn_in, domain.burn_in, law.burn_in) if x is not None)
    steps = max(math.ceil(waiting / float(domain.interval or 1.0)), 0) * every
    state = stepper.rollout(start, steps, steps)[:, -1] if steps else start
    frames = state.unsqueeze(1)
    if domain.history > 1:
        frames = torch.cat([frames, stepper.rollout(state, (domain.history - 1) * every, every)], 1)
    return resample(frames, domain.shape)


def future(domain: PdeDomain, state: Tensor, steps: int, progress: Progress | None = None) -> Tensor:
    """The next `steps` frames [B, S, C, *space] after a state [B, C, *space], both float64 in physical units."""
    stepper, every = solver(domain)
    fine = resample(state.to(torch.float64), domain.solve_shape or domain.shape)
    out = [resample(stepper.rollout(part, steps * every, every), domain.shape) for part in fine.split(256)]
    if progress is not None:
        progress("Solving the reference", len(state), len(state))
    return torch.cat(out)
