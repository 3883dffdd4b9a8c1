"""MONAI's U-Net of diffusion models as a backbone: residual blocks, attention at the lower levels, two and three axes.

It normalises over groups of channels and whole planes, so it belongs to the size of plane that it was trained on; the
position channels of `nn.patch` enter all the same. Scalars of `conditions` become two constant channels each: the
value and whether it is known, both zero where it is not. MONAI's clock counts a thousand steps, so the time is
multiplied by `ticks`: 1000 for t in [0, 1], 100 for lambda = log(alpha / sigma).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.nn.patch import continued, coordinates, placed

if TYPE_CHECKING:
    from scidiff.core.spec import Context


class MonaiUNet(nn.Module):
    """`monai.networks.nets.DiffusionModelUNet` (MissingLibrary without MONAI).

    channels: of the image; widths: of each level; blocks: residual blocks a level; attention: at which levels; head:
    channels of a head of attention; groups: of the normalisation, which divide every width.
    """

    def __init__(self, channels: int = 1, dims: int = 2, widths: Sequence[int] = (32, 64, 96), blocks: int = 1,
                 attention: Sequence[bool] = (False, False, True), head: int = 32, groups: int = 16,
                 position: bool = True, ticks: float = 100.0, flash: bool = True,
                 conditions: Sequence[str] | Mapping[str, int] | None = None, component: str = "x") -> None:
        super().__init__()
        if dims not in (2, 3) or len(widths) != len(attention) or any(int(w) % int(groups) for w in widths):
            raise UsageError(f"MONAI's U-Net has 2 or 3 dimensions, one word on attention a level and widths that are "
                             f"multiples of its {groups} groups, not {dims}, {list(attention)} and {list(widths)}.")
        self.channels, self.dims, self.position, self.ticks = int(channels), int(dims), bool(position), float(ticks)
        self.component, self.multiple = component, 2 ** (len(widths) - 1)
        self.scalars = tuple(conditions or ())
        entering = self.channels + (self.dims if position else 0) + 2 * len(self.scalars)
        try:
            from monai.networks.nets import DiffusionModelUNet

            self.net = DiffusionModelUNet(
                spatial_dims=self.dims, in_channels=entering, out_channels=self.channels,
                channels=[int(w) for w in widths], attention_levels=[bool(a) for a in attention],
                num_res_blocks=int(blocks), num_head_channels=int(head), norm_num_groups=int(groups),
                use_flash_attention=bool(flash))
        except ImportError as error:  # MONAI itself, or einops, which its attention asks for
            raise MissingLibrary("monai", "The backbone of MONAI", 'pip install "scidiff[medical]"') from error

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        z = features[self.component]
        space = z.shape[2:]
        if len(space) != self.dims:
            raise UsageError(f"The network takes images of {self.dims} dimensions, not of {len(space)}.")
        wide = continued(z, self.multiple)
        parts = [wide]
        if self.position:
            parts.append(coordinates(placed(ctx, z).to(z.dtype), wide.shape[2:]))
        for name in self.scalars:
            parts.append(self._known(name, ctx, wide))
        out = self.net(torch.cat(parts, 1), (self.ticks * t).to(z.dtype))
        return {self.component: out[(..., *(slice(0, n) for n in space))]}

    def _known(self, name: str, ctx: Context, like: Tensor) -> Tensor:
        """[B, 2, *space]: the value of a condition and whether it is known."""
        if name not in ctx.cond:
            return like.new_zeros(len(like), 2, *like.shape[2:])
        value, present = ctx.cond[name]
        told = torch.stack([value.reshape(-1).to(like.dtype) * present, present.to(like.dtype)], 1)
        return told.view(len(like), 2, *[1] * self.dims).expand(-1, -1, *like.shape[2:])
