"""A dozen well-known crystals in their primitive cells, from the lattice constants of textbooks (Angstrom)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scidiff.domains.crystal.codec import build
from scidiff.domains.crystal.entries import from_lengths
from scidiff.domains.crystal.formula import NUMBER

if TYPE_CHECKING:
    from pymatgen.core import Structure

_FCC = 0.5 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
_PEROVSKITE = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]


def _of(name: str, elements: str, frac: object, matrix: object) -> Structure:
    return build([NUMBER[s] for s in elements.split()], frac, matrix, id=name)


def _hexagonal(a: float, c: float) -> np.ndarray:
    return np.asarray(from_lengths((a, a, c), (90.0, 90.0, 120.0)))


def crystals() -> list[Structure]:
    """Rock salt, fluorite, caesium chloride, diamond, zinc blende, wurtzite, rutile, perovskites, magnesium."""
    third = 1.0 / 3.0
    u, v = 0.305, 0.382  # internal parameters of rutile and of wurtzite
    rutile = [(0, 0, 0), (0.5, 0.5, 0.5), (u, u, 0), (1 - u, 1 - u, 0), (0.5 + u, 0.5 - u, 0.5),
              (0.5 - u, 0.5 + u, 0.5)]
    wurtzite = [(third, 2 * third, 0), (2 * third, third, 0.5), (third, 2 * third, v), (2 * third, third, 0.5 + v)]
    quarter = [(0, 0, 0), (0.25, 0.25, 0.25)]
    return [
        _of("rock-salt", "Na Cl", [(0, 0, 0), (0.5, 0.5, 0.5)], 5.64 * _FCC),
        _of("periclase", "Mg O", [(0, 0, 0), (0.5, 0.5, 0.5)], 4.21 * _FCC),
        _of("fluorite", "Ca F F", [*quarter, (0.75, 0.75, 0.75)], 5.46 * _FCC),
        _of("caesium-chloride", "Cs Cl", [(0, 0, 0), (0.5, 0.5, 0.5)], 4.12 * np.eye(3)),
        _of("diamond", "C C", quarter, 3.567 * _FCC),
        _of("zinc-blende", "Zn S", quarter, 5.41 * _FCC),
        _of("wurtzite", "Zn Zn S S", wurtzite, _hexagonal(3.82, 6.26)),
        _of("rutile", "Ti Ti O O O O", rutile, np.diag([4.594, 4.594, 2.959])),
        _of("strontium-titanate", "Sr Ti O O O", _PEROVSKITE, 3.905 * np.eye(3)),
        _of("potassium-tantalate", "K Ta O O O", _PEROVSKITE, 3.989 * np.eye(3)),
        _of("caesium-lead-bromide", "Cs Pb Br Br Br", _PEROVSKITE, 5.87 * np.eye(3)),
        _of("magnesium", "Mg Mg", [(third, 2 * third, 0.25), (2 * third, third, 0.75)], _hexagonal(3.21, 5.21)),
    ]
