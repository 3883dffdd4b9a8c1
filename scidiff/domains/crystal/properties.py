"""Distributions of mass density and number of different elements, compared by their Wasserstein-1 distance.

    W1(p, q) = integral |F_p - F_q|,  F cumulative

density in g / cm^3. A set of crystals is kept as `Distribution`: 512 quantiles of its densities and how many crystals
have 1, 2, 3 ... elements; both are enough for a distance and for drawing fresh samples, so floors (what training
crystals score, n of them drawn) need no crystals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

QUANTILES = 512
RESAMPLES = 200
_FLOORS = 50
_Z = 1.959963984540054


def densities(structures: Sequence[Structure]) -> NDArray[np.float64]:
    """Mass densities [M] in g / cm^3."""
    return np.array([float(s.density) for s in structures])


def element_counts(structures: Sequence[Structure]) -> NDArray[np.int64]:
    """Numbers of different elements [M]."""
    return np.array([len(set(s.atomic_numbers)) for s in structures], dtype=np.int64)


@dataclass(frozen=True)
class Distribution:
    """quantiles [512] of the density, counts [E] of crystals by number of elements (entry k: k elements)."""

    quantiles: NDArray[np.float64]
    elements: NDArray[np.int64]

    @classmethod
    def of(cls, structures: Sequence[Structure]) -> Distribution:
        """Of at least one finite crystal."""
        found = densities(structures)
        places = (np.arange(QUANTILES) + 0.5) / QUANTILES
        quantiles = np.sort(found) if len(found) <= QUANTILES else np.quantile(found, places)
        return cls(quantiles, np.bincount(element_counts(structures)))

    @property
    def count(self) -> int:
        return int(self.elements.sum())

    @property
    def spread_elements(self) -> NDArray[np.int64]:
        """The number of elements of every crystal, sorted."""
        return np.repeat(np.arange(len(self.elements)), self.elements)

    def values(self, name: str) -> NDArray[np.float64]:
        """The values that stand for the set: of "density" or "elements"."""
        return self.quantiles if name == "density" else self.spread_elements.astype(np.float64)


def wasserstein(values: NDArray[np.float64], known: NDArray[np.float64]) -> float:
    """W1 of two samples."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(values, known))


def interval(values: NDArray[np.float64], known: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % interval over draws of the values, the known ones held fixed; resampling adds a distance of its own, so
    its spread is put around the value itself."""
    chance = np.random.default_rng(seed)
    value = wasserstein(values, known)
    spread = float(np.std([wasserstein(chance.choice(values, len(values)), known) for _ in range(RESAMPLES)]))
    return max(value - _Z * spread, 0.0), value + _Z * spread


def floor(train: Distribution | None, test: Distribution, name: str, count: int) -> float | None:
    """Mean W1 of `count` fresh training crystals against the test crystals."""
    if train is None or count < 1:
        return None
    chance, known, own = np.random.default_rng(0), test.values(name), train.values(name)
    return float(np.mean([wasserstein(chance.choice(own, count), known) for _ in range(_FLOORS)]))
