"""Bayesian flows of real numbers and of classes: Bayes' rule, losses in nats, exact laws of the samplers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import ScidiffError
from scidiff.core.path import CategoricalBelief, GaussianBelief, Prediction
from scidiff.core.plan import Row
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.bayes import Bayes
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Categorical, Euclidean
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build
from scidiff.testing import check_path

F64 = torch.float64


def setting(path, space, shape=(4,), batch=6, seed=0, **more):
    site = Context.of(batch, **more).at("x", Component(space, path, shape))
    return site, Run(seed).handle(site, F64)


def test_the_gaussian_flow_is_a_path_of_the_core():
    check_path(GaussianBelief(), Euclidean(), (3,), batch=1024)
    path = GaussianBelief(sigma_1=0.02)
    for t in (0.0, 0.3, 0.9):
        k, gamma = path.coefficients(t), 1 - 0.02 ** (2 * (1 - t))
        assert k.alpha == pytest.approx(gamma**0.5, rel=1e-12)
        assert k.alpha * k.alpha == pytest.approx(gamma) and k.alpha * k.sigma == pytest.approx(
            (gamma * (1 - gamma)) ** 0.5)  # mean and deviation of mu = alpha z
    site, noise = setting(path, Euclidean())
    assert float(path.features(path.source(site, noise), 1.0, site).abs().max()) == 0.0


@pytest.mark.parametrize("t, s", [(1.0, 0.9), (0.6, 0.55), (0.3, 0.0)])
def test_an_update_is_bayes_rule(t, s):
    """mu_s = (rho_t mu_t + a y) / rho_s, y ~ N(x, 1/a), a = rho_s - rho_t; at n equal steps a is the published one."""
    path = GaussianBelief()
    site, noise = setting(path, Euclidean())
    z, x = noise.normal("z"), noise.normal("x")
    row = Row("x", "bayes", "update", t=t, s=s)
    found = path.apply(row, z, Prediction("data", x, path, z, t, site), site, noise)
    rho = {r: path.sigma_1 ** (-2 * (1 - r)) for r in (t, s)}
    a = rho[s] - rho[t]
    y = x + noise.normal("step") / a**0.5
    mu = (rho[t] * path.features(z, t, site) + a * y) / rho[s]
    assert torch.allclose(path.features(found, s, site), mu, atol=1e-10)
    n, i = 10, 4
    rho_i = [path.sigma_1 ** (-2 * k / n) for k in (i - 1, i)]
    assert rho_i[1] - rho_i[0] == pytest.approx(path.sigma_1 ** (-2 * i / n) * (1 - path.sigma_1 ** (2 / n)))


@pytest.mark.parametrize("steps", [10, 200])
def test_the_loss_is_the_divergence_of_the_sightings(steps):
    path = GaussianBelief(steps=steps)
    site, noise = setting(path, Euclidean(), batch=steps)
    x, guess = noise.normal("x"), noise.normal("guess")
    i = torch.arange(1, steps + 1, dtype=F64)
    t = 1 - (i - 1) / steps
    noised = path.corrupt(x, t, site, noise)
    found = path.loss(path.read(guess, noised.z, t, site, "data"), x, noised, t, site)
    ratio = path.sigma_1 ** (2 / steps)
    exact = steps * (1 - ratio) / (2 * path.sigma_1 ** (2 * i / steps)) * ((x - guess) ** 2).mean(1)
    assert torch.allclose(found, exact, rtol=1e-9)
    later = GaussianBelief().loss(path.read(guess, noised.z, t, site, "data"), x, noised, t - 0.5 / steps, site)
    assert torch.allclose(later, exact, rtol=0.6 / steps * 14)
    as_noise = Prediction("noise", path.convert(guess, "data", "noise", noised.z, t, site))
    assert torch.allclose(path.loss(as_noise, x, noised, t, site)[1:], exact[1:], rtol=1e-7)


class Draws(Denoiser):
    """Predicts a draw from the exact posterior: then every rule of the sampler keeps the marginals exact."""

    def __init__(self, posterior):
        super().__init__()
        self.posterior = posterior

    def forward(self, state, t, ctx, run=None):
        u = run.noise("x", "posterior", tuple(state["x"].shape[1:2]), ctx, "uniform")
        return {"x": self.posterior(state["x"], t, u)}


@pytest.mark.parametrize("rule", ["end_back", "vanilla", "mix"])
def test_gaussian_samplers_are_exact_with_posterior_draws(rule):
    """Data N(0.5, 0.3^2): the posterior is normal, and so is every state on the way."""
    path, count = GaussianBelief(), 20000
    spec = StateSpec({"x": Component(Euclidean(), path, (1,))})

    def posterior(z, t, u):
        k = path.coefficients(t)
        precision = 1 / 0.09 + (k.alpha / k.sigma) ** 2
        mean = (0.5 / 0.09 + k.alpha / k.sigma**2 * z) / precision
        return Prediction("data", mean + torch.special.ndtri(u) / precision**0.5)

    seen = []
    Sampler(spec, Draws(posterior), Fixed(Bayes(rule), 6), dtype=F64).run(
        Context.of(count), 1, on_step=lambda loop: seen.append((loop.s, loop.state["x"])))
    for s, z in seen:
        k = path.coefficients(s)
        mean, std = (0.5, 0.3) if s == 0 else (0.5 * k.alpha, (0.09 * k.alpha**2 + k.sigma**2) ** 0.5)
        assert float(z.mean()) == pytest.approx(mean, abs=4.5 * std / count**0.5)
        assert float(z.std()) == pytest.approx(std, rel=4.5 / (2 * count) ** 0.5)


def test_vanilla_and_multistep_solvers_converge_to_a_mixture():
    """With the posterior mean alone, many small updates sample the law; so does every solver of Gaussian paths."""
    mixture = GaussianMixture([[-1.0], [1.5]], [0.3, 0.2], [0.7, 0.3])
    for path, method, steps in ((GaussianBelief(), Bayes("vanilla"), 150),
                                (GaussianBelief(t_max=0.999), Exponential(order=3, last="data"), 25)):
        denoiser = AnalyticMixture(mixture, path, kind="data")
        x = Sampler(denoiser.spec(), denoiser, Fixed(method, steps), dtype=F64).run(Context.of(4000), 0).state["x"]
        assert float((x < 0.2).double().mean()) == pytest.approx(0.7, abs=0.035)
        assert float(x[x < 0.2].mean()) == pytest.approx(-1.0, abs=0.03)
        assert float(x[x < 0.2].std()) == pytest.approx(0.3, rel=0.08)


K, LAW = 4, torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=F64)


def test_evidence_is_the_log_likelihood():
    """z ~ N(beta (K e_k - 1), beta K): softmax(z) is the posterior of a uniform prior."""
    path = CategoricalBelief(beta_1=1.5)
    site, noise = setting(path, Categorical(K), (5,), batch=50)
    x0 = (noise.uniform("x") * K).long()
    z, beta = path.corrupt(x0, 0.3, site, noise).z, 1.5 * 0.49
    means = beta * (K * torch.eye(K, dtype=F64) - 1)
    log_p = -((z.unsqueeze(-2) - means) ** 2).sum(-1) / (2 * beta * K)
    assert torch.allclose(path.features(z, 0.3, site), torch.softmax(log_p, -1), atol=1e-12)
    site, noise = setting(path, Categorical(K), (2,), batch=20000)
    x0 = torch.full((20000, 2), 2)
    z = path.corrupt(x0, 0.3, site, noise).z
    assert torch.allclose(z.mean((0, 1)), means[2], atol=5 * (beta * K / 40000) ** 0.5)
    assert torch.allclose(z.var((0, 1)), torch.full((K,), beta * K, dtype=F64), rtol=0.05)


def test_clean_entries_are_one_hot_in_a_batch_of_mixed_times():
    path = CategoricalBelief()
    site, noise = setting(path, Categorical(K), ("N",), batch=3, sizes=torch.tensor([4, 2, 3]))
    x0 = torch.tensor([[0, 1, 2, 3], [3, 2, 0, 0], [1, 1, 2, 0]])
    hot = torch.nn.functional.one_hot(x0, K).double() * site.mask.unsqueeze(-1)
    t = torch.tensor([0.0, 0.5, 0.0], dtype=F64)
    shown = path.features(path.corrupt(x0, t, site, noise).z, t, site)
    assert torch.equal(shown[[0, 2]], hot[[0, 2]])
    assert float(shown[1].max()) < 1 and float(shown[1, 2:].abs().max()) == 0
    assert torch.equal(path.features(path.corrupt(x0, 0.0, site, noise).z, 0.0, site), hot)
    assert torch.equal(path.features(x0, 0.0, site).double(), hot)
    assert torch.equal(path.corrupt(x0.float(), 0.4, site, noise).z, path.corrupt(x0, 0.4, site, noise).z)


def test_the_discrete_loss_is_sender_over_receiver():
    """Two classes: n E log [N(y; m_x) / sum_k p_k N(y; m_k)] by quadrature over y, and by the path's own draws."""
    n, i, p = 10, 7, torch.tensor([0.3, 0.7], dtype=F64)
    path = CategoricalBelief(beta_1=2.0, steps=n, draws=4)
    site, noise = setting(path, Categorical(2), (8,), batch=4000)
    x0, t = torch.zeros(4000, 8, dtype=torch.long), 1 - (i - 1) / n
    noised = path.corrupt(x0, t, site, noise)
    pred = path.read(p.log().expand(4000, 8, 2), noised.z, t, site, "logits")
    losses = path.loss(pred, x0, noised, t, site)
    a = 2.0 * (2 * i - 1) / n**2
    y = torch.linspace(-12, 12, 1201, dtype=F64) * (2 * a) ** 0.5
    grid = torch.stack(torch.meshgrid(y + a, y - a, indexing="ij"), -1)
    means = a * (2 * torch.eye(2, dtype=F64) - 1)
    log_k = [-((grid - m) ** 2).sum(-1) / (4 * a) for m in means]
    weight = log_k[0].exp()
    receiver = torch.logaddexp(p[0].log() + log_k[0], p[1].log() + log_k[1])
    exact = n * float((weight * (log_k[0] - receiver)).sum() / weight.sum())
    assert float(losses.mean()) == pytest.approx(exact, abs=4.5 * float(losses.std()) / 4000**0.5)


def test_the_discrete_loss_becomes_the_continuous_one():
    n, t = 4000, 0.4
    path = CategoricalBelief(beta_1=0.5, steps=n, draws=64)
    site, noise = setting(path, Categorical(K), (20,), batch=400)
    x0 = (noise.uniform("x") * K).long()
    noised = path.corrupt(x0, t, site, noise)
    pred = path.read(LAW.log().expand(400, 20, K), noised.z, t, site, "logits")
    limit = CategoricalBelief(beta_1=0.5).loss(pred, x0, noised, t, site)
    losses = path.loss(pred, x0, noised, t, site)
    difference = losses - limit
    assert float(difference.mean()) == pytest.approx(0, abs=4.5 * float(difference.std()) / 20 + 0.002)
    exact = K * 0.5 * (1 - t) * ((torch.eye(K, dtype=F64)[x0] - LAW) ** 2).sum(-1).mean(1)
    assert torch.allclose(limit, exact, rtol=1e-12)


@pytest.mark.parametrize("rule", ["end_back", "vanilla", "mix"])
def test_classes_are_drawn_from_their_law(rule):
    path, count = CategoricalBelief(beta_1=3.0), 20000
    spec = StateSpec({"x": Component(Categorical(K), path, (1,))})

    class Exact(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"x": Prediction("logits", state["x"] + LAW.log())}

    driver = Fixed(Bayes(rule, classes="draw"), 5)
    x = Sampler(spec, Exact(), driver, dtype=F64).run(Context.of(count), 0).state["x"]
    assert x.dtype == torch.int64 and x.shape == (count, 1)
    share = torch.bincount(x.flatten(), minlength=K) / count
    assert bool(((share - LAW).abs() < 4.5 * (LAW * (1 - LAW) / count).sqrt()).all())


def test_pairs_stay_symmetric_and_padding_empty():
    path = CategoricalBelief(steps=5, draws=2)
    site, noise = setting(path, Categorical(3, pairs=True), ("N", "N"), batch=4, sizes=torch.tensor([4, 3, 2, 4]))
    x0 = (noise.uniform("x") * 3).long() * site.mask.long()
    noised = path.corrupt(x0, 0.4, site, noise)
    assert torch.equal(noised.z, noised.z.transpose(1, 2))
    assert float(noised.z[1, 3].abs().max()) == 0 and noised.eps.shape == (4, 4, 4, 3, 2)
    pred = path.read(noised.z, noised.z, 0.4, site, "logits")
    for form in ("redraw", "update", "sample", "mode"):
        z = path.apply(Row("x", "bayes", form, a=0.0, t=0.4, s=0.2), noised.z, pred, site, noise)
        assert torch.equal(z, z.transpose(1, 2)) and float(z[2, 2:].abs().max()) == 0
    assert int(z.diagonal(dim1=1, dim2=2).max()) == 0
    assert path.loss(pred, x0, noised, 0.4, site).shape == (4,)


def test_paths_are_stored_as_json_and_refuse_nonsense():
    for path in (GaussianBelief(0.05, 20), CategoricalBelief(3.0, 10, 2)):
        assert build(json.loads(json.dumps(path.to_config()))) == path
    for wrong in (lambda: GaussianBelief(1.5), lambda: GaussianBelief(steps=-1), lambda: GaussianBelief(weight="bays"),
                  lambda: CategoricalBelief(0.0), lambda: CategoricalBelief(draws=0),
                  lambda: Component(Euclidean(), CategoricalBelief(), (3,)),
                  lambda: Component(Categorical(3), GaussianBelief(), (3,))):
        with pytest.raises(ScidiffError):
            wrong()
    path = CategoricalBelief()
    site, noise = setting(path, Categorical(K))
    with pytest.raises(ScidiffError, match="coupling"):
        path.corrupt(torch.zeros(6, 4), 0.5, site, noise, x1=torch.zeros(6, 4))
    with pytest.raises(ScidiffError, match="redraw"):
        path.apply(Row("x", "bayes", "redrw"), torch.zeros(6, 4, K), None, site, noise)
    assert math.isinf(GaussianBelief().coefficients(1.0).lam)
