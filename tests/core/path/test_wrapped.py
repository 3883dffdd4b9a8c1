"""T11, path part: the wrapped normal on a torus."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import ScidiffError
from scidiff.core.path import VE, Prediction, WrappedPath
from scidiff.core.path.wrapped import wrapped_log_density, wrapped_score
from scidiff.core.run import Run
from scidiff.core.space import Euclidean, Torus
from scidiff.core.spec import Component, Context

F64 = torch.float64


def setting(path, period=1.0, batch=6, dim=5):
    site = Context.of(batch).at("f", Component(Torus(period), path, (dim,)))
    return site, Run(8).handle(site, F64)


@pytest.mark.parametrize("period", [1.0, 2 * math.pi])
def test_score_equals_autograd_of_the_series(period):
    for sigma in (0.01, 0.1, 0.3, 0.6):
        s = torch.tensor(sigma * period, dtype=F64)
        d = ((torch.arange(101, dtype=F64) / 101 - 0.5) * period).requires_grad_()
        exact = torch.autograd.grad(wrapped_log_density(d, s, period).sum(), d)[0]
        assert torch.allclose(wrapped_score(d.detach(), s, period), exact, rtol=1e-9, atol=1e-9)


def test_density_is_normalised_and_repeats():
    d = (torch.arange(4000, dtype=F64) + 0.5) / 4000 - 0.5
    for sigma in (0.02, 0.2, 0.7):
        s = torch.tensor(sigma, dtype=F64)
        assert abs(float(wrapped_log_density(d, s).exp().mean()) - 1) < 1e-10
        assert torch.allclose(wrapped_score(d + 1, s), wrapped_score(d, s), atol=1e-7)


def test_uniform_limit():
    """For large sigma the score is the first Fourier mode -4 pi q sin(2 pi d), q = exp(-2 pi^2 sigma^2), and dies."""
    s = torch.tensor(0.6, dtype=F64)
    d = torch.arange(50, dtype=F64) / 50 - 0.5
    q = math.exp(-2 * math.pi**2 * 0.36)
    assert (wrapped_score(d, s) + 4 * math.pi * q * (2 * math.pi * d).sin()).abs().max() < 4 * math.pi * 4 * q * q
    assert wrapped_score(d, torch.tensor(1.2, dtype=F64)).abs().max() < 1e-10


def test_flat_limit_is_the_ordinary_path():
    path, flat = WrappedPath(), VE(0.005, 0.5)
    site, noise = setting(path)
    x0 = torch.full((6, 5), 0.5, dtype=F64)
    noised = path.corrupt(x0, 0.1, site, noise)
    assert torch.allclose(noised.eps, noise.normal("corrupt"), atol=1e-9)
    a = path.convert(noised.eps, "noise", "velocity", noised.z, 0.1, site)
    b = flat.convert(noised.eps, "noise", "velocity", noised.z, 0.1, None)
    assert torch.allclose(a, b)
    assert torch.allclose(path.convert(noised.eps, "noise", "data", noised.z, 0.1, site), x0, atol=1e-9)


@pytest.mark.parametrize("period", [1.0, 3.0])
def test_shift_equivariance(period):
    """Everything depends on differences: a common shift of x0 shifts x_t and leaves target, score and step alone."""
    path = WrappedPath(0.005 * period, 0.5 * period)
    site, noise = setting(path, period)
    x0 = noise.uniform("x0") * period
    t = torch.linspace(0.2, 0.95, 6, dtype=F64)
    moved = site.space.wrap(x0 + 0.37 * period)
    a, b = path.corrupt(x0, t, site, noise), path.corrupt(moved, t, site, noise)
    assert (site.space.log(a.z, b.z) - 0.37 * period + period / 2).remainder(period).sub(period / 2).abs().max() < 1e-10
    assert torch.allclose(a.eps, b.eps, atol=1e-7)
    step_a = path.posterior(a.z, Prediction("noise", a.eps, path, a.z, t, site), t, 0.7 * t, site, noise)
    step_b = path.posterior(b.z, Prediction("noise", b.eps, path, b.z, t, site), t, 0.7 * t, site, noise)
    gap = site.space.log(step_a, step_b) - 0.37 * period
    assert ((gap + period / 2).remainder(period) - period / 2).abs().max() < 1e-8
    assert bool(((step_a >= 0) & (step_a < period)).all())


def test_norm_is_the_root_mean_square_score():
    path = WrappedPath()
    for t in (0.05, 0.5, 0.9, 1.0):
        sigma = path.coefficients(t).sigma
        g = torch.Generator().manual_seed(0)
        d = torch.remainder(sigma * torch.randn(40000, dtype=F64, generator=g) + 0.5, 1) - 0.5
        sampled = wrapped_score(d, torch.tensor(sigma, dtype=F64)).square().mean().sqrt()
        assert abs(path.norm(t) / float(sampled) - 1) < 0.02
    assert abs(path.norm(0.0) * path.coefficients(0.0).sigma - 1) < 1e-6
    assert torch.allclose(path.norm(torch.tensor([0.1, 0.7], dtype=F64)),
                          torch.tensor([path.norm(0.1), path.norm(0.7)], dtype=F64))


def test_source_is_uniform_and_the_path_reaches_it():
    path = WrappedPath()
    site, noise = setting(path, 2.0, batch=4000, dim=2)
    x = path.source(site, noise)
    assert abs(float(x.mean()) - 1.0) < 0.03 and float(x.max()) < 2.0 and float(x.min()) >= 0.0
    site, noise = setting(path, batch=4000, dim=2)
    end = path.corrupt(torch.full((4000, 2), 0.2, dtype=F64), 1.0, site, noise).z
    mode = torch.polar(torch.ones(8000, dtype=F64), 2 * math.pi * end.flatten()).mean().abs()
    assert float(mode) < math.exp(-2 * math.pi**2 * 0.25) + 4 / 8000**0.5


def test_ancestral_chain_with_the_exact_score_reaches_the_data():
    """Data concentrated at one point: 60 ancestral steps from the uniform law end within the last noise level."""
    path = WrappedPath(0.01, 0.5)
    site, noise = setting(path, batch=2000, dim=1)
    x0 = torch.full((2000, 1), 0.9, dtype=F64)
    x = path.source(site, noise)
    grid = torch.linspace(1, 0, 61, dtype=F64).tolist()
    for i, (t, s) in enumerate(zip(grid, grid[1:], strict=False)):
        pred = Prediction("noise", path.tangent(x0, x, t, site), path, x, t, site)
        x = path.posterior(x, pred, t, s, site, noise, f"step{i}")
    gap = site.space.log(x0, x)
    assert abs(float(gap.mean())) < 0.002 and abs(float(gap.std()) / 0.01 - 1) < 0.1


def test_losses_and_kinds():
    path = WrappedPath()
    site, noise = setting(path)
    x0 = noise.uniform("x0")
    t = torch.linspace(0.2, 0.9, 6, dtype=F64)
    noised = path.corrupt(x0, t, site, noise)
    for kind in ("noise", "score", "velocity", "data"):
        pred = path.read(path.target(kind, x0, noised, t, site), noised.z, t, site, kind)
        if kind != "data":
            assert float(path.loss(pred, x0, noised, t, site).max()) < 1e-20
        back = path.convert(pred.to("noise"), "noise", kind, noised.z, t, site)
        assert torch.allclose(site.space.log(back, pred.value) if kind == "data" else back - pred.value,
                              torch.zeros_like(back), atol=1e-9)
    unit = WrappedPath(weight="unit")
    pred = path.read(torch.zeros_like(x0), noised.z, t, site, "unit_score")
    site, noise = setting(unit, batch=3000, dim=10)
    x0 = noise.uniform("x0")
    t = torch.full((3000,), 0.9, dtype=F64)
    noised = unit.corrupt(x0, t, site, noise)
    zero = unit.read(torch.zeros_like(x0), noised.z, t, site, "unit_score")
    assert abs(float(unit.loss(zero, x0, noised, t, site).mean()) - 1) < 0.05
    with pytest.raises(ScidiffError, match="torus"):
        Component(Euclidean(), WrappedPath(), (3,))
