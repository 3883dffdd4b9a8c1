"""Measured sinograms and k-space from files: units, geometry, shapes, and a sentence for what does not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import yaml

from scidiff.core.errors import UsageError
from scidiff.domains.medical.intensity import CT, Scale
from scidiff.domains.medical.measurements import read_kspace, read_sinogram
from scidiff.domains.medical.operators.ct import FanCT, ParallelCT
from scidiff.domains.medical.operators.mri import fft2c, measured
from scidiff.domains.medical.operators.rays import Detector, Source

PARALLEL = {"beam": "parallel", "size": [16, 12], "spacing_mm": [2.0, 1.5], "angles": {"views": 5},
            "detector": {"cells": 26, "spacing_mm": 1.5}, "slice_spacing_mm": 4.0}
OPERATOR = ParallelCT((16, 12), views=5, detector=Detector(26, 1.5), spacing_mm=(2.0, 1.5))


def image(count=3):
    return torch.rand(count, 1, 16, 12, generator=torch.Generator().manual_seed(0))


def store(folder, y, geometry=PARALLEL):
    np.save(folder / "y.npy", np.asarray(y))
    (folder / "geo.yaml").write_text(yaml.safe_dump(geometry))
    return folder / "y.npy", folder / "geo.yaml"


@pytest.fixture
def read_as(tmp_path):
    """Reads numbers with a geometry, both by way of files."""
    return lambda y, geometry: read_sinogram(*store(tmp_path, y, geometry))


def test_a_sinogram_meets_the_operator_that_made_it(tmp_path):
    y = OPERATOR.forward(image())
    read = read_sinogram(*store(tmp_path, y[:, 0]))
    assert torch.equal(read.y, y)
    assert torch.equal(read.operator.forward(image()), y)
    assert np.allclose(np.linalg.norm(read.affine[:3, :3], axis=0), (1.5, 2.0, 4.0))
    assert np.allclose(read.affine @ [5.5, 7.5, 1, 1], [0, 0, 0, 1])
    assert read.scaled(CT) == (read.y, 0.0)
    one = read_sinogram(*store(tmp_path, y[0, 0]))
    assert torch.equal(one.y, y[:1])


def test_attenuation_becomes_the_priors_values(read_as):
    """y = integral of mu; x = (HU + 1000) / 2000 with HU = 1000 (mu / water - 1), so A x = y / (2 water)."""
    water, hu = 0.0193, -1000.0 + 1900.0 * image()
    y = OPERATOR.forward(water * (1.0 + hu / 1000.0))
    read = read_as(y[:, 0], {**PARALLEL, "water_per_mm": water, "sigma": 0.01})
    scaled, sigma = read.scaled(CT)
    assert torch.allclose(scaled, OPERATOR.forward(CT.encode(hu)), rtol=1e-4, atol=1e-4)
    assert sigma == pytest.approx(0.01 / (2 * water))
    with pytest.raises(UsageError, match="-1000 HU"):
        read.scaled(Scale(-1024.0, 3071.0))


def test_counts_and_transmission_become_integrals(read_as):
    y = OPERATOR.forward(0.01 * image())[:, 0].double()
    photons = 1e5 * torch.exp(-y)
    counted = read_as(photons, {**PARALLEL, "values": "counts", "photons": 1e5, "water_per_mm": 0.02})
    assert torch.allclose(counted.y[:, 0].double(), y, atol=1e-6)
    assert counted.sigma == pytest.approx(float((1 / photons).mean().sqrt()))
    left = read_as(torch.exp(-y), {**PARALLEL, "values": "transmission"})
    assert torch.allclose(left.y[:, 0].double(), y, atol=1e-6)
    dark = photons.clone()
    dark[0, 0, 0] = 0.0
    blocked = read_as(dark, {**PARALLEL, "values": "counts", "photons": 1e5})
    assert float(blocked.y[0, 0, 0, 0]) == pytest.approx(math.log(2e5))
    dark[0, 0, :2] = -3.0
    with pytest.raises(UsageError, match="2 negative photon counts, down to -3"):
        read_as(dark, {**PARALLEL, "values": "counts", "photons": 1e5})
    with pytest.raises(UsageError, match=r"above 0 and at most 1\. Counts need"):
        read_as(photons, {**PARALLEL, "values": "transmission"})


def test_fan_and_cone_beams(read_as):
    source = {"radius_mm": 60.0, "to_detector_mm": 100.0, "curved": True}
    fan = {**PARALLEL, "beam": "fan", "source": source, "angles": [0.0, 50.0, 170.0]}
    operator = FanCT((16, 12), angles=[0.0, 50.0, 170.0], detector=Detector(26, 1.5), source=Source(60.0, 100.0, True),
                     spacing_mm=(2.0, 1.5))
    y = operator.forward(image())
    assert torch.equal(read_as(y[:, 0], fan).operator.forward(image()), y)
    cone = {"beam": "cone", "size": [4, 8, 8], "spacing_mm": 1.0, "angles": {"views": 3, "start": 10.0},
            "source": source, "rows": {"cells": 9, "spacing_mm": 1.5},
            "columns": {"cells": 20, "spacing_mm": 1.5, "offset_mm": 0.4}}
    read = read_as(np.ones((3, 9, 20)), cone)
    assert tuple(read.y.shape) == (1, 1, 3, 9, 20) and read.operator.in_shape == (4, 1, 8, 8)
    assert read.operator.angles.tolist() == [10.0, 130.0, 250.0] and read.operator.columns.offset == 0.4
    assert np.allclose(read.affine @ [3.5, 3.5, 1.5, 1], [0, 0, 0, 1])
    with pytest.raises(UsageError, match=r"\(3, 9, 20\) \(views, rows, columns\)"):
        read_as(np.ones((2, 9, 20)), cone)


@pytest.mark.parametrize("change, words", [
    ({"beem": "fan"}, "no key 'beem'"), ({"beam": "fan beam"}, "no beam 'fan beam'"),
    ({"values": "count"}, "'counts'"),
    ({"size": None}, "lacks `size`"), ({"size": [16, 12, 4]}, "2 numbers, not 3"), ({"size": 16}, "list of numbers"),
    ({"spacing_mm": 0}, "positive"), ({"spacing_mm": [1, 2, 3]}, "3 numbers, not 2"),
    ({"angles": None}, "lacks `angles`"), ({"angles": {"view": 5}}, "no key 'view'"), ({"angles": ["a"]}, "a number"),
    ({"detector": 26}, "detector: {cells"), ({"source": {"radius_mm": 1}}, "no source"),
    ({"beam": "fan"}, "needs `source"), ({"values": "counts"}, "photons"), ({"sigma": -1}, "at least 0"),
    ({"water_per_mm": float("inf")}, "is a number"),
])
def test_every_bad_geometry_has_its_sentence(read_as, change, words):
    with pytest.raises(UsageError) as told:
        read_as(np.ones((3, 5, 26)), {**PARALLEL, **change})
    assert words in str(told.value)


def test_every_bad_sinogram_has_its_sentence(tmp_path):
    for y, words in ((np.ones((3, 6, 26)), r"shape \(3, 6, 26\).*describes \(5, 26\) \(views, cells of each slice\)"),
                     (np.ones(26), "views, cells"), (np.full((5, 26), np.nan), "130 values that are not finite"),
                     (np.ones((5, 26), complex), "Is it k-space"), (np.array(["a"]), "no numbers"),
                     (np.zeros((0, 5, 26)), "no numbers")):
        with pytest.raises(UsageError, match=words):
            read_sinogram(*store(tmp_path, y))
    np.save(tmp_path / "y.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="plain numbers"):
        read_sinogram(tmp_path / "y.npy", PARALLEL)
    with pytest.raises(UsageError, match="does not exist"):
        read_sinogram(tmp_path / "none.npy", PARALLEL)
    with pytest.raises(UsageError, match=r"geometry .* does not exist"):
        read_sinogram(tmp_path / "y.npy", tmp_path / "none.yaml")


# -- k-space


def waves(slices=2, coils=3, rows=9, columns=8):
    g = torch.Generator().manual_seed(0)
    return torch.randn(slices, coils, rows, columns, 2, generator=g).double()


def test_kspace_in_every_order_of_axes(tmp_path):
    k = torch.view_as_complex(waves()).numpy().astype(np.complex64)
    k[:, :, :, 5] = 0.0
    np.save(tmp_path / "k.npy", k)
    read = read_kspace(tmp_path / "k.npy")
    assert np.array_equal(read.y.numpy(), k)
    assert read.mask.sum() == 9 * 7 and read.acceleration == pytest.approx(8 / 7)
    assert read.calibration == (9, 2)  # columns 3 and 4 about the zero frequency at 4; column 5 is missing
    np.save(tmp_path / "p.npy", k.transpose(3, 0, 2, 1))
    assert torch.equal(read_kspace(tmp_path / "p.npy", "x slice y coil").y, read.y)
    np.save(tmp_path / "one.npy", k[0])
    assert torch.equal(read_kspace(tmp_path / "one.npy").y, read.y[:1])
    np.save(tmp_path / "parts.npy", np.stack([k.real, k.imag], -1))
    assert torch.equal(read_kspace(tmp_path / "parts.npy").y, read.y)
    np.save(tmp_path / "corner.npy", np.fft.ifftshift(k, (-2, -1)))
    assert torch.equal(read_kspace(tmp_path / "corner.npy", centre=False).y, read.y)


def test_kspace_and_images_have_the_same_energy_and_meet_the_operator(tmp_path):
    image = torch.view_as_complex(waves())
    np.save(tmp_path / "k.npy", fft2c(image).numpy())
    read = read_kspace(tmp_path / "k.npy")
    energy = image.abs().square().sum(1, keepdim=True)
    assert torch.allclose(read.zero_filled().square(), energy.float(), rtol=1e-4)
    operator, y = measured(read.y, torch.ones(3, 9, 8))
    assert torch.allclose(operator.grid(y), read.y)


def test_every_bad_kspace_has_its_sentence(tmp_path):
    k = torch.view_as_complex(waves()).numpy()
    holed, mixed, odd = k.copy(), k.copy(), k.copy()
    holed[1], mixed[1, :, 0], odd[0, 0, 0, 0] = 0.0, 0.0, np.nan
    for wrong, axes, words in ((k.real, None, "k-space is complex"), (k[0, 0], None, "do not describe"),
                               (k, "coil y x", "Name each of"), (k, "slice coil y y", "Name each of"),
                               (holed, None, "zero everywhere in 1 of its 2 slices, the first 1"),
                               (mixed, None, "different points"), (odd, None, "not finite")):
        np.save(tmp_path / "k.npy", wrong)
        with pytest.raises(UsageError, match=words):
            read_kspace(tmp_path / "k.npy", axes)


def test_the_staged_scan(data):
    file = data / "medical" / "kspace_brain_8coil.npy"
    if not file.is_file():
        pytest.skip(f"no k-space at {file}")
    read = read_kspace(file)
    assert tuple(read.y.shape) == (1, 8, 230, 180) and read.calibration == (24, 24)
    assert 1 / read.acceleration == pytest.approx(0.124, abs=1e-3)
    image = read.zero_filled()[0, 0]
    assert float(image.square().sum()) == pytest.approx(float(read.y.abs().square().sum()), rel=1e-5)
    inside, corner = image[80:150, 60:120].mean(), image[:20, :20].mean()
    assert float(inside) > 5 * float(corner)  # a head in the middle: the zero frequency was in the right place
