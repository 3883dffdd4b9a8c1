"""`scidiff reconstruct`: flags to settings, and one sentence for every input that cannot be reconstructed."""

from __future__ import annotations

import re
import sys
import types

import numpy as np
import pytest

from scidiff.cli.app import run
from scidiff.store.run import RunFolder

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

FBP = ["--operator", "ct_sparse", "--posterior", "fbp"]


@pytest.fixture
def calls(monkeypatch):
    """Replaces scidiff.api; collects the settings of every reconstruction."""
    import scidiff

    seen = []
    stand_in = types.ModuleType("scidiff.api")

    def reconstruct(settings, progress=None):
        seen.append(settings)
        return types.SimpleNamespace(folder=settings.get("out") or "runs/x", summary={})

    stand_in.reconstruct = reconstruct
    monkeypatch.setitem(sys.modules, "scidiff.api", stand_in)
    monkeypatch.setattr(scidiff, "api", stand_in, raising=False)
    return seen


def scan(path, shape=(6, 8, 5), affine=None, change=lambda header: None, values=None):
    array = np.random.default_rng(0).normal(0, 300, shape).astype(np.float32) if values is None else values
    image = nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 4.0, 1.0]) if affine is None else affine)
    change(image.header)
    nibabel.Nifti1Image(array, None, image.header).to_filename(path)
    return str(path)


def test_every_flag_sets_what_its_help_names(calls, elsewhere):
    file = scan(elsewhere / "a.nii.gz")
    words = ("--operator ct_sparse --views 12 --posterior mbir --samples 3 --frame 1 --size 64 --force --from mine "
             "--steps 40 --seed 3 --out here --device cpu --batch 5 --condition flair=1")
    assert run(["reconstruct", file, *words.split(), "volume.kind=none", "noise.photons=1e5"]) == 0
    (s,) = calls
    assert (s["input"], s["from"], s["seed"], s["out"], s["frame"], s["size"], s["force"]) == (
        file, "mine", 3, "here", 1, 64, True)
    assert s["operator"]["views"] == 12 and s["posterior"]["_target_"].endswith("MBIR")
    assert s["sampling"] == {**s["sampling"], "num": 3, "steps": 40, "chunk": 5}
    assert s["condition"] == {"flair": 1} and s["device"]["device"] == "cpu" and s["domain"]["name"] == "medical"
    assert s["volume"]["kind"] == "none" and s["noise"]["photons"] == 1e5


def test_the_acceleration_of_a_magnet_and_files_of_measurements(calls, elsewhere):
    file = scan(elsewhere / "a.nii.gz")
    assert run(["reconstruct", file, "--operator", "mri", "--acceleration", "4"]) == 0
    assert run(["reconstruct", "--sinogram", "y.npy", "--geometry", "g.yaml", "--posterior", "fbp"]) == 0
    assert run(["reconstruct", "--kspace", "k.npy"]) == 0
    first, second, third = calls
    assert first["operator"]["acceleration"] == 4 and first["posterior"]["_target_"].endswith("DDS")
    assert (second["sinogram"], second["geometry"], second["input"]) == ("y.npy", "g.yaml", None)
    assert third["kspace"] == "k.npy" and "_target_" not in third["operator"]


def test_a_data_set_is_an_input_too(calls, elsewhere):
    assert run(["reconstruct", "chest_phantom", *FBP]) == 0
    assert calls[0]["input"] == "chest_phantom"


def test_a_run_is_continued_with_its_own_settings(calls, elsewhere, capsys):
    assert run(["reconstruct", "chest_phantom", *FBP, "--seed", "4"]) == 0
    folder = RunFolder.create("reconstruct", "fbp", 4, calls[0], out="begun")
    assert run(["reconstruct", "--resume", "begun"]) == 0
    kept = calls[1]
    assert (kept["resume"], kept["out"], kept["seed"]) == ("begun", "begun", 4)
    assert kept["operator"] == calls[0]["operator"] and kept["input"] == "chest_phantom"
    assert run(["reconstruct", "--resume", "begun", "--views", "5"]) == 2
    assert "keeps its own settings; leave out 'operator.views=5'" in capsys.readouterr().err
    folder.finish()
    assert run(["reconstruct", "--resume", "begun"]) == 2
    assert "already finished" in capsys.readouterr().err


@pytest.mark.parametrize("words, sentence", [
    ([], "Say what to reconstruct"),
    (["chest_fantom", *FBP], "no file, folder or data set 'chest_fantom' to reconstruct. Did you mean 'chest_phantom'"),
    (["nowhere.nii.gz", *FBP], "There is no file or folder 'nowhere.nii.gz'"),
    (["a.nii.gz", "b.nii.gz", *FBP], "takes one source"),
    (["chest_phantom", "--kspace", "k.npy"], "takes one source, not chest_phantom and a measurement"),
    (["chest_phantom", *FBP, "--views", "0"], "--views must be above 0"),
    (["chest_phantom", *FBP, "--acceleration", "4"], "operator.acceleration"),
    (["chest_phantom", *FBP, "noise.gauss=0.1"], "no setting 'noise.gauss'"),
    (["chest_phantom", "--posterior", "fbp"], "Say how it was measured"),
])
def test_a_wrong_request_is_one_sentence_and_leaves_no_folder(elsewhere, capsys, words, sentence):
    assert refused(words, elsewhere, capsys, sentence)


def refused(words, folder, capsys, sentence):
    """Whether a command ends with code 2 and one line that holds the sentence, and nothing was written."""
    before = {f.name for f in folder.iterdir()}
    small = ["reading.size=[4,16,16]", "reading.spacing=[8,24,24]"] if "chest_phantom" in words else []
    assert run(["reconstruct", *words, *small, "--out", "out"]) == 2
    said = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("Error")]
    assert len(said) == 1 and re.search(sentence, said[0]), said
    assert {f.name for f in folder.iterdir()} == before
    return True
