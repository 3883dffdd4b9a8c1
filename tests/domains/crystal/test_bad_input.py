"""Bad crystal files: one clear sentence for each defect, and the crystals beside it are still read."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")

from scidiff.core.errors import UsageError
from scidiff.domains.crystal import CrystalDomain, codec
from scidiff.domains.crystal.data import read
from scidiff.domains.crystal.files import as_cif
from scidiff.domains.crystal.textbook import crystals

GOOD = as_cif(crystals()[0], "good")


def without(word):
    return "\n".join(line for line in GOOD.splitlines() if word not in line)


@pytest.mark.parametrize("text, why", [
    (GOOD.replace("0.50000000 0.50000000 0.50000000 1", "0.5 0.5 0.5 0.5"),
     "partial occupancy: Cl2 is occupied by 0.5"),
    (without("_cell_length_b"), "it gives no cell (_cell_length_b is missing)"),
    (GOOD.replace("_cell_angle_beta    60.0", "_cell_angle_beta    ? 60.0"), "it gives no cell (_cell_angle_beta"),
    (GOOD.replace("Cl Cl2 0.50000000", "Cl Cl2 nan"), "a coordinate is not finite"),
    (GOOD.replace("_cell_length_a    ", "_cell_length_a    inf #"), "a number of its cell is not finite"),
    (GOOD.replace("_cell_length_a    ", "_cell_length_a    -"), "an edge of its cell is -3.98"),
    (GOOD.replace("_cell_length_a    ", "_cell_length_a    four #"), "is 'four', not a number"),
    (GOOD.replace("_cell_angle_gamma    60.0", "_cell_angle_gamma    150.0"), "no cell has the angles 60, 60, 150"),
    (GOOD.replace("Cl Cl2", "Xx Xx2"), "'Xx' is no chemical element"),
    (GOOD.replace("Cl Cl2 0.50000000 0.50000000", "Cl Cl2 0.01 0.0").replace("0.0 0.50000000 1", "0.0 0.0 1"),
     "overlapping atoms: Na1 and Cl2 are 0.04 A apart"),
    (without("_atom_site_fract_z"), "the values of its atoms do not fill their columns"),
    (GOOD.replace("_atom_site_fract_z", "_atom_site_U_iso"), "its atoms have no fractional coordinates"),
    (GOOD.split("loop_\n  _atom_site")[0], "it lists no atoms|no fractional coordinates|no cell"),
    ("", "it is no CIF"),
    ("nothing of the kind", "it is no CIF"),
    (GOOD.replace("'x, y, z'", "'x, y, q'"), "its symmetry operation 'x, y, q' cannot be read"),
])
def test_a_bad_cif_costs_that_crystal_alone(text, why, tmp_path):
    (tmp_path / "bad.cif").write_text(text)
    (tmp_path / "fine.cif").write_text(GOOD)
    found = read(tmp_path, invalid="reject")
    assert found.names == ["fine"] and len(found.rejected) == 1
    said = found.rejected[0]
    assert said.where == "bad.cif" and any(part in said.reason for part in why.split("|")), said.reason
    assert "\n" not in said.reason and len(said.reason) < 200


def test_what_is_impossible_is_kept_for_an_evaluation_and_rejected_for_training(tmp_path):
    clash = codec.build([11, 17], [(0, 0, 0), (0, 0, 0.05)], 4 * np.eye(3))
    (tmp_path / "clash.cif").write_text(as_cif(clash, "clash"))
    kept = read(tmp_path)
    assert kept.names == ["clash"] and "0.20 A apart" in CrystalDomain().check(kept.objects)[0].reason
    for part in ("train", "test"):
        assert [r.reason for r in read(tmp_path, part).rejected] == ["overlapping atoms: Na1 and Cl2 are 0.20 A apart"]


def test_too_many_atoms_other_elements_and_repeated_ids(tmp_path):
    for i, s in enumerate(crystals()[:9]):
        (tmp_path / f"{i}.cif").write_text(as_cif(s, "x"))
    found = read(tmp_path, max_atoms=4, min_atoms=3)
    assert found.names == ["2", "6"]
    reasons = [r.reason for r in found.rejected]
    assert "it has 6 atoms, more than 4 (data.options.max_atoms)" in reasons
    assert "it has 2 atoms, fewer than 3" in reasons
    others = {r.reason for r in read(tmp_path, elements="Na,Cl").rejected}
    assert "the element Mg is not among Na, Cl" in others
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as packed:
        for folder in ("a", "b"):
            packed.writestr(f"{folder}/mp-1.cif", GOOD)
    twice = read(tmp_path / "twice.zip")
    assert twice.names == ["mp-1"] and [r.reason for r in twice.rejected] == ["the id mp-1 occurs more than once"]


@pytest.mark.parametrize("text, why", [
    ("2\nProperties=species:S:1:pos:R:3\nNa 0 0 0\nCl 0 0 1\n", "it has no cell"),
    ('2\nLattice="4 0 0 0 4 0 0 0"\nNa 0 0 0\nCl 0 0 1\n', "its cell is not nine numbers"),
    ('1\nLattice="4 0 0 4 0 0 0 0 4"\nNa 0 0 0\n', "its cell has no volume"),
    ('1\nLattice="4 0 0 0 4 0 0 0 nan"\nNa 0 0 0\n', "a number of its cell is not finite"),
    ('1\nLattice="4 0 0 0 4 0 0 0 4"\nNa 0 0 nan\n', "a coordinate is not finite"),
    ('1\nLattice="4 0 0 0 4 0 0 0 4"\nXx 0 0 0\n', "'Xx' is no chemical element"),
    ('1\nLattice="4 0 0 0 4 0 0 0 4"\nNa 0 0\n', "has too few columns"),
    ('5\nLattice="4 0 0 0 4 0 0 0 4"\nNa 0 0 0\n', "a number of atoms was expected"),
    ("Na 0 0 0\n", "a number of atoms was expected"),
])
def test_bad_extxyz(text, why, tmp_path):
    (tmp_path / "x.extxyz").write_text(text)
    assert why in read(tmp_path / "x.extxyz").rejected[0].reason


ARRAYS = {"num_atoms": [1, 2], "atomic_numbers": [6, 11, 17], "frac_coords": np.outer([0, 0, 0.5], [1, 1, 1]),
          "lengths": np.full((2, 3), 4.0), "angles": np.full((2, 3), 90.0)}


def archive(**changes):
    stream = io.BytesIO()
    np.savez(stream, **{k: np.array(v) for k, v in {**ARRAYS, **changes}.items() if v is not None})
    return stream.getvalue()


@pytest.mark.parametrize("changes, why", [
    ({"lengths": None}, "no array 'lengths'"),
    ({"num_atoms": [1.0, 2.0]}, "does not hold whole numbers"),
    ({"num_atoms": [1, 3]}, "has the shape (3,), not (4,)"),
    ({"num_atoms": [-1, 4]}, "one count a crystal"),
    ({"angles": np.zeros((2, 2))}, "has the shape (2, 2)"),
    ({"material_id": ["a"]}, "has the shape (1,)"),
    ({"atomic_numbers": [200, 11, 17]}, "there is no element number 200"),
    ({"angles": [[90, 90, 90], [10, 10, 100]]}, "no cell has the angles 10, 10, 100"),
    ({"lengths": [[4, 4, 4], [4, 4, 0]]}, "an edge of its cell is 0 A long"),
    ({"frac_coords": [[0, 0, np.nan], [0, 0, 0], [0.5, 0.5, 0.5]]}, "a coordinate is not finite"),
    ({"num_atoms": [0, 3]}, "it has no atoms"),
])
def test_bad_archives(changes, why, tmp_path):
    (tmp_path / "x.npz").write_bytes(archive(**changes))
    assert any(why in r.reason for r in read(tmp_path / "x.npz").rejected)


def test_pickles_and_other_files_behind_the_ending_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    stream = io.BytesIO()
    np.savez(stream, num_atoms=np.array([Trap()], dtype=object))
    for name, content in (("a.npz", stream.getvalue()), ("b.npz", b"no archive"), ("c.npz", b""), ("d.zip", b"PK x"),
                          ("e.cif", b"\xff\xfe\x00"), ("f.cif.gz", b"plain"), ("g.vasp", b"nonsense\n1\n")):
        (tmp_path / name).write_bytes(content)
    found = read(tmp_path)
    assert not (tmp_path / "sprung").exists() and not found.objects
    reasons = [r.reason for r in found.rejected]
    assert reasons[:5] == [
        "it holds Python objects, which scidiff does not unpack", "it is no NumPy archive, or damaged", "it is empty",
        "it is no zip file, or damaged", "it is not UTF-8 text"]
    assert "it cannot be read" in reasons[5] and "it is no VASP file" in reasons[6]


@pytest.mark.parametrize("name, why", [
    ("missing.cif", "does not exist"),
    ("picture.png", "is no crystal file"),
    ("empty", "holds no crystal file"),
    ("table.csv", "has no column of CIF texts"),
    ("blank.csv", "holds no crystal"),
])
def test_places_without_crystals(name, why, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "blank.csv").write_text("")
    with pytest.raises(UsageError, match=why):
        read(tmp_path / name)


def test_a_set_that_does_not_fit_is_refused_before_training():
    from pymatgen.core import Lattice, Structure

    known = crystals()
    shared = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    for domain, objects, why in (
        (CrystalDomain(), [], "no crystals to learn from"),
        (CrystalDomain(), [known[0], shared], "Crystal 2 cannot be used: partial occupancy"),
        (CrystalDomain(["Na", "Cl"]), known[:2], "The element O is not among Na, Cl"),
        (CrystalDomain(n_max=4), known, "A crystal has 6 atoms, more than 4"),
    ):
        with pytest.raises(UsageError, match=why):
            domain.fit(objects)
