"""Chaos by twins: a copy of a state, disturbed a little, shows whether neighbours part and how fast.

The disturbance is one fixed random field for all samples, so that a verdict does not depend on the batch. Twins march
in float64: a distance of 1e-6 is lost in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.pde.equations.spectral import SpectralSolver


def disturbance(u0: Tensor, size: float, seed: int = 0) -> Tensor:
    """A smooth random field without a mean, the same for every sample up to its rms: `size` times that of u0."""
    axes = tuple(range(2 - u0.dim(), 0))
    noise = torch.randn(1, *u0.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = torch.fft.rfftn(noise.to(u0.device), dim=axes, norm="forward")
    v[(..., *[0] * len(axes))] = 0.0  # the mean is conserved: a difference in it would never grow
    for axis in axes:
        index = torch.arange(v.shape[axis], device=u0.device)
        low = torch.minimum(index, u0.shape[axis] - index) <= max(u0.shape[axis] // 8, 2)
        v = v * low.view([-1] + [1] * (-axis - 1))
    smooth = torch.fft.irfftn(v, s=u0.shape[2:], dim=axes, norm="forward")
    return smooth * (size * rms(u0) / rms(smooth)).view(-1, *[1] * (u0.dim() - 1))


def rms(u: Tensor) -> Tensor:
    """Root mean square of every sample, [B]."""
    return u.flatten(1).square().mean(1).sqrt()


def twins(solver: SpectralSolver) -> SpectralSolver:
    """The same solver in float64, for a batch with its twins behind it."""
    if solver.dtype == torch.float64 and solver.rows is None:
        return solver
    equation, extent, dt = solver.equation, solver.extent, solver.dt
    if solver.rows is not None:
        order = list(range(solver.rows)) * 2
        equation = equation[order]
        extent = extent[order] if isinstance(extent, Tensor) and extent.dim() else extent
        dt = dt[order] if isinstance(dt, Tensor) else dt
    return SpectralSolver(equation, solver.shape, extent, dt, solver.order, solver.dealias, torch.float64,
                          solver.device)


def steps_of(solver: SpectralSolver, time: float) -> int:
    """Steps that cover a time, by the smallest dt of the batch."""
    dt = float(solver.dt.min()) if isinstance(solver.dt, Tensor) else solver.dt
    return max(1, round(time / dt))


def laminar(solver: SpectralSolver, u0: Tensor, horizon: float = 100.0, perturbation: float = 1e-6,
            growth: float = 10.0) -> Tensor:
    """Bool [B]: within `horizon` time units a twin `perturbation` away never was `growth` times further away.

    Steady and travelling cell states of Kuramoto-Sivashinsky are laminar in this sense. Chaos has quiet phases: at
    L = 64 none lasts 100 units, at L = 22 (exponent 0.048) one state in twenty has one; there take a horizon of 300.
    """
    u0 = u0.to(solver.device, torch.float64)
    apart = disturbance(u0, perturbation)
    every = max(1, steps_of(solver, horizon) // 20)
    first, second = twins(solver).rollout(torch.cat([u0, u0 + apart]), 20 * every, every).chunk(2)
    gap = (second - first).flatten(2).square().mean(2).sqrt().amax(1)
    return ~(gap > growth * rms(apart))


def lyapunov(solver: SpectralSolver, u0: Tensor, time: float, every: float = 2.0, perturbation: float = 1e-6,
             discard: float = 0.0) -> Tensor:
    """Leading Lyapunov exponent [B] per time unit, over `time` after `discard`; twins are pulled back each `every`."""
    if time < every:
        raise UsageError(f"An exponent over {time:g} time units cannot be measured in pieces of {every:g}.")
    u = u0.to(solver.device, torch.float64)
    size = perturbation * rms(u)
    other = u + disturbance(u, perturbation)
    both, steps = twins(solver), steps_of(solver, every)
    total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    before, after = round(discard / every), round(time / every)
    for piece in range(before + after):
        u, other = both.rollout(torch.cat([u, other]), steps, steps)[:, -1].chunk(2)
        gap = other - u
        length = rms(gap)
        if piece >= before:
            total += torch.log(length / size)
        other = u + gap * (size / length).view(-1, *[1] * (u.dim() - 1))
    elapsed = steps * after * (solver.dt.to(u.device, torch.float64) if isinstance(solver.dt, Tensor) else solver.dt)
    return total / elapsed
