"""Collections in the text format of the TU data sets: a zip file with tables of numbers.

<name>_A.txt                 pairs of node numbers, counted from 1 over all graphs; both directions of every edge
<name>_graph_indicator.txt   the number of the graph of each node
<name>_node_labels.txt       optional: one whole number a node

Loops are dropped, both directions of an edge are one, and nodes without an edge left are removed, as the graph
generation literature does with these sets (You et al. 2018, arXiv 1802.08773).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scidiff.domains.graph.entries import Entry, Rules, broken, judged

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = 1 << 30  # bytes of one unpacked table


class _Damaged(Exception):
    """What is wrong with a collection, as the end of a sentence."""


def entries(path: Path, rules: Rules) -> Iterator[Entry]:
    """The graphs of a collection, in its order."""
    try:
        edges, owner, labels = _tables(path)
    except _Damaged as damage:
        yield broken(path.name, str(damage))
        return
    kept = edges[edges[:, 0] != edges[:, 1]]
    alive = np.zeros(len(owner), dtype=bool)
    alive[kept.ravel()] = True
    for g in range(1, int(owner.max(initial=0)) + 1):
        nodes = np.flatnonzero((owner == g) & alive)
        place = np.full(len(owner), -1, dtype=np.int64)
        place[nodes] = np.arange(len(nodes))
        own = place[kept[owner[kept[:, 0]] == g]]
        pairs = np.unique(np.sort(own, axis=1), axis=0)
        told = None if labels is None or not rules.label else [str(k) for k in labels[nodes].tolist()]
        entry = Entry(f"{path.name}, graph {g}", f"{path.name.split('.')[0]}_{g}", len(nodes),
                      list(map(tuple, pairs.tolist())), told)
        yield judged(entry, rules)


def _tables(path: Path) -> tuple[NDArray, NDArray, NDArray | None]:
    """Edges [E, 2] counted from 0, the graph of each node [V], the label of each node [V] or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name.rpartition("/")[2]: name for name in archive.namelist()}
            edges = _table(archive, found, "_A.txt")
            owner = _table(archive, found, "_graph_indicator.txt")
            labels = _table(archive, found, "_node_labels.txt", needed=False)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise _Damaged("it is no zip file, or damaged") from error
    if edges is None or owner is None or edges.ndim != 2 or edges.shape[1] != 2 or owner.shape[1] != 1:
        raise _Damaged("its tables do not have the columns of a collection of graphs")
    edges, owner = edges - 1, owner[:, 0]
    if len(edges) and not 0 <= int(edges.min()) <= int(edges.max()) < len(owner):
        raise _Damaged("an edge names a node that belongs to no graph")
    if (owner[edges[:, 0]] != owner[edges[:, 1]]).any():
        raise _Damaged("an edge joins nodes of two graphs")
    if labels is not None and len(labels) != len(owner):
        raise _Damaged("it does not have one label a node")
    return edges, owner, None if labels is None else labels[:, 0]


def _table(archive: zipfile.ZipFile, found: dict[str, str], ending: str, needed: bool = True) -> NDArray | None:
    name = next((full for short, full in found.items() if short.endswith(ending)), None)
    if name is None:
        if needed:
            raise _Damaged(f"it has no file <name>{ending}")
        return None
    if archive.getinfo(name).file_size > _LARGEST:
        raise _Damaged(f"its file {name} unpacks to more than 1 GiB")
    text = archive.read(name).decode("utf-8", errors="replace").replace(",", " ")
    try:
        return np.loadtxt(io.StringIO(text), dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise _Damaged(f"its file {name} is no table of whole numbers") from error
