"""Graph families of our own: random graphs by a law and a seed, so that everything works without any data.

tree        uniform over the n^(n-2) labelled trees: a random Pruefer word, decoded (Pruefer 1918)
planar      Delaunay triangulation of n uniform points in the unit square: connected and planar
sbm         stochastic block model: uniformly many blocks of uniform sizes, edges with p_in inside and p_out between
community   two halves with edge probability p_in, joined by each cross pair with p_out, by at least one pair; connected
grid        rows x columns lattice, both uniform in a range
ego         a centre joined to all others, which fall into groups (each joins an old group in proportion to its size, or
            a new one with weight theta) and are joined with probability p_in inside a group

Graph i of a part is a function of (family, settings, seed, part, i) alone: every random number is a uniform of the
counter-based generator of scidiff.core.run, so graphs do not depend on how many are drawn, nor on the version of any
library (planar: up to ties of the triangulation).
"""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scidiff.core.errors import UsageError, nearest
from scidiff.core.run import hash_text, mix_int, uniform
from scidiff.domains.base import Records
from scidiff.domains.graph.archive import PARTS
from scidiff.domains.graph.codec import build

if TYPE_CHECKING:
    from networkx import Graph
    from numpy.typing import NDArray

Draw = Callable[[str, int], "NDArray[np.float64]"]
"""draw(tag, count): `count` uniforms in (0, 1) of this graph; another tag gives other ones."""

_ATTEMPTS = 64


def tree(draw: Draw, nodes: int = 64) -> Graph:
    """A uniform random labelled tree."""
    _at_least(nodes, 2, "nodes")
    word = (draw("word", nodes - 2) * nodes).astype(np.int64) if nodes > 2 else np.zeros(0, dtype=np.int64)
    return build(nodes, decoded(word.tolist(), nodes))


def decoded(word: list[int], nodes: int) -> list[tuple[int, int]]:
    """The edges of the labelled tree with this Pruefer word of nodes - 2 letters."""
    degree = [1] * nodes
    for letter in word:
        degree[letter] += 1
    leaves = [i for i in range(nodes) if degree[i] == 1]
    edges = []
    for letter in word:  # `leaves` ascends, so it is a heap
        edges.append((heapq.heappop(leaves), letter))
        degree[letter] -= 1
        if degree[letter] == 1:
            heapq.heappush(leaves, letter)
    return [*edges, (heapq.heappop(leaves), heapq.heappop(leaves))]


def planar(draw: Draw, nodes: int = 64) -> Graph:
    """The Delaunay triangulation of uniform points."""
    from scipy.spatial import Delaunay

    _at_least(nodes, 3, "nodes")
    corners = Delaunay(draw("points", 2 * nodes).reshape(nodes, 2)).simplices
    pairs = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]), axis=1)
    return build(nodes, np.unique(pairs, axis=0).tolist())


def sbm(draw: Draw, blocks: tuple[int, int] = (2, 5), size: tuple[int, int] = (20, 40), p_in: float = 0.3,
        p_out: float = 0.005) -> Graph:
    """A stochastic block model; it may fall apart."""
    number = _within(draw("blocks", 1)[0], blocks)
    sizes = [_within(u, size) for u in draw("sizes", number)]
    return _by_blocks(draw("edges", sum(sizes) * (sum(sizes) - 1) // 2), sizes, p_in, p_out)


def community(draw: Draw, nodes: tuple[int, int] = (12, 20), p_in: float = 0.7, p_out: float = 0.01) -> Graph:
    """Two communities of equal size, joined; the number of nodes is even."""
    import networkx

    half = _within(draw("nodes", 1)[0], ((nodes[0] + 1) // 2, nodes[1] // 2))
    for attempt in range(_ATTEMPTS):
        found = _by_blocks(draw(f"edges {attempt}", half * (2 * half - 1)), [half, half], p_in, p_out)
        if not any(v >= half > u for u, v in found.edges()):
            bridge = (draw(f"bridge {attempt}", 2) * half).astype(np.int64)
            found.add_edge(int(bridge[0]), int(half + bridge[1]))
        if networkx.is_connected(found):
            return found
    raise UsageError(f"Communities of {half} nodes with p_in={p_in:g} hardly ever hang together.", "Raise p_in.")


def grid(draw: Draw, rows: tuple[int, int] = (10, 19), columns: tuple[int, int] = (10, 19)) -> Graph:
    """A rectangular lattice."""
    a, b = (_within(u, span) for u, span in zip(draw("sides", 2), (rows, columns), strict=True))
    place = np.arange(a * b).reshape(a, b)
    across = np.stack([place[:, :-1].ravel(), place[:, 1:].ravel()], 1)
    down = np.stack([place[:-1].ravel(), place[1:].ravel()], 1)
    return build(a * b, np.concatenate([across, down]).tolist())


def ego(draw: Draw, nodes: tuple[int, int] = (4, 18), stop: float = 0.3, theta: float = 2.0,
        p_in: float = 0.8) -> Graph:
    """The neighbourhood of one node; sizes fall off geometrically with `stop`."""
    low, high = nodes
    _within(0.5, nodes)
    weights = (1.0 - stop) ** np.arange(high - low + 1)
    count = low + int(np.searchsorted(np.cumsum(weights) / weights.sum(), draw("nodes", 1)[0]))
    members: list[list[int]] = []
    edges = [(0, v) for v in range(1, count)]
    for v, u in enumerate(draw("groups", count - 1), 1):
        places = np.cumsum([*map(len, members), theta])
        chosen = int(np.searchsorted(places, u * places[-1]))
        if chosen == len(members):
            members.append([])
        edges += [(w, v) for w, x in zip(members[chosen], draw(f"links {v}", len(members[chosen]) + 1), strict=False)
                  if x < p_in]
        members[chosen].append(v)
    return build(count, edges)


FAMILIES: dict[str, Callable[..., Graph]] = {"tree": tree, "planar": planar, "sbm": sbm, "community": community,
                                             "grid": grid, "ego": ego}


def make(family: str, count: int, seed: int = 0, part: str = "train", **settings: Any) -> list[Graph]:
    """Graphs 0 .. count-1 of one part of a family."""
    if family not in FAMILIES:
        raise UsageError(f"There is no graph family {family!r}.", nearest(family, FAMILIES))
    law = FAMILIES[family]
    options = list(inspect.signature(law).parameters)[1:]
    for key in settings:
        if key not in options:
            raise UsageError(f"The graph family {family!r} has no setting {key!r}.", nearest(key, options))
    key = mix_int(mix_int(int(seed)) ^ hash_text(f"graph {family} {part}")) >> 1
    made = []
    for i in range(count):
        ids = torch.tensor([i])
        made.append(law(lambda tag, number, ids=ids: uniform(key, ids, tag, number)[0].numpy(), **settings))
    return made


def drawn(options: Mapping[str, Any], split: str | None = None, limit: int | None = None) -> Records:
    """The graphs that a card with the reader `family` describes.

    family; settings of it; seed; train, valid, test: how many graphs a part has. `split` None reads all parts.
    """
    known = ("family", "settings", "seed", *PARTS, "kind")
    for key in options:
        if key not in known:
            raise UsageError(f"A graph family has no option {key!r}.", nearest(key, known))
    if split not in (None, *PARTS):
        raise UsageError(f"There is no split {split!r} of graphs.", nearest(str(split), PARTS))
    records = Records([], [])
    for part in PARTS if split is None else (split,):
        left = int(options.get(part, 0)) if limit is None else min(int(options.get(part, 0)), limit - len(records))
        for i, graph in enumerate(make(str(options["family"]), left, int(options.get("seed", 0)), part,
                                       **dict(options.get("settings") or {}))):
            graph.graph["name"] = f"{options['family']}_{part}_{i}"
            records.objects.append(graph)
            records.names.append(graph.graph["name"])
    return records


def _by_blocks(u: NDArray[np.float64], sizes: list[int], p_in: float, p_out: float) -> Graph:
    """Pair k of the upper triangle is an edge where u[k] is below the probability of its blocks."""
    block = np.repeat(np.arange(len(sizes)), sizes)
    first, second = np.triu_indices(len(block), 1)
    chosen = u < np.where(block[first] == block[second], p_in, p_out)
    return build(len(block), np.stack([first[chosen], second[chosen]], 1).tolist())


def _within(u: float, span: tuple[int, int]) -> int:
    low, high = (int(x) for x in span)
    if not 1 <= low <= high:
        raise UsageError(f"A range of a graph family goes from 1 upwards, not from {low} to {high}.")
    return low + int(u * (high - low + 1))


def _at_least(value: int, least: int, name: str) -> None:
    if value < least:
        raise UsageError(f"{name}={value} is too few for this graph family.", f"Take at least {least}.")
