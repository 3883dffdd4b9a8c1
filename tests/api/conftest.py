"""A finished run of the shipped model and a small trained model, made once for all tests of this folder."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rdkit", reason="the molecule domain needs rdkit")

TINY = ["backbone.dx=16", "backbone.de=8", "backbone.dc=16", "backbone.depth=1", "backbone.heads=2"]
BRIEF = ["trainer=debug", "trainer.max_steps=4", "trainer.check_every=4", "trainer.preview.num=2", "data.limit=64",
         *TINY]


@pytest.fixture(scope="session")
def table():
    """The rows of a run's samples.csv."""
    def rows(folder):
        with open(Path(folder) / "samples.csv", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    return rows


@pytest.fixture(scope="session")
def draw():
    """`draw(folder, "num=5", ...)`: a run of the shipped model without metrics and report; returns the Outcome."""
    from scidiff import api

    def generate(folder, *words, progress=None):
        settings = ["domain=molecule", "from=qm9", "sampling.steps=6", "sampling.metrics=false",
                    "sampling.report=false"]
        return api.generate([*settings, f"out='{folder}'", *words], progress=progress)
    return generate


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """A complete run from the command line: 12 samples, 6 network calls, chunks of 5."""
    from scidiff.cli.app import run

    folder = tmp_path_factory.mktemp("full") / "run"
    assert run(["generate", "molecule", "-n", "12", "--steps", "6", "--batch", "5", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def brief():
    """Settings that make a training last a second."""
    return list(BRIEF)


@pytest.fixture(scope="session")
def conditioned(tmp_path_factory):
    """The run folder of a tiny model of NCI molecules that knows logP."""
    from scidiff.cli.app import run

    folder = tmp_path_factory.mktemp("conditioned") / "run"
    assert run(["train", "nci5k_flow", "--condition", "logp", "--out", str(folder), *BRIEF]) == 0
    return folder


@pytest.fixture
def spawn(tmp_path, root):
    """Starts `scidiff WORDS` as a process of its own in an empty folder."""
    started = []

    def start(*words, code=None, path=None):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path or root)}
        command = [sys.executable, *(["-c", code] if code else ["-m", "scidiff"]), *map(str, words)]
        # A test run that was started in the background hands down an ignored Ctrl-C.
        started.append(subprocess.Popen(command, env=env, cwd=tmp_path, text=True, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()
