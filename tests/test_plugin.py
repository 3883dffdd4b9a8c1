"""Extension from outside: a third-party package and a fresh `scidiff new domain toy`, each in a virtual environment."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scidiff.cli.new import create

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "examples" / "plugin"
WORDS = ("@name@", "@Name@", "@title@")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The package that `scidiff new domain toy` writes."""
    return create("domain", "toy", tmp_path_factory.mktemp("new"))


def test_the_template_leaves_no_word_unreplaced(toy):
    files = [f for f in toy.rglob("*") if f.is_file()]
    assert {f.suffix for f in files} == {".py", ".md", ".toml", ".yaml"}
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not any(word in text or word in str(file) for word in WORDS), file
        if file.suffix == ".py":
            compile(text, str(file), "exec")


def test_a_package_has_the_rooms_of_a_domain(toy):
    for package in (PLUGIN / "scidiff_ramachandran", toy / "scidiff_toy"):
        for room in ("__init__.py", "data.py", "codec.py", "metrics.py", "view.py", "conf", "datasets"):
            assert (package / room).exists(), package / room


class Venv:
    """A virtual environment that sees this one's packages and this checkout, and one package more."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", folder / "venv"], check=True)
        self.python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        own = Path(self.run("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
        # --system-site-packages reaches the base interpreter only; where that runs a virtual environment of its own
        # (.venv), its packages come in here.
        site = sysconfig.get_paths()["purelib"]
        (own / "parent.pth").write_text(f"import site; site.addsitedir({site!r})\n{ROOT}\n", encoding="utf-8")
        self.run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", package)

    def run(self, *words: object) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SCIDIFF_HOME", "SCIDIFF_DATA")}
        done = subprocess.run([self.python, *map(str, words)], cwd=self.folder, text=True, capture_output=True,
                              env={**clean, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}, timeout=300)
        assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def scidiff(self, *words: object) -> str:
        return self.run("-m", "scidiff", *words)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["plugin", "toy"])
def test_a_package_trains_generates_evaluates_and_conforms(which, toy, tmp_path):
    pytest.importorskip("hatchling", reason="building a package needs hatchling (pip install -e '.[dev]')")
    name, source = ("ramachandran", PLUGIN) if which == "plugin" else ("toy", toy)
    reference = {"ramachandran": "ramachandran_basins", "toy": "toy_ring"}[name]
    venv = Venv(tmp_path, source)
    assert name in venv.scidiff("list", "domains")
    assert reference in venv.scidiff("list", "data")

    venv.scidiff("train", f"domain={name}", "trainer=debug", "--out", "model")
    assert (tmp_path / "model" / "checkpoint" / "model.safetensors").is_file()
    venv.scidiff("generate", name, "--from", "model", "-n", 12, "--steps", 5, "--out", "samples")
    with (tmp_path / "samples" / "samples.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [f"s{i:04d}" for i in range(12)]
    assert (tmp_path / "samples" / "report.html").stat().st_size > 1000

    venv.scidiff("evaluate", "samples", "--reference", reference)
    venv.scidiff("evaluate", "samples/samples.csv", f"domain={name}", "--reference", reference, "--out", "again")
    for place in ("samples", "again"):
        assert "valid" in json.dumps(json.loads((tmp_path / place / "metrics.json").read_text(encoding="utf-8")))
    # An installed package has no tests/ in it; they are run as its author would run them.
    venv.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", source, source / "tests")
