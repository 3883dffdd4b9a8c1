"""Molecules to graphs and back: exactness, charges, Kekulé forms, statistics."""

from __future__ import annotations

import random

import pytest
import torch

from scidiff.core.errors import ScidiffError, UsageError

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")

from scidiff.domains.molecule import chemistry  # noqa: E402
from scidiff.domains.molecule.codec import MoleculeCodec, lossless, normal_valence, parse_token, token_name  # noqa: E402
from scidiff.domains.molecule.data import read_table  # noqa: E402

HARD = [
    "C",
    "c1ccccc1",
    "c1cc[nH]c1",
    "C[N+](=O)[O-]",
    "C[n+]1ccccc1",
    "[O-]c1ccccc1",
    "C#[N+][O-]",
    "N#Cc1ccsc1",
    "O=S(=O)(O)c1ccccc1",
    "CP(C)(C)=O",
    "C[S+](C)[O-]",
    "[NH3+]CC(=O)[O-]",
    "c1ccc2[nH]c3ccccc3c2c1",
    "[C-]#[O+]",
    "C1=CC2=CC=CC3=CC=CC1=C23",
    "C[C@H](N)C(=O)O",
    "F/C=C/F",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
]


def _molecules(smiles):
    return [Chem.MolFromSmiles(s) for s in smiles]


def test_round_trip_of_charges_aromatics_and_hypervalence():
    molecules = _molecules(HARD)
    codec = MoleculeCodec.fit(molecules)
    state, sizes = codec.encode(molecules)
    back = codec.decode(state, sizes)
    assert [chemistry.canonical(m) for m in back] == [chemistry.canonical(m) for m in molecules]
    assert all(chemistry.reason(m) == "" for m in back)


def test_state_is_symmetric_with_empty_diagonal_and_padding():
    molecules = _molecules(HARD)
    codec = MoleculeCodec.fit(molecules)
    state, sizes = codec.encode(molecules)
    bonds = state["bonds"]
    assert bonds.dtype == torch.int64 and state["atoms"].dtype == torch.int64
    assert torch.equal(bonds, bonds.transpose(1, 2))
    assert not bonds.diagonal(dim1=1, dim2=2).any()
    outside = torch.arange(codec.n_max)[None, :] >= sizes[:, None]
    assert not state["atoms"][outside].any() and not bonds[outside].any()


def test_aromatic_rings_alternate():
    codec = MoleculeCodec(["C"], 6)
    state, _ = codec.encode(_molecules(["c1ccccc1"]))
    assert state["bonds"][0].sum(1).tolist() == [3] * 6
    assert sorted(state["bonds"][0][state["bonds"][0] > 0].tolist()) == [1] * 6 + [2] * 6


def test_statistics_count_unordered_pairs_of_real_atoms():
    codec = MoleculeCodec(["C", "O"], 4)
    state, sizes = codec.encode(_molecules(["CCO", "C=O", "C"]))
    found = codec.statistics(state, sizes)
    assert found.sizes == (0, 1, 1, 1, 0)
    assert found.atoms == pytest.approx((4 / 6, 2 / 6))
    assert found.bonds == pytest.approx((1 / 4, 2 / 4, 1 / 4, 0.0))  # pairs: 3 of CCO (one unbonded), 1 of C=O


def test_tokens_are_ranked_and_spelled():
    codec = MoleculeCodec.fit(_molecules(["CCO", "C[N+](C)(C)C", "CC(=O)[O-]"]))
    assert codec.tokens == ("C", "O", "N+", "O-")
    assert codec.valence == [4, 2, 4, 1] and codec.charge == [0, 0, 1, -1]
    for element, charge in (("C", 0), ("N", 1), ("O", -1), ("Cl", 0), ("S", 2), ("Fe", -3)):
        assert parse_token(token_name(element, charge)) == (element, charge)
    with pytest.raises(UsageError):
        parse_token("n+")


@pytest.mark.parametrize(
    ("token", "bonds"),
    [
        ("C", 4),
        ("N", 3),
        ("N+", 4),
        ("N-", 2),
        ("O", 2),
        ("O-", 1),
        ("O+", 3),
        ("F", 1),
        ("C-", 3),
        ("C+", 3),
        ("S+", 3),
        ("B-", 4),
        ("P+", 4),
    ],
)
def test_normal_valence(token, bonds):
    assert normal_valence(token) == bonds


def test_unknown_atoms_and_sizes_are_named():
    codec = MoleculeCodec(["C"], 3)
    with pytest.raises(ScidiffError, match="Molecule 2 cannot be encoded: the atom type O is not among C"):
        codec.encode(_molecules(["CC", "CO"]))
    with pytest.raises(ScidiffError, match="4 heavy atoms exceed the largest size 3"):
        codec.encode(_molecules(["CCCC"]))


def test_lossless_names_what_would_be_lost():
    assert lossless(Chem.MolFromSmiles("CCO")) == ""
    assert "radical" in lossless(Chem.MolFromSmiles("C[CH2]"))
    assert "isotope" in lossless(Chem.MolFromSmiles("[13CH4]"))
    assert "wildcard" in lossless(Chem.MolFromSmiles("*C"))


def test_nothing_is_repaired():
    codec = MoleculeCodec(["C", "N"], 5)
    bonds = torch.zeros(1, 5, 5, dtype=torch.int64)
    bonds[0, 0, 1:] = bonds[0, 1:, 0] = 1
    [mol] = codec.decode({"atoms": torch.tensor([[1, 0, 0, 0, 0]]), "bonds": bonds}, torch.tensor([5]))
    assert chemistry.reason(mol) == "valence 4 of N1 exceeds 3"
    assert mol.GetNumAtoms() == 5 and mol.GetNumBonds() == 4
    assert all(a.GetFormalCharge() == 0 for a in mol.GetAtoms())


@pytest.mark.slow
@pytest.mark.parametrize(("file", "count"), [("qm9_smiles.csv.gz", 4000), ("zinc250k.csv.gz", 1000)])
def test_round_trip_of_staged_sets(data, file, count):
    records = read_table(data / "graph" / file, "test")
    assert not records.rejected
    chosen = random.Random(7).sample(records.objects, count)
    codec = MoleculeCodec.fit(records.objects)
    back = codec.decode(*codec.encode(chosen))
    assert [chemistry.canonical(m) for m in back] == [chemistry.canonical(m) for m in chosen]


def test_round_trip_of_qm9(data):
    records = read_table(data / "graph" / "qm9_smiles.csv.gz", "test", limit=4000)
    codec = MoleculeCodec.fit(records.objects)
    back = codec.decode(*codec.encode(records.objects))
    assert [chemistry.canonical(m) for m in back] == [chemistry.canonical(m) for m in records.objects]
