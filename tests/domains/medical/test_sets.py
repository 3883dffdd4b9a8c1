"""Medical data sets: parts without common subjects, what stays out, and slices to train on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError
from scidiff.domains.medical import dicom, nifti, sets
from scidiff.domains.medical.intensity import CT, magnitude_scale
from scidiff.domains.medical.measurements import KSpace
from scidiff.domains.medical.volume import Volume, at_size, centred_affine
from scidiff.store import cards
from scidiff.store.fetch import provide

NAMES = ("ct_body", "ct_leg", "mr_brain", "mr_example", "chest_phantom", "kspace_brain")
OPTIONS = {name: dict(cards.find(name).layouts[0].options) for name in NAMES}


def subjects_of(name, part):
    return set(OPTIONS[name]["subjects"][part])


def test_cards_name_files_of_theirs_and_subjects_of_one_part():
    for name in NAMES:
        card = cards.find(name)
        assert card.domain == "medical" and card.layouts[0].reader in sets.READERS
        subjects = OPTIONS[name].get("subjects")
        if card.layouts[0].reader == "volumes":
            sets.check_subjects(subjects, name)
            used = [file for group in subjects.values() for files in group.values() for file in files]
            assert sorted(used) == sorted(card.layouts[0].files)
            assert set(OPTIONS[name].get("evaluated", ())) <= set(used)


def test_the_split_of_the_published_figures():
    assert subjects_of("ct_body", "valid") == {"lidc0314"} and subjects_of("ct_body", "test") == {"rider0117"}
    assert subjects_of("mr_brain", "valid") == {"ms12"} and subjects_of("mr_brain", "test") == {"ms19", "ms20"}
    used = {file for part in OPTIONS["mr_brain"]["subjects"].values() for files in part.values() for file in files}
    assert "mr_t1_ms20.nii.gz" not in used and not any("msx" in file for file in used)
    assert OPTIONS["mr_brain"]["subjects"]["test"]["ms20"] == ["mr_flair_ms20.nii.gz"]
    for file, (start, stop) in OPTIONS["ct_body"]["evaluated"].items():
        assert stop - start == 32, file


def test_common_subjects_and_files_are_found():
    with pytest.raises(ScidiffError, match="subject a of x stands in train and in test"):
        sets.check_subjects({"train": {"a": ["1"]}, "test": {"a": ["2"]}}, "x")
    with pytest.raises(ScidiffError, match="file 1 of x stands in a and in b"):
        sets.check_subjects({"train": {"a": ["1"]}, "test": {"b": ["1"]}}, "x")


def test_unknown_readers_parts_and_options():
    for call, words in ((lambda: sets.dataset({}, "volume", {}), "'volumes'"),
                        (lambda: sets.dataset({}, "phantom", {"sise": 3}), "'size'"),
                        (lambda: sets.dataset({}, "phantom", OPTIONS["chest_phantom"], "tests"), "'test'")):
        with pytest.raises(UsageError, match=words):
            call()


def test_phantoms_are_read_like_volumes():
    options = {**OPTIONS["chest_phantom"], "size": [3, 24, 20], "spacing": [40.0, 16.0, 19.0], "finer": 1}
    found = sets.dataset({}, "phantom", options, "train")
    assert found.names == ["chest1", "chest2"]
    assert all(tuple(v.data.shape) == (3, 1, 24, 20) and v.spacing == (40.0, 16.0, 19.0) for v in found.objects)
    assert not torch.equal(found.objects[0].data, found.objects[1].data)
    test = sets.dataset({}, "phantom", options, "test").objects[0]
    again = sets.dataset({}, "phantom", options, None, limit=3)
    assert again.names == ["chest1", "chest2", "chest0"] and torch.equal(again.objects[2].data, test.data)


def test_slices_are_scaled_squares_without_air():
    g = torch.Generator().manual_seed(0)
    hu = -1000 + 1500 * torch.rand(5, 1, 40, 32, generator=g)
    hu[2] = -1000.0
    ct = Volume(hu, centred_affine((5, 40, 32), (2.0, 1.0, 1.0)), "CT", "a")
    head = 30 + 400 * torch.rand(3, 1, 16, 16, generator=g)
    mr = Volume(head, centred_affine((3, 16, 16), (3.0, 2.0, 2.0)), "MR", "b")
    found = sets.slices([ct, mr], size=20)
    assert tuple(found.x.shape) == (7, 1, 20, 20) and found.names == ["a", "b"]
    assert found.volume.tolist() == [0] * 4 + [1] * 3 and found.place.tolist() == [0, 1, 3, 4, 0, 1, 2]
    assert found.spacing[0] == pytest.approx((2.0, 2.0, 2.0)) and found.spacing[1] == pytest.approx((3.0, 2.0, 2.0))
    padded = torch.nn.functional.pad(hu, (4, 4), value=-1000.0)
    pooled = torch.nn.functional.avg_pool2d(padded, 2)
    assert torch.allclose(found.x[:4], CT.encode(pooled[[0, 1, 3, 4]]), atol=1e-5)
    scale = magnitude_scale(at_size(mr, 20).data)
    assert found.scales == [CT, scale]
    assert torch.allclose(found.x[4:, :, 2:18, 2:18] * scale.high, mr.data, rtol=1e-5)
    with pytest.raises(UsageError, match="no volumes"):
        sets.slices([])


def test_absent_libraries_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch):
    for library, reader in (("nibabel", nifti), ("pydicom", dicom)):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingLibrary, match=f"pip install {library}"):
            reader.read(tmp_path)


# -- staged data


@pytest.fixture
def medical(data):
    pytest.importorskip("nibabel", reason="nibabel is not installed")
    if not (data / "medical").is_dir():
        pytest.skip(f"no medical data in {data}")
    return data / "medical"


def test_staged_test_volumes_stand_in_their_pose(medical):
    """Axial slices with rows to the front, however the file lies: air above and below, the table behind the patient."""
    found = provide(cards.find("ct_body"), root=medical)
    rider = sets.dataset(found.files, found.reader, {**found.options, "central": True}, "test")
    assert rider.names == ["rider0117/ct_chest_rider0117"]
    volume = rider.objects[0]
    assert tuple(volume.data.shape) == (32, 1, 256, 256) and volume.orientation == "RAS" and volume.modality == "CT"
    assert volume.spacing == pytest.approx((0.8, 1.289062, 1.289062), rel=1e-4)
    body = (volume.data[:, 0] > -200).double().mean((0, 2))
    rows = torch.arange(256).double()
    bone = (volume.data[:, 0] > 300).double().mean((0, 2))
    assert float((bone * rows).sum() / bone.sum()) < float((body * rows).sum() / body.sum())  # the spine lies behind
    whole = sets.dataset(found.files, found.reader, found.options, "test").objects[0]
    assert torch.equal(whole.data[30:62], volume.data)
    small = sets.slices([volume], 128)
    assert torch.allclose(small.x, CT.encode(torch.nn.functional.avg_pool2d(volume.data, 2)), atol=1e-5)


@pytest.mark.slow
def test_staged_counts_of_slices(medical):
    counts = {("ct_body", "train"): 357, ("ct_body", "valid"): 128, ("ct_leg", "train"): 211,
              ("mr_brain", "train"): 190, ("mr_brain", "valid"): 96, ("mr_brain", "test"): 92}
    for (name, part), count in counts.items():
        found = provide(cards.find(name), root=medical)
        records = sets.dataset(found.files, found.reader, found.options, part)
        assert sum(len(v.data) for v in records.objects) == count, (name, part)
        small = sets.slices(records.objects[:1], 128)
        assert tuple(small.x.shape[1:]) == (1, 128, 128) and bool(torch.isfinite(small.x).all())


def test_other_staged_sets(medical):
    found = provide(cards.find("kspace_brain"), root=medical)
    scan = sets.dataset(found.files, found.reader, found.options).objects[0]
    assert isinstance(scan, KSpace) and scan.y.shape[1] == 8
    packaged = provide(cards.find("mr_example"))
    assert packaged.origin == "package"
    volume = sets.dataset(packaged.files, packaged.reader, packaged.options, "test").objects[0]
    assert tuple(volume.data.shape) == (24, 1, 96, 128) and np.isfinite(volume.affine).all()
