"""The networks of GDSS: partial scores of nodes and edges, each from the whole noisy graph, without a time input.

    nodes   H_0 = X, H_{l+1} = tanh(GCN(H_l, A));          score_X = MLP[H_0 .. H_L]
    edges   E_0 = [A, A^2 ..], (H, E)_{l+1} = Attention_l;    score_A = MLP[E_0 .. E_L], zero diagonal

Jo, Lee & Hwang 2022, "Score-based generative modeling of graphs via the system of stochastic differential
equations", arXiv 2202.02514. Readouts have three maps and a hidden layer of twice their input. X [B, N, F] and
symmetric A [B, N, N] with zero diagonal are zero on padding, and so are the outputs; padding is never read. On VP and
sub-VP paths the raw output is a prediction of the noise (score = -net / sigma), on VE paths the score itself.

Names in published weight files -> names here, for the network of the nodes and of the edges alike:
`layers.{l}.weight|bias` -> the same (GCN); `final.linears.{i}` -> `readout.linears.{i}`; `layers.{l}.attn.{c}.gnn_q`,
`gnn_k`, `gnn_v` with `.weight|.bias` -> slice c of `layers.{l}.query|key|value` and `query_bias|key_bias|value_bias`;
`layers.{l}.multi_channel` -> `layers.{l}.node_mlp`; `layers.{l}.mlp` -> `layers.{l}.edge_mlp`. All shapes agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.nn.gdss_attention import MLP, Attention, DenseGCN, across, matrices, tables

if TYPE_CHECKING:
    from scidiff.core.spec import Context

CACHED = 3 << 19
"""Numbers in the largest intermediate of a slice of the batch: more would leave the processor's cache."""
FEWEST = 16
"""Samples in a slice at least: loops run over the batch, or, in slices of one sample, over its nodes."""


class ScoreNetworkX(nn.Module):
    """Network of the nodes: `depth` GCN layers of `width` on A itself."""

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseGCN(features if k == 0 else width, width) for k in range(depth))
        wide = features + depth * width
        self.readout = MLP(3, wide, 2 * wide, features)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
        """x [b, n, F], a [b, n, n], mask bool [b, n] (None: all real) to [b, n, F]."""
        a, all_layers = DenseGCN.normalised(a), [x]
        for layer in self.layers:
            all_layers.append(layer(all_layers[-1], a).tanh())
        out = self.readout(torch.cat(all_layers, -1))
        return out if mask is None else out * mask.unsqueeze(-1)


class AttentionStack(nn.Module):
    """Attention layers with c_initial (powers of A) -> c_hidden -> ... -> c_final edge channels."""

    def __init__(self, features: int, width: int, depth: int, d_attention: int, heads: int, mlp_depth: int,
                 c_initial: int, c_hidden: int, c_final: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.channels = [c_initial] + [c_hidden] * (depth - 1) + [c_final]
        self.layers = nn.ModuleList(
            Attention(features if k == 0 else width, width, self.channels[k], self.channels[k + 1],
                      width if k == 0 else d_attention, heads, mlp_depth) for k in range(depth))

    def run(self, x: Tensor, a: Tensor, mask: Tensor | None, edges: bool, again: bool
            ) -> tuple[list[Tensor], list[Tensor]]:
        """Node features [b, n, .] and edges [C, P b] after each layer, inputs included.

        The last layer computes edges only, or nodes only. `again` applies a second tanh to node features.
        """
        b, n, _ = x.shape
        node_mask = pair_mask = None
        if mask is not None:
            real = mask.t().to(x.dtype)
            node_mask = real.reshape(1, n * b)
            i, j = torch.triu_indices(n, n, 1, device=x.device)
            pair_mask = (real[i] * real[j]).view(1, -1)
        powers = [a]
        for _ in range(self.channels[0] - 1):
            powers.append(torch.bmm(powers[-1], a))
        g = torch.stack(powers, 1).view(b, -1).t().contiguous()
        e = g.index_select(0, tables(len(powers), n, x.device).upper).view(len(powers), -1)
        h, node_features, all_edges, last = x.transpose(1, 2).contiguous(), [x], [e], len(self.layers) - 1
        for k, layer in enumerate(self.layers):
            out, e_next = layer(h, e, matrices(e, n, b), layer.folded(), node_mask, pair_mask,  # type: ignore[operator]
                                want_nodes=k < last or not edges, want_edges=k < last or edges)
            if out is not None:
                out = out.tanh() if again else out
                h = out.view(-1, b).t().contiguous().view(b, self.width, n)
                node_features.append(h.transpose(1, 2))
            if e_next is not None:
                e = e_next
                all_edges.append(e)
        return node_features, all_edges


class ScoreNetworkXGMH(AttentionStack):
    """Network of the nodes with attention layers instead of GCNs; the edge MLP of its last layer is never used."""

    def __init__(self, features: int, width: int, depth: int, d_attention: int, heads: int = 4, mlp_depth: int = 2,
                 c_initial: int = 2, c_hidden: int = 8, c_final: int = 4) -> None:
        super().__init__(features, width, depth, d_attention, heads, mlp_depth, c_initial, c_hidden, c_final)
        wide = features + depth * width
        self.readout = MLP(3, wide, 2 * wide, features)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
        """As ScoreNetworkX."""
        out = self.readout(torch.cat(self.run(x, a, mask, edges=False, again=True)[0], -1))
        return out if mask is None else out * mask.unsqueeze(-1)


class ScoreNetworkA(AttentionStack):
    """Network of the edges; the node update of its last layer (value, node_mlp) is never used."""

    def __init__(self, features: int, width: int, depth: int, d_attention: int, heads: int = 4, mlp_depth: int = 2,
                 c_initial: int = 2, c_hidden: int = 8, c_final: int = 4) -> None:
        super().__init__(features, width, depth, d_attention, heads, mlp_depth, c_initial, c_hidden, c_final)
        wide = sum(self.channels)
        self.readout = MLP(3, wide, 2 * wide, 1)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
        """x [b, n, F], a [b, n, n], mask bool [b, n] (None: all real) to [b, n, n]."""
        b, n, _ = x.shape
        at = tables(1, n, x.device)
        out = across(self.readout.maps, torch.cat(self.run(x, a, mask, edges=True, again=False)[1]))
        out = torch.cat([out.view(at.pairs, b), out.new_zeros(1, b)]).index_select(0, at.full)
        out = out.t().contiguous().view(b, n, n)
        return out if mask is None else out * (mask.unsqueeze(1) & mask.unsqueeze(2))


class GDSS(nn.Module):
    """Both networks as one backbone, `(features, t, ctx, previous) -> {nodes: [B, N, F], edges: [B, N, N]}`.

    nodes, edges: component names. features F; width of the layers and of the attention (`d_attention`: another one
    behind the first layer); node_depth, edge_depth layers; mlp_depth maps in the edge MLPs; node_attention: attention
    layers for the nodes too (ScoreNetworkX_GMH). The time is not used. On a processor the batch is worked through in
    slices of samples of similar size that fit its cache.
    """

    def __init__(self, features: int, nodes: str = "nodes", edges: str = "edges", width: int = 32, node_depth: int = 2,
                 edge_depth: int = 5, mlp_depth: int = 2, heads: int = 4, d_attention: int | None = None,
                 c_initial: int = 2, c_hidden: int = 8, c_final: int = 4, node_attention: bool = False) -> None:
        super().__init__()
        self.nodes, self.edges = nodes, edges
        rest = (d_attention or width, heads, mlp_depth, c_initial, c_hidden, c_final)
        self.node_score = (ScoreNetworkXGMH(features, width, node_depth, *rest) if node_attention
                           else ScoreNetworkX(features, width, node_depth))
        self.edge_score = ScoreNetworkA(features, width, edge_depth, *rest)
        self._largest = max(c_hidden, c_initial) * heads

    def forward(self, features: Mapping[str, Tensor], t: Tensor, ctx: Context,
                previous: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        kind = self.edge_score.readout.linears[0].weight.dtype
        x, a = features[self.nodes].to(kind), features[self.edges].to(kind)
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            mask = ctx.mask(("N",))
            return {self.nodes: self.node_score(x, a, mask), self.edges: self.edge_score(x, a, mask)}
        n, out = x.shape[1], ([], [])
        sizes = torch.full(x.shape[:1], n) if ctx.sizes is None else ctx.sizes
        order = torch.argsort(sizes, descending=True, stable=True)
        sorted_already = torch.equal(order, torch.arange(len(order)))
        if not sorted_already:
            x, a, sizes = x[order], a[order], sizes[order]
        for rows, size, mask in self._slices(sizes):
            xs, as_ = x[rows, :size], a[rows, :size, :size]
            out[0].append(F.pad(self.node_score(xs, as_, mask), (0, 0, 0, n - size)))
            out[1].append(F.pad(self.edge_score(xs, as_, mask), (0, n - size, 0, n - size)))
        nodes, edges = (torch.cat(parts) for parts in out)
        if not sorted_already:
            back = torch.argsort(order)
            nodes, edges = nodes[back], edges[back]
        return {self.nodes: nodes, self.edges: edges}

    def _slices(self, sizes: Tensor) -> Iterator[tuple[slice, int, Tensor | None]]:
        """Rows of a batch of falling sizes, the size to which they are cropped, and their mask."""
        falling, start = sizes.tolist(), 0
        while start < len(falling):
            size = max(falling[start], 1)
            count = CACHED // (self._largest * size * size)
            stop = min(start + (count if count >= FEWEST else 1), len(falling))
            alike = falling[stop - 1] == size
            rows = slice(start, stop)
            yield rows, size, None if alike else torch.arange(size) < sizes[rows].unsqueeze(1)
            start = stop
