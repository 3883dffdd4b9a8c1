"""What known crystals predict without learning: the floor of structure prediction, and where a flow may start.

TemplateRetrieval: of all known crystals with the same stoichiometry pattern (how many atoms of each element, names
forgotten) it takes the one whose elements are nearest, renames them and rescales the cell:

    distance = min over assignments of elements with equal counts of  sum_e n_e d(e, e') / N
    d(e, e') = sum over electronegativity, radius, row, group of weight |difference| / standard deviation
    volume   = volume of the template * sum_e n_e v_e / sum_e' n_e' v_e',   v by ridge regression of volumes per atom

CubicPerovskite: ideal cubic ABX3 for five atoms with three anions, lattice constant additive in the elements, the order
of the two cations by a coin that (seed, row) throws, because a formula does not tell it.
The first follows the substitution idea of Kusaba, Liu, Yoshida 2022 (doi 10.1016/j.commatsci.2022.111496).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

WEIGHTS = (1.0, 1.0, 0.5, 1.0)
"""Of electronegativity, radius, row and group."""
ANIONS = (7, 8, 9, 16)
"""What can sit on the X sites of the perovskites of Perov-5."""
_HEAVIEST = 103
_MOST_ORDERS = 120
_RIDGE = 1e-3


@dataclass(frozen=True)
class Template:
    """Coordinates frac [N, 3] in the order of the numbers asked for, cell matrix [3, 3] in Angstrom (rows a, b, c).

    distance: how unlike the elements are (0: the same composition); source: place of the template in the table.
    """

    numbers: NDArray[np.int64]
    frac: NDArray[np.float64]
    matrix: NDArray[np.float64]
    distance: float = 0.0
    source: int = -1

    def structure(self) -> Structure:
        from pymatgen.core import Element, Lattice, Structure

        return Structure(Lattice(self.matrix), [Element.from_Z(int(z)) for z in self.numbers], self.frac)


@functools.cache
def element_distances(weights: tuple[float, float, float, float] = WEIGHTS) -> NDArray[np.float64]:
    """d(e, e') of the module docstring, [104, 104] by element number; row and column 0 are not used."""
    import warnings

    from pymatgen.core import Element

    rows = np.full((_HEAVIEST + 1, 4), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        for z in range(1, _HEAVIEST + 1):
            e = Element.from_Z(z)
            radius = e.atomic_radius or e.atomic_radius_calculated or e.van_der_waals_radius
            block = 6 if 57 <= z <= 71 else 7 if 89 <= z <= 103 else e.row
            rows[z] = (e.X, math.nan if radius is None else float(radius), block, e.group)
    known = rows[1:]
    # a gap takes the mean, so that it tells nothing
    known[:] = np.where(np.isnan(known), np.nanmean(known, axis=0), known)
    scaled = known / known.std(0) * np.asarray(weights)
    out = np.zeros((_HEAVIEST + 1, _HEAVIEST + 1))
    out[1:, 1:] = np.abs(scaled[:, None] - scaled[None]).sum(-1)
    return out


def volumes(numbers: Sequence[NDArray[np.int64]], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Volume per atom of each element [104] in cubic Angstrom; elements that do not occur get the mean."""
    counts = np.stack([np.bincount(n, minlength=_HEAVIEST + 1)[:_HEAVIEST + 1] for n in numbers]).astype(np.float64)
    size = counts.sum(1)
    shares, target = counts / size[:, None], measured / size
    mean = float(target.mean())
    normal = shares.T @ shares + _RIDGE * np.eye(shares.shape[1])
    found = mean + np.linalg.solve(normal, shares.T @ (target - mean))
    return np.maximum(found, 0.2 * mean)


@dataclass
class TemplateRetrieval:
    """Known crystals by stoichiometry pattern; made by `fit`."""

    crystals: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]
    volume: NDArray[np.float64]
    weights: tuple[float, float, float, float] = WEIGHTS
    groups: dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)

    @classmethod
    def fit(cls, structures: Sequence[Structure],
            weights: tuple[float, float, float, float] = WEIGHTS) -> TemplateRetrieval:
        """From known ordered crystals; UsageError where there are none."""
        return cls.of([(np.asarray(s.atomic_numbers, dtype=np.int64), np.asarray(s.frac_coords) % 1.0,
                        np.asarray(s.lattice.matrix)) for s in structures], weights)

    @classmethod
    def of(cls, crystals: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]],
           weights: tuple[float, float, float, float] = WEIGHTS) -> TemplateRetrieval:
        """From (numbers [N], frac [N, 3], matrix [3, 3]) of each crystal."""
        crystals = [c for c in crystals if c[0].max() <= _HEAVIEST]
        if not crystals:
            raise UsageError("There are no crystals to take templates from.")
        measured = np.array([abs(np.linalg.det(m)) for _, _, m in crystals])
        sorted_in: dict[tuple[int, ...], list[tuple[list[int], int]]] = defaultdict(list)
        for place, (numbers, _, _) in enumerate(crystals):
            counts, elements = _pattern(numbers)
            sorted_in[counts].append((elements, place))
        groups = {counts: (np.array([e for e, _ in rows]), np.array([p for _, p in rows]))
                  for counts, rows in sorted_in.items()}
        return cls(crystals, volumes([n for n, _, _ in crystals], measured), weights, groups)

    def __len__(self) -> int:
        return len(self.crystals)

    def find(self, numbers: Sequence[int], row: int = 0, without: Container[int] = ()) -> Template | None:
        """The nearest template for atoms with these element numbers [N]; None where no pattern agrees.

        without: places in the table that may not serve (leave-one-out). `row` is ignored: the answer is one.
        """
        asked = np.asarray(numbers, dtype=np.int64)
        counts, elements = _pattern(asked)
        group = self.groups.get(counts)
        if group is None or max(elements) > _HEAVIEST:
            return None
        cost, orders = self._assigned(np.array(elements), counts, group[0])
        for k in np.argsort(cost, kind="stable").tolist():
            place = int(group[1][k])
            if place not in without:
                return self._renamed(asked, elements, group[0][k][orders[k]], place, float(cost[k]))
        return None

    def _assigned(self, elements: NDArray[np.int64], counts: tuple[int, ...],
                  known: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Least distance [T] and the order [T, g] of the template's elements that gives it."""
        table = element_distances(self.weights)[elements[:, None, None], known.T[None]]  # [g, g, T]
        table = table * (np.array(counts) / sum(counts))[:, None, None]
        blocks = [list(block) for _, block in itertools.groupby(range(len(counts)), key=lambda k: counts[k])]
        cost = np.zeros(len(known))
        orders = np.empty((len(known), len(counts)), dtype=np.int64)
        for block in blocks:  # elements of equal counts change places among themselves alone
            part = table[np.ix_(block, block)]
            best, order = _least(part)
            cost += best
            orders[:, block] = np.array(block)[order]
        return cost, orders

    def _renamed(self, asked: NDArray[np.int64], elements: list[int], theirs: NDArray[np.int64], place: int,
                 cost: float) -> Template:
        numbers, frac, matrix = self.crystals[place]
        out = np.empty((len(asked), 3))
        for ours, other in zip(elements, theirs.tolist(), strict=True):
            out[asked == ours] = frac[numbers == other]
        scale = self.volume[asked].sum() / self.volume[numbers].sum()
        return Template(asked, out, matrix * scale ** (1.0 / 3.0), cost, place)


def _pattern(numbers: NDArray[np.int64]) -> tuple[tuple[int, ...], list[int]]:
    """Counts in falling order, and the elements in that order."""
    found = sorted(Counter(numbers.tolist()).items(), key=lambda item: (-item[1], item[0]))
    return tuple(n for _, n in found), [z for z, _ in found]


def _least(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Optimal assignment of each cost table [g, g, T]: cost [T], columns [T, g]."""
    g, _, count = table.shape
    if math.factorial(g) <= _MOST_ORDERS:
        orders = np.array(list(itertools.permutations(range(g))))
        sums = table[np.arange(g), orders].sum(1)  # [orders, T]
        best = sums.argmin(0)
        return sums[best, np.arange(count)], orders[best]
    from scipy.optimize import linear_sum_assignment

    columns = np.stack([linear_sum_assignment(table[:, :, k])[1] for k in range(count)])
    return table[np.arange(g)[:, None], columns.T, np.arange(count)].sum(0), columns


@dataclass
class CubicPerovskite:
    """The ideal cubic perovskite with an additive lattice constant [104] in Angstrom per atom."""

    length: NDArray[np.float64]
    seed: int = 0

    @classmethod
    def fit(cls, structures: Sequence[Structure], seed: int = 0) -> CubicPerovskite:
        """From known crystals of five atoms."""
        numbers = [np.asarray(s.atomic_numbers, dtype=np.int64) for s in structures if len(s) == 5]
        if not numbers:
            raise UsageError("There are no crystals of five atoms to learn a lattice constant from.")
        return cls(volumes(numbers, np.array([s.volume ** (1.0 / 3.0) for s in structures if len(s) == 5])), seed)

    def find(self, numbers: Sequence[int], row: int = 0) -> Template | None:
        """The crystal for five atoms, three of them anions; None for others."""
        asked = np.asarray(numbers, dtype=np.int64)
        anions = np.isin(asked, ANIONS)
        if len(asked) != 5 or anions.sum() != 3:
            return None
        frac = np.empty((5, 3))
        frac[anions] = 0.5 - 0.5 * np.eye(3)
        coin = np.random.default_rng((self.seed, row)).integers(2)
        frac[~anions] = np.array([[0.0] * 3, [0.5] * 3])[[coin, 1 - coin]]
        return Template(asked, frac, np.eye(3) * self.length[asked].sum(), 0.0, int(coin))
