"""Whether a cell and its atoms are physically possible at all: the rule of structural validity in the literature.

validity.py applies it to many crystals. A crystal is valid where its cell can be built (finite numbers, positive
lengths, possible angles), its volume is at least 0.1 Angstrom^3, and no two atoms, periodic images included, are closer
than 0.5 Angstrom; an atom and its own images do not count (Xie et al. 2022, CDVAE, arXiv 2110.06197).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLOSEST, LEAST_VOLUME = 0.5, 0.1  # Angstrom, Angstrom^3
FLATTEST, LONGEST = 1e-6, 1e4  # volume of the cell over the product of its edges; Angstrom


def impossible_cell(matrix: NDArray) -> str:
    """Why a cell [3, 3] cannot be that of a crystal; the empty string where it can."""
    if not np.isfinite(matrix).all():
        return "the cell is not finite"
    lengths = np.linalg.norm(matrix, axis=1)
    if lengths.min() <= 0 or lengths.max() > LONGEST:
        return f"an edge of the cell is {lengths.min() if lengths.min() <= 0 else lengths.max():.3g} A long"
    volume = abs(float(np.linalg.det(matrix)))
    if volume < LEAST_VOLUME:
        return f"the cell has a volume of {volume:.3g} A^3 (less than {LEAST_VOLUME} A^3)"
    if volume < FLATTEST * float(lengths.prod()):
        return "the angles of the cell are impossible: it is flat"
    return ""


def closest(frac: NDArray, matrix: NDArray) -> tuple[int, int, float] | None:
    """The closest pair of different atoms over all periodic images, (i, j, Angstrom); None for a single atom."""
    from pymatgen.core import Lattice

    n = len(frac)
    if n < 2:
        return None
    distance = Lattice(matrix).get_all_distances(frac, frac) + np.diag(np.full(n, np.inf))
    i, j = divmod(int(distance.argmin()), n)
    return (i, j, float(distance[i, j])) if i < j else (j, i, float(distance[i, j]))
