"""Noise of measurements: moments within five standard errors, and independence of the batch."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.noise import Gaussian, Poisson, Ring, poisson
from scidiff.domains.medical.operators.ct import ParallelCT

IDS = torch.arange(4)


def within(values, mean, variance):
    """Mean and variance of independent values, within five standard errors (the fourth moment of the sample's own)."""
    n, centred = values.numel(), values - mean
    assert abs(float(centred.mean())) < 5 * (variance / n) ** 0.5
    spread = float(((centred**2) ** 2).mean() - variance**2)
    assert abs(float((centred**2).mean()) - variance) < 5 * (max(spread, 1e-12) / n) ** 0.5


def test_gaussian_moments_real_and_complex():
    y = torch.full((4, 1, 50, 60), 2.0, dtype=torch.float64)
    within(Gaussian(0.3)(y, 1, IDS), 2.0, 0.09)
    noisy = Gaussian(0.3)(torch.complex(y, -y), 1, IDS)
    within(noisy.real, 2.0, 0.09)
    within(noisy.imag, -2.0, 0.09)
    correlation = ((noisy.real - 2) * (noisy.imag + 2)).mean() / 0.09
    assert abs(float(correlation)) < 5 / y.numel() ** 0.5


@pytest.mark.parametrize("rate", [1e-3, 0.2, 1.0, 7.5, 40.0, 3e3, 1e5])
def test_photons_are_poisson_distributed(rate):
    u = (torch.arange(20_000).double() + 0.5) / 20_000
    k = poisson(torch.full_like(u, rate), u)
    assert torch.equal(k, k.floor()) and bool((k[1:] >= k[:-1]).all())
    assert bool((torch.special.gammaincc(k + 1, torch.full_like(u, rate)) >= u).all())
    below = torch.special.gammaincc(k.clamp(min=1), torch.full_like(u, rate))
    assert bool(((below < u) | (k == 0)).all())
    assert float(k.mean()) == pytest.approx(rate, rel=2e-2)
    assert float(k.var()) == pytest.approx(rate, rel=5e-2)


def test_poisson_moments_of_counts_and_of_line_integrals():
    law = Poisson(2e4, absorption=0.02)
    y = torch.full((4, 1, 60, 60), 90.0, dtype=torch.float64)
    rate = 2e4 * torch.exp(torch.tensor(-1.8, dtype=torch.float64)).item()
    within(law.counts(y, 3, IDS), rate, rate)
    noisy = law(y, 3, IDS)
    assert float(noisy.std()) == pytest.approx(float(law.std(y)[0, 0, 0, 0]), rel=0.03)
    assert float(noisy.mean()) == pytest.approx(90.0, abs=5 * float(noisy.std()) / y.numel() ** 0.5 + 0.02)
    opaque = law(torch.full((1, 1, 2, 2), 1e4), 3, IDS[:1])
    assert bool(torch.isfinite(opaque).all())


def test_rings_belong_to_the_detector():
    y = torch.zeros(4, 1, 7, 20_000, dtype=torch.float64)
    noisy = Ring(0.5, share=0.25)(y, 2, IDS)
    assert torch.equal(noisy, noisy[:1, :, :1].expand_as(noisy))
    hit = noisy[0, 0, 0] != 0
    assert abs(float(hit.double().mean()) - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    within(noisy[0, 0, 0][hit], 0.0, 0.25)
    cone = Ring(0.5)(torch.zeros(2, 1, 3, 4, 5), 2, IDS[:2])
    assert torch.equal(cone, cone[:1, :, :1].expand_as(cone)) and len(cone[0, 0, 0].unique()) == 20


@pytest.mark.parametrize("law", [Gaussian(0.1), Poisson(1e3, 0.1), Ring(0.2)], ids=str)
def test_noise_depends_on_seed_and_id_alone(law):
    operator = ParallelCT((12, 12), views=5)
    x = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    noisy = operator.measure(x, law, seed=7)
    assert torch.equal(noisy[1:3], operator.measure(x[1:3], law, seed=7, ids=torch.tensor([1, 2])))
    assert torch.equal(noisy, operator.measure(x, law, seed=7))
    assert not torch.equal(noisy, operator.measure(x, law, seed=8))
    if not isinstance(law, Ring):
        assert not torch.equal(law(x[:1], 7, IDS[:1]), law(x[:1], 7, IDS[1:2]))


def test_impossible_noise_is_refused():
    for wrong in (lambda: Gaussian(-1.0), lambda: Poisson(0.0), lambda: Poisson(1.0, -1.0), lambda: Ring(0.1, 2.0),
                  lambda: Poisson(10.0)(torch.zeros(1, 1, 2, 2, dtype=torch.complex64), 0, IDS[:1])):
        with pytest.raises(UsageError):
            wrong()
