"""Circular Bayesian flows: Bayes' rule, the target free of a common shift, losses, and exact laws of the samplers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.errors import ScidiffError
from scidiff.core.guidance.clamp import Clamp
from scidiff.core.objective import StandardObjective
from scidiff.core.path import PlanarBelief, Prediction, VonMisesBelief
from scidiff.core.path.von_mises import resultant
from scidiff.core.plan import Row
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.bayes import Bayes
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

F64 = torch.float64
TURN = 2 * math.pi
PATHS = [VonMisesBelief(steps=10), VonMisesBelief(steps=20, flow_sampler="exact"), PlanarBelief()]
both = pytest.mark.parametrize("path", PATHS, ids=["von Mises, clt", "von Mises, exact", "planar"])


def setting(path, shape=("N", 3), period=1.0, sizes=(4, 2, 3, 4), seed=0):
    ctx = Context.of(len(sizes), sizes=torch.tensor(sizes))
    site = ctx.at("f", Component(Torus(period), path, shape))
    return site, Run(seed).handle(site, F64)


def variant(path, **more):
    fields = {k: v for k, v in path.to_config().items() if k != "_target_"}
    return type(path)(**{**fields, **more})


def likelihood(path, x, z, t, site):
    """log p(z | x) up to a constant in x, from the definition of the flow; [B]."""
    if isinstance(path, PlanarBelief):
        gamma = 1 - path.sigma_1 ** (2 * (1 - t))
        mu, u = z * gamma**0.5, torch.stack([(TURN * x).cos(), (TURN * x).sin()], -1)
        each = -((mu - gamma * u) ** 2).sum(-1) / (2 * gamma * (1 - gamma))
    else:
        each = z[..., 1] * (TURN * (x - z[..., 0])).cos()
    return (each * site.mask).sum((1, 2))


@both
@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
def test_the_target_is_the_mean_over_all_common_shifts(path, t):
    """Closed form against 4096 shifts of one axis, weighted with the likelihood of what was seen."""
    path = variant(path, target="mean", weight="own")
    site, noise = setting(path)
    x0 = noise.uniform("x") * site.mask
    z = path.corrupt(x0, t, site, noise).z
    aim, sharp = path.aim(x0, z, t, site)
    guess = noise.uniform("guess")
    loss = path.loss(Prediction("data", guess), x0, type("C", (), {"z": z}), t, site)
    total = torch.zeros_like(loss)
    shifts = torch.arange(4096, dtype=F64) / 4096
    for axis in range(3):
        one = torch.zeros(3, dtype=F64)
        one[axis] = 1.0
        log_w = torch.stack([likelihood(path, x0 + s * one, z, t, site) for s in shifts])
        weight = torch.softmax(log_w, 0)  # [4096, B]
        moved = TURN * (x0[..., axis] + shifts[:, None, None])
        for part, exact in ((moved.cos(), aim.cos()), (moved.sin(), aim.sin())):
            mean = (weight[..., None] * part).sum(0)
            assert torch.allclose(mean * site.mask[..., 0], (sharp * exact)[..., axis] * site.mask[..., 0], atol=1e-9)
        cost = (1 - (TURN * guess[..., axis] - moved).cos()) * site.mask[..., 0]
        total = total + (weight[..., None] * cost).sum((0, 2)) / (3 * site.ctx.sizes)
    assert torch.allclose(loss, total, atol=1e-9)


@both
@pytest.mark.parametrize("error", ["cosine", "square"])
def test_losses_know_no_shift_and_no_order_of_the_points(path, error):
    for target in ("fixed", "aligned", "mean"):
        path = variant(path, target=target, error=error)
        site, noise = setting(path, sizes=(4, 4, 4, 4))
        x0, raw = noise.uniform("x"), noise.normal("raw") * 0.2
        z = path.corrupt(x0, 0.5, site, noise)
        loss = path.loss(path.read(raw, z.z, 0.5, site, "turn"), x0, z, 0.5, site)
        shift = torch.tensor([0.3, 0.7, 0.1], dtype=F64)
        moved = path.corrupt(site.space.wrap(x0 + shift), 0.5, site, noise)
        if isinstance(path, PlanarBelief):
            moved = moved._replace(z=turned(z.z, shift))  # its noise has a frame of its own
        again = path.loss(path.read(raw, moved.z, 0.5, site, "turn"), x0 + shift, moved, 0.5, site)
        assert torch.allclose(again, loss, rtol=1e-9)
        if target != "fixed":  # any representative of the data will do
            assert torch.allclose(path.loss(path.read(raw, z.z, 0.5, site, "turn"), x0 + shift, z, 0.5, site), loss)
        order = torch.tensor([2, 0, 3, 1])
        mixed = z._replace(z=z.z[:, order])
        again = path.loss(path.read(raw[:, order], mixed.z, 0.5, site, "turn"), x0[:, order], mixed, 0.5, site)
        assert torch.allclose(again, loss, rtol=1e-9)


def turned(z, shift):
    """Plane vectors turned by a shift of their coordinate."""
    c, s = (TURN * shift).cos(), (TURN * shift).sin()
    return torch.stack([c * z[..., 0] - s * z[..., 1], s * z[..., 0] + c * z[..., 1]], -1)


def test_losses_are_divergences_in_nats():
    path = VonMisesBelief(steps=10)
    site, noise = setting(path, (1,), TURN, (1,) * 10)
    x, guess = noise.uniform("x") * TURN, noise.uniform("guess") * TURN
    t = torch.arange(10, 0, -1, dtype=F64) / 10
    z = path.corrupt(x, t, site, noise)
    loss = path.loss(path.read(guess, z.z, t, site, "data"), x, z, t, site)
    y = torch.arange(4000, dtype=F64) / 4000 * TURN
    alpha = path._moments(torch.device("cpu")).alpha
    sent = torch.log_softmax(alpha[:, None] * (y - x).cos(), 1)
    received = torch.log_softmax(alpha[:, None] * (y - guess).cos(), 1)
    assert torch.allclose(loss, 10 * (sent.exp() * (sent - received)).sum(1), rtol=1e-9)
    n, i = 25, 9
    planar = PlanarBelief(steps=n, target="fixed")
    site, noise = setting(planar, (1,), TURN, (1,) * 10)
    z = planar.corrupt(x, 1 - (i - 1) / n, site, noise)
    loss = planar.loss(planar.read(guess, z.z, 0.0, site, "data"), x, z, 1 - (i - 1) / n, site)
    a = planar.sigma_1 ** (-2 * i / n) * (1 - planar.sigma_1 ** (2 / n))
    gap = (x.cos() - guess.cos()) ** 2 + (x.sin() - guess.sin()) ** 2
    assert torch.allclose(loss, n * a / 2 * gap[:, 0], rtol=1e-9)


@both
def test_the_belief_is_calibrated(path):
    """For uniform x, x given the belief is von Mises about it: E e^{i (x - m)} = E A(c), for sharp and dull beliefs."""
    site, noise = setting(path, (1,), TURN, (1,) * 20000)
    x, approximate = noise.uniform("x") * TURN, 0.005 if getattr(path, "flow_sampler", "") == "clt" else 0.0
    for t in (0.9, 0.5, 0.1):
        z = path.corrupt(x, t, site, noise).z
        m = path.shown(z, t, site)[0]
        c = path.phasor(z, t, site).norm(dim=-1)
        dull = c < c.median()
        for part in (dull, ~dull):
            gap = (x - m)[part]
            for found, wanted in ((gap.cos() - resultant(c[part]), 0.0), (gap.sin(), 0.0)):
                allowed = 4.5 * float(found.std()) / 10000**0.5 + approximate
                assert float(found.mean()) == pytest.approx(wanted, abs=allowed)


@both
def test_updates_one_by_one_have_the_law_of_the_flow(path):
    site, noise = setting(path, (1,), 1.0, (1,) * 20000)
    n = getattr(path, "steps", 0) or 10
    x = torch.full((20000, 1), 0.3, dtype=F64)
    z = path.source(site, noise)
    for k in range(n // 2):
        noise.run.step = k
        row = Row("f", "bayes", "update", t=1 - k / n, s=1 - (k + 1) / n)
        z = path.apply(row, z, Prediction("data", x, path, z, row.t, site), site, noise)
    direct = path.corrupt(x, 0.5, site, noise).z
    for a, b in zip(moments_of(path, z, site), moments_of(path, direct, site), strict=True):
        assert float(a.mean()) == pytest.approx(float(b.mean()), abs=4.5 * float(a.std()) * (2 / 20000) ** 0.5)
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.05)


def moments_of(path, z, site):
    m, sharp = path.shown(z, 0.5, site)
    return (TURN * (m - 0.3)).cos(), (TURN * (m - 0.3)).sin(), sharp


ATOMS, SHARES = torch.tensor([0.15, 0.35, 0.8], dtype=F64), torch.tensor([0.5, 0.3, 0.2], dtype=F64)


class Atoms(Denoiser):
    """One coordinate at one of three places. Predicts a draw from the exact posterior, or the direction of its mean."""

    def __init__(self, path, drawn):
        super().__init__()
        self.path, self.drawn = path, drawn
        self.spec = StateSpec({"f": Component(Torus(1.0), path, (1,))})

    def forward(self, state, t, ctx, run=None):
        phasor = self.path.phasor(state["f"], t, ctx.at("f", self.spec["f"]))
        places = torch.stack([(TURN * ATOMS).cos(), (TURN * ATOMS).sin()], -1)
        p = torch.softmax(phasor @ places.T + SHARES.log(), -1)
        if self.drawn:
            u = run.noise("f", "posterior", (1,), ctx, "uniform")
            return {"f": Prediction("data", ATOMS[(u.unsqueeze(-1) > p.cumsum(-1)).sum(-1).clamp(max=2)])}
        mean = p @ places
        return {"f": Prediction("data", torch.remainder(torch.atan2(mean[..., 1], mean[..., 0]) / TURN, 1.0))}


@both
@pytest.mark.parametrize("rule", ["end_back", "vanilla", "mix"])
def test_samplers_reach_the_atoms(path, rule):
    """With draws of the exact posterior the shares are exact for any number of steps; with its mean alone every sample
    still ends on an atom, and each atom is found."""
    count = 8000
    drawn = Atoms(path, True)
    x = Sampler(drawn.spec, drawn, Fixed(Bayes(rule), 10), dtype=F64).run(Context.of(count), 0).state["f"]
    assert x.shape == (count, 1)
    share = torch.stack([(x == a).double().mean() for a in ATOMS])
    assert bool(((share - SHARES).abs() < 4.5 * (SHARES * (1 - SHARES) / count).sqrt()).all())
    mean = Atoms(path, False)
    x = Sampler(mean.spec, mean, Fixed(Bayes(rule), 40), dtype=F64).run(Context.of(2000), 0).state["f"]
    gap = (torch.remainder(x - ATOMS + 0.5, 1) - 0.5).abs()
    assert float((gap.min(1).values < 0.005).double().mean()) > 0.97
    assert float(torch.bincount(gap.argmin(1), minlength=3).min()) > 20


@both
def test_turns_features_and_the_clean_end(path):
    site, noise = setting(path, period=2.0)
    x0, t = noise.uniform("x") * 2 * site.mask, torch.tensor([0.0, 0.3, 1.0, 0.9], dtype=F64)
    z = path.corrupt(x0, t, site, noise).z
    assert z.shape == (4, 4, 3, 2) and float(z[1, 2:].abs().max()) == 0
    shown = path.features(z, t, site)
    assert shown.shape == (4, 4, 3, 2) and bool(((shown[..., 0] >= 0) & (shown[..., 0] < 1)).all())
    assert torch.allclose(shown[0, ..., 0], x0[0] / 2, atol=1e-9) and float(shown[2, ..., 1].abs().max()) < 1e-6
    raw = torch.full_like(x0, 0.25)
    turn = path.read(raw, z, t, site, "turn").data
    assert torch.allclose(turn, torch.remainder(2 * shown[..., 0] + 0.5, 2.0) * site.mask)
    assert torch.allclose(path.features(x0, 0.0, site)[..., 0], x0 / 2)
    assert torch.allclose(path.read(0 * raw, x0, 0.0, site, "turn").data, x0)


@both
def test_it_trains_samples_under_a_clamp_and_is_stored(path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, features, time, ctx, previous):
            return {"f": self.layer(features["f"]).squeeze(-1)}

    spec = StateSpec({"f": Component(Torus(1.0), path, ("N", 3))})
    again = StateSpec.from_config(json.loads(json.dumps(spec.to_config())), build)
    assert again["f"] == spec["f"]
    ctx = Context.of(5, sizes=torch.tensor([3, 4, 2, 4, 1]))
    x0 = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    denoiser = NetworkDenoiser(spec, Net())
    loss, _ = StandardObjective(spec).loss(denoiser, ({"f": x0}, ctx), Run(0))
    loss.backward()
    assert math.isfinite(float(loss.detach())) and float(denoiser.backbone.layer.weight.grad.abs().sum()) > 0
    where = torch.zeros(5, 4, 3, dtype=torch.bool)
    where[:, 0] = True
    ctx.known["f"] = (x0, where)
    driver = Fixed(Bayes(), 8)
    result = Sampler(spec, denoiser, driver, [Clamp(spec)]).run(ctx, 3)
    assert result.state["f"].shape == (5, 4, 3) and torch.equal(result.state["f"][:, 0], x0[:, 0])
    assert result.nfe == (len(path.levels) if path.levels else 8)


def test_paths_refuse_nonsense():
    for wrong in (lambda: VonMisesBelief(steps=0), lambda: VonMisesBelief(flow_sampler="fast"),
                  lambda: PlanarBelief(target="shifted"), lambda: PlanarBelief(error="huber"),
                  lambda: PlanarBelief(sigma_1=2.0), lambda: PlanarBelief(weight="none"),
                  lambda: Component(Euclidean(), PlanarBelief(), (3,))):
        with pytest.raises(ScidiffError):
            wrong()
    site, noise = setting(PlanarBelief())
    x0 = noise.uniform("x")
    with pytest.raises(ScidiffError, match="coupling"):
        PlanarBelief().corrupt(x0, 0.5, site, noise, x1=x0)
