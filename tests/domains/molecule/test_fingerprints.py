"""Linear-kernel MMD: identities, unbiasedness, and the standard error against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from scidiff.domains.molecule.fingerprints import (
    LinearReference,
    SparseRows,
    mmd_biased,
    mmd_deviation,
    mmd_unbiased,
    morgan_rows,
    unbiased_self,
)

WIDTH = 6
P = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
Q = np.array([0.1, 0.1, 0.2, 0.2, 0.2, 0.2])


def _draw(p, n, chance):
    """n rows that are unit vectors e_k with probability p_k."""
    return SparseRows(np.arange(n), chance.choice(WIDTH, n, p=p), np.ones(n), n, WIDTH)


def test_sums_agree_with_dense_algebra():
    chance = np.random.default_rng(0)
    dense = chance.normal(size=(7, WIDTH)) * (chance.random((7, WIDTH)) < 0.6)
    row, column = np.nonzero(dense)
    rows = SparseRows(row, column, dense[row, column], 7, WIDTH)
    other = chance.normal(size=WIDTH)
    assert rows.mean() == pytest.approx(dense.mean(0))
    assert rows.project(other) == pytest.approx(dense @ other)
    gram = dense @ dense.T
    assert unbiased_self(rows) == pytest.approx((gram.sum() - np.trace(gram)) / 42)
    assert rows.take(np.array([5, 1])).dense() == pytest.approx(
        dense[[5, 1]][:, np.flatnonzero(dense[[5, 1]].any(0))]
    )


def test_unbiased_and_biased_expectations():
    chance = np.random.default_rng(1)
    reference = LinearReference(Q, float(Q @ Q), 10**9)
    exact = float(((P - Q) ** 2).sum())
    n = 20
    draws = [_draw(P, n, chance) for _ in range(4000)]
    unbiased = np.array([mmd_unbiased(r, reference) for r in draws])
    biased = np.array([mmd_biased(r, reference) for r in draws])
    error = 4 * unbiased.std() / len(draws) ** 0.5
    assert unbiased.mean() == pytest.approx(exact, abs=error)
    assert biased.mean() == pytest.approx(exact + (1 - P @ P) / n, abs=error)


@pytest.mark.parametrize("p", [P, Q], ids=["apart", "equal"])
def test_standard_error_matches_simulation(p):
    chance = np.random.default_rng(2)
    reference = LinearReference(Q, float(Q @ Q), 10**9)
    draws = [_draw(p, 300, chance) for _ in range(400)]
    spread = np.std([mmd_unbiased(r, reference) for r in draws])
    told = np.mean([mmd_deviation(r, reference) for r in draws[:60]])
    assert (
        0.85 * spread < told < 1.4 * spread
    )  # a little wide where the sets are equal: a variance cannot be negative


def test_unbiased_distance_of_a_set_to_itself():
    chance = np.random.default_rng(3)
    rows = _draw(P, 50, chance)
    value = mmd_unbiased(rows, LinearReference.of(rows))
    # both self terms leave out the diagonal, the cross term keeps it: -2 (mean of k(x, x) - mean over pairs) / n
    assert value == pytest.approx(-2.0 * (1.0 - unbiased_self(rows)) / 50)
    assert mmd_biased(rows, LinearReference.of(rows)) == 0.0


def test_morgan_rows_are_unit_and_blind_to_stereo():
    chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")
    smiles = ("N[C@@H](C)C(=O)O", "N[C@H](C)C(=O)O", "F/C=C/F", "F/C=C\\F", "C")
    rows = morgan_rows([chem.MolFromSmiles(s) for s in smiles])
    assert rows.squared_norms() == pytest.approx(np.ones(5))
    dense = rows.dense()
    assert np.array_equal(dense[0], dense[1]) and np.array_equal(dense[2], dense[3])
