"""Spectra, budgets and marginals of fields whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.pde import spectra

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape, extent", [((64,), (22.0,)), ((63,), (3.0,)), ((16, 24), (2.0, 3.0)),
                                           ((9, 12), (5.0, 5.0)), ((6, 8, 10), (1.0, 1.0, 2.0))])
def test_parseval(shape, extent):
    u = normal(3, *shape)
    k, energy = spectra.energy_spectrum(u, extent)
    assert energy.shape == (3, len(k))
    assert torch.allclose(energy.sum(-1), u.flatten(1).square().mean(1), rtol=1e-13)


def test_a_wave_has_its_energy_at_its_wavenumber():
    """3 cos(5 k1 x) has <u^2> = 4.5 at k = 5 k1; in two dimensions sin(3 x + 4 y) lies in shell 5."""
    x = 22.0 * torch.arange(64, dtype=F64) / 64
    k, energy = spectra.energy_spectrum(2.0 + 3.0 * torch.cos(5 * 2 * math.pi / 22.0 * x), (22.0,))
    assert float(energy[5]) == pytest.approx(4.5) and float(energy[0]) == pytest.approx(4.0)
    assert float(energy.sum()) == pytest.approx(8.5) and float(k[5]) == pytest.approx(10 * math.pi / 22.0)
    y, x = torch.meshgrid(*[2 * math.pi * torch.arange(16, dtype=F64) / 16] * 2, indexing="ij")
    _, energy = spectra.energy_spectrum(torch.sin(3 * x + 4 * y), (2 * math.pi,) * 2)
    assert float(energy[5]) == pytest.approx(0.5) and float(energy.sum()) == pytest.approx(0.5)
    nyquist = torch.tensor([1.0, -1.0], dtype=F64).repeat(8)
    assert float(spectra.energy_spectrum(nyquist, (1.0,))[1][-1]) == pytest.approx(1.0)


def test_mean_spectrum_sums_fields_and_averages_frames():
    u = normal(3, 2, 5, 2, 32).float()
    k, energy = spectra.mean_spectrum(u, (7.0,))
    assert energy.shape == (3, 17) and len(k) == 17
    assert torch.allclose(energy.sum(1), u.double().square().mean(-1).sum(-1).mean((1, 2)))
    single = spectra.mean_spectrum(u[:, 0, 0], (7.0,))[1]
    assert torch.allclose(single.sum(1), u[:, 0, 0].double().square().mean(-1).sum(1))


def test_log_spectral_distance():
    """A decade everywhere is 10 dB; what lies below the floor does not count, a lost tail counts down to the floor."""
    true = torch.tensor([5.0, 1e-2, 1.0, 1e-2, 1e-5, 1e-9, 1e-12, 1e-14], dtype=F64)
    assert spectra.floor_wavenumber(true) == 6 and spectra.floor_wavenumber(true, 1e-20) == 8
    assert float(spectra.log_spectral_distance(10 * true, true)) == pytest.approx(10.0)
    assert float(spectra.log_spectral_distance(true, true)) == 0.0
    raised = true.clone()
    raised[0], raised[6:] = 99.0, 1.0
    assert float(spectra.log_spectral_distance(raised, true)) == 0.0
    lost = true.clone()
    lost[5] = 0.0  # 1e-9 down to the floor 1e-10: 10 dB in one of five wavenumbers
    assert float(spectra.log_spectral_distance(lost, true)) == pytest.approx(10.0 / math.sqrt(5))


def test_energy_drift():
    u = normal(4, 6, 2, 32)
    gain = torch.linspace(0.9, 1.2, 6, dtype=F64)
    p = u.unsqueeze(1) * gain.view(1, 1, 6, 1, 1)
    assert torch.allclose(spectra.energy_drift(p, u, (1.0,)), gain.square() - 1.0)


@pytest.mark.parametrize("n", [31, 32])
def test_derivatives_of_a_wave(n):
    x = 5.0 * torch.arange(n, dtype=F64) / n
    k = 2 * math.pi * 3 / 5.0
    u = torch.sin(k * x + 0.3)
    for order, exact in ((1, k * torch.cos(k * x + 0.3)), (2, -k * k * u), (3, -(k**3) * torch.cos(k * x + 0.3))):
        assert torch.allclose(spectra.derivative(u, (5.0,), order=order), exact, atol=1e-11)
    grid = u[:, None].expand(n, 4)  # along the first axis of a plane
    assert torch.allclose(spectra.derivative(grid, (5.0, 2.0), axis=-2)[:, 1], k * torch.cos(k * x + 0.3), atol=1e-11)


def test_budget_of_a_known_field():
    """u = a sin(kx) + b cos(qx): <u_x^2> = (a^2 k^2 + b^2 q^2)/2, <u_xx^2> = (a^2 k^4 + b^2 q^4)/2."""
    length, a, b = 22.0, 1.5, 0.4
    x = length * torch.arange(64, dtype=F64) / 64
    k, q = 2 * math.pi * 2 / length, 2 * math.pi * 7 / length
    u = a * torch.sin(k * x) + b * torch.cos(q * x)
    slope, bend = 0.5 * (a * a * k**2 + b * b * q**2), 0.5 * (a * a * k**4 + b * b * q**4)
    assert torch.allclose(spectra.budget_terms(u, (length,)), torch.tensor([slope, bend], dtype=F64), rtol=1e-12)
    gaps = spectra.budget_gap(u.expand(2, 64), (length,), torch.tensor([1.0, 0.5]))
    assert gaps.tolist() == pytest.approx([slope - bend, slope - 0.5 * bend])
    # the same numbers from the derivatives on the grid
    by_grid = [float(spectra.derivative(u, (length,), order=o).square().mean()) for o in (1, 2)]
    assert by_grid == pytest.approx([slope, bend])
    with pytest.raises(UsageError, match="line"):
        spectra.budget_gap(torch.zeros(8, 8), (1.0, 1.0))


def test_wasserstein_of_shifted_and_scaled_gaussians():
    """W1 of N(0,1) and N(m,1) is |m|; of N(0,1) and N(0,s^2) it is |s - 1| sqrt(2/pi)."""
    x = normal(40, 5000)
    assert spectra.wasserstein1(x, x + 0.3) == pytest.approx(0.3, rel=1e-9)
    assert spectra.wasserstein1(x, 1.5 * x) == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.01)
    other = normal(30, 4000, seed=1) - 0.3
    assert spectra.wasserstein1(x, other) == pytest.approx(0.3, abs=0.02)
    assert spectra.wasserstein1(x, other, limit=20_000) == pytest.approx(0.3, abs=0.04)


def test_thinning_keeps_every_point_of_the_grid():
    u = torch.arange(64.0).expand(1000, 64)
    thin = spectra.thinned(u, 8000)
    assert 7000 < thin.numel() <= 8000
    assert torch.bincount(thin.long(), minlength=64).min() > 90
    assert torch.equal(spectra.thinned(u, 64_000), u.flatten())


def test_stability_names_the_first_failure():
    frames = torch.ones(6, 2, 5, 2, 8)
    frames[1, 0, 3, 1, 4] = 20.0
    frames[2, 1, 2:] = math.nan
    frames[3, 1, 4, 0, 0] = math.inf
    frames[4, 0, 1, 0, 0] = 9.0
    found = spectra.stable(frames, 10.0)
    assert found.first.tolist() == [[0, 0], [4, 0], [0, 3], [0, 5], [0, 0], [0, 0]]
    assert found.share.value == pytest.approx(0.5) and found.share.low < 0.5 < found.share.high
    assert found.kept.tolist() == [True, False, False, False, True, True] and found.earliest == 3
    assert spectra.stable(frames, [5.0, 30.0]).first[1].tolist() == [0, 0]  # one limit a field
    assert spectra.stable(frames, [5.0, 30.0]).first[4].tolist() == [2, 0]
    calm = spectra.stable(torch.zeros(10, 5, 1, 4, 4), 1.0, dims=2)
    assert calm.earliest == 0 and calm.kept.all() and calm.share.value == 1.0 and calm.share.low < 1.0
