"""Stochastic solvers: variances by exact propagation, marginals of bridges and of Langevin correctors."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.path import EDM, VE, VP
from scidiff.core.path.bridge import Bridge
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.euler_maruyama import EulerMaruyama
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed, LambdaGrid
from scidiff.core.solvers.heun import Heun
from scidiff.core.solvers.predictor_corrector import PredictorCorrector
from scidiff.core.solvers.runge_kutta import RungeKutta
from scidiff.core.solvers.variance import endpoint_variance
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec

Q = 0.5


def gaussian(path=None, dim=8, std=Q, mean=0.0):
    path = path or VP()
    return AnalyticMixture(GaussianMixture(torch.full((1, dim), mean), torch.tensor([std])), path, kind="noise")


def relative_error(method, steps):
    spec = gaussian(dim=1).spec()
    found, exact = endpoint_variance(Fixed(method, steps, grid=LambdaGrid()).plan(spec), VP(), Q)
    return found / exact - 1.0


@pytest.mark.parametrize("method", [Ancestral(eta=1.0), Exponential(eta=1.0), Exponential(variant="dpmpp", eta=0.5),
                                    Exponential(), EulerMaruyama(), EulerMaruyama(heun=True), Heun(churn=8.0),
                                    RungeKutta("midpoint")], ids=str)
def test_the_variance_of_samples_is_the_propagated_one(method):
    denoiser = gaussian()
    driver = Fixed(method, 16, grid=LambdaGrid())
    ctx = Context.of(4000)
    noise = torch.randn(4000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    k = VP().coefficients(1.0)
    start = {"x": noise * math.sqrt(k.alpha**2 * Q * Q + k.sigma**2)}
    x = Sampler(denoiser.spec(), denoiser, driver, dtype=torch.float64).run(ctx, 0, start=start).state["x"]
    expected, _ = endpoint_variance(driver.plan(denoiser.spec()), VP(), Q)
    error = expected * math.sqrt(2.0 / x.numel())
    assert abs(float(x.square().mean()) - expected) < 3.0 * error
    assert abs(float(x.mean())) < 3.5 * math.sqrt(expected / x.numel())


def test_variance_errors_of_known_solvers():
    """Figures of an independent computation, specs/core.md 5.3."""
    counts = (8, 16, 32, 64)
    assert [relative_error(EulerMaruyama(), n) for n in counts] == pytest.approx([1.02, 0.305, 0.132, 0.062], abs=5e-3)
    assert [relative_error(Ancestral(eta=1.0), n) for n in counts] == pytest.approx(
        [-0.620, -0.417, -0.248, -0.136], abs=1e-3
    )
    second = Exponential(order=2, corrector=0, reach=math.inf, eta=1.0)
    assert [relative_error(second, n) for n in counts] == pytest.approx([0.574, 0.276, 0.066, 0.016], abs=1e-3)


def test_the_default_beats_the_published_second_order_sde_solver():
    ours, published = Exponential(eta=1.0), Exponential(variant="dpmpp", eta=1.0)
    for n in (32, 64, 128):
        assert abs(relative_error(ours, n)) < 0.5 * abs(relative_error(published, n))


def test_only_affine_plans_propagate():
    spec = gaussian(dim=1).spec()
    with pytest.raises(ScidiffError, match="affine"):
        endpoint_variance(Fixed(PredictorCorrector(), 4).plan(spec), VP(), Q)


class GaussianBridge(Denoiser):
    """x0 ~ N(m0, s0^2), x1 ~ N(m1, s1^2) independent: both heads in closed form."""

    def __init__(self, path, m0, s0, m1, s1):
        super().__init__()
        self.path, self.laws = path, (m0, s0, m1, s1)

    def forward(self, state, t, ctx, run=None):
        m0, s0, m1, s1 = self.laws
        k, x = self.path.coefficients(t), state["x"]
        total = k.a**2 * s0**2 + k.b**2 * s1**2 + k.gamma**2
        off = (x - k.a * m0 - k.b * m1) / total
        slope = k.da * (m0 + k.a * s0**2 * off) + k.db * (m1 + k.b * s1**2 * off)
        return {"x": self.path.pair(slope, k.gamma * off, x, t, None)}


@pytest.mark.parametrize("gamma", ["brownian", "sine"])
@pytest.mark.parametrize("method, steps", [(EulerMaruyama(eta=0.0), 400), (EulerMaruyama(eta=2.0), 400),
                                           (EulerMaruyama(eta=8.0), 400), (EulerMaruyama(eta=2.0, heun=True), 100),
                                           (RungeKutta("heun"), 50)], ids=str)
def test_two_sided_bridges_reach_the_data_law_with_any_diffusion(gamma, method, steps):
    path = Bridge(gamma=gamma)
    spec = StateSpec({"x": Component(Euclidean(), path, (4,))})
    denoiser = GaussianBridge(path, -2.0, 1.2, 1.0, 0.5)
    n = 4000
    x1 = 1.0 + 0.5 * torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ctx = Context.of(n, source={"x": x1})
    x = Sampler(spec, denoiser, Fixed(method, steps), dtype=torch.float64).run(ctx, 0).state["x"]
    standard = 1.2 / math.sqrt(x.numel())
    assert abs(float(x.mean()) + 2.0) < 3.5 * standard + 0.01
    assert abs(float(x.std()) - 1.2) < 3.5 * standard + 0.01


def test_a_bridge_has_no_step_of_an_exponential_solver():
    spec = StateSpec({"x": Component(Euclidean(), Bridge(), (4,))})
    with pytest.raises(UsageError, match="Bridge"):
        Fixed(Exponential(), 4).plan(spec)


@pytest.mark.parametrize("batch_norms", [False, True])
def test_langevin_correctors_keep_and_restore_the_marginal(batch_norms):
    """Started at twice the right scale and left at one level, the corrector finds the law of that level."""
    path = VE(sigma_min=0.1, sigma_max=0.100001)
    denoiser = gaussian(path, dim=256, std=1.0)
    still = PredictorCorrector(Ancestral(), n_corr=1, snr=0.1, batch_norms=batch_norms)
    ctx = Context.of(64)
    start = {"x": 2.0 * torch.randn(64, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    x = Sampler(denoiser.spec(), denoiser, Fixed(still, 400), dtype=torch.float64).run(ctx, 0, start=start).state["x"]
    expected = 1.0 + 0.1**2
    # The discretised chain overshoots the variance by about half of the step over the variance: e = 2 snr^2 v.
    assert float(x.square().mean()) == pytest.approx(expected, rel=0.03)


def test_predictor_corrector_marginals():
    denoiser = gaussian(dim=256)
    method = PredictorCorrector(Ancestral(eta=1.0), n_corr=1, snr=0.1)
    result = Sampler(denoiser.spec(), denoiser, Fixed(method, 100), dtype=torch.float64).run(Context.of(32), 0)
    assert result.nfe == 200
    without = Sampler(denoiser.spec(), denoiser, Fixed(Ancestral(eta=1.0), 100), dtype=torch.float64).run(
        Context.of(32), 0
    )
    k = VP().coefficients(1e-3)
    exact = k.alpha**2 * Q * Q + k.sigma**2
    gap, gap_without = (abs(float(r.state["x"].square().mean()) / exact - 1.0) for r in (result, without))
    assert gap < 0.06 and gap < gap_without


def test_churn_raises_the_noise_as_published():
    """rho grows by min(churn / N, sqrt(2) - 1), and the fresh noise by churn_noise."""
    path = EDM()
    spec = gaussian(dim=2).spec()
    spec = StateSpec({"x": Component(spec["x"].space, path, (2,))})
    for churn, steps, gamma in ((4.0, 20, 0.2), (1000.0, 20, math.sqrt(2.0) - 1.0)):
        plan = Fixed(Heun(churn=churn, churn_noise=1.5), steps).plan(spec)
        rows = [row for stage in plan.stages for row in stage.rows if row.tag == "churn"]
        assert len(rows) >= steps - 4
        for row in rows:
            low, high = path.coefficients(row.t).rho, path.coefficients(row.s).rho
            assert high / low == pytest.approx(1.0 + gamma)
            assert row.c == pytest.approx(1.5 * math.sqrt(high**2 - low**2))


def test_churn_keeps_the_marginal():
    denoiser = gaussian(dim=8)
    method = Heun(churn=10.0, churn_noise=1.0)
    result = Sampler(denoiser.spec(), denoiser, Fixed(method, 60), dtype=torch.float64).run(Context.of(4000), 0)
    k = VP().coefficients(1e-3)
    exact = k.alpha**2 * Q * Q + k.sigma**2
    assert float(result.state["x"].square().mean()) == pytest.approx(exact, rel=0.04)
    assert result.nfe == 120
