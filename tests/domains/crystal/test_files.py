"""What a run writes: one id everywhere, readable by other programs and by ourselves, invalid samples included."""

from __future__ import annotations

import csv

import numpy as np
import pytest

pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")

from scidiff.domains.base import Samples
from scidiff.domains.crystal import CrystalDomain, codec, view, xyz
from scidiff.domains.crystal.codec import build
from scidiff.domains.crystal.entries import Rules
from scidiff.domains.crystal.textbook import crystals

CLASH = build([11, 17], [(0, 0, 0), (0, 0, 0.05)], 4 * np.eye(3))
NOTHING = build([11], [(0, 0, 0)], np.full((3, 3), np.nan))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    objects = [*crystals()[:8], CLASH, NOTHING]
    objects[7].properties["poscar"] = True
    domain = CrystalDomain()
    samples = Samples(objects, [f"s{i:04d}" for i in range(10)], 5, domain.check(objects), domain)
    return folder, samples, samples.save(folder)


def test_one_row_a_sample_with_its_verdict(written):
    folder, samples, _ = written
    rows = list(csv.DictReader((folder / "samples.csv").open()))
    assert [row["id"] for row in rows] == samples.ids and {row["seed"] for row in rows} == {"5"}
    assert [row["valid"] for row in rows] == ["True"] * 8 + ["False"] * 2
    assert [row["formula"] for row in rows[:4]] == ["NaCl", "MgO", "CaF2", "CsCl"]
    assert [row["space_group"] for row in rows[:8]] == ["Fm-3m", "Fm-3m", "Fm-3m", "Pm-3m", "Fd-3m", "F-43m", "P6_3mc",
                                                        "P4_2/mnm"]
    assert [row["space_group_number"] for row in rows[:4]] == ["225", "225", "225", "221"]
    assert float(rows[4]["density_g_per_cm3"]) == pytest.approx(3.515, rel=1e-3)
    assert float(rows[0]["volume_per_atom_A3"]) == pytest.approx(5.64**3 / 8, rel=1e-4)
    assert rows[8]["reason"] == "Na1 and Cl2 are 0.20 A apart (less than 0.5 A)" and rows[8]["space_group"] == ""
    assert rows[9]["reason"] == "the cell is not finite"


def test_every_file_bears_the_id_and_the_same_crystal(written):
    folder, samples, paths = written
    names = {p.relative_to(folder).as_posix() for p in paths}
    assert names == {"samples.csv", "samples.extxyz", "crystals.png", "poscar/s0007.vasp",
                     *(f"cif/s{i:04d}.cif" for i in range(9))}
    found = CrystalDomain().read(folder)  # the run, invalid samples included
    assert found.names == samples.ids[:9]
    assert [(r.text, r.reason) for r in found.rejected] == [("s0009", "the cell is not finite")]
    assert CrystalDomain().check(found.objects) == samples.verdicts[:9]
    for i, (a, b) in enumerate(zip(samples, found.objects, strict=False)):
        np.testing.assert_allclose(a.lattice.matrix, b.lattice.matrix)
        np.testing.assert_allclose(a.distance_matrix, b.distance_matrix, atol=1e-8)
        single = CrystalDomain().read(folder / "cif" / f"s{i:04d}.cif")
        assert single.names == [f"s{i:04d}"]
        np.testing.assert_allclose(np.sort(single.objects[0].distance_matrix.ravel()),
                                   np.sort(a.distance_matrix.ravel()), atol=1e-6)


def test_other_programs_read_the_files(written):
    folder, samples, _ = written
    read = pytest.importorskip("ase.io", reason="ase is not installed").read
    frames = read(folder / "samples.extxyz", index=":", format="extxyz")
    assert [f.info["id"] for f in frames] == samples.ids[:9] and all(f.pbc.all() for f in frames)
    assert [bool(f.info["valid"]) for f in frames] == [True] * 8 + [False]
    assert frames[8].info["reason"].startswith("Na1 and Cl2")
    for frame, crystal in zip(frames, samples, strict=False):
        np.testing.assert_allclose(frame.get_volume(), crystal.volume)
    from pymatgen.core import Structure

    for name in ("cif/s0007.cif", "poscar/s0007.vasp"):
        kind = {"cif": "cif", "vasp": "poscar"}[name.rsplit(".", 1)[1]]
        back = Structure.from_str((folder / name).read_text(), fmt=kind)
        np.testing.assert_allclose(back.lattice.parameters, samples[7].lattice.parameters, atol=1e-6)
        assert codec.formula(back) == "TiO2"


def test_extxyz_of_other_programs_is_understood():
    text = """2
Properties=species:S:1:forces:R:3:pos:R:3 Lattice="5 0 0 0 5 0 0 0 5" config_type=salt
Na 0.1 0.2 0.3 0 0 0
Cl 0.1 0.2 0.3 2.5 2.5 2.5

1
Lattice="3 0 0 0 3 0 0 0 3"
Fe 0 0 0
"""
    first, second = xyz.entries(text, "f.xyz", "f", Rules())
    assert (first.name, second.name) == ("salt", "f_1") and not first.reason and not second.reason
    np.testing.assert_allclose(first.frac, [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_pictures_show_cells_and_reasons(written):
    _, samples, _ = written
    shown = CrystalDomain().view(samples.objects, samples.verdicts, samples.ids)
    kinds = [p[:4] == b"\x89PNG" if isinstance(p, bytes) else p.startswith("<svg") for p in shown.values()]
    assert kinds == [True, True] and next(iter(shown)) == "The first 10 samples, as drawn"
    from matplotlib.text import Text

    figure = view._figure(samples.objects, samples.verdicts, samples.ids)
    told = " ".join(t.get_text() for t in figure.findobj(Text))
    assert "s0000  NaCl" in told and "0.20 A apart" in told.replace("\n", " ") and "no cell" in told


def test_atoms_on_faces_are_drawn_on_every_face():
    places, owner = view.images(np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.5], [0.99, 0.5, 0.5]]))
    assert np.bincount(owner).tolist() == [8, 2, 1, 2]
    corners = {tuple(p) for p in places[:8].round(6).tolist()}
    assert corners == {(x, y, z) for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)}
    turned = view.projected(np.eye(3))
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
