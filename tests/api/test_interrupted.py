"""Runs that are killed or interrupted: `--resume` finishes them with the samples of an uninterrupted run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from scidiff.cli.app import run

WORDS = ["generate", "molecule", "-n", "64", "--steps", "20", "--batch", "4", "sampling.metrics=false",
         "sampling.report=false"]
FINAL = ("samples.csv", "samples.sdf", "smiles.smi", "metrics.json", "report.html", "finished")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run([*WORDS, "--out", str(folder)]) == 0
    return folder


def wait_for(process, what, seconds=60.0):
    """Waits until `what()` is true, or the process has ended."""
    end = time.monotonic() + seconds
    while not what() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    assert what(), process.communicate()[1]


def parts(folder):
    return sorted((folder / "parts").glob("chunk_*.safetensors"))


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_that_was_stopped_is_finished_by_resume(number, code, spawn, tmp_path, whole, capsys, monkeypatch):
    folder = tmp_path / "run"
    process = spawn(*WORDS, "--out", folder)
    wait_for(process, lambda: len(parts(folder)) >= 3)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code and "Traceback" not in err
    assert not [name for name in FINAL if (folder / name).exists()], "nothing may look finished"
    before = {file.name: file.stat().st_mtime_ns for file in parts(folder)}
    assert 3 <= len(before) < 16
    assert "not finished yet" in (folder / "README.txt").read_text()
    if number == signal.SIGINT:
        last = err.splitlines()[-1]
        assert last == (f"Error: Interrupted; what is finished lies in {folder}. "
                        f"Continue with: scidiff generate --resume {folder}")
    monkeypatch.chdir(tmp_path)
    assert run(["generate", "--resume", str(folder)]) == 0
    for name in ("samples.csv", "samples.sdf", "smiles.smi", "chunks.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert {f.name for f in folder.iterdir()} == {f.name for f in whole.iterdir()}
    assert not list(folder.rglob(".tmp-*"))


def test_finished_chunks_are_not_drawn_again(draw, elsewhere, table):
    from scidiff.domains.model import Model

    class Stop(Exception):
        pass

    def stop(label, done, total):
        if label == "Sampling" and done > 4:
            raise Stop

    with pytest.raises(Stop):
        draw("run", "sampling.num=8", "sampling.chunk=4", progress=stop)
    (first,) = parts(Path("run"))
    written, calls = first.read_bytes(), []
    original = Model.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "draw", lambda self, drawing, ctx, rows, *rest: calls.append(list(rows)) or original(
            self, drawing, ctx, rows, *rest))
        patch.setattr("scidiff.store.run.RunFolder.finish", lambda *_, **__: None)
        made = draw("run", "sampling.num=8", "sampling.chunk=4", "resume=run")
    assert len(calls) == 1 and len(calls[0]) == 4 and first.read_bytes() == written
    assert made.samples.meta["seconds"] is None, "the time of a part is not the time of the run"
    draw("whole", "sampling.num=8", "sampling.chunk=4")
    assert table("run") == table("whole")


def test_single_samples_can_be_resumed_too(draw, elsewhere, table):
    class Stop(Exception):
        pass

    def stop(label, done, total):
        raise Stop

    with pytest.raises(Stop):
        draw("run", "sampling.num=8", "sampling.chunk=4", "sampling.only=[s0001,s0006]", progress=stop)
    assert run(["generate", "--resume", "run"]) == 0
    draw("whole", "sampling.num=8", "sampling.chunk=4")
    assert table("run") == [table("whole")[i] for i in (1, 6)]
    assert not Path("runs").exists()


@pytest.mark.slow
def test_an_interrupted_training_is_continued(spawn, tmp_path, brief):
    words = [*brief, "trainer.max_steps=400", "trainer.check_every=20"]
    process = spawn("train", "nci5k_flow", "--out", tmp_path / "run", *words)
    wait_for(process, lambda: (tmp_path / "run" / "last.ckpt").exists(), 120)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130 and "scidiff train --resume" in err.splitlines()[-1] and "Traceback" not in err
    assert run(["train", "--resume", str(tmp_path / "run")]) == 0
    assert run(["train", "nci5k_flow", "--out", str(tmp_path / "whole"), *words]) == 0
    name = "checkpoint/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
