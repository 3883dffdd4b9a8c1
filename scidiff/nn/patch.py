"""A U-Net that knows where its patch lies: position channels, no statistics beyond a pixel, any size at inference.

    input   x = [z, p],    p_d = start_d + step_d i_d: where pixel i lies along axis d of the plane, from -1 to 1

A whole plane of n pixels has start = 1 / n - 1 and step = 2 / n. The network is trained on patches, whose (start, step)
stand in `ctx.cond["position"]`, and denoises whole planes: the weights are convolutions and every normalisation is over
the channels of one pixel, so a plane and its patches give the same numbers wherever the zeros beyond the border are out
of reach. Few slices make many patches, so small data sets go further (PaDIS: Hu et al. 2024, arXiv 2406.02462); p
replaces the context that a patch lacks.

With the denoiser's clock `lambda` the time is log(alpha / sigma), of which the network sees a quarter, so that noise
from a thousandth to a hundred times the signal spans a few units. Scalars of `conditions` enter like the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.nn.embed import TimeEmbedding
from scidiff.nn.unet import UNet

if TYPE_CHECKING:
    from scidiff.core.spec import Context

POSITION = "position"
FASTEST, SLOWER = 16.0, 0.25
"""Ratio of the highest to the lowest frequency of the clock, and the factor of lambda."""


def whole(space: Sequence[int], batch: int = 1, like: Tensor | None = None) -> Tensor:
    """(start, step) [batch, d, 2] of whole planes (blocks) of that many pixels along each axis."""
    rows = torch.tensor([[1.0 / n - 1.0, 2.0 / n] for n in space])
    rows = rows if like is None else rows.to(like.device)
    return rows.expand(batch, -1, -1)


def coordinates(place: Tensor, space: Sequence[int]) -> Tensor:
    """[B, d, *space] from (start, step) [B, d, 2]: how far along each axis every pixel lies."""
    parts = []
    for axis, n in enumerate(space):
        view = [len(place), *[1] * len(space)]
        view[axis + 1] = n
        along = place[:, axis, :1] + place[:, axis, 1:] * torch.arange(n, device=place.device, dtype=place.dtype)
        parts.append(along.view(view).expand(-1, *space))
    return torch.stack(parts, 1)


def placed(ctx: Context, z: Tensor) -> Tensor:
    """(start, step) [B, d, 2] of a batch of images [B, C, *space]: as the context says, else whole planes."""
    return ctx.cond[POSITION][0] if POSITION in ctx.cond else whole(z.shape[2:], len(z), z)


def continued(z: Tensor, multiple: int) -> Tensor:
    """[B, C, *space] with zeros behind every axis up to the next multiple."""
    missing = [-n % multiple for n in z.shape[2:]]
    return F.pad(z, [k for n in reversed(missing) for k in (0, n)]) if any(missing) else z


class PatchUNet(UNet):
    """The U-Net of `scidiff.nn.unet` with zero padding, position channels and normalisation of single pixels.

    channels: of the image. patch: neighbouring pixels along each axis that are folded into channels first. position:
    whether the network is told where pixels lie. The other settings are those of `UNet`. Planes whose sides are no
    multiple of the network's stride are continued with zeros.
    """

    def __init__(self, channels: int = 1, dims: int = 2, widths: Sequence[int] = (48, 80, 96), blocks: int = 1,
                 patch: int = 2, position: bool = True, norm: str = "point", act: str = "silu", kernel: int = 3,
                 embed: int = 128, conditions: Sequence[str] | Mapping[str, int] | None = None, component: str = "x",
                 self_conditioning: bool = False) -> None:
        if norm == "group":
            raise UsageError("Statistics over a whole patch differ from those over a whole plane.",
                             "Take norm: point or none.")
        super().__init__(channels + (dims if position else 0), channels, dims, widths, blocks, patch, "add",
                         "scale_shift", norm, act, kernel, None, "zero", embed, conditions, component, 1,
                         self_conditioning)
        self.position = bool(position)
        self.time = TimeEmbedding(embed, highest=FASTEST)

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        z = features[self.component]
        space = z.shape[2:]
        if len(space) != self.dims:
            raise UsageError(f"The network takes images of {self.dims} dimensions, not of {len(space)}.")
        yes = torch.ones(len(z), dtype=torch.bool, device=z.device)
        ctx = replace(ctx, cond={**ctx.cond, POSITION: (placed(ctx, z), yes)})
        if previous is not None:
            previous = {self.component: continued(previous[self.component], self.multiple)}
        out = super().forward({self.component: continued(z, self.multiple)}, t, ctx, previous)[self.component]
        return {self.component: out[(..., *(slice(0, n) for n in space))]}

    def gathered(self, z: Tensor, ctx: Context, previous: dict[str, Tensor] | None) -> Tensor:
        """The noised image with its coordinates [B, C + d, *space], and the last estimate. Places are never hidden."""
        parts = [z]
        if self.position:
            parts.append(coordinates(ctx.cond[POSITION][0].to(z.dtype), z.shape[2:]))
        if self.self_conditioning:
            parts.append(torch.zeros_like(z) if previous is None else previous[self.component].to(z.dtype))
        return torch.cat(parts, 1)

    def vector(self, t: Tensor, ctx: Context) -> Tensor:
        return super().vector(SLOWER * t, ctx)
