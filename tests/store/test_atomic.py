"""Atomic writing: the old file or the whole new one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from scidiff.core.errors import ScidiffError
from scidiff.store import atomic
from scidiff.store.locate import shared_folder


def test_a_failed_block_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = atomic.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match="in the middle"), atomic.writing(file) as temporary:
        temporary.write_text("ne")
        raise ValueError("in the middle")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_name_keeps_double_suffixes(tmp_path: Path) -> None:
    with atomic.writing(tmp_path / "scan.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert (tmp_path / "scan.nii.gz").read_bytes() == b"x"


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic.writing_folder(target) as new:
        (new / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic.writing_folder(target) as new:
        (new / "two").write_text("2")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["one"]
    with atomic.writing_folder(target) as new:
        (new / "two").write_text("2")
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_impossible_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for act in (
        lambda: atomic.ensure_folder(tmp_path / "file" / "below"),
        lambda: atomic.write_text(tmp_path / "file" / "x.txt", "y"),
    ):
        with pytest.raises(ScidiffError) as caught:
            act()
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_json_is_strict_and_numbers_are_plain(tmp_path: Path) -> None:
    file = atomic.write_json(
        tmp_path / "m.json", {"a": float("nan"), "b": np.float32(0.5), "c": np.arange(3), "d": (1, tmp_path)}
    )
    assert json.loads(file.read_text()) == {"a": None, "b": 0.5, "c": [0, 1, 2], "d": [1, str(tmp_path)]}
    with pytest.raises(ScidiffError, match="object"):
        atomic.plain({"x": object()})


def test_a_table_reads_back_whatever_its_cells_hold(tmp_path: Path) -> None:
    rows = [{"id": "s0", "reason": 'has a "quote", a comma'}, {"id": "s1", "reason": "two\nlines"}]
    with atomic.write_table(tmp_path / "samples.csv", rows).open(newline="") as stream:
        assert list(csv.DictReader(stream)) == rows
    assert atomic.write_table(tmp_path / "none.csv", []).read_bytes() == b""


def test_yaml_round_trip_without_anchors(tmp_path: Path) -> None:
    shared = [1, 2]
    file = atomic.write_yaml(tmp_path / "c.yaml", {"z": shared, "a": shared, "text": "yes", "none": None})
    assert "&" not in file.read_text()
    assert atomic.read_yaml(file) == {"z": [1, 2], "a": [1, 2], "text": "yes", "none": None}
    assert list(atomic.read_yaml(file)) == ["z", "a", "text", "none"]


@pytest.mark.parametrize(
    "text", ["- 1\n- 2\n", "just text", "a: [1, 2", "!!python/object/apply:os.system ['true']", "", "1: 2"]
)
def test_yaml_that_is_no_mapping_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ScidiffError, match=r"c\.yaml") as caught:
        atomic.read_yaml(tmp_path / "c.yaml", "config")
    assert "\n" not in str(caught.value)


def test_sweep_removes_leftovers_only(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / ".tmp-ab-x.safetensors").write_text("half")
    (tmp_path / ".tmp-cd-model").mkdir()
    (tmp_path / "keep.txt").write_text("whole")
    atomic.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["keep.txt", "parts"]


def test_shared_folders_are_found_from_the_checkout() -> None:
    assert (shared_folder("datasets") / "qm9" / "card.yaml").is_file()
    assert shared_folder("conf").is_dir()
