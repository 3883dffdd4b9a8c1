"""Structural validity of many crystals at once, with reasons; the rule is that of soundness.py.

Distances are exact: a point within r of an atom lies at most r / h_i + 1/2 cells away along axis i, h_i the distance of
the lattice planes, so 27 images do where every h_i exceeds r / 1.5, and flatter cells get more. Crystals of equal size
are measured together.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scidiff.domains.base import Verdict
from scidiff.domains.crystal.soundness import CLOSEST, impossible_cell

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

_VECTORS = 2_000_000  # differences held at once
_MOST_IMAGES = 20_000


def constructible(structure: Structure) -> str:
    """Why a crystal cannot be compared or measured at all; empty where it can."""
    if not len(structure):
        return "it has no atoms"
    if not np.isfinite(structure.frac_coords).all():
        return "a coordinate is not finite"
    return impossible_cell(structure.lattice.matrix)


def structural(structures: Sequence[Structure]) -> list[Verdict]:
    """Verdicts of the structural rule, for many crystals at once."""
    out = [Verdict(not (why := constructible(s)), why) for s in structures]
    alike: dict[tuple[int, tuple[int, int, int]], list[int]] = defaultdict(list)
    for i, (structure, verdict) in enumerate(zip(structures, out, strict=True)):
        if verdict.valid and len(structure) > 1:
            alike[len(structure), _reach(structure.lattice.matrix)].append(i)
    for (atoms, reach), members in alike.items():
        images = math.prod(2 * r + 1 for r in reach)
        if images > _MOST_IMAGES:
            for i in members:
                out[i] = Verdict(False, "the cell is too flat to measure distances in")
            continue
        size = max(_VECTORS // (atoms * (atoms - 1) // 2), 1)
        for start in range(0, len(members), size):
            block = members[start:start + size]
            for i, (distance, pair) in zip(block, _closest([structures[i] for i in block], reach), strict=True):
                if distance < CLOSEST:
                    names = " and ".join(f"{structures[i][k].specie.symbol}{k + 1}" for k in pair)
                    out[i] = Verdict(False, f"{names} are {distance:.2f} A apart (less than {CLOSEST} A)")
    return out


def _reach(matrix: NDArray[np.float64]) -> tuple[int, int, int]:
    """How many cells to look to either side of the nearest one, along each axis."""
    volume = abs(np.linalg.det(matrix))
    areas = np.linalg.norm(np.cross(np.roll(matrix, -1, 0), np.roll(matrix, -2, 0)), axis=1)
    a, b, c = np.maximum(np.floor(CLOSEST * areas / volume + 0.5).astype(np.int64), 1).tolist()
    return a, b, c


def _closest(structures: Sequence[Structure], reach: tuple[int, int, int]) -> list[tuple[float, tuple[int, int]]]:
    """Least distance below CLOSEST of two different atoms (else any larger one), and which atoms, of each crystal."""
    matrices = np.stack([s.lattice.matrix for s in structures])
    frac = np.stack([s.frac_coords for s in structures])
    first, second = np.triu_indices(frac.shape[1], 1)
    gaps = frac[:, first] - frac[:, second]
    gaps -= np.round(gaps)
    images = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))), dtype=np.float64)
    cartesian = np.einsum("bpi,bij->bpj", gaps, matrices)
    shifts = np.einsum("ni,bij->bnj", images, matrices)
    least = np.min([((cartesian + shift[:, None]) ** 2).sum(-1) for shift in shifts.swapaxes(0, 1)], axis=0)
    where = least.argmin(1)
    values = np.sqrt(least[np.arange(len(where)), where]).tolist()
    return [(d, (int(first[w]), int(second[w]))) for d, w in zip(values, where.tolist(), strict=True)]
