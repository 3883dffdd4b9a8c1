"""T8: the published updates of MRS, ResShift and RDDM are ours on x - mu."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.path import RDDM, VP, MeanReverting, Prediction, ResShift
from scidiff.core.run import Run
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context

F64 = torch.float64


def setting(path):
    g = torch.Generator().manual_seed(4)
    x, clean, mu = torch.randn(3, 5, 4, dtype=F64, generator=g)
    ctx = Context.of(5, centre={"x": mu})
    site = ctx.at("x", Component(Euclidean(), path, (4,)))
    return x, clean, mu, site, Run(2).handle(site, F64)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_mean_reverting_is_an_ornstein_uhlenbeck_process(schedule):
    path = MeanReverting(schedule=schedule)
    t = torch.linspace(0.01, 1, 40, dtype=F64)
    k = path.coefficients(t)
    assert torch.allclose(k.g2, 2 * path.stationary**2 * path.theta(t), rtol=1e-9)
    assert torch.allclose(k.drift, -path.theta(t), rtol=1e-9)
    assert abs(path.coefficients(1.0).alpha - 0.005) < 1e-12


def test_first_order_mrs_step():
    """MRS (arXiv 2502.07856): the exponential-integrator step in data form on x - mu."""
    path = MeanReverting()
    x, clean, mu, site, noise = setting(path)
    t, s = 0.7, 0.5
    k, q = path.coefficients(t), path.coefficients(s)
    lam2 = path.stationary**2

    def spread(a):
        return (lam2 * (1 - a * a)) ** 0.5

    published = mu + spread(q.alpha) / spread(k.alpha) * (x - mu) + (
        q.alpha - k.alpha * spread(q.alpha) / spread(k.alpha)) * (clean - mu)
    ours = path.posterior(x, Prediction("data", clean, path, x, t, site), t, s, site, noise, eta=0.0)
    assert (ours - published).abs().max() < 1e-12


def test_mean_reverting_posterior_is_exact():
    """The IR-SDE posterior of x_s given x_t and x0, from its two Ornstein-Uhlenbeck pieces."""
    path = MeanReverting()
    x, clean, mu, site, noise = setting(path)
    t, s = 0.6, 0.55
    k, q = path.coefficients(t), path.coefficients(s)
    b = k.alpha / q.alpha
    total, first, piece = 1 - k.alpha**2, 1 - q.alpha**2, 1 - b**2
    mean = mu + (first * b * (x - mu) + piece * q.alpha * (clean - mu)) / total
    std = path.stationary * (first * piece / total) ** 0.5
    ours = path.posterior(x, Prediction("data", clean, path, x, t, site), t, s, site, noise)
    assert (ours - mean - std * noise.normal("step")).abs().max() < 1e-12


def test_resshift_transition():
    """q(x_s | x_t, x0) = N((eta_s/eta_t) x_t + (1 - eta_s/eta_t) x0, kappa^2 eta_s (eta_t - eta_s) / eta_t)."""
    path = ResShift()
    x, clean, _, site, noise = setting(path)
    for t, s in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
        eta_t, eta_s = path.coefficients(t).c, path.coefficients(s).c
        mean = eta_s / eta_t * x + (eta_t - eta_s) / eta_t * clean
        std = (path.kappa**2 * eta_s * (eta_t - eta_s) / eta_t) ** 0.5
        ours = path.posterior(x, Prediction("data", clean, path, x, t, site), t, s, site, noise)
        assert (ours - mean - std * noise.normal("step")).abs().max() < 1e-12


def test_resshift_released_table():
    path = ResShift(kappa=2.0, power=0.3, noise_min=0.2)
    root = [path.coefficients(i / 3).c ** 0.5 for i in range(4)]
    base = (0.99 / 0.1) ** (1 / 3)  # the released code's form: start * base^((i/3)^p * 3)
    assert root == pytest.approx([0.1 * base ** ((i / 3) ** 0.3 * 3) for i in range(4)], rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_rddm_sampler(eta):
    """x_s = x_t - (abar_t - abar_s) res - (bbar_t - sqrt(bbar_s^2 - q^2)) eps + q xi."""
    path = RDDM("decreased", "increased", noise=1.0)
    x, clean, mu, site, noise = setting(path)
    t, s = 0.8, 0.5
    k, q = path.coefficients(t), path.coefficients(s)
    pred = Prediction("data", clean, path, x, t, site)
    fresh = (eta * (k.sigma**2 - q.sigma**2) * q.sigma**2 / k.sigma**2) ** 0.5
    published = (x - (k.c - q.c) * (mu - clean) - (k.sigma - (q.sigma**2 - fresh**2) ** 0.5) * pred.noise
                 + fresh * noise.normal("step"))
    ours = path.posterior(x, pred, t, s, site, noise, eta=eta**0.5)
    assert (ours - published).abs().max() < 1e-12


@pytest.mark.parametrize("path", [VP(centred=True), MeanReverting()])
def test_a_centre_is_a_shift(path):
    """Every step on x equals the step of the same path without centre on x - c mu, whatever the kind."""
    x, clean, mu, site, noise = setting(path)
    bare = VP() if isinstance(path, VP) else None
    t, s = 0.6, 0.3
    k, q = path.coefficients(t), path.coefficients(s)
    eps = (x - k.c * mu - k.alpha * clean) / k.sigma
    for eta in (0.0, 0.7):
        fresh = eta * path.fresh_noise(t, s)
        expected = (q.alpha * clean + (q.sigma**2 - fresh**2) ** 0.5 * eps + fresh * noise.normal("step")) + q.c * mu
        ours = path.posterior(x, Prediction("data", clean, path, x, t, site), t, s, site, noise, eta=eta)
        assert (ours - expected).abs().max() < 1e-12
    if bare is not None:
        v = path.convert(clean, "data", "velocity", x, t, site)
        w = bare.convert(clean, "data", "velocity", x - k.c * mu, t, None)
        assert torch.allclose(v, w + k.dc * mu, atol=1e-12)
