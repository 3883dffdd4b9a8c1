"""Figures of a set of crystals: identities, filters, best of k, floors, rows without partners, and their text."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="pymatgen is not installed")
pytest.importorskip("smact", reason="smact is not installed")

from pymatgen.core import Lattice, Structure

from scidiff.core.errors import UsageError
from scidiff.domains.base import Verdict
from scidiff.domains.crystal import matching, metrics, properties, reference
from scidiff.domains.crystal.pool import Pool
from scidiff.domains.crystal.reference import Floor, Reference

BODY = [[0, 0, 0], [0.5, 0.5, 0.5]]


def pair(first, second, name=None, a=4.0, shift=0.0):
    """Caesium chloride structure; `shift` Angstrom of the second atom, id `name`."""
    sites = np.add(BODY, [[0, 0, 0], [shift / a, 0, 0]])
    return Structure(Lattice.cubic(a), [first, second], sites, properties={} if name is None else {"id": name})


TEST = [pair("Cs", "Cl", "t0", 4.1), pair("Na", "Cl", "t1", 3.4), pair("K", "Br", "t2", 4.3),
        pair("Ca", "O", "t3", 3.3), pair("Na", "Ar", "t4", 5.0)]
TRAIN = [pair("Cs", "Cl", "a", 4.2), pair("Na", "F", "b", 3.1), pair("K", "Cl", "c", 4.0), pair("Li", "Br", "d", 3.6)]


@pytest.fixture(scope="module")
def known():
    made = reference.build("toy", TEST, TRAIN, meta={"part": "test"})
    floor = Floor(np.array([0.1, np.nan, 0.2, np.nan, 0.3]), np.array([True, True, True, True, False]), "stored")
    return Reference(made.name, made.test, made.train, made.shares, floor, made.meta, made.crystals, made.known)


@pytest.fixture(scope="module")
def figures():
    """Metrics by name, measured by one process for all tests."""
    with Pool(workers=1) as pool:
        yield lambda structures, against=None: {
            m.name: m for m in metrics.metrics(structures, [Verdict(True)] * len(structures), against, 0, pool)}


def test_the_test_set_itself_is_perfect(known, figures):
    found = figures(TEST, known)
    for name in ("match F", "METRe", "unique"):
        assert found[name].value == 1.0
    for name in ("RMSE F", "cRMSE F", "METRe cRMSE", "density W1", "elements W1"):
        # only valid crystals enter the distances: Na Ar has no neutral charges
        assert found[name].value == pytest.approx(0.0, abs=1e-6) or name.endswith("W1")
    assert found["match V"].value == 0.8 and found["cRMSE V"].value == pytest.approx(0.1)
    assert found["compositionally valid"].value == found["compositionally valid"].floor == 0.8
    assert found["structurally valid"].value == found["valid"].value == 1.0
    assert found["novel"].value == 0.8 and found["V.U.N."].value == pytest.approx(0.6)
    assert "smact14" in found["compositionally valid"].protocol
    for row in found.values():
        assert row.interval is None or row.interval[0] - 1e-12 <= row.value <= row.interval[1] + 1e-12, row.name
        assert row.protocol and (row.count > 0 or row.value is None)


def test_floors_are_the_stored_predictions(known, figures):
    found = figures(TEST, known)
    assert found["match F"].floor == pytest.approx(0.6) and found["match V"].floor == pytest.approx(0.4)
    assert found["RMSE F"].floor == pytest.approx(0.2) and found["RMSE V"].floor == pytest.approx(0.15)
    assert found["cRMSE F"].floor == pytest.approx((0.1 + 0.5 + 0.2 + 0.5 + 0.3) / 5)
    gap = found["cRMSE F - floor"]
    assert gap.value == pytest.approx(-found["cRMSE F"].floor, abs=1e-6) and gap.interval[1] < 0
    assert found["density W1"].floor > 0 and "stored" in found["match F"].note


def test_rows_samples_and_what_is_left_out(known, figures):
    """Two samples of one row, one of another, one far off; three rows have none."""
    generated = [pair("Cs", "Cl", "t0", 4.1, 0.4), pair("Cs", "Cl", "t0", 4.1, 0.2), pair("Na", "Cl", "t1", 3.4, 0.1),
                 pair("Cs", "Br", "nowhere")]
    found = figures(generated, known)
    each = [0.1 / (4.1**3 / 2) ** (1 / 3), 0.05 / (3.4**3 / 2) ** (1 / 3)]
    assert found["RMSE F"].value == pytest.approx(np.mean(each), rel=1e-5)
    assert found["match F"].count == 2 and "2 of 5 rows" in found["match F"].note
    assert "best of 1 to 2" in found["match F"].protocol
    assert found["RMSE F, first sample"].value == pytest.approx((2 * each[0] + each[1]) / 2, rel=1e-5)
    assert found["match F"].floor == 0.5  # of the same rows
    assert found["METRe"].count == 2 and found["METRe"].value == 1.0


def test_without_ids_everyone_meets_the_reference(known, figures):
    generated = [pair("Na", "Cl", None, 3.4, 0.1), pair("Na", "Cl", None, 3.4, 0.2), pair("Cs", "F")]
    found = figures(generated, known)
    assert not any(name.startswith(("match", "RMSE", "cRMSE")) for name in found)
    assert found["METRe"].value == pytest.approx(0.2) and found["METRe"].count == 5
    best = 0.05 / (3.4**3 / 2) ** (1 / 3)
    assert found["METRe RMSE"].value == pytest.approx(best, rel=1e-5)
    assert found["METRe cRMSE"].value == pytest.approx((4 * 0.5 + best) / 5, rel=1e-5)
    assert found["unique"].value == pytest.approx(2 / 3) and found["novel"].value == 1.0


def test_impossible_crystals_count_as_failures(known, figures):
    broken = Structure(Lattice.cubic(4.0), ["K", "Br"], [[0, 0, 0], [np.nan, 0.5, 0.5]], properties={"id": "t2"})
    close = Structure(Lattice.cubic(3.3), ["Ca", "O"], [[0, 0, 0], [0.02] * 3], properties={"id": "t3"})
    found = figures([broken, close, TEST[0]], known)
    assert found["structurally valid"].value == pytest.approx(1 / 3)
    assert found["match F"].value == pytest.approx(1 / 3) and found["match V"].value == pytest.approx(1 / 3)
    assert found["unique"].count == 2 and found["V.U.N."].count == 3 and found["V.U.N."].value == 0.0


def test_without_a_reference_and_without_crystals(figures):
    found = figures([pair("Na", "Cl"), pair("Na", "Cl"), pair("Na", "Cl", None, 3.0)])
    assert list(found) == ["valid", "structurally valid", "compositionally valid", "unique"]
    assert found["unique"].value == pytest.approx(1 / 3) and found["unique"].floor is None
    with pytest.raises(UsageError, match="no crystals"):
        metrics.metrics([], [])


def test_many_comparisons_are_asked_of_a_part(monkeypatch):
    rows = np.arange(10)
    pairs = [(i, j) for j in range(10) for i in range(4)]
    monkeypatch.setattr(metrics, "MOST_CALLS", 12)
    kept = metrics._affordable(pairs, rows, 0)
    assert len(kept) == 3 and all(len(p) == 4 for p in kept.values())
    assert kept == metrics._affordable(pairs, rows, 0)
    monkeypatch.setattr(metrics, "MOST_CALLS", 40)
    assert len(metrics._affordable(pairs, rows, 0)) == 10


def test_distributions_and_their_floors():
    chance = np.random.default_rng(0)
    structures = [pair("Na", "Cl", None, a) for a in chance.uniform(3, 5, 700)]
    made = properties.Distribution.of(structures)
    assert made.count == 700 and made.elements.tolist() == [0, 0, 700] and len(made.quantiles) == 512
    assert properties.wasserstein(made.values("density"), properties.densities(structures)) < 0.01
    whole = properties.wasserstein(np.array([1.0, 2.0]), np.array([1.5, 4.0]))
    assert whole == pytest.approx((0.5 + 2.0) / 2)  # sorted values are paired
    floors = [properties.floor(made, made, "density", n) for n in (10, 100, 1000)]
    assert floors[0] > 2 * floors[1] > 2 * floors[2] > 0
    assert properties.floor(None, made, "density", 5) is None
    low, high = properties.interval(properties.densities(structures[:50]), made.quantiles)
    assert 0 <= low < properties.wasserstein(properties.densities(structures[:50]), made.quantiles) < high


def test_coverage_of_known_points():
    from scidiff.domains.crystal.coverage import coverage

    test = (np.array([[0.0], [1.0], [5.0]]), np.array([[0.0], [3.0], [0.0]]))
    made = (np.array([[0.1], [1.3], [np.nan], [9.0]]), np.array([[0.0], [0.2], [3.0], [0.0]]))
    recall, precision = coverage(made, test, (0.4, 1.0))
    assert recall.tolist() == [True, False, False]  # the crystal near (1, 3) has no structure fingerprint
    assert precision.tolist() == [True, True, False, False]
    assert matching.PREDICTION.stol == 0.5


def test_hull_of_two_phases(tmp_path):
    """Li2O lies 2 eV/atom below its elements; everything else is measured from the tie lines."""
    import json

    from pymatgen.core import Composition

    from scidiff.core.errors import ScidiffError
    from scidiff.domains.crystal.relaxation import Hull

    rows = [{"composition": "Li", "energy": -1.0}, {"composition": "O2", "energy": -8.0},
            {"composition": "Li2 O1", "energy": -12.0}]
    (tmp_path / "hull.json").write_text(json.dumps(rows))
    hull = Hull.read(tmp_path / "hull.json")
    assert hull.above(Composition("Li4O2"), -24.0) == pytest.approx(0.0)
    # LiO on the hull: half a Li2O and half an O, -6 - 2 eV for two atoms
    assert hull.above(Composition("LiO"), -7.0) == pytest.approx(0.5)
    assert hull.above(Composition("Li2O"), -15.0) == pytest.approx(-1.0)
    assert hull.above(Composition("NaCl"), 0.0) is None
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ScidiffError, match="cannot be read"):
        Hull.read(tmp_path / "other.json")
