"""Readers of molecule files, and splits.

Accepted: `.smi`/`.txt` (SMILES, blank, name), `.csv`/`.tsv` (a column of SMILES, found by its header), `.sdf`/`.mol`,
each also gzipped; a run folder (its samples.csv, invalid samples included); any folder of such files. An entry that is
no molecule becomes a Rejection (where it stood, what it said, why) and reading goes on; a file without any entry is a
UsageError. An entry that parses but breaks a valence rule is either kept as an invalid molecule (`invalid="keep"`,
so that an evaluation counts it) or rejected (`invalid="reject"`, for training).

Splits: a column of the table, a list of test rows beside it, or else a share of the molecules chosen by a hash of each
canonical string, so that a molecule falls on the same side whatever else the file holds.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Records, Rejection
from scidiff.domains.molecule import chemistry
from scidiff.domains.molecule.codec import lossless, token_name

if TYPE_CHECKING:
    from rdkit.Chem import Mol

EXTENSIONS = (".smi", ".smiles", ".txt", ".csv", ".tsv", ".sdf", ".sd", ".mol")
_HEADERS = ("smiles", "canonical_smiles", "smi")
_RUN_FILES = ("samples.csv", "smiles.smi")
READ_OPTIONS = (
    "column",
    "split_column",
    "name_column",
    "test_share",
    "split_seed",
    "invalid",
    "largest_fragment",
    "max_atoms",
    "atoms",
)
_RENAMED = {"smiles": "column", "split": "split_column", "index": "name_column"}
_CARD_OPTIONS = (*_RENAMED, "smiles_file", "test_file", "test_key", "first_index")
Entry = tuple[str, str, "str | Mol | None", "str | None"]  # where, name, SMILES or molecule, part of a split column


def read_table(
    path: str | Path,
    split: str | None = None,
    *,
    column: str | None = None,
    split_column: str = "split",
    name_column: str | None = None,
    test_rows: Iterable[int] | None = None,
    test_share: float = 0.1,
    split_seed: int = 0,
    limit: int | None = None,
    invalid: str | None = None,
    largest_fragment: bool = False,
    max_atoms: int | None = None,
    atoms: Sequence[str] | None = None,
) -> Records:
    """The molecules of a file or folder (module docstring).

    split        "train" or "test"; None reads everything
    column       the SMILES column of a table; None finds it
    test_rows    0-based numbers of the test entries; None uses `split_column`, or else a hash with `test_share`
    invalid      "keep" or "reject"; the default rejects where a split is asked for (training) and keeps elsewhere
    largest_fragment, max_atoms, atoms (allowed tokens such as "N+")   filters; what they drop is rejected by name
    """
    chemistry.require_rdkit()
    if split not in (None, "train", "test"):
        raise UsageError(f"There is no split {split!r} of molecules.", nearest(split, ("train", "test")))
    strict = _is_run(Path(path))
    drop = (invalid or ("reject" if split else "keep")) == "reject"
    chosen = None if test_rows is None else frozenset(test_rows)
    objects: list[Mol] = []
    names: list[str] = []
    rejected: list[Rejection] = []
    number = -1
    for number, (where, name, content, part) in enumerate(_entries(Path(path), column, split_column, name_column)):
        if limit is not None and len(objects) >= limit:
            break
        if split is not None and (chosen is not None or part is not None):
            side = part if chosen is None else ("test" if number in chosen else "train")
            if side != split:
                continue
        mol, why = _molecule(content, strict)
        if mol is not None and largest_fragment:
            mol = chemistry.largest_fragment(mol)
        if mol is not None:
            why = _unwanted(mol, drop, max_atoms, atoms)
        if mol is None or why:
            rejected.append(Rejection(where, _text(content), why))
            continue
        if (
            split is not None
            and chosen is None
            and part is None
            and hashed_side(mol, test_share, split_seed) != split
        ):
            continue
        objects.append(mol)
        names.append(name)
    if number < 0:
        raise UsageError(f"{path} is empty: it holds no molecule.")
    return Records(objects, names, rejected)


def read_card(
    files: Mapping[str, Path], options: Mapping[str, Any], split: str | None = None, **more: Any
) -> Records:
    """Molecules of a data set as its card lays it out: the table, and the options of the card's reader.

    options: smiles, split, index (columns); smiles_file; test_file with the numbers of the test rows (JSON),
    test_key and first_index; test_share and split_seed; and the options of `read_table`. `more` goes to it as well.
    """
    known = (*_CARD_OPTIONS, *READ_OPTIONS)
    for key in options:
        if key not in known:
            raise UsageError(f"The molecule readers have no option {key!r}.", nearest(key, known))
    table = files[options["smiles_file"]] if "smiles_file" in options else next(iter(files.values()))
    if "test_file" in options:
        more["test_rows"] = _test_rows(files[options["test_file"]], options)
    for key, value in options.items():
        if key in _RENAMED or key in READ_OPTIONS:
            more[_RENAMED.get(key, key)] = value
    return read_table(table, split, **more)


def hashed_side(mol: Mol, test_share: float = 0.1, seed: int = 0) -> str:
    """ "train" or "test", from the hash of the canonical stereo-free SMILES and a seed alone."""
    text = chemistry.canonical(mol)
    number = int(chemistry.stable_hash([text if seed == 0 else f"{seed} {text}"])[0])
    return "test" if number < test_share * 2.0**64 else "train"


def _test_rows(path: Path, options: Mapping[str, Any]) -> list[int]:
    with _open(path) as stream:
        content = json.load(stream)
    key = options.get("test_key")
    rows = content[key] if key else (next(iter(content.values())) if isinstance(content, dict) else content)
    return [int(i) - int(options.get("first_index", 0)) for i in rows]


def _molecule(content: str | Mol | None, strict: bool) -> tuple[Mol | None, str]:
    """A finished molecule (valid or marked with its problem), or None and why."""
    from rdkit import Chem, rdBase

    if content is None:
        return None, "the record cannot be parsed"
    if not isinstance(content, str):
        return chemistry.finished(content), ""
    if not content:
        return None, "no SMILES"
    with rdBase.BlockLogs():
        mol = None if strict else Chem.MolFromSmiles(content)
        if mol is None:
            raw = Chem.MolFromSmiles(content, sanitize=False)
            mol = None if raw is None else chemistry.finished(raw)
    return (None, "not a SMILES string") if mol is None else (mol, "")


def _unwanted(mol: Mol, drop_invalid: bool, max_atoms: int | None, atoms: Sequence[str] | None) -> str:
    """Why a filter drops this molecule; empty where none does."""
    if drop_invalid:
        why = chemistry.noted_problem(mol) or lossless(mol)
        if why:
            return why
    if max_atoms is not None and mol.GetNumAtoms() > max_atoms:
        return f"{mol.GetNumAtoms()} heavy atoms, more than {max_atoms}"
    if atoms is not None:
        for atom in mol.GetAtoms():
            kind = token_name(atom.GetSymbol(), atom.GetFormalCharge())
            if kind not in atoms:
                return f"the atom type {kind} is not among {', '.join(atoms)}"
    return ""


def _text(content: str | Mol | None) -> str:
    if content is None:
        return ""
    text = content if isinstance(content, str) else chemistry.canonical(content)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in _RUN_FILES)


def _entries(path: Path, column: str | None, split_column: str, name_column: str | None) -> Iterator[Entry]:
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    if path.is_dir():
        files = [path / n for n in _RUN_FILES if (path / n).is_file()][:1] or sorted(
            f for f in path.iterdir() if f.is_file() and _kind(f) in EXTENSIONS and not f.name.startswith(".")
        )
        if not files:
            raise UsageError(f"The folder {path} holds no molecule file.", f"Readable: {', '.join(EXTENSIONS)}.")
        for file in files:
            yield from _entries(file, column, split_column, name_column)
        return
    kind = _kind(path)
    if kind not in EXTENSIONS:
        raise UsageError(f"{path.name} is no molecule file.", f"Readable: {', '.join(EXTENSIONS)}, also with .gz.")
    try:
        if kind in (".sdf", ".sd", ".mol"):
            yield from _sdf(path)
        elif kind in (".csv", ".tsv"):
            yield from _csv(path, column, split_column, name_column)
        else:
            yield from _smi(path)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as {kind}: {error}.") from error


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return "." + name.rpartition(".")[2] if "." in name else ""


def _open(path: Path) -> io.TextIOBase:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    return opener(path, "rt", encoding="utf-8", newline="")  # type: ignore[return-value]


def _smi(path: Path) -> Iterator[Entry]:
    with _open(path) as stream:
        for line, text in enumerate(stream, 1):
            words = text.split(None, 1)
            if not words or text.startswith("#") or (line == 1 and words[0].lower() in _HEADERS):
                continue
            yield f"{path.name}:{line}", words[1].strip() if len(words) > 1 else str(line), words[0], None


def _csv(path: Path, column: str | None, split_column: str, name_column: str | None) -> Iterator[Entry]:
    with _open(path) as stream:
        first = stream.readline()
        stream.seek(0)
        if not first.strip():
            return
        delimiter = max("\t;,", key=first.count)
        table = csv.DictReader(stream, delimiter=delimiter)
        header = [h.strip().lstrip("\ufeff") for h in table.fieldnames or ()]
        table.fieldnames = header
        smiles = _column(path, header, column)
        name = name_column or next((h for h in header if h.lower() in ("id", "name", "idx")), None)
        for row in table:
            where = f"{path.name}:{table.line_num}"
            yield (
                where,
                (row.get(name) if name else None) or where,
                (row[smiles] or "").strip(),
                row.get(split_column),
            )


def _column(path: Path, header: Sequence[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in header:
            raise UsageError(f"{path.name} has no column {wanted!r}.", nearest(wanted, header))
        return wanted
    lowered = {h.lower(): h for h in reversed(header)}
    found = next((lowered[h] for h in _HEADERS if h in lowered), None)
    found = found or next((h for h in header if "smiles" in h.lower()), None)
    if found is None:
        raise UsageError(
            f"{path.name} has no column of SMILES (its columns: {', '.join(header[:12])}).",
            "Name it with data.options.column=...",
        )
    return found


def _sdf(path: Path) -> Iterator[Entry]:
    from rdkit import Chem, rdBase

    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        if not stream.read(64).strip():
            return
        stream.seek(0)
        with rdBase.BlockLogs():
            for number, mol in enumerate(Chem.ForwardSDMolSupplier(stream, sanitize=False, removeHs=False), 1):
                where = f"{path.name}, record {number}"
                if mol is None:
                    yield where, str(number), None, None
                    continue
                named = mol.GetProp("_Name").strip() if mol.HasProp("_Name") else ""
                yield where, named or str(number), _without_hydrogens(mol), None


def _without_hydrogens(mol: Mol) -> Mol:
    """Heavy atoms of a record, sanitised where possible; explicit hydrogens become implicit."""
    from rdkit import Chem

    copy = Chem.Mol(mol)
    if Chem.SanitizeMol(copy, catchErrors=True):
        return mol
    return Chem.RemoveHs(copy)
