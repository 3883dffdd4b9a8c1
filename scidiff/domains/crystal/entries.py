"""What a reader finds, and whether it is an ordered crystal that can be used.

Every reader yields `Entry` objects, one for each crystal of a file. What is wrong with one is said in its `reason`, so
that a bad crystal does not cost the others; what is wrong with a whole file is an entry of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.domains.crystal import soundness
from scidiff.domains.crystal.formula import ELEMENTS, NUMBER

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

MOST_ATOMS = 400
"""Atoms of a crystal that is still read: dense pairs grow with the square of it."""
WHOLE = 1e-2  # a site occupied by less than 1 - WHOLE is partially occupied


@dataclass(frozen=True)
class Entry:
    """One crystal: atomic numbers [n], fractional coordinates [n, 3], cell [3, 3] in Angstrom; reason: why it cannot be
    used (empty: it can); about: further numbers of it (energies, gaps) by name, and for a prediction the `material_id`
    of the row that it predicts."""

    where: str
    name: str = ""
    numbers: Sequence[int] = ()
    frac: Any = None
    matrix: Any = None
    part: str | None = None
    reason: str = ""
    text: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def structure(self) -> Structure:
        """The native object; coordinates in [0, 1)."""
        from scidiff.domains.crystal.codec import build

        name = self.about.get("material_id") or self.name
        named = {"id": name} if name else {}
        return build(self.numbers, np.mod(self.frac, 1.0), self.matrix, **named, **self.about)


@dataclass(frozen=True)
class Rules:
    """How crystals are read. most: atoms of the largest; elements: only these (empty: all); niggli: reduce the cell;
    sound: refuse what soundness.py finds impossible."""

    most: int = MOST_ATOMS
    elements: tuple[str, ...] = ()
    niggli: bool = False
    sound: bool = True


def broken(where: str, reason: str, text: str = "") -> Entry:
    """The entry of a file, or of a place in one, that cannot be read."""
    return Entry(where, reason=reason, text=text)


def judged(entry: Entry, rules: Rules, trusted: bool = False) -> Entry:
    """The entry with the reason why it cannot be used, and with a reduced cell where that is asked for."""
    if entry.reason:
        return entry
    frac, matrix = np.asarray(entry.frac, dtype=np.float64).reshape(-1, 3), np.asarray(entry.matrix, dtype=np.float64)
    reason = _outside(entry.numbers, frac, matrix, rules)
    if not reason and not trusted:
        cell = soundness.impossible_cell(matrix)
        reason = cell if rules.sound or rules.niggli else ""
        if not reason and rules.sound:
            reason = _overlap(entry.numbers, frac, matrix)
    if reason:
        return replace(entry, numbers=(), frac=None, matrix=None, reason=reason)
    if rules.niggli and not trusted:
        reduced = niggli(matrix)
        if reduced is None:
            return replace(entry, numbers=(), frac=None, matrix=None, reason="its cell cannot be reduced")
        frac, matrix = frac @ matrix @ np.linalg.inv(reduced), reduced
    return replace(entry, frac=frac, matrix=matrix)


def _outside(numbers: Sequence[int], frac: NDArray, matrix: NDArray, rules: Rules) -> str:
    if len(numbers) == 0:
        return "it has no atoms"
    if len(numbers) > rules.most:
        return f"it has {len(numbers)} atoms, more than {rules.most} (data.options.max_atoms)"
    strange = next((z for z in numbers if not 1 <= z <= len(ELEMENTS)), None)
    if strange is not None:
        return f"there is no element number {strange}"
    if not np.isfinite(matrix).all():
        return "a number of its cell is not finite"
    if not np.isfinite(frac).all():
        return "a coordinate is not finite"
    if matrix.shape != (3, 3) or not np.linalg.norm(matrix, axis=1).all():
        return "it has no cell"
    if rules.elements:
        other = next((ELEMENTS[z - 1] for z in numbers if ELEMENTS[z - 1] not in rules.elements), None)
        if other is not None:
            return f"the element {other} is not among {', '.join(rules.elements)}"
    return ""


def _overlap(numbers: Sequence[int], frac: NDArray, matrix: NDArray) -> str:
    close = soundness.closest(frac, matrix)
    if close is None or close[2] >= soundness.CLOSEST:
        return ""
    i, j, distance = close
    return (f"overlapping atoms: {ELEMENTS[numbers[i] - 1]}{i + 1} and {ELEMENTS[numbers[j] - 1]}{j + 1} are "
            f"{distance:.2f} A apart")


def niggli(matrix: NDArray) -> NDArray | None:
    """The Niggli-reduced cell of the same lattice, or None where the reduction fails."""
    import spglib

    try:
        reduced = spglib.niggli_reduce(matrix, eps=1e-5)
    except spglib.error.SpglibError:
        return None
    return None if reduced is None else np.asarray(reduced, dtype=np.float64)


def of_structure(structure: Any, where: str, name: str, about: Mapping[str, Any] | None = None) -> Entry:
    """The entry of a crystal that another library has parsed."""
    from scidiff.domains.crystal.codec import symbols

    if len(structure) == 0:
        return broken(where, "it has no atoms")
    for site in structure:
        if not site.is_ordered:
            return broken(where, f"partial occupancy: {site.species_string}", name)
    found = symbols(structure)
    strange = next((s for s in found if s not in NUMBER), None)
    if strange is not None:
        return broken(where, f"{strange!r} is no chemical element", name)
    return Entry(where, name, [NUMBER[s] for s in found], structure.frac_coords, structure.lattice.matrix,
                 about=dict(about or {}))


def from_lengths(lengths: Sequence[float], angles: Sequence[float]) -> NDArray[np.float64] | str:
    """The upright cell of lengths [Angstrom] and angles [degrees], or why there is none."""
    if not all(math.isfinite(x) for x in (*lengths, *angles)):
        return "a number of its cell is not finite"
    if min(lengths) <= 0:
        return f"an edge of its cell is {min(lengths):g} A long"
    ca, cb, cg = (math.cos(math.radians(x)) for x in angles)
    if not all(0 < x < 180 for x in angles) or 1 + 2 * ca * cb * cg - ca * ca - cb * cb - cg * cg <= 1e-12:
        return f"no cell has the angles {', '.join(f'{x:g}' for x in angles)}"
    sa, sb = math.sqrt(1 - ca * ca), math.sqrt(1 - cb * cb)
    g = (ca * cb - cg) / (sa * sb)
    a, b, c = lengths
    return np.array([[a * sb, 0.0, a * cb], [-b * sa * g, b * sa * math.sqrt(max(1 - g * g, 0.0)), b * ca],
                     [0.0, 0.0, c]])
