"""References are solved where the data were: on the finer grid, then cut."""

from __future__ import annotations

import torch

from scidiff.domains.pde import PdeDomain
from scidiff.domains.pde.data import resample
from scidiff.domains.pde.equations import SpectralSolver
from scidiff.domains.pde.reference import developed, future

SHAPE, FINE, BOX = (16, 16), (32, 32), (6.283185307179586,) * 2


def domain(**more):
    law = {"name": "kolmogorov", "viscosity": 0.05, "drag": 0.1, "forcing_wavenumber": 4, "forcing_amplitude": 1.0}
    return PdeDomain(equation=law, fields=("w",), shape=SHAPE, extent=BOX, interval=0.2, burn_in=2.0, **more)


def test_a_reference_is_the_fine_solution_cut_to_the_grid():
    there = domain(solve_shape=FINE)
    first = developed(there, torch.arange(2), 3)
    assert first.shape == (2, 1, 1, *SHAPE)
    frames = future(there, first[:, -1], 3)
    every = round(0.2 / 0.01)
    solver = SpectralSolver(there.law, FINE, BOX, 0.2 / every, dtype=torch.float64)
    by_hand = resample(solver.rollout(resample(first[:, -1], FINE), 3 * every, every), SHAPE)
    assert torch.allclose(frames, by_hand, atol=1e-6)
    coarse = future(domain(), first[:, -1], 3)
    assert float((coarse - frames).abs().max()) > 1e-4  # the coarse grid is another equation


def test_without_a_finer_grid_nothing_is_resampled():
    plain = domain()
    first = developed(plain, torch.arange(2), 3)
    assert torch.equal(resample(first, SHAPE), first)
    assert PdeDomain(**plain.options()).options() == plain.options()
    assert PdeDomain(**domain(solve_shape=FINE).options()).solve_shape == FINE
