"""Objectives: weightings keep the minimiser (T5), times have their densities, couplings and levels are respected."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from scidiff.core.coupling import ExactOT
from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.objective import (
    BetaTime,
    LevelTime,
    LogitNormalTime,
    LogNormalSigmaTime,
    ModeTime,
    ShiftedTime,
    StandardObjective,
    UniformTime,
)
from scidiff.core.path import (
    EDM,
    VE,
    VP,
    Bridge,
    LevelPath,
    Linear,
    MeanReverting,
    Prediction,
    UniformPath,
)
from scidiff.core.run import Run
from scidiff.core.space import Categorical, Euclidean, Symmetric
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

F64 = torch.float64
MEAN, STD = 0.5, 0.7
WEIGHTS = ["own", "data", "noise", "score", "velocity", "angular", "min_snr", "likelihood", "edm"]


def gaussian_site(path, n):
    site = Context.of(n).at("x", Component(Euclidean(), path, (1,)))
    return site, Run(1).handle(site, F64)


@pytest.mark.parametrize("kind", ["data", "noise", "score", "velocity", "angular"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_weighting_leaves_the_minimiser_unchanged(kind, weight):
    """Two times share one batch; for each, least squares of the loss over affine predictions gives the closed form."""
    path, n = VP(weight=weight), 20000
    site, noise = gaussian_site(path, n)
    x0 = MEAN + STD * noise.normal("x0")
    t = torch.where(torch.arange(n) % 2 == 0, 0.3, 0.7).to(F64)
    noised = path.corrupt(x0, t, site, noise)
    half = (torch.arange(n) % 2 == 0).to(F64).unsqueeze(-1)
    # prediction = w0 + w1 z at the first time, w2 + w3 z at the second: the loss is a quadratic form in w
    basis = torch.stack([half, half * noised.z, 1 - half, (1 - half) * noised.z])
    w = torch.zeros(4, dtype=F64, requires_grad=True)

    def loss(w):
        value = (w.view(4, 1, 1) * basis).sum(0)
        return path.loss(Prediction(kind, value, path, noised.z, t, site), x0, noised, t, site).mean()

    grad = torch.autograd.grad(loss(w), w)[0]
    hess = torch.autograd.functional.hessian(loss, w.detach())
    best = torch.linalg.solve(hess, -grad)
    for i, at in ((0, 0.3), (2, 0.7)):
        k = path.coefficients(at)
        var = k.alpha**2 * STD**2 + k.sigma**2
        z = torch.tensor([[k.alpha * MEAN - 0.5], [k.alpha * MEAN + 0.5]], dtype=F64)
        clean = MEAN + k.alpha * STD**2 / var * (z - k.alpha * MEAN)
        truth = path.convert(clean, "data", kind, z, at, None)
        spread = truth.abs().max() + 1 / k.sigma
        assert (best[i] + best[i + 1] * z - truth).abs().max() < 0.03 * spread


@pytest.mark.parametrize("path", [VP(), VE(), Linear(), EDM(), VP(centred=True), MeanReverting()])
def test_losses_are_data_errors_with_a_weight(path):
    """|dE| = (alpha/sigma) |dD|, |dv| = |Delta/sigma| |dD|, |ds| = (alpha/sigma^2) |dD|, whatever is predicted."""
    n = 4
    ctx = Context.of(n, centre={"x": torch.ones(n, 3, dtype=F64)})
    site = ctx.at("x", Component(Euclidean(), path, (3,)))
    noise = Run(0).handle(site, F64)
    x0 = noise.normal("x0")
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=F64)
    noised = path.corrupt(x0, t, site, noise)
    k = path.coefficients(t)
    clean = x0 + 0.1
    error = torch.full((n,), 0.01, dtype=F64)
    sd2 = path.data_std**2
    expected = {
        "data": 1, "noise": (k.alpha / k.sigma) ** 2, "score": (k.alpha / k.sigma**2) ** 2,
        "velocity": (k.delta / k.sigma) ** 2, "angular": (k.alpha**2 + k.sigma**2) / k.sigma**2,
        "min_snr": (k.alpha / k.sigma).square().clamp(max=5.0), "likelihood": k.g2 * (k.alpha / k.sigma**2) ** 2,
        "edm": (k.alpha**2 * sd2 + k.sigma**2) / (k.sigma**2 * sd2)}
    for kind in ("data", "noise", "score", "velocity", "angular"):
        value = path.convert(clean, "data", kind, noised.z, t, site)
        for weight, factor in expected.items():
            weighted = replace(path, weight=weight)
            got = weighted.loss(Prediction(kind, value, weighted, noised.z, t, site), x0, noised, t, site)
            assert torch.allclose(got, error * factor, rtol=1e-6), (kind, weight)
            for i, when in enumerate(t.tolist()):
                each = torch.as_tensor(weighted.loss_factor(kind, t), dtype=F64).expand(n)[i]
                assert weighted.loss_factor(kind, when) == pytest.approx(float(each), rel=1e-9)


def test_loss_counts_each_pair_once_and_no_padding():
    path = VP()
    ctx = Context(torch.arange(2), torch.tensor([2, 3]), 5)
    site = ctx.at("a", Component(Symmetric(), path, ("N", "N")))
    x0 = site.space.project(torch.ones(2, 5, 5, dtype=F64), site.mask)
    noise = Run(0).handle(site, F64)
    noised = path.corrupt(x0, 0.5, site, noise)
    value = x0.clone()
    value[:, 0, 1] += 3.0
    value[:, 1, 0] += 3.0
    value[:, 4, 4] = 100.0
    got = path.loss(Prediction("data", value, path, noised.z, 0.5, site), x0, noised, 0.5, site)
    assert torch.allclose(got, torch.tensor([9.0, 3.0], dtype=F64))


def logit_normal_density(t, mean=0.0, std=1.0):
    return torch.exp(-0.5 * ((torch.logit(t) - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi) * t * (1 - t))


@pytest.mark.parametrize("sampler, density", [
    (UniformTime(0.1, 0.9), lambda t: torch.full_like(t, 1 / 0.8)),
    (BetaTime(2.0), lambda t: 0.5 / t.sqrt()),
    (BetaTime(3.0), lambda t: t ** (-2 / 3) / 3),
    (LogitNormalTime(), logit_normal_density),
    (LogitNormalTime(-0.5, 0.7), lambda t: logit_normal_density(t, -0.5, 0.7)),
    (ShiftedTime(UniformTime(), 3.0), lambda t: 3.0 / (3.0 - 2.0 * t) ** 2),
    (ShiftedTime(LogitNormalTime(), 3.0), lambda t: logit_normal_density(t, math.log(3.0))),
])
def test_times_have_their_density(sampler, density):
    """The quantile function's derivative is one over the density (Beta(1/power, 1) for BetaTime)."""
    u = ((torch.arange(99, dtype=F64) + 1) / 100).requires_grad_()
    t = sampler(u)
    slope = torch.autograd.grad(t.sum(), u)[0].abs()
    assert torch.allclose(1 / slope, density(t.detach()), rtol=1e-8)


def test_mode_and_edm_times():
    """ModeTime is monotone from 1 to 0 and densest in the middle; log sigma is normal where it is not clipped."""
    u = torch.linspace(0, 1, 1001, dtype=F64)
    t = ModeTime(1.29)(u)
    assert float(t[0]) == pytest.approx(1.0) and float(t[-1]) == pytest.approx(0.0, abs=1e-12)
    assert bool((t.diff() < 0).all())
    assert float(ModeTime(1.29)(torch.tensor(0.25))) == pytest.approx(0.75 - 1.29 * ((1 + 0.5**0.5) / 2 - 0.75))
    histogram = torch.histc(t, 10, 0, 1)
    assert int(histogram[4] + histogram[5]) > 1.2 * int(histogram[0] + histogram[9])
    sigma = LogNormalSigmaTime()(torch.tensor([0.5, 0.8413447460685429], dtype=F64)) * 80
    assert sigma.log().tolist() == pytest.approx([-1.2, 0.0], abs=1e-9)


def test_stratified_times_keep_their_law():
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})
    ctx = Context.of(64)
    run = Run(5)
    objective = StandardObjective(spec, LogitNormalTime())
    drawn = []
    for step in range(200):
        run.step = step
        drawn.append(objective.times(ctx, run))
    t = torch.stack(drawn)
    cdf = torch.special.ndtr(torch.logit(t))
    assert abs(float(cdf.mean()) - 0.5) < 0.003
    assert float(cdf.mean(1).std()) < 0.25 / (12 * 64) ** 0.5  # far below independent draws
    place = cdf.sort(1).values
    assert float((place - (torch.arange(64, dtype=F64) + 0.5) / 64).abs().max()) < 2 / 64
    assert abs(float(cdf[:, 0].mean()) - 0.5) < 4.5 / (12 * 200) ** 0.5  # each sample alone is uniform, too


class Exact(Denoiser):
    """Returns the clean data."""

    def __init__(self, spec, clean):
        super().__init__()
        self.spec, self.clean, self.calls = spec, clean, 0

    def forward(self, state, t, ctx, run=None):
        self.calls += 1
        return {n: c.path.read(self.clean[n], state[n], t, ctx.at(n, c), "data") for n, c in self.spec.items()}


def test_levels_are_the_only_times_of_a_level_path():
    path = LevelPath((0.01, 0.1, 1.0))
    spec = StateSpec({"x": Component(Euclidean(), path, (2,))})
    ctx = Context.of(3000)
    t = StandardObjective(spec, stratified=False).times(ctx, Run(0))
    assert set(t.tolist()) == set(path.levels)
    t = StandardObjective(spec, LevelTime((0.3, 0.3, 0.4)), stratified=False).times(ctx, Run(0))
    assert abs(float((t == 1.0).to(F64).mean()) - 0.4) < 0.04
    with pytest.raises(UsageError, match="LevelTime"):
        StandardObjective(spec, UniformTime())
    with pytest.raises(UsageError, match="do not fit"):
        StandardObjective(spec, LevelTime((0.5, 0.5)))
    x0 = torch.randn(8, 2)
    loss, _ = StandardObjective(spec).loss(Exact(spec, {"x": x0}), ({"x": x0}, Context.of(8)), Run(0))
    assert float(loss) < 1e-10


def test_joint_state_weights_and_coupling():
    spec = StateSpec({"x": Component(Euclidean(), Linear(), (2,)), "c": Component(Categorical(3), UniformPath(), (2,))})
    with pytest.raises(ScidiffError, match="unknown"):
        StandardObjective(spec, weights={"y": 1.0})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(3, 3)

        def forward(self, features, time, ctx, previous):
            return {"x": self.a(features["x"]), "c": self.b(features["c"])}

    denoiser = NetworkDenoiser(spec, Net())
    g = torch.Generator().manual_seed(0)
    batch = ({"x": torch.randn(16, 2, generator=g), "c": torch.randint(3, (16, 2), generator=g)}, Context.of(16))
    _, one = StandardObjective(spec, coupling=ExactOT()).loss(denoiser, batch, Run(3))
    total, two = StandardObjective(spec, weights={"c": 5.0}, coupling=ExactOT()).loss(denoiser, batch, Run(3))
    assert torch.allclose(total.detach(), one["x"] + 5 * one["c"]) and torch.equal(one["x"], two["x"])
    noised = StandardObjective(spec, coupling=ExactOT()).corrupt(*batch[:1], torch.full((16,), 0.5), batch[1], Run(3))
    plain = StandardObjective(spec).corrupt(*batch[:1], torch.full((16,), 0.5), batch[1], Run(3))
    paired, free = ((batch[0]["x"] - v["x"].eps).square().sum() for v in (noised, plain))
    assert float(paired) < float(free)
    centred = StateSpec({"x": Component(Euclidean(), MeanReverting(), (2,))})
    with pytest.raises(UsageError, match="coupling"):
        StandardObjective(centred, coupling=ExactOT())


def test_antithetic_bridge_calls_twice():
    spec = StateSpec({"x": Component(Euclidean(), Bridge(), (2,))})
    seen = []

    class Zero(Denoiser):
        def forward(self, state, t, ctx, run=None):
            seen.append(state["x"])
            return {"x": Prediction("velocity", torch.zeros_like(state["x"]), Bridge(), state["x"], t, None)}

    x0 = torch.randn(6, 2)
    StandardObjective(spec, antithetic=True).loss(Zero(), ({"x": x0}, Context.of(6)), Run(0))
    assert len(seen) == 2
    objective, ctx = StandardObjective(spec), Context.of(6)
    t = objective.times(ctx, Run(0))
    noised = objective.corrupt({"x": x0}, t, ctx, Run(0))["x"]
    k = Bridge().coefficients(t)
    middle = k.a[:, None] * x0 + k.b[:, None] * noised.x1
    assert torch.allclose((0.5 * (seen[0] + seen[1])).double(), middle.double(), atol=1e-5)


def test_interrupted_training_repeats():
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})
    x0, ctx = torch.randn(5, 2), Context.of(5)
    runs = [Run(4), Run.from_state_dict({**Run(4).state_dict(), "step": 12})]
    runs[0].step = 12
    a, b = (StandardObjective(spec).loss(Exact(spec, {"x": x0 + 1}), ({"x": x0}, ctx), r)[0] for r in runs)
    assert torch.equal(a, b)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_conditions_are_hidden_and_estimates_fed_back_as_often_as_asked(share):
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})
    hidden, fed = [], []

    class Net(nn.Module):
        def forward(self, features, time, ctx, previous):
            if previous is not None:
                assert torch.equal(previous["x"], torch.full_like(previous["x"], previous["x"][0, 0].item()))
            fed.append(previous is not None)
            hidden.append(~ctx.cond["y"][1])
            return {"x": torch.ones_like(features["x"])}

    denoiser = NetworkDenoiser(spec, Net(), kinds={"x": "data"}, self_conditioning=True)
    objective = StandardObjective(spec, drop_condition=share, self_condition=share)
    ctx = Context.of(32, cond={"y": (torch.zeros(32), torch.ones(32, dtype=torch.bool))})
    run, steps = Run(2), 300
    for step in range(steps):
        run.step = step
        objective.loss(denoiser, ({"x": torch.zeros(32, 2)}, ctx), run)
        assert not run.memory and bool(ctx.cond["y"][1].all())
    assert len(fed) == steps + sum(fed)
    assert abs(sum(fed) / steps - share) < 4.5 * (share * (1 - share) / steps) ** 0.5 + 1e-9
    seen = float(torch.stack(hidden).double().mean())
    assert abs(seen - share) < 4.5 * (share * (1 - share) / (32 * steps)) ** 0.5 + 1e-9


CONF = Path(__file__).resolve().parents[2] / "conf"


GENERAL = [f for f in sorted((CONF / "objective").glob("*.yaml")) if "domain" not in yaml.safe_load(f.read_text())]


@pytest.mark.parametrize("file", GENERAL, ids=lambda f: f.stem)
def test_an_objective_config_trains(file):
    path = EDM() if file.stem == "edm" else Linear()
    spec = StateSpec({"x": Component(Euclidean(), path, (2,))})
    objective = build(yaml.safe_load(file.read_text()), spec=spec)
    x0 = torch.randn(16, 2)
    loss, metrics = objective.loss(Exact(spec, {"x": x0 + 1}), ({"x": x0}, Context.of(16)), Run(0))
    assert float(loss) > 0 and set(metrics) == {"loss", "x"}


@pytest.mark.parametrize("file", [f for f in sorted((CONF / "process").glob("*.yaml"))
                                  if "default" in yaml.safe_load(f.read_text())["components"]], ids=lambda f: f.stem)
def test_a_process_config_corrupts(file):
    config = yaml.safe_load(file.read_text())["components"]["default"]
    path = build({k: 0.5 if k == "data_std" else v for k, v in config.items()}).fit([2, 1, 1])
    space = Categorical(3) if "categorical" in config["_target_"] else Euclidean()
    spec = StateSpec({"x": Component(space, path, (4,))})
    x0 = torch.ones(8, 4, dtype=torch.int64 if space.categorical else torch.float32)
    t = path.levels[-1] if path.levels else 0.5
    z = StandardObjective(spec).corrupt({"x": x0}, torch.full((8,), t), Context.of(8), Run(0))["x"].z
    assert z.shape == x0.shape and z.dtype == x0.dtype and not torch.equal(z, x0)
