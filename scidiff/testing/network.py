"""Symmetries of backbones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scidiff.core.spec import Context, Shape
from scidiff.testing.require import require


def assert_equivariant(network: nn.Module, features: Mapping[str, Tensor], t: Tensor, ctx: Context,
                       shapes: Mapping[str, Shape], previous: Mapping[str, Tensor] | None = None,
                       tolerance: float = 1e-5, seed: int = 0) -> float:
    """Permuting the real nodes of every sample permutes the real outputs; returns the largest difference.

    shapes: component -> shape of one sample ("N" marks node axes); further axes of the tensors are features.
    """
    sizes = torch.full((ctx.batch,), ctx.n_max) if ctx.sizes is None else ctx.sizes.cpu()
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.cat([torch.randperm(int(n), generator=generator), torch.arange(int(n), ctx.n_max)]) for n in sizes]

    def permuted(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for name, x in values.items():
            rows = []
            for row, order in zip(x, orders, strict=True):
                for axis, n in enumerate(shapes[name]):
                    row = row.index_select(axis, order.to(x.device)) if n == "N" else row
                rows.append(row)
            out[name] = torch.stack(rows)
        return out

    past = None if previous is None else dict(previous)
    with torch.no_grad():
        straight = permuted(network(dict(features), t, ctx, past))
        turned = network(permuted(features), t, ctx, None if past is None else permuted(past))
    worst = 0.0
    for name, x in straight.items():
        mask = ctx.mask(shapes[name])
        off = (x - turned[name]).abs().flatten(len(shapes[name]) + 1).amax(-1)
        worst = max(worst, float((off if mask is None else off * mask).max()))
    require(worst <= tolerance, f"Permuting the nodes changes the outputs by {worst:.3g}.")
    return worst
