"""`scidiff evaluate` on anybody's molecules, offline, and the publication of results."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import yaml

from scidiff.cli.app import run

GOOD = ["CCO", "CCN", "c1ccccc1", "CC(=O)O", "C1CC1", "CC#N"]
BAD = ["xx", "C1CC", "C(", "Q"]
FIVE = "CC(C)(C)(C)C"
"""Parses, but its carbon has five bonds: an invalid molecule, not an unreadable entry."""


def figures(folder):
    content = json.loads((Path(folder) / "metrics.json").read_text())
    return {m["name"]: m for m in content["metrics"]}, content["rejected"]


def write(kind):
    from rdkit import Chem

    if kind == "smi":
        Path("mine.smi").write_text("".join(f"{text} name{i}\n" for i, text in enumerate(GOOD)))
    elif kind == "smi.gz":
        with gzip.open("mine.smi.gz", "wt") as file:
            file.write("\n".join(GOOD))
    elif kind == "csv":
        Path("mine.csv").write_text("id,smiles\n" + "".join(f"{i},{text}\n" for i, text in enumerate(GOOD)))
    elif kind == "sdf":
        with Chem.SDWriter("mine.sdf") as file:
            for text in GOOD:
                file.write(Chem.MolFromSmiles(text))
    return f"mine.{kind}"


@pytest.mark.parametrize("kind", ["smi", "smi.gz", "csv", "sdf"])
def test_files_of_every_format_give_the_same_figures(kind, elsewhere, capsys):
    assert run(["evaluate", write(kind), "--reference", "qm9", "--out", "out"]) == 0
    found, rejected = figures("out")
    assert found["valid"]["value"] == 1.0 and found["valid"]["count"] == 6 and rejected["count"] == 0
    assert found["novel"]["value"] is not None and found["unique"]["value"] == 1.0
    assert "report" in capsys.readouterr().out and Path("out/report.html").is_file()


def test_entries_that_cannot_be_read_are_counted_and_listed(elsewhere, capfd):
    Path("mixed.smi").write_text("\n".join([*GOOD[:3], BAD[0], *GOOD[3:], *BAD[1:], FIVE]) + "\n")
    assert run(["evaluate", "mixed.smi", "--reference", "qm9", "--out", "out"]) == 0
    printed = capfd.readouterr()
    assert "4 (the first, mixed.smi:4: " in printed.out
    assert "Traceback" not in printed.err and "Warning" not in printed.err and "SMILES Parse Error" not in printed.err
    found, rejected = figures("out")
    assert rejected["count"] == 4 and [entry["text"] for entry in rejected["first"]] == BAD
    assert [entry["where"] for entry in rejected["first"]] == [f"mixed.smi:{line}" for line in (4, 8, 9, 10)]
    assert found["readable"]["value"] == pytest.approx(7 / 11)
    assert found["valid"]["value"] == pytest.approx(6 / 7), "five bonds are invalid, not unreadable"
    assert "mixed.smi:4" in Path("out/report.html").read_text()


def test_a_run_is_measured_in_place_with_its_own_vocabulary(full, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(full, folder)
    before, _ = figures(full)
    (folder / "metrics.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", "copy"]) == 0
    after, _ = figures(folder)
    for name in ("valid", "connected", "unique", "novel"):
        assert after[name]["value"] == before[name]["value"], name
    assert not (tmp_path / "runs").exists()


def test_a_run_can_be_measured_when_its_model_is_gone(full, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(full, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["from"], settings["domain"]["model"] = "/gone/with/the/machine", None
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", "copy"]) == 0
    assert figures(folder)[0]["valid"]["count"] == 12


def test_the_first_so_many(elsewhere):
    assert run(["evaluate", write("smi"), "-n", "2", "--out", "out", "sampling.report=false"]) == 0
    assert figures("out")[0]["valid"]["count"] == 2 and not Path("out/report.html").exists()


def test_publication_goes_into_the_checkout(full, root, tmp_path, spawn):
    """In a copy of the checkout: the page is made from the results alone, and the model's card gets its figures."""
    place = tmp_path / "checkout"
    for name in ("scidiff", "conf", "datasets"):
        shutil.copytree(root / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", place)
    shutil.copytree(full, tmp_path / "run")
    process = spawn("evaluate", tmp_path / "run", "--publish", path=place)
    out, err = process.communicate()
    assert process.returncode == 0, err
    result = json.loads((place / "benchmarks" / "results" / "qm9_flow_6.json").read_text())
    assert result["model"] == "qm9_flow" and result["command"].startswith("scidiff generate molecule -n 12 --steps 6")
    page = (place / "benchmarks" / "RESULTS.md").read_text()
    assert page.startswith("<!-- Made by") and "qm9_flow" in page and "RESULTS.md" in out
    beside = json.loads((place / "scidiff" / "pretrained" / "qm9_flow" / "evaluation.json").read_text())
    assert "6" in beside["evaluations"]


@pytest.mark.parametrize("name, content, sentence", [
    ("empty.smi", "", "empty.smi is empty: it holds no molecule."),
    ("empty.csv", "", "empty.csv is empty: it holds no molecule."),
    ("empty.sdf", "", "empty.sdf is empty: it holds no molecule."),
    ("blank.smi", "\n\n", "it holds no molecule."),
    ("head.csv", "id,smiles\n", "it holds no molecule."),
    ("bad.smi", "xx\nyy\n", "bad.smi holds nothing that can be read (2 rejected, the first: not a SMILES string)."),
    ("other.csv", "a,b\n1,2\n", "no column of SMILES (its columns: a, b)"),
    ("cell.cif", "data_\n", "cell.cif is no molecule file. Readable: .smi"),
])
def test_files_without_a_molecule(name, content, sentence, elsewhere, capsys):
    Path(name).write_text(content)
    assert run(["evaluate", name, "--reference", "qm9", "--out", "out"]) == 2
    assert sentence in capsys.readouterr().err
    assert [entry.name for entry in elsewhere.iterdir()] == [name]
