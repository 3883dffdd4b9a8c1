"""Verdicts with reasons, strings and hashes."""

from __future__ import annotations

import numpy as np
import pytest

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")

from scidiff.domains.molecule import chemistry  # noqa: E402


def _raw(smiles):
    return Chem.MolFromSmiles(smiles, sanitize=False)


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("CCO", ""),
        ("C[N+](=O)[O-]", ""),
        ("c1ccccc1", ""),
        ("C.C", ""),
        ("C[N](C)(C)C", "valence 4 of N2 exceeds 3"),
        ("C(C)(C)(C)(C)C", "valence 5 of C1 exceeds 4"),
        ("C=[O-]", "valence 2 of O2 (charge -1) exceeds 1"),
        ("CN(=O)=O", "valence 5 of N2 exceeds 3"),  # sanitisation with clean-up would turn it into a charged pair
        ("c1cccc1", "the aromatic rings have no Kekulé form"),
    ],
)
def test_reasons(smiles, reason):
    assert chemistry.reason(_raw(smiles)) == reason
    assert chemistry.reason(chemistry.finished(_raw(smiles))) == reason


def test_empty_graph_is_invalid():
    assert chemistry.reason(Chem.Mol()) == "no atoms"


def test_finishing_changes_no_graph():
    raw = _raw("CN(=O)=O")
    done = chemistry.finished(raw)
    assert [a.GetFormalCharge() for a in done.GetAtoms()] == [0, 0, 0, 0]
    assert [b.GetBondType() for b in done.GetBonds()] == [b.GetBondType() for b in raw.GetBonds()]


def test_fragments_and_largest_one():
    mol = Chem.MolFromSmiles("CCO.[Na+].C")
    assert chemistry.fragments(mol) == 3
    assert chemistry.canonical(chemistry.largest_fragment(mol)) == "CCO"


def test_canonical_strings_carry_no_stereo_and_ignore_the_order():
    assert chemistry.canonical(Chem.MolFromSmiles("N[C@@H](C)C(=O)O")) == chemistry.canonical(
        Chem.MolFromSmiles("CC(N)C(O)=O")
    )
    assert chemistry.canonical(Chem.MolFromSmiles("F/C=C\\F")) == "FC=CF"


def test_hashes_are_fixed():
    # little-endian words printed by `printf C | b2sum -l 64` and its like
    known = {
        "C": int.from_bytes(bytes.fromhex("659a93f4dc463c0b"), "little"),
        "CCO": int.from_bytes(bytes.fromhex("6d200b6f6c9553c3"), "little"),
    }
    found = chemistry.stable_hash(known)
    assert found.dtype == np.uint64
    assert found.tolist() == list(known.values())


def test_properties_match_their_definitions():
    found = chemistry.properties(Chem.MolFromSmiles("CCO"))
    assert found["MW"] == pytest.approx(46.069, abs=1e-3)
    assert found["heavy atoms"] == 3
    assert found["logP"] == pytest.approx(-0.0014, abs=1e-4)  # Crippen contributions of ethanol
    assert chemistry.formula(Chem.MolFromSmiles("CC(=O)[O-]")) == "C2H3O2-"
