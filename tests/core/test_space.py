"""T12: noise and updates stay in their space, and degrees of freedom are counted right."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.path import VP, Prediction, UniformPath, WrappedPath
from scidiff.core.run import Run
from scidiff.core.space import Categorical, Euclidean, Symmetric, Torus, ZeroMean
from scidiff.core.spec import Component, Context

F64 = torch.float64
SIZES = torch.tensor([2, 4, 5])


def site(space, shape, path=None):
    return Context(torch.arange(3), SIZES).at("x", Component(space, path or VP(), shape))


def inside(space, x, mask):
    return torch.allclose(space.project(x, mask), x, atol=1e-12)


@pytest.mark.parametrize("space, shape", [
    (ZeroMean(), ("N", 3)), (Symmetric(), ("N", "N")), (Symmetric(), ("N", "N", 2)), (Euclidean(), ("N", 2))])
def test_projection_and_kernels_stay_inside(space, shape):
    s = site(space, shape)
    noise = Run(0).handle(s, F64)
    path = s.component.path
    rough = torch.randn(3, *s.dims, dtype=F64, generator=torch.Generator().manual_seed(0))
    flat = space.project(rough, s.mask)
    assert inside(space, flat, s.mask)
    # the projection is orthogonal: what it removes is perpendicular to what it keeps
    w = space.project(noise.normal("w"), s.mask)
    assert torch.allclose(((rough - flat) * w).flatten(1).sum(1), torch.zeros(3, dtype=F64), atol=1e-10)
    x0 = space.project(noise.normal("x0"), s.mask)
    z = path.corrupt(x0, 0.6, s, noise).z
    pred = path.read(rough, z, 0.6, s, "data")
    steps = [z, path.source(s, noise), path.posterior(z, pred, 0.6, 0.3, s, noise), path.renoise(z, 0.6, 0.9, s, noise),
             path.langevin(z, pred.score, 0.16, 1.0, 1.0, s, noise), pred.velocity, pred.angular]
    assert all(inside(space, v, s.mask) for v in steps)


@pytest.mark.parametrize("space, shape, expected", [
    (Euclidean(), ("N", 2), [4, 8, 10]), (ZeroMean(), ("N", 3), [3, 9, 12]), (Symmetric(), ("N", "N"), [1, 6, 10]),
    (Symmetric(), ("N", "N", 2), [2, 12, 20]), (Euclidean(), (7,), [7, 7, 7]),
])
def test_degrees_of_freedom_equal_the_rank_of_the_projection(space, shape, expected):
    s = site(space, shape)
    assert space.ndim(s.dims, s.mask, 3).tolist() == expected
    size = math.prod(s.dims)
    basis = torch.eye(size, dtype=F64).view(size, *s.dims)
    for i in range(3):
        mask = None if s.mask is None else s.mask[i : i + 1].expand(size, *s.mask.shape[1:])
        rank = torch.linalg.matrix_rank(space.project(basis, mask).flatten(1))
        assert int(rank) == expected[i]


@pytest.mark.parametrize("space, shape", [(ZeroMean(), ("N", 3)), (Symmetric(), ("N", "N"))])
def test_noise_energy_is_one_per_degree_of_freedom(space, shape):
    n = 3000
    s = Context(torch.arange(n), torch.full((n,), 4), 6).at("x", Component(space, VP(), shape))
    z = Run(2).handle(s, F64).normal()
    dof = float(space.ndim(s.dims, s.mask, n)[0])
    assert abs(float(space.inner(z, z).mean()) / dof - 1) < 4.5 * (2 / (dof * n)) ** 0.5


def test_gaussian_density_of_a_zero_mean_cloud_uses_its_own_dimension():
    """E[-log p] of projected unit noise is ndim/2 (1 + log 2 pi), not that of the ambient space."""
    n, space = 4000, ZeroMean()
    s = Context(torch.arange(n), torch.full((n,), 5)).at("x", Component(space, VP(), ("N", 3)))
    z = Run(3).handle(s, F64).normal()
    dof = space.ndim(s.dims, s.mask, n)
    nll = 0.5 * space.inner(z, z) + 0.5 * dof * math.log(2 * math.pi)
    assert abs(float(nll.mean()) - 6 * (1 + math.log(2 * math.pi))) < 0.2


@pytest.mark.parametrize("period", [1.0, 360.0])
def test_torus(period):
    space = Torus(period)
    x = torch.rand(3, 50, dtype=F64, generator=torch.Generator().manual_seed(1)) * period
    u = (torch.rand(3, 50, dtype=F64, generator=torch.Generator().manual_seed(2)) - 0.5) * 0.999 * period
    y = space.retract(x, u)
    assert bool(((y >= 0) & (y < period)).all())
    assert torch.allclose(space.log(x, y), u, atol=1e-12 * period)
    assert bool((space.log(x, y).abs() <= period / 2).all())
    tiny = torch.tensor([[-1e-20, period, -period]], dtype=F64)
    assert bool(((space.wrap(tiny) >= 0) & (space.wrap(tiny) < period)).all())
    single = space.wrap(torch.tensor([-1e-12], dtype=torch.float32))
    assert 0 <= float(single) < period


def test_torus_kernels_stay_in_the_cell_and_clear_padding():
    path = WrappedPath()
    s = site(Torus(), ("N", 3), path)
    noise = Run(0).handle(s, F64)
    x = path.source(s, noise)
    pred = Prediction("noise", noise.normal("e"), path, x, 0.8, s)
    for v in (x, path.posterior(x, pred, 0.8, 0.2, s, noise), path.renoise(x, 0.2, 0.8, s, noise)):
        assert bool(((v >= 0) & (v < 1)).all())
        assert float((v * (~s.mask).double()).abs().max()) == 0.0


def test_entries_count_pairs_once():
    s = site(Symmetric(), ("N", "N"))
    assert s.entries().flatten(1).sum(1).tolist() == [1, 6, 10]
    c = site(Categorical(4, pairs=True), ("N", "N"), UniformPath())
    assert c.count().tolist() == [1, 6, 10]
