"""The store is cheap to import: listing models or data cards needs neither torch nor rdkit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_listing_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from scidiff.store import atomic, cards, checkpoint, fetch, references, run, targets\n"
        "checkpoint.shipped(), cards.names(), references.keys()\n"
        "banned = {'torch', 'numpy', 'safetensors', 'rdkit', 'hydra', 'lightning', 'typer'}\n"
        "heavy = banned & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
