"""The Fourier neural operator on periodic grids, in one and two dimensions.

    K v = F^-1[ R_k F[v]_k  for |k| < modes, 0 beyond ]              R_k: a complex matrix over the channels
    layer   h = K v + W v;   v + W0 act(h (1 + s(c)) + b(c))         W0 starts at zero

F carries the factor 1/N, so K is the same operator on every grid that resolves its modes: a network trained on one
resolution may be asked on another (Li et al. 2021, arXiv 2010.08895). Equivariant under every shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.errors import UsageError
from scidiff.nn.field import ACTIVATIONS, FieldNetwork, chosen


class SpectralConv(nn.Module):
    """[B, *n, C] -> [B, *n, C']: one matrix for each wavenumber below `modes`, the same on every grid.

    The weight is real, [rows, modes, C, C', 2] (1-D: without rows): wavenumbers -(modes - 1) ... modes - 1 along the
    first of two axes, 0 ... modes - 1 along the last.
    """

    def __init__(self, channels_in: int, channels_out: int, dims: int, modes: int) -> None:
        super().__init__()
        if modes < 1:
            raise UsageError(f"A spectral convolution has at least one mode, not {modes}.")
        self.dims, self.modes = dims, modes
        kept = (modes,) if dims == 1 else (2 * modes - 1, modes)
        self.weight = nn.Parameter(torch.empty(*kept, channels_in, channels_out, 2))
        with torch.no_grad():
            self.weight.normal_(std=(2 * channels_in) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        space, m = x.shape[1:-1], self.modes
        if m > min(space) // 2:
            raise UsageError(f"A spectral convolution of {m} modes needs {2 * m} points along every axis; the field "
                             f"has {min(space)}.", "Take fewer modes.")
        weight = torch.view_as_complex(self.weight)
        if self.dims == 1:
            v = torch.fft.rfft(x, dim=1, norm="forward")[:, :m]
            v = torch.einsum("bkc,kcd->bkd", v, weight)
            return torch.fft.irfft(F.pad(v, (0, 0, 0, space[0] // 2 + 1 - m)), n=space[0], dim=1, norm="forward")
        v = torch.fft.rfft2(x, dim=(1, 2), norm="forward")[:, :, :m]
        v = torch.cat([v[:, space[0] - m + 1:], v[:, :m]], 1)
        v = torch.einsum("bjkc,jkcd->bjkd", v, weight)
        v = F.pad(v, (0, 0, 0, space[1] // 2 + 1 - m, 0, space[0] - 2 * m + 1)).roll(1 - m, 1)
        return torch.fft.irfft2(v, s=space, dim=(1, 2), norm="forward")


class Layer(nn.Module):
    """A spectral and a pointwise map, conditioned, beside an identity."""

    def __init__(self, width: int, dims: int, modes: int, act: str) -> None:
        super().__init__()
        self.spectral, self.point = SpectralConv(width, width, dims, modes), nn.Linear(width, width)
        self.act, self.out = ACTIVATIONS[act](), nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.reshape(x.shape[0], *[1] * (x.dim() - 2), -1).chunk(2, -1)
        return x + self.out(self.act(torch.addcmul(shift, self.spectral(x) + self.point(x), 1 + scale)))


class FNO(FieldNetwork):
    """Fourier neural operator on periodic fields.

    modes: wavenumbers along each axis; width: channels; layers: how many. embed: width of the embedding of time and
    scalars. With `patch` the modes count on the folded grid.
    """

    def __init__(self, channels_in: int, channels_out: int, dims: int = 1, width: int = 48, modes: int = 24,
                 layers: int = 4, patch: int = 1, act: str = "gelu", embed: int = 64,
                 conditions: Sequence[str] | Mapping[str, int] | None = None, component: str = "u", clocks: int = 1,
                 self_conditioning: bool = False, padding: str = "periodic") -> None:
        if padding != "periodic":
            raise UsageError("A Fourier neural operator works on periodic fields only.",
                             "Take a U-Net or a dilated network.")
        super().__init__(channels_in, channels_out, dims, padding, embed, conditions, component, patch, 1, clocks,
                         self_conditioning)
        chosen(act, tuple(ACTIVATIONS), "activation")
        self.enter = nn.Linear(self.folded_in, width)
        self.layers = nn.ModuleList(Layer(width, dims, modes, act) for _ in range(layers))
        self.act, self.leave = ACTIVATIONS[act](), nn.Linear(width, self.folded_out)
        self.widen = nn.Linear(width, width)
        self.modulation = nn.Linear(embed, 2 * width * layers)
        for layer in (self.leave, self.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def body(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.enter(x)
        for layer, modulation in zip(self.layers, self.modulation(F.silu(c)).chunk(len(self.layers), -1), strict=True):
            x = layer(x, modulation)
        return self.leave(self.act(self.widen(x)))
