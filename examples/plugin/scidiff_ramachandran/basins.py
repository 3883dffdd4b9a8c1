"""Where backbone torsion angles lie: a mixture of basins for each class of residue.

    p(phi, psi | class) = sum_k w_k N(phi; phi_k, s_k) N(psi; psi_k, r_k),   differences along the circle, in degrees

The four classes are the usual ones of Ramachandran plots. Places and widths are round numbers in the spirit of such
plots, made up for this example. A pair is allowed if it lies within `REACH` standard deviations of some basin; a draw
of the mixture itself falls outside with probability exp(-REACH^2 / 2) = 0.2 % at most.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

CLASSES = ("general", "glycine", "proline", "pre-proline")
SHARES = (0.70, 0.12, 0.09, 0.09)
REACH = 3.5


@dataclass(frozen=True)
class Residue:
    """One residue: its class, and its torsion angles [degrees] in [-180, 180)."""

    kind: str
    phi: float
    psi: float


@dataclass(frozen=True)
class Basin:
    """weight, centre and standard deviations [degrees] of one basin."""

    name: str
    weight: float
    phi: float
    psi: float
    phi_width: float
    psi_width: float

    def distance(self, phi: float, psi: float) -> float:
        """How many standard deviations away a pair of angles lies."""
        return math.hypot(folded(phi - self.phi) / self.phi_width, folded(psi - self.psi) / self.psi_width)


BASINS: dict[str, tuple[Basin, ...]] = {
    "general": (Basin("helix", 0.50, -63, -43, 8, 10), Basin("sheet", 0.32, -120, 135, 20, 16),
                Basin("polyproline", 0.13, -68, 145, 11, 13), Basin("left helix", 0.05, 57, 45, 8, 11)),
    "glycine": (Basin("helix", 0.30, -63, -42, 10, 12), Basin("left helix", 0.40, 85, 8, 14, 18),
                Basin("extended", 0.30, 180, 180, 28, 16)),
    "proline": (Basin("helix", 0.40, -62, -34, 8, 12), Basin("polyproline", 0.60, -67, 147, 9, 12)),
    "pre-proline": (Basin("helix", 0.25, -62, -43, 8, 9), Basin("polyproline", 0.55, -72, 150, 15, 14),
                    Basin("zeta", 0.20, -132, 78, 12, 12)),
}


def folded(angle: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0


def nearest_basin(residue: Residue) -> tuple[Basin, float]:
    """The basin in which a residue lies, and its distance from it in standard deviations."""
    found = min(BASINS[residue.kind], key=lambda basin: basin.distance(residue.phi, residue.psi))
    return found, found.distance(residue.phi, residue.psi)


def draw(count: int, seed: int) -> list[Residue]:
    """Residues of the mixture, classes in the proportion of `SHARES`."""
    source = random.Random(seed)
    out = []
    for kind in source.choices(CLASSES, SHARES, k=count):
        basin = source.choices(BASINS[kind], [b.weight for b in BASINS[kind]])[0]
        phi, psi = source.gauss(basin.phi, basin.phi_width), source.gauss(basin.psi, basin.psi_width)
        out.append(Residue(kind, folded(phi), folded(psi)))
    return out
