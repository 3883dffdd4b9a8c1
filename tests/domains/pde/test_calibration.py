"""The rows beside every table, on Kuramoto-Sivashinsky at L = 64 against a float64 reference with dt 0.025."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.statistics import Estimate
from scidiff.domains.pde import calibration, skill
from scidiff.domains.pde.equations import EQUATIONS, SpectralSolver
from scidiff.domains.pde.equations.perturbed import perturbed_rollout
from scidiff.domains.pde.metrics import persistence

F64 = torch.float64
GRID, EXTENT, INTERVAL, STEPS = (128,), 64.0, 0.8, 160


def solver(dt, dtype=F64):
    return SpectralSolver(EQUATIONS["ks"](), GRID, EXTENT, dt, dtype=dtype)


@pytest.fixture(scope="module")
def run():
    """(developed states [32, 1, 128], truths [32, 160, 1, 128])."""
    law = EQUATIONS["ks"]()
    start = solver(0.1).rollout(law.initial(torch.arange(32), 7, GRID, EXTENT, F64), 1000, 1000)[:, -1]
    return start, solver(0.025).rollout(start, STEPS * 32, 32)


def lasts(frames, truth, threshold=0.8):
    return skill.high_correlation_time(skill.correlations(frames.unsqueeze(1), truth), INTERVAL, threshold, draws=200)


def test_the_solver_as_a_model_reaches_the_horizon(run):
    start, truth = run
    found = lasts(solver(0.025).rollout(start[:6], STEPS * 32, 32), truth[:6], 0.999)
    assert found.censored and found.first.value == pytest.approx(128.0) and found.censored_share == 1.0


def test_a_coarser_step_lasts_as_long_as_was_measured(run):
    """dt 0.1 against 0.025: 104 +- 10 time units at 0.8 (64 trajectories; half of them widen the interval)."""
    start, truth = run
    found = lasts(solver(0.1).rollout(start, STEPS * 8, 8), truth)
    assert found.first.value == pytest.approx(104.0, abs=14.0)


def test_persistence_lasts_two_to_three_units(run):
    """Autocorrelation 0.90 at lag 2 and 0.67 at lag 4; steps of 0.2 time units."""
    states = run[1][:, ::16].flatten(0, 1)
    truth = solver(0.05).rollout(states, 25 * 4, 4)
    corr = skill.correlations(persistence(states, 25), truth)
    assert 2.0 <= skill.high_correlation_time(corr, 0.2, 0.8, draws=200).first.value <= 3.0
    assert float(corr[:, 0, 9].mean()) == pytest.approx(0.896, abs=0.015)
    assert float(corr[:, 0, 19].mean()) == pytest.approx(0.674, abs=0.03)


def test_white_error_makes_the_calibration_curve(run):
    """Noise of 1e-2 and 1e-4 at every step: MSE sigma^2, and ln(100) / lambda = 53 time units between the two, if all
    errors grew with the leading exponent from the start (measured: 42 and 82 at 0.8, on 256 points)."""
    start, truth = run
    rows = calibration.calibration_curve(solver(0.05), 16, start, STEPS, (1e-4, 1e-2), truth=truth)
    assert [r.sigma for r in rows] == [1e-2, 1e-4]
    for row, expected in zip(rows, (42.0, 82.0), strict=True):
        assert row.error.mse.value == pytest.approx(row.sigma**2, rel=0.1)
        assert row.times[0.8].first.value == pytest.approx(expected, abs=12.0)
        assert row.times[0.9].first.value < row.times[0.8].first.value and not row.times[0.8].censored
    assert set(rows[0].to_json()) == {"sigma", "mse", "mse_interval", "time_0.8", "time_0.8_interval",
                                      "time_0.8_censored", "time_0.9", "time_0.9_interval", "time_0.9_censored"}
    between = calibration.white_error_time(rows, 1e-6)
    assert between == pytest.approx(0.5 * sum(r.times[0.8].first.value for r in rows), abs=1.0)


def test_noise_has_its_size_and_depends_on_seed_id_and_step_alone(run):
    start, _ = run
    stepper = solver(0.1)
    frames = perturbed_rollout(stepper, start[:6], 3, 8, 1e-3, seed=5)
    first = frames[:, 0] - stepper.rollout(start[:6], 8, 8)[:, 0]
    assert float(first.square().mean().sqrt()) == pytest.approx(1e-3, rel=0.06)
    power = torch.fft.rfft(first[:, 0], norm="ortho").abs().square().mean(0)  # white: the same in every band
    assert float(power[1:32].mean() / power[32:64].mean()) == pytest.approx(1.0, abs=0.35)
    part = perturbed_rollout(stepper, start[2:4], 2, 8, 1e-3, seed=5, ids=torch.tensor([2, 3]))
    assert torch.allclose(part, frames[2:4, :2], atol=1e-12)
    sized = perturbed_rollout(stepper, start[:2], 1, 8, torch.tensor([0.0, 2e-3]), seed=5)
    assert torch.allclose(sized[0, 0], stepper.rollout(start[:2], 8, 8)[0, 0], atol=1e-12)
    assert torch.allclose(sized[1, 0] - frames[1, 0], first[1], atol=1e-12)
    other = perturbed_rollout(stepper, start[:6], 1, 8, 1e-3, seed=6)[:, 0] - frames[:, 0]
    assert float(other.square().mean().sqrt()) == pytest.approx(1e-3 * math.sqrt(2), rel=0.1)


def curve(points):
    def row(mse, value, censored):
        one = Estimate(value, value, value)
        kept = skill.CorrelationTime(0.8, one, one, one, censored, 0.0, 128.0, 8)
        return calibration.CalibrationRow(math.sqrt(mse), skill.OneStep(Estimate(mse, mse, mse), one, 8), {0.8: kept})

    return [row(*p) for p in points]


def test_times_between_the_rows_are_linear_in_the_logarithm():
    rows = curve([(1e-2, 20.0, False), (1e-4, 40.0, False), (1e-8, 80.0, False), (1e-10, 128.0, True)])
    assert calibration.white_error_time(rows, 1e-3) == pytest.approx(30.0)
    assert calibration.white_error_time(rows, 1e-6) == pytest.approx(60.0)
    assert calibration.white_error_time(rows, 1e-4) == pytest.approx(40.0)
    for outside in (1.0, 1e-9, 0.0, math.nan):
        assert math.isnan(calibration.white_error_time(rows, outside))


def test_the_solver_at_the_same_step_takes_the_largest_stable_part(run):
    start, truth = run
    row = calibration.solver_row(EQUATIONS["ks"](), truth, start, INTERVAL, (EXTENT,))
    assert row.dt == pytest.approx(0.4) and row.steps_per_interval == 2  # 0.8 itself is refused
    assert row.times[0.8].first.value == pytest.approx(60.0, abs=10.0)  # as measured for dt 0.4
    assert row.error.mse.value == pytest.approx(1.3e-7, rel=0.5) and row.affordable and row.seconds > 0.0
    assert row.to_json()["precision"] == 64


def test_the_solver_that_a_time_buys(run, monkeypatch):
    """A cost of one second a step makes the purchase a matter of counting."""
    start, truth = run
    monkeypatch.setattr(calibration, "_seconds", lambda solver, state, every: float(every))

    def bought(seconds):
        return calibration.solver_row(EQUATIONS["ks"](), truth[:4, :10], start[:4], INTERVAL, (EXTENT,), seconds)

    assert [bought(s).steps_per_interval for s in (5.0, 8.5, 1000.0)] == [5, 8, 16]  # dt 0.05 is accurate enough
    cheap = bought(0.5)
    assert cheap.steps_per_interval == 2 and not cheap.affordable
    assert bought(1000.0).error.mse.value < 1e-11 < bought(5.0).error.mse.value


def test_the_solver_row_says_what_is_wrong_with_the_request(run):
    start, truth = run
    with pytest.raises(UsageError):
        calibration.solver_row(EQUATIONS["ks"](), truth[:2, :2], start[:2], INTERVAL, (-1.0,))
