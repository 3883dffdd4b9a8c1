"""Bad input to the real commands: one sentence on stderr, exit code 2 (usage) or 1 (failure), nothing half-written."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from scidiff.cli.app import run
from scidiff.store import checkpoint
from scidiff.store.run import RunFolder

pytest.importorskip("rdkit", reason="the molecule domain needs rdkit")

BOOKKEEPING = {"README.txt", "command.txt", "config.yaml", "environment.json", "references.bib", "chunks.json"}
FEW = ["-n", "2", "--steps", "3", "sampling.metrics=false", "sampling.report=false"]


def complaint(capsys) -> str:
    """The one error line; fails where there is a traceback or a second one."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0] and "Traceback" not in err and "--debug" not in err, err
    return lines[0]


@pytest.mark.parametrize("words, sentence", [
    ("generat molecule", "No such command 'generat'. Did you mean 'generate'?"),
    ("generate molecul", "no domain named 'molecul'. Did you mean 'molecule' or 'medical'?"),
    ("generate molecule --from qm8", "There is no model named 'qm8'. Did you mean 'qm9'"),
    ("generate molecule --from ./nowhere", "The checkpoint or run ./nowhere does not exist."),
    ("generate molecule samplin.num=3", "'generate' has no setting 'samplin.num'. Did you mean 'sampling.num'"),
    ("generate molecule sampling.nun=3", "'generate' has no setting 'sampling.nun'. Did you mean 'sampling.num'"),
    ("generate molecule solver=mixtures", "There is no solver named 'mixtures'. Did you mean 'mixture'"),
    ("generate molecule solver.method.etta=1", "no setting 'solver.method.etta'. Did you mean 'solver.method.eta'"),
    ("generate molecule guidance=cgf", "There is no guidance named 'cgf'. Did you mean 'cfg'"),
    ("generate molecule data=qm9", "'generate' takes the data set from the model"),
    ("generate molecule -n x", "Invalid value for '-n' / '--num': not a whole number."),
    ("generate molecule --guide x", "Invalid value for '--guide': not a number."),
    ("generate molecule -n 0", "-n must be above 0, not 0."),
    ("generate molecule -n -3", "-n must be above 0, not -3."),
    ("generate molecule sampling.num=0", "sampling.num must be a whole number above 0, not 0."),
    ("generate molecule sampling.num=ten", "sampling.num must be a whole number above 0, not 'ten'."),
    ("generate molecule --batch 0", "--batch must be above 0, not 0."),
    ("generate molecule --steps 0", "--steps must be above 0, not 0."),
    ("generate molecule --num-atoms 6-4", "The range '6-4' is empty."),
    ("generate molecule --num-atoms many", "The number of atoms 'many' cannot be read. Write one number, 7, or"),
    ("generate molecule --num-atoms 12", "within 1-9"),
    ("generate molecule --num-nodes 12", "within 1-9"),
    ("generate --from grid_flow", "Train them with 'scidiff train grid_flow'"),
    ("generate molecule --condition logp", "The condition 'logp' cannot be read. Write --condition name=value."),
    ("generate molecule --condition logp=1", "The model 'qm9_flow' knows no condition 'logp'. It was trained without"),
    ("generate molecule --guide 2", "'qm9_flow' was trained without conditions, so it cannot be guided."),
    ("generate molecule --only 7", "'7' is not the id of a sample. Ids look like s0007."),
    ("generate molecule -n 4 --only s0004", "There is no sample 's0004' in this run. Its samples are s0000 to s0003."),
    ("generate molecule solver=heun", "A Heun solver moves Gaussian paths"),
    ("generate molecule solver=adaptive", "An adaptive solver needs a velocity"),
    ("generate molecule solver=first_hitting", "First-hitting sampling needs a state of one masked"),
    ("generate molecule precision=16", "precision is 32, 64 or bf16, not 16."),
    ("train qm9_flo", "There is no experiment named 'qm9_flo'. Did you mean 'qm9_flow'"),
    ("train nci5k_flow data=nci5", "There is no data set named 'nci5'. Did you mean 'nci5k'"),
    ("train nci5k_flow data=smiles_file", "The setting 'data.path' has no value. Give one: data.path=..."),
    ("train nci5k_flow data=smiles_file data.path=nowhere.smi", "nowhere.smi does not exist."),
    ("train nci5k_flow data=qm9 data.root=nowhere", "The data folder nowhere does not exist."),
    ("train nci5k_flow trainer=debug trainer.max_steps=0", "trainer.max_steps must be above 0, not 0."),
    ("train nci5k_flow trainer=debug precision=64", "Training runs in float32."),
    ("train nci5k_flow data.limit=40 --condition logx", "computes no property 'logx'. Did you mean 'logp'"),
    ("train nci5k_flow --condition logp=1", "'logp=1' names no property. Write --condition logp"),
    ("train nci5k_flow data.limit=40 solver=heun", "A Heun solver moves Gaussian paths"),
    ("train nci5k_flow data.limit=2", "Training needs at least 4 objects, and nci5k gave 2"),
    ("train domain=crystall", "There is no domain named 'crystall'."),
    ("evaluate nowhere.smi", "There is no file or folder 'nowhere.smi'."),
])
def test_wrong_usage(words, sentence, elsewhere, capsys):
    verb, *rest = words.split()
    assert run([verb, *rest, *(["--out", "out"] if verb != "generat" else [])]) == 2
    assert sentence in complaint(capsys)
    assert not list(elsewhere.iterdir()), "nothing may be left behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible here")
@pytest.mark.parametrize("words, sentence", [
    ("generate molecule device=cuda", "device=cuda, but no CUDA GPU is visible. Use device=cpu or device=auto."),
    ("generate molecule --device cuda", "device=cuda, but no CUDA GPU is visible."),
    ("generate molecule solver.cuda_graph=true", "solver.cuda_graph=true needs a CUDA GPU, and none is visible."),
    ("train nci5k_flow --device cuda", "Training is set to a GPU, but no CUDA GPU is visible."),
    ("train nci5k_flow trainer=gpu", "Training is set to a GPU, but no CUDA GPU is visible."),
])
def test_a_gpu_that_is_not_there(words, sentence, elsewhere, capsys):
    assert run([*words.split(), "--out", "out"]) == 2
    assert sentence in complaint(capsys) and not list(elsewhere.iterdir())


def test_data_and_models_of_another_domain(elsewhere, capsys):
    folder = elsewhere / "conf" / "data"
    folder.mkdir(parents=True)
    (folder / "salt.yaml").write_text("# Cooking salt.\nname: salt\ndomain: crystal\n")
    assert run(["train", "domain=molecule", "data=salt", "--out", "out"]) == 2
    assert "The data set 'salt' belongs to the domain crystal, not to 'molecule'. For molecule:" in complaint(capsys)
    model = spoilt(elsewhere, lambda text: text.replace("name: molecule", "name: protein"))
    assert run(["generate", "molecule", "--from", str(model), "--out", "out"]) == 2
    assert "makes objects of the domain 'protein', not 'molecule'." in complaint(capsys)
    assert run(["generate", "--from", str(model), "--out", "out"]) == 1
    assert "needs the domain 'protein', which is not installed." in complaint(capsys)
    assert not (elsewhere / "out").exists()


def spoilt(place: Path, change) -> Path:
    """A copy of the shipped model with a changed config."""
    folder = place / "model"
    shutil.copytree(checkpoint.find("qm9"), folder)
    (folder / "config.yaml").write_text(change((folder / "config.yaml").read_text()))
    return folder


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])


def flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))


def disguise(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))


def retarget(name):
    def change(folder):
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("scidiff.nn.pairformer.PairFormer", name))
    return change


def rewrite(pattern, new):
    def change(folder):
        text, count = re.subn(pattern, new, (folder / "config.yaml").read_text())
        assert count
        (folder / "config.yaml").write_text(text)
    return change


@pytest.mark.parametrize("spoil, code, sentence", [
    (cut, 1, "model.safetensors is truncated: its end is missing. Fetch or copy the checkpoint again."),
    (flip, 1, "do not match the hash in config.yaml"),
    (disguise, 1, "is a pickle, which could run code when it is opened; scidiff does not load such files."),
    (retarget("os.system"), 1, "The target 'os.system' is not allowed in a config."),
    (retarget("scidiff.nn.pairformer.PairForm"), 1, "has no 'PairForm'. Did you mean 'PairFormer'"),
    (rewrite(r"\bdx: \d+", "dx: 72"), 1, "The weights do not fit the network that the config describes."),
    (rewrite(r"format: 1\b", "format: 99"), 1, "has format 99; this scidiff reads 1. Update scidiff."),
    (lambda folder: (folder / "config.yaml").write_text("a: [1"), 1, "is not valid YAML"),
    (lambda folder: (folder / "config.yaml").unlink(), 1, "has no config.yaml."),
    (lambda folder: (folder / "model.safetensors").unlink(), 2, "holds neither model.safetensors nor"),
])
def test_damaged_checkpoints(spoil, code, sentence, elsewhere, capsys):
    shutil.copytree(checkpoint.find("qm9"), "model")
    spoil(Path("model"))
    assert run(["generate", "molecule", "--from", "model", "--out", "out", *FEW]) == code
    assert sentence in complaint(capsys) and not Path("out").exists()


def test_a_pickle_is_never_opened(elsewhere, capsys):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (elsewhere / "sprung",))

    Path("model.ckpt").write_bytes(pickle.dumps(Trap()))
    assert run(["generate", "--from", "model.ckpt", "--out", "out"]) == 1
    assert "model.ckpt is a pickle" in complaint(capsys)
    assert [entry.name for entry in elsewhere.iterdir()] == ["model.ckpt"]


def test_a_network_that_returns_nan_is_caught_with_step_and_component(elsewhere, capsys):
    stored = checkpoint.load(checkpoint.find("qm9"))
    weights = {name: x * float("nan") for name, x in stored.weights.items()}
    checkpoint.save("model", weights, stored.config, "# Broken")
    assert run(["generate", "--from", "model", "--out", "out", *FEW]) == 1
    assert "not finite for component 'atoms' at step 1 of 3 (t = 1)." in complaint(capsys)
    assert {entry.name for entry in Path("out").iterdir()} == BOOKKEEPING, "no sample and no report"
    assert not RunFolder(Path("out")).finished


@pytest.mark.parametrize("words", ["generate molecule", "train nci5k_flow", "evaluate my.smi"])
def test_results_that_cannot_be_written(words, elsewhere, capsys):
    Path("my.smi").write_text("CCO\n")
    assert run([*words.split(), "--out", "my.smi/here"]) == 2
    assert f"my.smi/here cannot be a folder: {elsewhere / 'my.smi'} is a file. Name another one" in complaint(capsys)
    Path("full").mkdir()
    Path("full/old").write_text("kept")
    assert run([*words.split(), "--out", "full", *(["data.limit=40"] if "train" in words else [])]) == 2
    assert "The folder full is not empty. Name a new one, or continue a run with --resume." in complaint(capsys)
    assert sorted(p.name for p in elsewhere.rglob("*")) == ["full", "my.smi", "old"]


def test_a_data_set_without_enough_molecules(elsewhere, capsys):
    Path("mine.smi").write_text("CCO\nxx\nC(C)(C)(C)(C)C\n")
    words = ["data=smiles_file", "data.path=mine.smi", "data.split=null"]
    assert run(["train", "nci5k_flow", *words, "--out", "out"]) == 2
    assert "Training needs at least 4 objects, and mine.smi gave" in complaint(capsys) and not Path("out").exists()


@pytest.mark.parametrize("words", ["generate molecule -n 3 --seed 4", "train nci5k_flow trainer=debug",
                                   "evaluate my.smi --reference qm9"])
def test_a_dry_run_prints_the_settings_and_writes_nothing(words, elsewhere, capsys):
    Path("my.smi").write_text("CCO\n")
    assert run([*words.split(), "--dry-run", "--out", "out"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["out"] == "out" and not printed.err
    assert [entry.name for entry in elsewhere.iterdir()] == ["my.smi"]


BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Blocker())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {names!r} else real(name, package)
from scidiff.cli.app import main
main()
"""


@pytest.mark.parametrize("names, words, sentence", [
    (["rdkit"], "generate molecule --out out",
     "needs rdkit, which is not installed. Install it with: pip install rdkit"),
    (["huggingface_hub"], "generate --from some/model --out out", 'Install it with: pip install "scidiff[hub]"'),
    (["submitit", "hydra_plugins"], "train -m nci5k_flow seed=1,2 hydra/launcher=slurm",
     'Install it with: pip install "scidiff[slurm]"'),
])
def test_a_missing_library_names_the_line_that_installs_it(names, words, sentence, elsewhere, root):
    done = subprocess.run([sys.executable, "-c", BLOCKED.format(names=names), *words.split()], capture_output=True,
                          text=True, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: ") and sentence in done.stderr and done.stderr.count("\n") == 1
    assert not list(elsewhere.iterdir())
