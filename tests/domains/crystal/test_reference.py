"""Reference sets of crystals: what is stored, what is read on the spot, whose floors count, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="pymatgen is not installed")
pytest.importorskip("smact", reason="smact is not installed")

from pymatgen.core import Lattice, Structure

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.crystal import reference as references
from scidiff.domains.crystal.pool import Pool


def pair(first, second, name, a):
    return Structure(Lattice.cubic(a), [first, second], [[0, 0, 0], [0.5] * 3], properties={"id": name})


TEST = [pair("Cs", "Cl", "t0", 4.1), pair("Na", "Cl", "t1", 3.4), pair("K", "Br", "t2", 4.3)]
TRAIN = [pair("Rb", "Cl", "a", 4.2), pair("Na", "F", "b", 3.1), pair("K", "Cl", "c", 4.0)]


@pytest.fixture(scope="module")
def made():
    with Pool(workers=1) as pool:
        return references.build("toy", TEST, TRAIN, pool=pool, floor="retrieval", meta={"part": "test"})


def test_template_predictions_of_one_structure_type_are_exact(made):
    """All crystals have one type, so that every template matches with no displacement."""
    assert np.allclose(made.floor.rms, 0.0, atol=1e-6) and made.floor.sound.all()
    assert made.shares == {"structurally valid": 1.0, "compositionally valid": 1.0}
    assert made.title == "toy test (3)" and made.meta["train_count"] == 3
    assert made.floor.title == "retrieval of 3 training crystals"


def test_reference_survives_the_disk(made, tmp_path):
    back = references.find(str(references.save(made, tmp_path / "kept.npz")))
    assert (back.name, back.title, back.shares) == ("toy", "toy test (3)", made.shares)
    assert back.meta == made.meta and back.floor.title == made.floor.title
    assert np.allclose(back.test.quantiles, made.test.quantiles, rtol=1e-6)
    assert all(np.array_equal(v, made.described[k]) for k, v in back.described.items() if k.startswith("elements"))
    assert np.array_equal(back.train.elements, made.train.elements)
    assert np.allclose(back.floor.rms, made.floor.rms, atol=1e-3) and back.floor.sound.dtype == bool
    with np.load(tmp_path / "kept.npz", allow_pickle=False) as archive:
        assert not {"frac_coords", "atomic_numbers", "lengths"} & set(archive.files)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "kept.npz").read_bytes()[:700])
    with pytest.raises(ScidiffError, match="damaged"):
        references.load(tmp_path / "cut.npz")


def test_a_stored_floor_is_used_for_its_own_rows_alone(made):
    stored = references.Floor(np.array([0.1, np.nan, 0.3]), np.array([True, True, False]), "stored")
    about = made.meta
    same = references.Reference("toy", made.test, floor=stored, meta=about, crystals=TEST, known=TRAIN)
    with Pool(workers=1) as pool:
        assert same.rows([2, 0], pool).rms.tolist() == [0.3, 0.1]
        other = references.Reference("toy", made.test, floor=stored, meta=about, crystals=TEST[::-1], known=TRAIN)
        fresh = other.rows([0, 1], pool)
        assert np.allclose(fresh.rms, 0.0, atol=1e-6) and "3 training crystals" in fresh.title
        alone = references.Reference("toy", made.test, meta=about, crystals=TEST, known=[])
        assert alone.rows([0], pool) is None


def test_ids_tell_sets_apart():
    assert references.ids_hash(TEST) == references.ids_hash([s.copy() for s in TEST])
    assert references.ids_hash(TEST) != references.ids_hash(TEST[::-1])


def test_reference_from_a_folder_of_files(tmp_path):
    for structure in TEST:
        structure.to(str(tmp_path / f"{structure.properties['id']}.cif"))
    found = references.find(str(tmp_path))
    assert found.test.count == 3 and found.train is None and found.meta["part"] == "all"
    assert sorted(str(s.properties["id"]) for s in found.structures()) == ["t0", "t1", "t2"]


def test_unknown_names_and_empty_sets():
    with pytest.raises(UsageError, match="no reference set"):
        references.find("no_such_crystals")
    with pytest.raises(UsageError, match="at least one"):
        references.build("empty", [])
    broken = Structure(Lattice.cubic(4.0), ["Na"], [[np.nan, 0, 0]])
    with pytest.raises(UsageError, match="at least one"):
        references.build("broken", [broken])
