"""Which crystals of a set are repeats, and which are known already.

A crystal is unique if it matches no earlier one of the set, novel if it matches no training crystal. Candidates share
the reduced composition; the matcher decides with the tolerances IDENTITY of matching.py. Where a set would need more
than MOST_CALLS comparisons, the question is asked of a random part of it, whose size is told: the share of unique
crystals falls with the size of the set, so figures of different sizes do not compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

from scidiff.domains.crystal.matching import IDENTITY, Pair, Tolerances, composition_key, packed
from scidiff.domains.crystal.pool import Pool

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

MOST_CALLS = 50_000


@dataclass(frozen=True)
class Repeats:
    """For the crystals `chosen` [m]: which match an earlier one (or a known one); comparisons that ran out of time."""

    chosen: NDArray[np.int64]
    matched: NDArray[np.bool_]
    late: int = 0


def within(structures: Sequence[Structure], possible: NDArray[np.bool_], pool: Pool, seed: int = 0,
           tolerances: Tolerances = IDENTITY, most: int = MOST_CALLS) -> Repeats:
    """Which crystals match an earlier one of the same set; those that are not `possible` [M] match none."""
    keys = [composition_key(s) for s in structures]

    def pairs(chosen: NDArray[np.int64]) -> list[Pair]:
        groups: dict[tuple[Pair, ...], list[int]] = {}
        out = []
        for i in chosen[possible[chosen]].tolist():
            earlier = groups.setdefault(keys[i], [])
            out += [(i, j) for j in earlier]
            earlier.append(i)
        return out

    def load(chosen: NDArray[np.int64]) -> int:
        sizes = Counter(keys[i] for i in chosen[possible[chosen]].tolist()).values()
        return sum(n * (n - 1) // 2 for n in sizes)

    chosen = _part(len(structures), load, most, seed)
    return _matched(structures, structures, chosen, pairs(chosen), pool, tolerances)


def against(structures: Sequence[Structure], possible: NDArray[np.bool_], known: Sequence[Structure], pool: Pool,
            seed: int = 0, tolerances: Tolerances = IDENTITY, most: int = MOST_CALLS) -> Repeats:
    """Which crystals match one of the known ones."""
    groups: dict[tuple[Pair, ...], list[int]] = {}
    for j, structure in enumerate(known):
        groups.setdefault(composition_key(structure), []).append(j)
    candidates = [groups.get(composition_key(s), []) if possible[i] else [] for i, s in enumerate(structures)]
    load = np.array([len(c) for c in candidates], dtype=np.int64)
    chosen = _part(len(structures), lambda some: int(load[some].sum()), most, seed)
    pairs = [(i, j) for i in chosen.tolist() for j in candidates[i]]
    return _matched(structures, known, chosen, pairs, pool, tolerances)


def _part(count: int, load: Callable[[NDArray[np.int64]], int], most: int, seed: int) -> NDArray[np.int64]:
    """All places, or the largest random part whose load is allowed; sorted."""
    order = np.random.default_rng(seed).permutation(count)
    size = count
    while size > 1 and load(np.sort(order[:size])) > most:
        size = max(int(size * 0.8), 1)
    return np.sort(order[:size])


def _matched(left: Sequence[Structure], right: Sequence[Structure], chosen: NDArray[np.int64], pairs: Sequence[Pair],
             pool: Pool, tolerances: Tolerances) -> Repeats:
    given = astuple(tolerances)
    first = {i: packed(left[i]) for i in {i for i, _ in pairs}}
    second = {j: packed(right[j]) for j in {j for _, j in pairs}}
    answers = pool.run([("same", (first[i], second[j], given)) for i, j in pairs])
    repeated = {i for (i, _), answer in zip(pairs, answers, strict=True) if answer.value}
    late = sum(answer.problem == "time" for answer in answers)
    return Repeats(chosen, np.isin(chosen, list(repeated)), late)
