"""What all networks on grids share: how a batch becomes channels, how time and scalars become one vector, convolutions.

    input   x = [z, previous frames]                 channels of the noised target, then of `ctx.cond["previous"]`
    vector  c = E_t(t) + sum_j present_j E_j(s_j)    E: sinusoids and two linear layers; an absent scalar adds nothing
    folding [B, C, N] -> [B, N / p, p C]             `patch` neighbouring points become channels, and back at the end

Inside a network channels come last, [B, *space, C]: a 1-D convolution is then one matrix product over shifted copies,
which takes a third less time on a CPU than the library's convolution at these widths. The conditioning is
that of PDE-Refiner (Lippe et al. 2023, arXiv 2308.05732).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.nn.embed import TimeEmbedding

if TYPE_CHECKING:
    from scidiff.core.spec import Context

PREVIOUS = "previous"
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}
PADDINGS = ("periodic", "zero")


def chosen(name: str, choices: Sequence[str], what: str) -> str:
    """The name itself, or a UsageError."""
    if name not in choices:
        raise UsageError(f"There is no {what} {name!r}.", nearest(name, choices))
    return name


def fold(x: Tensor, patch: int) -> Tensor:
    """[B, C, *space] -> [B, *(n / patch), patch^d C]."""
    b, c, *space = x.shape
    d = len(space)
    x = x.reshape(b, c, *(k for n in space for k in (n // patch, patch)))
    x = x.permute(0, *range(2, 2 + 2 * d, 2), *range(3, 2 + 2 * d, 2), 1)
    return x.reshape(b, *(n // patch for n in space), patch**d * c)


def unfold(x: Tensor, patch: int) -> Tensor:
    """[B, *n, patch^d C] -> [B, C, *(n patch)]: the inverse of `fold`."""
    b, *space, c = x.shape
    d = len(space)
    x = x.reshape(b, *space, *[patch] * d, c // patch**d)
    x = x.permute(0, 1 + 2 * d, *(k for i in range(d) for k in (1 + i, 1 + d + i)))
    return x.reshape(b, c // patch**d, *(n * patch for n in space))


def shifted(x: Tensor, by: int, padding: str) -> Tensor:
    """y_i = x_{i + by} along the one axis of [B, N, C]: round the ring, or zero beyond the ends."""
    if by == 0:
        return x
    if padding == "periodic":
        return x.roll(-by, 1)
    return F.pad(x[:, max(by, 0): x.shape[1] + min(by, 0)], (0, 0, max(-by, 0), max(by, 0)))


def wrapped(x: Tensor, width: int, axis: int = 1) -> Tensor:
    """[B, *space, C] of a periodic field with `width` more points on every side of its axes from `axis` on."""
    if width == 0 or axis == x.dim() - 1:
        return x
    before, after = x.narrow(axis, x.shape[axis] - width, width), x.narrow(axis, 0, width)
    return wrapped(torch.cat([before, x, after], axis), width, axis + 1)


class Conv(nn.Module):
    """A convolution [B, *n, C] -> [B, *(n / stride), C'], padded to keep its place; `zero` starts it at zero.

    The weight is [C', *kernel, C].
    """

    def __init__(self, channels_in: int, channels_out: int, dims: int, kernel: int = 3, stride: int = 1,
                 dilation: int = 1, padding: str = "periodic", zero: bool = False) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise UsageError(f"The kernel of a convolution is odd, not {kernel}.")
        self.dims, self.kernel, self.stride, self.dilation, self.padding = dims, kernel, stride, dilation, padding
        self.weight = nn.Parameter(torch.empty(channels_out, *[kernel] * dims, channels_in))
        self.bias = nn.Parameter(torch.empty(channels_out))
        start(self.weight, self.bias, 0.0 if zero else (channels_in * kernel**dims) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        half = self.kernel // 2
        reach = half * self.dilation
        if reach >= min(x.shape[1:-1]) + 1:
            raise UsageError(f"A convolution reaches {reach} points, more than the {min(x.shape[1:-1])} that the field "
                             "has at this depth.", "Take more points, fewer levels or smaller dilations.")
        if self.dims == 1:
            taps = [shifted(x, i * self.dilation, self.padding)[:, ::self.stride] for i in range(-half, half + 1)]
            return F.linear(torch.cat(taps, -1) if half else taps[0], self.weight.flatten(1), self.bias)
        conv = F.conv2d if self.dims == 2 else F.conv3d
        around = reach if self.padding == "zero" else 0
        x = x if around else wrapped(x, reach)
        return conv(x.movedim(-1, 1), self.weight.movedim(-1, 1), self.bias, self.stride, around,
                    self.dilation).movedim(1, -1)


class Up(nn.Module):
    """Twice as many points along every axis: a transposed convolution with kernel 4 and stride 2.

    Point 2 i of the result sees points i - 1 and i, point 2 i + 1 sees i and i + 1. The weight is [C, *4, C'].
    """

    def __init__(self, channels_in: int, channels_out: int, dims: int, padding: str = "periodic") -> None:
        super().__init__()
        self.dims, self.padding = dims, padding
        self.weight = nn.Parameter(torch.empty(channels_in, *[4] * dims, channels_out))
        self.bias = nn.Parameter(torch.empty(channels_out))
        start(self.weight, self.bias, (channels_in * 2**dims) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.dims == 1:
            b, n, _ = x.shape
            w3, w1, w2, w0 = self.weight[:, 3], self.weight[:, 1], self.weight[:, 2], self.weight[:, 0]
            even = torch.cat([shifted(x, -1, self.padding), x], -1) @ torch.cat([w3, w1])
            odd = torch.cat([x, shifted(x, 1, self.padding)], -1) @ torch.cat([w2, w0])
            return torch.stack([even, odd], 2).reshape(b, 2 * n, -1) + self.bias
        conv = F.conv_transpose2d if self.dims == 2 else F.conv_transpose3d
        x, around = (x, 1) if self.padding == "zero" else (wrapped(x, 1), 3)
        return conv(x.movedim(-1, 1), self.weight.movedim(-1, 1), self.bias, 2, around).movedim(1, -1)


def start(weight: nn.Parameter, bias: nn.Parameter, bound: float) -> None:
    """Uniform within +- bound, torch's own start of a convolution."""
    with torch.no_grad():
        weight.uniform_(-bound, bound)
        bias.uniform_(-bound, bound)


class Norm(nn.Module):
    """Mean 0 and variance 1 over all points and channels of a sample ("group"), over the channels of a point
    ("point"), or nothing ("none"); with `affine` a weight and a bias for each channel."""

    def __init__(self, kind: str, channels: int, affine: bool) -> None:
        super().__init__()
        self.kind = chosen(kind, ("group", "point", "none"), "norm")
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != "none":
            x = F.layer_norm(x, x.shape[1:] if self.kind == "group" else x.shape[-1:])
        return x if self.weight is None else torch.addcmul(self.bias, x, self.weight)


class ScalarEmbedding(nn.Module):
    """A physical scalar (value [B] or [B, d], present [B]) -> [B, width], zero where it is absent.

    Sinusoids of 0.1 to 10 radians per unit: values should be of order one to ten.
    """

    def __init__(self, width: int, channels: int = 32, columns: int = 1) -> None:
        super().__init__()
        self.register_buffer("frequencies", 0.1 * 100 ** torch.linspace(0, 1, channels // 2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(channels * columns, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor, present: Tensor) -> Tensor:
        angle = value.reshape(value.shape[0], -1, 1).to(self.frequencies.dtype) * self.frequencies
        out = self.mlp(torch.cat([angle.cos(), angle.sin()], -1).flatten(1))
        return torch.where(present[:, None], out, 0.0)


class FieldNetwork(nn.Module):
    """A network on a regular grid; subclasses give `body(x [B, *n, C], c [B, embed]) -> [B, *n, C']`.

    channels_in: channels of the noised target and of the previous frames together; channels_out: of the prediction.
    conditions: names of scalars in `ctx.cond` (or name -> dimension). `patch` points along each axis become channels.
    `multiple` is what the number of points along each axis must be divisible by, patches aside. With
    `self_conditioning` the last estimate enters as well.
    """

    def __init__(self, channels_in: int, channels_out: int, dims: int, padding: str, embed: int,
                 conditions: Sequence[str] | Mapping[str, int] | None, component: str, patch: int, multiple: int,
                 clocks: int, self_conditioning: bool) -> None:
        super().__init__()
        if dims not in (1, 2, 3):
            raise UsageError(f"Networks on grids exist in 1 to 3 dimensions, not {dims}.")
        if patch < 1:
            raise UsageError(f"A patch has at least one point, not {patch}.")
        self.padding = chosen(padding, PADDINGS, "padding")
        self.channels_in, self.channels_out, self.dims = channels_in, channels_out, dims
        self.component, self.patch, self.multiple = component, patch, multiple * patch
        self.self_conditioning = self_conditioning
        self.folded_in = (channels_in + (channels_out if self_conditioning else 0)) * patch**dims
        self.folded_out = channels_out * patch**dims
        self.time = TimeEmbedding(embed, columns=clocks)
        sizes = dict(conditions) if isinstance(conditions, Mapping) else {name: 1 for name in conditions or ()}
        self.scalars = nn.ModuleDict({name: ScalarEmbedding(embed, columns=d) for name, d in sizes.items()})

    def body(self, x: Tensor, c: Tensor) -> Tensor:
        raise ScidiffError(f"{type(self).__name__} has no body().")

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        z = features[self.component].to(self.time.mlp[0].weight.dtype)
        space = z.shape[2:]
        if len(space) != self.dims or any(n % self.multiple for n in space):
            raise UsageError(f"The network takes {self.dims}-D fields whose axes are multiples of {self.multiple} "
                             f"points, not {'x'.join(map(str, space))}.")
        out = self.body(fold(self.gathered(z, ctx, previous), self.patch), self.vector(t, ctx))
        return {self.component: unfold(out, self.patch)}

    def gathered(self, z: Tensor, ctx: Context, previous: dict[str, Tensor] | None) -> Tensor:
        """The noised target [B, C, *space] with the previous frames, zero where absent, and the last estimate."""
        parts, past = [z], self.channels_in - z.shape[1]
        if past < 0:
            raise UsageError(f"The network was made for {self.channels_in} channels; the field has {z.shape[1]}.")
        if past and PREVIOUS in ctx.cond:
            value, present = ctx.cond[PREVIOUS]
            if prod(value.shape[1:]) != past * prod(z.shape[2:]):
                raise UsageError(f"The network was made for {past} channels of previous frames on {list(z.shape[2:])} "
                                 f"points; it was given {list(value.shape[1:])}.")
            value = value.reshape(z.shape[0], past, *z.shape[2:]).to(z.dtype)
            parts.append(torch.where(present.reshape(-1, *[1] * (z.dim() - 1)), value, 0.0))
        elif past:
            parts.append(z.new_zeros(z.shape[0], past, *z.shape[2:]))
        if self.self_conditioning:
            shape = (z.shape[0], self.channels_out, *z.shape[2:])
            parts.append(z.new_zeros(shape) if previous is None else previous[self.component].to(z.dtype))
        return torch.cat(parts, 1) if len(parts) > 1 else z

    def vector(self, t: Tensor, ctx: Context) -> Tensor:
        """Time and scalars [B, embed]."""
        c = self.time(t)
        for name, embedding in self.scalars.items():
            if name in ctx.cond:
                c = c + embedding(*ctx.cond[name])
        return c
