"""Writers of molecule files: one run, one id everywhere.

samples.csv holds every sample, the invalid ones with their reason; smiles.smi and samples.sdf hold what is valid. Its
column `corrected`, where it has one, says which samples would be invalid without valency correction.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.domains.molecule import chemistry, view
from scidiff.store import atomic

if TYPE_CHECKING:
    from rdkit.Chem import Mol

    from scidiff.domains.base import Samples


def write_samples(samples: Samples, folder: Path) -> list[Path]:
    """samples.csv (every sample, invalid ones too), smiles.smi, samples.sdf (valid ones, in 2D), molecules.png.

    One id names a molecule in all four; each file appears whole or not at all.
    """
    rows = samples.table()
    valid = [(m, row) for m, row in zip(samples.objects, rows, strict=True) if row["valid"]]
    lines = [f"{row['smiles']}\t{row['id']}\n" for _, row in valid]
    written = [
        atomic.write_table(folder / "samples.csv", rows),
        atomic.write_text(folder / "smiles.smi", "".join(lines)),
        atomic.write_text(folder / "samples.sdf", "".join(_sdf_record(m, row) for m, row in valid)),
    ]
    if samples.objects:
        picture = view.grid_png(samples.objects[:48], samples.verdicts[:48], samples.ids[:48])
        written.append(atomic.write_bytes(folder / "molecules.png", picture))
    return written


def corrections(path: Path) -> dict[str, bool]:
    """Which samples of a run (id -> yes or no) had their valences corrected; empty where that was not asked for."""
    file = path / "samples.csv" if path.is_dir() else path
    if file.name != "samples.csv" or not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        noted = {"id", "corrected"} <= set(rows.fieldnames or ())
        return {row["id"]: row["corrected"] == "True" for row in rows} if noted else {}


def _sdf_record(mol: Mol, row: Mapping[str, Any]) -> str:
    from rdkit import Chem
    from rdkit.Chem import rdDepictor

    drawn = chemistry.finished(mol)
    for key in list(drawn.GetPropNames()):
        drawn.ClearProp(key)
    rdDepictor.Compute2DCoords(drawn)
    drawn.SetProp("_Name", str(row["id"]))
    fields = "".join(
        f">  <{key}>\n{value}\n\n" for key, value in row.items() if value not in ("", None) and key != "reason"
    )
    return Chem.MolToMolBlock(drawn) + fields + "$$$$\n"
