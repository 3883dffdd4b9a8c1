"""Separate networks by noise level: a router that sends every sample to the part that owns its time.

    part i answers for edges[i-1] < t <= edges[i],      edges = (0, e_1, ..., e_{n-1}, 1)

So a half-trained fine level cannot disturb the first guess (PDE-Refiner), and structure, middle and fine scales can
have experts of their own (as in eDiff-I: Balaji et al. 2022, arXiv 2211.01324). In a sampler all samples share one
time, so one part is called a step; in training a batch is split, unless all its samples share their level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from scidiff.core.spec import Context


class Router(nn.Module):
    """parts: one factory (a config with `_partial_: true`) for each interval; edges: the times between them, rising.

    All other settings go to every part. Times [B, C] are routed by their first column.
    """

    def __init__(self, parts: Sequence[Callable[..., nn.Module]], edges: Sequence[float], **shared: Any) -> None:
        super().__init__()
        edges = [float(e) for e in edges]
        if len(parts) != len(edges) + 1 or any(b <= a for a, b in pairwise((0.0, *edges, 1.0))):
            raise UsageError(f"A router of {len(parts)} parts needs {len(parts) - 1} rising times within (0, 1), not "
                             f"{edges}.")
        self.parts = nn.ModuleList(make(**shared) for make in parts)
        self.edges = edges

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        clock = t if t.dim() == 1 else t[:, 0]
        owner = torch.bucketize(clock.detach(), torch.tensor(self.edges, dtype=clock.dtype, device=clock.device))
        owners = owner.unique().tolist()
        if len(owners) == 1:
            return self.parts[owners[0]](features, t, ctx, previous)
        out: dict[str, Tensor] = {}
        for number in owners:
            rows = (owner == number).nonzero()[:, 0]
            share = {k: v[rows] for k, v in features.items()}
            before = None if previous is None else {k: v[rows] for k, v in previous.items()}
            for name, value in self.parts[number](share, t[rows], ctx.take(rows), before).items():
                if name not in out:
                    out[name] = value.new_zeros(len(clock), *value.shape[1:])
                out[name] = out[name].index_copy(0, rows, value)
        return out
