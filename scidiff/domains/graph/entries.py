"""What a reader finds, and whether it is a simple undirected graph.

Every reader yields `Entry` objects, one for each graph of a file. What is wrong with a graph is said in its `reason`,
so that one bad graph does not cost the others; what is wrong with a whole file is an entry of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

MOST_NODES = 2000
"""Nodes of a graph that is still read: dense matrices grow with the square of it."""


@dataclass(frozen=True)
class Entry:
    """One graph: edges as pairs of node numbers 0 .. count-1; reason: why it cannot be used (empty: it can)."""

    where: str
    name: str = ""
    count: int = 0
    edges: Sequence[tuple[int, int]] = ()
    labels: Sequence[str] | None = None
    part: str | None = None
    reason: str = ""
    text: str = ""


@dataclass(frozen=True)
class Rules:
    """How graphs are read. label: name of the node attribute that holds classes (None: none does); most: nodes of the
    largest graph; simplify: drop directions and loops, merge repeated edges."""

    label: str | None = "label"
    most: int = MOST_NODES
    simplify: bool = False


def broken(where: str, reason: str) -> Entry:
    """The entry of a file, or of a place in one, that cannot be read."""
    return Entry(where, reason=reason)


def judged(entry: Entry, rules: Rules, names: Sequence[str] = ()) -> Entry:
    """The entry with the reason why it is no simple graph; `names` are the nodes' own names."""
    reason = entry.reason or _outside(entry, rules.most)
    if not reason and rules.simplify:
        entry = replace(entry, edges=sorted({ordered(pair) for pair in entry.edges if pair[0] != pair[1]}))
    return replace(entry, edges=(), reason=reason) if reason else replace(entry, reason=_repeated(entry, names))


def _outside(entry: Entry, most: int) -> str:
    """Why sizes, ends of edges or labels are wrong; the empty string where they are not."""
    if entry.count == 0:
        return "it has no nodes"
    if entry.count > most:
        return f"it has {entry.count} nodes, more than {most} (data.options.max_nodes)"
    if entry.labels is not None and len(entry.labels) != entry.count:
        return f"it has {entry.count} nodes and {len(entry.labels)} labels"
    for u, v in entry.edges:
        if not (0 <= u < entry.count and 0 <= v < entry.count):
            return f"an edge joins {u} and {v}, but the nodes are 0 to {entry.count - 1}"
    return ""


def _repeated(entry: Entry, names: Sequence[str]) -> str:
    def called(i: int) -> str:
        return str(names[i]) if names else str(i)

    loop = next((u for u, v in entry.edges if u == v), None)
    if loop is not None:
        return f"the node {called(loop)} has an edge to itself (data.options.simplify=true drops such edges)"
    twice = next((pair for pair, times in Counter(map(ordered, entry.edges)).items() if times > 1), None)
    if twice is None:
        return ""
    return (f"the edge between {called(twice[0])} and {called(twice[1])} occurs more than once "
            "(data.options.simplify=true merges such edges)")


def ordered(pair: tuple[int, int]) -> tuple[int, int]:
    """The unordered pair, smaller number first."""
    u, v = pair
    return (u, v) if u <= v else (v, u)


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Node names in order of appearance -> 0, 1, ...; names that are whole numbers go by their size."""
    found = list(dict.fromkeys(names))
    if all(name.isdigit() for name in found):
        found.sort(key=int)
    return {name: i for i, name in enumerate(found)}
