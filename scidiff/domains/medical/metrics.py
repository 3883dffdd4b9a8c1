"""How close a volume is to the truth, plane by plane, and to its measurement.

    PSNR = 10 log10(range^2 / mean |x - truth|^2)                                          of each slice, in dB
    SSIM = mean of (2 m_x m_y + c1)(2 v_xy + c2) / ((m_x^2 + m_y^2 + c1)(v_x + v_y + c2))  of each slice

with local means m and (co)variances v under a Gaussian window of standard deviation 1.5 pixels, 11 x 11 pixels wide,
where it lies inside of the slice; c1 = (0.01 range)^2, c2 = (0.03 range)^2 (Wang et al. 2004). Along a side shorter
than 11 pixels the window is the longest odd one that fits. `data_range` is stated by the caller (1 for values in
[0, 1]), never read off the data. Complex images are compared by their magnitudes.

Axial slices of [Z, C, Y, X] are [Y, X], coronal ones [Z, X], sagittal ones [Z, Y]. Neighbouring slices resemble each
other, so an interval from resampled slices is too narrow; resampled `block`s of neighbours mend that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator
from scidiff.core.statistics import Estimate, bootstrap
from scidiff.domains.medical.streaming import CHUNK, OnVolumes

Score = Callable[[Tensor, Tensor, float], Tensor]
PLANES = ("axial", "coronal", "sagittal")
WINDOW, STD = 11, 1.5


def _pair(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 magnitudes or values, [B, C, H, W]."""
    if x.shape != truth.shape or x.dim() != 4:
        raise UsageError(f"A volume [Z, C, Y, X] is compared with one of its shape, not {tuple(x.shape)} with "
                         f"{tuple(truth.shape)}.")
    a, b = (v.abs() if v.is_complex() else v for v in (x, truth))
    return a.double(), b.double()


def psnr(x: Tensor, truth: Tensor, data_range: float = 1.0) -> Tensor:
    """PSNR of each slice of [B, C, H, W], float64 [B]; infinite where they agree."""
    a, b = _pair(x, truth)
    return 10.0 * torch.log10(data_range**2 / (a - b).square().flatten(1).mean(1))


def window(length: int, std: float = STD, width: int = WINDOW) -> Tensor:
    """Gaussian weights of sum 1 over at most `width` of `length` pixels, an odd number, float64."""
    width = min(width, length - 1 + length % 2)
    weight = torch.exp(-0.5 * ((torch.arange(width, dtype=torch.float64) - (width - 1) / 2) / std) ** 2)
    return weight / weight.sum()


def _local(x: Tensor) -> Tensor:
    """Means under the window wherever it fits, [B, C, H', W']."""
    for dim in (-2, -1):
        weights = window(x.shape[dim]).tolist()
        fits = x.shape[dim] - len(weights) + 1
        x = sum((x.narrow(dim, k, fits) * w for k, w in enumerate(weights[1:], 1)), x.narrow(dim, 0, fits) * weights[0])
    return x


def ssim(x: Tensor, truth: Tensor, data_range: float = 1.0) -> Tensor:
    """SSIM of each slice of [B, C, H, W], the mean over channels, float64 [B]."""
    a, b = _pair(x, truth)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for p, q in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        mp, mq = _local(p), _local(q)
        vp, vq, cov = _local(p * p) - mp * mp, _local(q * q) - mq * mq, _local(p * q) - mp * mq
        value = (2 * mp * mq + c1) * (2 * cov + c2) / ((mp * mp + mq * mq + c1) * (vp + vq + c2))
        found.append(value.flatten(1).mean(1))
    return torch.cat(found)


def nrmse(x: Tensor, truth: Tensor) -> float:
    """|x - truth| / |truth| of a whole volume."""
    a, b = _pair(x, truth)
    return float((a - b).norm() / b.norm())


def plane(volume: Tensor, name: str) -> Tensor:
    """The slices [slices, C, H, W] of a volume [Z, C, Y, X] across z (axial), y (coronal) or x (sagittal)."""
    if name not in PLANES:
        raise UsageError(f"Slices are {', '.join(PLANES)}, not {name!r}.")
    return {"axial": volume, "coronal": volume.permute(2, 1, 0, 3), "sagittal": volume.permute(3, 1, 0, 2)}[name]


def by_plane(score: Score, x: Tensor, truth: Tensor, data_range: float = 1.0, least: float = 0.05) -> dict[str, Tensor]:
    """A score of the slices in each plane whose true maximum exceeds `least` times the range, float64 [slices]."""
    found = {}
    for name in PLANES:
        a, b = plane(x, name), plane(truth, name)
        filled = b.abs().flatten(1).amax(1) > least * data_range
        found[name] = score(a[filled], b[filled], data_range) if bool(filled.any()) else truth.new_zeros(0).double()
    return found


def _blocks(values: Tensor, block: int, draws: int, seed: int, level: float) -> Estimate:
    parts = values.cpu().split(block)
    rows = torch.tensor([[float(part.sum()), len(part)] for part in parts], dtype=torch.float64)
    return bootstrap(lambda picked: picked[:, 0].sum() / picked[:, 1].sum(), rows, draws, seed, level)


def mean_score(values: Tensor, block: int = 1, draws: int = 1000, seed: int = 0, level: float = 0.95) -> Estimate:
    """The mean over slices with its bootstrap interval (blocks of neighbouring slices are resampled)."""
    return _blocks(_slices(values), block, draws, seed, level)


def paired(values: Tensor, others: Tensor, block: int = 1, draws: int = 1000, seed: int = 0,
           level: float = 0.95) -> Estimate:
    """The mean of values - others over the same slices with its bootstrap interval: what one method has on another."""
    if values.shape != others.shape:
        raise UsageError(f"Methods are compared on the same slices, not on {len(values)} and {len(others)}.")
    return _blocks(_slices(values) - _slices(others), block, draws, seed, level)


def _slices(values: Tensor) -> Tensor:
    if values.dim() != 1 or not len(values):
        raise UsageError(f"A mean over slices needs one score a slice, not {tuple(values.shape)}.")
    return values.double()


def residual(x: Tensor, y: Tensor, operator: LinearOperator, chunk: int | None = CHUNK) -> Tensor:
    """|A x - y| of each slice of a volume [Z, C, Y, X], float64 [Z]; of the volume [1], where A measures volumes."""
    on = OnVolumes(operator, y, chunk)
    norms = on.misfit(x).sqrt()
    return norms[:1] if on.whole else norms


def residual_ratio(x: Tensor, y: Tensor, operator: LinearOperator, noise: float, chunk: int | None = CHUNK) -> Tensor:
    """|A x - y| / (noise sqrt(m)) of each slice, m real numbers of standard deviation `noise`: about 1 for the truth.

    Well below 1, a reconstruction follows the noise.
    """
    if not noise > 0:
        raise UsageError(f"A residual is compared with noise of a positive standard deviation, not {noise:g}.")
    return residual(x, y, operator, chunk) / (noise * math.sqrt(OnVolumes(operator, y, chunk).numbers))
