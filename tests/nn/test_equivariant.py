"""EquivariantCrystal: symmetries, periodic images without jumps, harmonics that turn as they should, masks."""

import math
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.core.spec import Context
from scidiff.testing import assert_equivariant

o3 = pytest.importorskip("e3nn.o3", reason="the equivariant backbone needs e3nn")

from scidiff.nn.equivariant import SOFT, EquivariantCrystal, Surroundings, clebsch_gordan, harmonics, paths  # noqa: E402

K, SIZES = 4, (5, 1, 3)
SHAPES = {"types": ("N",), "frac": ("N",), "lattice": ()}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def network(dtype=torch.float64, **more) -> EquivariantCrystal:
    torch.manual_seed(0)
    options = {"extra": 1, "width": 12, "channels": 4, "depth": 2, "frequencies": 3, "clock": 8, **more}
    return EquivariantCrystal(K, **options).to(dtype).eval()


def crystals(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    b, n = len(SIZES), max(SIZES)
    ctx = Context(torch.arange(b), sizes=torch.tensor(SIZES), n_max=n)
    real = ctx.mask(("N",)).unsqueeze(-1)
    features = {"types": F.one_hot(torch.randint(K, (b, n), generator=g), K) * real,
                "frac": torch.rand(b, n, 3, 2, generator=g, dtype=torch.float64) * real.unsqueeze(-1),
                "lattice": torch.randn(b, 9, generator=g, dtype=torch.float64)}
    return {k: v.to(dtype) for k, v in features.items()}, torch.linspace(0.1, 0.9, b, dtype=dtype), ctx


def estimates(features):
    g = torch.Generator().manual_seed(1)
    return {name: torch.rand(x.shape[:3] if name == "frac" else x.shape, generator=g).to(x.dtype)
            for name, x in features.items()}


def rotations(mirror, dtype=torch.float64):
    q = torch.linalg.qr(torch.randn(3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    q[:, 0] *= (torch.linalg.det(q) * (-1 if mirror else 1))[:, None]
    return q.to(dtype)


def largest(a, b, ctx):
    real = ctx.mask(("N",))
    return max(float((a[n] - b[n]).detach()[real if n != "lattice" else slice(None)].abs().max()) for n in a)


@PRECISIONS
def test_permuting_the_atoms_permutes_the_outputs(dtype):
    features, t, ctx = crystals(dtype)
    assert_equivariant(network(dtype), features, t, ctx, SHAPES, None, TOLERANCE[dtype])


@PRECISIONS
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("lmax", [2, 3])
def test_turning_the_lattice_turns_its_output_alone(dtype, mirror, lmax):
    features, t, ctx = crystals(dtype)
    net, q, previous = network(dtype, lmax=lmax, self_conditioning=True), rotations(mirror, dtype), estimates(features)

    def turned(x):
        return (x.view(-1, 3, 3) @ q).flatten(1)

    out = net(features, t, ctx, previous)
    new = net({**features, "lattice": turned(features["lattice"])}, t, ctx,
              {**previous, "lattice": turned(previous["lattice"])})
    assert largest(new, {**out, "lattice": turned(out["lattice"])}, ctx) < TOLERANCE[dtype]
    assert (out["lattice"] - turned(out["lattice"])).abs().max() > 1e-3


@PRECISIONS
def test_a_common_shift_of_all_atoms_changes_nothing(dtype):
    features, t, ctx = crystals(dtype)
    net, shifted = network(dtype), features["frac"].clone()
    shifted[..., 0] = torch.remainder(shifted[..., 0] + torch.tensor([[[0.31, 0.72, 0.05]]], dtype=dtype), 1.0)
    out = net(features, t, ctx)
    assert largest(net({**features, "frac": shifted}, t, ctx), out, ctx) < TOLERANCE[dtype]
    shifted[:, 1:] = features["frac"][:, 1:]
    assert largest(net({**features, "frac": shifted}, t, ctx), out, ctx) > 1e-4


def test_a_padded_crystal_is_the_crystal_alone():
    features, t, ctx = crystals()
    net = network()
    dirty = {**features, "frac": torch.where(ctx.mask(("N",))[..., None, None], features["frac"], 0.4)}
    out = net(dirty, t, ctx)
    for row, n in enumerate(SIZES):
        short = {k: v[row : row + 1] if k == "lattice" else v[row : row + 1, :n] for k, v in features.items()}
        for name, x in net(short, t[row : row + 1], Context(torch.tensor([row]))).items():
            whole = out[name][row : row + 1] if name == "lattice" else out[name][row : row + 1, :n]
            torch.testing.assert_close(whole, x, rtol=0, atol=1e-12)


def test_moments_are_the_sum_over_the_eight_images():
    around = Surroundings(3, 3.0, 2).double()
    g = torch.Generator().manual_seed(0)
    frac, rows = torch.rand(1, 2, 3, generator=g, dtype=torch.float64), torch.randn(1, 3, 3, generator=g).double()
    expected, total = torch.zeros(3, 9, dtype=torch.float64), 0.0
    for corner in product((-1, 0, 1), repeat=3):
        away = frac[0, 1] - frac[0, 0] + torch.tensor(corner)
        weight = float(torch.where(away.abs() < 1, (0.5 * math.pi * away).cos().square(), 0.0).prod())
        total += weight
        r = away @ rows[0]
        length = (r.square().sum() + SOFT**2).sqrt()
        y = o3.spherical_harmonics([0, 1, 2], r / length, normalize=False, normalization="component")
        expected += weight * (-0.5 * (length - torch.arange(3.0).double()).square()).exp()[:, None] * y
    assert math.isclose(total, 1.0, rel_tol=1e-12)
    found = torch.cat(around.pairs(frac, rows), -1)[0, 0, 1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_images_come_and_go_without_a_jump():
    around = Surroundings(4, 4.0, 2).double()
    rows = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(2)).double()

    def at(x):
        frac = torch.tensor([[[0.0, 0.0, 0.0], [x, 0.3, 0.8]]], dtype=torch.float64)
        return torch.cat(around.pairs(frac, rows), -1)[0, 0, 1]

    for edge in (0.0, 0.5, 1.0):
        h = 1e-6
        before, here, after = at(edge - h), at(edge), at(edge + h)
        torch.testing.assert_close(before, after, rtol=0, atol=2e-5)
        torch.testing.assert_close(after - here, here - before, rtol=0, atol=1e-9)  # nor does the slope jump
    torch.testing.assert_close(at(0.2), at(3.2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mirror", [False, True])
def test_moments_turn_by_wigner_matrices_and_odd_ones_of_cells_vanish(mirror):
    around, q = Surroundings(3, 3.0, 3).double(), rotations(mirror)[:1]
    frac, rows = torch.rand(1, 3, 3, dtype=torch.float64), torch.randn(1, 3, 3, dtype=torch.float64)
    for made in (lambda r: around.pairs(frac, r), around.cells):
        for degree, (x, y) in enumerate(zip(made(rows), made(rows @ q), strict=True)):
            d = o3.Irrep(degree, (-1) ** degree).D_from_matrix(q[0].T.contiguous()).double()
            torch.testing.assert_close(y, x @ d.T, rtol=0, atol=1e-4)  # e3nn's matrices go through float32 angles
    assert all(x.abs().max() < 1e-12 for x in around.cells(rows)[1::2])


def test_products_keep_parity_and_unit_variance():
    assert paths(2) == [(1, 1, 2), (1, 2, 1), (2, 2, 2)]
    assert all((a + b + c) % 2 == 0 for a, b, c in paths(3))
    g = torch.Generator().manual_seed(0)
    for path in paths(2):
        a, b = (torch.randn(20_000, 2 * degree + 1, generator=g, dtype=torch.float64) for degree in path[:2])
        variance = torch.einsum("na,nb,abc->nc", a, b, clebsch_gordan(*path)).square().mean(0)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=0.08)


@pytest.mark.parametrize("past", [False, True])
def test_gradients_reach_every_parameter(past):
    net = network(torch.float32, self_conditioning=past, separate_times=True)
    features, t, ctx = crystals(torch.float32)
    out = net(features, t[:, None].expand(-1, 3), ctx, estimates(features) if past else None)
    sum((v - 1).square().mean() for v in out.values()).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_lower_precision_stays_near():
    net = network(torch.float32)
    features, t, ctx = crystals(torch.float32)
    out = net(features, t, ctx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(features, t, ctx)
    for name in out:
        assert (low[name] - out[name]).abs().max() < 0.05 * out[name].abs().max()


def test_it_says_what_it_needs(monkeypatch):
    from e3nn import get_optimization_defaults

    before = dict(get_optimization_defaults())
    harmonics(1)
    assert get_optimization_defaults() == before
    with pytest.raises(UsageError, match=r"nine numbers, not 6.*matrix9"):
        EquivariantCrystal(K, lattice_size=6)
    with pytest.raises(UsageError, match="lmax must be 2 or more"):
        EquivariantCrystal(K, lmax=1)
    monkeypatch.setitem(sys.modules, "e3nn", None)
    with pytest.raises(MissingLibrary, match="needs e3nn"):
        harmonics(1)
