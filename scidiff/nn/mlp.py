"""A residual perceptron for states whose components are plain vectors (or small arrays, flattened).

    h = W_in [features, previous];   per block h += W2 silu(W1 (LN(h) (1 + scale(c)) + shift(c)));   out = W_out LN(h)

c embeds the time (one for all components, or one each) and the conditions. The output layer is zero at the start, so
that an untrained network predicts zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scidiff.core.errors import UsageError
from scidiff.nn.embed import ConditionEmbedding, TimeEmbedding

if TYPE_CHECKING:
    from scidiff.core.spec import Context


class Block(nn.Module):
    """One residual layer, modulated by c."""

    def __init__(self, width: int, widen: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(nn.Linear(width, widen * width), nn.SiLU(), nn.Dropout(dropout),
                                 nn.Linear(widen * width, width))
        for layer in (self.modulation, self.mlp[3]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c).chunk(2, -1)
        return h + self.mlp(self.norm(h) * (1 + scale) + shift)


class MLP(nn.Module):
    """Predicts every component of a state of vectors.

    inputs: component -> width of its flattened features (a categorical component of n entries and K classes has n K).
    outputs: component -> shape of its raw prediction (default (width,)); categories end in their number of classes.
    clocks: columns of the time, 1 unless the components have separate times. conditions: name -> dimension.
    """

    def __init__(self, inputs: Mapping[str, int], outputs: Mapping[str, tuple[int, ...] | int] | None = None,
                 width: int = 128, depth: int = 3, widen: int = 2, dropout: float = 0.0, clocks: int = 1,
                 conditions: dict[str, int] | None = None, self_conditioning: bool = False) -> None:
        super().__init__()
        self.inputs = {n: int(w) for n, w in inputs.items()}
        given = outputs or {}
        if odd := sorted(set(given) - set(self.inputs)):
            raise UsageError(f"The network has outputs without inputs: {', '.join(odd)}.")
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, default in self.inputs.items():
            shape = given.get(name, default)
            self.shapes[name] = (shape,) if isinstance(shape, int) else tuple(int(k) for k in shape)
        self.self_conditioning = self_conditioning
        past = sum(prod(s) for s in self.shapes.values()) if self_conditioning else 0
        self.enter = nn.Linear(sum(self.inputs.values()) + past, width)
        self.time = TimeEmbedding(width, columns=clocks)
        self.condition = ConditionEmbedding(conditions, width) if conditions else None
        self.blocks = nn.ModuleList(Block(width, widen, dropout) for _ in range(depth))
        self.norm, self.act = nn.LayerNorm(width), nn.SiLU()
        self.leave = nn.Linear(width, sum(prod(s) for s in self.shapes.values()))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        b, kind = ctx.batch, self.enter.weight.dtype
        parts = [features[n].to(kind).reshape(b, w) for n, w in self.inputs.items()]
        if self.self_conditioning:
            parts += [parts[0].new_zeros(b, prod(s)) if previous is None else previous[n].to(kind).reshape(b, prod(s))
                      for n, s in self.shapes.items()]
        c = self.time(t).to(kind)
        if self.condition is not None:
            c = c + self.condition(ctx.cond, b)
        c = self.act(c)
        h = self.enter(torch.cat(parts, -1))
        for block in self.blocks:
            h = block(h, c)
        raw = self.leave(self.norm(h)).split([prod(s) for s in self.shapes.values()], -1)
        return {n: v.reshape(b, *s) for (n, s), v in zip(self.shapes.items(), raw, strict=True)}
