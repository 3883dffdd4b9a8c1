"""The README does what it says: its blocks run, in order, in one empty folder.

A comment before a block says how, where that is needed:

    <!-- test: skip (reason) -->                          is not run
    <!-- test: slow, append to train: key=value ... -->   runs with the slow tests; the words are added to
                                                          `scidiff train`, so that minutes become seconds
    <!-- test: needs NAME -->                             is skipped while that shipped model is absent

The folder holds `mine.smi` and `my_graphs.graphml`, the files that the README calls the reader's own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^<!-- test: (?P<how>.*?) -->\n)?^```(?P<language>bash|python)\n(?P<code>.*?)^```", re.M | re.S)
HOW = re.compile(r"^(skip \(.+\)|(slow)?(, )?(needs \w+)?(, )?(append to train: .+)?)$")


@dataclass(frozen=True)
class Block:
    """One fenced block and how it is tested."""

    number: int
    language: str
    code: str
    how: str

    @property
    def skipped(self) -> str:
        """Why it is not run; empty where it is."""
        found = re.match(r"skip \((.+)\)", self.how)
        return found[1] if found else ""

    @property
    def needs(self) -> str:
        found = re.search(r"needs (\w+)", self.how)
        return found[1] if found else ""

    @property
    def lines(self) -> list[list[str]]:
        """The commands as they are run."""
        if self.language == "python":
            return [[sys.executable, "-c", self.code]]
        found = re.search(r"append to train: (.+)", self.how)
        more = shlex.split(found[1]) if found else []
        commands = [shlex.split(line, comments=True) for line in self.code.splitlines()]
        return [self._line(words, more) for words in commands if words]

    @staticmethod
    def _line(words: list[str], more: list[str]) -> list[str]:
        assert words[0] == "scidiff", f"the README test runs scidiff and Python only, not {words[0]!r}"
        return [sys.executable, "-m", *words, *(more if words[1] == "train" else [])]


BLOCKS = [Block(i, m["language"], m["code"], m["how"] or "") for i, m in enumerate(BLOCK.finditer(README), 1)]


def _parameters() -> list:
    return [pytest.param(block, id=f"{block.number:02d}-{block.language}", marks=[pytest.mark.slow]
                         if block.how.startswith("slow") else []) for block in BLOCKS if not block.skipped]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with a file of molecules and one of graphs in it."""
    place = tmp_path_factory.mktemp("readme")
    rdkit = pytest.importorskip("rdkit", reason="the README's molecules need rdkit")
    lines = (Path(rdkit.__file__).parent / "Data/NCI/first_5K.smi").read_text(encoding="utf-8").splitlines()
    (place / "mine.smi").write_text("\n".join(lines[:300]) + "\n", encoding="utf-8")
    networkx = pytest.importorskip("networkx", reason="the README's graphs need networkx")
    networkx.write_graphml(networkx.wheel_graph(20), place / "my_graphs.graphml")
    return place


def test_the_blocks_are_found_and_say_how_they_are_tested():
    assert len(BLOCKS) == len(re.findall(r"^```(bash|python)$", README, re.M))
    assert len(BLOCKS) >= 10
    for block in BLOCKS:
        assert HOW.match(block.how), block.how


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_command_is_in_the_table():
    from scidiff.cli.app import app

    table = README[README.index("## Commands"):README.index("## What it does")]
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert re.search(rf"`(scidiff )?{name}`", table), name


@pytest.mark.parametrize("block", _parameters())
def test_a_block_runs(block, folder):
    if block.needs and not (ROOT / "scidiff/pretrained" / block.needs / "model.safetensors").is_file():
        pytest.skip(f"the shipped model {block.needs} is not in this checkout")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    for words in block.lines:
        done = subprocess.run(words, cwd=folder, text=True, capture_output=True, env=environment, timeout=600)
        assert done.returncode == 0, f"{shlex.join(words[2:])}\n{done.stdout}\n{done.stderr}"
