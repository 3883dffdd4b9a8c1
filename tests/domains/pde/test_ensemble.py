"""Ensembles with known laws: closed forms of the CRPS, exchangeable truths, and times that are known."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.pde import ensemble

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def forecasts(trajectories, members, steps, points, spread=1.0, seed=0, smooth=1):
    """A truth and members around a common mean: the truth has unit variance about it, the members `spread` squared.

    `smooth` repeats every draw at neighbouring points, which correlates them fully and leaves their law alone.
    """
    centre = 3.0 * normal(trajectories, 1, steps, 1, points // smooth, seed=seed)
    noise = normal(trajectories, members + 1, steps, 1, points // smooth, seed=seed + 1)
    noise[:, 1:] *= spread
    both = (centre + noise).repeat_interleave(smooth, -1)
    return both[:, 1:], both[:, 0]


@pytest.mark.parametrize("spread, offset", [(1.0, 0.0), (0.5, 0.7), (2.0, -1.0)])
def test_crps_of_gaussian_members_is_the_closed_form(spread, offset):
    """Truth 0, members N(offset, spread^2): s (w (2 Phi(w) - 1) + 2 phi(w) - 1/sqrt(pi)) with w = offset / s."""
    members = offset + spread * normal(8, 10, 20, 1, 64)
    w = offset / spread
    density, share = math.exp(-0.5 * w * w) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(w / math.sqrt(2)))
    exact = spread * (w * (2 * share - 1) + 2 * density - 1 / math.sqrt(math.pi))
    found = ensemble.fair_crps(members.float(), torch.zeros(8, 20, 1, 64))
    assert found.shape == (8, 20)
    assert float(found.mean()) == pytest.approx(exact, rel=0.02)


def test_crps_of_a_calibrated_pair_does_not_depend_on_the_number_of_members():
    exact = 1 / math.sqrt(math.pi)  # half of E|X - Y| = 2 / sqrt(pi)
    for members in (2, 4, 16):
        x, y = forecasts(40, members, 10, 32, seed=members)
        assert float(ensemble.fair_crps(x, y).mean()) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("members", [2, 5, 16])
def test_spread_over_skill_of_an_exchangeable_truth_is_one(members):
    found = ensemble.spread_skill(*forecasts(64, members, 10, 32))
    assert found.over(draws=10).value == pytest.approx(1.0, abs=0.03)
    assert found.ratio.shape == (10,) and torch.allclose(found.ratio, torch.ones(10, dtype=F64), atol=0.1)


def test_the_interval_of_spread_over_skill_covers():
    found = [ensemble.spread_skill(*forecasts(40, 4, 2, 16, seed=2 * s)).over(draws=300, seed=s) for s in range(200)]
    assert 0.89 * 200 <= sum(f.low <= 1.0 <= f.high for f in found) <= 0.99 * 200


def test_spread_over_skill_of_a_narrow_ensemble():
    """Members of half the spread: s/skill = sqrt((M + 1)/M) s / sqrt(1 + s^2/M)."""
    found = ensemble.spread_skill(*forecasts(64, 8, 10, 32, spread=0.5)).over(slice(2, 8))
    assert found.value == pytest.approx(math.sqrt(9 / 8) * 0.5 / math.sqrt(1 + 0.25 / 8), rel=0.02)


def test_ranks_of_an_exchangeable_truth_are_flat():
    found = ensemble.rank_histogram(*forecasts(200, 7, 5, 32))
    assert torch.allclose(found.histogram, torch.full((8,), 1 / 8, dtype=F64), atol=0.006)
    assert found.shares.sum(1).allclose(torch.ones(200, dtype=F64))
    assert found.flatness < 2.5 and found.outside().low < 1.0 < found.outside().high


@pytest.mark.parametrize("smooth", [1, 16])
def test_flatness_is_one_on_average_however_correlated_the_points_are(smooth):
    values = [ensemble.rank_histogram(*forecasts(24, 4, 2, 16, seed=2 * s, smooth=smooth)).flatness
              for s in range(200)]
    mean = torch.tensor(values, dtype=F64)
    assert abs(float(mean.mean()) - 1.0) < 4 * float(mean.std()) / math.sqrt(200) + 0.06


def test_ranks_see_a_narrow_and_a_wide_ensemble():
    narrow = ensemble.rank_histogram(*forecasts(100, 7, 5, 32, spread=0.4))
    wide = ensemble.rank_histogram(*forecasts(100, 7, 5, 32, spread=2.5))
    assert narrow.flatness > 50 and narrow.outside().low > 1.5
    assert wide.flatness > 50 and wide.outside().high < 0.6


def test_ties_are_broken_by_lot():
    truth = torch.zeros(4, 10, 1, 100)
    members = torch.zeros(4, 4, 10, 1, 100)
    found = ensemble.rank_histogram(members, truth, seed=3)
    assert torch.allclose(found.histogram, torch.full((5,), 0.2, dtype=F64), atol=0.03)
    assert torch.equal(found.shares, ensemble.rank_histogram(members, truth, seed=3).shares)


def test_pairwise_correlation_is_the_mean_over_pairs():
    x = normal(3, 4, 5, 2, 16)
    found = ensemble.pairwise_correlation(x.float())
    z = x.float()[1, :, 3].flatten(1).double()
    matrix = torch.corrcoef(z)
    assert float(found[1, 3]) == pytest.approx(float((matrix.sum() - matrix.trace()) / 12), abs=1e-12)
    x[0, 2, 4] = math.nan  # a lost member agrees with none: 3 of 6 pairs remain
    matrix = torch.corrcoef(x[0, [0, 1, 3], 4].flatten(1))
    assert float(ensemble.pairwise_correlation(x)[0, 4]) == pytest.approx(float((matrix.sum() - 3) / 12))


def test_ensemble_mean_correlates_better_than_its_members():
    """Signal variance 9, noise 1: members r = 0.9, their mean 9 / sqrt(10 (9 + 1/M))."""
    x, y = forecasts(64, 4, 5, 64)
    assert float(ensemble.mean_correlation(x, y).mean()) == pytest.approx(9 / math.sqrt(10 * 9.25), abs=0.005)
    assert float(ensemble.pairwise_correlation(x).mean()) == pytest.approx(0.9, abs=0.005)


def parting(times, members, steps, points=512, seed=0):
    """Truth and members that agree until each trajectory's own step and are independent afterwards."""
    shared = normal(len(times), 1, steps, 1, points, seed=seed)
    own = normal(len(times), members + 1, steps, 1, points, seed=seed + 1)
    together = (torch.arange(1, steps + 1) <= times[:, None]).view(len(times), 1, steps, 1, 1)
    both = torch.where(together, shared, own)
    return both[:, 1:], both[:, 0]


def test_divergence_times_of_a_perfect_prediction():
    times = torch.arange(3, 33)
    x, y = parting(times, 4, 40)
    assert torch.equal(ensemble.divergence_time(x, 0.5), 0.5 * times.double())
    found = ensemble.divergence(x, y, 0.5, draws=200)
    assert torch.equal(found.true, found.predicted) and found.used == 30
    for estimate, exact in ((found.r2, 1.0), (found.slope, 1.0), (found.bias, 0.0)):
        assert estimate == pytest.approx((exact, exact, exact), abs=1e-9)


def test_times_beyond_the_horizon_are_not_used():
    x, y = parting(torch.tensor([2, 5, 7, 9, 99, 99]), 3, 12)
    found = ensemble.divergence(x, y, 1.0, draws=50)
    assert found.used == 4 and torch.isinf(found.predicted[4:]).all() and found.r2.value == pytest.approx(1.0)
    assert math.isnan(ensemble.divergence(x[4:], y[4:], 1.0, draws=5).r2.value)


def test_r2_and_slope_of_a_noisy_line():
    """true = 5 + 0.5 predicted + noise: slope 0.5 and R^2 = 0.25 / (0.25 + sigma^2), both covered."""
    x = 40.0 + 10.0 * normal(4000)
    y = 5.0 + 0.5 * x + 2.5 * normal(4000, seed=1)
    found = ensemble.compare_times(x, y)
    assert found.slope.value == pytest.approx(0.5, abs=0.015) and found.slope.low < 0.5 < found.slope.high
    assert found.r2.value == pytest.approx(0.8, abs=0.02) and found.r2.low < 0.8 < found.r2.high
    assert found.bias.value == pytest.approx(15.0, abs=0.3)


def test_an_ensemble_of_one_is_refused():
    x, y = torch.zeros(2, 1, 3, 1, 8), torch.zeros(2, 3, 1, 8)
    for call in (ensemble.fair_crps, ensemble.spread_skill, ensemble.rank_histogram):
        with pytest.raises(UsageError, match="two members"):
            call(x, y)
    with pytest.raises(UsageError, match="two members"):
        ensemble.pairwise_correlation(x)
