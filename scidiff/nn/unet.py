"""The modern U-Net for fields on regular grids, in one to three dimensions.

    block   h = conv(act(norm x));  h = conv0(act(norm(h) (1 + s(c)) + b(c)))  or  conv0(act(norm(h + b(c))));  x + h
    skips = "all"   down: `blocks` blocks a level and a strided convolution, every result kept; up: `blocks` + 1 blocks
                    a level, each on its input joined with the last kept result; transposed convolutions in between
    skips = "add"   one result a level is kept and added on the way up; `blocks` blocks a level each way: half the work

conv0 starts at zero, so a block starts as the identity (or a 1x1 projection), and the network predicts zero. With
widths (64, 128, 256, 1024), two blocks, all skips and conditioning by addition this is the network of PDE-Refiner
(Lippe et al. 2023, arXiv 2308.05732), after the U-Net of Gupta and Brandstetter (2022, arXiv 2209.15616).
Periodic padding makes it equivariant under shifts by multiples of its total stride.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.errors import UsageError
from scidiff.nn.field import ACTIVATIONS, Conv, FieldNetwork, Norm, Up, chosen


class Block(nn.Module):
    """Two convolutions beside an identity (or a 1x1 projection), conditioned between them."""

    def __init__(self, channels_in: int, channels_out: int, dims: int, kernel: int, padding: str, norm: str, act: str,
                 scale_shift: bool, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.scale_shift, self.act = scale_shift, ACTIVATIONS[act]()
        self.norm1 = Norm(norm, channels_in, affine=not scale_shift)
        self.norm2 = Norm(norm, channels_out, affine=not scale_shift)
        self.conv1 = Conv(channels_in, channels_out, dims, kernel, dilation=dilations[0], padding=padding)
        self.conv2 = Conv(channels_out, channels_out, dims, kernel, dilation=dilations[1], padding=padding, zero=True)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Linear(channels_in, channels_out)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        modulation = modulation.reshape(x.shape[0], *[1] * (x.dim() - 2), -1)
        if self.scale_shift:
            scale, shift = modulation.chunk(2, -1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + modulation)
        return self.skip(x) + self.conv2(self.act(h))


class UNet(FieldNetwork):
    """U-Net on periodic or zero-padded fields.

    widths: channels of every level, given absolutely; blocks: residual blocks a level on the way down. patch: points
    along each axis that are folded into channels first, which makes every level cheaper. skips: "all" or "add".
    condition: "scale_shift" or "add". norm: "group" (over a whole sample), "point" or "none". bottom_kernel: of the
    lowest level. embed: width of the embedding of time and scalars (default 4 widths[0]).
    """

    def __init__(self, channels_in: int, channels_out: int, dims: int = 1, widths: Sequence[int] = (64, 96),
                 blocks: int = 1, patch: int = 1, skips: str = "add", condition: str = "scale_shift",
                 norm: str = "group", act: str = "gelu", kernel: int = 3, bottom_kernel: int | None = None,
                 padding: str = "periodic", embed: int | None = None,
                 conditions: Sequence[str] | Mapping[str, int] | None = None, component: str = "u", clocks: int = 1,
                 self_conditioning: bool = False) -> None:
        widths = [int(w) for w in widths]
        depth, embed = len(widths), embed or 4 * widths[0]
        super().__init__(channels_in, channels_out, dims, padding, embed, conditions, component, patch,
                         2 ** (depth - 1), clocks, self_conditioning)
        scale_shift = chosen(condition, ("scale_shift", "add"), "conditioning") == "scale_shift"
        self.every = chosen(skips, ("all", "add"), "kind of skips") == "all"
        if blocks < 1:
            raise UsageError(f"A U-Net has at least one block a level, not {blocks}.")
        chosen(act, tuple(ACTIVATIONS), "activation")
        self.sizes: list[int] = []

        def block(a: int, b: int, level: int) -> Block:
            k = bottom_kernel if bottom_kernel and level == depth - 1 else kernel
            self.sizes.append(2 * b if scale_shift else b)
            return Block(a, b, dims, k, padding, norm, act, scale_shift)

        self.enter = Conv(self.folded_in, widths[0], dims, kernel, padding=padding)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        w, kept = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(w, width, level))
                w = width
                kept.append(w)
            self.down.append(stage)
            if level < depth - 1:
                to = w if self.every else widths[level + 1]
                self.shrink.append(Conv(w, to, dims, stride=2, padding=padding))
                w = to
                kept.append(w)
        self.middle = nn.ModuleList(block(w, w, depth - 1) for _ in range(2))
        for level in reversed(range(depth)):
            stage = nn.ModuleList()
            below = widths[max(level - 1, 0)]
            if self.every:
                for i in range(blocks + 1):
                    to = below if i == blocks else widths[level]
                    stage.append(block(w + kept.pop(), to, level))
                    w = to
            elif level < depth - 1:
                stage.extend(block(w, w, level) for _ in range(blocks))
            self.up.append(stage)
            if level:
                self.grow.append(Up(w, below, dims, padding))
                w = below
        self.norm, self.act = Norm(norm, w, affine=True), ACTIVATIONS[act]()
        self.leave = Conv(w, self.folded_out, dims, kernel, padding=padding, zero=True)
        self.modulation = nn.Linear(embed, sum(self.sizes))  # of all blocks at once
        if scale_shift:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def body(self, x: Tensor, c: Tensor) -> Tensor:
        modulations = iter(self.modulation(F.silu(c)).split(self.sizes, -1))
        x = self.enter(x)
        kept = [x] if self.every else []
        for level, stage in enumerate(self.down):
            for block in stage:
                x = block(x, next(modulations))
                if self.every:
                    kept.append(x)
            if level < len(self.shrink):
                if not self.every:
                    kept.append(x)
                x = self.shrink[level](x)
                if self.every:
                    kept.append(x)
        for block in self.middle:
            x = block(x, next(modulations))
        for level, stage in enumerate(self.up):
            if level and not self.every:
                x = x + kept.pop()
            for block in stage:
                x = block(torch.cat([x, kept.pop()], -1) if self.every else x, next(modulations))
            if level < len(self.grow):
                x = self.grow[level](x)
        return self.leave(self.act(self.norm(x)))
