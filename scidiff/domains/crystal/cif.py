"""Crystallographic information files: what is read from them, and why not.

A block that spells out all atoms of its cell (space group P 1), as the benchmark sets do, is read here, hundreds a
second; one with symmetry operations goes to pymatgen. Disorder is refused: a cell holds whole atoms.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scidiff.domains.crystal.entries import WHOLE, Entry, Rules, broken, from_lengths, judged, of_structure
from scidiff.domains.crystal.formula import NUMBER

LARGEST = 1 << 25  # characters of a file
_TOKEN = re.compile(r"""\s*(?:(\#.*)|'((?:[^']|'(?=\S))*)'(?=\s|$)|"((?:[^"]|"(?=\S))*)"(?=\s|$)|(\S+))""")
_CELL = tuple(f"_cell_length_{x}" for x in "abc") + tuple(f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma"))
_OPERATIONS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_OPERATION = re.compile(r"[xyz\d/.*-]+,[xyz\d/.*-]+,[xyz\d/.*-]+")
_ATOMS = re.compile(r"_atom_site_(?!aniso)")
_GROUPS = ("_space_group_it_number", "_symmetry_int_tables_number", "_symmetry_space_group_name_h-m",
           "_space_group_name_h-m_alt")
_FRAC = tuple(f"_atom_site_fract_{x}" for x in "xyz")


class _Unusable(Exception):
    """Why a block gives no crystal, as the end of a sentence."""


@dataclass
class Block:
    """One data block: single values and columns of its loops by tag in small letters, and its text."""

    name: str
    text: str
    values: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)

    def column(self, tag: str) -> list[str] | None:
        return self.columns.get(tag, [self.values[tag]] if tag in self.values else None)


def entries(text: str, where: str, stem: str, rules: Rules) -> Iterator[Entry]:
    """The crystals of a CIF, one a data block; blocks that describe no atoms are passed over where another does."""
    if len(text) > LARGEST:
        yield broken(where, f"it is longer than {LARGEST >> 20} MiB")
        return
    found = blocks(text)
    real = [b for b in found if b.column(_FRAC[0]) is not None] or found[:1]
    if not real:
        yield broken(where, "it is no CIF: it has no data block")
    for block in real:
        name = stem if len(real) == 1 else block.name or stem
        place = where if len(real) == 1 else f"{where}, data_{block.name}"
        yield judged(entry(block, place, name), rules)


def entry(block: Block, where: str, name: str) -> Entry:
    """One block as an entry."""
    try:
        cell = from_lengths(*_cell(block))
        if len({len(column) for tag, column in block.columns.items() if _ATOMS.match(tag)}) > 1:
            raise _Unusable("the values of its atoms do not fill their columns")
        if isinstance(cell, str):
            raise _Unusable(cell)
        _whole(block)
        if not _plain(block):
            return _symmetric(block, where, name)
        columns = [block.column(tag) for tag in _FRAC]
        if any(c is None for c in columns):
            raise _Unusable("its atoms have no fractional coordinates")
        numbers = [_element(word) for word in _types(block)]
        if any(len(c or ()) != len(numbers) for c in columns):
            raise _Unusable("the columns of its atoms have different lengths")
        frac = [[_number(word, "a coordinate") for word in row] for row in zip(*columns)]  # type: ignore[arg-type]
    except _Unusable as why:
        return broken(where, str(why), name)
    return Entry(where, name, numbers, frac, cell)


def blocks(text: str) -> list[Block]:
    """The data blocks of a file."""
    found: list[Block] = []
    tags: list[str] = []  # of the loop that is being read
    waiting, rows, looping = "", 0, False
    for token, quoted, start in _tokens(text):
        low = token.lower()
        if not quoted and low.startswith("data_"):
            if found:
                found[-1].text = text[len(text) - len(found[-1].text):start]
            found.append(Block(token[5:], text[start:]))
            tags, waiting, looping = [], "", False
        elif not found:
            continue
        elif not quoted and low in ("loop_", "stop_", "global_"):
            tags, waiting, looping, rows = [], "", low == "loop_", 0
        elif not quoted and token.startswith("_"):
            if looping and not rows:
                tags.append(low)
                found[-1].columns[low] = []
            else:
                waiting, looping, tags = low, False, []
        elif waiting:
            found[-1].values[waiting], waiting = token, ""
        elif tags:
            found[-1].columns[tags[rows % len(tags)]].append(token)
            rows += 1
    return found


def _tokens(text: str) -> Iterator[tuple[str, bool, int]]:
    """(token, whether it was quoted, where its line begins) of a file."""
    long: list[str] | None = None
    start = 0
    for line in text.splitlines(keepends=True):
        begin, start = start, start + len(line)
        if long is not None:
            if line.startswith(";"):
                yield "".join(long), True, begin
                long, line = None, line[1:]
            else:
                long.append(line)
                continue
        elif line.startswith(";"):
            long = [line[1:]]
            continue
        for found in _TOKEN.finditer(line.rstrip()):
            comment, single, double, bare = found.groups()
            if comment is not None:
                break
            if bare is not None:
                yield bare, False, begin
            else:
                yield single if single is not None else double, True, begin


def _cell(block: Block) -> tuple[list[float], list[float]]:
    for tag in _CELL:
        if block.values.get(tag, "?") in ("?", "."):
            raise _Unusable(f"it gives no cell ({tag} is missing)")
    found = [_number(block.values[tag], "a number of its cell") for tag in _CELL]
    return found[:3], found[3:]


def _number(word: str, what: str) -> float:
    """A number, its standard uncertainty in brackets left out."""
    try:
        value = float(word.split("(")[0])
    except ValueError:
        raise _Unusable(f"{what} is {word[:20]!r}, not a number") from None
    if not math.isfinite(value):
        raise _Unusable(f"{what} is not finite")
    return value


def _whole(block: Block) -> None:
    """Refuses partial occupancy."""
    names = block.column("_atom_site_label") or block.column("_atom_site_type_symbol") or []
    for i, word in enumerate(block.column("_atom_site_occupancy") or ()):
        if word not in ("?", ".") and abs(_number(word, "an occupancy") - 1) > WHOLE:
            name = names[i] if i < len(names) else f"site {i + 1}"
            raise _Unusable(f"partial occupancy: {name} is occupied by {word}")


def _plain(block: Block) -> bool:
    """Whether all atoms are spelt out: the identity is the only operation."""
    for tag in _OPERATIONS:
        operations = block.column(tag)
        if operations is not None:
            bare = [re.sub(r"[\s+]", "", x.lower()) for x in operations]
            for word, short in zip(operations, bare, strict=True):
                if not _OPERATION.fullmatch(short):
                    raise _Unusable(f"its symmetry operation {word[:30]!r} cannot be read")
            return bare == ["x,y,z"]
    groups = [block.values[tag].replace(" ", "") for tag in _GROUPS if block.values.get(tag, "?") not in ("?", ".")]
    return bool(groups) and all(group in ("1", "P1") for group in groups)


def _types(block: Block) -> Sequence[str]:
    found = block.column("_atom_site_type_symbol") or block.column("_atom_site_label")
    if not found:
        raise _Unusable("it lists no atoms")
    return found


def _element(word: str) -> int:
    """The atomic number of a type symbol or label: Fe, Fe3+, FE1, O2-, OW1, D."""
    letters = re.match(r"[A-Za-z]*", word)[0]  # type: ignore[index]
    two, one = letters[:2].capitalize(), letters[:1].upper()
    if len(letters) > 1 and two in NUMBER:
        return NUMBER[two]
    one = "H" if one in ("D", "T") else one
    if one in NUMBER and (len(letters) == 1 or letters[1].isupper()):
        return NUMBER[one]
    raise _Unusable(f"{word[:12]!r} is no chemical element")


def _symmetric(block: Block, where: str, name: str) -> Entry:
    """A block with symmetry operations, by pymatgen."""
    from pymatgen.io.cif import CifParser

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = CifParser(io.StringIO(block.text)).parse_structures(primitive=False)
    except Exception as error:  # whatever a damaged file provokes in the parser
        return broken(where, f"its symmetry cannot be read ({sentence(error)})", name)
    return of_structure(found[0], where, name) if found else broken(where, "it describes no crystal", name)


def sentence(error: Exception) -> str:
    """The first line of what a parser complains about."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return first.rstrip(".")[:120]
