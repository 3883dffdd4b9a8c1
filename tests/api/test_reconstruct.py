"""Input that cannot be reconstructed: one sentence each, before anything is written."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import yaml

from scidiff import api, config
from scidiff.core.errors import UsageError

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

from tests.domains.medical.white_prior import save_model  # noqa: E402

PHANTOM = {"input": "chest_phantom", "reading.size": [4, 16, 16], "reading.spacing": [8.0, 24.0, 24.0]}


@cache
def composed(operator, posterior):
    return config.compose("reconstruct", ["domain=medical", f"operator={operator}", f"posterior={posterior}"])


def settings(changes, operator="ct_sparse", posterior="fbp"):
    """The settings of the verb with some changed; dotted keys reach inside."""
    found = copy.deepcopy(composed(operator, posterior))
    found["out"] = "out"
    for key, value in changes.items():
        *path, last = key.split(".")
        place = found
        for step in path:
            place = place[step]
        place[last] = value
    return found


def refused(folder, sentence, changes, operator="ct_sparse", posterior="fbp"):
    """Whether one sentence answers, and nothing was written."""
    before = {f.name for f in folder.iterdir()}
    with pytest.raises(UsageError, match=sentence) as caught:
        api.reconstruct(settings(changes, operator, posterior))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert {f.name for f in folder.iterdir()} == before
    return True


@pytest.mark.parametrize("words, sentence, changes", [
    (("ct_sparse", "fbp"), "needs no prior", {"from": "mine"}),
    (("ct_sparse", "fbp"), "goes with a prior", {"volume.kind": "tv_z"}),
    (("ct_sparse", "fbp"), "no coupling of slices 'tvz'", {"volume.kind": "tvz"}),
    (("ct_sparse", "fbp"), "takes no steps", {"sampling.steps": 3}),
    (("mri", "fbp"), "Filtered back projection is for", {}),
    (("mri", "cgls"), r"Set operator\.real=true", {"operator.real": False}),
    (("haze", "cgls"), "does not measure volumes of", {}),
    (("superresolution_z", "cgls"), "in groups of 5", {"operator.factor": 5}),
    (("mri", "cgls"), "counts no photons", {"noise.photons": 1e5}),
    (("ct_sparse", "fbp"), "no simulation 'finer'", {"simulation": "finer"}),
    (("ct_sparse", "fbp"), "no part 'valid'", {"reading.split": "valid"}),
    (("ct_sparse", "fbp"), "has 1 phantoms, so there is no number 1", {"reading.number": 1}),
    (("ct_sparse", "fbp"), "has slices 0 to 3", {"reading.cut": [40, 50]}),
    (("ct_sparse", "fbp"), r"400,000,000 views of 4 slices .* would take .* GB of memory, and .* GB are free",
     {"operator.views": 400_000_000}),
    (("ct_sparse", "fbp"), "so 'solver' cannot be set", {"solver": {"steps": 3}}),
    (("ct_sparse", "fbp"), "with precision 32 or 64", {"precision": 16, "device": "cpu"}),
    (("ct_sparse", "fbp"), "own grid", {"size": 8, "simulation": "exact"}),
    (("mri", "cgls"), "parallel or fan beams alone", {"simulation": "exact"}),
    (("ct_sparse", "sirt"), "relaxation between 0 and 2", {"posterior.relaxation": 3.0}),
])
def test_a_request_that_cannot_be_met(elsewhere, words, sentence, changes):
    assert refused(elsewhere, sentence, {**PHANTOM, **changes}, *words)


@pytest.mark.parametrize("sentence, changes", [
    ("needs a geometry", {"sinogram": "y.npy", "operator": {}}),
    ("describes a sinogram", {**PHANTOM, "geometry": "g.yaml"}),
    ("brings its own operator", {"kspace": "k.npy"}),
    ("has one source, not the input chest_phantom and --kspace", {**PHANTOM, "kspace": "k.npy"}),
    ("has one source, not --sinogram and --kspace", {"sinogram": "y.npy", "geometry": "g.yaml", "kspace": "k.npy"}),
    ("Say what to reconstruct", {}),
    ("g.yaml", {"sinogram": "y.npy", "geometry": "g.yaml", "operator": {}}),
])
def test_sources_that_contradict_each_other(elsewhere, sentence, changes):
    assert refused(elsewhere, sentence, changes)


def scan(path, shape=(6, 8, 5), affine=None, change=lambda header: None, values=None):
    array = np.random.default_rng(0).normal(0, 300, shape).astype(np.float32) if values is None else values
    image = nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 4.0, 1.0]) if affine is None else affine)
    change(image.header)
    nibabel.Nifti1Image(array, None, image.header).to_filename(path)
    return str(path)


def with_hole(shape=(6, 8, 5)):
    values = np.zeros(shape, np.float32)
    values[1, 2, 3] = np.nan
    return values


FILES = {
    "flat.nii": ({"shape": (6, 8)}, {}, "holds a 2D image"),
    "series.nii": ({"shape": (6, 8, 5, 3)}, {}, r"is a series of 3 volumes .* Choose one with --frame 0 to --frame 2"),
    "frames.nii": ({"shape": (6, 8, 5, 3)}, {"frame": 3}, "has frames 0 to 2"),
    "hole.nii": ({"values": with_hole()}, {}, "1 values that are not finite, the first at voxel"),
    "flatness.nii": ({"values": np.full((6, 8, 5), 7, np.float32)}, {}, "holds the value 7 everywhere"),
    "lost.nii": ({"change": lambda h: (h.set_sform(None, 0), h.set_qform(None, 0))}, {}, "has no affine"),
    "singular.nii": ({"change": lambda h: h.__setitem__("srow_y", 0)}, {}, "singular"),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_is_no_volume_is_one_sentence(elsewhere, name):
    about, more, sentence = FILES[name]
    scan(elsewhere / name, **about)
    assert refused(elsewhere, sentence, {"input": name, **more})


def test_text_that_calls_itself_nifti(elsewhere):
    (elsewhere / "a.nii").write_text("no")
    assert refused(elsewhere, "cannot be read as NIfTI", {"input": "a.nii"})
    np.save(elsewhere / "y.npy", np.zeros((3, 3)))
    assert refused(elsewhere, "named with --sinogram or --kspace", {"input": "y.npy"})


DICOM = {
    "mixed": ({}, "mixes 2 series"), "missing": ({"places": [0, 2, 4, 8, 10]}, "1 slice is missing"),
    "tilted": ({"GantryDetectorTilt": "12"}, "gantry .* was tilted by 12.0 degrees"),
    "single": ({"count": 1}, "2D image"),
}


@pytest.mark.parametrize("name", sorted(DICOM))
def test_a_series_that_is_no_volume_is_one_sentence(elsewhere, name):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    from tests.domains.medical.test_dicom import series

    about, sentence = DICOM[name]
    series(elsewhere / "scan", **about)
    if name == "mixed":
        series(elsewhere / "scan" / "other", seed=1, SeriesInstanceUID="1.2.3.4", SeriesNumber=9)
    assert refused(elsewhere, sentence, {"input": "scan"})


GEOMETRY = {"beam": "parallel", "size": [8, 8], "spacing_mm": 1.0, "angles": {"views": 4},
            "detector": {"cells": 12, "spacing_mm": 1.0}}


@pytest.mark.parametrize("array, more, sentence", [
    (np.ones((4, 11)), {}, r"has the shape \(4, 11\), but its geometry describes \(4, 12\)"),
    (np.full((4, 12), -2.0), {"values": "counts", "photons": 1e4}, "48 negative photon counts, down to -2"),
    (np.full((4, 12), np.nan), {}, "48 values that are not finite"),
    (np.ones((4, 12)) * 1j, {}, "Is it k-space"),
    (np.ones((4, 12)), {"cells": 3}, "no key 'cells'"),
])
def test_a_sinogram_that_does_not_fit_is_one_sentence(elsewhere, array, more, sentence):
    np.save(elsewhere / "y.npy", array)
    (elsewhere / "g.yaml").write_text(yaml.safe_dump({**GEOMETRY, **more}))
    assert refused(elsewhere, sentence, {"sinogram": "y.npy", "geometry": "g.yaml", "operator": {}})


@pytest.mark.parametrize("array, sentence", [
    (np.ones((2, 8, 8)), "k-space is complex"), (np.zeros((2, 8, 8), np.complex64), "zero everywhere"),
    (np.ones((8, 8), np.complex64), "which the axes 'slice coil y x' do not describe"),
])
def test_kspace_that_does_not_fit_is_one_sentence(elsewhere, array, sentence):
    np.save(elsewhere / "k.npy", array)
    assert refused(elsewhere, sentence, {"kspace": "k.npy", "operator": {}}, posterior="cgls")


def test_intensities_far_from_the_priors_are_refused_with_numbers_unless_forced(elsewhere):
    prior = str(save_model(elsewhere / "model", size=16, known=(0.0, 0.6)))
    scan(elsewhere / "scaled.nii", values=np.random.default_rng(0).random((16, 16, 4), np.float32))
    asked = {"input": "scaled.nii", "from": prior, "sampling.num": 1, "sampling.steps": 2}
    told = r"98 % of the values of scaled.nii lie between 0\.0\d+ and 0\.9\d+ HU .*--force reconstructs all the same"
    assert refused(elsewhere, told, asked, posterior="dds")
    quick = {"sampling.rivals": False, "sampling.metrics": False, "sampling.report": False}
    made = api.reconstruct(settings({**asked, **quick, "force": True}, posterior="dds"))
    assert any("made to work outside of what it knows" in note for note in made.samples.meta["notes"])


def test_a_prior_of_another_modality_is_refused(elsewhere):
    prior = str(save_model(elsewhere / "model", size=16, modality="MR", known=(0.0, 1.0)))
    assert refused(elsewhere, "is a volume of CT, and the prior was made for MR", {**PHANTOM, "from": prior},
                   posterior="dds")


@pytest.fixture(scope="module")
def white(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("white") / "model", size=16))


ALL_SEEN = {**PHANTOM, "reading.size": [2, 16, 16], "operator.share": 1.0, "sampling.num": 2, "sampling.rivals": False,
            "sampling.metrics": False, "sampling.report": False}
EXACT = ("ddnm", "ddrm", "dds", "diffpir", "flowchef", "flowdps", "pigdm", "pigdm_exact", "mbir", "daps")
ROUGH = ("dps", "pnp_dm", "pnp_flow", "red_diff")
WITHOUT = ("zero_filled", "cgls", "sirt")


@pytest.mark.parametrize("name", [*EXACT, *ROUGH, *WITHOUT])
def test_every_posterior_is_reached_by_the_verb(elsewhere, white, name):
    """Where every pixel is measured without noise, data steps return the truth; tuned solvers in four steps do not,
    and their samples are called unsound."""
    changes = dict(ALL_SEEN) if name in WITHOUT else {**ALL_SEEN, "from": white, "sampling.steps": 4}
    made = api.reconstruct(settings(changes, "inpainting", name))
    found = made.samples.domain.found
    error = float((found.mean - found.scene.truth).abs().max())
    if name in ROUGH:
        assert error > 0.1 and all("does not fit the measurement" in v.reason for v in made.samples.verdicts)
    else:
        assert error < 2e-3 and all(v.valid for v in made.samples.verdicts)
    assert len(made.samples) == (1 if name in WITHOUT else 2)
