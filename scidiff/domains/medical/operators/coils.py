"""Coil maps S [C, Y, X]: a simulated birdcage, and ESPIRiT's estimate from the fully sampled centre of k-space.

Birdcage: C straight wires parallel to z on a circle. With z = x + i y, the rotating field of a wire at w is
proportional to 1 / (z - w) (Biot and Savart); scaled to 1 at the centre, S_c = 1 / (1 - z / w_c). Maps are divided by
the root of sum_c |S_c|^2, so that A^T A of a fully sampled scan is 1.

ESPIRiT (Uecker et al. 2014): patches of k x k samples of all coils, taken from the centre, span a space of low
dimension with the projector P. Averaged over the patches that contain a sample, P maps k-space to itself; in the image
it is one C x C matrix a pixel,

    G(r)_cd = k^-2 sum_D exp(-2 pi i D r / n) sum_j P_(c, j), (d, j + D),       D from -(k - 1) to k - 1 on both axes,

whose eigenvalues lie in [0, 1]. Where there is signal G(r) S(r) = S(r): the maps are its eigenvectors at eigenvalue 1,
known up to a phase at each pixel. That phase is chosen such that the combination of coils that holds most of the
centre's energy (its largest coefficient positive) sees a positive value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.medical.operators.masks import acquired, calibration_size

_PIECE = 1 << 22  # entries of G worked off at a time


def birdcage(size: Sequence[int], coils: int, radius: float = 1.5, dtype: torch.dtype = torch.complex64) -> Tensor:
    """Maps [C, Y, X] of `coils` wires on a circle of `radius` half widths of the image (its longer side)."""
    height, width = int(size[0]), int(size[1])
    half = max(height, width) / 2
    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / half for n in (height, width))
    if coils < 1 or radius <= math.hypot(float(y[-1]), float(x[-1])):
        raise UsageError(f"A birdcage has at least one coil and a radius beyond the corners of the image, not {coils} "
                         f"and {radius:g}.")
    z = torch.complex(*torch.broadcast_tensors(x, y[:, None]))
    angle = torch.arange(coils, dtype=torch.float64) * (2 * math.pi / coils)
    place = torch.polar(torch.full_like(angle, radius), angle)
    maps = 1 / (1 - z / place[:, None, None])
    return (maps / maps.abs().square().sum(0).sqrt()).to(dtype)


def espirit(kspace: Tensor, calibration: int | Sequence[int] | None = None, kernel: int = 6, threshold: float = 0.02,
            crop: float = 0.9) -> tuple[Tensor, Tensor]:
    """(maps [C, Y, X], largest eigenvalue of G [Y, X] float64) from k-space [C, Y, X], DC at (Y // 2, X // 2).

    `calibration` is the size of the centre, found where None (24 on each side at most). Directions of patches weaker
    than `threshold` of the strongest are noise; maps are zero where the eigenvalue is below `crop`. A scan
    [Z, C, Y, X] gives [Z, ...] of both.
    """
    if kspace.dim() == 4:
        both = [espirit(one, calibration, kernel, threshold, crop) for one in kspace]
        return torch.stack([maps for maps, _ in both]), torch.stack([values for _, values in both])
    block = centre(kspace, calibration)
    coils, size = len(block), kspace.shape[1:]
    if min(block.shape[1:]) < kernel + 2:
        raise UsageError(f"ESPIRiT with patches of {kernel} x {kernel} samples needs a calibration centre larger than "
                         f"that, not {block.shape[1]} x {block.shape[2]}.", "Take a smaller kernel or simulated maps.")
    response = _response(block, kernel, threshold)
    reach = torch.arange(1 - kernel, kernel, dtype=torch.float64)
    wave_y, wave_x = (torch.exp(-2j * math.pi / n * reach[:, None] * (torch.arange(n) - n // 2)).to(block.device)
                      for n in size)
    rows = max(1, _PIECE // (coils**2 * size[1]))
    vectors, values = [], []
    for start in range(0, size[0], rows):
        g = torch.einsum("cdpq,py,qx->yxcd", response, wave_y[:, start : start + rows], wave_x)
        value, vector = torch.linalg.eigh(g)
        values.append(value[..., -1])
        vectors.append(vector[..., -1])
    maps, value = torch.cat(vectors).permute(2, 0, 1), torch.cat(values)
    samples = block.flatten(1)
    strongest = torch.linalg.eigh(samples @ samples.mH).eigenvectors[:, -1]
    strongest = strongest * torch.sgn(strongest[strongest.abs().argmax()]).conj()
    phase = torch.sgn((strongest.conj()[:, None, None] * maps).sum(0))
    maps = torch.where(value >= crop, maps * phase.conj(), 0.0)
    return maps.to(kspace.dtype).contiguous(), value


def centre(kspace: Tensor, calibration: int | Sequence[int] | None = None) -> Tensor:
    """The fully sampled centre [C, h, w] of k-space [C, Y, X], complex128."""
    if kspace.dim() != 3 or not kspace.is_complex():
        raise UsageError(f"k-space is complex with the axes coil, y, x, not {kspace.dtype} of shape "
                         f"{tuple(kspace.shape)}.")
    mask = acquired(kspace)
    if calibration is None:
        h, w = (min(24, n) for n in calibration_size(mask))
    else:
        h, w = (calibration,) * 2 if isinstance(calibration, int) else (int(n) for n in calibration)
    top, left = kspace.shape[1] // 2 - h // 2, kspace.shape[2] // 2 - w // 2
    inside = top >= 0 and left >= 0 and h > 0 and w > 0
    if not inside or not bool(mask[top : top + h, left : left + w].all()):
        raise UsageError(f"The centre of this k-space is not fully sampled over {h} x {w} samples.",
                         f"It is over {' x '.join(map(str, calibration_size(mask)))}.")
    return kspace[:, top : top + h, left : left + w].to(torch.complex128)


def _response(block: Tensor, kernel: int, threshold: float) -> Tensor:
    """sum_j P_(c, j), (d, j + D) / k^2, complex128 [C, C, 2k - 1, 2k - 1]."""
    coils, k = len(block), kernel
    patches = block.unfold(1, k, 1).unfold(2, k, 1).permute(0, 3, 4, 1, 2).reshape(coils * k * k, -1)
    u, s, _ = torch.linalg.svd(patches, full_matrices=False)
    u = u[:, s > threshold * s[0]]
    projector = (u @ u.mH).view(coils, k, k, coils, k, k)
    response = torch.zeros(coils, coils, 2 * k - 1, 2 * k - 1, dtype=block.dtype, device=block.device)
    for a in range(k):
        for b in range(k):
            response[:, :, k - 1 - a : 2 * k - 1 - a, k - 1 - b : 2 * k - 1 - b] += projector[:, a, b]
    return response / k**2
