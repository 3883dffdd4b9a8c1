"""Many graphs in one NumPy archive (.npz), read without unpickling anything.

n_nodes [G]       nodes of each graph
edge_ptr [G+1]    graph g owns the rows edge_ptr[g] : edge_ptr[g + 1] of `edges`
edges [E, 2]      pairs of node numbers, local to their graph
split [G]         optional: 0 train, 1 validation, 2 test
name [G]          optional: text
node_label        optional: label of each node, graph after graph, with node_ptr [G+1]; numbers, which are positions in
                  `label_name` where there is one
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scidiff.domains.graph.codec import labels_of
from scidiff.domains.graph.entries import Entry, Rules, broken, judged
from scidiff.store.arrays import Damaged, read

if TYPE_CHECKING:
    from networkx import Graph
    from numpy.typing import NDArray

PARTS = ("train", "valid", "test")
_ARRAYS = ("n_nodes", "edge_ptr", "edges", "split", "name", "node_label", "node_ptr", "label_name")


def entries(path: Path, rules: Rules) -> Iterator[Entry]:
    """The graphs of an archive."""
    try:
        arrays = read(path, _ARRAYS)
        counts, pointer, edges = _whole(arrays)
        labels = _labels(arrays, counts) if rules.label else None
    except Damaged as damage:
        yield broken(path.name, str(damage))
        return
    parts, names = arrays.get("split"), arrays.get("name")
    for g, count in enumerate(counts.tolist()):
        own = edges[pointer[g]:pointer[g + 1]]
        part = None if parts is None else PARTS[int(parts[g])]
        name = f"{path.name.split('.')[0]}_{g}" if names is None else str(names[g])
        pairs = [] if count > rules.most else list(map(tuple, own.tolist()))
        entry = Entry(f"{path.name}, graph {g}", name, count, pairs, None if labels is None else labels[g], part)
        yield judged(entry, rules)


def _whole(arrays: dict[str, NDArray]) -> tuple[NDArray, NDArray, NDArray]:
    """n_nodes, edge_ptr, edges as int64, with the shapes that they must have."""
    for name in ("n_nodes", "edge_ptr", "edges"):
        if name not in arrays:
            raise Damaged(f"it has no array {name!r}")
        if arrays[name].dtype.kind not in "iu":
            raise Damaged(f"its array {name!r} does not hold whole numbers")
    counts, pointer, edges = (arrays[name].astype(np.int64) for name in ("n_nodes", "edge_ptr", "edges"))
    if counts.ndim != 1 or pointer.shape != (len(counts) + 1,) or edges.ndim != 2 or edges.shape[1] != 2:
        raise Damaged("its arrays n_nodes [G], edge_ptr [G+1] and edges [E, 2] do not fit together")
    if pointer[0] != 0 or (np.diff(pointer) < 0).any() or pointer[-1] != len(edges) or (counts < 0).any():
        raise Damaged("its edge_ptr does not cut the edges into graphs")
    for name, shape in (("split", counts.shape), ("name", counts.shape)):
        if name in arrays and arrays[name].shape != shape:
            raise Damaged(f"its array {name!r} does not have one entry a graph")
    if "split" in arrays and not np.isin(arrays["split"], (0, 1, 2)).all():
        raise Damaged("its array 'split' holds other numbers than 0 (train), 1 (validation) and 2 (test)")
    return counts, pointer, edges


def _labels(arrays: dict[str, NDArray], counts: NDArray) -> list[list[str]] | None:
    if "node_label" not in arrays:
        return None
    values = arrays["node_label"]
    if values.dtype.kind not in "iu" or values.shape != (int(counts.sum()),):
        raise Damaged("its array 'node_label' does not hold one whole number a node")
    if "label_name" in arrays:
        names = arrays["label_name"]
        if names.ndim != 1 or (len(values) and not 0 <= int(values.min()) <= int(values.max()) < len(names)):
            raise Damaged("its array 'node_label' does not fit its array 'label_name'")
        text = [str(names[k]) for k in values.tolist()]
    else:
        text = [str(k) for k in values.tolist()]
    ends = np.cumsum(counts).tolist()
    return [text[end - count:end] for end, count in zip(ends, counts.tolist(), strict=True)]


def packed(graphs: Sequence[Graph], names: Sequence[str]) -> bytes:
    """The archive of these graphs, compressed; equal graphs and names give equal bytes."""
    from networkx import convert_node_labels_to_integers

    plain = [graph if set(graph) == set(range(len(graph))) else convert_node_labels_to_integers(graph)
             for graph in graphs]
    edges = [sorted((min(u, v), max(u, v)) for u, v in graph.edges()) for graph in plain]
    arrays = {
        "n_nodes": np.array([len(graph) for graph in plain], dtype=np.int32),
        "edge_ptr": np.cumsum([0, *map(len, edges)], dtype=np.int64),
        "edges": np.array([pair for own in edges for pair in own], dtype=np.int32).reshape(-1, 2),
        "name": np.array(list(names), dtype=np.str_),
    }
    labels = [own for own in map(labels_of, plain) if own is not None]
    if labels and len(labels) == len(plain):
        text = np.array([label for own in labels for label in own], dtype=np.str_)
        arrays["label_name"], place = np.unique(text, return_inverse=True)
        arrays["node_label"] = place.astype(np.int32)
        arrays["node_ptr"] = np.cumsum([0, *map(len, plain)], dtype=np.int64)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
