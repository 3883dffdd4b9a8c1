"""Skill against closed forms: correlations of waves, crossings of known curves, coverage of the intervals."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core import statistics
from scidiff.core.errors import UsageError
from scidiff.domains.pde import skill

F64 = torch.float64
X = 2.0 * math.pi * torch.arange(64, dtype=F64) / 64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_correlation_of_a_shifted_wave_is_the_cosine_of_the_shift():
    shift = torch.linspace(-3.0, 3.0, 25, dtype=F64)[:, None]
    a, b = 2.0 + 5.0 * torch.sin(3 * X + shift), -1.0 + 0.1 * torch.sin(3 * X)
    assert torch.allclose(skill.correlation(a, b, -1), shift[:, 0].cos(), atol=1e-13)
    assert torch.allclose(skill.correlation(-a, b, -1), -shift[:, 0].cos(), atol=1e-13)


def test_correlation_is_pearson_over_fields_and_space():
    p, u = normal(3, 2, 4, 2, 16), normal(3, 4, 2, 16, seed=1)
    found = skill.correlations(p.float(), u.float())
    assert found.shape == (3, 2, 4) and found.dtype == F64
    pair = torch.stack([p[1, 1, 2].float().flatten(), u[1, 2].float().flatten()]).double()
    assert float(found[1, 1, 2]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-12)


def test_correlation_without_a_meaning_is_zero():
    u = torch.sin(X)
    for bad in (torch.zeros(64), torch.full((64,), math.nan), torch.full((64,), math.inf), 1e300 * torch.exp(40 * u)):
        assert float(skill.correlation(bad, u, -1)) == pytest.approx(0.0, abs=1e-12)


def test_groups_of_trajectories_change_nothing(monkeypatch):
    p, u = normal(5, 2, 4, 1, 16), normal(5, 4, 1, 16, seed=1)
    whole = skill.correlations(p, u), skill.nrmse(p, u)
    monkeypatch.setattr(skill, "GROUP", 2 * 4 * 16 * 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, (skill.correlations(p, u), skill.nrmse(p, u)), strict=True))


def test_crossing_of_an_exponential_curve():
    """exp(-t / 50) reaches 0.8 at 11.157: with steps of 0.8 the last one before it is number 13, at 10.4."""
    steps = torch.arange(1, 101, dtype=F64)
    curve = torch.exp(-0.8 * steps / 50.0).expand(4, 100)
    for threshold in skill.THRESHOLDS:
        found = skill.high_correlation_time(curve, 0.8, threshold, draws=20)
        exact = 0.8 * math.floor(-50.0 * math.log(threshold) / 0.8)
        assert found.first.value == pytest.approx(exact) and found.own.value == pytest.approx(exact)
        assert found.published.value == pytest.approx(exact)  # a monotone curve has no later recovery
        assert found.first.low == pytest.approx(exact) and found.first.high == pytest.approx(exact)
        assert not found.censored and found.censored_share == 0.0 and found.horizon == pytest.approx(80.0)


def test_recovery_counts_in_the_published_figure_alone():
    curve = torch.tensor([[0.99, 0.95, 0.7, 0.9, 0.9, 0.1]])
    found = skill.high_correlation_time(curve, 2.0, 0.8, draws=10)
    assert found.first.value == 4.0 and found.published.value == 8.0


def test_own_times_and_censoring():
    corr = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]])
    found = skill.high_correlation_time(corr, 1.0, 0.8, draws=50)
    assert found.first.value == 0.0  # mean 0.63 after the first step
    assert found.own.value == pytest.approx((4 + 2 + 0) / 3) and found.censored_share == pytest.approx(1 / 3)
    perfect = skill.high_correlation_time(torch.ones(3, 5), 0.5, 0.8, draws=10)
    assert perfect.censored and perfect.first.value == 2.5 and perfect.censored_share == 1.0


def test_members_are_averaged_inside_their_trajectory():
    corr = torch.tensor([[[0.9, 0.9, 0.3], [0.9, 0.5, 0.3]], [[0.9, 0.9, 0.9], [0.9, 0.9, 0.9]]])
    found = skill.high_correlation_time(corr, 1.0, 0.8, draws=10)
    assert found.count == 2 and found.own.value == pytest.approx(((2 + 1) / 2 + 3) / 2)
    assert found.first.value == 1.0  # 0.9, 0.8, ...: 0.8 does not exceed 0.8


def test_resampled_is_the_bootstrap_of_the_core():
    """The weights replace the gathering of rows; draws, quantiles and value are the same."""
    x = normal(30, 4)
    ours = skill.resampled(lambda m: m[:, 0] / (2.0 + m[:, 1]), x, 300, seed=5)
    core = statistics.bootstrap(lambda r: r[:, 0].mean() / (2.0 + r[:, 1].mean()), x, 300, seed=5)
    assert ours == pytest.approx(core, abs=1e-12)


def lifetimes(count, steps, means, seed):
    """Correlations that fall to zero at once after paired random lifetimes; the mean of each is known."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.rand(count, 1, dtype=F64, generator=g)
    out = []
    for mean in means:
        life = mean * (0.5 + 0.5 * (shared + torch.rand(count, 1, dtype=F64, generator=g)))
        out.append((torch.arange(1, steps + 1, dtype=F64) <= life).double())
    return out


def test_paired_intervals_cover():
    """Lifetimes are floored to steps, so the exact mean of the difference is that of a large sample."""
    big = skill.paired_difference(*lifetimes(100_000, 60, (30.0, 24.0), 1), 1.0, 0.5, draws=2)
    assert big.own.value == pytest.approx(6.0, abs=0.05)  # mean lifetimes 30 and 24
    # The mean curve crosses 0.5 at the median lifetime, which is the mean: 30 against 24, to a step.
    assert big.first.value == pytest.approx(6.0, abs=1.01) and big.first_ratio.value == pytest.approx(1.25, abs=0.06)
    hits = {"own": 0, "own_ratio": 0}
    trials = 150
    for trial in range(trials):
        found = skill.paired_difference(*lifetimes(60, 60, (30.0, 24.0), 10 + trial), 1.0, 0.5, 200, seed=trial)
        for name in hits:
            low, high = getattr(found, name)[1:]
            hits[name] += low <= getattr(big, name).value <= high
    assert all(0.89 * trials <= n <= 0.99 * trials for n in hits.values()), hits


def test_pairing_narrows_the_interval():
    a, b = lifetimes(200, 60, (30.0, 24.0), 3)
    paired = skill.paired_difference(a, b, 1.0, 0.5, 500).own
    apart = [skill.high_correlation_time(x, 1.0, 0.5, 500).own for x in (a, b)]
    loose = math.hypot(*(e.high - e.low for e in apart))
    assert paired.high - paired.low < 0.85 * loose
    same = skill.paired_difference(a, a, 1.0, 0.5, 50)
    assert same.first == same.own == (0.0, 0.0, 0.0) and same.first_ratio == (1.0, 1.0, 1.0)


def test_paired_difference_refuses_other_trajectories():
    with pytest.raises(UsageError, match="same trajectories"):
        skill.paired_difference(torch.ones(3, 4), torch.ones(2, 4), 1.0)


def test_relative_errors_of_known_fields():
    """Two fields: u = (sin, 1 + cos), e = (0.1 sin, 0.3)."""
    u = torch.stack([X.sin(), 1.0 + X.cos()]).view(1, 1, 2, 64)
    p = (u + torch.stack([0.1 * X.sin(), torch.full_like(X, 0.3)]).view(1, 1, 2, 64)).unsqueeze(1)
    assert float(skill.nrmse(p, u)) == pytest.approx(0.1 + 0.3 / math.sqrt(1.5))
    assert float(skill.relative_l2(p, u)) == pytest.approx(math.sqrt((0.005 + 0.09) / (0.5 + 1.5)))
    assert float(skill.vrmse(p, u)) == pytest.approx(0.5 * (0.1 + 0.3 / math.sqrt(0.5)), rel=1e-6)


def test_a_constant_forecast_has_vrmse_one_and_a_lost_one_infinity():
    u = normal(2, 3, 1, 64)
    p = u.mean(-1, keepdim=True).expand_as(u).unsqueeze(1).clone()
    assert torch.allclose(skill.vrmse(p, u), torch.ones(2, 1, 3, dtype=F64), atol=1e-6)
    p[0, 0, 2] = math.nan
    assert torch.isinf(skill.nrmse(p, u)).tolist() == [[[False, False, True]], [[False, False, False]]]


def test_geometric_mean():
    curve = torch.exp(torch.arange(200, dtype=F64) / 10)
    assert float(skill.geometric_mean(curve)) == pytest.approx(math.exp(99 / 20))
    assert float(skill.geometric_mean(curve[:11])) == pytest.approx(math.exp(0.5))


def test_one_step_error_in_both_units():
    u, move = normal(4000, 2, 8), normal(4000, 2, 8, seed=1)
    found = skill.one_step_mse(u + 0.5 * move + 0.1, u + 0.5 * move, u)
    assert found.mse.value == pytest.approx(0.02) and found.mse.high - found.mse.low < 1e-12
    assert found.share.value == pytest.approx(0.01 / 0.25, rel=0.02) and found.count == 4000
    assert skill.one_step_mse(u, u + move, u).share == pytest.approx((1.0, 1.0, 1.0))
    members = torch.stack([u + move + 0.1, u + move + 0.3], 1)
    assert skill.one_step_mse(members, u + move, u).mse.value == pytest.approx(2 * (0.01 + 0.09) / 2)


@pytest.mark.parametrize("predicted, truth", [((2, 1, 3, 1, 8), (2, 4, 1, 8)), ((2, 3, 1, 8), (2, 3, 1, 8)),
                                              ((2, 1, 0, 1, 8), (2, 0, 1, 8))])
def test_shapes_that_do_not_fit_are_refused(predicted, truth):
    with pytest.raises(UsageError):
        skill.correlations(torch.zeros(predicted), torch.zeros(truth))
    with pytest.raises(UsageError, match="one shape"):
        skill.one_step_mse(torch.zeros(3, 1, 8), torch.zeros(4, 1, 8), torch.zeros(4, 1, 8))
