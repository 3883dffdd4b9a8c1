"""`scidiff copy FILE.pth OUT`: a released GDSS file becomes a model that `generate` draws from."""

from __future__ import annotations

import csv
import gzip
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from scidiff.cli.app import run
from scidiff.store import checkpoint

pytest.importorskip("rdkit", reason="the molecule domain needs rdkit")
published = runpy.run_path(str(Path(__file__).parents[1] / "store" / "published_gdss.py"))
FEW = ["-n", "10", "--steps", "4", "sampling.metrics=false", "sampling.report=false"]


@pytest.fixture
def file(elsewhere, monkeypatch):
    """gdss_qm9.pth in an empty working directory; the module of its config is gone when it is read."""
    monkeypatch.setitem(sys.modules, "easydict", published["easydict"]())
    torch.save(published["content"]()[0], "gdss_qm9.pth")
    monkeypatch.delitem(sys.modules, "easydict")
    return "gdss_qm9.pth"


def samples(folder):
    with Path(folder, "samples.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def complaint(capsys):
    err = capsys.readouterr().err
    assert "Traceback" not in err and len([line for line in err.splitlines() if line.startswith("Error: ")]) == 1
    return err


def test_a_released_file_becomes_a_model_that_generates(file, capsys):
    assert run(["copy", file, "models/mine"]) == 0
    printed = capsys.readouterr().out
    assert "qm9_gdss" in printed and "scidiff generate --from models/mine" in printed
    stored = checkpoint.load("models/mine")
    assert stored.domain == "molecule" and sum(stored.config["domain"]["options"]["sizes"]) == 120803
    assert "`gdss_qm9.pth`, plain weights" in stored.card and "published training split" in stored.card
    assert run(["generate", "molecule", "--from", "models/mine", "--out", "drawn", *FEW]) == 0
    rows = samples("drawn")
    assert len(rows) == 10 and "corrected" not in rows[0]
    assert run(["generate", "--from", "models/mine", "--out", "fixed", *FEW, "domain.options.correct=true"]) == 0
    rows = samples("fixed")
    assert {row["corrected"] for row in rows} <= {"True", "False"}
    assert all(row["valid"] == "True" or row["reason"] == "no atoms" for row in rows)


def test_an_existing_model_is_replaced_on_demand_only(file, capsys):
    assert run(["copy", file, "mine"]) == 0
    assert run(["copy", file, "mine"]) == 2
    assert "already there. Replace it with --force" in complaint(capsys)
    assert run(["copy", file, "mine", "--force"]) == 0
    Path("other").mkdir()
    Path("other/notes.txt").write_text("keep me")
    for force in ([], ["--force"]):
        assert run(["copy", file, "other", *force]) == 2
        assert "Name a folder that does not exist yet" in complaint(capsys)
    assert Path("other/notes.txt").read_text() == "keep me"


def test_sizes_from_data(file, capsys):
    Path("some.smi").write_text("CCO\nCC=O\nC\n")
    assert run(["copy", file, "mine", "data.path=some.smi"]) == 0
    options = yaml.safe_load(Path("mine/config.yaml").read_text())["domain"]["options"]
    assert options["sizes"] == [0, 1, 0, 2, 0, 0, 0, 0, 0, 0] and options["tokens"] == ["C", "N", "O", "F"]
    assert "3 objects read from data.path" in Path("mine/card.md").read_text()


def test_sizes_from_the_folder_of_the_data_set(file, data):
    folder = Path("set")
    folder.mkdir()
    with gzip.open(data / "graph" / "qm9_smiles.csv.gz", "rt") as whole, gzip.open(
            folder / "qm9_smiles.csv.gz", "wt") as part:
        part.writelines(next(whole) for _ in range(40))
    assert run(["copy", file, "mine", f"data.root={folder}"]) == 0
    sizes = yaml.safe_load(Path("mine/config.yaml").read_text())["domain"]["options"]["sizes"]
    assert 0 < sum(sizes) < 40 and len(sizes) == 10


@pytest.mark.parametrize("words, sentence", [
    (["nowhere.pth", "mine"], "There is no file or folder 'nowhere.pth'. Did you mean"),
    (["gdss_qm9.pth", "mine", "data.pth=x"], "has no setting 'data.pth'. Did you mean 'data.path'"),
    (["gdss_qm9.pth", "mine", "seed=3"], "has no setting 'seed'. It takes data.root or data.path"),
    (["gdss_qm9.pth", "mine", "data.path=a", "data.root=b"], "come from one place"),
    (["gdss_qm9.pth", "mine", "data.path=none.smi"], "none.smi does not exist"),
    (["gdss_qm9.pth", "gdss_qm9.pth"], "cannot be a folder"),
    (["trainer/cpu", ".", "data.path=x"], "'copy' of a config has no setting 'data.path=x'"),
    (["broken.pth", "mine"], "broken.pth is damaged, or holds no weights"),
    (["other.pth", "mine"], "other.pth holds no GDSS model"),
    (["hostile.pth", "mine"], "asks for 'posix.system', which is neither a tensor nor a plain container"),
])
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(file, words, sentence, capsys):
    class Shell:
        def __reduce__(self):
            return os.system, ("touch it-ran",)

    whole = Path(file).read_bytes()
    Path("broken.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"a": torch.ones(2)}, "other.pth")
    torch.save({"model_config": Shell()}, "hostile.pth")
    assert run(["copy", *words]) in (1, 2)
    assert sentence in complaint(capsys)
    assert not Path("mine").exists() and not Path("it-ran").exists() and not list(Path().glob(".tmp-*"))
