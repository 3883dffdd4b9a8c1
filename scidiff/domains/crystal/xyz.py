"""Extended XYZ: many crystals in one text file, as ASE and OVITO read and write them.

    <number of atoms>
    Lattice="ax ay az bx by bz cx cy cz" Properties=species:S:1:pos:R:3 pbc="T T T" id=s0000 ...
    <element> <x> <y> <z>      Cartesian, in Angstrom
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.domains.crystal.codec import symbols
from scidiff.domains.crystal.entries import Entry, Rules, broken, judged
from scidiff.domains.crystal.formula import NUMBER

if TYPE_CHECKING:
    from pymatgen.core import Structure

_FIELD = re.compile(r"""([\w:./+-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|(\S+))""")
_NAMES = ("id", "name", "material_id", "config_type")


def frame(structure: Structure, about: Mapping[str, Any]) -> str:
    """One crystal; empty values of `about` are left out."""
    cell = " ".join(repr(float(x)) for x in structure.lattice.matrix.ravel())
    told = "".join(f" {key}={_quoted(value)}" for key, value in about.items() if value not in ("", None))
    head = f'{len(structure)}\nLattice="{cell}" Properties=species:S:1:pos:R:3 pbc="T T T"{told}\n'
    return head + "".join(f"{name:<2} {x:.10f} {y:.10f} {z:.10f}\n" for name, (x, y, z) in
                          zip(symbols(structure), structure.cart_coords.tolist(), strict=True))


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    text = str(value).replace('"', "'").replace("\n", " ")
    return text if re.fullmatch(r"[\w.+-]+", text) else f'"{text}"'


def entries(text: str, where: str, stem: str, rules: Rules) -> Iterator[Entry]:
    """The crystals of a file, in its order. A count that is no number ends the reading: what follows has no place."""
    lines = text.splitlines()
    at = number = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        place = f"{where}, line {at + 1}"
        count = lines[at].strip()
        if not count.isdigit() or at + 1 + int(count) >= len(lines) + (count == "0"):
            yield broken(place, "a number of atoms was expected, followed by as many lines", count[:40])
            return
        many = int(count)
        comment = lines[at + 1] if at + 1 < len(lines) else ""
        yield judged(_frame(comment, lines[at + 2: at + 2 + many], place, f"{stem}_{number}"), rules)
        at, number = at + 2 + many, number + 1


def _frame(comment: str, rows: Sequence[str], place: str, fallback: str) -> Entry:
    fields = {key.lower(): a or b or c for key, a, b, c in _FIELD.findall(comment)}
    name = next((fields[key] for key in _NAMES if key in fields), fallback)
    if "lattice" not in fields:
        return broken(place, "it has no cell", name)
    try:
        matrix = np.array([float(x) for x in fields["lattice"].split()]).reshape(3, 3)
    except ValueError:
        return broken(place, "its cell is not nine numbers", name)
    species, position = _columns(fields.get("properties", "species:S:1:pos:R:3"))
    if species is None or position is None:
        return broken(place, "its columns do not include species and pos", name)
    numbers, places = [], []
    for row in rows:
        words = row.split()
        if len(words) < max(species + 1, position + 3):
            return broken(place, f"the line {row.strip()[:30]!r} has too few columns", name)
        kind = words[species]
        if kind not in NUMBER:
            return broken(place, f"{kind[:12]!r} is no chemical element", name)
        try:
            places.append([float(x) for x in words[position: position + 3]])
        except ValueError:
            return broken(place, f"the line {row.strip()[:30]!r} has no coordinates", name)
        numbers.append(NUMBER[kind])
    if not np.isfinite(matrix).all():
        return broken(place, "a number of its cell is not finite", name)
    if not abs(float(np.linalg.det(matrix))) > 0:
        return broken(place, "its cell has no volume", name)
    frac = np.array(places, dtype=np.float64).reshape(-1, 3) @ np.linalg.inv(matrix)
    row = fields.get("material_id") if "id" in fields else None
    return Entry(place, name, numbers, frac, matrix, about={"material_id": row} if row else {})


def _columns(properties: str) -> tuple[int | None, int | None]:
    """Where species and pos begin, from name:kind:width triples."""
    words = properties.split(":")
    found: dict[str, int] = {}
    at = 0
    for name, width in zip(words[::3], words[2::3], strict=False):
        found[name] = at
        at += int(width) if width.isdigit() else 1
    return found.get("species"), found.get("pos")
