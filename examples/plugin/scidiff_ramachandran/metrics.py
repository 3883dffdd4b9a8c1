"""Figures over residues.

    valid       share of allowed pairs of angles, Wilson interval (95 %)
    occupancy   total variation 1/2 sum |p - q| between the shares of (class, nearest basin) in samples and reference,
                bootstrap interval (95 %); its floor is the training set against the test set
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scidiff.domains.base import Metric, Verdict
from scidiff_ramachandran.basins import Residue, nearest_basin

Cell = tuple[str, str]
RESAMPLES = 200


@dataclass(frozen=True)
class Reference:
    """Test set by cell, and what the training set scores against it."""

    name: str
    shares: dict[Cell, float]
    count: int
    floor: float


def reference_of(name: str, train: Sequence[Residue], test: Sequence[Residue]) -> Reference:
    shares = _shares(_cells(test))
    return Reference(name, shares, len(test), _variation(_shares(_cells(train)), shares))


def metrics(objects: Sequence[Residue], verdicts: Sequence[Verdict], reference: Reference | None) -> list[Metric]:
    count, good = len(objects), sum(v.valid for v in verdicts)
    out = [Metric("valid", good / max(count, 1), _wilson(good, count), protocol="within 3.5 sd of a basin of its class",
                  count=count, better="higher")]
    if reference is None:
        return [*out, Metric("occupancy", None, note="no reference set was named")]
    cells = _cells(objects)
    source = random.Random(0)
    draws = sorted(_variation(_shares(source.choices(cells, k=count)), reference.shares) for _ in range(RESAMPLES))
    interval = (draws[int(0.025 * RESAMPLES)], draws[int(0.975 * RESAMPLES)])
    return [*out, Metric("occupancy", _variation(_shares(cells), reference.shares), interval, reference.floor,
                         "total variation over (class, basin)", f"{reference.name} test ({reference.count})", count)]


def _cells(objects: Sequence[Residue]) -> list[Cell]:
    return [(r.kind, nearest_basin(r)[0].name) for r in objects]


def _shares(cells: Sequence[Cell]) -> dict[Cell, float]:
    return {cell: number / len(cells) for cell, number in Counter(cells).items()}


def _variation(p: dict[Cell, float], q: dict[Cell, float]) -> float:
    return 0.5 * math.fsum(abs(p.get(cell, 0.0) - q.get(cell, 0.0)) for cell in p.keys() | q.keys())


def _wilson(good: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson 1927, Journal of the American Statistical Association 22."""
    if count == 0:
        return 0.0, 1.0
    p, scale = good / count, 1 + z * z / count
    centre, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
