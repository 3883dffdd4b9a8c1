"""Embeddings of scalars: sinusoids of the time, and small conditioning networks.

    e(t)_k = (cos(w_k t), sin(w_k t)),   w_k geometric between 2 pi and 2 pi * `highest`
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """t [B] or [B, C] -> [B, width]: sinusoids, then a two-layer network."""

    def __init__(self, width: int, channels: int = 64, columns: int = 1, highest: float = 256.0) -> None:
        super().__init__()
        steps = torch.linspace(0, 1, channels // 2)
        self.register_buffer("frequencies", 2 * math.pi * 0.25 * highest**steps, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(channels * columns, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angle = t.reshape(t.shape[0], -1, 1).to(self.frequencies.dtype) * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1).flatten(1))


class ConditionEmbedding(nn.Module):
    """Named real conditions (value [B] or [B, d], present [B]) -> [B, width]; absent ones add a learned vector."""

    def __init__(self, sizes: dict[str, int], width: int) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.parts = nn.ModuleDict({
            n: nn.Sequential(nn.Linear(d, width), nn.SiLU(), nn.Linear(width, width)) for n, d in self.sizes.items()})
        self.absent = nn.ParameterDict({n: nn.Parameter(torch.zeros(width)) for n in self.sizes})

    def forward(self, cond: dict[str, tuple[Tensor, Tensor]], batch: int) -> Tensor | float:
        total: Tensor | float = 0.0
        for name, size in self.sizes.items():
            absent = self.absent[name].expand(batch, -1)
            if name in cond:
                value, present = cond[name]
                part = self.parts[name](value.reshape(batch, size).to(absent.dtype))
                total = total + torch.where(present[:, None], part, absent)
            else:
                total = total + absent
        return total
