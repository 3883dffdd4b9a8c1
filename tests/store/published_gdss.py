"""Weight files in the published layout of GDSS: networks that bear the published names, and `torch.save` as published.

Written from the equations of arXiv 2202.02514 (dense GCN, attention over channels, readouts), one channel at a time.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

QM9 = {"data": "QM9", "max_node_num": 9, "max_feat_num": 4, "init": "atom"}
VE = {"type": "VE", "beta_min": 0.1, "beta_max": 1.0, "num_scales": 1000}
VP = {"type": "VP", "beta_min": 0.1, "beta_max": 1.0, "num_scales": 1000}
SIZES = {"nhid": 8, "num_layers": 3, "num_linears": 3, "c_init": 2, "c_hid": 6, "c_final": 4, "adim": 16,
         "num_heads": 4, "conv": "GCN"}


class GCN(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(d_in, d_out) / 2), nn.Parameter(torch.randn(d_out) / 4)

    def forward(self, x, a):
        a = a * (1 - torch.eye(a.shape[-1])) + torch.eye(a.shape[-1])
        d = a.sum(-1).clamp(min=1).pow(-0.5)
        return d.unsqueeze(-1) * a * d.unsqueeze(-2) @ x @ self.weight + self.bias


class MLP(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x):
        for k, linear in enumerate(self.linears):
            x = F.elu(linear(x)) if k + 1 < len(self.linears) else linear(x)
        return x


class Head(nn.Module):
    def __init__(self, d_in, d_attention, d_out, heads):
        super().__init__()
        self.gnn_q, self.gnn_k, self.gnn_v = GCN(d_in, d_attention), GCN(d_in, d_attention), GCN(d_in, d_out)
        self.heads, self.d_out = heads, d_out

    def forward(self, x, a):
        q, k = (g(x, a).unflatten(-1, (self.heads, -1)) for g in (self.gnn_q, self.gnn_k))
        m = torch.tanh(torch.einsum("bihf,bjhf->bhij", q, k) / math.sqrt(self.d_out)).mean(1)
        return self.gnn_v(x, a), (m + m.transpose(1, 2)) / 2


class AttentionLayer(nn.Module):
    def __init__(self, depth, d_in, d_attention, d_out, c_in, c_out, heads):
        super().__init__()
        self.attn = nn.ModuleList(Head(d_in, d_attention, d_out, heads) for _ in range(c_in))
        hidden = 2 * max(c_in, c_out)
        self.mlp = MLP(2 * c_in, *[hidden] * (depth - 1), c_out)
        self.multi_channel = MLP(c_in * d_out, hidden, d_out)

    def forward(self, x, e, real):
        found = [head(x, e[:, c]) for c, head in enumerate(self.attn)]
        x = torch.tanh(self.multi_channel(torch.cat([v for v, _ in found], -1)) * real.unsqueeze(-1))
        e = self.mlp(torch.cat([torch.stack([m for _, m in found], -1), e.permute(0, 2, 3, 1)], -1)).permute(0, 3, 1, 2)
        return x, (e + e.transpose(2, 3)) * (real.unsqueeze(1) * real.unsqueeze(2)).unsqueeze(1)


class NodeNetwork(nn.Module):
    def __init__(self, max_feat_num, depth, nhid):
        super().__init__()
        self.layers = nn.ModuleList(GCN(max_feat_num if k == 0 else nhid, nhid) for k in range(depth))
        wide = max_feat_num + depth * nhid
        self.final = MLP(wide, 2 * wide, 2 * wide, max_feat_num)

    def forward(self, x, a, real):
        kept = [x]
        for layer in self.layers:
            kept.append(torch.tanh(layer(kept[-1], a)))
        return self.final(torch.cat(kept, -1)) * real.unsqueeze(-1)


def attention_layers(features, count, width, attention, s):
    channels = [s["c_init"], *[s["c_hid"]] * (count - 1), s["c_final"]]
    return nn.ModuleList(
        AttentionLayer(s["num_linears"], features if k == 0 else width, width if k == 0 else attention, width,
                       channels[k], channels[k + 1], s["num_heads"]) for k in range(count))


class AttentionNodeNetwork(nn.Module):
    def __init__(self, max_feat_num, depth, nhid, **s):
        super().__init__()
        self.layers, self.c_init = attention_layers(max_feat_num, depth, nhid, s["adim"], s), s["c_init"]
        wide = max_feat_num + depth * nhid
        self.final = MLP(wide, 2 * wide, 2 * wide, max_feat_num)

    def forward(self, x, a, real):
        kept, e = [x], powers(a, self.c_init)
        for layer in self.layers:
            x, e = layer(x, e, real)
            x = torch.tanh(x)
            kept.append(x)
        return self.final(torch.cat(kept, -1)) * real.unsqueeze(-1)


class EdgeNetwork(nn.Module):
    def __init__(self, max_feat_num, max_node_num, nhid, num_layers, **s):
        super().__init__()
        self.layers, self.c_init = attention_layers(max_feat_num, num_layers, nhid, s["adim"], s), s["c_init"]
        wide = s["c_init"] + s["c_hid"] * (num_layers - 1) + s["c_final"]
        self.final = MLP(wide, 2 * wide, 2 * wide, 1)

    def forward(self, x, a, real):
        kept = [powers(a, self.c_init)]
        for layer in self.layers:
            x, e = layer(x, kept[-1], real)
            kept.append(e)
        out = self.final(torch.cat(kept, 1).permute(0, 2, 3, 1)).squeeze(-1)
        return out * (1 - torch.eye(a.shape[-1])) * real.unsqueeze(1) * real.unsqueeze(2)


def powers(a, count):
    return torch.stack([torch.matrix_power(a, k + 1) for k in range(count)], 1)


def easydict():
    """A module of that name with a dict subclass whose items are attributes as well, as the well-known one has them."""
    class EasyDict(dict):
        def __init__(self, given=None):
            super().__init__()
            for key, value in (given or {}).items():
                self[key] = value

        def __setitem__(self, key, value):
            value = EasyDict(value) if isinstance(value, dict) else value
            super().__setitem__(key, value)
            self.__dict__[key] = value

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module = ModuleType("easydict")
    module.EasyDict = EasyDict
    return module


def networks(data, attention=False, depth=2, **changed):
    """(arguments of the network of the nodes, of the edges, both networks), seed 0."""
    torch.manual_seed(0)
    s = {**SIZES, **changed}
    more = {k: s[k] for k in ("num_linears", "c_init", "c_hid", "c_final", "adim", "num_heads", "conv")}
    x = {"max_feat_num": data["max_feat_num"], "depth": depth, "nhid": s["nhid"], **(more if attention else {})}
    adj = {"max_feat_num": data["max_feat_num"], "max_node_num": data["max_node_num"], **s}
    nets = (AttentionNodeNetwork if attention else NodeNetwork)(**x), EdgeNetwork(**adj)
    for net in nets:
        for p in net.parameters():
            p.data.mul_(1.5)
    kind = "ScoreNetworkX_GMH" if attention else "ScoreNetworkX"
    return {"model_type": kind, **x}, {"model_type": "ScoreNetworkA", **adj}, nets


def content(data=QM9, sde=(VE, VE), attention=False, prefix="", more=None, depth=2, **changed):
    """(what a published file holds, the two networks, both averaged networks)."""
    made = sys.modules.get("easydict") or easydict()
    x, adj, nets = networks(data, attention, depth, **changed)
    averaged = networks(data, attention, depth, **changed)[2]
    for net in averaged:
        for p in net.parameters():
            p.data.mul_(1.2)
    config = made.EasyDict({"data": dict(data), "sde": {"x": sde[0], "adj": sde[1]}, "model": {"x": x["model_type"]},
                            "train": {"lr": 5e-3, "lr_schedule": True, "name": None, "list": [1, 2.5]}, "seed": 42,
                            **(more or {})})
    states = [{prefix + k: v for k, v in net.state_dict().items()} for net in nets]
    averages = [{"decay": 0.999, "num_updates": 7, "shadow_params": [p.detach().clone() for p in net.parameters()]}
                for net in averaged]
    if not prefix:
        states = [net.state_dict() for net in nets]
    held = {"model_config": config, "params_x": x, "params_adj": adj, "x_state_dict": states[0],
            "adj_state_dict": states[1], "ema_x": averages[0], "ema_adj": averages[1]}
    return held, nets, averaged
