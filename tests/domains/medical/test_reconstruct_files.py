"""Scans in and out through the verb: oblique NIfTI, DICOM, measured sinograms and k-space."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

from scidiff import api  # noqa: E402
from scidiff.domains.medical import phantom  # noqa: E402
from scidiff.domains.medical.classical import CGLS, FBP  # noqa: E402
from scidiff.domains.medical.intensity import CT, magnitude_scale  # noqa: E402
from scidiff.domains.medical.operators.coils import birdcage  # noqa: E402
from scidiff.domains.medical.operators.ct import ParallelCT  # noqa: E402
from scidiff.domains.medical.operators.masks import Mask  # noqa: E402
from scidiff.domains.medical.operators.mri import fft2c  # noqa: E402
from tests.domains.medical.test_nifti import OBLIQUE, raw, same_header, save  # noqa: E402
from tests.domains.medical.white_prior import save_model  # noqa: E402

QUICK = ["sampling.rivals=false", "sampling.report=false", "sampling.metrics=false"]


def reconstruct(out, *words):
    return api.reconstruct([f"out='{out}'", *words])


def head(shape=(6, 24, 20)):
    """A smooth positive volume, as an MR magnitude in scanner units."""
    z, y, x = (torch.linspace(-1, 1, n) for n in shape)
    radius = (z[:, None, None] ** 2 + (1.3 * y[:, None]) ** 2 + (1.2 * x) ** 2).sqrt()
    texture = 1 + 0.3 * torch.cos(6 * x) * torch.cos(5 * y)[:, None]
    return (900 * torch.sigmoid(12 * (0.8 - radius)) * texture)[:, None]


@pytest.fixture(scope="module")
def white(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("white") / "model", size=32, modality="MR", known=(0.0, 1.0))


@pytest.mark.parametrize("words", [["posterior=zero_filled"], ["posterior.steps=3", "sampling.num=2"]])
def test_an_oblique_header_comes_back_byte_for_byte(tmp_path, white, words):
    def change(header):
        header["descrip"], header["cal_max"], header["toffset"] = b"mine", 700.0, 3.5

    values = np.rint(head()[:, 0].numpy().transpose(2, 0, 1)).astype(np.int16)  # [x, z, y]: axes of its own order
    source = save(tmp_path / "scan.nii.gz", values, OBLIQUE, s=2, q=1, change=change)
    learned = [] if words[0].startswith("posterior=") else [f"from='{white}'"]
    reconstruct(tmp_path / "run", f"input='{source}'", "operator=mri", "operator.acceleration=2.0", *words, *learned,
                *QUICK)
    files = ["reconstruction", "error"] + (["std", "low", "high", "samples/s0001"] if learned else [])
    for name in files:
        written = tmp_path / "run" / f"{name}.nii.gz"
        a, b = nibabel.load(source), nibabel.load(written)
        assert a.shape == b.shape and np.array_equal(a.affine, b.affine)
        same_header(raw(source), raw(written), {"cal_min", "cal_max"} if name in ("std", "error") else ())


def test_axes_of_a_file_are_found_again(tmp_path):
    """Full sampling: what comes out is what went in, voxel for voxel, in the file's own axes."""
    values = head()[:, 0].numpy().transpose(1, 2, 0).copy()
    source = save(tmp_path / "scan.nii", values, OBLIQUE)
    reconstruct(tmp_path / "run", f"input='{source}'", "operator=mri", "operator.acceleration=1.0",
                "posterior=zero_filled", *QUICK)
    back = np.asarray(nibabel.load(tmp_path / "run" / "reconstruction.nii.gz").dataobj)
    assert np.abs(back - values).max() < 1e-3


def test_averaging_to_a_size_is_asked_for_and_moves_the_affine(tmp_path):
    values = head((6, 24, 24))[:, 0].numpy().transpose(2, 1, 0).copy()
    source = save(tmp_path / "scan.nii", values, np.diag([1.0, 1.0, 4.0, 1.0]))
    made = reconstruct(tmp_path / "run", f"input='{source}'", "size=12", "operator=mri", "operator.acceleration=1.0",
                       "posterior=zero_filled", *QUICK)
    image = nibabel.load(tmp_path / "run" / "reconstruction.nii.gz")
    assert image.shape == (12, 12, 6) and image.header.get_zooms() == (2.0, 2.0, 4.0)
    assert np.allclose(np.asarray(image.dataobj), values.reshape(12, 2, 12, 2, 6).mean((1, 3)), atol=1e-2)
    assert any("were averaged to 12 x 12" in note for note in made.samples.meta["notes"])


def test_a_dicom_series_becomes_a_derived_series(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from tests.domains.medical.test_dicom import series

    series(tmp_path / "scan", count=4)
    reconstruct(tmp_path / "run", f"input='{tmp_path / 'scan'}'", "operator=ct_sparse", "operator.views=60",
                "posterior=cgls", *QUICK)
    files = sorted((tmp_path / "run" / "dicom").iterdir())
    read = [pydicom.dcmread(f) for f in (tmp_path / "scan").rglob("*") if f.is_file()]
    old = {str(one.SOPInstanceUID): one for one in read}
    assert len(files) == len(old) == 4
    for file in files:
        one = pydicom.dcmread(file)
        source = old[str(one.SourceImageSequence[0].ReferencedSOPInstanceUID)]
        assert one.ImagePositionPatient == source.ImagePositionPatient and one.PatientID == source.PatientID
        assert one.SeriesInstanceUID != source.SeriesInstanceUID and list(one.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert "Not for clinical use" in one.DerivationDescription
    assert (tmp_path / "run" / "reconstruction.nii.gz").is_file()


GEOMETRY = {"beam": "parallel", "size": [32, 32], "spacing_mm": 12.0, "angles": {"views": 24},
            "detector": {"cells": 46, "spacing_mm": 12.0}, "slice_spacing_mm": 8.0, "water_per_mm": 0.02}


@pytest.mark.parametrize("kind", ["integrals", "counts"])
def test_a_measured_sinogram_comes_out_in_hounsfield_units(tmp_path, kind):
    truth = phantom.chest(0).volume((3, 32, 32), (8.0, 12.0, 12.0))
    operator = ParallelCT((32, 32), views=24, detector=46, spacing_mm=12.0)
    y = operator(CT.encode(truth.data))[:, 0] * 0.02 * 2.0
    about = dict(GEOMETRY)
    if kind == "counts":
        about.update(values="counts", photons=1e9)
        y = 1e9 * torch.exp(-y.double())
    np.save(tmp_path / "y.npy", y.numpy())
    (tmp_path / "geo.yaml").write_text(yaml.safe_dump(about))
    made = reconstruct(tmp_path / "run", f"sinogram='{tmp_path / 'y.npy'}'", f"geometry='{tmp_path / 'geo.yaml'}'",
                       "posterior=fbp", *QUICK)
    expected = CT.decode(FBP()(operator(CT.encode(truth.data)), operator))
    torch.testing.assert_close(made.samples[0].data, expected, rtol=0, atol=1.0)
    assert made.samples[0].spacing == (8.0, 12.0, 12.0)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["sections"]["data"]["measurement"]["value"]["origin"] == "measured"


def kspace(shape=(2, 32, 28), coils=4, acceleration=2.0, turn=1.1):
    """Undersampled k-space of a head with a smooth phase, and its magnitude."""
    image = head((6, *shape[1:]))[2 : 2 + shape[0]]
    y, x = (torch.linspace(-1, 1, n) for n in shape[1:])
    phase = torch.polar(torch.ones(shape[1:]), turn * (0.7 * y[:, None] + 0.5 * x + 0.4))
    mask = Mask("poisson", acceleration, 14, density=1.0).draw(shape[1:])
    return fft2c(image * phase * birdcage(shape[1:], coils)) * mask, image


def test_measured_kspace_of_several_coils_gives_its_magnitude(tmp_path):
    y, image = kspace()
    np.save(tmp_path / "k.npy", y.numpy().astype(np.complex64))
    made = reconstruct(tmp_path / "run", f"kspace='{tmp_path / 'k.npy'}'", "posterior=cgls", *QUICK)
    x = made.samples[0].data
    scale = float((x * image).sum() / (x * x).sum())
    assert scale == pytest.approx(1.0, abs=0.05), "units of the scanner"
    assert float((x - image).norm() / image.norm()) < 0.1
    assert float(x.min()) > -0.05 * float(image.max()), "the phase went into the coils, so the image is positive"
    assert any("phase" in note for note in made.samples.meta["notes"])


def test_kspace_with_a_prior_of_slices(tmp_path, white):
    y, image = kspace()
    np.save(tmp_path / "k.npy", y.numpy().astype(np.complex64))
    made = reconstruct(tmp_path / "run", f"kspace='{tmp_path / 'k.npy'}'", f"from='{white}'", "posterior.steps=6",
                       "sampling.num=1", "reading.spacing=[4,1.5,1.5]", *QUICK)
    x = made.samples[0].data
    assert float((x - image).norm() / image.norm()) < 0.12 and made.samples[0].spacing == (4.0, 1.5, 1.5)
    assert made.samples.verdicts[0].valid


def test_the_staged_eight_coil_scan(tmp_path, data):
    file = data / "medical" / "kspace_brain_8coil.npy"
    if not file.is_file():
        pytest.skip(f"the staged k-space is not on this machine (looked for {file})")
    made = reconstruct(tmp_path / "run", f"kspace='{file}'", "posterior=cgls", *QUICK)
    x = made.samples[0].data
    assert tuple(x.shape) == (1, 1, 230, 180) and made.samples.meta["operator"].startswith("MRI")
    found = made.samples.domain.found
    again = CGLS(20)(found.scene.y, found.scene.operator)
    torch.testing.assert_close(found.mean, again, rtol=1e-3, atol=1e-4)
    assert float(magnitude_scale(again.clamp(min=0)).high) == pytest.approx(1.0, abs=0.25)
    assert float(x.mean()) > 0 and float(found.mean.clamp(max=0).norm() / found.mean.norm()) < 0.3
