"""The reference solver with an error of known size: white noise after every interval.

    u_{n+1} = S_D(u_n) + sigma xi_n,    xi_n white on the grid: independent standard normals, so that <xi^2> = 1

with S_D the solver over an interval D. Its one-step mean squared error is sigma^2 (a field) and spreads evenly over the
wavenumbers of the grid: what a surrogate would do whose error has no structure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scidiff.core.run import Run
from scidiff.core.spec import Context
from scidiff.domains.pde.equations.spectral import SpectralSolver


def perturbed_rollout(solver: SpectralSolver, initial: Tensor, steps: int, every: int, sigma: float | Tensor,
                      seed: int = 0, ids: Tensor | None = None) -> Tensor:
    """[B, C, *shape] -> [B, steps, C, *shape]: `every` solver steps and then noise, `steps` times.

    `sigma` is one rms for all or one a sample [B]. The noise depends on (seed, id, step) alone; ids default to 0..B-1.
    """
    state = initial.to(solver.device, solver.dtype)
    numbers = torch.arange(len(state)) if ids is None else ids
    ctx = Context(numbers.to(solver.device))
    size = torch.as_tensor(sigma, dtype=solver.dtype, device=solver.device)
    size = size.view(-1, *[1] * (state.dim() - 1)) if size.dim() else size
    out = torch.empty(len(state), steps, *state.shape[1:], dtype=solver.dtype, device=solver.device)
    for step in range(steps):
        white = Run(seed, stream=step + 1).noise("field", "white", tuple(state.shape[1:]), ctx)
        state = solver.rollout(state, every, every)[:, 0] + size * white.to(solver.dtype)
        out[:, step] = state
    return out
