"""MRI off the grid: a Fourier transform at any place of k-space by Kaiser-Bessel gridding, in torch alone.

With pixels r counted from n // 2 and places k in cycles per pixel, in [-1/2, 1/2),

    y(k) = N^-1/2 sum_r x(r) exp(-2 pi i k . r),        N = Y X  (on the grid k = j / n this is the orthonormal FFT).

The image is divided by the transform of a window, padded to G = `oversampling` n points and transformed; y(k) is the
sum of `width` grid points a side around k G, weighted by the window

    w(u) = I0(beta sqrt(1 - (2 u / J)^2)) for |u| <= J / 2,  W(f) = J sinh(q) / q,  q^2 = beta^2 - (pi J f)^2,

with J = width, beta = pi sqrt((J / s)^2 (s - 1/2)^2 - 0.8), s = G / n (Beatty, Nishimura and Pauly 2005). The error
falls by the factor exp(pi sqrt(1 - 1/s)), 9 at s = 2, with each point of width. The weights are a sparse matrix whose
transpose serves the adjoint, so the adjoint is exact whatever the width; they are float32, which bounds the accuracy at
about 1e-6.

Radial scans are denser in the middle of k-space. The area of k-space that each sample stands for, |k| dk dtheta (the
ramp; a disc of diameter dk in the middle), makes the weighted adjoint an approximate inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.medical.operators.coils import birdcage
from scidiff.domains.medical.operators.fbp import angular_weights
from scidiff.domains.medical.operators.masks import GOLDEN
from scidiff.domains.medical.operators.mri import CoilOperator
from scidiff.domains.medical.operators.table import Rows

_PIECE = 1 << 23  # complex numbers of the oversampled grids worked off at a time


@dataclass(frozen=True)
class KaiserBessel:
    """The window of `width` grid points J for grids `oversampling` times as fine as the image."""

    width: int
    oversampling: float

    @property
    def beta(self) -> float:
        return math.pi * math.sqrt((self.width / self.oversampling) ** 2 * (self.oversampling - 0.5) ** 2 - 0.8)

    def weight(self, u: Tensor) -> Tensor:
        """w(u) / w(0), u in grid points, float64."""
        inside = (1 - (2 * u / self.width) ** 2).clamp(min=0.0).sqrt() * self.beta
        value = torch.special.i0e(inside) * torch.exp(inside - self.beta)
        return torch.where(2 * u.abs() <= self.width, value, 0.0) / self._peak

    def transform(self, f: Tensor) -> Tensor:
        """The Fourier transform of `weight` at f cycles per grid point, float64; for |f| < 1/2 of a period."""
        q = (self.beta**2 - (math.pi * self.width * f) ** 2).clamp(min=1e-300).sqrt()
        value = (torch.exp(q - self.beta) - torch.exp(-q - self.beta)) / (2 * q)
        return self.width * value / self._peak

    @property
    def _peak(self) -> float:
        return float(torch.special.i0e(torch.tensor(self.beta, dtype=torch.float64)))


class NonCartesianMRI(CoilOperator):
    """Slices x [B, 1, Y, X] -> samples y [B, C, m] at the places `trajectory` [m, 2] (ky, kx), cycles per pixel."""

    def __init__(self, size: Sequence[int], trajectory: Tensor, maps: Tensor | None = None, real: bool = False,
                 width: int = 6, oversampling: float = 2.0) -> None:
        trajectory = torch.as_tensor(trajectory, dtype=torch.float64)
        if trajectory.dim() != 2 or trajectory.shape[1] != 2 or not len(trajectory):
            raise UsageError(f"A trajectory is a list of places (ky, kx), not of shape {tuple(trajectory.shape)}.")
        if not float(trajectory.abs().max()) <= 0.5:
            raise UsageError(f"Places of k-space lie within 0.5 cycles per pixel; these reach "
                             f"{float(trajectory.abs().max()):g}.", "Divide by the number of pixels?")
        if width < 2 or not 1.25 <= oversampling <= 4:
            raise UsageError(f"Gridding takes a width of 2 points or more and an oversampling of 1.25 to 4, not "
                             f"{width} and {oversampling:g}.")
        super().__init__(size, len(trajectory), maps, real)
        self.trajectory = trajectory
        self.fine = tuple(2 * math.ceil(oversampling * n / 2) for n in self.size)
        if min(self.fine) < width:
            raise UsageError(f"An image of {self.size} pixels is too small for a gridding width of {width}.")
        self.windows = tuple(KaiserBessel(width, g / n) for g, n in zip(self.fine, self.size, strict=True))
        self._tables: dict[torch.device, tuple[Rows, Rows]] = {}

    def _table(self, device: torch.device) -> tuple[Rows, Rows]:
        """(samples by grid points, grid points by samples), kept for each device."""
        if device not in self._tables:
            index, weight = [], []
            for axis, (g, window) in enumerate(zip(self.fine, self.windows, strict=True)):
                place = self.trajectory[:, axis] * g
                points = (place - window.width / 2).ceil()[:, None] + torch.arange(window.width)
                index.append(points.long() % g)
                weight.append(window.weight(place[:, None] - points))
            column = index[0][:, :, None] * self.fine[1] + index[1][:, None]
            weights = weight[0][:, :, None] * weight[1][:, None]
            counts = torch.full((len(column),), column[0].numel())
            rows = Rows.of(counts, column.flatten().int(), weights.flatten().float())
            self._tables[device] = rows.to(device), rows.transposed(math.prod(self.fine)).to(device)
        return self._tables[device]

    @cached_property
    def _pixels(self) -> tuple[Tensor, Tensor, Tensor]:
        """(row and column of each pixel on the fine grid, what its value is multiplied by [Y, X])."""
        offsets = [torch.arange(n) - n // 2 for n in self.size]
        factors = [1 / window.transform(r / g) for r, g, window in zip(offsets, self.fine, self.windows, strict=True)]
        rows, columns = (r % g for r, g in zip(offsets, self.fine, strict=True))
        return rows[:, None], columns, factors[0][:, None] * factors[1] / math.sqrt(math.prod(self.size))

    def _pieces(self, images: int) -> list[slice]:
        step = max(1, _PIECE // math.prod(self.fine))
        return [slice(start, start + step) for start in range(0, images, step)]

    def _encode(self, images: Tensor) -> Tensor:
        rows, columns, factor = (t.to(images.device) for t in self._pixels)
        flat = images.flatten(0, 1) * factor.to(images.real.dtype)
        flat = flat if flat.is_complex() else flat.to(flat.dtype.to_complex())
        table, _ = self._table(images.device)
        y = flat.new_empty(len(flat), len(self.trajectory))
        for piece in self._pieces(len(flat)):
            part = flat[piece]
            grid = part.new_zeros(len(part), *self.fine)
            grid[:, rows, columns] = part
            y[piece] = _by_table(table, torch.fft.fft2(grid).flatten(1))
        return y.unflatten(0, images.shape[:2])

    def _decode(self, y: Tensor) -> Tensor:
        rows, columns, factor = (t.to(y.device) for t in self._pixels)
        flat = y.resolve_conj().flatten(0, 1)
        _, table = self._table(y.device)
        images = flat.new_empty(len(flat), *self.size)
        for piece in self._pieces(len(flat)):
            grid = _by_table(table, flat[piece]).unflatten(1, self.fine)
            images[piece] = torch.fft.ifft2(grid, norm="forward")[:, rows, columns]
        return (images * factor.to(y.real.dtype)).unflatten(0, y.shape[:2])


def _by_table(table: Rows, values: Tensor) -> Tensor:
    """The real matrix `table` [m, n] on complex values [B, n]: [B, m]."""
    columns = torch.view_as_real(values).permute(1, 0, 2).flatten(1).contiguous()
    return torch.view_as_complex(table(columns).unflatten(1, (-1, 2)).permute(1, 0, 2).contiguous())


class RadialMRI(NonCartesianMRI):
    """Spokes through the centre of k-space, `readout` samples each (twice the longer side by default).

    Angles are evenly spaced over 180 degrees, or `golden`: 111.246 degrees from spoke to spoke. Samples are ordered
    spoke by spoke.
    """

    def __init__(self, size: Sequence[int], spokes: int, readout: int | None = None, golden: bool = False,
                 maps: Tensor | None = None, real: bool = False, width: int = 6, oversampling: float = 2.0) -> None:
        readout = 2 * max(int(n) for n in size) if readout is None else readout
        if spokes < 1 or readout < 2:
            raise UsageError(f"A radial scan has at least one spoke of two samples, not {spokes} of {readout}.")
        self.angles = torch.arange(spokes, dtype=torch.float64) * (GOLDEN if golden else math.pi / spokes)
        self.radii = (torch.arange(readout, dtype=torch.float64) - readout // 2) / readout
        places = self.radii[:, None] * torch.stack([self.angles.sin(), self.angles.cos()], -1)[:, None]
        super().__init__(size, places.flatten(0, 1), maps, real, width, oversampling)

    @property
    def density(self) -> Tensor:
        """The area of k-space that each sample stands for, in (cycles per pixel)^2, float64 [m]; pi / 4 in all."""
        step = 1 / len(self.radii)
        along = torch.where(self.radii == 0, step**2 / 4, self.radii.abs() * step)
        return (angular_weights(self.angles * (180 / math.pi), 180.0)[:, None] * along).flatten()

    def gridded(self, y: Tensor) -> Tensor:
        """The density-compensated adjoint N A^T (w y), [B, C, m] -> [B, 1, Y, X]: the image, as far as the spokes
        reach, where the squared moduli of the maps sum to one."""
        return self.adjoint(y * (self.density * math.prod(self.size)).to(y.device, y.real.dtype))


def radial(size: Sequence[int], spokes: int = 64, readout: int | None = None, golden: bool = False, coils: int = 1,
           real: bool = False, width: int = 6, oversampling: float = 2.0) -> RadialMRI:
    """A simulated radial scan; more than one coil stand as in a birdcage."""
    maps = birdcage(size, coils) if coils > 1 else None
    return RadialMRI(size, spokes, readout, golden, maps, real, width, oversampling)
