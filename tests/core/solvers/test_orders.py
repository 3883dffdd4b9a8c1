"""Every deterministic solver converges with its order, and solvers that are one method give one result."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, ring8
from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path import EDM, VE, VP, LevelPath, Linear, MeanReverting, Prediction
from scidiff.core.path.wrapped import WrappedPath, wrapped_score
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.adams import Adams
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.euler_maruyama import EulerMaruyama
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed, LambdaGrid
from scidiff.core.solvers.heun import Heun
from scidiff.core.solvers.moments import exponential_moments, phi, weights
from scidiff.core.solvers.runge_kutta import RungeKutta
from scidiff.core.space import Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec


def plain(order, form="noise"):
    return Exponential(order=order, corrector=0, reach=math.inf, form=form)


@pytest.mark.parametrize("method, order", [
    (Ancestral(), 1), (plain(1), 1), (plain(2), 2), (plain(2, "data"), 2), (plain(3), 3),
    (Exponential(variant="dpmpp"), 2), (Exponential(order=1), 2), (Exponential(order=2), 3),
    (Exponential(order=2, corrector=1), 3), (Adams(2), 2), (Heun(), 2), (RungeKutta("euler"), 1),
    (RungeKutta("midpoint"), 2), (RungeKutta("heun"), 2), (RungeKutta("rk4"), 4), (EulerMaruyama(eta=0.0), 1),
    (EulerMaruyama(eta=0.0, heun=True), 2),
], ids=str)
def test_observed_order_on_the_ring(ring, method, order):
    assert abs(ring.slope(method) - order) < 0.3


@pytest.mark.parametrize("method, least", [(plain(3, "data"), 2.7), (plain(4), 3.7), (Exponential(order=3), 3.7),
                                           (Exponential(), 4.0), (Adams(4), 3.4)], ids=str)
def test_high_orders_are_reached_at_least(ring, method, least):
    assert ring.slope(method) > least


def test_ddim_is_euler_in_rho_and_the_first_exponential_step(ring):
    reference = ring.end(Ancestral(), 20)
    for method in (plain(1), plain(1, "data"), Adams(1), Ancestral(form="data")):
        assert torch.allclose(ring.end(method, 20), reference, rtol=1e-11, atol=1e-11)


def test_eta_one_of_first_order_is_ddpm(ring):
    sde = Exponential(order=1, corrector=0, eta=1.0)
    assert torch.allclose(ring.end(sde, 30), ring.end(Ancestral(eta=1.0), 30), rtol=1e-10, atol=1e-10)


def test_the_published_second_order_rule(ring):
    """DPM-Solver++ 2M written out as in arXiv 2211.01095, algorithm 2."""
    times = LambdaGrid()(ring.path, 12, 1.0, 1e-3)
    x, before = ring.start, None
    for t, s in zip(times, times[1:], strict=False):
        now, then = ring.path.coefficients(t), ring.path.coefficients(s)
        clean = ring.denoiser.mixture.posterior_mean(x, now.alpha, now.sigma)
        h, mixed = then.lam - now.lam, clean
        if before is not None:
            r = (now.lam - before[1]) / h
            mixed = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before[0]
        x = then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * mixed
        before = (clean, now.lam)
    assert torch.allclose(ring.end(Exponential(variant="dpmpp"), 12), x, rtol=1e-11, atol=1e-11)


def test_the_corrector_repeats_the_step_with_the_new_prediction(ring):
    """Predictor of order 2, corrector with one node more, written as two steps; ours is one row."""
    times = LambdaGrid()(ring.path, 10, 1.0, 1e-3)
    k = [ring.path.coefficients(t) for t in times]
    lams = [v.lam for v in k]

    def step(i, x, nodes, values):
        h = lams[i + 1] - lams[i]
        b = weights([(lams[j] - lams[i]) / h for j in nodes], exponential_moments(len(nodes), h, h))
        return k[i + 1].alpha / k[i].alpha * x - k[i + 1].sigma * sum(
            w * values[j] for w, j in zip(b, nodes, strict=True)
        )

    x, base, values = ring.start, ring.start, {}
    for i in range(10):
        values[i] = ring.denoiser.mixture.posterior_noise(x, k[i].alpha, k[i].sigma)
        if i:
            base = step(i - 1, base, [j for j in range(i, max(i - 3, -1), -1)], values)
        x = step(i, base, [j for j in range(i, max(i - 2, -1), -1)], values)
    ours = ring.end(Exponential(order=2, corrector=1, reach=math.inf), 10)
    assert torch.allclose(ours, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path, t_start", [(EDM(sigma_max=80.0), 1.0), (VE(sigma_min=0.002, sigma_max=80.0), 1.0),
                                           (Linear(t_max=0.999), 0.999)], ids=str)
def test_paths_with_equal_lambda_give_the_same_endpoint_after_rescaling(path, t_start):
    vp = VP()
    high = max(path.coefficients(t_start).lam, vp.coefficients(1.0).lam)
    grid = [high + (4.0 - high) * i / 16 for i in range(17)]
    ends, noise = [], torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for p in (vp, path):
        times = tuple(p.t_of_lambda(v) for v in grid)
        first, last = p.coefficients(times[0]), p.coefficients(times[-1])
        denoiser = AnalyticMixture(ring8(), p, kind="data")
        from scidiff.core.solvers.fixed import GivenGrid

        driver = Fixed(Exponential(), 16, grid=GivenGrid(times), t_end=times[-1])
        x = Sampler(denoiser.spec(), denoiser, driver, dtype=torch.float64).run(
            Context.of(32), 0, start={"x": first.alpha * noise * math.exp(-grid[0])}, t_start=times[0]).state["x"]
        ends.append(x / last.alpha)
    assert torch.allclose(ends[0], ends[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", [Exponential(), Exponential(form="data"), Ancestral(), Heun(), Adams(3),
                                    RungeKutta("rk4"), EulerMaruyama(eta=0.0)], ids=str)
def test_a_centred_path_is_the_ordinary_one_moved(method):
    """Solving x with centre mu is solving x - mu for data moved by mu, at every step count."""
    path = MeanReverting(stationary=0.4)
    mixture = ring8(0.5, 0.1)
    mu = torch.tensor([1.0, -2.0], dtype=torch.float64).expand(16, 2).contiguous()
    noise = 0.4 * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for centre in (torch.zeros_like(mu), mu):
        moved = type(mixture)(mixture.means + centre[0], mixture.stds, mixture.weights)
        denoiser = AnalyticMixture(moved, path, kind="data")
        ctx = Context.of(16, centre={"x": centre})
        x = Sampler(denoiser.spec(), denoiser, Fixed(method, 12), dtype=torch.float64).run(
            ctx, 0, start={"x": noise + centre}
        )
        ends.append(x.state["x"] - centre)
    assert torch.allclose(ends[0], ends[1], atol=1e-10)


def test_data_at_the_end_costs_no_network_call(ring):
    for method in (Exponential(last="data"), Ancestral(last="data"), Exponential(variant="dpmpp", last="data")):
        result = Sampler(ring.spec, ring.denoiser, Fixed(method, 12), dtype=torch.float64).run(
            ring.context, 0, start={"x": ring.start})
        assert result.nfe == 12
        assert torch.equal(result.state["x"], result.predictions["x"].data)


class WrappedNormal(Denoiser):
    """The exact score of one wrapped normal at `mean`, `std`, on a torus of period 1."""

    def __init__(self, path, mean=0.3, std=0.1):
        super().__init__()
        self.path, self.mean, self.std = path, mean, std

    def forward(self, state, t, ctx, run=None):
        sigma = self.path.coefficients(t).sigma
        total = torch.tensor((sigma**2 + self.std**2) ** 0.5, dtype=torch.float64)
        d = torch.remainder(state["x"] - self.mean + 0.5, 1.0) - 0.5
        return {"x": Prediction("noise", -sigma * wrapped_score(d, total))}


@pytest.mark.parametrize(
    "method, order", [(plain(2), 2), (Adams(2), 2), (Heun(), 2), (RungeKutta("midpoint"), 2)], ids=str
)
def test_multistep_order_on_a_torus(method, order):
    path = WrappedPath(sigma_min=0.005, sigma_max=0.6)
    spec = StateSpec({"x": Component(Torus(1.0), path, (1,))})
    start = {"x": torch.rand(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}

    def end(m, n):
        return (
            Sampler(spec, WrappedNormal(path), Fixed(m, n), dtype=torch.float64)
            .run(Context.of(64), 0, start=start)
            .state["x"]
        )

    truth, space = end(RungeKutta("rk4"), 512), Torus(1.0)
    errors = [float(space.log(truth, end(method, n)).abs().median()) for n in (32, 64, 128)]
    assert abs(math.log(errors[0] / errors[2]) / math.log(4.0) - order) < 0.3
    assert all(float(x.min()) >= 0.0 and float(x.max()) < 1.0 for x in (truth, end(method, 32)))


def test_a_path_of_levels_meets_its_levels_alone():
    path = LevelPath(stds=(0.1, 0.4, 1.0))
    seen = []

    class Watching(AnalyticMixture):
        def forward(self, state, t, ctx, run=None):
            seen.append(t)
            return super().forward(state, t, ctx, run)

    denoiser = Watching(ring8(), path, kind="data")
    for method in (Exponential(), Ancestral()):
        seen.clear()
        x = Sampler(denoiser.spec(), denoiser, Fixed(method, 50), dtype=torch.float64).run(Context.of(8), 0).state["x"]
        assert seen == [1.0, 2 / 3, 1 / 3] and bool(torch.isfinite(x).all())


def test_moments_are_those_integrals():
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for rate in (-7.0, -0.9, 1e-5, 0.3, 4.0):
        exact = [float(((rate * (1 - tau)).exp() * tau**k).mean()) for k in range(4)]
        assert exponential_moments(4, rate, 1.0) == pytest.approx(exact, rel=1e-8)
    assert phi(2, 0.999999) == pytest.approx(phi(2, 1.000001), rel=1e-5)
    b = weights([0.0, -0.7, -1.9], [1.0, 2.0, 3.0])
    assert [sum(w * v**k for w, v in zip(b, [0.0, -0.7, -1.9], strict=True)) for k in range(3)] == pytest.approx(
        [1.0, 2.0, 3.0]
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Exponential(form="nois"),
        lambda: Exponential(order=5),
        lambda: Exponential(variant="2m"),
        lambda: Exponential(eta=0.5, form="noise"),
        lambda: Exponential(last="mode"),
        lambda: Ancestral(eta=2.0),
        lambda: RungeKutta("rk45"),
        lambda: Adams(9),
        lambda: Heun(churn=-1.0),
        lambda: Fixed(Ancestral(), 0),
        lambda: Fixed(Exponential(eta=1.0), 4).plan(StateSpec({"x": Component(Torus(1.0), WrappedPath(), (2,))})),
        lambda: Fixed(RungeKutta(), 4).plan(StateSpec({"x": Component(Euclidean(), LevelPath(stds=(0.1, 1.0)), (2,))})),
        lambda: Fixed(Ancestral(), 4, methods={"y": Ancestral()}).plan(
            StateSpec({"x": Component(Euclidean(), VP(), (2,))})
        ),
    ],
)
def test_wrong_settings_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_reach_and_final_order_bound_the_predictions_of_a_step():
    """A step looks back at predictions within `reach` in lambda, and the last one at no more than `final_order`."""
    path = VP()
    spec = StateSpec({"x": Component(Euclidean(), path, (1,))})
    for steps, reach in ((4, 1.5), (10, 1.5), (10, 3.1), (40, 1.5)):
        stages = Fixed(Exponential(order=4, corrector=0, reach=reach, final_order=1), steps).plan(spec).stages
        lams = [path.coefficients(stage.t).lam for stage in stages]
        for i, stage in enumerate(stages[:-1]):
            near = sum(lams[i] - lam <= reach for lam in lams[max(0, i - 3):i + 1])
            assert len(stage.rows[0].b) == near
        assert len(stages[-1].rows[0].b) == 1
    assert len(Fixed(Exponential(corrector=0), 40).plan(spec).stages[-1].rows[0].b) == 4
