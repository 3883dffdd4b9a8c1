"""Molecules as real element and bond-order matrices: thresholds, the +1 rule, correction, what the coding loses."""

from __future__ import annotations

import math
import random

import pytest
import torch

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.space import Euclidean, Symmetric
from scidiff.domains.base import Request
from scidiff.domains.molecule import MoleculeDomain

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")

from scidiff.domains.molecule import chemistry  # noqa: E402
from scidiff.domains.molecule.data import read_table  # noqa: E402
from scidiff.domains.molecule.quantised import QuantisedCodec  # noqa: E402

NEUTRAL = [
    "C",
    "c1ccccc1",
    "c1cc[nH]c1",
    "N#Cc1ccsc1",
    "O=S(=O)(O)c1ccccc1",
    "CP(C)(C)=O",
    "c1ccc2[nH]c3ccccc3c2c1",
    "C1=CC2=CC=CC3=CC=CC1=C23",
    "FC=CF",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "ClCCBr",
    "CCI",
]
ELEMENTS = ("C", "N", "O", "F", "P", "S", "Cl", "Br", "I")


def _molecules(smiles):
    return [Chem.MolFromSmiles(s) for s in smiles]


def _state(elements, bonds, codec):
    """A state of one molecule from element names and {(i, j): order}."""
    n = len(elements)
    atoms, orders = torch.zeros(1, n, len(codec.tokens)), torch.zeros(1, n, n)
    for i, element in enumerate(elements):
        if element:
            atoms[0, i, codec.tokens.index(element)] = 1.0
    for (i, j), order in bonds.items():
        orders[0, i, j] = orders[0, j, i] = order
    return {"atoms": atoms, "bonds": orders}, torch.tensor([n])


def _decoded(elements, bonds, correct=False):
    codec = QuantisedCodec(ELEMENTS, 40)
    [mol] = codec.decode(*_state(elements, bonds, codec), correct=correct)
    return mol


def test_round_trip_of_neutral_molecules():
    molecules = _molecules(NEUTRAL)
    codec = QuantisedCodec.fit(molecules)
    state, sizes = codec.encode(molecules)
    back = codec.decode(state, sizes)
    assert [chemistry.canonical(m) for m in back] == [chemistry.canonical(m) for m in molecules]
    assert codec.tokens[0] == "C" and codec.n_max == 14
    for mol, again in zip(molecules, back, strict=True):
        assert [a.GetSymbol() for a in again.GetAtoms()] == [a.GetSymbol() for a in mol.GetAtoms()]


def test_state_is_one_hot_and_raw_bond_order():
    codec = QuantisedCodec(("C", "O"), 4)
    state, sizes = codec.encode(_molecules(["C#CO", "C=O"]))
    assert state["atoms"].dtype == state["bonds"].dtype == torch.float32 and sizes.tolist() == [3, 2]
    assert state["atoms"][0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 0]]
    assert state["bonds"][0].tolist() == [[0, 3, 0, 0], [3, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert state["bonds"][1, 0, 1] == 2 and not state["atoms"][1, 2:].any()


def test_thresholds():
    codec = QuantisedCodec(("C", "O", "N"), 6)
    channels = [[0.5, 0.4, 0.51], [0.9, 0.8, 0.7], [0.1, 0.6, 2.0], [-3.0, 0.5, 0.5], [0.6, 0, 0], [9, 0, 0]]
    atoms = torch.tensor([channels])
    edges = torch.zeros(1, 6, 6)
    edges[0, 4, :5] = torch.tensor([0.5, 1.5, 2.5, 3.0, 0.0])
    edges[0, 1, 0], edges[0, 2, 0], edges[0, 2, 1] = 0.4999, 1.4999, 2.4999
    elements, orders = codec.quantised({"atoms": atoms, "bonds": edges}, torch.tensor([5]))
    assert elements.tolist() == [[2, 0, 1, -1, 0, -1]]
    assert orders[0, 4].tolist() == [1, 2, 3, 0, 0, 0]  # an absent atom takes its bonds with it
    assert (orders[0, 1, 0], orders[0, 2, 0], orders[0, 2, 1]) == (0, 1, 2)


def test_an_absent_atom_takes_its_bonds_along_and_the_others_close_up():
    mol = _decoded(["O", "", "C", "C"], {(1, 0): 2, (2, 0): 1, (3, 2): 1, (3, 1): 1})
    assert chemistry.canonical(mol) == "CCO" and mol.GetAtomWithIdx(0).GetSymbol() == "O"


@pytest.mark.parametrize(
    ("elements", "bonds", "smiles", "reason"),
    [
        ("NCCCC", {(i, 0): 1 for i in range(1, 5)}, "C[N+](C)(C)C", ""),
        ("OCCC", {(i, 0): 1 for i in range(1, 4)}, "C[O+](C)C", ""),
        ("NCO", {(1, 0): 2, (2, 0): 2}, "C=[N+]=O", ""),
        ("SCCC", {(i, 0): 1 for i in range(1, 4)}, "C[SH](C)C", ""),  # RDKit lets sulfur have four bonds
        ("CCCCCC", {(i, 0): 1 for i in range(1, 6)}, None, "valence 5 of C1 exceeds 4"),
        ("FCC", {(1, 0): 1, (2, 0): 1}, None, "valence 2 of F1 exceeds 1"),
        # from three straight to five: never over by exactly one
        ("NCCCC", {(1, 0): 1, (2, 0): 1, (3, 0): 1, (4, 0): 2}, None, "valence 5 of N1 exceeds 3"),
        # four with one charge, then five
        ("NCCCCC", {(i, 0): 1 for i in range(1, 6)}, None, "valence 5 of N1 (charge +1) exceeds 4"),
        # the overloaded carbon comes first, so the nitrogen gets no charge
        ("CCCCCCNCCC", {**{(i, 0): 1 for i in range(1, 6)}, (6, 5): 1, (7, 6): 1, (8, 6): 1, (9, 6): 1}, None,
         "valence 5 of C1 exceeds 4"),
    ],
)
def test_the_plus_one_rule(elements, bonds, smiles, reason):
    mol = _decoded(list(elements), bonds)
    assert chemistry.reason(mol) == reason
    assert smiles is None or chemistry.canonical(mol) == smiles
    if elements.startswith("CCCCCCN"):
        assert mol.GetAtomWithIdx(6).GetFormalCharge() == 0


@pytest.mark.parametrize(
    ("elements", "bonds", "smiles"),
    [
        (["C", "C", "C", "C", "C", "C"], {(i, 0): 1 for i in range(1, 6)}, "CC(C)(C)C"),  # the earliest bond goes
        (["C", "O", "C", "C"], {(1, 0): 2, (2, 0): 2, (3, 0): 1}, "C=C(C)O"),  # of two double bonds the earlier one
        (["F", "C", "C"], {(1, 0): 1, (2, 0): 2}, "CF"),  # the double bond is lowered, then the earlier single one
        (["N", "C", "C", "C", "C"], {(1, 0): 1, (2, 0): 1, (3, 0): 1, (4, 0): 2}, "CN(C)C"),  # no charge any more
        (["C", "C", "Br", "Br", "C"], {(1, 0): 1, (4, 1): 1, (3, 2): 1}, "BrBr"),  # four letters against three
        (["C", "C", "C"], {}, "C"),
    ],
)
def test_correction(elements, bonds, smiles):
    mol = _decoded(elements, bonds, correct=True)
    assert chemistry.reason(mol) == "" and chemistry.canonical(mol) == smiles
    assert chemistry.was_corrected(mol) == bool(chemistry.reason(_decoded(elements, bonds)))


def _first_problem(mol):
    found = Chem.DetectChemistryProblems(mol, sanitizeOps=int(Chem.SanitizeFlags.SANITIZE_PROPERTIES))
    return mol.GetAtomWithIdx(found[0].GetAtomIdx()) if found else None


def _by_rdkit(elements, bonds):
    """(raw graph with charges, corrected canonical string), with RDKit asked after every single edit."""
    mol = Chem.RWMol()
    for element in elements:
        mol.AddAtom(Chem.Atom(element))
    kinds = [None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE]
    for (i, j), order in bonds.items():
        mol.AddBond(i, j, kinds[order])
        atom = _first_problem(mol)
        if atom is not None:
            over = sum(b.GetBondTypeAsDouble() for b in atom.GetBonds()) - {"N": 3, "O": 2, "S": 2}.get(
                atom.GetSymbol(), math.inf)
            atom.SetFormalCharge(1 if over == 1 else atom.GetFormalCharge())
    drawn = Chem.Mol(mol)
    while (atom := _first_problem(mol)) is not None:
        highest = max(atom.GetBonds(), key=lambda b: b.GetBondTypeAsDouble())
        i, j, order = highest.GetBeginAtomIdx(), highest.GetEndAtomIdx(), int(highest.GetBondTypeAsDouble())
        mol.RemoveBond(i, j)
        if order > 1:
            mol.AddBond(i, j, kinds[order - 1])
    Chem.SanitizeMol(mol)
    return drawn, max(Chem.MolToSmiles(mol).split("."), key=len)


def test_charges_and_corrections_are_those_of_asking_rdkit_after_every_edit():
    chance = random.Random(3)
    outcomes = set()
    for _ in range(400):
        n = chance.randint(1, 9)
        elements = chance.choices(ELEMENTS, weights=(8, 5, 5, 1, 1, 2, 1, 1, 1), k=n)
        pairs = [(i, j) for i in range(n) for j in range(i) if chance.random() < 0.35]
        bonds = {pair: chance.choice((1, 1, 1, 2, 2, 3)) for pair in pairs}
        drawn, corrected = _by_rdkit(elements, bonds)
        mol = _decoded(elements, bonds)
        assert [a.GetFormalCharge() for a in mol.GetAtoms()] == [a.GetFormalCharge() for a in drawn.GetAtoms()]
        passes = _first_problem(drawn) is None
        assert (chemistry.reason(mol) == "") == passes  # sanitisation asks for nothing more than the valences
        assert chemistry.canonical(_decoded(elements, bonds, correct=True)) == corrected
        outcomes.add((passes, any(a.GetFormalCharge() for a in mol.GetAtoms())))
    assert len(outcomes) == 4


def test_charged_molecules_are_encoded_without_their_charges():
    molecules = _molecules(["C[N+](=O)[O-]", "CC(=O)[O-]", "C[N+](C)(C)C"])
    codec = QuantisedCodec.fit(molecules)
    assert codec.tokens == ("C", "O", "N") and not any(map(codec.supports, molecules))
    back = codec.decode(*codec.encode(molecules))
    assert [chemistry.canonical(m) for m in back] == ["C[N+](=O)O", "CC(=O)O", "C[N+](C)(C)C"]


def test_what_cannot_be_encoded_is_named():
    codec = QuantisedCodec(("C",), 3)
    with pytest.raises(ScidiffError, match="Molecule 2 cannot be encoded: the element O is not among C"):
        codec.encode(_molecules(["CC", "CO"]))
    with pytest.raises(ScidiffError, match="4 heavy atoms exceed the largest size 3"):
        codec.encode(_molecules(["CCCC"]))
    with pytest.raises(UsageError, match=r"'N\+' has one"):
        QuantisedCodec(("C", "N+"), 3)
    with pytest.raises(UsageError, match=r"no molecule codec 'gds'.*Did you mean 'gdss'"):
        MoleculeDomain(codec="gds")


def _domain():
    return MoleculeDomain(("C", "N", "O", "F"), 5, (0, 0, 0, 0, 0, 1), "gdss")


def test_the_domain_stores_its_codec():
    fitted, statistics = MoleculeDomain(codec="gdss").fit(_molecules(["CCO", "C[N+](=O)[O-]"]))
    assert fitted.options() == {"tokens": ["C", "O", "N"], "n_max": 4, "sizes": [0, 0, 0, 1, 1], "codec": "gdss"}
    assert statistics == {"sizes": [0, 0, 0, 1, 1]}
    again = MoleculeDomain(**fitted.options())
    assert again.components() == {"atoms": (Euclidean(), ("N", 3)), "bonds": (Symmetric(), ("N", "N"))}
    assert MoleculeDomain(("C",), 3).options()["codec"] == "charged"
    assert again.backbone_options(None) == {"features": 3, "nodes": "atoms", "edges": "bonds"}
    given, _ = MoleculeDomain(("C", "N", "O", "F"), codec="gdss").fit(_molecules(["CCO"]))
    assert given.tokens == ("C", "N", "O", "F") and given.n_max == 3


def test_the_conformance_kit_accepts_the_codec():
    from scidiff.testing.domain import check_domain

    check_domain(MoleculeDomain(codec="gdss"), configs=False)


def _five_carbons(domain, **options):
    codec = domain.codec
    star, sizes = _state(["C"] * 5, {(i, 0): 1 for i in range(1, 5)}, codec)
    over, _ = _state(["F", "C", "C", "C", "C"], {(1, 0): 1, (2, 0): 1, (3, 2): 1}, codec)
    ctx = domain.template(Request(torch.arange(2), 0, {}, options))
    assert ctx.sizes.tolist() == [5, 5] and int(sizes) == 5
    return domain.decode({name: torch.cat([star[name], over[name]]) for name in star}, ctx)


def test_a_request_for_correction_reaches_decode_and_is_told_in_the_metrics(tmp_path):
    from scidiff.domains.base import Samples

    domain = _domain()
    plain = domain.metrics(drawn := _five_carbons(domain), domain.check(drawn))
    assert plain[0].value == 0.5 and "+1 rule" in plain[0].protocol
    fixed = _five_carbons(domain, correct=True)
    verdicts = domain.check(fixed)
    rows = {row.name: row for row in domain.metrics(fixed, verdicts)}
    assert rows["valid"].value == 1.0 and rows["valid without correction"].value == 0.5
    assert all("after valency correction" in rows[name].protocol for name in ("valid", "connected"))
    assert [row["corrected"] for row in domain.table(fixed, verdicts)] == [False, True]
    assert "corrected" not in domain.table(drawn, domain.check(drawn))[0]
    domain.write(Samples(fixed, ["s0000", "s0001"], 0, verdicts, domain), tmp_path)
    for place in (tmp_path, tmp_path / "samples.csv"):
        assert [chemistry.was_corrected(m) for m in domain.read(place).objects] == [False, True]


def test_impossible_requests_for_correction():
    charged = MoleculeDomain(("C",), 3)
    ids = torch.arange(2)
    with pytest.raises(UsageError, match="codec 'gdss'"):
        charged.template(Request(ids, 0, {}, {"correct": True}))
    with pytest.raises(UsageError, match="true or false, not 'perhaps'"):
        _domain().template(Request(ids, 0, {}, {"correct": "perhaps"}))
    with pytest.raises(UsageError, match="codes molecules as 'charged'"):
        charged.template(Request(ids, 0, {}, {"codec": "gdss"}))
    assert charged.template(Request(ids, 0, {}, {"codec": None, "correct": False})).meta == {}


@pytest.mark.slow
@pytest.mark.parametrize(("file", "share"), [("qm9_smiles.csv.gz", 0.993), ("zinc250k.csv.gz", 0.678)])
def test_share_of_exact_round_trips(data, file, share):
    records = read_table(data / "graph" / file, "test")
    chosen = random.Random(7).sample(records.objects, 6000)
    codec = QuantisedCodec.fit(records.objects)
    back = codec.decode(*codec.encode(chosen))
    exact = sum(chemistry.canonical(a) == chemistry.canonical(b) for a, b in zip(chosen, back, strict=True)) / 6000
    assert exact == pytest.approx(share, abs=3 * math.sqrt(2 * share * (1 - share) / 6000))
    assert not any(map(chemistry.reason, back))
