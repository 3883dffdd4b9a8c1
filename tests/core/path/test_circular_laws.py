"""The von Mises law, its schedule of accuracies and the flow of sightings: quadrature, published values, distances."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import ScidiffError
from scidiff.core.path import VonMisesBelief
from scidiff.core.path.entropy_schedule import accuracies, concentrations, expected_length, falsi, moments
from scidiff.core.path.von_mises import draw, entropy, resultant, second_resultant
from scidiff.core.run import Run
from scidiff.core.space import Torus
from scidiff.core.spec import Component, Context

F64 = torch.float64
TURN = 2 * math.pi


def setting(path, shape=(3,), batch=6, seed=0, ids=None):
    ctx = Context.of(batch) if ids is None else Context(ids)
    site = ctx.at("f", Component(Torus(1.0), path, shape))
    return site, Run(seed).handle(site, F64)


def kolmogorov(a, b):
    """Largest distance of two empirical distribution functions."""
    a, b = a.flatten().sort().values, b.flatten().sort().values
    both = torch.cat([a, b])
    f = torch.searchsorted(a, both, right=True) / len(a) - torch.searchsorted(b, both, right=True) / len(b)
    return float(f.abs().max())


@pytest.mark.parametrize("c", [0.05, 1.5, 40.0, 900.0])
def test_resultants_and_entropy_are_integrals(c):
    half = min(math.pi, 12 / c**0.5)
    y = (torch.arange(20000, dtype=F64) + 0.5) / 20000 * 2 * half - half
    at = torch.tensor(c, dtype=F64)
    log_p = c * (y.cos() - 1) - torch.special.i0e(at).log() - math.log(TURN)
    p = log_p.exp() * (2 * half / 20000)
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert float(resultant(at)) == pytest.approx(float((p * y.cos()).sum()), abs=1e-9)
    assert float(second_resultant(at)) == pytest.approx(float((p * (2 * y).cos()).sum()), abs=1e-9)
    assert float(entropy(at)) == pytest.approx(-float((p * log_p).sum()), abs=1e-8)
    assert float(entropy(torch.zeros((), dtype=F64))) == pytest.approx(math.log(TURN))


def test_draws_follow_the_law_and_invert_the_distribution_function():
    laws = (0.1, 2.0, 60.0, 800.0)
    u = ((torch.arange(20001, dtype=F64) + 0.5) / 20001)[:, None].expand(20001, 4)
    y = draw(laws, u)
    assert bool((y.diff(dim=0) > 0).all())
    c = torch.tensor(laws, dtype=F64)
    assert torch.allclose(y.cos().mean(0), resultant(c), atol=1e-6)
    assert torch.allclose((2 * y).cos().mean(0), second_resultant(c), atol=1e-6)
    assert float((y + y.flip(0)).abs().max()) < 1e-9
    assert torch.equal(draw(laws[1:2], u[:, 1:2]), y[:, 1:2])


def test_the_schedule_has_the_published_values():
    """Check values for (10, 1e3) and (1000, 1e3): crystal.md 2.3."""
    assert accuracies(10, 1e3)[:3] == pytest.approx((1.478, 1.587, 2.628), abs=6e-4)
    assert accuracies(10, 1e3)[-3:] == pytest.approx((114.70, 248.58, 539.03), abs=6e-3)
    long = torch.tensor(accuracies(1000, 1e3), dtype=F64)
    assert float(long[0]) == pytest.approx(0.1246, abs=6e-5) and float(long[1]) == pytest.approx(0.1392, abs=6e-5)
    assert float(long[-1]) == pytest.approx(8.225, abs=6e-4) and float(long.sum()) == pytest.approx(1375, abs=0.6)
    assert concentrations(1000, 1e3)[499] == pytest.approx(21.31, abs=6e-3)
    assert float((long * resultant(long)).mean()) == pytest.approx(0.996, abs=6e-4)


@pytest.mark.parametrize("steps, final", [(1, 5.0), (7, 200.0), (60, 1e3), (100, 1e4)])
def test_the_schedule_solves_its_equations(steps, final):
    beta = torch.tensor(concentrations(steps, final), dtype=F64)
    alpha = torch.tensor(accuracies(steps, final), dtype=F64)
    drop = entropy(torch.cat([torch.zeros(1, dtype=F64), beta])).diff()
    assert torch.allclose(drop, drop.mean().expand_as(drop), rtol=1e-6)
    assert float(alpha[0]) == float(beta[0]) and float(beta[-1]) == final
    assert torch.allclose(expected_length(beta[:-1], alpha[1:]), beta[1:], rtol=1e-7)
    root = falsi(lambda x: x**3 - 2, torch.zeros(1, dtype=F64), torch.full((1,), 9.0, dtype=F64))
    assert float(root) == pytest.approx(2 ** (1 / 3), rel=1e-12)
    with pytest.raises(ScidiffError, match="positive final"):
        accuracies(steps, -1.0)


@pytest.mark.parametrize("steps, count", [(1000, 8), (1000, 12), (1000, 60), (50, 8), (50, 20), (50, 49)])
def test_the_normal_limit_is_close_to_the_sum_of_sightings(steps, count):
    """Kolmogorov distance of direction and concentration below 0.04 from 8 sightings on (20,000 draws each)."""
    t, batch, laws = 1 - count / steps, 20000, {}
    for sampler in ("exact", "clt"):
        site, noise = setting(VonMisesBelief(steps=steps, flow_sampler=sampler), (1,), batch, seed=len(laws))
        laws[sampler] = site.component.path.flow(torch.full((batch, 1), 1.0, dtype=F64), t, site, noise, "flow")
    off = {k: torch.remainder(z[..., 0] - 1 / TURN + 0.5, 1) for k, z in laws.items()}
    assert kolmogorov(off["exact"], off["clt"]) < 0.04
    assert kolmogorov(laws["exact"][..., 1], laws["clt"][..., 1]) < 0.04
    m = moments(steps, 1e3, torch.device("cpu"))
    z = laws["exact"]
    real = (z[..., 1] * (TURN * z[..., 0] - 1.0).cos()).flatten()
    imaginary = (z[..., 1] * (TURN * z[..., 0] - 1.0).sin()).flatten()
    assert float(real.mean()) == pytest.approx(float(m.mean[count]), abs=4.5 * float(real.std()) / batch**0.5)
    assert float(real.var()) == pytest.approx(float(m.along[count]), rel=0.1)
    assert float(imaginary.var()) == pytest.approx(float(m.across[count]), rel=0.1)


@pytest.mark.parametrize("sampler", ["exact", "clt"])
def test_noise_repeats_sample_by_sample(sampler):
    """A belief depends on (seed, id) alone: not on the batch, nor on whether its neighbours have the same time."""
    path = VonMisesBelief(steps=20, flow_sampler=sampler)
    ids = torch.tensor([3, 11, 5, 8])
    ctx = Context(ids, sizes=torch.tensor([4, 2, 3, 4]))
    site = ctx.at("f", Component(Torus(1.0), path, ("N", 3)))
    x = Run(1).handle(site, F64).uniform("x") * site.mask
    t = torch.tensor([1.0, 0.85, 0.4, 0.05], dtype=F64)
    z = path.corrupt(x, t, site, Run(2).handle(site, F64)).z
    assert torch.equal(z, path.corrupt(x, t, site, Run(2).handle(site, F64)).z)
    for i in range(4):
        alone = ctx.take(torch.tensor([i]))
        alone.n_max = int(alone.sizes.max())
        spot = alone.at("f", Component(Torus(1.0), path, ("N", 3)))
        mine = path.corrupt(x[i:i + 1, :alone.n_max], float(t[i]), spot, Run(2).handle(spot, F64)).z
        assert torch.allclose(mine[0], z[i, :alone.n_max], rtol=1e-12, atol=0.0)
    assert float(z[1, 2:].abs().max()) == 0
