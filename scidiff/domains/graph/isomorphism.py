"""Which graphs are the same up to the order of their nodes.

Two graphs of different `hashes` are never isomorphic: the hash is made of colours that no renumbering changes. Each
node starts with the number of times it takes each of the 15 roles in subgraphs of up to four nodes (topology.py); then
colours are refined with those of the neighbours (Weisfeiler-Leman) until no class splits any more. Equal hashes are
confirmed by networkx (VF2), which may match nodes of equal colour alone, within a fixed number of trials: a guard that
does not depend on the speed of the machine. A pair that is still open then counts as isomorphic, and is reported.
Attributes of nodes and edges are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scidiff.domains.graph import topology

if TYPE_CHECKING:
    from networkx import Graph
    from numpy.typing import NDArray

TRIALS = 50_000
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Classes(NamedTuple):
    """Isomorphism classes: label [G] (number of the first graph of the class), and how many pairs stayed open."""

    labels: NDArray[np.int64]
    undecided: int


class _Exhausted(Exception):
    pass


def hashes(adjacency: NDArray[np.uint8], sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash of every graph [G], the same on every machine."""
    return np.array([_total(found) for found in colours(adjacency, sizes)], dtype=np.uint64)


def colours(adjacency: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[NDArray[np.uint64]]:
    """Stable colours of the nodes [n] of every graph, comparable between graphs."""
    roles = topology.orbits(adjacency).astype(np.uint64)
    return [_refined(a[:n, :n], role[:n]) for a, n, role in zip(adjacency, sizes.tolist(), roles, strict=True)]


def isomorphic(one: Graph, two: Graph, trials: int = TRIALS) -> bool | None:
    """Whether two graphs are isomorphic; None where `trials` pairs of nodes did not decide."""
    first, second = colours(*topology.padded([one, two]))
    return _match(one, two, first, second, trials)


def classes(graphs: Sequence[Graph], trials: int = TRIALS) -> Classes:
    """Isomorphism classes of graphs."""
    found = colours(*topology.padded(graphs))
    labels, undecided = np.arange(len(graphs)), 0
    first: dict[int, list[int]] = {}
    for i, colour in enumerate(found):
        alike = first.setdefault(int(_total(colour)), [])
        for j in alike:
            same = _match(graphs[j], graphs[i], found[j], colour, trials)
            undecided += same is None
            if same is not False:
                labels[i] = j
                break
        else:
            alike.append(i)
    return Classes(labels, undecided)


def _match(one: Graph, two: Graph, first: np.ndarray, second: np.ndarray, trials: int) -> bool | None:
    from networkx.algorithms.isomorphism import GraphMatcher

    if not np.array_equal(np.sort(first), np.sort(second)):
        return False

    class Guarded(GraphMatcher):
        left = trials

        def semantic_feasibility(self, node: int, other: int) -> bool:
            self.left -= 1
            if self.left < 0:
                raise _Exhausted
            return bool(first[node] == second[other])

    try:
        return Guarded(_numbered(one), _numbered(two)).is_isomorphic()
    except _Exhausted:
        return None


def _numbered(graph: Graph) -> Graph:
    """Nodes 0 .. n-1 in the order of `topology.padded`, without attributes."""
    from networkx import from_numpy_array

    return from_numpy_array(topology.padded([graph])[0][0])


def _refined(adjacency: np.ndarray, roles: np.ndarray) -> NDArray[np.uint64]:
    a = adjacency.astype(np.uint64)
    colour = np.full(len(a), len(a), dtype=np.uint64)
    for column in roles.T:
        colour = _mixed(colour + _mixed(column))
    count = 0
    while (now := len(np.unique(colour))) > count:
        count = now
        colour = _mixed(colour + _mixed(a @ _mixed(colour)))
    return colour


def _total(colour: np.ndarray) -> np.uint64:
    return _mixed(np.array([len(colour)], dtype=np.uint64) + _mixed(colour).sum(dtype=np.uint64))[0]


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers that scatters neighbours (the finaliser of splitmix64); wraps around."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
