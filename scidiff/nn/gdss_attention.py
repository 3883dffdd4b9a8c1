"""The blocks of the GDSS networks: a dense GCN, and graph multi-head attention over the channels of an edge tensor.

Dense GCN of a real matrix A (self-loops set to 1, d_i = max(sum_j A_ij, 1)):  out = D^-1/2 A D^-1/2 H W + b.

One attention layer turns node features H and symmetric edge channels E_c into new ones:

    Q_c, K_c, V_c = GCN_c(H, E_c);     M_c = sym( mean over heads of tanh(Q_c K_c^T / sqrt(d_out)) )
    H <- tanh( MLP[V_1 .. V_C] );      E <- F + F^T with F = MLP[M_1 .. M_C, E_1 .. E_C] per pair

Jo, Lee & Hwang 2022, arXiv 2202.02514; the attention is that of Baek et al. 2021, arXiv 2102.11533. No softmax.

The same function as channel by channel, computed with fewer numbers: E is symmetric and a GCN replaces its diagonal, so
only the P pairs i < j are kept, [C, P b] with the batch innermost; all channels share one product for Q and K; tanh u =
2 sigmoid(2u) - 1, whose constants, like the factor 2 of F + F^T, are folded into the MLP.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tables(NamedTuple):
    """Row numbers for C channels of n x n matrices with the batch innermost.

    upper, lower: where the pairs (i, j) and (j, i), i < j, stand in [C n n, b]; full: where each entry of [C n n, b]
    stands in [C (P + 1), b], the last row of a channel being its diagonal.
    """

    upper: Tensor
    lower: Tensor
    full: Tensor
    pairs: int


@lru_cache(maxsize=256)
def tables(channels: int, n: int, device: torch.device) -> Tables:
    """The Tables of C channels of n x n matrices."""
    with torch.inference_mode(False):
        i, j = torch.triu_indices(n, n, 1, device=device)
        pairs = n * (n - 1) // 2
        place = torch.full((n, n), pairs, device=device)
        place[i, j] = place[j, i] = torch.arange(pairs, device=device)
        c = torch.arange(channels, device=device).unsqueeze(1)
        return Tables((c * n * n + i * n + j).view(-1), (c * n * n + j * n + i).view(-1),
                      (c * (pairs + 1) + place.view(-1)).view(-1), pairs)


def glorot(*shape: int) -> nn.Parameter:
    """Uniform within sqrt(6 / (fan in + fan out)) of the last two axes."""
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class DenseGCN(nn.Module):
    """weight [d_in, d_out] (Glorot), bias [d_out] (zero)."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight, self.bias = glorot(d_in, d_out), nn.Parameter(torch.zeros(d_out))

    @staticmethod
    def normalised(a: Tensor) -> Tensor:
        """D^-1/2 A D^-1/2 of [B, N, N] with unit diagonal; serves every layer on the same A."""
        eye = torch.eye(a.shape[-1], dtype=torch.bool, device=a.device)
        a = torch.where(eye, 1.0, a)
        d = a.sum(-1).clamp(min=1.0).rsqrt()
        return a * d.unsqueeze(-1) * d.unsqueeze(-2)

    def forward(self, h: Tensor, a: Tensor) -> Tensor:
        """h [B, N, d_in] and a normalised matrix to [B, N, d_out]."""
        return a @ (h @ self.weight) + self.bias


class MLP(nn.Module):
    """`depth` linear maps with ELU between them; `linears.{i}.weight` [out, in]."""

    def __init__(self, depth: int, d_in: int, hidden: int, d_out: int) -> None:
        super().__init__()
        widths = [d_in] + [hidden] * (depth - 1) + [d_out]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    @property
    def maps(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases, first to last."""
        return [(m.weight, m.bias) for m in self.linears]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """Features last: [..., d_in] to [..., d_out]."""
        for w, b in self.maps[:-1]:
            x = F.elu(F.linear(x, w, b), inplace=True)
        return self.linears[-1](x)


def across(maps: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """An MLP with the features first: [d_in, M] to [d_out, M]."""
    for k, (w, b) in enumerate(maps):
        x = torch.addmm(b.unsqueeze(1), w, x)
        if k < len(maps) - 1:
            x = F.elu(x, inplace=True)
    return x


class Folded(NamedTuple):
    """A layer's weights as its products want them: qk [C, 2a, d_in], v [C, d_out, d_in], biases [C, ., 1], edge MLP."""

    qk: Tensor
    qk_bias: Tensor
    v: Tensor
    v_bias: Tensor
    edge: list[tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """One layer: d_in -> d_out node features, c_in -> c_out edge channels.

    query, key [c_in, d_in, d_attention], value [c_in, d_in, d_out] and `<role>_bias` [c_in, .]: slice c belongs to the
    GCN of channel c. node_mlp: c_in d_out -> d_out with two maps, V of all channels side by side, channel by channel.
    edge_mlp: 2 c_in -> c_out with `mlp_depth` maps, the M of all channels before the E. Both have 2 max(c_in, c_out)
    hidden units.
    """

    def __init__(self, d_in: int, d_out: int, c_in: int, c_out: int, d_attention: int, heads: int,
                 mlp_depth: int) -> None:
        super().__init__()
        self.c_in, self.c_out, self.heads, self.d_attention, self.d_out = c_in, c_out, heads, d_attention, d_out
        self.query, self.key = glorot(c_in, d_in, d_attention), glorot(c_in, d_in, d_attention)
        self.value = glorot(c_in, d_in, d_out)
        self.query_bias = nn.Parameter(torch.zeros(c_in, d_attention))
        self.key_bias = nn.Parameter(torch.zeros(c_in, d_attention))
        self.value_bias = nn.Parameter(torch.zeros(c_in, d_out))
        hidden = 2 * max(c_in, c_out)
        self.node_mlp = MLP(2, c_in * d_out, hidden, d_out)
        self.edge_mlp = MLP(mlp_depth, 2 * c_in, hidden, c_out)

    def folded(self) -> Folded:
        """The weights with all constants in them; made once a call."""
        scale, c = 2.0 / math.sqrt(self.d_out), self.c_in
        edge = self.edge_mlp.maps
        w, b = edge[0]
        edge[0] = torch.cat([w[:, :c] / self.heads, w[:, c:]], 1), b - w[:, :c].sum(1)
        w, b = edge[-1]
        edge[-1] = 2.0 * w, 2.0 * b
        return Folded(torch.cat([scale * self.query, self.key], -1).transpose(1, 2),
                      torch.cat([scale * self.query_bias, self.key_bias], -1).unsqueeze(-1),
                      self.value.transpose(1, 2), self.value_bias.unsqueeze(-1), edge)

    def forward(self, h: Tensor, e: Tensor, g: Tensor, w: Folded, node_mask: Tensor | None, pair_mask: Tensor | None,
                want_nodes: bool = True, want_edges: bool = True) -> tuple[Tensor | None, Tensor | None]:
        """h [b, d_in, n], e [c_in, P b] and g [c_in, n, n, b] (the same edges as matrices with unit diagonal).

        Returns the node features [d_out, n b] and the edges [c_out, P b]; what is not wanted is None. Masks are float
        [1, n b] and [1, P b], or None where every entry is real.
        """
        c, n, _, b = g.shape
        d = g.sum(2).clamp(min=1.0).rsqrt()
        scaled = (g * d.unsqueeze(1)).view(c * n * n, b).t().contiguous().view(b, c * n, n)
        y = torch.bmm(h, scaled.transpose(1, 2)).view(b, -1).t().contiguous().view(-1, c, n, b)
        y = (y * d).view(-1, c, n * b).transpose(0, 1)
        return (self._nodes(y, w, node_mask) if want_nodes else None,
                self._edges(y, e, w, pair_mask, n, b) if want_edges else None)

    def _nodes(self, y: Tensor, w: Folded, mask: Tensor | None) -> Tensor:
        v = torch.baddbmm(w.v_bias, w.v, y)
        out = across(self.node_mlp.maps, v.view(-1, v.shape[-1]))
        return (out if mask is None else out * mask).tanh()

    def _edges(self, y: Tensor, e: Tensor, w: Folded, mask: Tensor | None, n: int, b: int) -> Tensor:
        c, width = self.c_in, self.d_attention // self.heads
        at = tables(c, n, e.device)
        q, k = torch.baddbmm(w.qk_bias, w.qk, y).view(c, 2, self.heads, width, n, b).unbind(1)
        # Head widths of four to eight make poor matrix products: a sum of outer products over the batch is faster.
        s = q[:, :, 0].unsqueeze(3) * k[:, :, 0].unsqueeze(2)
        for f in range(1, width):
            s.addcmul_(q[:, :, f].unsqueeze(3), k[:, :, f].unsqueeze(2))
        s = s.sigmoid_().sum(1).view(c * n * n, b)
        m = s.index_select(0, at.upper) + s.index_select(0, at.lower)
        out = across(w.edge, torch.cat([m.view(c, at.pairs * b), e]))
        return out if mask is None else out * mask


def matrices(e: Tensor, n: int, b: int) -> Tensor:
    """Pairs [C, P b] as symmetric matrices [C, n, n, b] with unit diagonal."""
    c = e.shape[0]
    at = tables(c, n, e.device)
    rows = torch.cat([e.view(c, at.pairs, b), e.new_ones(c, 1, b)], 1).view(-1, b)
    return rows.index_select(0, at.full).view(c, n, n, b)
