"""Pictures of graphs: a grid of drawings with the reason under invalid ones, and degrees beside the reference.

Trees are drawn from their centre outwards, small graphs by the distances of their nodes, larger ones by springs; a
label has a colour. Positions depend on the graph alone.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.domains.base import Verdict
from scidiff.domains.graph.codec import LABEL
from scidiff.domains.pictures import of_samples, png, svg

if TYPE_CHECKING:
    from networkx import Graph
    from numpy.typing import NDArray

_COLUMNS = 6
_SMALL = 40  # nodes up to which distances are worth their cubic cost
_DENSE = 500  # nodes from which eigenvectors are found by a random start
_INK, _BAD, _PAPER, _LINE = "#1f5a8a", "#b04a2f", "#b9b9b9", "#8a98a5"


def places(graph: Graph) -> NDArray[np.float64]:
    """Positions [n, 2] of the nodes, in the order of the graph."""
    import networkx

    nodes = graph.number_of_nodes()
    if nodes == 0:
        return np.zeros((0, 2))
    whole = networkx.is_connected(graph)
    if whole and graph.number_of_edges() == nodes - 1:
        found = _from_the_centre(graph)
    elif whole and nodes <= _SMALL:
        found = networkx.kamada_kawai_layout(graph)
    else:
        start = networkx.spectral_layout(graph) if whole and nodes < _DENSE else networkx.circular_layout(graph)
        found = networkx.spring_layout(graph, pos=start, k=1.5 / math.sqrt(nodes), iterations=60, seed=0)
    return np.array([found[u] for u in graph], dtype=np.float64)


def _from_the_centre(tree: Graph) -> dict[Any, tuple[float, float]]:
    """A tree on circles: the radius is the distance from the centre, the angle is shared out by leaves."""
    import networkx

    root = networkx.center(tree)[0]
    parents = dict(networkx.bfs_predecessors(tree, root))
    order = [root, *parents]
    leaves = {u: 0 for u in order}
    for u in reversed(order):
        leaves[u] = max(leaves[u], 1)
        if u != root:
            leaves[parents[u]] += leaves[u]
    depth, first = {root: 0}, {root: 0.0}
    used = {u: 0.0 for u in order}
    for u in order[1:]:
        above = parents[u]
        depth[u], first[u] = depth[above] + 1, first[above] + used[above]
        used[above] += leaves[u]
    turn = 2 * math.pi / leaves[root]
    angle = {u: turn * (first[u] + 0.5 * leaves[u]) for u in order}
    return {u: (depth[u] * math.cos(angle[u]), depth[u] * math.sin(angle[u])) for u in order}


def _figure(graphs: Sequence[Graph], verdicts: Sequence[Verdict], ids: Sequence[str]) -> Any:
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    columns = max(min(len(graphs), _COLUMNS), 1)
    rows = max(-(-len(graphs) // columns), 1)
    figure = Figure(figsize=(1.9 * columns, 1.9 * 1.15 * rows))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    axis.set_xlim(0.0, columns)
    axis.set_ylim(-1.15 * rows, 0.0)
    known = sorted({str(label) for graph in graphs for _, label in graph.nodes(data=LABEL) if label is not None})
    for k, (graph, verdict, name) in enumerate(zip(graphs, verdicts, ids, strict=True)):
        across, down = k % columns, 1.15 * (k // columns)
        at = _fitted(places(graph)) + np.array((across + 0.5, -down - 0.5))
        row = {u: i for i, u in enumerate(graph)}
        lines = [(at[row[u]], at[row[v]]) for u, v in graph.edges()]
        axis.add_collection(LineCollection(lines, colors=_LINE, linewidths=0.7, zorder=1))
        plain = _INK if verdict.valid else _BAD
        colours = [plain if label is None else f"C{known.index(str(label)) % 10}"
                   for _, label in graph.nodes(data=LABEL)]
        size = float(np.clip(500.0 / max(len(at), 1), 2.0, 26.0))
        axis.scatter(at[:, 0], at[:, 1], s=size, c=colours or plain, zorder=2, linewidths=0)
        told = name if verdict.valid else f"{name}: {verdict.reason}"
        axis.text(across + 0.5, -down - 1.05, textwrap.shorten(told, 44, placeholder=" ..."), fontsize=6.5,
                  ha="center", va="center")
    return figure


def _fitted(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions around 0, in a square of side 0.86, proportions kept."""
    if len(at) == 0:
        return at
    low, high = at.min(0), at.max(0)
    return 0.86 * (at - 0.5 * (low + high)) / max(float((high - low).max()), 1e-9)


def grid_png(graphs: Sequence[Graph], verdicts: Sequence[Verdict], ids: Sequence[str]) -> bytes:
    """A grid of drawings as PNG bytes; invalid ones bear their reason."""
    return png(_figure(graphs, verdicts, ids))


def degrees(graphs: Sequence[Graph]) -> NDArray[np.float64]:
    """Shares of the degrees 0, 1, 2 ... over all nodes of all graphs."""
    counts = Counter(d for graph in graphs for _, d in graph.degree())
    shares = np.zeros(max(counts, default=0) + 1)
    for d, number in counts.items():
        shares[d] = number
    return shares / max(shares.sum(), 1.0)


def degrees_svg(graphs: Sequence[Graph], other: NDArray[np.float64] | None = None, title: str = "") -> str:
    """Shares of the degrees of all nodes, with those of a reference in grey."""
    import matplotlib
    from matplotlib.figure import Figure

    own = degrees(graphs)
    with matplotlib.rc_context({"svg.hashsalt": "scidiff", "font.size": 9}):
        figure = Figure(figsize=(6.5, 2.6), layout="constrained")
        axis = figure.subplots()
        if other is not None:
            axis.bar(np.arange(len(other)), other, width=0.9, color=_PAPER, label=title)
        axis.stairs(own, np.arange(len(own) + 1) - 0.5, color=_INK, linewidth=1.6, label=f"samples ({len(graphs)})")
        axis.set_xlabel("degree of a node")
        axis.set_ylabel("share of nodes")
        axis.spines[["right", "top"]].set_visible(False)
        axis.legend(frameon=False)
        return svg(figure)


def pictures(graphs: Sequence[Graph], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Any = None) -> dict[str, str | bytes]:
    """Caption -> picture: the first samples as they came, the invalid ones with reasons, and the degrees."""
    out = of_samples(graphs, verdicts, ids, grid_png)
    if not graphs:
        return out
    known = getattr(reference, "degrees", None)
    caption = "Degrees of all nodes" + ("" if known is None else " beside the reference")
    out[caption] = degrees_svg(graphs, known, str(getattr(reference, "title", "")))
    return out
