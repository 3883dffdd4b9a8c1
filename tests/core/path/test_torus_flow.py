"""Flow matching on a torus: geodesics, centred velocities, anti-annealing in closed form, and a wrapped mixture."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.objective import StandardObjective
from scidiff.core.path import Prediction, TorusFlow, UniformPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.anti_anneal import AntiAnnealed
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.grid import PowerGrid
from scidiff.core.solvers.runge_kutta import RungeKutta
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

F64 = torch.float64


def setting(path, shape=("N", 3), period=1.0, sizes=(4, 2, 3, 4), seed=0):
    ctx = Context.of(len(sizes), sizes=torch.tensor(sizes))
    site = ctx.at("f", Component(Torus(period), path, shape))
    return site, Run(seed).handle(site, F64)


@pytest.mark.parametrize("period", [1.0, 2 * math.pi])
def test_the_path_is_the_shortest_line(period):
    path = TorusFlow(centred=False)
    site, noise = setting(path, period=period)
    x0 = noise.uniform("x") * period * site.mask
    ends = path.corrupt(x0, 1.0, site, noise)
    assert torch.allclose(ends.z, ends.x1 * site.mask)
    for t in (0.0, 0.25, 0.7):
        noised = path.corrupt(x0, t, site, noise)
        assert torch.allclose(site.space.log(x0, noised.z), t * noised.eps, atol=1e-12)
        assert torch.allclose(site.space.log(noised.z, ends.z), (1 - t) * noised.eps, atol=1e-12)
        assert float(noised.eps.abs().max()) <= period / 2
    assert torch.equal(path.corrupt(x0, torch.full((4,), 0.7, dtype=F64), site, noise).z, noised.z)


def test_centred_velocities_have_no_mean_over_real_points():
    path = TorusFlow()
    site, noise = setting(path)
    x0 = noise.uniform("x") * site.mask
    noised = path.corrupt(x0, 0.6, site, noise)
    assert float(noised.eps.sum(1).abs().max()) < 1e-12 and float(noised.eps[1, 2:].abs().max()) == 0
    plain = TorusFlow(centred=False).corrupt(x0, 0.6, site, noise)
    mean = (plain.eps.sum(1) / site.ctx.sizes[:, None])[:, None]
    gap = site.space.log(noised.z, plain.z) - 0.6 * mean  # the same relative coordinates, one common shift
    assert float((torch.remainder(gap + 0.5, 1) - 0.5).mul(site.mask).abs().max()) < 1e-12
    raw = noise.normal("raw") + 3.0
    pred = path.read(raw, noised.z, 0.6, site, "velocity")
    assert float(pred.value.sum(1).abs().max()) < 1e-12
    loss = path.loss(pred, x0, noised, 0.6, site)
    assert torch.allclose(path.loss(path.read(raw + 7.0, noised.z, 0.6, site, "velocity"), x0, noised, 0.6, site), loss)
    one = setting(path, sizes=(1, 1))[0]
    assert float(path.tangent(torch.ones(2, 1, 3), one).abs().max()) == 0


def test_losses_know_no_shift_and_no_order_of_the_points():
    path = TorusFlow()
    site, noise = setting(path, sizes=(4, 4, 4, 4))
    x0, x1, raw = noise.uniform("x"), noise.uniform("x1"), noise.normal("raw")
    noised = path.corrupt(x0, 0.4, site, noise, x1)
    loss = path.loss(path.read(raw, noised.z, 0.4, site, "velocity"), x0, noised, 0.4, site)
    shift = torch.tensor([0.2, 0.9, 0.4], dtype=F64)
    moved = path.corrupt(site.space.wrap(x0 + shift), 0.4, site, noise, site.space.wrap(x1 + shift))
    assert torch.allclose(path.loss(path.read(raw, moved.z, 0.4, site, "velocity"), x0, moved, 0.4, site), loss)
    order = torch.tensor([3, 1, 0, 2])
    mixed = path.corrupt(x0[:, order], 0.4, site, noise, x1[:, order])
    again = path.loss(path.read(raw[:, order], mixed.z, 0.4, site, "velocity"), x0, mixed, 0.4, site)
    assert torch.allclose(again, loss)


def test_kinds_convert_into_each_other():
    path = TorusFlow(centred=False)
    site, noise = setting(path)
    x0, t = noise.uniform("x") * site.mask, torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=F64)
    noised = path.corrupt(x0, t, site, noise)
    pred = Prediction("velocity", noised.eps, path, noised.z, t, site)
    assert float(site.space.log(x0, pred.data).abs().max()) < 1e-12
    assert torch.allclose(path.convert(x0, "data", "velocity", noised.z, t, site), noised.eps, atol=1e-12)
    for kind in ("velocity", "data"):
        exact = path.read(pred.to(kind), noised.z, t, site, kind)
        assert float(path.loss(exact, x0, noised, t, site).max()) < 1e-20
    with pytest.raises(ScidiffError, match="score"):
        pred.to("score")
    with pytest.raises(ScidiffError, match="torus"):
        Component(Euclidean(), path, (3,))


ATOMS, SHARES = torch.tensor([0.15, 0.8], dtype=F64), torch.tensor([0.7, 0.3], dtype=F64)


class Atoms(Denoiser):
    """The exact marginal velocity of one coordinate with data at a few places (width 0 and uniform source): given x_t
    an atom counts if it lies within t / 2, and its velocity is log(atom, x_t) / t."""

    def __init__(self, atoms, shares):
        super().__init__()
        self.atoms, self.shares = atoms, shares
        self.spec = StateSpec({"f": Component(Torus(1.0), TorusFlow(centred=False), (1,))})

    def forward(self, state, t, ctx, run=None):
        off = torch.remainder(state["f"] - self.atoms + 0.5, 1) - 0.5
        near = (off.abs() <= t / 2 * (1 + 1e-9)) * self.shares
        far = near.sum(-1, keepdim=True) == 0  # outside of the support, where a step of finite length may end
        weight = torch.where(far, (off.abs() == off.abs().min(-1, keepdim=True).values).to(F64), near)
        return {"f": Prediction("velocity", ((weight * off).sum(-1) / weight.sum(-1) / t)[:, None])}


def ends(method, steps, atoms=ATOMS, shares=SHARES, count=6000, **more):
    denoiser = Atoms(atoms, shares)
    driver = Fixed(method, steps, **more)
    return Sampler(denoiser.spec, denoiser, driver, dtype=F64).run(Context.of(count), 0).state["f"][:, 0]


def test_one_atom_is_reached_in_one_step():
    assert float((ends(RungeKutta("euler"), 1, ATOMS[:1], SHARES[:1]) - 0.15).abs().max()) < 1e-12


@pytest.mark.parametrize("method", [RungeKutta("euler"), RungeKutta("midpoint"), AntiAnnealed(slope=0.0)],
                         ids=["euler", "midpoint", "no annealing"])
def test_a_mixture_of_atoms_keeps_its_shares(method):
    x = ends(method, 100)
    gap = (torch.remainder(x[:, None] - ATOMS + 0.5, 1) - 0.5).abs()
    assert float((gap.min(1).values < 1e-9).double().mean()) > 0.98
    assert float((gap.argmin(1) == 0).double().mean()) == pytest.approx(0.7, abs=0.03)


def test_anti_annealing_has_its_closed_form():
    """One atom: dr/dt = (1 + s (1 - t)) r / t, so r(t) = r(1) t^{1 + s} e^{s (1 - t)}; order 4 of the scheme stays."""
    start = ends(AntiAnnealed("rk4", slope=0.0), 1, ATOMS[:1], SHARES[:1], 200, t_end=0.999999)
    first = torch.remainder(start - 0.15 + 0.5, 1) - 0.5
    for s, t in ((5.0, 0.4), (2.0, 0.2)):
        exact = first * t ** (1 + s) * math.exp(s * (1 - t))
        errors = []
        for steps in (8, 16):
            x = ends(AntiAnnealed("rk4", slope=s), steps, ATOMS[:1], SHARES[:1], 200, grid=PowerGrid(), t_end=t)
            errors.append(float((torch.remainder(x - 0.15 + 0.5, 1) - 0.5 - exact).abs().max()))
        assert errors[1] < 1e-3 and errors[0] / errors[1] > 8
    plain = Fixed(RungeKutta("midpoint"), 7).plan(Atoms(ATOMS, SHARES).spec)
    assert plain == Fixed(AntiAnnealed("midpoint", slope=0.0), 7).plan(Atoms(ATOMS, SHARES).spec)


def test_a_capped_step_never_passes_the_prediction():
    spec = Atoms(ATOMS, SHARES).spec
    for capped in (False, True):
        plan = Fixed(AntiAnnealed(slope=5.0, capped=capped), 20).plan(spec)
        share = [-s.rows[0].b[0] / s.t for s in plan.stages]  # 1 lands on the data prediction x - t v
        assert (max(share) <= 1 + 1e-12) is capped
        assert share[0] == pytest.approx(0.05) and share[10] == pytest.approx(0.05 * 3.5 / 0.5)
    assert float((ends(AntiAnnealed(slope=5.0, capped=True), 20, ATOMS[:1], SHARES[:1]) - 0.15).abs().max()) < 1e-12
    for wrong in (lambda: AntiAnnealed(slope=-1.0), lambda: AntiAnnealed("heun", capped=True),
                  lambda: AntiAnnealed("eulr")):
        with pytest.raises(UsageError):
            wrong()
    refused = StateSpec({"c": Component(Categorical(2), UniformPath(), (3,))})
    with pytest.raises(UsageError, match="velocity"):
        Fixed(AntiAnnealed(), 5).plan(refused)


def test_it_trains_and_is_stored_as_json():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, features, time, ctx, previous):
            return {"f": self.layer(features["f"])}

    spec = StateSpec({"f": Component(Torus(1.0), TorusFlow(), ("N", 3))})
    again = StateSpec.from_config(json.loads(json.dumps(spec.to_config())), build)
    assert again["f"] == spec["f"]
    ctx = Context.of(5, sizes=torch.tensor([3, 4, 2, 4, 1]))
    x0 = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    denoiser = NetworkDenoiser(spec, Net())
    loss, _ = StandardObjective(spec).loss(denoiser, ({"f": x0}, ctx), Run(0))
    loss.backward()
    assert math.isfinite(float(loss.detach())) and float(denoiser.backbone.layer.weight.grad.abs().sum()) > 0
    x = Sampler(spec, denoiser, Fixed(AntiAnnealed(), 6)).run(ctx, 3).state["f"]
    assert bool(((x >= 0) & (x < 1)).all()) and float(x[2, 2:].abs().max()) == 0
