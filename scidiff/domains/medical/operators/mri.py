"""Cartesian MRI, y_c = M F (S_c x): coil maps S_c, the centred orthonormal Fourier transform F, a mask M of k-space.

    x  [B, 1, Y, X]   slices, complex, or real where the image is known to be (a magnitude): A^T then ends in Re
    y  [B, C, m]      the m measured samples of each coil, in the order of `mask.flatten()`; nothing stands for the
                      rest, so noise and residuals count what was measured

Pixel r and sample k are counted from (Y // 2, X // 2): F x (k) = sum_r x(r) exp(-2 pi i k r / n) / sqrt(n) along each
axis. One coil is the case without maps. Closed forms (SVD) exist for

    one coil of modulus 1, complex image    A A^T = 1: all singular values are 1
    one coil, real image                    a sample k tells about -k: s(k)^2 = (M(k) + M(-k)) / 2 on Hermitian spectra
    all of k-space measured                 s^2 = sum_c |S_c|^2, pixel by pixel

and conjugate gradients serve the others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import SVD, LinearOperator
from scidiff.domains.medical.operators.coils import birdcage
from scidiff.domains.medical.operators.masks import Mask, acquired


def fft2c(x: Tensor) -> Tensor:
    """Centred orthonormal Fourier transform of the last two axes."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, (-2, -1)), norm="ortho"), (-2, -1))


def ifft2c(k: Tensor) -> Tensor:
    """The inverse, and adjoint, of `fft2c`."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, (-2, -1)), norm="ortho"), (-2, -1))


class CoilOperator(LinearOperator):
    """x [B, 1, Y, X] -> y [B, C, m]: the image as each coil sees it, then samples of its spectrum (by subclasses).

    `maps` is [C, Y, X], or [Z, C, Y, X] with maps of their own for the Z slices of a volume (a batch then holds whole
    volumes, one after the other); None is one coil that sees everything alike.
    """

    def __init__(self, size: Sequence[int], samples: int, maps: Tensor | None, real: bool) -> None:
        self.size = (int(size[0]), int(size[1]))
        self.maps = None if maps is None else self._checked(maps)
        super().__init__((1, *self.size), (1 if self.maps is None else self.maps.shape[1], samples),
                         torch.float32 if real else torch.complex64, torch.complex64)

    def _checked(self, maps: Tensor) -> Tensor:
        """Complex [Z or 1, C, Y, X]."""
        if maps.dim() not in (3, 4) or tuple(maps.shape[-2:]) != self.size:
            raise UsageError(f"Coil maps of {self.size[0]} x {self.size[1]} pixels have the axes C, Y, X or "
                             f"Z, C, Y, X, not the shape {tuple(maps.shape)}.")
        maps = maps if maps.is_complex() else maps.to(maps.dtype.to_complex())
        return maps if maps.dim() == 4 else maps[None]

    @property
    def slices(self) -> int:
        """Slices that have maps of their own; 1 where all share them."""
        return 1 if self.maps is None else len(self.maps)

    def _encode(self, images: Tensor) -> Tensor:
        """Samples [B, C, m] of coil images [B, C, Y, X]."""
        raise NotImplementedError

    def _decode(self, y: Tensor) -> Tensor:
        """The adjoint of `_encode`."""
        raise NotImplementedError

    def _maps(self, like: Tensor) -> Tensor | None:
        if self.maps is None:
            return None
        volumes, rest = divmod(len(like), self.slices)
        if rest:
            raise UsageError(f"{self} has coil maps for {self.slices} slices; a batch of {len(like)} is no whole "
                             "number of such volumes.", "Take the operator's slab(start, stop) for a part of them.")
        maps = self.maps.to(like.device, like.dtype if like.is_complex() else like.dtype.to_complex())
        return maps if self.slices == 1 or volumes == 1 else maps.repeat(volumes, 1, 1, 1)

    def _forward(self, x: Tensor) -> Tensor:
        maps = self._maps(x)
        return self._encode(x if maps is None else x * maps)

    def _adjoint(self, y: Tensor) -> Tensor:
        images, maps = self._decode(y), self._maps(y)
        x = images if maps is None else (images * maps.conj()).sum(1, keepdim=True)
        return x if self.dtype.is_complex else x.real.contiguous()

    def _largest(self, iterations: int, tolerance: float, device: torch.device) -> float:
        if self.slices == 1:
            return super()._largest(iterations, tolerance, device)
        return max(self.slab(z, z + 1)._largest(iterations, tolerance, device) for z in range(self.slices))

    def slab(self, start: int, stop: int) -> LinearOperator:
        if self.slices == 1:
            return self
        assert self.maps is not None
        part = copy.copy(self)
        part.maps, part._norm = self.maps[start:stop], None
        if not part.slices:
            raise UsageError(f"{self} has {self.slices} slices, none of them from {start} to {stop}.")
        return part


class MRI(CoilOperator):
    """Cartesian MRI of slices: `mask` [Y, X] (bool) says what is measured, `maps` what the coils see."""

    def __init__(self, mask: Tensor, maps: Tensor | None = None, real: bool = False) -> None:
        if mask.dim() != 2 or not bool(mask.any()):
            raise UsageError(f"A mask of k-space has the axes y, x and measures something; this one has the shape "
                             f"{tuple(mask.shape)} and {int((mask != 0).sum())} samples.")
        self.mask = mask.bool()
        self.index = self.mask.flatten().nonzero()[:, 0]
        super().__init__(mask.shape, len(self.index), maps, real)

    def _encode(self, images: Tensor) -> Tensor:
        return fft2c(images).flatten(-2)[..., self.index.to(images.device)]

    def _decode(self, y: Tensor) -> Tensor:
        return ifft2c(self.grid(y))

    def grid(self, y: Tensor) -> Tensor:
        """Measurements [..., m] on the grid of k-space [..., Y, X], zeros where nothing was measured."""
        whole = y.new_zeros(*y.shape[:-1], self.mask.numel())
        whole[..., self.index.to(y.device)] = y
        return whole.unflatten(-1, self.size)

    def samples(self, kspace: Tensor) -> Tensor:
        """The measured samples [B, C, m] of k-space [C, Y, X] or [B, C, Y, X], DC at (Y // 2, X // 2)."""
        kspace = kspace if kspace.dim() == 4 else kspace[None]
        wanted = (self.out_shape[0], *self.size)
        if tuple(kspace.shape[1:]) != wanted:
            raise UsageError(f"{self} takes k-space of shape {wanted}, not {tuple(kspace.shape[1:])}.")
        return kspace.flatten(-2)[..., self.index.to(kspace.device)]

    @property
    def acceleration(self) -> float:
        """Samples of k-space for each measured one."""
        return self.mask.numel() / len(self.index)

    def svd(self) -> SVD | None:
        if self._one_coil() and self.dtype.is_complex:
            ones = torch.ones(self.out_shape, dtype=torch.float64)
            return SVD(ones, lambda c: c, lambda y: y, self._adjoint, self._forward)
        if self.maps is None:
            return self._hermitian()
        return self._pixelwise() if bool(self.mask.all()) and self.slices == 1 else None

    def _one_coil(self) -> bool:
        """Whether one coil of modulus 1 measures."""
        if self.maps is None or self.maps.shape[1] > 1:
            return self.maps is None
        return bool(((self.maps.abs() - 1).abs() <= 8 * torch.finfo(self.maps.real.dtype).eps).all())

    def _hermitian(self) -> SVD:
        """Of a real image: coefficients are its spectrum, so Hermitian, c(-k) = conj c(k)."""
        rows, columns = ((2 * (n // 2) - torch.arange(n)) % n for n in self.size)

        def mirrored(k: Tensor) -> Tensor:
            return k[..., rows.to(k.device)[:, None], columns.to(k.device)]

        s = ((self.mask.double() + mirrored(self.mask).double()) / 2).sqrt()[None]
        inverse = torch.where(s > 0, 1.0 / s.clamp(min=0.5), 0.0)

        def by_inverse(c: Tensor) -> Tensor:
            return c * inverse.to(c.device, c.real.dtype)

        def ut(y: Tensor) -> Tensor:
            k = self.grid(y)
            return by_inverse((k + mirrored(k).conj()) / 2)

        return SVD(s, lambda c: self.samples(by_inverse(c)), ut, lambda c: ifft2c(c).real.contiguous(), fft2c)

    def _pixelwise(self) -> SVD:
        """Where all of k-space is measured: A^T A weighs each pixel by itself."""
        assert self.maps is not None
        s = self.maps.abs().double().square().sum(1).sqrt()
        inverse = torch.where(s > 0, 1.0 / s.clamp(min=1e-300), 0.0)

        def by_inverse(c: Tensor) -> Tensor:
            return c * inverse.to(c.device, c.real.dtype)

        return SVD(s, lambda c: self._forward(by_inverse(c)), lambda y: by_inverse(self._adjoint(y)), lambda c: c,
                   lambda x: x)


def cartesian(size: Sequence[int], kind: str = "random", acceleration: float = 4.0,
              calibration: float | int | None = None, seed: int = 0, axis: str = "x", std: float = 1 / 6,
              density: float = 2.0, coils: int = 1, real: bool = False) -> MRI:
    """A simulated scan: a mask (see `Mask`) and, for more than one of them, the coils of a birdcage."""
    mask = Mask(kind, acceleration, calibration, seed, axis, std, density).draw(size)
    return MRI(mask, birdcage(size, coils) if coils > 1 else None, real)


def measured(kspace: Tensor, maps: Tensor | None = None, real: bool = False) -> tuple[MRI, Tensor]:
    """(the operator, its measurement [B, C, m]) of a scan [C, Y, X] or [Z, C, Y, X] with zeros where nothing was
    measured; maps as of `espirit`."""
    operator = MRI(acquired(kspace), maps, real)
    return operator, operator.samples(kspace)


def intensity(operator: LinearOperator, y: Tensor, share: float = 0.99) -> float:
    """The `share` quantile of |A^T y| over all slices: dividing y by it brings images of any scanner to one scale."""
    values = operator.adjoint(y).abs().flatten()
    level = float(values.kthvalue(max(1, round(share * len(values)))).values)
    if level == 0.0:
        raise UsageError("This measurement is zero, so it has no scale.")
    return level
