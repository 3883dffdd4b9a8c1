"""The rows beside a forecast: the solver and white error of the model's own size."""

from __future__ import annotations

import pytest
import torch

from scidiff.domains.pde.equations import EQUATIONS, SpectralSolver
from scidiff.domains.pde.rivals import rivals

EXTENT, INTERVAL, STEPS = (22.0,), 0.5, 60


@pytest.fixture(scope="module")
def run():
    law = EQUATIONS["ks"]()
    solver = SpectralSolver(law, (32,), EXTENT, 0.05, dtype=torch.float64)
    start = solver.rollout(law.initial(torch.arange(6), 1, (32,), EXTENT, torch.float64), 1200, 1200)[:, -1]
    return law, start, solver.rollout(start, STEPS * 10, 10)


def times(run, mse, **more):
    law, start, truth = run
    return {m.name: m for m in rivals(law, truth, start, INTERVAL, EXTENT, mse, "time units", **more)}


def test_no_error_keeps_the_truth_to_the_horizon(run):
    found = times(run, 0.0)["correlation time 0.8, white error"]
    assert found.value == pytest.approx(STEPS * INTERVAL) and found.count == 6


def test_ten_times_the_error_costs_its_lyapunov_share(run):
    """Errors grow, so larger ones are seen earlier; equal seeds repeat exactly."""
    small, large = (times(run, mse)["correlation time 0.8, white error"].value for mse in (1e-4, 1e-1))
    assert large < small <= STEPS * INTERVAL and large == times(run, 1e-1)["correlation time 0.8, white error"].value


def test_the_solver_row_names_its_step(run):
    found = times(run, 1e-4)["correlation time 0.8, solver"]
    assert 0 < found.value <= STEPS * INTERVAL and "steps of" in found.protocol
    assert found == times(run, 1e-4)["correlation time 0.8, solver"], "a figure repeats exactly"


def test_no_rows_where_the_equation_varies_or_its_solver_refuses(run):
    law, start, truth = run
    varied = EQUATIONS["ks"](viscosity=torch.linspace(0.9, 1.1, 6, dtype=torch.float64))
    assert rivals(varied, truth, start, INTERVAL, EXTENT, 1e-4, "") == []
    assert rivals(law, truth, start, INTERVAL, (22.0, 22.0), 1e-4, "") == []
