"""`scidiff.load(...)`: molecules without any file."""

from __future__ import annotations

import pytest

import scidiff
from scidiff.core.errors import MissingLibrary, UsageError


@pytest.fixture(scope="module")
def model():
    return scidiff.load("qm9", device="cpu")


@pytest.fixture(scope="module")
def drawn(model):
    return model.sample(16, seed=0, steps=6)


def test_samples_are_native_molecules(drawn):
    from rdkit.Chem import Mol

    assert len(drawn) == 16 and all(isinstance(mol, Mol) for mol in drawn)
    assert isinstance(drawn[0], Mol) and drawn.ids[0] == "s0000" and len(drawn.verdicts) == 16
    assert drawn.valid == [mol for mol, verdict in zip(drawn, drawn.verdicts, strict=True) if verdict.valid]


def test_samples_show_themselves_in_a_notebook(drawn):
    assert drawn._repr_html_().count("<svg") >= 1


def test_samples_can_be_saved(drawn, tmp_path):
    files = drawn.save(tmp_path / "new" / "folder")
    assert {file.name for file in files} >= {"samples.csv", "samples.sdf", "smiles.smi"}
    assert all(file.is_file() for file in files)
    assert len((tmp_path / "new" / "folder" / "samples.csv").read_text().splitlines()) == 17


def test_a_sample_depends_on_seed_and_number_alone(model, drawn):
    from rdkit.Chem import MolToSmiles

    names = [MolToSmiles(mol) for mol in drawn]
    later = model.sample(4, seed=0, steps=6, start=5)
    assert later.ids == ["s0005", "s0006", "s0007", "s0008"]
    assert sum(MolToSmiles(mol) != name for mol, name in zip(later, names[5:9], strict=True)) <= 1
    assert [MolToSmiles(mol) for mol in model.sample(16, seed=1, steps=6)] != names


def test_sizes_and_progress(model):
    calls = []
    made = model.sample(4, seed=0, steps=2, sizes=[5, 6], progress=lambda *call: calls.append(call))
    assert {mol.GetNumAtoms() for mol in made} <= {5, 6}
    assert calls[-1] == ("Sampling", 4, 4)


def test_double_precision_leaves_the_model_usable_in_single(model, drawn):
    from rdkit.Chem import MolToSmiles

    model.sample(2, seed=0, steps=2, precision=64)
    again = model.sample(16, seed=0, steps=6)
    assert [MolToSmiles(mol) for mol in again] == [MolToSmiles(mol) for mol in drawn]


@pytest.mark.parametrize("settings, sentence", [
    ({"num": 0}, "must be positive, not 0"),
    ({"num": -3}, "must be positive, not -3"),
    ({"num": 2, "condition": {"logp": 1.0}}, "knows no condition 'logp'.*trained without"),
    ({"num": 2, "guidance": {"_target_": "x"}}, "trained without conditions, so it cannot be guided"),
    ({"num": 2, "sizes": [4, 40]}, "within 1-9"),
    ({"num": 2, "size": 4}, "without an option 'size'.*'sizes'"),
    ({"num": 2, "steps": 0}, "at least one step"),
    ({"num": 2, "solver": {"stepz": 3}}, "no setting 'stepz'.*'steps'"),
    ({"num": 2, "device": "gpu"}, "no device 'gpu'"),
    ({"num": 2, "precision": 16}, "precision is 32, 64 or bf16"),
])
def test_impossible_requests_are_one_sentence(model, settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        model.sample(seed=0, **settings)


def test_a_missing_library_names_the_line_that_installs_it(monkeypatch):
    from scidiff.domains import base

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match=r"which is not installed\. Install it with: pip install rdkit$"):
        scidiff.load("qm9")
