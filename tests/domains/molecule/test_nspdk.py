"""NSPDK features against a plain implementation by hand, and their invariances."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")

from scidiff.domains.molecule.fingerprints import LinearReference, mmd_biased  # noqa: E402
from scidiff.domains.molecule.nspdk import BITS, nspdk_rows  # noqa: E402

SMILES = ["C", "CCO", "c1ccncc1", "CC(C)(C)C#N", "C1CC2CC1O2", "OCC1CC1=O", "C.CO", "N#CC1=CNC=C1F", "CCCCCCCCCC"]


def _molecules(smiles):
    return [Chem.MolFromSmiles(s) for s in smiles]


def _features(mol):
    """Block -> Counter of explicit features (nested tuples instead of hashes), straight from the definition."""
    n = mol.GetNumAtoms()
    distance = Chem.GetDistanceMatrix(mol)
    atom = [(a.GetSymbol(), a.GetDegree()) for a in mol.GetAtoms()]
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), int(b.GetBondTypeAsDouble())) for b in mol.GetBonds()]

    def layer(v, k):
        nodes = sorted(atom[u] for u in range(n) if distance[v, u] == k)
        edges = sorted(label for i, j, label in bonds if min(distance[v, i], distance[v, j]) == k)
        return tuple(nodes), tuple(edges)

    def code(v, r):
        return (*(layer(v, k) for k in range(r)), layer(v, r)[0])

    reach = [max(int(d) for d in distance[v] if d < 100) for v in range(n)]
    blocks = {}
    for v in range(n):
        for u in range(n):
            d = int(min(distance[v, u], 100))
            for r in range(min(reach[v], reach[u], 4) + 1) if d <= 4 else ():
                counts = blocks.setdefault((r, d), Counter())
                counts["pair", *sorted([code(v, r), code(u, r)])] += 1
                counts["half", code(u, r)] += 1
    return blocks


def _kernel(a, b):
    def unit(blocks):
        out = {}
        for block, counts in blocks.items():
            norm = math.sqrt(sum(c * c for c in counts.values()))
            out |= {(block, f): c / norm for f, c in counts.items()}
        norm = math.sqrt(sum(x * x for x in out.values()))
        return {f: x / norm for f, x in out.items()}

    a, b = unit(_features(a)), unit(_features(b))
    return sum(x * b.get(f, 0.0) for f, x in a.items())


def test_kernel_equals_the_definition():
    molecules = _molecules(SMILES)
    exact = np.array([[_kernel(a, b) for b in molecules] for a in molecules])
    wide = nspdk_rows(molecules, bits=40).dense()
    assert wide @ wide.T == pytest.approx(exact, abs=1e-12)
    published = nspdk_rows(molecules).dense()  # a few of some 800 features share a bin
    assert published @ published.T == pytest.approx(exact, abs=0.02)


def test_rows_are_unit_and_sorted():
    rows = nspdk_rows(_molecules(SMILES))
    assert rows.width == 1 << BITS and rows.count == len(SMILES)
    assert np.all(np.diff(rows.row) >= 0)
    assert rows.squared_norms() == pytest.approx(np.ones(len(SMILES)))


def test_relabelling_changes_nothing():
    chance = random.Random(0)
    molecules = _molecules(SMILES)
    shuffled = []
    for mol in molecules:
        order = list(range(mol.GetNumAtoms()))
        chance.shuffle(order)
        shuffled.append(Chem.RenumberAtoms(mol, order))
    a, b = nspdk_rows(molecules), nspdk_rows(shuffled)
    assert np.array_equal(a.row, b.row) and np.array_equal(a.column, b.column)
    assert a.value == pytest.approx(b.value)


def test_company_and_padding_change_nothing():
    molecules = _molecules(SMILES)
    together = nspdk_rows(molecules)
    for i, mol in enumerate(molecules):
        alone = nspdk_rows([mol])
        assert np.array_equal(alone.column, together.column[together.row == i])


def test_hashes_are_fixed():
    rows = nspdk_rows(_molecules(["C"]))
    # one atom: (r, d) = (0, 0) holds one pair feature and one half feature, both of count 1
    assert rows.value == pytest.approx([math.sqrt(0.5)] * 2)
    assert rows.column.tolist() == sorted(_methane())


def _methane():
    """The two bins of a lone carbon in plain integer arithmetic."""
    mask = (1 << 64) - 1
    step = 0x9E3779B97F4A7C15

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    def combine(a, b):
        return mix((mix((a + step) & mask) * step + b) & mask)

    code = combine(0, mix((6 << 8) * step & mask))
    return [combine(combine(code, code), 0) & 0xFFFF, combine(mix(code), 64) & 0xFFFF]


def test_a_set_against_itself_is_zero():
    rows = nspdk_rows(_molecules(SMILES))
    assert mmd_biased(rows, LinearReference.of(rows)) == pytest.approx(0.0, abs=1e-14)
