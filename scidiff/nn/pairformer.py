"""PairFormer: a transformer on dense graphs whose attention reads and writes the pair features.

Nodes h [B, N, dx], pairs e [B, N, N, de] (symmetric), a global vector c [B, dc] from time, size and conditions.
One layer, per head:

    u = adaLN(h, c);   logit_ij = q_i.k_j / sqrt(d) + w_b.LN(e_ij);   att = softmax_j(logit) * sigmoid(w_g.LN(e_ij))
    h += W att v;      h += MLP(adaLN(h, c))
    e += W [a_i * a_j + b_i + b_j, sym(logit)];      e += MLP(LN e)

Pairs are symmetric, so of large graphs each unordered pair is held once, [B, P, de] with P = N (N + 1) / 2, and spread
out where attention needs a matrix: the same numbers with half the work and memory.

adaLN: shift, scale and gate from c by one matrix shared by all layers plus a learned offset per layer, zero at first
(Peebles & Xie 2023, arXiv 2212.09748; Chen et al. 2023, arXiv 2310.00426); random-walk features of the current graph
(Ma et al. 2023, arXiv 2305.17589); valences from real bond orders. Equivariant under permutations of the nodes; entries
beyond a sample's size are never read. Graphs without node classes (`nodes=None`) have pairs alone: random walks and
degrees tell their nodes apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.nn.embed import ConditionEmbedding, TimeEmbedding

if TYPE_CHECKING:
    from scidiff.core.spec import Context

ONCE = 16
"""Nodes from which unordered pairs are held once; below, spreading them out costs more than it saves."""


def random_walks(adjacency: Tensor, steps: int) -> Tensor:
    """Random-walk probabilities [B, N, N, steps] of a non-negative adjacency [B, N, N]: I, M, ..., M^(steps-1)."""
    with torch.autocast(adjacency.device.type, enabled=False):
        adjacency = adjacency if adjacency.dtype == torch.float64 else adjacency.float()
        walk = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1e-6)
        power = torch.eye(adjacency.shape[-1], device=adjacency.device, dtype=adjacency.dtype).expand_as(adjacency)
        out = [power]
        for _ in range(steps - 1):
            power = power @ walk
            out.append(power)
        return torch.stack(out, -1)


def _symmetric(x: Tensor) -> Tensor:
    """The symmetric part of matrices [B, N, N, C]; gradients reach both triangles alike."""
    return 0.5 * (x + x.transpose(1, 2))


class Spread(torch.autograd.Function):
    """Unordered pairs [B, P, C] at the places `upper` and `lower` of a matrix, both int64 [P], as [B, N, N, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: Tensor, lower: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(upper, lower)
        out = x.new_empty(x.shape[0], n * n, x.shape[2])
        out[:, upper] = x
        out[:, lower] = x
        return out.view(x.shape[0], n, n, x.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        upper, lower = ctx.saved_tensors
        flat = grads[0].reshape(grads[0].shape[0], -1, grads[0].shape[-1])
        once = (upper != lower).to(flat.dtype).unsqueeze(-1)
        return flat.index_select(1, upper) + flat.index_select(1, lower) * once, None, None, None


class Gather(torch.autograd.Function):
    """The entries at the places `upper` of a matrix [B, N, N, C], as [B, P, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: Tensor) -> Tensor:
        ctx.save_for_backward(upper)
        ctx.shape = x.shape
        return x.reshape(x.shape[0], -1, x.shape[3]).index_select(1, upper)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (upper,) = ctx.saved_tensors
        b, n, _, c = ctx.shape
        out = grads[0].new_zeros(b, n * n, c)
        out[:, upper] = grads[0]
        return out.view(b, n, n, c), None


class Pairs:
    """How the pairs of n nodes are held: rows [B, P, C] of unordered pairs, or for few nodes of all of them."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.n, self.once = n, n >= ONCE
        if self.once:
            i, j = torch.triu_indices(n, n, device=device)
            self.upper, self.lower = i * n + j, j * n + i

    def rows(self, x: Tensor) -> Tensor:
        """A symmetric matrix [B, N, N, C] as rows."""
        return Gather.apply(x, self.upper) if self.once else x.flatten(1, 2)  # type: ignore[return-value]

    def matrix(self, x: Tensor) -> Tensor:
        """Rows as a symmetric matrix [B, N, N, C]."""
        if self.once:
            return Spread.apply(x, self.upper, self.lower, self.n)  # type: ignore[return-value]
        return x.unflatten(1, (self.n, self.n))


class Layer(nn.Module):
    """One round of attention over nodes [B, N, dx] and update of pairs, rows [B, P, de]."""

    def __init__(self, dx: int, de: int, heads: int, widen: int) -> None:
        super().__init__()
        self.heads, self.de = heads, de
        self.modulation = nn.Parameter(torch.zeros(6 * dx))
        self.norm_e1, self.norm_e2 = nn.LayerNorm(de), nn.LayerNorm(de)
        self.qkv = nn.Linear(dx, 3 * dx)
        self.bias_gate = nn.Linear(de, 2 * heads)
        self.out = nn.Linear(dx, dx)
        self.mlp = nn.Sequential(nn.Linear(dx, widen * dx), nn.SiLU(), nn.Linear(widen * dx, dx))
        self.to_pair = nn.Linear(dx, 2 * de)
        self.pair_out = nn.Linear(de + heads, de)
        self.pair_mlp = nn.Sequential(nn.Linear(de, 2 * de), nn.SiLU(), nn.Linear(2 * de, de))
        for last in (self.pair_out, self.pair_mlp[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, h: Tensor, e: Tensor, c: Tensor, off: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        b, n, dx = h.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = (c + self.modulation).unsqueeze(1).chunk(6, -1)
        u = F.layer_norm(h, (dx,)) * (1 + scale1) + shift1
        q, k, v = self.qkv(u).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias, gate = pairs.matrix(self.bias_gate(self.norm_e1(e))).permute(0, 3, 1, 2).chunk(2, 1)
        logit = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        attention = torch.softmax(logit + off, -1) * torch.sigmoid(gate)
        h = h + gate1 * self.out((attention @ v).transpose(1, 2).reshape(b, n, dx))
        u = F.layer_norm(h, (dx,)) * (1 + scale2) + shift2
        h = h + gate2 * self.mlp(u)
        left, plus = self.to_pair(u).chunk(2, -1)
        pair = left.unsqueeze(1) * left.unsqueeze(2) + plus.unsqueeze(1) + plus.unsqueeze(2)
        both = (0.5 * (logit + logit.transpose(-1, -2))).permute(0, 2, 3, 1)
        e = e + self.pair_out(pairs.rows(torch.cat([pair, both], -1)))
        return h, e + self.pair_mlp(self.norm_e2(e))


class PairFormer(nn.Module):
    """Predicts node and pair classes of dense graphs.

    nodes, pairs: component names, nodes None where only pairs move; node_classes, pair_classes: values a state may take
    (the width of its one-hot features); node_logits, pair_logits: classes predicted (default the same). orders: bond
    order per pair class, for the adjacency and the valence; normal_valence: per node class (empty: no valence
    features); degree_share: degree / n as a feature, for degrees that grow with n. max_size scales n.
    `self_conditioning` adds inputs for the previous estimate. conditions: name -> dimension.
    """

    def __init__(self, node_classes: int, pair_classes: int, nodes: str | None = "atoms", pairs: str = "bonds",
                 node_logits: int | None = None, pair_logits: int | None = None,
                 orders: Sequence[float] = (0.0, 1.0, 2.0, 3.0), normal_valence: Sequence[float] = (),
                 max_size: int = 9, dx: int = 128, de: int = 32, dc: int = 128, depth: int = 4, heads: int = 8,
                 widen: int = 2, walks: int = 8, self_conditioning: bool = True,
                 conditions: dict[str, int] | None = None, degree_share: bool = False) -> None:
        super().__init__()
        node_classes = 0 if nodes is None else node_classes
        self.nodes, self.pairs, self.walks, self.max_size = nodes, pairs, walks, float(max_size)
        self.node_logits = 0 if nodes is None else node_logits or node_classes
        self.pair_logits = pair_logits or pair_classes
        self.self_conditioning = self_conditioning
        extra_x = self.node_logits if self_conditioning else 0
        extra_e = self.pair_logits if self_conditioning else 0
        wide = list(orders) + [0.0] * (pair_classes - len(orders))
        self.register_buffer("orders", torch.tensor(wide, dtype=torch.float32), persistent=False)
        self.register_buffer("edge", (self.orders > 0).float(), persistent=False)
        valence = list(normal_valence) + [0.0] * (node_classes - len(normal_valence))
        self.use_valence, self.degree_share = bool(normal_valence), degree_share
        self.register_buffer("normal", torch.tensor(valence, dtype=torch.float32), persistent=False)
        known = node_classes + extra_x + walks + 1 + self.use_valence + degree_share
        self.node_in = nn.Linear(known, dx)
        self.pair_in = nn.Linear(pair_classes + extra_e + walks, de)
        self.time = TimeEmbedding(dc)
        self.size = nn.Linear(1, dc)
        self.condition = ConditionEmbedding(conditions, dc) if conditions else None
        self.modulation = nn.Linear(dc, 6 * dx)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.layers = nn.ModuleList(Layer(dx, de, heads, widen) for _ in range(depth))
        self.node_norm, self.pair_norm = nn.LayerNorm(dx), nn.LayerNorm(de)
        if nodes is not None:
            self.node_out = nn.Linear(dx, self.node_logits)
        self.pair_out = nn.Linear(de, self.pair_logits)
        self.pair_from_nodes = nn.Linear(dx, de)

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        kind = self.size.weight.dtype
        e = features[self.pairs].to(kind)
        b, n = e.shape[:2]
        x = e.new_zeros(b, n, 0) if self.nodes is None else features[self.nodes].to(kind)
        real = ctx.mask(("N",))
        real = torch.ones(b, n, dtype=torch.bool, device=e.device) if real is None else real
        pair_real = (real[:, :, None] & real[:, None, :]).unsqueeze(-1)
        off = torch.zeros(b, 1, 1, n, device=e.device).masked_fill_(~real[:, None, None, :], -1e9)
        adjacency = (e * self.edge[: e.shape[-1]]).sum(-1)
        walks = random_walks(adjacency, self.walks)
        order = (e * self.orders[: e.shape[-1]]).sum(-1).sum(-1, keepdim=True)
        node_parts = [x, walks.diagonal(dim1=1, dim2=2).transpose(1, 2), order / 4]
        if self.use_valence:
            node_parts.append((order - (x * self.normal).sum(-1, keepdim=True)) / 4)
        count = real.sum(1, keepdim=True).to(e.dtype)
        if self.degree_share:
            node_parts.append(adjacency.sum(-1, keepdim=True) / count.clamp(min=1).unsqueeze(-1))
        pair_parts = [_symmetric(e), _symmetric(walks)]
        if self.self_conditioning:
            zero_x, zero_e = x.new_zeros(b, n, self.node_logits), e.new_zeros(b, n, n, self.pair_logits)
            if self.nodes is not None:
                node_parts.append(previous[self.nodes].to(x.dtype) if previous else zero_x)
            pair_parts.append(_symmetric(previous[self.pairs].to(e.dtype)) if previous else zero_e)
        c = self.time(t) + self.size(count / self.max_size)
        if self.condition is not None:
            c = c + self.condition(ctx.cond, b)
        c = self.modulation(F.silu(c))
        pairs = Pairs(n, e.device)
        h = self.node_in(torch.cat(node_parts, -1))
        e = self.pair_in(pairs.rows(torch.cat(pair_parts, -1) * pair_real))
        for layer in self.layers:
            h, e = layer(h, e, c, off, pairs)
        h = self.node_norm(h)
        both = self.pair_from_nodes(h)
        first, second = (pairs.rows(x.expand(b, n, n, -1)) for x in (both.unsqueeze(1), both.unsqueeze(2)))
        logits = pairs.matrix(self.pair_out(F.silu(self.pair_norm(e) + first + second)))
        out = {self.pairs: _symmetric(logits)}
        return out if self.nodes is None else {self.nodes: self.node_out(h), **out}
