"""Axis order, poses, averaging over areas, and the ranges of values that priors know."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.intensity import (
    CT,
    CT_WIDE,
    Known,
    Scale,
    check_range,
    magnitude_scale,
    quantiles,
    scale_for,
)
from scidiff.domains.medical.volume import (
    Layout,
    Volume,
    area_weights,
    at_size,
    centred_affine,
    checked_affine,
    checked_values,
    layout,
)


def rotation(a, b, c):
    """Three turns about the axes, in degrees."""
    out = np.eye(3)
    for axis, angle in enumerate(np.radians((a, b, c))):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_any_pose_of_a_file_gives_the_same_tensor_and_the_way_back_is_exact(axes, signs):
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.normal(size=(4, 1, 5, 6)).astype(np.float32))  # axial: slices, rows, columns
    affine = centred_affine((4, 5, 6), (3.0, 0.7, 0.7))
    pose = Layout(axes, tuple(s < 0 for s in signs))
    array = pose.to_file(data)
    of_file = pose.file_affine(affine, array.shape)
    found = layout(of_file)
    assert found == pose
    assert torch.equal(found.to_tensor(array), data)
    assert np.allclose(found.affine(of_file, array.shape), affine, atol=1e-12)
    index = tuple(rng.integers(0, n) for n in array.shape)
    where = of_file @ [*index, 1]
    z, y, x = np.rint(np.linalg.solve(affine, where)[2::-1]).astype(int)
    assert array[index] == data[z, 0, y, x]


@pytest.mark.parametrize("edges, plane", [((1, 1, 3), "axial"), ((1.3, 1.3, 0.8), "axial"), ((1, 4, 1), "coronal"),
                                          ((5, 1, 1.01), "sagittal"), ((1, 1, 1), "axial"), ((2, 1, 1.5), "sagittal")])
def test_slices_lie_across_the_odd_edge(edges, plane):
    affine = np.eye(4)
    affine[:3, :3] = rotation(8, -5, 12) @ np.diag(edges)
    pose = layout(affine)
    volume = Volume(pose.to_tensor(np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)),
                    pose.affine(affine, (5, 6, 7)))
    assert volume.plane == plane
    assert volume.spacing == pytest.approx([edges[a] for a in pose.axes])
    assert {"axial": "RAS", "coronal": "RSA", "sagittal": "ASR"}[plane] == volume.orientation
    assert layout(affine, "coronal").axes[0] == 1


def test_cutting_leaves_voxels_at_their_places():
    volume = Volume(torch.rand(6, 1, 3, 4), centred_affine((6, 3, 4), (2.0, 1.0, 1.5)))
    part = volume.cut(2, 5)
    assert np.allclose(part.affine @ [1, 2, 0, 1], volume.affine @ [1, 2, 2, 1])
    assert torch.equal(part.data, volume.data[2:5])
    for start, stop in ((-1, 3), (3, 3), (0, 7)):
        with pytest.raises(UsageError, match="slices 0 to 5"):
            volume.cut(start, stop)
    with pytest.raises(UsageError, match="voxels"):
        volume.like(torch.rand(5, 1, 3, 4))


@pytest.mark.parametrize("n, m", [(8, 4), (10, 4), (7, 7), (9, 2), (320, 128)])
def test_area_weights_are_a_mean_over_equal_intervals(n, m):
    w = area_weights(n, m)
    assert torch.allclose(w.sum(1), torch.ones(m).double())
    assert torch.allclose(w.sum(0), torch.full((n,), m / n).double())  # every cell counts alike: the mean is kept
    line, middle = torch.arange(n).double(), (torch.arange(m).double() + 0.5) * n / m - 0.5
    off = (w @ line - middle).abs().max()
    assert float(off) < (1e-9 if n % m == 0 else 0.5)  # cells that are shared lie at one place with both shares
    if n % m == 0:
        fine = torch.rand(n, dtype=torch.float64)
        assert torch.allclose(w @ fine, fine.view(m, -1).mean(1))


def test_at_size_keeps_the_world():
    """A blob's mass and its centre in the world survive padding and averaging."""
    z, y, x = torch.meshgrid(*(torch.arange(n).double() for n in (3, 50, 37)), indexing="ij")
    data = torch.exp(-((y - 20) ** 2 + (x - 15) ** 2) / 18 - (z - 1) ** 2)[:, None]
    affine = np.eye(4)
    affine[:3, :3] = rotation(10, 20, -5) @ np.diag([0.8, 0.9, 3.0])
    affine[:3, 3] = (4.0, -7.0, 2.0)
    volume = Volume(data, affine)

    def centre(v):
        zz, yy, xx = torch.meshgrid(*(torch.arange(n).double() for n in (len(v.data), *v.size)), indexing="ij")
        points = torch.stack([xx, yy, zz, torch.ones_like(xx)], -1).reshape(-1, 4).numpy() @ v.affine.T
        mass = v.data[:, 0].reshape(-1).numpy()
        return mass.sum() * abs(np.linalg.det(v.affine[:3, :3])), (points * mass[:, None]).sum(0)[:3] / mass.sum()

    mass, place = centre(volume)
    for size, tolerance in ((25, 1e-6), (10, 0.02), (64, 1e-9), (20, 0.02)):
        other = at_size(volume, size)
        assert other.size == (size, size)
        assert centre(other)[0] == pytest.approx(mass, rel=1e-12)
        assert centre(other)[1] == pytest.approx(place, abs=tolerance)
    assert float(at_size(volume, 64, fill=-5.0).data[0, 0, 0, 0]) == -5.0


def test_bad_affines_and_values_are_named():
    flat = np.eye(4)
    flat[:, 1] = flat[:, 0]
    for wrong, words in ((flat, "singular"), (np.diag([1, 0, 1, 1.0]), "singular"), (np.eye(3), "4 x 4"),
                         (np.full((4, 4), np.nan), "finite")):
        with pytest.raises(UsageError, match=words):
            checked_affine(wrong, "a.nii")
    good = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    holed = good.copy()
    holed[1, 2, 3] = np.nan
    for wrong, words in ((good[0], "2D image"), (good[:, :, :1], "2D image"), (holed, r"voxel \(1, 2, 3\)"),
                         (np.full((3, 3, 3), 7.0), "value 7 everywhere"), (good[:0], "empty")):
        with pytest.raises(UsageError, match=words):
            checked_values(wrong, "a.nii")
    assert checked_values(good, "a.nii") is good
    with pytest.raises(UsageError, match=r"\[Z, C, Y, X\]"):
        Volume(torch.zeros(3, 4, 5), np.eye(4))


# -- intensities


def test_scales_go_there_and_back():
    v = torch.linspace(-1000, 1000, 101, dtype=torch.float64)
    assert float(CT.encode(v)[0]) == 0.0 and float(CT.encode(v)[-1]) == 1.0
    assert torch.allclose(CT.decode(CT.encode(v)), v)
    assert CT.encode(torch.tensor([-3024.0, 2500.0])).tolist() == [0.0, 1.0]
    assert CT.lost(torch.tensor([0.0, 500.0, 1200.0, 3000.0])) == 0.5
    assert float(CT_WIDE.encode(torch.tensor(3071.0))) == 1.0
    assert Scale(**CT.to_json()) == CT
    with pytest.raises(UsageError):
        Scale(1.0, 1.0)
    with pytest.raises(UsageError, match="magnitude"):
        CT.encode(torch.zeros(2, dtype=torch.complex64))


def test_magnitude_scale_follows_the_scanners_units_and_ignores_the_air():
    g = torch.Generator().manual_seed(0)
    head = 50 + 100 * torch.rand(4, 1, 16, 16, generator=g)
    scale = magnitude_scale(head)
    assert scale.high == pytest.approx(float(np.percentile(head.numpy(), 99.9)), rel=1e-6)
    assert magnitude_scale(17.0 * head).high == pytest.approx(17.0 * scale.high, rel=1e-5)
    air = torch.zeros(4, 1, 16, 48)
    assert magnitude_scale(torch.cat([head, air], 3)).high == pytest.approx(scale.high, rel=1e-6)
    phase = torch.polar(head, torch.rand(head.shape, generator=g))
    assert magnitude_scale(phase).high == pytest.approx(scale.high, rel=1e-5)
    assert torch.allclose(scale.encode(phase).abs(), scale.encode(head), rtol=1e-5)
    assert scale_for(head, "CT") is CT and scale_for(head, "MR").high == scale.high
    with pytest.raises(UsageError, match="no positive values"):
        magnitude_scale(-head)


def test_quantiles_thin_out_large_volumes_evenly():
    assert quantiles(torch.arange(101.0), (0.0, 0.5, 1.0)) == (0.0, 50.0, 100.0)
    assert quantiles(torch.tensor([-3000.0, 0.0, 10.0]), (0.0,), floor=-1024.0) == (-1024.0,)


def test_a_range_far_from_the_priors_is_refused_with_numbers():
    g = torch.Generator().manual_seed(0)
    hu = -1000 + 1800 * torch.rand(4, 1, 20, 20, generator=g)
    known = Known.of([CT.encode(hu[:2]), CT.encode(hu[2:])])
    ends = [quantiles(CT.encode(part), (0.01, 0.99)) for part in (hu[:2], hu[2:])]
    assert known.low == min(low for low, _ in ends) and known.high == max(high for _, high in ends)
    assert Known.from_json(known.to_json()) == known
    assert check_range(hu, CT, known, "a.nii") == ""
    padded = torch.cat([hu, torch.full((2, 1, 20, 20), -3024.0)])
    assert check_range(padded, CT, known, "a.nii") == ""  # outside of the field of view, not a strange scan
    for wrong, words in ((hu + 1024, "outside"), (CT.encode(hu), "twentieth"), (40 * hu, "outside")):
        with pytest.raises(UsageError, match=words) as told:
            check_range(wrong, CT, known, "a.nii")
        assert "--force" in told.value.remedy and "a.nii" in told.value.message
        low, high = quantiles(wrong, (0.01, 0.99), -1024.0)
        assert f"{low:.4g} and {high:.4g}" in told.value.message
        assert told.value.message in check_range(wrong, CT, known, "a.nii", force=True)
