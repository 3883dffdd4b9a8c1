"""Readers with broken lines, splits by hash, and files that carry one id everywhere."""

from __future__ import annotations

import csv
import gzip

import pytest

from scidiff.core.errors import UsageError

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")

from scidiff.domains.base import Samples, sample_id  # noqa: E402
from scidiff.domains.molecule import MoleculeDomain, chemistry  # noqa: E402
from scidiff.domains.molecule.data import hashed_side, read_card, read_table  # noqa: E402


def test_smi_with_broken_lines(tmp_path):
    file = tmp_path / "mine.smi"
    file.write_text(
        "smiles name\nCCO ethanol\n\n# remark\nnot_a_molecule x\nc1ccccc1\nC[N](C)(C)C amine\n", encoding="utf-8"
    )
    records = read_table(file)
    assert records.names == ["ethanol", "6", "amine"]
    assert [chemistry.reason(m) for m in records.objects] == ["", "", "valence 4 of N2 exceeds 3"]
    [bad] = records.rejected
    assert (bad.where, bad.text, bad.reason) == ("mine.smi:5", "not_a_molecule", "not a SMILES string")
    assert len(read_table(file, invalid="reject")) == 2


def test_csv_finds_its_column_and_split(tmp_path):
    file = tmp_path / "t.csv.gz"
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.write('id;SMILES;split\na;CCO;train\nb;"CC\n";test\nc;;train\n')
    assert read_table(file).names == ["a", "b"]
    assert read_table(file, "test").names == ["b"]
    assert [r.reason for r in read_table(file, "train").rejected] == ["no SMILES"]
    other = tmp_path / "u.csv"
    other.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no column of SMILES"):
        read_table(other)
    with pytest.raises(UsageError, match="no column 'smile'"):
        read_table(file, column="smile")


@pytest.mark.parametrize("name", ["empty.smi", "empty.csv", "empty.sdf"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="is empty"):
        read_table(tmp_path / name)


def test_what_is_no_molecule_file(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_table(tmp_path / "absent.smi")
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(UsageError, match="no molecule file"):
        read_table(tmp_path / "x.pdf")
    (tmp_path / "x.smi").write_bytes(b"\xff\xfe\x00C")
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path / "x.smi")
    (tmp_path / "y.smi.gz").write_bytes(b"plain text")
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path / "y.smi.gz")
    with pytest.raises(UsageError, match="holds no molecule file"):
        (tmp_path / "folder").mkdir()
        read_table(tmp_path / "folder")


def test_filters_name_what_they_drop(tmp_path):
    file = tmp_path / "f.smi"
    file.write_text("CCCCCC long\nCCO.[Na+] salt\nC[Hg]C metal\nC[CH2] radical\n", encoding="utf-8")
    records = read_table(file, "train", test_share=0.0, largest_fragment=True, max_atoms=4, atoms=["C", "O"])
    assert [chemistry.canonical(m) for m in records.objects] == ["CCO"]
    assert [r.reason for r in records.rejected] == [
        "6 heavy atoms, more than 4",
        "the atom type Hg is not among C, O",
        "atom C2 is a radical",
    ]


def test_hash_split_depends_on_the_molecule_alone(tmp_path):
    smiles = ["C" * k + t for k in range(1, 41) for t in ("", "O", "N", "F", "=O")]
    for name, lines in (("a.smi", smiles), ("b.smi", smiles[::-1])):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    held = {n: {chemistry.canonical(m) for m in read_table(tmp_path / n, "test").objects} for n in ("a.smi", "b.smi")}
    kept = {chemistry.canonical(m) for m in read_table(tmp_path / "a.smi", "train").objects}
    assert held["a.smi"] == held["b.smi"] and not held["a.smi"] & kept
    assert len(held["a.smi"]) + len(kept) == len(smiles)
    assert 0.03 < len(held["a.smi"]) / len(smiles) < 0.2
    assert hashed_side(Chem.MolFromSmiles("OCC")) == hashed_side(Chem.MolFromSmiles("CCO"))


def test_card_with_a_list_of_test_rows(tmp_path):
    (tmp_path / "s.txt").write_text("C\nCC\nCCC\nCCCC\n", encoding="utf-8")
    (tmp_path / "i.json").write_text('{"valid_idxs": ["1", "3"]}', encoding="utf-8")
    files = {n: tmp_path / n for n in ("s.txt", "i.json")}
    options = {"smiles_file": "s.txt", "test_file": "i.json", "test_key": "valid_idxs", "first_index": 0}
    assert [m.GetNumAtoms() for m in read_card(files, options, "test").objects] == [2, 4]
    assert [m.GetNumAtoms() for m in read_card(files, options, "train").objects] == [1, 3]
    assert [m.GetNumAtoms() for m in read_card(files, {**options, "max_atoms": 2}, "test").objects] == [2]
    with pytest.raises(UsageError, match="no option 'smile_file'"):
        read_card(files, {"smile_file": "s.txt"})


def test_written_files_agree_and_read_back(tmp_path):
    smiles = ["CCO", "C[N](C)(C)C", "C[C@H](N)C(=O)[O-]", "C.O", "c1ccccc1"]
    domain = MoleculeDomain()
    molecules = [chemistry.finished(Chem.MolFromSmiles(s, sanitize=False)) for s in smiles]
    verdicts = domain.check(molecules)
    samples = Samples(molecules, [sample_id(i) for i in range(5)], 3, verdicts, domain)
    written = domain.write(samples, tmp_path)
    assert {p.name for p in written} == {"samples.csv", "smiles.smi", "samples.sdf", "molecules.png"}
    with (tmp_path / "samples.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["id"] for r in rows] == samples.ids and {r["seed"] for r in rows} == {"3"}
    assert [r["valid"] for r in rows] == ["True", "False", "True", "True", "True"]
    assert [r["connected"] for r in rows] == ["True", "True", "True", "False", "True"]
    expected = {r["id"]: r["smiles"] for r in rows if r["valid"] == "True"}
    for name in ("smiles.smi", "samples.sdf"):
        back = domain.read(tmp_path / name)
        assert {i: chemistry.canonical(m) for i, m in zip(back.names, back.objects, strict=True)} == expected
    whole = domain.read(tmp_path)  # the run folder: invalid samples stay invalid
    assert whole.names == samples.ids and domain.check(whole.objects) == verdicts
    assert (tmp_path / "molecules.png").read_bytes().startswith(b"\x89PNG")


def test_sdf_with_a_broken_record(tmp_path):
    good = Chem.MolToMolBlock(Chem.AddHs(Chem.MolFromSmiles("CCO")))
    (tmp_path / "x.sdf").write_text(f"{good}$$$$\nbroken\n\n\nnonsense\nM  END\n$$$$\n{good}$$$$\n", encoding="utf-8")
    records = read_table(tmp_path / "x.sdf")
    assert [chemistry.canonical(m) for m in records.objects] == ["CCO", "CCO"]  # explicit hydrogens become implicit
    assert [r.reason for r in records.rejected] == ["the record cannot be parsed"]


def test_staged_split(data):
    records = read_table(data / "graph" / "qm9_smiles.csv.gz", "test", limit=100)
    assert len(records) == 100 and not records.rejected and records.names[0] == "6"
