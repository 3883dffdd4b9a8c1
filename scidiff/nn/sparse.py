"""Sparse message passing on edge lists: what large graphs need instead of dense N x N batches.

An edge list is int64 [2, E], row 0 the sources of messages, row 1 their targets; an undirected edge stands in it twice
unless a function says otherwise. Many graphs make one list with a vector that names the graph of each node.

    light convolution   h_0 = x,  h_l = leaky(S h_(l-1)),  out = x + sum_l h_l / |h_l|,     S = D^-1/2 A D^-1/2
    predictor           h <- h + conv(LN h)  per round, conv = MLP((1 + eps) h_i + sum_j relu(h_j + W e_ji)) (GINE: Hu
                        et al. 2020, arXiv 1905.12265), or that beside attention among the nodes of a graph (GPS:
                        Rampasek et al. 2022, arXiv 2205.12454); per graph sum / size, mean and maximum, then an MLP

The light convolution has no weights (He et al. 2020, arXiv 2002.02126; activation and normalisation of Li et al. 2025,
arXiv 2501.02313) and needs torch alone, as do the sampled neighbourhoods (Hamilton et al. 2017, arXiv 1706.02216). The
predictor's layers are those of torch_geometric; none of its compiled companions is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.errors import MissingLibrary, UsageError, nearest

LAYERS = ("gine", "gps")
LEVELS = ("graph", "node")


def normalised_adjacency(edges: Tensor, nodes: int) -> Tensor:
    """D^-1/2 A D^-1/2 of undirected edges [2, E] as a sparse CSR matrix, float32 [nodes, nodes].

    Each edge is given once; repeated ones count once. A node without edges has an empty row.
    """
    both = torch.cat([edges, edges.flip(0)], 1)
    key = (both[0] * nodes + both[1]).unique()
    row, column = key // nodes, key % nodes
    degree = torch.bincount(row, minlength=nodes)
    scale = degree.clamp(min=1).to(torch.float64).rsqrt()
    start = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # the layout is declared unfinished in some of its uses
        return torch.sparse_csr_tensor(start, column, (scale[row] * scale[column]).float(), (nodes, nodes),
                                       check_invariants=False)


class _Symmetric(torch.autograd.Function):
    """S x for a symmetric sparse S, whose gradient is S again: no transposed copy, five times quicker backwards."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return torch.sparse.mm(matrix, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, torch.sparse.mm(ctx.matrix, gradient.contiguous())


def light_convolution(matrix: Tensor, x: Tensor, layers: int = 2, slope: float = 0.5) -> Tensor:
    """x [nodes, d] and its `layers` neighbourhood averages, each row of unit length, summed: [nodes, d]."""
    total, h = x, x
    for _ in range(layers):
        h = F.leaky_relu(_Symmetric.apply(matrix, h), slope)  # type: ignore[no-untyped-call]
        total = total + F.normalize(h, dim=1)
    return total


class SparsePredictor(nn.Module):
    """Edge lists to `outputs` numbers per graph or per node.

    features: width of the node features; edge_features: of those of the edges (0: none). layer: "gine" or "gps" (with
    `heads` heads); level: "graph" or "node". size: a typical number of nodes, by which sums over a graph are divided.
    """

    def __init__(self, features: int, outputs: int = 1, width: int = 64, depth: int = 3, layer: str = "gine",
                 heads: int = 4, level: str = "graph", edge_features: int = 0, size: float = 1.0) -> None:
        super().__init__()
        for value, known, what in ((layer, LAYERS, "layer"), (level, LEVELS, "level")):
            if value not in known:
                raise UsageError(f"A sparse predictor has no {what} {value!r}.", nearest(value, known))
        try:
            from torch_geometric.nn import GINConv, GINEConv, GPSConv
        except ModuleNotFoundError as error:
            raise MissingLibrary("torch_geometric", "The sparse predictor", 'pip install "scidiff[sparse]"') from error
        self.level, self.attends, self.size, self.depth = level, layer == "gps", float(size), depth
        self.edge_features = edge_features
        self.enter = nn.Linear(features, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.rounds = nn.ModuleList()
        for _ in range(depth):
            inner = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            conv = (GINEConv(inner, train_eps=True, edge_dim=edge_features) if edge_features
                    else GINConv(inner, train_eps=True))
            if self.attends:
                conv = GPSConv(width, conv, heads=heads, norm="layer_norm", norm_kwargs={"mode": "node"})
            self.rounds.append(conv)
        wide = 3 * width if level == "graph" else width
        self.leave = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, width), nn.SiLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor | None = None, graphs: int = 1,
                edge_features: Tensor | None = None) -> Tensor:
        """x [M, features], edges [2, E], graph [M] (default: all of one); returns [graphs or M, outputs]."""
        graph = torch.zeros(len(x), dtype=torch.int64, device=x.device) if graph is None else graph
        more = {"edge_attr": edge_features} if self.edge_features else {}
        h = self.enter(x)
        for norm, conv in zip(self.norms, self.rounds, strict=True):
            h = h + (conv(norm(h), edges, graph, **more) if self.attends else conv(norm(h), edges, **more))
        return self.leave(self._pooled(h, graph, graphs) if self.level == "graph" else h)

    def _pooled(self, h: Tensor, graph: Tensor, graphs: int) -> Tensor:
        empty = h.new_zeros(graphs, h.shape[1])
        place = graph[:, None].expand_as(h)
        total = empty.scatter_add(0, place, h)
        count = torch.bincount(graph, minlength=graphs).clamp(min=1)[:, None]
        highest = empty.scatter_reduce(0, place, h, "amax", include_self=False)
        return torch.cat([total / self.size, total / count, highest], -1)


class Neighbourhood(NamedTuple):
    """Nodes [M] of the whole graph, seeds first; edges [2, E] among them by place in `nodes`; their places [E] in the
    edge list."""

    nodes: Tensor
    edges: Tensor
    places: Tensor


class Neighbours:
    """Draws the neighbourhoods that a few rounds of message passing read, from one large edge list."""

    def __init__(self, edges: Tensor, nodes: int) -> None:
        self.count = torch.bincount(edges[1], minlength=nodes)
        self.first = self.count.cumsum(0) - self.count
        self.order = edges[1].argsort(stable=True)
        self.source = edges[0][self.order]

    def sample(self, seeds: Tensor, fanouts: Sequence[int], generator: torch.Generator | None = None) -> Neighbourhood:
        """The incoming neighbourhood of distinct `seeds`, one round of messages for each entry of `fanouts`.

        At most so many edges into each node are kept, drawn without repetition (-1: all of them).
        """
        place = torch.full((len(self.count),), -1, dtype=torch.int64)
        place[seeds] = torch.arange(len(seeds))
        nodes, front = [seeds], seeds
        sources, targets, kept = [], [], []
        for fanout in fanouts:
            count = self.count[front]
            owner = torch.arange(len(front)).repeat_interleave(count)
            rank = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
            at = self.first[front][owner] + rank
            if fanout >= 0:
                shuffled = (owner + torch.rand(len(owner), dtype=torch.float64, generator=generator)).argsort()
                at = at[shuffled[rank < fanout]]  # owners stay in order, so the ranks still count within them
                owner = owner[rank < fanout]
            source = self.source[at]
            fresh = source[place[source] < 0].unique()
            place[fresh] = torch.arange(len(fresh)) + sum(len(part) for part in nodes)
            sources.append(source)
            targets.append(front[owner])
            kept.append(self.order[at])
            nodes.append(fresh)
            front = fresh
        edges = torch.stack([place[torch.cat(sources)], place[torch.cat(targets)]])
        return Neighbourhood(torch.cat(nodes), edges, torch.cat(kept))

    def batches(self, seeds: Tensor, batch: int, fanouts: Sequence[int],
                generator: torch.Generator) -> Iterator[tuple[Tensor, Neighbourhood]]:
        """(seeds, their neighbourhood) in random order, `batch` seeds at a time."""
        for part in seeds[torch.randperm(len(seeds), generator=generator)].split(batch):
            yield part, self.sample(part, fanouts, generator)
