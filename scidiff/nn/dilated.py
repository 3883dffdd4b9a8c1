"""A residual network of dilated convolutions: the full grid at every depth, a wide view by widening gaps.

    block   h = norm(x) (1 + s(c)) + b(c);   h = conv_r(act(h)) for r in rates;   x + h       (the last conv is 0 first)

With four blocks of the rates 1, 2, 4, 8, 4, 2, 1 this is the form of Stachenfeld et al. (2022, arXiv 2112.15275), here
with a norm and a condition in front of every block. On periodic fields it is equivariant under every shift (by
multiples of `patch` where points are folded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.nn.field import ACTIVATIONS, Conv, FieldNetwork, Norm, chosen


class DilatedBlock(nn.Module):
    """Convolutions with the given dilations beside an identity."""

    def __init__(self, width: int, dims: int, rates: Sequence[int], kernel: int, padding: str, norm: str,
                 act: str) -> None:
        super().__init__()
        self.norm, self.act = Norm(norm, width, affine=False), ACTIVATIONS[act]()
        self.convs = nn.ModuleList(
            Conv(width, width, dims, kernel, dilation=rate, padding=padding, zero=i == len(rates) - 1)
            for i, rate in enumerate(rates))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.reshape(x.shape[0], *[1] * (x.dim() - 2), -1).chunk(2, -1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        for conv in self.convs:
            h = conv(self.act(h))
        return x + h


class DilatedResNet(FieldNetwork):
    """Residual network of dilated convolutions on periodic or zero-padded fields.

    rates: dilations of the convolutions of a block. embed: width of the embedding of time and scalars.
    """

    def __init__(self, channels_in: int, channels_out: int, dims: int = 1, width: int = 48, blocks: int = 4,
                 rates: Sequence[int] = (1, 2, 4, 8, 4, 2, 1), patch: int = 1, norm: str = "group", act: str = "gelu",
                 kernel: int = 3, padding: str = "periodic", embed: int = 64,
                 conditions: Sequence[str] | Mapping[str, int] | None = None, component: str = "u", clocks: int = 1,
                 self_conditioning: bool = False) -> None:
        super().__init__(channels_in, channels_out, dims, padding, embed, conditions, component, patch, 1, clocks,
                         self_conditioning)
        chosen(act, tuple(ACTIVATIONS), "activation")
        self.enter = Conv(self.folded_in, width, dims, kernel, padding=padding)
        self.blocks = nn.ModuleList(DilatedBlock(width, dims, rates, kernel, padding, norm, act)
                                    for _ in range(blocks))
        self.norm, self.act = Norm(norm, width, affine=True), ACTIVATIONS[act]()
        self.leave = Conv(width, self.folded_out, dims, kernel, padding=padding, zero=True)
        self.modulation = nn.Linear(embed, 2 * width * blocks)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def body(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.enter(x)
        for block, modulation in zip(self.blocks, self.modulation(F.silu(c)).chunk(len(self.blocks), -1), strict=True):
            x = block(x, modulation)
        return self.leave(self.act(self.norm(x)))
