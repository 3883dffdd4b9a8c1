"""T5 and the oracle itself: closed forms against autograd, quadrature and sampling."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.analytic import (
    AnalyticGaussian,
    AnalyticMixture,
    GaussianMixture,
    mixture32,
    random_mixture,
    ring8,
)
from scidiff.core.path import VE, VP, Linear, MeanReverting
from scidiff.core.spec import Context

F64 = torch.float64
MEAN, STD = 0.8, 0.6
G1 = GaussianMixture([[MEAN, MEAN]], [STD])


@pytest.mark.parametrize("path", [VP(), VE(), Linear(), MeanReverting()])
def test_one_gaussian_in_closed_form(path):
    x = torch.linspace(-2, 2, 12, dtype=F64).view(6, 2)
    mu = torch.full_like(x, 0.3)
    ctx = Context.of(6, centre={"x": mu})
    for t in (0.15, 0.6, 0.95):
        k = path.coefficients(t)
        v = k.alpha**2 * STD**2 + k.sigma**2
        off = x - k.c * mu - k.alpha * MEAN
        pred = AnalyticMixture(G1, path)({"x": x}, t, ctx)["x"]
        assert torch.allclose(pred.data, MEAN + k.alpha * STD**2 / v * off, atol=1e-10)
        assert torch.allclose(pred.score, -off / v, rtol=1e-8, atol=1e-10)
        slope = 0.5 * (2 * k.alpha * k.dalpha * STD**2 + 2 * k.sigma * k.dsigma) / v  # d log std / dt
        assert torch.allclose(pred.velocity, k.dalpha * MEAN + k.dc * mu + slope * off, rtol=1e-8, atol=1e-9)
        exact = torch.distributions.Normal(k.alpha * MEAN, v**0.5).log_prob(x - k.c * mu).sum(1)
        assert torch.allclose(G1.log_prob(x - k.c * mu, k.alpha, k.sigma), exact, atol=1e-10)


@pytest.mark.parametrize("mixture", [ring8(), mixture32(), random_mixture(1), random_mixture(2, 3, 4)])
@pytest.mark.parametrize("kind", ["data", "noise", "score", "velocity", "angular"])
def test_every_kind_agrees_with_the_gradient_of_the_density(mixture, kind):
    path = VP()
    x = torch.randn(5, mixture.dim, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for t in (0.3, torch.linspace(0.2, 0.9, 5, dtype=F64)):
        k = path.coefficients(t)
        exact = torch.autograd.grad(mixture.log_prob(x, k.alpha, k.sigma).sum(), x)[0]
        pred = AnalyticMixture(mixture, path, kind=kind)({"x": x.detach()}, t, Context.of(5))["x"]
        assert pred.kind == kind
        assert torch.allclose(pred.score, exact, rtol=1e-7, atol=1e-8)


def test_hessian_trace_and_divergence():
    mixture, path = random_mixture(5), VP()
    x = torch.randn(7, 4, dtype=F64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    k = path.coefficients(0.4)

    def trace(f):
        y = f(x)
        return sum(torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(4))

    assert torch.allclose(trace(lambda y: mixture.score(y, k.alpha, k.sigma)),
                          mixture.hessian_trace(x, k.alpha, k.sigma), rtol=1e-9)
    assert torch.allclose(trace(lambda y: mixture.velocity(y, k)), mixture.divergence(x, k), rtol=1e-9)


def test_density_obeys_the_continuity_equation():
    """d log p_t / dt + v . grad log p_t + div v = 0: path, velocity and density belong together."""
    mixture, path, t, h = ring8(), Linear(), 0.37, 1e-5
    x = torch.randn(9, 2, dtype=F64, generator=torch.Generator().manual_seed(3))
    k = path.coefficients(t)

    def log_p(at):
        c = path.coefficients(at)
        return mixture.log_prob(x, c.alpha, c.sigma)

    rate = (log_p(t + h) - log_p(t - h)) / (2 * h)
    flow = (mixture.velocity(x, k) * mixture.score(x, k.alpha, k.sigma)).sum(1) + mixture.divergence(x, k)
    assert torch.allclose(rate, -flow, rtol=1e-4, atol=1e-4)


def test_samples_have_the_moments():
    for mixture in (ring8(), random_mixture(0)):
        x = mixture.sample(20000, 4)
        assert (x.mean(0) - mixture.mean).abs().max() < 0.03
        assert (x.T.cov() - mixture.covariance).abs().max() < 0.05


def test_toys():
    ring = ring8()
    assert torch.allclose(ring.means.norm(dim=1), torch.ones(8, dtype=F64)) and float(ring.stds.unique()) == 0.05
    m32 = mixture32()
    assert m32.means.shape == (5, 32) and float(m32.stds.unique()) == 0.25
    for seed in range(5):
        m = random_mixture(seed)
        assert m.means.shape == (6, 4) and abs(float(m.weights.sum()) - 1) < 1e-12
        assert float(m.stds.min()) >= 0.1 and float(m.stds.max()) <= 0.5
        assert torch.equal(m.means, random_mixture(seed).means)


def test_labels_condition_the_mixture():
    mixture, path = ring8(), VP()
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(3))
    present = torch.tensor([True, True, False])
    ctx = Context.of(3, cond={"label": (torch.tensor([0, 1, 1]), present)})
    got = AnalyticMixture(mixture, path, labels=labels)({"x": x}, 0.5, ctx)["x"].data
    parts = [mixture.restricted(torch.arange(4)), mixture.restricted(torch.arange(4, 8)), mixture]
    for i, part in enumerate(parts):
        alone = AnalyticMixture(part, path)({"x": x[i : i + 1]}, 0.5, Context.of(1))["x"].data
        assert torch.allclose(got[i : i + 1], alone, atol=1e-12)


def test_float32_state_gets_float32_prediction():
    pred = AnalyticMixture(ring8(), VP())({"x": torch.randn(4, 2)}, 0.5, Context.of(4))["x"]
    assert pred.value.dtype == torch.float32 and pred.noise.dtype == torch.float32


@pytest.mark.parametrize("t", [0.3, {"a": 0.2, "b": 0.9}, {"a": torch.linspace(0.1, 0.9, 7), "b": 0.5}])
def test_coupled_gaussian(t):
    g = torch.Generator().manual_seed(1)
    half = torch.randn(5, 5, dtype=F64, generator=g)
    joint = AnalyticGaussian(torch.randn(5, dtype=F64, generator=g), half @ half.T + torch.eye(5, dtype=F64),
                             {"a": VP(), "b": Linear()}, {"a": 2, "b": 3})
    state = {"a": torch.randn(7, 2, dtype=F64, generator=g).requires_grad_(),
             "b": torch.randn(7, 3, dtype=F64, generator=g).requires_grad_()}
    exact = torch.autograd.grad(joint.log_prob(state, t, Context.of(7)).sum(), list(state.values()))
    preds = joint(state, t, Context.of(7))
    for name, grad in zip(state, exact, strict=True):
        assert torch.allclose(preds[name].score, grad, rtol=1e-8, atol=1e-9)
    x0 = joint.sample(40000, 2)
    flat = torch.cat([x0["a"], x0["b"]], -1)
    assert (flat.mean(0) - joint.mean).abs().max() < 0.06
    assert (flat.T.cov() - joint.cov).abs().max() < 0.25


def test_coupling_matters():
    """With correlated data the clean estimate of one component listens to the other."""
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)
    joint = AnalyticGaussian([0.0, 0.0], cov, {"a": VP(), "b": VP()}, {"a": 1, "b": 1})
    x = {"a": torch.zeros(1, 1, dtype=F64), "b": torch.ones(1, 1, dtype=F64)}
    got = joint(x, {"a": 1.0, "b": 1e-3}, Context.of(1))
    assert abs(float(got["a"].data.detach()) - 0.9) < 0.01
