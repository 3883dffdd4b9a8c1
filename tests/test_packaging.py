"""conf/ and datasets/ are found from a wheel, an editable install and a bare checkout, started in another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from scidiff.store.locate import shared_folder

LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "runs", "dist", "build", "*.egg-info", "__pycache__", ".*_cache")
ASK = """
import json, sys
import scidiff
from scidiff import config
from scidiff.store import cards
from scidiff.store.locate import shared_folder
places = [str(shared_folder(name)) for name in ("conf", "datasets")]
print(json.dumps([scidiff.__file__, places, config.compose("generate")["domain"]["name"], cards.names()]))
"""


def test_a_checkout_finds_its_own_folders(root):
    assert shared_folder("conf") == root / "conf"
    assert shared_folder("datasets") == root / "datasets"


@pytest.fixture(scope="module")
def tree(root, tmp_path_factory):
    """A copy of the sources, so that builds leave nothing behind."""
    if not (root / "README.md").is_file():
        pytest.skip("README.md is missing, without which no package can be built")
    return shutil.copytree(root, tmp_path_factory.mktemp("tree") / "scidiff", ignore=LEFT_OUT)


@pytest.fixture
def fresh(tmp_path):
    """Python of a new environment that sees the libraries of this one behind its own."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                         capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def ask(python, cwd, **environment):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run([python, "-c", ASK], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def install(python, *words):
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *words],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_bare_checkout(tree, tmp_path):
    file, places, domain, names = ask(sys.executable, tmp_path, PYTHONPATH=str(tree))
    assert Path(file).is_relative_to(tree)
    assert places == [str(tree / "conf"), str(tree / "datasets")]
    assert domain == "molecule" and "qm9" in names


@pytest.mark.slow
def test_editable_install(tree, tmp_path, fresh):
    install(fresh, "-e", str(tree))
    file, places, domain, names = ask(fresh, tmp_path)
    assert Path(file).is_relative_to(tree)
    assert places == [str(tree / "conf"), str(tree / "datasets")]
    assert domain == "molecule" and "qm9" in names


@pytest.mark.slow
def test_wheel(tree, tmp_path, fresh):
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    for name in ("scidiff/conf/generate.yaml", "scidiff/_datasets/qm9/card.yaml", "scidiff/py.typed",
                 "scidiff/store/references.yaml"):
        assert name in inside
    assert not [name for name in inside if name.startswith("tests/") or name.endswith(".pyc")]
    shipped = [file.relative_to(tree).as_posix() for file in (tree / "scidiff").rglob("*") if file.is_file()]
    assert set(shipped) <= set(inside), "every file of the package travels in the wheel"

    install(fresh, str(wheel))
    file, places, domain, names = ask(fresh, tmp_path)
    package = Path(file).parent
    assert package.is_relative_to(tmp_path / "venv")
    assert places == [str(package / "conf"), str(package / "_datasets")]
    assert domain == "molecule" and "qm9" in names
    program = fresh.parent / "scidiff"
    listed = subprocess.run([program, "list", "experiments"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "nci5k_flow" in listed.stdout
