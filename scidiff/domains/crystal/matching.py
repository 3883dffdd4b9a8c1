"""When two crystals are the same: pymatgen's StructureMatcher, row by row or everyone against the reference.

Crystals match if, after reduction to primitive Niggli cells of equal volume, some mapping of lattices (lengths within
the share `ltol`, angles within `angle_tol` degrees) and of sites keeps every displacement below `stol` (V / N)^(1/3).
Of all such mappings the matcher takes the one with the least root mean square displacement, in the same unit:

    rms(prediction, truth),  None where nothing matches
    match rate  matched rows / all rows            RMSE   mean rms over matched rows
    cRMSE       mean over all rows, with `stol` for a row that is not matched
    METRe       share of reference crystals that *any* generated crystal of their composition matches, with the best rms

Best of k: a row matches if one of its k samples does, and its rms is the least. A call that exceeds its time limit
counts as no match and is counted (pool.py). Tolerances: PREDICTION as the field compares predictions, IDENTITY
(pymatgen's own) for duplicates and novelty. Sources: Ong et al. 2013 (doi 10.1016/j.commatsci.2012.10.028);
Martirossyan et al. 2025 (arXiv 2509.12178) for METRe and cRMSE.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.domains.crystal.pool import Pool, Progress

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

Pair = tuple[int, int]


@dataclass(frozen=True)
class Tolerances:
    """Share of a length, share of (V / N)^(1/3), degrees."""

    ltol: float
    stol: float
    angle_tol: float

    def __str__(self) -> str:
        return f"ltol {self.ltol:g}, stol {self.stol:g}, angle {self.angle_tol:g}"


PREDICTION = Tolerances(0.3, 0.5, 10.0)
IDENTITY = Tolerances(0.2, 0.3, 5.0)


@functools.cache
def matcher(tolerances: Tolerances) -> StructureMatcher:
    """pymatgen's matcher: primitive cells, volumes scaled, no supercells."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=tolerances.ltol, stol=tolerances.stol, angle_tol=tolerances.angle_tol)


def compare(prediction: Structure, truth: Structure, tolerances: Tolerances = PREDICTION) -> float | None:
    """rms of the module docstring; may take long on unusual cells, so sets of crystals go through `displacements`."""
    found = matcher(tolerances).get_rms_dist(prediction, truth)
    return None if found is None else float(found[0])


def packed(structure: Structure) -> list[Any]:
    """[cell rows, element numbers, fractional coordinates], JSON-able and exact."""
    return [structure.lattice.matrix.tolist(), list(structure.atomic_numbers), structure.frac_coords.tolist()]


def unpacked(parts: Sequence[Any]) -> Structure:
    """The inverse of `packed`; oxidation states and properties are gone, as the matcher must not see them."""
    from pymatgen.core import Element, Lattice, Structure

    matrix, numbers, coordinates = parts
    return Structure(Lattice(matrix), [Element.from_Z(z) for z in numbers], coordinates)


def composition_key(structure: Structure) -> tuple[Pair, ...]:
    """Reduced composition ((Z, count), ...): crystals with different ones never match."""
    counts = Counter(structure.atomic_numbers)
    divisor = math.gcd(*counts.values()) if counts else 1
    return tuple((z, n // divisor) for z, n in sorted(counts.items()))


@dataclass
class Found:
    """rms [pairs] (NaN: no match) of pairs (i, j), and how many calls ran out of time or failed."""

    values: dict[Pair, float] = field(default_factory=dict)
    late: int = 0
    failed: int = 0

    def best(self, pairs: Iterable[Pair], rows: int) -> np.ndarray:
        """Least rms [rows] over the pairs (i, j) of each row j; NaN where none matches."""
        out = np.full(rows, np.inf)
        for i, j in pairs:
            value = self.values.get((i, j), math.nan)
            if value < out[j]:
                out[j] = value
        return np.where(np.isinf(out), np.nan, out)

    def note(self, limit: float) -> str:
        told = [f"{self.late} comparisons exceeded {limit:g} s and count as no match"] if self.late else []
        told += [f"{self.failed} comparisons failed and count as no match"] if self.failed else []
        return "; ".join(told)


def displacements(firsts: Sequence[Structure], seconds: Sequence[Structure], pairs: Sequence[Pair], pool: Pool,
                  tolerances: Tolerances = PREDICTION, progress: Progress | None = None) -> Found:
    """rms of firsts[i] against seconds[j] for the given pairs; crystals must be finite (validity.constructible)."""
    left = {i: composition_key(firsts[i]) for i in {i for i, _ in pairs}}
    right = {j: composition_key(seconds[j]) for j in {j for _, j in pairs}}
    found = Found({pair: math.nan for pair in pairs})
    called = [(i, j) for i, j in found.values if left[i] == right[j]]
    left_text = {i: packed(firsts[i]) for i in {i for i, _ in called}}
    right_text = {j: packed(seconds[j]) for j in {j for _, j in called}}
    given = astuple(tolerances)
    answers = pool.run([("rms", (left_text[i], right_text[j], given)) for i, j in called], progress)
    for pair, answer in zip(called, answers, strict=True):
        if answer.value is not None:
            found.values[pair] = float(answer.value)
        found.late += answer.problem == "time"
        found.failed += answer.problem not in ("", "time")
    return found


def same_id(generated: Sequence[Structure], reference: Sequence[Structure]) -> list[Pair]:
    """Pairs (i, j) with equal `structure.properties["id"]`, in the order of the generated crystals."""
    place = {str(name): j for j, s in enumerate(reference) if (name := identity(s)) is not None}
    return [(i, place[name]) for i, s in enumerate(generated) if (name := identity(s)) in place]


def identity(structure: Structure) -> str | None:
    """The material id of a crystal, where one is known."""
    name = (structure.properties or {}).get("id")
    return None if name is None else str(name)


def same_composition(generated: Sequence[Structure], reference: Sequence[Structure],
                     chosen: Iterable[int] | None = None) -> list[Pair]:
    """Pairs (i, j) of equal reduced composition, j among `chosen` (default: all)."""
    groups: dict[tuple[Pair, ...], list[int]] = defaultdict(list)
    for i, structure in enumerate(generated):
        groups[composition_key(structure)].append(i)
    rows = range(len(reference)) if chosen is None else chosen
    return [(i, j) for j in rows for i in groups.get(composition_key(reference[j]), ())]


def corrected(rms: np.ndarray, tolerances: Tolerances = PREDICTION) -> np.ndarray:
    """rms with `stol` where nothing matched: its mean is cRMSE."""
    return np.where(np.isnan(rms), tolerances.stol, rms)
