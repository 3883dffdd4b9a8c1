"""Couplings: which source sample belongs to which data sample of a batch.

A coupling is called as `coupling(x0, x1, ctx) -> x1[permutation]`, x0 and x1 [B, ...]. It permutes whole samples, so
shapes and the marginal of the noise stay as they were. Samples of different sizes are never exchanged.

    Independent     leaves x1 as drawn
    ExactOT         minimises the total squared distance (Tong et al. 2024, arXiv 2302.00482)
    Immiscible      minimises the total distance, optionally on half-precision costs (Li et al. 2024, arXiv 2406.12303)

`condition_penalty` adds penalty * |difference of conditions|^2 to the cost (infinite: samples whose conditions differ
are never exchanged), because plain transport across classes makes the source depend on the condition, which a
conditional sampler does not know (Cheng & Schwing 2025, arXiv 2503.10636).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.spec import Context


class Coupling(Protocol):
    """Pairs data with source samples inside one batch."""

    def __call__(self, x0: Tensor, x1: Tensor, ctx: Context) -> Tensor:
        """x1 with its samples permuted."""
        ...


@dataclass(frozen=True)
class Independent:
    """Data and source are independent."""

    def __call__(self, x0: Tensor, x1: Tensor, ctx: Context) -> Tensor:
        return x1


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 of flattened samples by one matrix product, [B, B]."""
    x, y = x.flatten(1), y.flatten(1)
    return torch.addmm((x * x).sum(1)[:, None] + (y * y).sum(1)[None, :], x, y.T, alpha=-2.0).clamp(min=0.0)


@dataclass(frozen=True)
class ExactOT:
    """Exact optimal transport inside the batch."""

    condition_penalty: float = 0.0
    conditions: tuple[str, ...] | None = None

    def cost(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Cost of giving source sample j to data sample i, [B, B]."""
        return squared_distances(x0, x1)

    def permutation(self, x0: Tensor, x1: Tensor, ctx: Context) -> Tensor:
        """int64 [B]: data sample i takes source sample permutation[i]."""
        cost = self.cost(x0.detach(), x1.detach()).to("cpu", torch.float64)
        forbidden = torch.zeros_like(cost, dtype=torch.bool)
        if ctx.sizes is not None:
            sizes = ctx.sizes.cpu()
            forbidden |= sizes[:, None] != sizes[None, :]
        if self.condition_penalty > 0.0:
            gap = self._condition_gap(ctx)
            if math.isinf(self.condition_penalty):
                forbidden |= gap > 0.0
            else:
                cost = cost + self.condition_penalty * gap
        # The identity is always allowed, so one forbidden pair must outweigh any sum of allowed ones.
        cost = torch.where(forbidden, (cost.abs().max() + 1.0) * (cost.shape[0] + 1), cost)
        return torch.as_tensor(linear_sum_assignment(cost.numpy())[1], dtype=torch.int64)

    def _condition_gap(self, ctx: Context) -> Tensor:
        """Squared distance of the conditions of samples i and j, float64 [B, B]; present against absent counts 1."""
        names = tuple(ctx.cond) if self.conditions is None else self.conditions
        gap = torch.zeros(ctx.batch, ctx.batch, dtype=torch.float64)
        for name in names:
            if name not in ctx.cond:
                raise ScidiffError(f"The coupling looks at an unknown condition {name!r}.", nearest(name, ctx.cond))
            value, present = (v.detach().cpu() for v in ctx.cond[name])
            v = value.reshape(ctx.batch, -1).to(torch.float64)
            v = torch.where(present[:, None], v, torch.zeros_like(v))
            gap += (v[:, None] - v[None, :]).square().sum(-1)
            gap += (present[:, None] != present[None, :]).to(torch.float64)
        return gap

    def __call__(self, x0: Tensor, x1: Tensor, ctx: Context) -> Tensor:
        return x1[self.permutation(x0, x1, ctx).to(x1.device)]


@dataclass(frozen=True)
class Immiscible(ExactOT):
    """Assignment of noise to data by distance; `half` rounds the costs to half precision, as published."""

    half: bool = False

    def cost(self, x0: Tensor, x1: Tensor) -> Tensor:
        distance = squared_distances(x0, x1).sqrt()
        return distance.to(torch.float16) if self.half else distance
