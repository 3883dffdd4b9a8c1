"""Readers of crystal files, and splits.

Accepted: `.cif` (one crystal or several), `.extxyz` and `.xyz` with cells, VASP files (`POSCAR`, `CONTCAR`, `.vasp`,
`.poscar`), tables with a column of CIF texts (`.csv`, table.py), archives of many crystals (`.npz`, archive.py), each
text format also gzipped; a `.zip` of CIFs; a run folder (its samples.extxyz, invalid samples included); any folder of
such files; a folder of the official `train.csv`, `val.csv`, `test.csv`; the AFLOW prototypes that pymatgen carries
(`aflow_prototypes.json.gz`). A crystal that cannot be used becomes a Rejection (where it stood, its name, why) and
reading goes on: partial occupancy, no cell, numbers that are not finite, unknown elements, too many atoms, a name that
occurs twice. Crystals that soundness.py finds impossible are rejected where a split is asked for (training), and
kept as invalid ones elsewhere, so that an evaluation counts them; cells are Niggli-reduced for training alone.

Splits: the files' own, or else a share of the crystals chosen by a hash of the reduced formula, so that all crystals
of one composition fall on the same side (by a hash of the name where all have one composition).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Records, Rejection
from scidiff.domains.crystal import archive, cif, table, xyz
from scidiff.domains.crystal.entries import MOST_ATOMS, Entry, Rules, broken, judged, of_structure
from scidiff.domains.crystal.formula import ELEMENTS, NUMBER, elements, reduced, text

EXTENSIONS = (".cif", ".extxyz", ".xyz", ".vasp", ".poscar", ".csv", ".npz", ".zip")
RUN_FILE = "samples.extxyz"
READERS = ("crystal_archive", "crystal_table", "crystal_file", "aflow")
PARTS = ("train", "valid", "test")
READ_OPTIONS = ("max_atoms", "min_atoms", "elements", "niggli", "invalid", "column", "where", "test_share",
                "split_seed")
_CARD_OPTIONS = ("parts", "held_out")
_OFFICIAL = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
_VASP = ("poscar", "contcar")
_LARGEST = 1 << 28  # bytes of an unpacked member of a zip file


def read(path: str | Path, split: str | None = None, *, limit: int | None = None, **options: Any) -> Records:
    """The crystals of a file or folder (module docstring).

    split        "train", "valid" or "test"; None reads everything
    max_atoms, min_atoms, elements ("Li,O" or a list)   others are rejected by name
    niggli       reduce the cells (default: where a split is asked for)
    invalid      "keep" or "reject" what is physically impossible (default: keep, unless a split is asked for)
    column       the column of CIF texts of a table
    where        name of a number of each crystal: only those where it is not 0
    test_share, split_seed   of the split by hash
    """
    rules = _rules(split, options)
    found = list(_entries(Path(path), rules, options.get("column")))
    if not found:
        raise UsageError(f"{path} holds no crystal.")
    return _gathered(found, split, options, limit)


def dataset(files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None = None,
            limit: int | None = None) -> Records:
    """The crystals of a data set as its card lays it out: `parts` names the files of train, valid and test, and
    `held_out` moves so many crystals (by a hash of their names) from train to valid. No name of the test part is kept
    in another part."""
    if reader not in READERS:
        raise UsageError(f"The crystal domain has no reader {reader!r}.", nearest(reader, READERS))
    known(options, _CARD_OPTIONS)
    rules = _rules(split or "train", options)
    rules = replace(rules, niggli=bool(options.get("niggli", reader not in ("crystal_archive",))))
    parts = {name: list(listed) for name, listed in (options.get("parts") or {}).items()}
    if not parts:
        return _gathered([e for f in files.values() for e in _file(f, rules, options.get("column"))], split, options,
                         limit)
    wanted = PARTS if split is None else (split,)
    if split == "valid" and options.get("held_out"):
        wanted = ("train", "valid")
    names = {n: list(parts.get(n, ())) for n in PARTS}
    found = [replace(e, part=part) for part in wanted for f in names[part]
             for e in _file(files[f], rules, options.get("column"))]
    if split != "test" and len(wanted) < 3:
        found = _apart(found, [files[f] for f in names["test"]], rules, options)
    if options.get("held_out"):
        found = _held_out(found, int(options["held_out"]))
    return _gathered(found, split, options, limit)


def known(options: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """UsageError for an option that the readers do not have."""
    for key in options:
        if key not in (*READ_OPTIONS, *more):
            raise UsageError(f"The crystal readers have no option {key!r}.", nearest(key, READ_OPTIONS))


def hashed_side(name: str, test_share: float = 0.1, seed: int = 0) -> str:
    """ "train" or "test", from a name (a reduced formula) and a seed alone."""
    return "test" if _hash(f"{seed} {name}") < test_share * 2.0**64 else "train"


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _rules(split: str | None, options: Mapping[str, Any]) -> Rules:
    if split not in (None, *PARTS):
        raise UsageError(f"There is no split {split!r} of crystals.", nearest(str(split), PARTS))
    invalid = options.get("invalid") or ("reject" if split else "keep")
    if invalid not in ("keep", "reject"):
        raise UsageError(f"Invalid crystals are kept or rejected, not {invalid!r}.",
                         nearest(str(invalid), ("keep", "reject")))
    chosen = options.get("elements")
    return Rules(int(options.get("max_atoms") or MOST_ATOMS), elements(chosen) if chosen else (),
                 bool(options.get("niggli", split is not None)), invalid == "reject")


def _gathered(found: Sequence[Entry], split: str | None, options: Mapping[str, Any], limit: int | None) -> Records:
    """Structures of the entries of a split, and the rejections."""
    seen: set[str] = set()
    records, usable = Records([], []), []
    least, column = int(options.get("min_atoms") or 1), options.get("where")
    for entry in found:
        reason = entry.reason
        if not reason and len(entry.numbers) < least:
            reason = f"it has {len(entry.numbers)} atoms, fewer than {least}"
        if not reason and entry.name and entry.name in seen:
            reason = f"the id {entry.name} occurs more than once"
        if reason:
            records.rejected.append(Rejection(entry.where, entry.text or entry.name, reason))
            continue
        seen.add(entry.name)
        if column is None or entry.about.get(column):
            usable.append(entry)
    if column is not None and found and not any(column in e.about for e in found if not e.reason):
        raise UsageError(f"The crystals have no number {column!r}.",
                         nearest(column, sorted({k for e in found for k in e.about})))
    kinds = [_kind_of(entry) for entry in usable] if any(e.part is None for e in usable) and split else []
    alone = len(set(kinds)) <= 1
    for i, entry in enumerate(usable):
        if limit is not None and len(records) >= limit:
            break
        side = entry.part or (hashed_side(entry.name if alone else kinds[i], float(options.get("test_share", 0.1)),
                                          int(options.get("split_seed", 0))) if split else None)
        if split in (None, side):
            records.objects.append(entry.structure())
            records.names.append(entry.name or str(i))
    return records


def _kind_of(entry: Entry) -> str:
    names = sorted(ELEMENTS[z - 1] for z in entry.numbers)
    return text(reduced({name: names.count(name) for name in names}))


def _apart(found: list[Entry], tests: Iterable[Path], rules: Rules, options: Mapping[str, Any]) -> list[Entry]:
    """The entries without those whose name belongs to the test part."""
    taken = {e.name for file in tests for e in _file(file, rules, options.get("column")) if e.name}
    return [broken(e.where, "its id belongs to the test part", e.name) if e.name in taken and not e.reason else e
            for e in found]


def _held_out(found: list[Entry], count: int) -> list[Entry]:
    first = {e.name: i for i, e in reversed(list(enumerate(found))) if e.part == "train" and not e.reason}
    usable = list(first.values())  # a name that occurs again is rejected later
    chosen = set(sorted(usable, key=lambda i: (_hash(found[i].name), i))[:count])
    return [replace(e, part="valid") if i in chosen else e for i, e in enumerate(found)]


def _entries(path: Path, rules: Rules, column: str | None) -> Iterator[Entry]:
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    if not path.is_dir():
        yield from _file(path, rules, column)
        return
    official = {p.name.split(".")[0]: p for p in sorted(path.iterdir()) if _kind(p) == ".csv"}
    official = {stem: p for stem, p in official.items() if stem in _OFFICIAL}
    if (path / RUN_FILE).is_file():
        drawn = list(_file(path / RUN_FILE, rules, column))
        yield from drawn
        yield from _without_cell(path / "samples.csv", {e.name for e in drawn})
    elif "train" in official:
        for stem, file in official.items():
            yield from (replace(e, part=_OFFICIAL[stem]) for e in _file(file, rules, column))
    else:
        files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith(".") and _readable(f))
        if not files:
            raise UsageError(f"The folder {path} holds no crystal file.", f"Readable: {', '.join(EXTENSIONS)}.")
        for file in files:
            yield from _file(file, rules, column)


def _without_cell(path: Path, drawn: set[str]) -> Iterator[Entry]:
    """The samples of a run whose cell was no cell, so that no file of crystals holds them."""
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row.get("id") and row["id"] not in drawn:
                    yield broken(path.name, row.get("reason") or "it has no cell", row["id"])


def _readable(path: Path) -> bool:
    return _kind(path) in EXTENSIONS or _is_vasp(path)


def _is_vasp(path: Path) -> bool:
    return path.name.lower().startswith(_VASP) or _kind(path) in (".vasp", ".poscar")


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file(path: Path, rules: Rules, column: str | None) -> Iterator[Entry]:
    kind, stem = _kind(path), path.name.removesuffix(".gz").rsplit(".", 1)[0]
    if kind == ".npz":
        yield from archive.entries(path, rules, trusted=not rules.niggli)
    elif kind == ".csv":
        yield from table.entries(path, rules, column)
    elif kind == ".zip":
        yield from _zipped(path, rules)
    elif kind == ".json":
        yield from _prototypes(path, rules)
    elif _readable(path):
        try:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
            words = content.decode("utf-8")
        except (gzip.BadGzipFile, EOFError, OSError) as error:
            yield broken(path.name, f"it cannot be read ({error})")
        except UnicodeDecodeError:
            yield broken(path.name, "it is not UTF-8 text")
        else:
            reader = cif.entries if kind == ".cif" else _vasp if _is_vasp(path) else xyz.entries
            yield from reader(words, path.name, path.name if kind == "" else stem, rules)
    else:
        raise UsageError(f"{path.name} is no crystal file.",
                         f"Readable: {', '.join(EXTENSIONS)}, POSCAR; text also .gz.")


def _vasp(content: str, where: str, stem: str, rules: Rules) -> Iterator[Entry]:
    from pymatgen.io.vasp.inputs import Poscar

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Poscar.from_str(content).structure
    except Exception as error:  # whatever a damaged file provokes in the parser
        yield broken(where, f"it is no VASP file ({cif.sentence(error)})")
        return
    yield judged(of_structure(structure, where, stem), rules)


def _zipped(path: Path, rules: Rules) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as packed:
            for info in sorted(packed.infolist(), key=lambda i: i.filename):
                if not info.filename.lower().endswith(".cif") or info.file_size > _LARGEST:
                    continue
                words = packed.read(info).decode("utf-8", errors="replace")
                yield from cif.entries(words, f"{path.name}, {info.filename}", Path(info.filename).stem, rules)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError):
        yield broken(path.name, "it is no zip file, or damaged")


def _prototypes(path: Path, rules: Rules) -> Iterator[Entry]:
    """The AFLOW prototypes as pymatgen carries them: a list of {"snl": a structure, "tags": names}."""
    try:
        packed = path.read_bytes()
        content = json.loads(gzip.decompress(packed) if path.name.endswith(".gz") else packed)
    except (ValueError, EOFError, OSError):
        yield broken(path.name, "it is no valid JSON")
        return
    for i, item in enumerate(content if isinstance(content, list) else []):
        where = f"{path.name}, prototype {i + 1}"
        try:
            shape, tags = item["snl"], item.get("tags", {})
            kinds = [[(s["element"], float(s.get("occu", 1))) for s in site["species"]] for site in shape["sites"]]
            frac = np.array([site["abc"] for site in shape["sites"]], dtype=np.float64)
            matrix = np.array(shape["lattice"]["matrix"], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            yield broken(where, "it is no prototype")
            continue
        name = f"{tags.get('aflow', 'prototype')}_{i + 1}"
        shared = next((k for k in kinds if len(k) != 1 or k[0][1] < 1), None)
        strange = next((k[0][0] for k in kinds if k and k[0][0] not in NUMBER), None)
        if shared is not None or strange is not None:
            why = "partial occupancy" if shared is not None else f"{strange!r} is no chemical element"
            yield broken(where, why, name)
            continue
        yield judged(Entry(where, name, [NUMBER[k[0][0]] for k in kinds], frac, matrix), rules)
