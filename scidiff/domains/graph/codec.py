"""Graphs as matrices of classes or of real numbers, and back.

Native object: `networkx.Graph`, undirected, without loops and repeated edges, nodes 0 .. n-1, with a node attribute
`label` (text) where nodes have classes. A graph of n nodes, padded to N, becomes

    classes   edges [N, N] int64 in {0 none, 1 edge}; nodes [N] int64, index into `labels`, where there are any
    gdss      edges [N, N] float32 in {0, 1}; nodes [N, F] float32, one-hot of min(degree, F - 1)
              (Jo, Lee & Hwang 2022, arXiv 2202.02514)

symmetric, zero on the diagonal and beyond n. Decoding `classes` is exact. Decoding `gdss` takes entries of at least 1/2
as edges, keeps nothing of the node features, and drops isolated nodes, as published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.graph.topology import padded

if TYPE_CHECKING:
    from networkx import Graph

LABEL = "label"
MOST_LABELS = 64
THRESHOLD = 0.5


def build(count: int, edges: Iterable[Sequence[int]], labels: Sequence[str] | None = None) -> Graph:
    """A graph of nodes 0 .. count-1."""
    import networkx

    graph = networkx.empty_graph(count)
    graph.add_edges_from(edges)
    if labels is not None:
        networkx.set_node_attributes(graph, dict(enumerate(labels)), LABEL)
    return graph


def unfit(graph: Graph) -> str:
    """Why this object is no simple undirected graph with nodes; the empty string where it is one."""
    import networkx

    if not isinstance(graph, networkx.Graph):
        return f"it is a {type(graph).__name__}, not a networkx.Graph"
    if graph.number_of_nodes() == 0:
        return "it has no nodes"
    if graph.is_directed():
        return "its edges are directed"
    if graph.is_multigraph():
        return "it is a multigraph, in which an edge may occur twice"
    loop = next((u for u, v in graph.edges() if u == v), None)
    return "" if loop is None else f"its node {loop} has an edge to itself"


def labels_of(graph: Graph) -> list[str] | None:
    """The label of each node, in the order of its row; None where no node has one. UsageError where some have."""
    count = graph.number_of_nodes()
    names = range(count) if all(i in graph for i in range(count)) else list(graph)
    found = [graph.nodes[name].get(LABEL) for name in names]
    missing = sum(label is None for label in found)
    if missing == len(found):
        return None
    if missing:
        raise UsageError(f"{missing} of the {len(found)} nodes of a graph have no label, and the others have one.")
    return [str(label) for label in found]


def vocabulary(graphs: Sequence[Graph]) -> tuple[str, ...]:
    """Node labels by falling frequency (ties by name), () where there are none; UsageError for more than 64."""
    each = [labels_of(graph) for graph in graphs]
    bare = sum(labels is None for labels in each)
    if bare == len(each):
        return ()
    if bare:
        raise UsageError(f"{bare} of {len(each)} graphs have no node labels, and the others have some.",
                         "Ignore all labels with data.options.label=null.")
    counts = Counter(label for labels in each for label in labels or ())
    if all(len(set(labels or ())) == len(labels or ()) for labels in each) and sum(counts.values()) > len(each):
        raise UsageError("The labels of the nodes differ within every graph: they are names rather than classes.",
                         "Ignore them with data.options.label=null.")
    if len(counts) > MOST_LABELS:
        raise UsageError(f"The nodes have {len(counts)} different labels, and a model takes at most {MOST_LABELS}.",
                         "Ignore them with data.options.label=null.")
    return tuple(label for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class GraphCodec:
    """labels: node classes (empty: none); n_max: most nodes; degrees: columns of node features, 0 for `classes`."""

    labels: tuple[str, ...]
    n_max: int
    degrees: int = 0

    def supports(self, graph: Graph) -> str:
        """Why this graph cannot be encoded; the empty string where it can."""
        why = unfit(graph)
        if why:
            return why
        if graph.number_of_nodes() > self.n_max:
            return f"it has {graph.number_of_nodes()} nodes, more than {self.n_max}"
        if self.degrees or not self.labels:
            return ""
        labels = labels_of(graph)
        if labels is None:
            return f"its nodes have no labels, which are {', '.join(self.labels)} here"
        unknown = next((label for label in labels if label not in self.labels), None)
        return "" if unknown is None else f"the node label {unknown!r} is not among {', '.join(self.labels)}"

    def encode(self, graphs: Sequence[Graph]) -> tuple[dict[str, Tensor], Tensor]:
        """(state, sizes [B] int64), N = n_max; UsageError names the first graph that cannot be encoded."""
        for number, graph in enumerate(graphs, 1):
            why = self.supports(graph)
            if why:
                raise UsageError(f"Graph {number} cannot be encoded: {why}.")
        found, counts = padded(graphs)
        adjacency = np.zeros((len(graphs), self.n_max, self.n_max), dtype=np.uint8)
        adjacency[:, : found.shape[1], : found.shape[2]] = found
        edges, sizes = torch.from_numpy(adjacency), torch.from_numpy(counts)
        if self.degrees:
            real = torch.arange(self.n_max)[None] < sizes[:, None]
            degree = edges.sum(-1, dtype=torch.int64).clamp(max=self.degrees - 1)
            hot = torch.nn.functional.one_hot(degree, self.degrees) * real.unsqueeze(-1)
            return {"nodes": hot.float(), "edges": edges.float()}, sizes
        state = {"edges": edges.long()}
        if self.labels:
            index = {label: i for i, label in enumerate(self.labels)}
            nodes = torch.zeros(len(graphs), self.n_max, dtype=torch.int64)
            for row, graph in zip(nodes, graphs, strict=True):
                row[: graph.number_of_nodes()] = torch.tensor([index[label] for label in labels_of(graph) or ()])
            state = {"nodes": nodes, **state}
        return state, sizes

    def decode(self, state: dict[str, Tensor], sizes: Tensor) -> list[Graph]:
        """Graphs of a state; only entries below `sizes` and above the diagonal are read."""
        values = state["edges"].to("cpu")
        edges = (values >= THRESHOLD if self.degrees else values == 1).numpy()
        nodes = state["nodes"].to("cpu").tolist() if self.labels and not self.degrees else None
        out = []
        for b, n in enumerate(sizes.to("cpu").tolist()):
            present = np.triu(edges[b, :n, :n], 1)
            if self.degrees:
                kept = np.flatnonzero(present.any(0) | present.any(1))
                present = present[np.ix_(kept, kept)]
            labels = None if nodes is None else [self.labels[k] for k in nodes[b][:n]]
            out.append(build(len(present), np.argwhere(present).tolist(), labels))
        return out

    def marginals(self, state: dict[str, Tensor], sizes: Tensor) -> dict[str, list[float]]:
        """Class frequencies of labels and of unordered pairs of nodes, for `classes`."""
        pairs = float((sizes * (sizes - 1) // 2).sum())
        edges = float(state["edges"].sum()) / 2
        share = edges / pairs if pairs else 0.0
        out = {"edges": [1.0 - share, share]}
        if self.labels:
            real = torch.arange(self.n_max)[None] < sizes[:, None]
            counts = torch.bincount(state["nodes"][real], minlength=max(len(self.labels), 2)).double()
            out["nodes"] = (counts / counts.sum()).tolist()
        return out
