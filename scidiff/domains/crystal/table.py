"""Tables of crystals: CSV files with a column of CIF texts, as the benchmark sets are published.

A row is named by its column `material_id` (else `id`, else its number); its other numbers are kept. Parsing and
reducing tens of thousands of CIF texts takes minutes, so the result is kept in the cache folder as an archive
(archive.py) under the hash of the file and of the rules, with the list of what was rejected.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.domains.crystal import archive, cif
from scidiff.domains.crystal.entries import Entry, Rules, broken
from scidiff.store import atomic
from scidiff.store.fetch import cache_folder, sha256_of

_NAMES = ("material_id", "id", "name", "mat_id")
_KEPT_FROM = 200  # rows from which the result is worth keeping
_VERSION = 1


def entries(path: Path, rules: Rules, column: str | None = None) -> Iterator[Entry]:
    """The crystals of a table, from the cache where they have been read before."""
    key = hashlib.sha256(repr((_VERSION, sha256_of(path), rules, column)).encode()).hexdigest()[:24]
    kept = cache_folder() / "crystals" / f"{key}.npz"
    listed = kept.with_suffix(".json")
    if kept.is_file() and listed.is_file():
        yield from archive.entries(kept, rules)
        yield from (broken(where, why, text) for where, text, why in json.loads(listed.read_text(encoding="utf-8")))
        return
    found = list(_rows(path, rules, column))
    good = [entry for entry in found if not entry.reason]
    if len(found) >= _KEPT_FROM:
        try:
            atomic.write_bytes(kept, archive.packed(good))
            atomic.write_json(listed, [(e.where, e.text, e.reason) for e in found if e.reason])
        except ScidiffError:  # a cache that cannot be written costs time, nothing else
            pass
    yield from found


def _rows(path: Path, rules: Rules, wanted: str | None) -> Iterator[Entry]:
    csv.field_size_limit(min(sys.maxsize, cif.LARGEST))
    try:
        with _open(path) as stream:
            table = csv.DictReader(stream)
            header = [str(h).strip().lstrip("\ufeff") for h in table.fieldnames or ()]
            if not header:
                return
            table.fieldnames = header
            column = _column(path, header, wanted)
            name = next((h for h in header if h.lower() in _NAMES), None)
            for number, row in enumerate(table, 1):
                yield _row(row, column, name, f"{path.name}, row {number}", number, rules)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
        yield broken(path.name, f"it cannot be read to its end as a table ({error})")


def _row(row: dict[str, str | None], column: str, name: str | None, where: str, number: int, rules: Rules) -> Entry:
    title = (row.get(name) if name else None) or str(number)
    text = row.get(column) or ""
    if not text.strip():
        return broken(where, "it has no CIF text", title)
    found = list(cif.entries(text, where, title, rules))
    if len(found) != 1:
        return broken(where, f"its CIF text holds {len(found)} crystals", title)
    about = {}
    for key, value in row.items():
        if key and key not in (column, name) and isinstance(value, str) and (x := _real(value)) is not None:
            about[key] = x
    only = found[0]
    return Entry(only.where, title, only.numbers, only.frac, only.matrix, None, only.reason, only.text or title, about)


def _real(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _column(path: Path, header: Sequence[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in header:
            raise UsageError(f"{path.name} has no column {wanted!r}.", nearest(wanted, header))
        return wanted
    found = next((h for h in header if h.lower() in ("cif", "structure", "cif_text")), None)
    if found is None:
        raise UsageError(f"{path.name} has no column of CIF texts (its columns: {', '.join(header[:12])}).",
                         "Name it with data.options.column=...")
    return found


def _open(path: Path) -> io.TextIOBase:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    return opener(path, "rt", encoding="utf-8", newline="")  # type: ignore[return-value]
