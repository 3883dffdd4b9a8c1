"""Gaussian paths: derivatives, inverse of lambda, conversions, preconditioning, kernels (T1-T4)."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, random_mixture
from scidiff.core.errors import ScidiffError
from scidiff.core.path import (
    EDM,
    RDDM,
    VE,
    VP,
    Cosine,
    DiscreteDDPM,
    LevelPath,
    Linear,
    LinearVP,
    MeanReverting,
    Poly,
    Prediction,
    ResShift,
    SubVP,
)
from scidiff.core.run import Run
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context

PATHS = [
    VP(), VP(beta_min=0.2, beta_max=8.0), SubVP(), VE(), VE(0.1, 1.0), EDM(), Cosine(), Cosine(offset=0.008),
    LinearVP(), Linear(), Linear(centred=True), VP(centred=True), Poly(3.0), Poly(0.5), DiscreteDDPM(),
    DiscreteDDPM(rule="scaled_linear"),
    MeanReverting(), MeanReverting(schedule="linear"), MeanReverting(schedule="constant"), ResShift(),
    ResShift(noise_min=0.04), RDDM(), RDDM("average", "average"), RDDM("increased", "decreased"),
]
KINDS = ("data", "noise", "score", "velocity", "angular")
F64 = torch.float64


def label(path):
    return json.dumps({k: v for k, v in path.to_config().items() if v != type(path)().__dict__.get(k)})[-60:]


def site_of(path, batch=3, dim=4, centre=None, space=None):
    ctx = Context.of(batch)
    if centre is not None:
        ctx.centre["x"] = centre
    return ctx.at("x", Component(space or Euclidean(), path, (dim,)))


def interior(path, n=57):
    """Times inside the bounds that avoid the knots of tables."""
    low, high = path.bounds
    return low + (high - low) * (torch.arange(n, dtype=F64) + 0.37) / n


@pytest.mark.parametrize("path", PATHS, ids=label)
def test_derivatives_equal_autograd(path):
    t = interior(path).requires_grad_()
    k = path.coefficients(t)
    for value, slope in ((k.alpha, k.dalpha), (k.sigma, k.dsigma), (k.c, k.dc), (k.lam, k.dlam)):
        if not value.requires_grad:
            assert bool((slope == 0).all())
            continue
        exact = torch.autograd.grad(value.sum(), t, retain_graph=True)[0]
        assert torch.allclose(slope, exact, rtol=1e-10, atol=1e-10)
    assert torch.allclose(k.lam, (k.alpha / k.sigma).log(), rtol=1e-9, atol=1e-9)
    assert torch.allclose(k.g2, 2 * k.sigma * k.dsigma - 2 * k.dalpha / k.alpha * k.sigma**2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=label)
def test_lambda_falls_and_inverts(path):
    low, high = path.bounds
    t = torch.linspace(low, high, 201, dtype=F64)
    lam = path.coefficients(t).lam
    assert bool(torch.isfinite(lam).all()) and bool((lam.diff() < 0).all())
    assert torch.allclose(path.t_of_lambda(lam), t, rtol=0, atol=1e-10)
    mid = float(t[77])
    assert abs(path.t_of_lambda(path.coefficients(mid).lam) - mid) < 1e-10


@pytest.mark.parametrize("path", PATHS, ids=label)
def test_bounds_are_safe(path):
    for t in path.bounds:
        k = path.coefficients(t)
        assert k.alpha > 0 and k.sigma > 0
        assert all(math.isfinite(v) for v in k)
        assert all(math.isfinite(v) for v in path.preconditioning(t))


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), EDM(), Linear(), Poly(2.0), MeanReverting(), ResShift(), RDDM(),
                                  Linear(centred=True)], ids=label)
@pytest.mark.parametrize("batched", [False, True])
def test_conversions_round_trip(path, batched):
    g = torch.Generator().manual_seed(1)
    x0, eps, mu = (torch.randn(3, 4, generator=g, dtype=F64) for _ in range(3))
    site = site_of(path, centre=mu)
    t = interior(path, 5)[1:4] if batched else float(interior(path, 5)[2])
    k = path.coefficients(t)
    col = (lambda v: v.view(-1, 1)) if batched else (lambda v: v)
    z = col(k.alpha) * x0 + col(k.c) * mu + col(k.sigma) * eps
    noised = type("Noised", (), {"z": z, "eps": eps, "x1": None})()
    truth = {kind: path.target(kind, x0, noised, t, site) for kind in KINDS}
    for have, want in itertools.product(KINDS, KINDS):
        got = path.convert(truth[have], have, want, z, t, site)
        back = path.convert(got, want, have, z, t, site)
        # A conversion may enlarge rounding by the ratio of the scales; round trips are held to 1e-10 relative to it.
        size = truth[want].abs().max() + 1 / k.sigma.min() ** 2 if batched else truth[want].abs().max() + 1 / k.sigma**2
        assert (got - truth[want]).abs().max() < 1e-10 * size
        assert (back - truth[have]).abs().max() < 1e-10 * (truth[have].abs().max() + size)


def test_conversions_in_float32_keep_the_state_dtype():
    path, z = VP(), torch.randn(3, 4)
    site = site_of(path)
    for t in (0.4, torch.tensor([0.1, 0.5, 0.9], dtype=F64)):
        assert path.convert(torch.randn(3, 4), "noise", "data", z, t, site).dtype == torch.float32


def test_equal_lambda_means_equal_data_prediction():
    """T3: x' = x alpha'/alpha at equal lambda leaves D unchanged, whatever the two paths."""
    mixture = random_mixture(3)
    x = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    ctx = Context.of(6)
    for lam in (-1.5, 0.2, 2.0):
        clean = []
        for path in (VP(), SubVP(), VE(), EDM(), Linear(), Cosine()):
            t = path.t_of_lambda(lam)
            state = {"x": x * path.coefficients(t).alpha}
            clean.append(AnalyticMixture(mixture, path, kind="noise")(state, t, ctx)["x"].data)
        assert all(torch.allclose(c, clean[0], rtol=1e-9, atol=1e-9) for c in clean)


def test_preconditioning_has_unit_variance():
    """T4: Var[scale_in x] = Var[F] = 1 for white data of standard deviation sd, and F = -angular where sd = 1."""
    g = torch.Generator().manual_seed(5)
    for path in (VP(), SubVP(), VE(), EDM(), Linear(), Poly(2.0)):
        for t in torch.rand(4, generator=g, dtype=F64) * 0.9 + 0.05:
            for sd in (0.5, 1.0, 3.0):
                k = path.coefficients(float(t))
                skip, gain, scale = path.preconditioning(float(t), sd)
                assert abs(scale**2 * (k.alpha**2 * sd**2 + k.sigma**2) - 1) < 1e-12
                # F = (x0 - skip (alpha x0 + sigma eps)) / gain is linear in the independent x0 and eps.
                variance = ((1 - skip * k.alpha) ** 2 * sd**2 + (skip * k.sigma) ** 2) / gain**2
                assert abs(variance - 1) < 1e-10
    x0, eps = torch.randn(2, 3, 4, dtype=F64, generator=g)
    path, t = Linear(), 0.3
    k = path.coefficients(t)
    z = k.alpha * x0 + k.sigma * eps
    skip, gain, _ = path.preconditioning(t, 1.0)
    u = path.convert(x0, "data", "angular", z, t, site_of(path))
    assert torch.allclose((x0 - skip * z) / gain, -u, atol=1e-12)


def test_sub_vp_diffusion_identity():
    path, t = SubVP(), interior(SubVP())
    k = path.coefficients(t)
    assert torch.allclose(k.g2, path.beta(t) * (1 - k.alpha**4), rtol=1e-10)
    assert torch.allclose(VP().coefficients(t).g2, path.beta(t), rtol=1e-10)


def test_discrete_table_is_reproduced():
    path = DiscreteDDPM(steps=50)
    betas = torch.linspace(1e-4, 0.02, 50, dtype=F64)
    abar = torch.cumprod(1 - betas, 0)
    got = torch.tensor([path.coefficients(path.time_of_step(k)).alpha ** 2 for k in range(50)], dtype=F64)
    assert torch.allclose(got, abar, rtol=1e-12)
    again = DiscreteDDPM(alphas_bar=tuple(abar.tolist()))
    assert abs(again.coefficients(0.733).alpha - path.coefficients(0.733).alpha) < 1e-12
    with pytest.raises(ScidiffError, match="strictly"):
        DiscreteDDPM(alphas_bar=(0.9, 0.95))


@pytest.mark.parametrize("path", [VP(), VE(), Linear(centred=True), MeanReverting(), ResShift(), RDDM()], ids=label)
def test_kernels_keep_the_marginal(path):
    """posterior (any eta) and renoise applied to x_t ~ p(x_t | x0) give exactly alpha x0 + c mu + sigma noise."""
    n = 20000
    x0 = torch.full((n, 1), 0.7, dtype=F64)
    mu = torch.full((n, 1), -1.3, dtype=F64)
    site = site_of(path, batch=n, dim=1, centre=mu)
    run = Run(3)
    noise = run.handle(site, F64)
    t, s = 0.6, 0.35
    noised = path.corrupt(x0, t, site, noise)
    pred = Prediction("data", x0, path, noised.z, t, site)
    for eta in (0.0, 0.5, 1.0):
        k = path.coefficients(s)
        out = path.posterior(noised.z, pred, t, s, site, noise, "step", eta)
        assert abs(float(out.mean()) - (k.alpha * 0.7 - k.c * 1.3)) < 5 * k.sigma / n**0.5
        assert abs(float(out.std()) / k.sigma - 1) < 5 / (2 * n) ** 0.5
    back = path.corrupt(x0, s, site, noise).z
    up = path.renoise(back, s, t, site, noise)
    k = path.coefficients(t)
    assert abs(float(up.mean()) - (k.alpha * 0.7 - k.c * 1.3)) < 5 * k.sigma / n**0.5
    assert abs(float(up.std()) / k.sigma - 1) < 5 / (2 * n) ** 0.5


def test_posterior_ends():
    """eta = 0 is DDIM; eta = 1 of VP has the mean and variance of DDPM; s = 0 returns the clean estimate."""
    path, t, s = VP(), 0.6, 0.4
    x, clean = torch.randn(2, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    site = site_of(path, batch=2)
    noise = Run(0).handle(site, F64)
    pred = Prediction("data", clean, path, x, t, site)
    k, q = path.coefficients(t), path.coefficients(s)
    ddim = q.alpha * clean + q.sigma * (x - k.alpha * clean) / k.sigma
    assert torch.allclose(path.posterior(x, pred, t, s, site, noise, eta=0.0), ddim, atol=1e-12)
    step = (k.alpha / q.alpha) ** 2  # DDPM in its own letters: abar_t / abar_{t-1}
    mean = (q.alpha * (1 - step) * clean + step**0.5 * q.sigma**2 * x) / k.sigma**2
    var = (1 - step) * q.sigma**2 / k.sigma**2
    xi = (path.posterior(x, pred, t, s, site, noise) - mean) / var**0.5
    assert torch.allclose(xi, noise.normal("step"), atol=1e-10)
    assert abs(path.fresh_noise(t, s) - var**0.5) < 1e-12
    assert torch.equal(path.posterior(x, pred, t, 0.0, site, noise), clean)


def test_per_sample_times_equal_single_times():
    path = VP()
    x, clean = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    site = site_of(path)
    noise = Run(0).handle(site, F64)
    t, s = torch.tensor([0.3, 0.6, 0.9], dtype=F64), torch.tensor([0.2, 0.1, 0.8], dtype=F64)
    pred = Prediction("data", clean, path, x, t, site)
    together = path.posterior(x, pred, t, s, site, noise)
    up = path.renoise(x, s, t, site, noise)
    for i in range(3):
        a, b = float(t[i]), float(s[i])
        alone = path.posterior(x, Prediction("data", clean, path, x, a, site), a, b, site, noise)
        assert torch.allclose(together[i], alone[i], atol=1e-12)
        assert torch.allclose(up[i], path.renoise(x, b, a, site, noise)[i], atol=1e-12)


def test_langevin_keeps_a_gaussian():
    """Small unadjusted Langevin steps leave N(0, v) alone to first order, and the step follows its formula."""
    path, n, v = VE(), 2000, 4.0
    site = site_of(path, batch=n, dim=64)
    run = Run(1)
    noise = run.handle(site, F64)
    x = v**0.5 * noise.normal("start")
    out = path.langevin(x, -x / v, 0.1, 1.0, 1.0, site, noise)
    xi = noise.normal("langevin")
    step = 2 * 0.01 * (xi.norm(dim=1) / (x / v).norm(dim=1)) ** 2
    assert torch.allclose(out, x - step[:, None] * x / v + (2 * step).sqrt()[:, None] * xi, atol=1e-12)
    assert abs(float(out.var()) / float(x.var()) - 1) < 0.01
    whole = path.langevin(x, -x / v, 0.1, 1.0, 0.5, site, noise, whole_batch=True)
    step = 2 * 0.01 * (xi.norm(dim=1).mean() / (x / v).norm(dim=1).mean()) ** 2
    assert torch.allclose(whole, x - step * x / v + 0.5 * (2 * step).sqrt() * xi, atol=1e-12)


def test_refusals():
    with pytest.raises(ScidiffError, match="real numbers"):
        Component(Categorical(3), VP(), (4,))
    with pytest.raises(ScidiffError, match="real numbers"):
        Component(Torus(), VP(), (4,))
    with pytest.raises(ScidiffError, match="centre"):
        path = ResShift()
        path.source(site_of(path), Run(0).handle(site_of(path)))
    with pytest.raises(ScidiffError, match="no signal"):
        Linear().convert(torch.zeros(1, 1), "noise", "data", torch.zeros(1, 1), 1.0, None)
    with pytest.raises(ScidiffError, match="min_snr"):
        VP(weight="min-snr")


def test_levels_of_the_refiner():
    """The released schedule, pure noise at the end, and the step from it being a re-noising of the prediction."""
    path = LevelPath.geometric(math.sqrt(4e-7), 3)
    assert path.stds == pytest.approx((6.3e-4, 7.4e-3, 8.6e-2, 1.0), rel=5e-3)
    assert path.levels == (0.25, 0.5, 0.75, 1.0)
    last = path.coefficients(1.0)
    assert last.alpha == 0.0 and last.sigma == 1.0
    for t in path.levels[:-1]:
        k = path.coefficients(t)
        assert abs(k.alpha**2 + k.sigma**2 - 1) < 1e-15
        assert abs(path.t_of_lambda(k.lam) - t) < 1e-12
    with pytest.raises(ScidiffError, match="levels only"):
        path.coefficients(0.6)
    site = site_of(path, batch=2)
    noise = Run(0).handle(site, F64)
    x, clean = torch.randn(2, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    pred = Prediction("angular", -clean, path, x, 1.0, site)
    assert torch.allclose(pred.data, clean)
    k = path.coefficients(0.75)
    out = path.posterior(x, pred, 1.0, 0.75, site, noise)
    assert torch.allclose(out, k.alpha * clean + k.sigma * noise.normal("step"), atol=1e-14)
    assert torch.equal(path.posterior(x, Prediction("data", clean, path, x, 0.25, site), 0.25, 0.0, site, noise), clean)
