"""Crystals from the command line: train on what pymatgen carries, predict, restrain, start, rank, measure."""

from __future__ import annotations

import json
import warnings

import pytest

pytest.importorskip("pymatgen.core", reason="the crystal domain needs pymatgen")

from scidiff.cli.app import run
from scidiff.domains.crystal.data import read

QUICK = ["--steps", "3", "sampling.metrics=false", "sampling.report=false"]
SMALL = ["train", "aflow_bfn", "trainer=debug", "data.options.max_atoms=8", "backbone.width=16", "backbone.depth=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of the AFLOW prototypes of up to eight atoms: the offline walk-through."""
    folder = tmp_path_factory.mktemp("aflow") / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def draw(model, tmp_path, capsys):
    """`draw("--formula", "NaCl")`: the folder of a finished run, its crystals read back."""
    def generate(*words, out="drawn", quick=QUICK, code=0):
        capsys.readouterr()
        given = ["generate", "crystal", "--from", str(model), *words, *quick, "--out", str(tmp_path / out)]
        assert run(given) == code, capsys.readouterr().err
        return tmp_path / out
    return generate


def crystals(folder):
    return read(folder).objects


def test_the_walk_through_trains_on_what_pymatgen_carries(model):
    config = (model / "checkpoint" / "config.yaml").read_text()
    assert "scidiff.core.path.circular.PlanarBelief" in config and "clean" in config
    assert "AFLOW" in (model / "checkpoint" / "card.md").read_text()


def test_a_formula_becomes_crystals_of_every_multiple(draw, table):
    folder = draw("--formula", "NaCl", "--z", "1,2,4", "-n", "6", "--rank", "--poscar")
    rows = table(folder)
    assert [r["num_atoms"] for r in rows] == ["2", "4", "8", "2", "4", "8"] and {r["formula"] for r in rows} == {"NaCl"}
    assert sorted(int(r["rank"]) for r in rows) == list(range(1, 7)) and all(r["cost_per_atom"] for r in rows)
    assert {f.stem for f in (folder / "cif").iterdir()} <= {r["id"] for r in rows}
    assert all(f.suffix == ".vasp" for f in (folder / "poscar").iterdir()) and (folder / "crystals.png").is_file()
    assert all(s.composition.reduced_formula == "NaCl" for s in crystals(folder))
    assert {"space_group", "density_g_per_cm3", "volume_per_atom_A3", "reason"} <= set(rows[0])


def test_elements_and_numbers_of_atoms_are_obeyed(draw):
    folder = draw("--elements", "O,Ti,Sr", "--num-atoms", "2-4", "-n", "8")
    found = crystals(folder)
    assert found and all({e.symbol for e in s.composition} <= {"O", "Ti", "Sr"} and 2 <= len(s) <= 4 for s in found)


def test_a_cell_and_sites_stay_where_they_are_put(draw):
    folder = draw("--lattice", "4.2,4.2,6.3,90,90,120", "--sites", "Ti 0 0 0; O .5 .5 .25", "--num-atoms", "4", "-n",
                  "3")
    for structure in crystals(folder):
        assert structure.lattice.parameters == pytest.approx((4.2, 4.2, 6.3, 90, 90, 120), abs=1e-3)
        assert [s.species_string for s in structure[:2]] == ["Ti", "O"]
        assert structure.frac_coords[1] == pytest.approx([0.5, 0.5, 0.25], abs=1e-5)


def test_a_sample_depends_on_seed_and_number_alone_and_an_interrupted_run_continues(draw, table):
    whole = table(draw("--formula", "NaCl", "-n", "4", out="whole"))
    part = table(draw("--formula", "NaCl", "-n", "4", "--batch", "1", out="part"))
    assert [(r["num_atoms"], float(r["volume_per_atom_A3"] or 0)) for r in whole] == [
        (r["num_atoms"], pytest.approx(float(r["volume_per_atom_A3"] or 0), rel=1e-3)) for r in part]
    again = draw("--formula", "NaCl", "-n", "4", out="again")
    (again / "finished").unlink()
    assert run(["generate", "--resume", str(again)]) == 0
    assert table(again) == whole


def test_compositions_of_a_folder_are_predicted_and_paired_by_name(draw, table, tmp_path):
    from scidiff.domains.crystal.files import as_cif
    from scidiff.domains.crystal.textbook import crystals as textbook

    known = [s for s in textbook() if len(s) <= 8][:3]
    (tmp_path / "known").mkdir()
    for i, s in enumerate(known):
        (tmp_path / "known" / f"mp-{i}.cif").write_text(as_cif(s, f"mp-{i}"))
    folder = draw("--like", str(tmp_path / "known"), "-n", "6")
    assert [r["material_id"] for r in table(folder)] == ["mp-0", "mp-1", "mp-2"] * 2
    assert [r["num_atoms"] for r in table(folder)[:3]] == [str(len(s)) for s in known]
    records = read(folder)  # the run read again still knows which row each sample predicts
    assert {s.properties["id"] for s in records.objects} <= {"mp-0", "mp-1", "mp-2"}
    assert len(set(records.names)) == len(records.names)
    capped = draw("--like", str(tmp_path / "known"), "--formula", "NaCl", out="refused", code=2)
    assert not capped.exists()


def test_prediction_starts_from_a_template(draw, table, capsys):
    folder = draw("--formula", "NaCl", "--z", "1", "-n", "2", "--start", "template", "sampling.t_start=0")
    told = capsys.readouterr().out
    assert "2 of 2 near a template, at t = 0" in told
    first, second = table(folder)
    assert first["volume_per_atom_A3"] == second["volume_per_atom_A3"] and first["valid"] == "True"
    moved = table(draw("--formula", "NaCl", "--z", "1", "-n", "2", "--start", "template", "sampling.t_start=0.2",
                       out="moved"))
    assert moved[0]["volume_per_atom_A3"] != moved[1]["volume_per_atom_A3"]


@pytest.mark.parametrize("words, sentence", [
    (["--formula", "NaXl"], "names the unknown element"),
    (["--formula", "Na(Cl"], "is not closed"),
    (["--formula", "nacl"], "element symbols begin with a capital letter"),
    (["--formula", "Na9Cl9"], "has 18 atoms, and this model makes at most 8"),
    (["--formula", "NaCl", "--z", "1,9"], "with z=9 has 18 atoms"),
    (["--formula", "NaCl", "--z", "some"], "some"),
    (["--z", "2"], "no formula is given"),
    (["--elements", "Xx"], "Xx"),
    (["--lattice", "4,4"], "does not describe a cell"),
    (["--lattice", "4,4,4,10,10,170"], "does not describe a cell"),
    (["--sites", "Ti 0 0"], "not an element and three fractional coordinates"),
    (["--num-atoms", "90"], "within 1-8"),
    (["--start", "template"], "A template belongs to a composition"),
    (["--start", "templte", "--formula", "NaCl"], "do not start from 'templte'"),
    (["--formula", "NaCl", "--start", "template", "sampling.t_start=1.5"], "lies between 0"),
    (["--like", "mp_21_open"], "mp_21_open"),
    (["--like", "qm9"], "belongs to the domain 'molecule'"),
    (["domain.options.formla=NaCl"], "Did you mean 'formula'"),
])
def test_impossible_requests_get_one_sentence_and_no_files(draw, capsys, words, sentence):
    folder = draw(*words, code=2)
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err and not folder.exists()


CUBE = ["data_x", "_symmetry_space_group_name_H-M 'P 1'", "_cell_length_a 4", "_cell_length_b 4",
        "_cell_length_c 4", "_cell_angle_alpha 90", "_cell_angle_beta 90", "_cell_angle_gamma 90", "loop_",
        "_atom_site_type_symbol", "_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z",
        "_atom_site_occupancy"]
BAD = {
    "partial": ([*CUBE, "Na 0 0 0 0.5", "K 0 0 0 0.5", "Cl .5 .5 .5 1"], "partial occupancy"),
    "nocell": ([*CUBE[:2], *CUBE[8:], "Na 0 0 0 1", "Cl .5 .5 .5 1"], "cell"),
    "nan": ([*CUBE, "Na nan 0 0 1", "Cl .5 .5 .5 1"], ""),
    "unknown": ([*CUBE, "Xq 0 0 0 1", "Cl .5 .5 .5 1"], "no chemical element"),
    "empty": ([""], ""),
}


@pytest.fixture
def messy(tmp_path):
    """A folder of CIFs of which two are usable and one overlaps."""
    folder = tmp_path / "messy"
    folder.mkdir()
    for name, (lines, _) in BAD.items():
        (folder / f"{name}.cif").write_text("\n".join(lines) + "\n")
    for name in ("good", "fine"):
        (folder / f"{name}.cif").write_text("\n".join([*CUBE, "Na 0 0 0 1", "Cl .5 .5 .5 1", ""]))
    (folder / "overlap.cif").write_text("\n".join([*CUBE, "Na 0 0 0 1", "Cl .01 0 0 1", ""]))
    return folder


def test_evaluation_lists_what_it_cannot_read_and_measures_the_rest(messy, tmp_path, capsys):
    assert run(["evaluate", str(messy), "domain=crystal", "--out", str(tmp_path / "measured")]) == 0
    told = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    reasons = {r["where"].split(",")[0].removesuffix(".cif"): r["reason"] for r in told["rejected"]["first"]}
    assert set(reasons) == set(BAD)
    assert all(words in reasons[name] for name, (_, words) in BAD.items())
    values = {m["name"]: m["value"] for m in told["metrics"]}
    assert values["valid"] == pytest.approx(2 / 3) and values["readable"] == pytest.approx(3 / 8)


def test_training_leaves_out_what_it_cannot_use(messy, tmp_path, capsys):
    from scidiff.domains.crystal.files import as_cif
    from scidiff.domains.crystal.textbook import crystals as textbook

    for i, s in enumerate(textbook()):
        (messy / f"book{i}.cif").write_text(as_cif(s, f"book{i}"))
    words = ["train", "domain=crystal", "data=cif_dir", f"data.path={messy}", "data.options.test_share=0",
             "backbone=cspnet_xs", f"prepare={tmp_path / 'cache'}"]
    assert run(words) == 0
    config = (tmp_path / "cache" / "config.yaml").read_text()
    assert "rejected: 6" in config and "count: 14" in config
    (tmp_path / "none").mkdir()
    assert run([*words[:3], f"data.path={tmp_path / 'none'}", *words[4:]]) == 2
    assert "holds no crystal" in capsys.readouterr().err


def test_a_folder_of_tables_with_cifs_is_read_with_its_own_splits(tmp_path):
    import csv

    from scidiff.domains.crystal.files import as_cif
    from scidiff.domains.crystal.textbook import crystals as textbook

    folder, book = tmp_path / "official", textbook()
    folder.mkdir()
    for part, some in (("train", book[:8]), ("val", book[8:10]), ("test", book[10:])):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["material_id", "cif"])
            writer.writerows([[f"{part}-{i}", as_cif(s, "x")] for i, s in enumerate(some)])
    assert run(["train", "domain=crystal", "data=csv_dir", f"data.path={folder}", "backbone=cspnet_xs",
                f"prepare={tmp_path / 'cache'}"]) == 0
    assert "count: 8" in (tmp_path / "cache" / "config.yaml").read_text()


@pytest.mark.slow
def test_a_folder_of_cifs_is_paired_with_a_reference_by_its_file_names(data, tmp_path):
    from scidiff.domains.crystal.files import as_cif
    from scidiff.domains.crystal.rows import records

    truth = records("perov_5_open", "test", data / "crystal")
    (tmp_path / "cifs").mkdir()
    for s, name in zip(truth.objects[:5], truth.names, strict=False):
        (tmp_path / "cifs" / f"{name}.cif").write_text(as_cif(s, name))
    assert run(["evaluate", str(tmp_path / "cifs"), "--reference", "perov_5_open", f"data.root={data / 'crystal'}",
                "--out", str(tmp_path / "measured")]) == 0
    told = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    values = {m["name"]: m["value"] for m in told["metrics"]}
    assert values["match F"] == 1.0 and values["RMSE F"] < 1e-3 and values["METRe"] == 1.0
