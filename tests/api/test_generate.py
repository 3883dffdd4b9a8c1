"""`scidiff generate` with the shipped model: what a run folder holds, and what a sample depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scidiff.cli.app import run
from scidiff.core.errors import ScidiffError, UsageError

FILES = {"README.txt", "command.txt", "config.yaml", "environment.json", "references.bib", "chunks.json", "samples.csv",
         "samples.sdf", "smiles.smi", "molecules.png", "metrics.json", "report.html", "finished"}


def smiles(rows):
    return [row["smiles"] for row in rows]


def test_a_run_folder_is_complete_and_says_what_is_in_it(full):
    assert {file.name for file in full.iterdir()} == FILES
    told = (full / "README.txt").read_text()
    assert "(complete)" in told and all(f"\n{name} " in told for name in FILES)
    assert "results in the format of this suffix" not in told, "every file is explained"
    assert (full / "command.txt").read_text().startswith("scidiff generate molecule -n 12 --steps 6 --batch 5 --out ")
    about = json.loads((full / "environment.json").read_text())
    assert about["seed"] == 0 and about["device"] == "cpu" and {"scidiff", "torch", "rdkit"} <= set(about["versions"])
    assert "@" in (full / "references.bib").read_text()
    assert (full / "molecules.png").read_bytes().startswith(b"\x89PNG")
    report = (full / "report.html").read_text()
    assert "<html" in report and "s0000" in report and "default-src 'none'" in report, "opens offline"


def test_the_stored_settings_are_those_that_ran(full):
    settings = yaml.safe_load((full / "config.yaml").read_text())
    assert settings["solver"]["steps"] == settings["sampling"]["steps"] == 6
    assert settings["solver"]["_target_"] and settings["model"]["experiment"] == "qm9_flow"
    chunks = json.loads((full / "chunks.json").read_text())
    assert sorted(i for chunk in chunks for i in chunk) == list(range(12)) and max(map(len, chunks)) == 5


def test_one_id_everywhere(full, table):
    from rdkit import Chem

    rows = table(full)
    assert [row["id"] for row in rows] == [f"s{i:04d}" for i in range(12)]
    good = {row["id"]: row["smiles"] for row in rows if row["valid"] == "True"}
    assert all(row["reason"] for row in rows if row["valid"] == "False"), "what is not valid says why"
    named = [line.split("\t") for line in (full / "smiles.smi").read_text().splitlines()]
    assert {name: text for text, name in named} == good
    drawn = {mol.GetProp("_Name"): mol for mol in Chem.SDMolSupplier(str(full / "samples.sdf"))}
    assert list(drawn) == list(good)
    for name, mol in drawn.items():
        assert Chem.MolToSmiles(mol) == Chem.CanonSmiles(good[name])
    heavy = [int(row["heavy_atoms"]) for row in rows]
    assert all(1 <= n <= 9 for n in heavy)


def test_metrics_have_intervals_and_counts(full):
    metrics = {m["name"]: m for m in json.loads((full / "metrics.json").read_text())["metrics"]}
    assert {"valid", "connected", "unique"} <= set(metrics)
    low, high = metrics["valid"]["interval"]
    assert 0 <= low <= metrics["valid"]["value"] <= high <= 1 and metrics["valid"]["count"] == 12


def test_single_samples_are_drawn_again_with_the_same_bits(full, draw, table, elsewhere):
    whole = table(full)
    draw("one", "sampling.num=12", "sampling.chunk=5", "sampling.only=[s0003]")
    assert table("one") == [whole[3]]
    assert run(["generate", "--resume", str(full), "--only", "s0003,s0011", "--out", "two"]) == 0
    assert table("two") == [whole[3], whole[11]]
    assert table(full) == whole, "the earlier run is left as it was"
    with pytest.raises(UsageError, match=r"no sample 's0012'.*s0000 to s0011"):
        draw("three", "sampling.num=12", "sampling.only=[s0012]")
    assert not Path("three").exists()


def test_samples_depend_on_the_seed_and_not_on_the_batch(full, draw, table, elsewhere):
    draw("again", "sampling.num=12", "sampling.chunk=5")
    assert table("again") == table(full)
    draw("other_batch", "sampling.num=12", "sampling.chunk=12")
    flips = sum(a != b for a, b in zip(smiles(table("other_batch")), smiles(table(full)), strict=True))
    assert flips <= 1  # rounding may flip 0.5 % of discrete samples
    draw("fewer", "sampling.num=7", "sampling.chunk=5")
    flips = sum(a != b for a, b in zip(smiles(table("fewer")), smiles(table(full)), strict=False))
    assert flips <= 1
    draw("other_seed", "sampling.num=12", "seed=1")
    assert smiles(table("other_seed")) != smiles(table(full))


@pytest.mark.parametrize("text, allowed", [("4-6", {4, 5, 6}), ("7", {7})])
def test_the_number_of_atoms_is_respected(text, allowed, elsewhere, table):
    words = ["--num-atoms", text, "--steps", "2", "sampling.metrics=false", "sampling.report=false"]
    assert run(["generate", "molecule", "-n", "6", "--out", "sized", *words]) == 0
    assert {int(row["heavy_atoms"]) for row in table("sized")} <= allowed


@pytest.mark.parametrize("word", ["solver=posterior", "solver=rate", "solver.method.eta=0", "precision=64"])
def test_other_solvers_and_settings_draw_molecules_too(word, draw, elsewhere):
    made = draw("run", "sampling.num=4", word)
    assert len(made.samples) == 4 and made.samples.meta["steps"] == 6
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    group, _, value = word.partition("=")
    if group == "solver":
        assert stored["solver"]["method"]["_target_"].lower().endswith(value)
    elif group.startswith("solver."):
        assert stored["solver"]["method"]["eta"] == 0 and stored["solver"]["steps"] == 6


def test_both_precisions_draw_nearly_the_same(draw, elsewhere):
    from rdkit import Chem

    single, double = (draw(f"p{p}", "sampling.num=8", f"precision={p}").samples for p in (32, 64))
    names = [[Chem.MolToSmiles(mol) for mol in samples] for samples in (single, double)]
    assert sum(a != b for a, b in zip(*names, strict=True)) <= 1


def test_bfloat16_draws_valid_molecules_of_the_same_sizes(draw, elsewhere):
    single, half = (draw(f"p{p}", "sampling.num=16", f"precision={p}").samples for p in (32, "bf16"))
    assert [m.GetNumAtoms() for m in single.objects] == [m.GetNumAtoms() for m in half.objects]
    assert abs(sum(v.valid for v in half.verdicts) - sum(v.valid for v in single.verdicts)) <= 4


def test_the_way_is_kept_where_it_is_asked_for(draw, elsewhere):
    from safetensors.torch import load_file

    draw("run", "sampling.num=4", "sampling.trajectory=true")
    (file,) = Path("run/trajectory").iterdir()
    kept = load_file(file)
    assert kept["atoms"].shape[:2] == (6, 4) and kept["t"].tolist()[-1] == 0.0
    assert all(a > b for a, b in zip(kept["t"].tolist(), kept["t"].tolist()[1:], strict=False))


def test_a_sweep_makes_a_run_for_each_combination(elsewhere, table):
    words = ["generate", "molecule", "-n", "2", "--steps", "2", "-m", "seed=1,2", "sampling.report=false"]
    assert run([*words, "sampling.metrics=false"]) == 0
    made = sorted(elsewhere.glob("runs/generate/sweep_*/*/samples.csv"))
    assert [table(file.parent)[0]["seed"] for file in made] == ["1", "2"]


def test_a_run_is_not_continued_with_other_weights(full, draw, elsewhere, monkeypatch):
    from scidiff import api
    from scidiff.domains.model import Model

    draw("run", "sampling.num=4")
    (elsewhere / "run" / "finished").unlink()
    model = Model.load("qm9")
    model.config["weights_sha256"] = "0" * 64
    monkeypatch.setattr(api, "load", lambda *_: model)
    with pytest.raises(ScidiffError, match="has changed since the run run began"):
        draw("run", "sampling.num=4", "resume=run")


def test_progress_is_told(draw, elsewhere):
    calls = []

    class Progress:
        def __call__(self, label, done, total):
            calls.append((label, done, total))

        def started(self, folder):
            calls.append(("started", folder))

    draw("run", "sampling.num=4", "sampling.chunk=2", progress=Progress())
    assert calls[0] == ("started", Path("run")) and calls[-1] == ("Sampling", 4, 4)
    done = [call[1] for call in calls[1:]]
    assert done == sorted(done) and len(set(done)) == 5


def test_samples_are_ranked_by_what_the_model_holds_against_them(draw, table, tmp_path):
    draw(tmp_path / "ranked", "sampling.num=5", "sampling.rank=true", "seed=1")
    rows = sorted(table(tmp_path / "ranked"), key=lambda row: int(row["rank"]))
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5]
    order = [(row["valid"] != "True", float(row["cost"])) for row in rows]
    assert order == sorted(order) and len({cost for _, cost in order}) == 5
