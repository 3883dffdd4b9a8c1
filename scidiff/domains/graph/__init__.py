"""Generic graphs: which nodes are joined, and of which class they are.

State with the codec "classes": edges [N, N] of 2 classes (none, edge; by unordered pair) and, where nodes have labels,
nodes [N] of K classes. With the codec "gdss": edges [N, N] real and nodes [N, F] real, a one-hot degree (codec.py).
Native object: `networkx.Graph`, simple and undirected. A domain instance holds the labels, the largest size and the
size histogram of the set it was fitted to, and which kind of graph is asked for. The size of sample i is drawn from
that histogram by (seed, i) alone, or within a range that the request names (`num_nodes=20`, `num_nodes=12-20`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.base import Domain, Metric, Records, Request, Samples, Verdict
from scidiff.domains.sizes import Sizes

if TYPE_CHECKING:
    from networkx import Graph
    from torch import Tensor

    from scidiff.core.space import Space
    from scidiff.core.spec import Context, Shape, State, StateSpec
    from scidiff.domains.graph.codec import GraphCodec
    from scidiff.domains.graph.reference import Reference

CODECS = ("classes", "gdss")
SIZES = Sizes("num_nodes", "nodes", ("20", "12-20"), "graph.size")
_BLOCK = 128  # graphs whose dense matrices are held at once
_PROPERTIES = ("density", "mean_degree", "clustering")


class GraphDomain(Domain):
    """labels: names of the node classes (empty: unlabelled); n_max: most nodes; sizes: histogram by nodes; codec:
    "classes" or "gdss"; kind: "planar", "tree" or "sbm" is what `check` demands ("": any simple graph); degrees:
    columns of the node features of the codec "gdss"."""

    name: ClassVar[str] = "graph"
    title: ClassVar[str] = "Graphs"
    requires: ClassVar[dict[str, str]] = {"networkx": "pip install networkx"}
    extensions: ClassVar[tuple[str, ...]] = (".graphml", ".npz", ".edges", ".edgelist", ".json")

    def __init__(self, labels: Sequence[str] = (), n_max: int = 0, sizes: Sequence[float] = (), codec: str = "classes",
                 kind: str = "", degrees: int = 0) -> None:
        from scidiff.domains.graph.validity import KINDS

        self.labels, self.n_max, self.sizes = tuple(str(x) for x in labels), int(n_max), tuple(sizes)
        self.coding, self.kind, self.degrees = codec or CODECS[0], kind or "", int(degrees)
        if self.coding not in CODECS:
            raise UsageError(f"There is no graph codec {self.coding!r}.", nearest(self.coding, CODECS))
        if self.kind not in KINDS:
            raise UsageError(f"There is no kind of graph {self.kind!r}.", nearest(self.kind, [k for k in KINDS if k]))
        if len(set(self.labels)) != len(self.labels):
            raise UsageError("The labels of a graph domain are given without repetition.")
        if len(self.sizes) > self.n_max + 1:
            raise UsageError(f"The size histogram has {len(self.sizes)} entries, but the largest size is {self.n_max}.")

    @property
    def codec(self) -> GraphCodec:
        """The codec of this set of graphs; UsageError before `fit`."""
        from scidiff.domains.graph.codec import GraphCodec

        if self.n_max < 1:
            raise UsageError("This graph domain knows no size yet: fit it to graphs, or load a model.")
        return GraphCodec(self.labels, self.n_max, self._columns)

    @property
    def _columns(self) -> int:
        return max(self.degrees, 2) if self.coding == "gdss" else 0

    def options(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "n_max": self.n_max, "sizes": list(self.sizes), "codec": self.coding,
                "kind": self.kind, "degrees": self.degrees}

    def components(self) -> dict[str, tuple[Space, Shape]]:
        from scidiff.core.space import Categorical, Euclidean, Symmetric

        if self.coding == "gdss":
            return {"nodes": (Euclidean(), ("N", self._columns)), "edges": (Symmetric(), ("N", "N"))}
        edges: dict[str, tuple[Space, Shape]] = {"edges": (Categorical(classes=2, pairs=True), ("N", "N"))}
        return {"nodes": (Categorical(classes=max(len(self.labels), 2)), ("N",)), **edges} if self.labels else edges

    def fit(self, objects: Sequence[Graph]) -> tuple[GraphDomain, dict[str, Any]]:
        """Labels (unless given), size histogram, and class frequencies of labels and of unordered pairs."""
        import torch

        from scidiff.domains.graph.codec import unfit, vocabulary

        for number, graph in enumerate(objects, 1):
            if why := unfit(graph):
                raise UsageError(f"Graph {number} cannot be used: {why}.")
        if not objects:
            raise UsageError("There are no graphs to learn from.")
        labels = self.labels or (vocabulary(objects) if self.coding == "classes" else ())
        largest = max(graph.number_of_nodes() for graph in objects)
        degrees = self.degrees
        if self.coding == "gdss" and not degrees:
            degrees = 1 + max(d for graph in objects for _, d in graph.degree())
        made = GraphDomain(labels, self.n_max or largest, (), self.coding, self.kind, degrees)
        state, sizes = made.codec.encode(objects)
        made.sizes = tuple(torch.bincount(sizes, minlength=made.n_max + 1).tolist())
        statistics: dict[str, Any] = {"sizes": list(made.sizes)}
        if self.coding == "classes":
            statistics["marginals"] = made.codec.marginals(state, sizes)
        return made, statistics

    def read(self, path: str | Path, **options: Any) -> Records:
        """Graphs of a file, run folder or folder; options of `data.read`."""
        from scidiff.domains.graph.data import known, read

        known({key: value for key, value in options.items() if key not in ("split", "limit")})
        return read(path, **options)

    def dataset(self, files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None,
                limit: int | None = None) -> Records:
        """Graphs of a data set as its card lays it out (readers `graph_file`, `family`)."""
        from scidiff.domains.graph.data import dataset

        return dataset(files, reader, options, split, limit)

    def properties(self, objects: Sequence[Graph], names: Sequence[str]) -> dict[str, Tensor]:
        """density, mean_degree, clustering: float32 [num] by the name asked for."""
        import torch

        for name in names:
            if name not in _PROPERTIES:
                raise UsageError(f"The graph domain computes no property {name!r}.", nearest(name, _PROPERTIES))
        rows = self.table(objects, [])
        pairs = [max(row["nodes"] * (row["nodes"] - 1) / 2, 1.0) for row in rows]
        found = {"density": [row["edges"] / p for row, p in zip(rows, pairs, strict=True)],
                 "mean_degree": [row["mean_degree"] for row in rows], "clustering": [row["clustering"] for row in rows]}
        return {name: torch.tensor(found[name], dtype=torch.float32) for name in names}

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        from scidiff.domains.graph.files import write_samples

        return write_samples(samples, folder)

    def encode(self, objects: Sequence[Graph]) -> tuple[State, Context]:
        import torch

        from scidiff.core.spec import Context

        state, sizes = self.codec.encode(objects)
        return state, Context(torch.arange(len(objects)), sizes, self.n_max)

    def decode(self, state: State, ctx: Context) -> list[Graph]:
        if ctx.sizes is None:
            raise UsageError("A graph state cannot be decoded without its sizes.")
        return self.codec.decode(state, ctx.sizes)

    def template(self, request: Request) -> Context:
        """Sizes from the histogram, or uniform over a requested range that the histogram does not cover.

        Conditions other than the size are the model's affair.
        """
        from scidiff.core.spec import Context

        for key in request.options:
            if key not in SIZES.names:
                raise UsageError(f"Graphs are generated without an option {key!r}.", nearest(key, SIZES.names))
        return Context(request.ids, SIZES.draw(request, self.sizes, self.n_max), self.n_max)

    def check(self, objects: Sequence[Graph]) -> list[Verdict]:
        from scidiff.domains.graph.validity import check

        return [check(graph, self.kind) for graph in objects]

    def metrics(self, objects: Sequence[Graph], verdicts: Sequence[Verdict], reference: Reference | None = None,
                seed: int = 0) -> list[Metric]:
        from scidiff.domains.graph.metrics import metrics

        return metrics(objects, verdicts, reference, seed)

    def reference(self, name: str) -> Reference:
        from scidiff.domains.graph.reference import find

        return find(name)

    def judging_by(self, reference: Reference) -> GraphDomain:
        """Itself where it knows which kind of graph is asked for, else with the kind of the reference set."""
        return self if self.kind else GraphDomain(**{**self.options(), "kind": reference.kind})

    def view(self, objects: Sequence[Graph], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Reference | None = None) -> dict[str, str | bytes]:
        from scidiff.domains.graph.view import pictures

        return pictures(objects, verdicts, ids, reference)

    def table(self, objects: Sequence[Graph], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        """Nodes, edges, connected, planar, tree, mean degree and mean local clustering of each graph."""
        from networkx import check_planarity, is_connected

        from scidiff.domains.graph.topology import clustering, padded

        rows = []
        for graph in objects:
            nodes, edges = graph.number_of_nodes(), graph.number_of_edges()
            connected = bool(nodes) and is_connected(graph)
            rows.append({"nodes": nodes, "edges": edges, "connected": connected,
                         "planar": bool(check_planarity(graph)[0]), "tree": connected and edges == nodes - 1,
                         "mean_degree": round(2 * edges / nodes, 4) if nodes else 0.0,
                         "clustering": 0.0})
        for start in range(0, len(rows), _BLOCK):
            found = clustering(padded(objects[start:start + _BLOCK])[0]).sum(-1)
            for row, total in zip(rows[start:start + _BLOCK], found.tolist(), strict=True):
                row["clustering"] = round(total / max(row["nodes"], 1), 4)
        return rows

    def backbone_options(self, spec: StateSpec) -> dict[str, Any]:
        """Class counts and component names for a network; the width of the real features for the codec "gdss"."""
        if self.coding == "gdss":
            return {"features": self._columns, "nodes": "nodes", "edges": "edges"}

        def values(name: str) -> int:
            return spec[name].path.classes(spec[name].space)  # type: ignore[attr-defined]

        pairs = {"pairs": "edges", "pair_classes": values("edges"), "pair_logits": 2, "orders": [0.0, 1.0],
                 "max_size": self.n_max, "degree_share": True}
        if not self.labels:
            return {"nodes": None, "node_classes": 0, **pairs}
        return {"nodes": "nodes", "node_classes": values("nodes"), "node_logits": max(len(self.labels), 2), **pairs}

    def examples(self) -> list[Graph]:
        """A dozen small trees and communities, drawn from the families of our own."""
        from scidiff.domains.graph.families import make

        return [*make("tree", 6, nodes=9), *make("community", 6, nodes=(6, 10))]

    def preview(self, objects: Sequence[Graph], verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Valid share and mean degree."""
        nodes, edges = (sum(len(graph) for graph in objects), sum(graph.number_of_edges() for graph in objects))
        return {**super().preview(objects, verdicts), "mean_degree": 2 * edges / max(nodes, 1)}

    def run_options(self) -> dict[str, Any]:
        return {"num_nodes": "nodes per graph: a number (20) or a range (12-20); default: as in the training set"}
