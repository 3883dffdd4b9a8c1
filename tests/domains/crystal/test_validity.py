"""Structural and compositional validity: thresholds, exact distances in skewed cells, known compositions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="pymatgen is not installed")

from pymatgen.core import Lattice, Structure

from scidiff.domains.crystal import charges, validity
from scidiff.domains.crystal.matching import composition_key


def crystal(matrix, frac, names=None):
    frac = np.asarray(frac, dtype=float)
    return Structure(Lattice(matrix), names or ["Na", "Cl", "O", "Li", "Fe"][:len(frac)], frac)


def nearest(structure, reach):
    """Least distance of two different atoms, by brute force over images."""
    images = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    gaps = structure.frac_coords[:, None] - structure.frac_coords[None]
    gaps -= np.round(gaps)
    lengths = np.linalg.norm((gaps[:, :, None] + images) @ structure.lattice.matrix, axis=-1).min(-1)
    return lengths[~np.eye(len(structure), dtype=bool)].min()


def test_thresholds():
    made = [crystal(np.eye(3) * 5, [[0, 0, 0], [d / 5, 0, 0]]) for d in (0.49, 0.51)]
    made.append(crystal(np.eye(3) * 5, [[0.01, 0, 0], [0.95, 0, 0]]))  # 0.3 A through the face
    made.append(crystal(np.eye(3) * 0.47, [[0, 0, 0]]))  # its own images do not count: 0.104 A^3
    made.append(crystal(np.eye(3) * 0.46, [[0, 0, 0]]))
    found = validity.structural(made)
    assert [v.valid for v in found] == [False, True, False, True, False]
    assert "Na1 and Cl2 are 0.49 A apart" in found[0].reason and "volume" in found[4].reason
    assert found[1].reason == ""


def test_what_cannot_be_built_is_named():
    good = crystal(np.eye(3) * 4, [[0, 0, 0], [0.5, 0.5, 0.5]])
    nowhere = crystal(np.eye(3) * 4, [[0, 0, 0], [np.nan, 0.5, 0.5]])
    flat = crystal([[4, 0, 0], [4, 1e-9, 0], [0, 0, 4]], [[0, 0, 0], [0.5, 0.5, 0.5]])
    reasons = [validity.constructible(s) for s in (good, nowhere, flat)]
    assert reasons[0] == "" and "finite" in reasons[1] and "volume" in reasons[2]
    assert [v.valid for v in validity.structural([nowhere, good, flat])] == [False, True, False]
    assert validity.structural([]) == []


def test_many_at_once_agree_with_brute_force():
    chance = np.random.default_rng(0)
    made = []
    for k in range(60):
        matrix = chance.normal(size=(3, 3)) + np.eye(3) * (1.5 + k % 3)
        made.append(crystal(matrix, chance.random((2 + k % 4, 3)) * 3 - 1))
    made = [s for s in made if s.volume > 1.0]
    found = validity.structural(made)
    truth = [nearest(s, 8) >= 0.5 for s in made]
    assert [v.valid for v in found] == truth
    assert 10 < sum(truth) < len(made) - 10


def test_flat_cells_get_more_images():
    """Planes 0.2 A apart: the closest image lies several cells away."""
    matrix = np.array([[6.0, 0, 0], [5.7, 0.2, 0], [0, 0, 1.5]])
    chance = np.random.default_rng(1)
    made = [crystal(matrix, chance.random((2, 3))) for _ in range(40)]
    found = [v.valid for v in validity.structural(made)]
    assert found == [nearest(s, 12) >= 0.5 for s in made] and 0 < sum(found) < 40


@pytest.mark.parametrize(
    ("formula", "valid"),
    [("NaCl", True), ("NaCl2", False), ("CaTiO3", True), ("Fe3O4", False), ("CuAu", True), ("O", True), ("Xe", True),
     ("LiFePO4", True), ("NaO3", False)],
)
def test_known_compositions(formula, valid):
    pytest.importorskip("smact", reason="smact is not installed")
    from pymatgen.core import Composition

    names = [e.symbol for e, n in Composition(formula).items() for _ in range(2 * int(n))]  # twice the formula
    made = crystal(np.eye(3) * 20, np.linspace(0, 0.9, len(names))[:, None] * [1, 0, 0], names)
    verdict = charges.compositional([made])[0]
    assert verdict.valid == valid and bool(verdict.reason) != valid


def test_no_search_without_end():
    many = tuple((z, 1) for z in range(20, 29))
    verdict = charges.compositions([many, ()])
    assert "9 elements" in verdict[many].reason and not verdict[()].valid


def test_share_of_valid_test_rows(data):
    """89.3 % of a thousand MP-20 rows are valid with the states of 2014, as measured independently."""
    pytest.importorskip("smact", reason="smact is not installed")
    with np.load(data / "crystal" / "mp_20_test_part.npz", allow_pickle=False) as archive:
        counts, chosen = archive["num_atoms"].astype(int), archive["in_first_1000"].astype(bool)
        numbers = np.split(archive["atomic_numbers"].astype(int), np.cumsum(counts)[:-1])
    keys = {key for n, c in zip(numbers, chosen, strict=True) if c
            for key in [tuple((int(z), int(k)) for z, k in zip(*np.unique(n, return_counts=True), strict=True))]}
    small = [key for key in keys if len(key) <= 3]
    share = np.mean([v.valid for v in charges.compositions(small[:300]).values()])
    assert 0.8 < share < 0.97


def test_composition_key_feeds_the_formula():
    made = crystal(np.eye(3) * 9, [[0, 0, 0], [0.2, 0, 0], [0.4, 0, 0], [0.6, 0, 0]], ["Ti", "O", "O", "Ti"])
    assert charges.formula(composition_key(made)) == "O1Ti1"
