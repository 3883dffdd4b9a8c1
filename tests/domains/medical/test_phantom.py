"""Phantoms: closed forms for their images and line integrals, agreement with the projectors, seeds."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.intensity import CT, CT_WIDE, Scale
from scidiff.domains.medical.operators.ct import FanCT, ParallelCT
from scidiff.domains.medical.phantom import AIR, Phantom, chest, integrals

BALL = [4.0, -7.0, 3.0, 20.0, 12.0, 16.0, 0.6, 0.0]  # in water


def phantom(*rows):
    return Phantom(torch.tensor(rows, dtype=torch.float64))


def test_volume_of_an_ellipsoid():
    """The integral of HU + 1000 over all voxels is 4/3 pi a b c times that of the material."""
    one = phantom(BALL)
    volume = one.volume((24, 48, 48), (2.0, 1.5, 1.5), finer=3)
    total = float((volume.data + 1000.0).double().sum()) * 2.0 * 1.5 * 1.5
    assert total == pytest.approx(4 / 3 * math.pi * 20 * 12 * 16 * 1000.0, rel=2e-3)
    sizes = ((24, 2.0), (48, 1.5), (48, 1.5))
    z, y, x = torch.meshgrid(*(((torch.arange(n) - (n - 1) / 2) * d).double() for n, d in sizes), indexing="ij")
    weight = (volume.data[:, 0].double() + 1000.0) / float((volume.data.double() + 1000.0).sum())
    assert [float((weight * c).sum()) for c in (x, y, z)] == pytest.approx([4.0, -7.0, 3.0], abs=0.02)
    where = volume.affine @ [0, 0, 0, 1]
    assert list(where[:3]) == pytest.approx([float(x.min()), float(y.min()), float(z.min())])


def test_line_integrals_of_one_ellipse_in_closed_form():
    """Chords 2 a b sqrt(r^2 - s^2) / r^2, r^2 = a^2 cos^2(angle) + b^2 sin^2(angle), s from the centre's shadow."""
    one = phantom(BALL)
    operator = ParallelCT((64, 64), views=12, spacing_mm=1.5)
    y = one.sinogram(operator, [3.0, 11.0, 30.0])
    angle = operator.angles.double() * math.pi / 180
    s = operator.detector.positions[None] - (4.0 * angle.cos() - 7.0 * angle.sin())[:, None]
    for k, z in enumerate((3.0, 11.0)):
        q = math.sqrt(1 - ((z - 3.0) / 16.0) ** 2)
        a, b = 20.0 * q, 12.0 * q
        r2 = ((a * (angle - 0.6).cos()) ** 2 + (b * (angle - 0.6).sin()) ** 2)[:, None]
        chord = 2 * a * b * (r2 - s**2).clamp(min=0).sqrt() / r2
        assert torch.allclose(y[k, 0].double(), 0.5 * chord, atol=1e-5)  # water is half of the range
    assert float(y[2].abs().max()) == 0.0


def test_the_last_ellipsoid_lies_on_top():
    """A shell: the chord of the outer ball less that of the inner one, which holds air; order decides."""
    outer, inner = [0, 0, 0, 20, 20, 20, 0, 0.0], [0, 0, 0, 10, 10, 10, 0, AIR]
    points = torch.tensor([[0.0, 0.0], [5.0, 0.0], [12.0, 0.0], [25.0, 0.0]]).double()
    along = torch.tensor([[0.0, 1.0]]).double().expand(4, 2)

    def chord(radius, s):
        return 2 * math.sqrt(max(radius**2 - s**2, 0.0))

    found = integrals(phantom(outer, inner).sections(0.0), points, along, CT)
    assert found.tolist() == pytest.approx([0.5 * (chord(20, s) - chord(10, s)) for s in (0, 5, 12, 25)])
    hidden = integrals(phantom(inner, outer).sections(0.0), points, along, CT)
    assert hidden.tolist() == pytest.approx([0.5 * chord(20, s) for s in (0, 5, 12, 25)])
    assert integrals(phantom(outer).sections(30.0), points, along, CT).tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", [ParallelCT, FanCT])
def test_projectors_agree_with_the_exact_integrals(kind):
    """Joseph's sums over a finely rendered slice against closed forms: a test of both, independent of each other."""
    subject = chest(3)
    operator = kind((192, 192), views=9, spacing_mm=2.0)
    grid = (torch.arange(384) - 191.5).double()  # 2 x 2 points a pixel
    fine = torch.nn.functional.avg_pool2d(subject.plane(5.0, grid, grid)[None, None], 2)
    numeric = operator.forward(CT.encode(fine.float()))
    exact = subject.sinogram(operator, [5.0])
    assert float((numeric - exact).norm() / exact.norm()) < 0.01
    mass = exact.double().sum((-1, -2)) if kind is ParallelCT else None
    if mass is not None:
        views = exact[0, 0].double().sum(1) * operator.detector.spacing
        area = float(CT.encode(fine).double().sum()) * 4.0
        assert torch.allclose(views, torch.full_like(views, area), rtol=5e-3)  # every view holds the whole mass


def test_chests_are_subjects_of_their_seed():
    first, again, other = chest(0), chest(0), chest(1)
    assert torch.equal(first.ellipsoids, again.ellipsoids) and not torch.equal(first.ellipsoids, other.ellipsoids)
    assert bool((first.ellipsoids[:, 3:6] > 0).all()) and float(first.ellipsoids[:, 7].min()) >= AIR
    for subject in (first, other):
        volume = subject.volume((8, 64, 64), (16.0, 6.0, 6.0))
        assert volume.orientation == "RAS" and volume.modality == "CT"
        data = volume.data[:, 0]
        lung = ((data > -900) & (data < -700)).double().mean((1, 2))
        bone = (data > 250).double().mean((1, 2))
        assert float(lung[2:6].min()) > 0.08 and float(bone.min()) > 0.003
        assert float(data.min()) == AIR and float(data.max()) < 700
        edge = torch.cat([data[:, 0], data[:, -1], data[:, :, 0], data[:, :, -1]], 1)
        assert float(edge.max()) == AIR  # the body lies inside of the field, so no ray is cut
        heart = data[3:5, 30:50]
        assert float((heart[..., :32] > -100).double().mean()) > float((heart[..., 32:] > -100).double().mean())


def test_finer_points_converge():
    subject = chest(0)
    size, spacing = (2, 48, 48), (10.0, 8.0, 8.0)
    best = subject.volume(size, spacing, finer=8).data
    errors = [float((subject.volume(size, spacing, finer=n).data - best).abs().mean()) for n in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 15.0


def test_impossible_phantoms_and_ranges_are_refused():
    subject = phantom(BALL)
    for size, spacing, finer in (((1, 8, 8), (1, 1, 1), 1), ((8, 8), (1, 1, 1), 1), ((8, 8, 8), (1, 0, 1), 1),
                                 ((8, 8, 8), (1, 1, 1), 0)):
        with pytest.raises(UsageError, match="three sizes"):
            subject.volume(size, spacing, finer)
    operator = ParallelCT((8, 8), views=2)
    with pytest.raises(UsageError, match="-1000 HU"):
        subject.sinogram(operator, [0.0], Scale(-1024.0, 3071.0, "HU"))
    wide = subject.sinogram(operator, [3.0], CT_WIDE)
    assert torch.allclose(wide * CT_WIDE.width, subject.sinogram(operator, [3.0]) * CT.width, rtol=1e-6)
