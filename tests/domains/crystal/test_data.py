"""Readers and splits: archives of the staged sets, tables of CIF texts, folders, prototypes; reduction; the cache."""

from __future__ import annotations

import csv
import zipfile

import numpy as np
import pytest

pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")

from scidiff.core.errors import UsageError
from scidiff.domains.crystal import archive, codec, entries
from scidiff.domains.crystal import data as reading
from scidiff.domains.crystal.files import as_cif, as_poscar
from scidiff.domains.crystal.textbook import crystals
from scidiff.store import cards
from scidiff.store.fetch import provide


def loaded(name, root, split, **options):
    found = provide(cards.find(name), root)
    return reading.dataset(found.files, found.reader, {**found.options, **options}, split)


def test_perov_5_open_is_split_as_its_card_says(data):
    parts = {split: loaded("perov_5_open", data / "crystal", split) for split in ("train", "valid", "test")}
    splits = cards.find("perov_5_open").splits
    assert {k: len(v) for k, v in parts.items()} == {k: splits[k] for k in parts} and not parts["train"].rejected
    ids = [set(v.names) for v in parts.values()]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
    one = parts["test"].objects[0]
    assert len(one) == 5 and codec.identity(one) == parts["test"].names[0] and one.properties["heat_all"] > -5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mp_20_open", "mpts_52_open", "carbon_24_unique", "carbon_24_unique_htl",
                                  "supercon_3d"])
def test_open_splits_share_no_id(name, data):
    parts = {split: loaded(name, data / "crystal", split) for split in ("train", "valid", "test")}
    ids = [set(v.names) for v in parts.values()]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
    splits = cards.find(name).splits
    assert {k: len(v) for k, v in parts.items()} == {k: splits[k] for k in parts}
    if name == "mp_20_open":
        assert len(loaded(name, data / "crystal", "test", where="in_first_1000")) == 1000
    if name == "mpts_52_open":
        reasons = [r.reason for r in parts["train"].rejected]
        assert reasons.count("its id belongs to the test part") == 650
        assert sum("occurs more than once" in reason for reason in reasons) == 423


def write_cifs(folder, structures):
    folder.mkdir(exist_ok=True)
    for s in structures:
        (folder / f"{codec.identity(s)}.cif").write_text(as_cif(s, codec.identity(s)))


def test_a_folder_of_cifs_keeps_names_and_splits_by_composition(tmp_path):
    known = crystals()
    write_cifs(tmp_path / "a", known)
    found = reading.read(tmp_path / "a")
    assert sorted(found.names) == sorted(codec.identity(s) for s in known) and not found.rejected
    by_name = dict(zip(found.names, found.objects, strict=True))
    for s in known:
        np.testing.assert_allclose(by_name[codec.identity(s)].lattice.parameters, s.lattice.parameters, atol=1e-6)
        np.testing.assert_allclose(by_name[codec.identity(s)].frac_coords, np.mod(s.frac_coords, 1), atol=1e-7)
    sides = {part: set(reading.read(tmp_path / "a", part, test_share=0.5).names) for part in ("train", "test")}
    assert sides["train"] | sides["test"] == set(by_name) and not sides["train"] & sides["test"] and sides["test"]
    assert all(("zinc-blende" in side) == ("wurtzite" in side) for side in sides.values())  # both are ZnS
    write_cifs(tmp_path / "b", known[:7])  # a crystal falls on the same side whatever else the folder holds
    assert set(reading.read(tmp_path / "b", "test", test_share=0.5).names) == sides["test"] & set(
        codec.identity(s) for s in known[:7])


def test_one_composition_alone_is_split_by_names(tmp_path):
    diamond = crystals()[4]
    for k in range(40):
        diamond.properties["id"] = f"c{k}"
        write_cifs(tmp_path, [diamond])
    assert 5 < len(reading.read(tmp_path, "test", test_share=0.5)) < 35


def write_table(path, structures):
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["", "material_id", "band_gap", "cif"])
        for i, s in enumerate(structures):
            table.writerow([i, codec.identity(s), 0.5 * i, as_cif(s, codec.identity(s))])


def test_official_folders_bring_their_split(tmp_path):
    known = crystals()
    for name, part in (("train", known[:6]), ("val", known[6:9]), ("test", known[9:])):
        write_table(tmp_path / f"{name}.csv", part)
    assert reading.read(tmp_path, "train").names == [codec.identity(s) for s in known[:6]]
    assert reading.read(tmp_path, "valid").names == [codec.identity(s) for s in known[6:9]]
    found = reading.read(tmp_path, "test")
    assert found.names == [codec.identity(s) for s in known[9:]]
    assert [s.properties["band_gap"] for s in found.objects] == [0.0, 0.5, 1.0]
    assert len(reading.read(tmp_path)) == 12
    assert loaded("mp_20", tmp_path, "valid").names == [codec.identity(s) for s in known[6:9]]


def test_a_large_table_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIDIFF_HOME", str(tmp_path / "home"))
    from scidiff.domains.crystal import cif, table

    monkeypatch.setattr(table, "_KEPT_FROM", 3)
    write_table(tmp_path / "t.csv", crystals())
    with (tmp_path / "t.csv").open("a") as stream:
        stream.write("12,broken,0.1,data_x\n")
    first = reading.read(tmp_path / "t.csv", niggli=True)
    calls = []
    monkeypatch.setattr(cif, "entries", lambda *a: calls.append(a))
    again = reading.read(tmp_path / "t.csv", niggli=True)
    assert not calls and again.names == first.names and again.rejected == first.rejected and len(again.rejected) == 1
    for a, b in zip(first.objects, again.objects, strict=True):
        np.testing.assert_allclose(a.lattice.parameters, b.lattice.parameters, atol=1e-9)
        np.testing.assert_allclose(a.distance_matrix, b.distance_matrix, atol=1e-5)
        assert a.properties == b.properties


def test_reduction_gives_the_niggli_cell_of_the_same_lattice():
    from pymatgen.core import Lattice

    draw = np.random.default_rng(0)
    for s in crystals():
        mixing = np.eye(3, dtype=int)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            mixing[i] += draw.integers(-2, 3) * mixing[j]
        matrix = mixing @ s.lattice.matrix
        frac = s.frac_coords @ np.linalg.inv(mixing)
        entry = entries.Entry("x", "x", [site.specie.Z for site in s], frac, matrix)
        found = entries.judged(entry, entries.Rules(niggli=True)).structure()
        best = Lattice(s.lattice.matrix).get_niggli_reduced_lattice()
        np.testing.assert_allclose(np.sort(found.lattice.abc), np.sort(best.abc), atol=1e-5)
        assert found.volume == pytest.approx(s.volume)
        for i in range(len(s)):
            for j in range(i):
                assert found.get_distance(i, j) == pytest.approx(s.get_distance(i, j), abs=1e-5)


def test_archives_written_by_us_are_read_back(tmp_path):
    known = crystals()
    packed = archive.packed([entries.of_structure(s, "", codec.identity(s), {"gap": 1.5}) for s in known])
    (tmp_path / "x.npz").write_bytes(packed)
    found = reading.read(tmp_path / "x.npz")
    assert found.names == [codec.identity(s) for s in known] and found.objects[3].properties["gap"] == 1.5
    for a, b in zip(known, found.objects, strict=True):
        np.testing.assert_allclose(a.lattice.parameters, b.lattice.parameters, atol=1e-6)
        assert codec.symbols(a) == codec.symbols(b)


def test_vasp_files_and_zip_files(tmp_path):
    known = crystals()
    (tmp_path / "POSCAR").write_text(as_poscar(known[7], "rutile"))
    found = reading.read(tmp_path / "POSCAR").objects[0]
    assert codec.formula(found) == "TiO2" and found.volume == pytest.approx(known[7].volume)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for s in known[:3]:
            packed.writestr(f"inner/{codec.identity(s)}.cif", as_cif(s, "x"))
        packed.writestr("notes.txt", "nothing")
    assert reading.read(tmp_path / "all.zip").names == ["fluorite", "periclase", "rock-salt"]


def test_symmetry_operations_are_carried_out(tmp_path):
    (tmp_path / "salt.cif").write_text("""data_salt
_symmetry_space_group_name_H-M 'F m -3 m'
_symmetry_Int_Tables_number 225
_cell_length_a 5.64(1)
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na1 Na+ 0 0 0
Cl1 Cl- 0.5 0.5 0.5
""")
    found = reading.read(tmp_path / "salt.cif").objects[0]
    assert len(found) == 8 and codec.composition(found) == {"Na": 4, "Cl": 4}
    assert found.get_distance(0, next(i for i in range(8) if found[i].specie.symbol == "Cl")) >= 2.82 - 1e-3
    assert len(reading.read(tmp_path / "salt.cif", niggli=True).objects[0]) == 8  # reduced, not made primitive


def test_prototypes_read_offline():
    found = provide(cards.find("aflow"))
    assert found.origin == "package"
    everything = reading.dataset(found.files, found.reader, found.options, None)
    assert len(everything) + len(everything.rejected) == 288 and len(everything) > 200
    train, test = (reading.dataset(found.files, found.reader, found.options, s) for s in ("train", "test"))
    assert len(train) + len(test) == len(everything) and 5 < len(test) < 60
    assert len(reading.dataset(found.files, found.reader, {**found.options, "max_atoms": 8}, "train")) < len(train)


def test_unknown_options_splits_and_readers_get_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'max_atoms'"):
        reading.known({"max_atom": 3})
    with pytest.raises(UsageError, match="Did you mean 'valid'"):
        reading.read(tmp_path, "validation")
    with pytest.raises(UsageError, match="Did you mean 'crystal_table'"):
        reading.dataset({}, "crystal_tables", {})
