"""CSV files of residues: columns `residue`, `phi_deg`, `psi_deg`, and `id` where there are names."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.base import Records, Rejection, Samples
from scidiff.store.atomic import write_text
from scidiff_ramachandran.basins import CLASSES, Residue, folded

COLUMNS = ("residue", "phi_deg", "psi_deg")
TEST_EVERY = 10


def read(path: str | Path) -> Records:
    """Residues of a CSV file, or of samples.csv in a folder."""
    place = Path(path).expanduser()
    file = place / "samples.csv" if place.is_dir() else place
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            table = csv.DictReader(stream)
            for column in COLUMNS:
                if column not in (table.fieldnames or ()):
                    raise UsageError(f"{file} has no column {column!r}.", f"It needs {', '.join(COLUMNS)}.")
            return _records(table, file.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ScidiffError(f"{file} cannot be read as a table of residues ({error}).") from error


def _records(rows: Iterable[dict[str, Any]], name: str) -> Records:
    found = Records([], [])
    for number, row in enumerate(rows, 2):
        where = f"{name}:{number}"
        try:
            phi, psi = float(row["phi_deg"]), float(row["psi_deg"])
        except (TypeError, ValueError):
            phi = psi = math.nan
        if row["residue"] not in CLASSES:
            found.rejected.append(Rejection(where, str(row["residue"]), f"unknown class {row['residue']!r}"))
        elif not (math.isfinite(phi) and math.isfinite(psi)):
            found.rejected.append(Rejection(where, f"{row['phi_deg']} {row['psi_deg']}", "an angle is no number"))
        else:
            found.objects.append(Residue(row["residue"], folded(phi), folded(psi)))
            found.names.append(row.get("id") or str(number))
    return found


def split_of(records: Records, split: str | None) -> Records:
    """Every tenth record is a test record; None is all of them."""
    if split not in (None, "train", "test"):
        raise UsageError(f"There is no split {split!r}.", "The splits are train and test.")
    keep = [i for i in range(len(records)) if split is None or (i % TEST_EVERY == 0) == (split == "test")]
    return Records([records.objects[i] for i in keep], [records.names[i] for i in keep], records.rejected)


def write(samples: Samples, folder: Path) -> list[Path]:
    """samples.csv, which `read` reads again."""
    rows = samples.table()
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["id", *COLUMNS], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return [write_text(folder / "samples.csv", text.getvalue())]
