"""Every example runs, is short, and says what it shows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
SHIPPED = ROOT / "scidiff" / "pretrained" / "qm9_flow"


def run(name: str, folder: Path, *words: str) -> str:
    """Output of `python examples/<name> fast=true ...`, started in `folder`."""
    done = subprocess.run([sys.executable, ROOT / "examples" / name, "fast=true", *words], cwd=folder, text=True,
                          capture_output=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_examples_are_numbered_without_a_gap():
    assert [file.name[:2] for file in EXAMPLES] == [f"{i:02d}" for i in range(1, len(EXAMPLES) + 1)]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_short_and_says_how_it_is_run(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert f"python examples/{file.name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_01_samples_a_mixture(tmp_path):
    """The second-order solver reaches the spread of the modes, 0.05, to ten percent with 64 calls."""
    shown = run("01_sample_a_mixture.py", tmp_path)
    spread = {m[1]: float(m[2]) for m in re.finditer(r"^(\w+).*?([\d.]+)$", shown, re.M)}
    assert spread["multistep"] == pytest.approx(0.05, rel=0.1)
    assert spread["exact"] == pytest.approx(0.05, rel=0.1)
    assert (tmp_path / "mixture.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_02_trains_on_molecules_of_ones_own(tmp_path):
    pytest.importorskip("rdkit", reason="molecules need rdkit")
    assert "are valid" in run("02_train_on_my_molecules.py", tmp_path)
    assert (tmp_path / "runs/mine/model/checkpoint/model.safetensors").is_file()
    for name in ("samples.csv", "samples.sdf", "smiles.smi", "report.html"):  # none may be valid after twenty steps
        assert (tmp_path / "runs/mine/samples" / name).is_file()


def test_03_measures_the_order_of_a_new_solver(tmp_path):
    found = re.findall(r"Midpoint +order 2, measured ([\d.]+)", run("03_write_a_solver.py", tmp_path))
    assert len(found) == 2
    assert all(float(order) == pytest.approx(2.0, abs=0.2) for order in found)


def test_04_goes_from_load_to_report(tmp_path):
    pytest.importorskip("rdkit", reason="molecules need rdkit")
    if not (SHIPPED / "model.safetensors").is_file():
        pytest.skip("the shipped model qm9_flow is not in this checkout (scidiff/pretrained/qm9_flow)")
    shown = run("04_python_api.py", tmp_path)
    assert (tmp_path / "runs/api/report/report.html").stat().st_size > 0
    seventh = re.search(r"alone: (\S+)", shown)
    rows = (tmp_path / "runs/api/files/samples.csv").read_text(encoding="utf-8").splitlines()
    assert seventh is not None
    assert seventh[1] in rows[8].split(",")


def test_05_forecasts_a_field(tmp_path):
    pytest.importorskip("xarray", reason="fields need xarray")
    if not (SHIPPED.parent / "ks_refiner" / "model.safetensors").is_file():
        pytest.skip("the shipped model ks_refiner is not in this checkout (scidiff/pretrained/ks_refiner)")
    shown = run("05_roll_out_a_field.py", tmp_path)
    rows = [[float(x) for x in m] for m in re.findall(r"^ *([\d.]+) +([\d.]+) +([\d.]+)$", shown, re.M)]
    assert rows[0][1:] == [0.0, 0.0]  # all members start from the truth
    assert rows[-1][1] > rows[1][1] > 0.0
    assert rows[-1][2] > rows[1][2] > 0.0
    assert (tmp_path / "runs/field/rollout.nc").is_file()


@pytest.mark.slow
def test_06_reads_a_property_and_spots_what_is_not_real(tmp_path):
    pytest.importorskip("torch_geometric", reason="scoring graphs needs torch_geometric")
    shown = run("06_score_graphs.py", tmp_path)
    error, guess = re.search(r"read to \+- ([\d.]+) \(a constant guess: ([\d.]+)\)", shown).groups()
    assert float(error) < 0.8 * float(guess)
    told = {m[1]: float(m[2]) for m in re.finditer(r"^(\w+ \w+) .*\+- [\d.]+ +([\d.]+) ", shown, re.M)}
    assert told["random graphs"] > 0.8
    assert abs(told["small worlds"] - 0.5) < 0.2
