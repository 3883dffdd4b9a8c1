"""A backbone of one's own: scidiff's perceptron behind (cos, sin), so that it is continuous across 180 degrees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scidiff.core.spec import Context
from scidiff.nn.mlp import MLP


class AngleNetwork(nn.Module):
    """classes: of the residue; width, depth: of the perceptron. Raw outputs: angles [B, 2], residue [B, 1, classes]."""

    def __init__(self, classes: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.body = MLP({"angles": 4, "residue": classes}, {"angles": (2,), "residue": (1, classes)}, width, depth)

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        angles = features["angles"]
        return self.body({**features, "angles": torch.cat([angles.cos(), angles.sin()], -1)}, t, ctx, previous)
