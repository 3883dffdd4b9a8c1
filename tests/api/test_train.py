"""`scidiff train`: the checkpoint draws, a cache trains alone, and a model can be conditioned on a property."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from scidiff.cli.app import run

QUIET = ["sampling.metrics=false", "sampling.report=false"]
MOLECULES = ["CCO", "CCN", "CCC", "CCCl", "c1ccccc1", "CC(=O)O", "CCOC", "CNC", "OCCO", "CCS", "FCF", "C1CC1", "CC#N",
             "CC=O", "C=CC", "CCBr", "notamolecule"]


def test_a_training_run_holds_a_model_with_its_card(conditioned):
    assert {"checkpoint", "config.yaml", "command.txt", "finished", "log", "last.ckpt", "references.bib"} <= {
        file.name for file in conditioned.iterdir()}
    assert not (conditioned / "cache").exists(), "the encoded data are no result"
    made = yaml.safe_load((conditioned / "checkpoint" / "config.yaml").read_text())
    assert made["statistics"]["conditions"]["logp"]["std"] > 0 and made["backbone"]["conditions"] == {"logp": 1}
    assert made["experiment"] == "nci5k_flow" and made["objective"]["drop_condition"] > 0
    card = (conditioned / "checkpoint" / "card.md").read_text()
    assert "Command: `scidiff train nci5k_flow --condition logp" in card and "Trained 4 steps" in card


def test_the_model_draws_with_and_without_its_condition(conditioned, elsewhere, table):
    base = ["generate", "--from", str(conditioned), "-n", "4", "--steps", "3", *QUIET]
    assert run([*base, "--out", "free"]) == 0
    assert run([*base, "--condition", "logp=1.0", "--out", "plain"]) == 0
    assert run([*base, "--condition", "logp=1.0", "--guide", "2", "--out", "guided"]) == 0
    assert yaml.safe_load(Path("guided/config.yaml").read_text())["guidance"]["weight"] == 2.0
    assert len(table("guided")) == 4
    assert run(["evaluate", "guided", "sampling.report=false"]) == 0


def test_a_condition_changes_the_prediction_and_is_standardised(conditioned):
    import scidiff

    model = scidiff.load(conditioned)
    about = model.conditions["logp"]
    ids = torch.arange(3)
    value, present = model.template(ids, 0, {"logp": about["mean"] + 2 * about["std"]}).cond["logp"]
    assert value.tolist() == pytest.approx([2.0] * 3) and present.all()
    _, present = model.template(ids, 0).cond["logp"]
    assert not present.any()
    ctx = [model.template(ids, 0, wanted) for wanted in ({"logp": 9.0}, {"logp": -9.0}, None)]
    drawing = model.drawing(steps=1)
    preds = [drawing.sampler.run(c, 0).predictions["atoms"].value for c in ctx]
    assert not preds[0].equal(preds[1]) and not preds[0].equal(preds[2])


def test_guidance_at_weight_one_is_the_conditional_model(conditioned):
    from rdkit.Chem import MolToSmiles

    import scidiff

    model = scidiff.load(conditioned)
    cfg = {"_target_": "scidiff.core.guidance.classifier_free.ClassifierFree"}
    plain = model.sample(6, seed=0, steps=4, condition={"logp": 2.0})
    guided = model.sample(6, seed=0, steps=4, condition={"logp": 2.0}, guidance={**cfg, "weight": 1.0})
    assert [MolToSmiles(m) for m in plain] == [MolToSmiles(m) for m in guided]


@pytest.mark.parametrize("words, sentence", [
    (["--guide", "2"], "needs something to guide to. Add --condition NAME=VALUE; this model knows logp."),
    (["--condition", "logq=1"], "knows no condition 'logq'. Did you mean 'logp'?"),
    (["--condition", "logp=high"], "condition logp must be a number, not 'high'. In the training data it was"),
    (["--condition", "logp=.nan"], "condition logp must be a number, not nan."),
])
def test_impossible_conditions(conditioned, elsewhere, words, sentence, capsys):
    assert run(["generate", "--from", str(conditioned), "-n", "2", "--out", "out", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


def test_a_training_run_is_not_taken_for_samples(conditioned, elsewhere, capsys):
    assert run(["evaluate", str(conditioned)]) == 2
    assert "is a training run; it holds no samples yet. Draw some: scidiff generate --from" in capsys.readouterr().err


def test_ones_own_molecules(elsewhere, brief, table, capsys):
    Path("mine.smi").write_text("\n".join(MOLECULES) + "\n")
    words = [word for word in brief if not word.startswith("data.limit")]
    assert run(["train", "nci5k_flow", "data=smiles_file", "data.path=mine.smi", "--out", "run", *words]) == 0
    assert "Next:    scidiff generate molecule --from run" in capsys.readouterr().out
    made = yaml.safe_load(Path("run/checkpoint/config.yaml").read_text())
    assert (made["experiment"], made["alias"], made["summary"]) == ("mine", None, "Trained on mine.smi")
    assert made["data"]["rejected"] == 1
    assert run(["generate", "--from", "run", "-n", "3", "--steps", "2", "--out", "drawn", *QUIET]) == 0
    assert len(table("drawn")) == 3
    assert yaml.safe_load(Path("drawn/config.yaml").read_text())["from"] == str(elsewhere / "run")
    assert run(["train", "--resume", "run"]) == 2
    assert "already finished" in capsys.readouterr().err


def test_a_prepared_cache_trains_without_configs(elsewhere, brief, capsys):
    from scidiff.training.__main__ import main

    assert run(["train", "nci5k_flow", *brief, "prepare=cache"]) == 0
    assert "Next:    python -m scidiff.training cache" in capsys.readouterr().out
    assert sorted(file.name for file in Path("cache").iterdir()) == [
        "config.yaml", "train.safetensors", "valid.safetensors"]
    assert main(["cache", "--out", "alone", "trainer.max_steps=3"]) == 0
    assert run(["generate", "--from", "alone", "-n", "2", "--steps", "2", "--out", "drawn", *QUIET]) == 0
    assert "prepare=cache && python -m scidiff.training cache" in Path("alone/checkpoint/card.md").read_text()
    assert main(["cache", "--out", "alone", "trainer.max_stepz=3"]) == 2
    assert main(["nowhere"]) == 1
    assert "not a tensor cache" in capsys.readouterr().err


def test_the_same_training_twice_gives_the_same_weights(conditioned, elsewhere, brief):
    assert run(["train", "nci5k_flow", "condition.logp=true", "condition.qed=false", "--out", "run", *brief]) == 0
    name = "checkpoint/model.safetensors"
    assert Path("run", name).read_bytes() == (conditioned / name).read_bytes()


@pytest.mark.slow
def test_guidance_moves_the_property(tmp_path, monkeypatch):
    """Alkanes have a high logP and polyols a low one: a small model told which to make makes them."""
    from rdkit.Chem import Crippen

    import scidiff

    monkeypatch.chdir(tmp_path)
    alkanes = ["C" * n for n in range(5, 9)] + ["C" * n + "(C)" + "C" * 3 for n in range(2, 6)]
    polyols = ["O" + "C" * n + "O" for n in range(3, 7)] + ["OC" + "C(O)" * n + "CO" for n in range(1, 5)]
    Path("two.smi").write_text("\n".join((alkanes + polyols) * 20) + "\n")
    words = ["trainer=debug", "trainer.max_steps=400", "trainer.check_every=400", "trainer.preview.num=0",
             "trainer.batch=64", "trainer.lr=3e-3", "backbone.dx=48", "backbone.de=16", "backbone.dc=32",
             "backbone.depth=2", "data.split=null", "trainer.ema=0.98"]
    assert run(["train", "nci5k_flow", "data=smiles_file", "data.path=two.smi", "--condition", "logp", "--out", "run",
                *words]) == 0
    model = scidiff.load("run")
    cfg = {"_target_": "scidiff.core.guidance.classifier_free.ClassifierFree", "weight": 2.0}
    means = []
    for wanted in (3.0, -1.0):
        valid = model.sample(48, seed=0, steps=25, condition={"logp": wanted}, guidance=cfg).valid
        assert len(valid) > 12
        means.append(sum(Crippen.MolLogP(mol) for mol in valid) / len(valid))
    assert means[0] > means[1] + 1.5, means


@pytest.mark.slow
def test_a_cache_trains_as_a_command_of_its_own(tmp_path, brief, root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "nci5k_flow", *brief, "prepare=cache"]) == 0
    done = subprocess.run([sys.executable, "-m", "scidiff.training", "cache", "--out", "alone"], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "alone/checkpoint" and "100 %" in done.stderr
