"""T9: the two-sided interpolant between two Gaussians, for the flow and two diffusions; losses and posteriors."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.errors import ScidiffError
from scidiff.core.path import Bridge
from scidiff.core.path.base import Corrupted, Prediction
from scidiff.core.run import Run
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context

F64 = torch.float64
M0, S0, M1, S1 = -2.0, 1.2, 1.0, 0.5  # data and source


def exact(path, x, t):
    """Closed-form slope and noise for x0 ~ N(M0, S0^2), x1 ~ N(M1, S1^2) independent."""
    k = path.coefficients(t)
    var = k.a**2 * S0**2 + k.b**2 * S1**2 + k.gamma**2
    off = x - k.a * M0 - k.b * M1
    slope = k.da * M0 + k.db * M1 + (k.a * k.da * S0**2 + k.b * k.db * S1**2) / var * off
    return slope, k.gamma / var * off


@pytest.mark.parametrize("path", [Bridge(), Bridge("trig", "sine"), Bridge("encdec", "sine"), Bridge("linear", "none")])
def test_derivatives_and_ends(path):
    t = ((torch.arange(40, dtype=F64) + 0.3) / 40).requires_grad_()
    k = path.coefficients(t)
    for value, slope in ((k.a, k.da), (k.b, k.db), (k.gamma, k.dgamma)):
        if value.requires_grad:
            assert torch.allclose(torch.autograd.grad(value.sum(), t, retain_graph=True)[0], slope, atol=1e-10)
    for end, (a, b) in ((0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))):
        k = path.coefficients(end)
        assert (k.a, k.b, k.gamma) == pytest.approx((a, b, 0.0), abs=1e-15)


@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("path", [Bridge("linear", "brownian"), Bridge("trig", "sine", 0.7)])
def test_every_diffusion_reaches_the_data(path, eps):
    """x <- x - h (v - w s) + sqrt(2 w h) xi from N(M1, S1) to N(M0, S0) for w = 0, 0.3, 1 (times gamma^2)."""
    n, steps = 20000, 200
    g = torch.Generator().manual_seed(7)
    x = M1 + S1 * torch.randn(n, dtype=F64, generator=g)
    grid = torch.linspace(path.t_max, path.t_min, steps + 1, dtype=F64).tolist()
    for t, s in zip(grid, grid[1:], strict=False):
        def drift(at, x):
            slope, z = exact(path, x, at)
            pred = path.pair(slope, z, x, at, None)
            return pred.velocity, pred.score

        h = t - s
        v, score = drift(t, x)
        w = eps * path.coefficients(0.5 * (t + s)).gamma ** 2
        kick = (2 * w * h) ** 0.5 * torch.randn(n, dtype=F64, generator=g)
        trial = x - h * (v - w * score) + kick
        v2, score2 = drift(s, trial)
        x = x - 0.5 * h * (v + v2 - w * (score + score2)) + kick
    assert abs(float(x.mean()) - M0) < 5 * S0 / n**0.5 + 0.01
    assert abs(float(x.std()) / S0 - 1) < 0.025


def test_pair_knows_velocity_score_and_data():
    for path in (Bridge(), Bridge("trig", "sine")):
        g = torch.Generator().manual_seed(0)
        x0, x1, z = torch.randn(3, 5, 4, dtype=F64, generator=g)
        t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
        k = path.coefficients(t)
        c = [v.view(-1, 1) for v in k]
        x = c[0] * x0 + c[1] * x1 + c[2] * z
        pred = path.pair(c[3] * x0 + c[4] * x1, z, x, t, None)
        assert torch.allclose(pred.data, x0, atol=1e-10)
        assert torch.allclose(pred.velocity, c[3] * x0 + c[4] * x1 + c[5] * z, atol=1e-10)
        assert torch.allclose(pred.score, -z / c[2], atol=1e-10)


@pytest.mark.parametrize("antithetic", [False, True])
def test_velocity_regression_keeps_its_factor(antithetic):
    """Least squares on the loss of a linear velocity recovers the closed form, with and without mirrored samples."""
    path, n, t = Bridge(), 60000, 0.2
    ctx = Context.of(n)
    site = ctx.at("x", Component(Euclidean(), path, (1,)))
    run = Run(5)
    noise = run.handle(site, F64)
    x0, x1 = M0 + S0 * noise.normal("x0"), M1 + S1 * noise.normal("x1")
    noised = path.corrupt(x0, t, site, noise, x1)
    batches = [noised, path.mirror(noised, t)] if antithetic else [noised]
    weights = torch.zeros(2, dtype=F64, requires_grad=True)

    def loss():
        total = 0.0
        for b in batches:
            value = weights[0] + weights[1] * b.z
            total = total + path.loss(Prediction("velocity", value, path, b.z, t, site), x0, b, t, site).mean()
        return total / len(batches)

    optimiser = torch.optim.LBFGS([weights], max_iter=50, tolerance_grad=1e-10)

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=F64)
    slope, z = exact(path, x, t)
    truth = slope + path.coefficients(t).dgamma * z
    assert (weights[0] + weights[1] * x - truth).abs().max() < 0.05


def test_mirrored_samples_tame_a_diverging_gamma():
    """The gradient's variance near t = 0 grows without bound for single samples and stays for mirrored ones."""
    path, n = Bridge(t_min=1e-6), 4000
    site = Context.of(n).at("x", Component(Euclidean(), path, (1,)))
    noise = Run(6).handle(site, F64)
    x0, x1 = noise.normal("x0"), noise.normal("x1")
    spreads = {}
    for t in (1e-2, 1e-4):
        noised = path.corrupt(x0, t, site, noise, x1)
        pair = [noised, path.mirror(noised, t)]
        # d loss / d slope of a linear velocity at zero: -2 x target
        grads = [(-2 * b.z * path.target("velocity", x0, b, t)).flatten() for b in pair]
        spreads[t] = (float(grads[0].var()), float((0.5 * (grads[0] + grads[1])).var()))
    assert spreads[1e-4][0] > 20 * spreads[1e-2][0]
    assert spreads[1e-4][1] < 1.5 * spreads[1e-2][1]


def test_brownian_posterior_is_the_bridge():
    """x_s given x_t, x0 composed over steps equals a direct draw of the bridge, in mean and variance."""
    path, n = Bridge(scale=0.8), 40000
    site = Context.of(n).at("x", Component(Euclidean(), path, (1,)))
    run = Run(1)
    noise = run.handle(site, F64)
    x0, x1 = torch.full((n, 1), 0.4, dtype=F64), torch.full((n, 1), -1.0, dtype=F64)
    x = path.corrupt(x0, 0.9, site, noise, x1).z
    for i, (t, s) in enumerate(((0.9, 0.6), (0.6, 0.25))):
        x = path.posterior(x, Prediction("data", x0, path, x, t, site), t, s, site, noise, f"step{i}")
    k = path.coefficients(0.25)
    assert abs(float(x.mean()) - (k.a * 0.4 - k.b)) < 5 * k.gamma / n**0.5
    assert abs(float(x.std()) / k.gamma - 1) < 0.02


def test_loss_is_zero_at_the_truth_and_reads_two_heads():
    path = Bridge()
    ctx = Context.of(3, sizes=torch.tensor([2, 4, 3]))
    site = ctx.at("x", Component(Euclidean(), path, ("N", 2)))
    noise = Run(0).handle(site, F64)
    x0 = noise.normal("data")
    t = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    noised = path.corrupt(x0, t, site, noise)
    raw = torch.stack([path.target("slope", x0, noised, t), noised.eps], -1)
    pred = path.read(raw, noised.z, t, site, "pair")
    assert float(path.loss(pred, x0, noised, t, site).abs().max()) < 1e-20
    shifted = path.read(raw + torch.tensor([1.0, 2.0], dtype=F64), noised.z, t, site, "pair")
    assert torch.allclose(path.loss(shifted, x0, noised, t, site), torch.tensor(5.0, dtype=F64))
    with pytest.raises(ScidiffError, match="keeps its noise"):
        path.mirror(Corrupted(noised.z), t)
