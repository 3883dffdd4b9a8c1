"""Projectors against analytic phantoms, against each other, and as operators; back projections against the phantom."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import FanCT, LimitedAngle, ParallelCT
from scidiff.domains.medical.operators.fbp import angular_weights, fbp, fdk
from scidiff.domains.medical.operators.rays import Detector, Source, cone_rays, fan_rays, parallel_rays
from scidiff.testing import check_operator

torch.set_num_threads(1)
CURVED = Source(60.0, 100.0, curved=True)


def disc(size, spacing, radius, centre=(0.0, 0.0), fine=8):
    """A disc of value 1, each pixel the share of it inside, [1, 1, Y, X] float64; lengths in mm, centre (x, y)."""
    y, x = (((torch.arange(n * fine, dtype=torch.float64) + 0.5) / fine - n / 2) * d
            for n, d in zip(size, spacing, strict=True))
    inside = ((x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2 <= radius**2).double()
    return torch.nn.functional.avg_pool2d(inside[None, None], fine)


def chord(points, directions, radius, centre):
    """Exact length of rays [..., d] in a disc or ball."""
    to = torch.tensor(centre, dtype=torch.float64) - points
    along = (to * directions).sum(-1)
    distance = (to * to).sum(-1) - along**2
    return 2 * (radius**2 - distance).clamp(min=0).sqrt()


@pytest.mark.parametrize("operator", [
    ParallelCT((12, 9), views=5, spacing_mm=(0.7, 1.3), detector=Detector(11, 1.1, 0.4)),
    ParallelCT((10, 10), views=16), ParallelCT((8, 8), angles=[10.0, -33.0, 190.0]), LimitedAngle((9, 9), views=7),
    FanCT((10, 8), views=5, spacing_mm=0.5), FanCT((9, 9), views=56, source=Source(20.0, 35.0, curved=True)),
    ConeCT((3, 6, 5), views=2, spacing_mm=(1.5, 1.0, 0.8)), ConeCT((2, 4, 4), angles=[20], source=CURVED),
], ids=str)
def test_projectors_conform(operator):
    check_operator(operator, batch=2, solves=math.prod(operator.out_shape) < 300)


@pytest.mark.parametrize("make", [
    lambda: ParallelCT((128, 96), views=24, spacing_mm=(0.6, 0.8)), lambda: ParallelCT((128, 128), views=32),
    lambda: FanCT((128, 96), views=24, spacing_mm=0.7), lambda: FanCT((128, 128), views=56, source=Source(150, 260)),
    lambda: FanCT((96, 128), views=15, source=Source(150.0, 260.0, curved=True),
                  detector=Detector(260, 1.6, offset=7.3)),
], ids=["parallel", "parallel turned", "fan", "fan turned", "curved, offset"])
def test_a_disc_is_projected_to_its_chords(make):
    operator = make()
    radius, centre = 0.3 * min(n * d for n, d in zip(operator.size, operator.spacing, strict=True)), (4.0, -6.5)
    y = operator(disc(operator.size, operator.spacing, radius, centre))[0, 0]
    exact = chord(*operator.rays(operator.angles), radius, centre)
    assert float((y - exact).abs().sum() / exact.sum()) < 0.01
    middle = exact > 1.2 * radius  # far from the rim, where one pixel is a small part of the chord
    assert float(((y - exact) / exact)[middle].abs().max()) < 0.02
    assert float(((y - exact) / exact)[middle].abs().mean()) < 0.01


def test_mass_is_conserved_across_views():
    operator = ParallelCT((64, 48), views=45, spacing_mm=(1.0, 0.7))
    image = disc(operator.size, operator.spacing, 9.0, (3.0, -8.0)) + 0.5 * disc(operator.size, operator.spacing, 5.0)
    mass = operator(image)[0, 0].sum(-1) * operator.detector.spacing
    assert torch.allclose(mass, torch.full_like(mass, float(image.sum()) * 0.7), rtol=0.01)


@pytest.mark.parametrize("make", [
    lambda **k: ParallelCT((21, 21), views=60, **k), lambda **k: LimitedAngle((20, 20), **k),
    lambda **k: ParallelCT((16, 16), views=80, **k), lambda **k: FanCT((20, 20), views=72, **k),
    lambda **k: FanCT((21, 21), views=80, source=CURVED, **k),
    lambda **k: ParallelCT((15, 15), angles=[-30, 60, 390, 120, 210, 150], **k),
], ids=["60", "limited", "80", "fan", "curved", "listed"])
def test_turned_views_are_the_tabulated_ones(make):
    folded, plain = make(symmetric=True), make(symmetric=False)
    x = torch.randn(2, 1, *folded.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = plain(x)
    assert len(folded.turns) > 1 and len(plain.turns) == 1
    assert torch.allclose(folded(x), y, atol=1e-6)
    assert torch.allclose(folded.adjoint(y), plain.adjoint(y), rtol=1e-6, atol=1e-4)
    assert folded.nbytes < 0.55 * plain.nbytes


def test_a_table_beyond_its_budget_is_built_again_and_gives_the_same(monkeypatch):
    from scidiff.domains.medical.operators import table

    plain = ParallelCT((16, 16), views=24, symmetric=False)
    y = plain(torch.ones(1, 1, 16, 16, dtype=torch.float64))
    monkeypatch.setattr(table, "BLOCK", 4000)
    monkeypatch.setattr(table, "BAND", 40)
    banded = ParallelCT((16, 16), views=24, symmetric=False)
    assert banded.table.bands == 7 and plain.table.bands == 1
    assert torch.allclose(banded(torch.ones(1, 1, 16, 16, dtype=torch.float64)), y, rtol=1e-12)
    whole, bounded = (ParallelCT((16, 16), views=24, symmetric=False, keep=keep) for keep in (10**9, 40_000))
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = whole(x)
    assert len(bounded.table.blocks) > 4
    assert torch.equal(bounded(x), y) and torch.equal(bounded.adjoint(y), whole.adjoint(y))
    assert bounded.nbytes <= 40_000 < whole.nbytes


def test_the_cone_meets_a_ball_and_the_fan():
    size, spacing, radius, centre = (24, 40, 36), (1.2, 0.9, 1.0), 10.0, (2.0, -1.5, 1.0)
    fine = 4
    z, y, x = (((torch.arange(n * fine, dtype=torch.float64) + 0.5) / fine - n / 2) * d
               for n, d in zip(size, spacing, strict=True))
    inside = ((x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2 + (z[:, None, None] - centre[2]) ** 2 <= radius**2)
    ball = torch.nn.functional.avg_pool3d(inside.float()[None, None], fine).double().permute(0, 2, 1, 3, 4)
    operator = ConeCT(size, views=7, spacing_mm=spacing)
    rays = cone_rays(operator.angles, operator.rows, operator.columns, operator.source)
    exact = chord(*rays, radius, centre)
    found = operator(ball)[0, 0]
    middle = exact > 1.2 * radius
    assert float(((found - exact) / exact)[middle].abs().mean()) < 0.01
    assert float(found.sum() / exact.sum()) == pytest.approx(1.0, abs=0.005)
    flat = ConeCT((1, 20, 17), views=6, rows=Detector(1, 1.0))
    fan = FanCT((20, 17), views=6, detector=flat.columns, source=flat.source)
    image = torch.randn(1, 1, 20, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(flat(image[:, None])[:, :, :, 0], fan(image), atol=1e-5)


def test_rays_hit_their_cells():
    detector, angles = Detector(5, 2.0, 0.5), torch.tensor([0.0, 30.0, 200.0])
    points, directions = parallel_rays(angles, detector)
    b = angles.double() * math.pi / 180
    assert torch.allclose(points[..., 0] * b.cos()[:, None] + points[..., 1] * b.sin()[:, None],
                          detector.positions.expand(3, 5))
    for source in (Source(30.0, 50.0), Source(30.0, 50.0, curved=True)):
        points, directions = fan_rays(angles, detector, source)
        assert torch.allclose(points.norm(dim=-1), torch.full((3, 5), 30.0, dtype=torch.float64))
        central = -points[:, :1] / 30.0
        cosine = (directions * central).sum(-1)
        turn = detector.positions / 50.0
        exact = turn.cos() if source.curved else turn.atan().cos()
        assert torch.allclose(cosine, exact.expand(3, 5))


@pytest.mark.parametrize("operator", [
    ParallelCT((80, 72), views=120, spacing_mm=(0.7, 0.8)), ParallelCT((72, 72), views=120),
    ParallelCT((72, 72), angles=[i * 3.0 for i in range(120)]),
    FanCT((80, 72), views=180, spacing_mm=0.9), FanCT((72, 72), views=180, source=Source(120.0, 200.0, curved=True)),
], ids=["parallel", "square", "circle", "fan", "curved"])
def test_fbp_returns_the_value_of_a_disc(operator):
    width = min(n * d for n, d in zip(operator.size, operator.spacing, strict=True))
    image = disc(operator.size, operator.spacing, 0.32 * width, (0.05 * width, -0.04 * width))
    inner = disc(operator.size, operator.spacing, 0.25 * width, (0.05 * width, -0.04 * width)) == 1
    for hann in (False, True):
        found = fbp(operator, operator(image), hann)
        assert float(found[inner].mean()) == pytest.approx(1.0, abs=0.01)
        assert float(((found - image) ** 2).mean().sqrt()) < 0.09
        assert float(found[inner].std()) < (0.02 if hann else 0.05)


def test_fdk_returns_the_value_of_a_ball():
    operator = ConeCT((8, 28, 28), views=48)
    z, y, x = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in operator.size)
    ball = (x**2 + y[:, None] ** 2 + (2 * z[:, None, None]) ** 2 <= 8.0**2).float()[None, :, None]
    found = fdk(operator, operator(ball))
    inner = (x**2 + y[:, None] ** 2 <= 5.0**2)
    assert float(found[0, 3:5, 0][:, inner].mean()) == pytest.approx(1.0, abs=0.03)
    assert float(found[0, :, 0][:, (x**2 + y[:, None] ** 2 >= 12.0**2)].mean().abs()) < 0.05


def test_weights_of_views():
    even = torch.arange(20, dtype=torch.float64) * 9.0
    assert torch.allclose(angular_weights(even, 180.0), torch.full((20,), math.pi / 20, dtype=torch.float64))
    part = angular_weights(torch.arange(90, dtype=torch.float64), 180.0)
    assert torch.allclose(part[1:-1], torch.full((88,), math.pi / 180, dtype=torch.float64))
    assert float(part.max()) < 1.3 * math.pi / 180


def test_scikit_image_agrees_where_it_is_installed():
    transform = pytest.importorskip("skimage.transform", reason="scikit-image is not installed")
    image = disc((64, 64), (1.0, 1.0), 14.0, (6.0, -9.0))
    operator = ParallelCT((64, 64), views=20, detector=64)
    theirs = torch.tensor(transform.radon(image[0, 0].numpy(), operator.angles.numpy(), circle=True).T)
    ours = operator(image)[0, 0]
    # theirs rotates about pixel 32 and counts angles the other way round: compare what does not depend on either
    assert torch.allclose(ours.sum(-1), theirs.sum(-1), rtol=0.01)
    assert torch.allclose(ours.amax(-1), theirs.amax(-1), rtol=0.02)


def test_geometry_that_cannot_be_is_refused():
    for wrong in (lambda: ParallelCT((8, 8)), lambda: ParallelCT((8, 8), views=3, angles=[1.0]),
                  lambda: ParallelCT((8, 8), views=0), lambda: ParallelCT((8, 8), angles=[]),
                  lambda: ParallelCT((8, 8), views=3, spacing_mm=-1.0), lambda: ParallelCT((8, 8), views=3, detector=0),
                  lambda: LimitedAngle((8, 8), 0, 200), lambda: Source(10.0, 5.0),
                  lambda: FanCT((8, 8), views=3, source=Source(4.0, 9.0)),
                  lambda: fbp(FanCT((8, 8), angles=[0.0, 90.0]), torch.zeros(1, 1, 2, 1)),
                  lambda: ConeCT((8, 8, 8), views=2, rows=Detector(80, 3.0), source=Source(20.0, 100.0))):
        with pytest.raises(UsageError):
            wrong()
