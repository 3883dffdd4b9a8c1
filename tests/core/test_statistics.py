"""Statistics against closed forms, brute force, and the coverage of their intervals."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core import statistics as st

F64 = torch.float64


def normal(n, d, seed, shift=0.0):
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed)) + shift


def test_linear_mmd_equals_the_u_statistic():
    x, y = normal(20, 3, 0), normal(30, 3, 1, 0.4)
    kxx, kyy, kxy = x @ x.T, y @ y.T, x @ y.T
    brute = ((kxx.sum() - kxx.trace()) / 380 + (kyy.sum() - kyy.trace()) / 870 - 2 * kxy.mean())
    assert abs(st.mmd2_linear(x, y).value - float(brute)) < 1e-12
    assert abs(st.mmd2_linear(x + 1000, y + 1000).value - float(brute)) < 1e-9


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_linear_mmd_is_unbiased_and_covered(shift):
    runs = [st.mmd2_linear(normal(80, 6, 2 * s), normal(60, 6, 2 * s + 1, shift)) for s in range(300)]
    truth = 6 * shift**2
    values = torch.tensor([r.value for r in runs])
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 300**0.5
    covered = sum(r.low <= truth <= r.high for r in runs) / 300
    assert covered >= 0.88
    halves = torch.tensor([0.5 * (r.high - r.low) / 1.96 for r in runs])
    assert 0.8 < float(halves.mean()) / float(values.std()) < 1.25


def test_rbf_mmd_against_the_closed_form():
    """Two unit Gaussians at distance m, bandwidth h: 2 (h^2/(h^2+2))^{d/2} (1 - exp(-m^2 / 2 (h^2 + 2)))."""
    h, m, d = 1.5, 1.0, 2
    truth = 2 * (h**2 / (h**2 + 2)) ** (d / 2) * (1 - math.exp(-d * m**2 / (2 * (h**2 + 2))))
    runs = [st.mmd2_rbf(normal(150, d, 2 * s), normal(150, d, 2 * s + 1, m), h) for s in range(40)]
    mean = sum(r.value for r in runs) / 40
    assert abs(mean - truth) < 0.02
    assert sum(r.low <= truth <= r.high for r in runs) >= 34
    same = [st.mmd2_rbf(normal(60, d, 2 * s), normal(60, d, 2 * s + 1)) for s in range(60)]
    assert sum(r.low <= 0 <= r.high for r in same) >= 53


def test_wilson():
    low, high = st.wilson(8, 10)[1:]
    assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert st.wilson(0, 50).low == 0.0 and st.wilson(50, 50).high == 1.0
    assert st.wilson(50, 50).low == pytest.approx(50 / (50 + 1.959964**2), rel=1e-6)
    assert st.wilson(0, 0)[1:] == (0.0, 1.0)


def test_bootstrap_and_mean_interval_agree_for_a_mean():
    x = normal(400, 1, 0).flatten()
    a, b = st.bootstrap(lambda v: v.mean(), x, 2000), st.mean_interval(x)
    assert a.value == pytest.approx(b.value)
    assert a.low == pytest.approx(b.low, abs=0.01) and a.high == pytest.approx(b.high, abs=0.01)
    assert st.bootstrap(lambda v: v.mean(), x, 50, seed=3) == st.bootstrap(lambda v: v.mean(), x, 50, seed=3)


def test_crps_is_fair():
    """Brute force, independence of the ensemble size, and the Gaussian closed form."""
    e = normal(7, 4, 0)
    y = torch.zeros(4, dtype=F64)
    pairs = (e[:, None] - e[None]).abs().sum((0, 1)) / (7 * 6)
    assert torch.allclose(st.crps(e, y), (e - y).abs().mean(0) - 0.5 * pairs, atol=1e-12)
    exact = (2**0.5 - 1) / math.pi**0.5  # standard normal ensemble, truth 0
    for members in (2, 5, 20):
        value = st.crps(normal(members, 40000, members), torch.zeros(40000, dtype=F64))
        assert abs(float(value.mean()) - exact) < 5 * float(value.std()) / 200


def test_energy_distance():
    x, y = normal(40, 2, 0), normal(50, 2, 1)
    brute = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).sum() / (40 * 39) - torch.cdist(y, y).sum() / (50 * 49)
    assert abs(st.energy_distance(x, y) - float(brute)) < 1e-10
    null = torch.tensor([st.energy_distance(normal(40, 2, 2 * s), normal(40, 2, 2 * s + 1)) for s in range(100)])
    assert abs(float(null.mean())) < 4 * float(null.std()) / 10


def test_sliced_wasserstein():
    """A shift by m in d dimensions: sqrt(E (m . w)^2) = |m| / sqrt(d); sizes may differ; zero for itself."""
    x = normal(500, 3, 0)
    m = torch.tensor([1.0, 2.0, 2.0], dtype=F64)
    assert abs(st.sliced_wasserstein(x, x + m, 4000) - 3 / 3**0.5) < 0.05
    assert st.sliced_wasserstein(x, x.flip(0)) == 0.0
    assert st.sliced_wasserstein(x, torch.cat([x, x])) < 0.03
