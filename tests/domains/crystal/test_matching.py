"""When crystals match: closed forms, invariances, best of k, everyone against the reference; and nothing hangs."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="pymatgen is not installed")

from pymatgen.core import Lattice, Structure

from scidiff.domains.crystal import matching, pool
from scidiff.domains.crystal.matching import IDENTITY, PREDICTION, Found, compare
from scidiff.domains.crystal.pool import Pool


def caesium_chloride(a=4.0, shift=0.0, names=("Cs", "Cl"), name=None):
    """Two atoms in a cube; the second is moved by `shift` Angstrom along x."""
    properties = {} if name is None else {"id": name}
    return Structure(Lattice.cubic(a), names, [[0, 0, 0], [0.5 + shift / a, 0.5, 0.5]], properties=properties)


@pytest.fixture(scope="module")
def workers():
    with Pool(workers=1) as made:
        yield made


@pytest.mark.parametrize("shift", [0.1, 0.4])
def test_rms_is_half_the_displacement_of_one_of_two_atoms(shift):
    """The best translation shares the displacement d among both atoms: rms = d / 2 in units of (V / N)^(1/3)."""
    found = compare(caesium_chloride(4.0, shift), caesium_chloride(4.0))
    assert found == pytest.approx(shift / 2 / (4.0**3 / 2) ** (1 / 3), rel=1e-6)


def test_rms_forgets_what_is_no_difference():
    """Origin, orientation, order of atoms, choice of cell and volume: none of them counts."""
    chance = np.random.default_rng(0)
    cell = Lattice.from_parameters(4.1, 4.9, 6.0, 85, 97, 101)
    truth = Structure(cell, ["Li", "O", "O", "Fe"], chance.random((4, 3)))
    rotation = np.linalg.qr(chance.normal(size=(3, 3)))[0]
    order = [2, 0, 3, 1]
    moved = Structure(Lattice(1.1 * truth.lattice.matrix @ rotation.T), [truth[i].specie for i in order],
                      truth.frac_coords[order] + [0.3, 0.6, 0.2])
    moved.make_supercell([1, 2, 1])
    assert compare(moved, truth) == pytest.approx(0.0, abs=1e-5)
    assert compare(caesium_chloride(), caesium_chloride(names=("Na", "Cl"))) is None
    stretched = Structure(Lattice.tetragonal(4.0, 6.5), ["Cs", "Cl"], [[0, 0, 0], [0.5] * 3])
    assert compare(stretched, caesium_chloride(5.0)) is None  # lengths differ by more than ltol


def test_packed_crystals_are_the_same_numbers():
    chance = np.random.default_rng(1)
    made = Structure(Lattice(chance.normal(size=(3, 3)) * 5), ["Na+", "Cl-", "O2-"], chance.random((3, 3)))
    again = matching.unpacked(matching.packed(made))
    assert np.array_equal(again.lattice.matrix, made.lattice.matrix)
    assert np.array_equal(again.frac_coords, made.frac_coords)
    assert list(again.atomic_numbers) == [11, 17, 8] and not hasattr(again[0].specie, "oxi_state")


def test_composition_key_is_reduced():
    big = caesium_chloride()
    big.make_supercell(2)
    assert matching.composition_key(big) == matching.composition_key(caesium_chloride()) == ((17, 1), (55, 1))


def test_best_of_k_and_corrected_mean():
    found = Found({(0, 0): 0.2, (1, 0): 0.1, (2, 1): math.nan, (3, 2): 0.3})
    rms = found.best([(0, 0), (1, 0), (2, 1), (3, 2)], 4)
    assert rms[:3].tolist() == pytest.approx([0.1, math.nan, 0.3], nan_ok=True) and math.isnan(rms[3])
    assert found.best([(0, 0), (3, 2)], 3)[0] == 0.2
    assert matching.corrected(rms).mean() == pytest.approx((0.1 + 0.5 + 0.3 + 0.5) / 4)


def test_pairs_by_id_and_by_composition():
    reference = [caesium_chloride(name="a"), caesium_chloride(names=("Na", "Cl"), name="b"), caesium_chloride(name="c")]
    generated = [caesium_chloride(name="c"), caesium_chloride(names=("Na", "Cl")), caesium_chloride(name="c"),
                 caesium_chloride(name="elsewhere")]
    assert matching.same_id(generated, reference) == [(0, 2), (2, 2)]
    assert set(matching.same_composition(generated, reference)) == {
        (i, j) for i, s in enumerate(generated) for j, r in enumerate(reference)
        if s.composition.reduced_formula == r.composition.reduced_formula}
    assert matching.same_composition(generated, reference, [1]) == [(1, 1)]


def test_displacements_agree_with_direct_calls(workers):
    reference = [caesium_chloride(4.0), caesium_chloride(4.2, names=("Na", "Cl"))]
    generated = [caesium_chloride(4.1, 0.2), caesium_chloride(4.0, 0.3, ("Na", "Cl")), caesium_chloride(5.0, 2.2)]
    pairs = [(i, j) for i in range(3) for j in range(2)]
    found = matching.displacements(generated, reference, pairs, workers)
    assert set(found.values) == set(pairs) and (found.late, found.failed) == (0, 0)
    for i, j in pairs:
        direct = compare(generated[i], reference[j])
        expected = math.nan if direct is None else direct
        assert found.values[i, j] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert not math.isnan(found.values[0, 0]) and math.isnan(found.values[0, 1])


def test_a_call_that_takes_too_long_is_given_up(workers):
    calls = [("wait", (0.0,)), ("wait", (60.0,)), ("rms", (1, 2, 3)), ("wait", (0.01,))]
    workers.limit = 1.0
    answers = workers.run(calls)
    workers.limit = pool.LIMIT
    assert [a.value for a in answers] == [0.0, None, None, 0.01]
    assert answers[1].problem == "time" and "Error" in answers[2].problem
    assert answers[0].problem == answers[3].problem == ""


def test_a_stuck_process_is_killed_and_replaced(monkeypatch):
    monkeypatch.setattr(pool, "PATIENCE", 3.0)
    with Pool(limit=1.0, workers=1) as made:
        answers = made.run([("sleep", (3600.0,)), ("wait", (0.0,))])
    assert answers[0] == pool.Answer(None, "time") and answers[1] == pool.Answer(0.0)


def test_late_comparisons_are_told():
    assert Found(late=2, failed=1).note(10.0) == ("2 comparisons exceeded 10 s and count as no match; "
                                                  "1 comparisons failed and count as no match")
    assert Found().note(10.0) == ""
    assert str(PREDICTION) == "ltol 0.3, stol 0.5, angle 10" and IDENTITY.stol == 0.3
