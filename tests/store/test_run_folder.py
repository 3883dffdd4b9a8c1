"""Run folders: complete from the start, continued after a kill, never half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.store.run import RunFolder, open_existing, part_name

CONFIG = {"seed": 7, "data": {"name": "qm9"}, "sampling": {"num": 5, "chunk": 2}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(
        "generate", "qm9_flow", 7, CONFIG, root=tmp_path, command=["scidiff", "generate", "a b"]
    )


def test_a_new_run_can_be_understood_repeated_and_cited(run: RunFolder, tmp_path: Path) -> None:
    assert run.path.parent == tmp_path / "generate" / "qm9_flow" and run.path.name.endswith("_s7")
    assert run.config == CONFIG
    assert (run / "command.txt").read_text() == "scidiff generate 'a b'\n"
    facts = json.loads((run / "environment.json").read_text())
    assert facts["seed"] == 7 and facts["device"] == "cpu"
    assert {"python", "torch", "numpy"} <= facts["versions"].keys()
    assert "Ramakrishnan" in (run / "references.bib").read_text()
    readme = (run / "README.txt").read_text()
    for file in run.path.iterdir():
        assert file.name in readme
    assert "--resume" in readme


def test_two_runs_in_the_same_second_get_two_folders(tmp_path: Path) -> None:
    made = {
        RunFolder.create("generate", "x", 0, {}, root=tmp_path, command=["scidiff"]).path for _ in range(3)
    }
    assert len(made) == 3


def test_parts_round_trip_and_only_missing_chunks_remain(run: RunFolder) -> None:
    run.set_chunks([[0, 1], [2, 3], [4]])
    state = {
        "atoms": torch.arange(6).reshape(2, 3),
        "x": torch.linspace(0, 1, 6, dtype=torch.float64).reshape(2, 3).T,
    }
    run.write_part(part_name(1), state, {"nfe": 50, "seeds": (1, 2)})
    again = open_existing(run.path)
    assert again.remaining() == [0, 2] and again.parts() == ["chunk_00001"]
    back, notes = again.read_part(part_name(1))
    assert notes == {"nfe": 50, "seeds": [1, 2]}
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)
    again.set_chunks([[0, 1], [2, 3], [4]])
    with pytest.raises(ScidiffError, match="other chunks"):
        again.set_chunks([[0], [1]])


def test_finishing(run: RunFolder) -> None:
    run.set_chunks([[0]])
    run.write_part(part_name(0), {"x": torch.zeros(1)})
    run.finish({"valid": 1})
    assert run.finished and run.parts() == [] and "complete" in (run / "README.txt").read_text()
    with pytest.raises(UsageError, match="already finished"):
        open_existing(run.path)
    assert open_existing(run.path, allow_finished=True).chunks() == [[0]]


def test_folders_that_are_no_runs(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_existing(tmp_path / "none")
    with pytest.raises(UsageError, match="not a run folder"):
        open_existing(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        RunFolder.create("generate", "x", 0, {}, out=run.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ScidiffError, match="Cannot create"):
        RunFolder.create("generate", "x", 0, {}, out=tmp_path / "file" / "run")


def test_a_damaged_part_says_what_to_do(run: RunFolder) -> None:
    run.write_part("chunk_00000", {"x": torch.zeros(8)})
    file = run / "parts" / "chunk_00000.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ScidiffError, match="Delete it and resume"):
        run.read_part("chunk_00000")


@pytest.mark.slow
def test_kill_while_writing_leaves_whole_parts_only(run: RunFolder) -> None:
    run.set_chunks([[i] for i in range(1000)])
    code = (
        "import sys, torch; from scidiff.store.run import open_existing, part_name\n"
        "run = open_existing(sys.argv[1])\n"
        "for i in range(1000):\n"
        "    run.write_part(part_name(i), {'x': torch.full((200_000,), float(i))})\n"
        "    print(i, flush=True)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    for _ in range(3):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    again = open_existing(run.path)
    done = [index for index in range(1000) if index not in again.remaining()]
    assert len(done) >= 3 and len(done) < 1000
    for index in done:
        assert torch.all(again.read_part(part_name(index))[0]["x"] == index)
    assert not list(again.path.rglob(".tmp-*"))
