"""Filtered back projection of parallel and fan beams, and Feldkamp-Davis-Kress of cone beams.

Rows are filtered by the ramp |f|, band limited at the cell spacing d, sampled where it is exact, in space,

    h(0) = 1 / (4 d^2),   h(k) = -1 / (pi k d)^2 for odd k,   0 for even k

(padded to twice the length, so that nothing wraps around), optionally under a Hann window. Pixels then take the linear
interpolation of the filtered rows at their shadow, weighted by the angle each view stands for. Fans (Kak and Slaney
1988, chapter 3): a flat detector is scaled to the axis, its rows weighted by the cosine of the fan angle and the pixels
by (R / U)^2, U their distance from the source along the central ray; a curved one has rows weighted by R cos(gamma),
the kernel (gamma / sin gamma)^2 h(gamma) and pixels weighted by 1 / L^2. They ask for a full circle. FDK (1984) is the
flat fan with the cosine of the cone. These are inverses, not adjoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import FanCT, ParallelCT
from scidiff.domains.medical.operators.rays import Detector, axes


def ramp(cells: int, spacing: float, hann: bool = False, curved: bool = False) -> Tensor:
    """Frequency response [n/2 + 1] float64 of the ramp for rows padded to n >= 2 cells, a power of two.

    `curved` turns the kernel into that of equal angles `spacing` (radians) on a fan.
    """
    n = 1 << max(1, math.ceil(math.log2(2 * cells)))
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=torch.float64).round()
    kernel = torch.where(k.long() % 2 == 1, -1.0 / (math.pi * torch.where(k == 0, 1.0, k) * spacing) ** 2, 0.0)
    kernel[0] = 1.0 / (4.0 * spacing**2)
    if curved:
        angle = k * spacing
        inside = (k.abs() < cells) & (k != 0)
        kernel = kernel * torch.where(inside, (angle / torch.where(inside, angle.sin(), 1.0)) ** 2, 1.0)
    response = torch.fft.rfft(kernel).real * spacing
    return response * (0.5 + 0.5 * torch.cos(torch.linspace(0, math.pi, n // 2 + 1).double())) if hann else response


def filtered(y: Tensor, response: Tensor) -> Tensor:
    """Rows of y (last axis) convolved with the ramp, in the shape of y."""
    n = 2 * (len(response) - 1)
    spectrum = torch.fft.rfft(y, n=n) * response.to(y.device, y.dtype)
    return torch.fft.irfft(spectrum, n=n)[..., : y.shape[-1]]


def angular_weights(angles: Tensor, period: float) -> Tensor:
    """The angle in radians that each view stands for: half of the gaps to its neighbours.

    Wide gaps are cut at one and a half times the usual one, so that views over a limited range weigh as if there were
    no others.
    """
    order = torch.argsort(angles % period)
    place = (angles % period)[order]
    if len(place) == 1:
        return torch.full_like(place, period * math.pi / 180)
    gaps = torch.diff(place, append=place[:1] + period)
    usual = gaps[gaps > 1e-9].median() if bool((gaps > 1e-9).any()) else gaps.max()
    gaps = gaps.clamp(max=1.5 * float(usual))
    weights = torch.empty_like(place)
    weights[order] = 0.5 * (gaps + gaps.roll(1))
    return weights * (math.pi / 180)


def _pixels(size: tuple[int, int], spacing: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(x, y) of the pixel centres in mm, float64 [Y * X] each."""
    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * d for n, d in zip(size, spacing, strict=True))
    return x.repeat(len(y)), y.repeat_interleave(len(x))


def _interpolated(rows: Tensor, place: Tensor) -> Tensor:
    """rows [cells, B] at fractional cells [n], zero outside: [n, B]."""
    low = place.floor()
    share = (place - low).to(rows.dtype)[:, None]
    taps = low.long()
    out = torch.zeros(len(place), rows.shape[1], dtype=rows.dtype, device=rows.device)
    for index, weight in ((taps, 1 - share), (taps + 1, share)):
        seen = ((index >= 0) & (index < len(rows)))[:, None]
        out += torch.where(seen, rows[index.clamp(0, len(rows) - 1)] * weight, 0.0)
    return out


def _cell(detector: Detector, s: Tensor) -> Tensor:
    """The fractional cell at detector coordinate s."""
    return (s - detector.offset) / detector.spacing + (detector.cells - 1) / 2


def fbp(operator: ParallelCT | FanCT, y: Tensor, hann: bool = False) -> Tensor:
    """Sinograms [B, 1, views, cells] of a parallel or fan beam -> slices [B, 1, Y, X]."""
    if isinstance(operator, FanCT):
        return _fan(operator, y, hann)
    detector = operator.detector
    rows = filtered(y[:, 0], ramp(detector.cells, detector.spacing, hann)).permute(1, 2, 0).contiguous()
    along, _ = axes(operator.angles)
    px, py = (p.to(y.device) for p in _pixels(operator.size, operator.spacing))
    weights = angular_weights(operator.angles, 180.0).tolist()
    out = torch.zeros(len(px), len(y), dtype=y.dtype, device=y.device)
    for view, (c, s) in enumerate(along.tolist()):
        out += _interpolated(rows[view], _cell(detector, px * c + py * s)) * weights[view]
    return out.T.reshape(len(y), *operator.in_shape)


def _full_circle(angles: Tensor, name: str) -> Tensor:
    """Weights of views that go all the way round, half each as every line is seen twice."""
    place = torch.sort(angles % 360.0).values
    widest = float(torch.diff(place, append=place[:1] + 360.0).max())
    if widest > 180.0:
        raise UsageError(f"{name} needs views all round; these leave out {widest:.0f} degrees.",
                         "Reconstruct by least squares instead: operator.pinv(y).")
    return 0.5 * angular_weights(angles, 360.0)


def _fan(operator: FanCT, y: Tensor, hann: bool) -> Tensor:
    source, detector = operator.source, operator.detector
    weights, radius = _full_circle(operator.angles, "Fan beam FBP").tolist(), source.radius
    along, up = axes(operator.angles)
    px, py = (p.to(y.device) for p in _pixels(operator.size, operator.spacing))
    gamma = detector.positions / source.to_detector if source.curved else (
        detector.positions / source.to_detector).atan()
    if source.curved:
        response = ramp(detector.cells, detector.spacing / source.to_detector, hann, curved=True)
        before = radius * gamma.cos()
    else:
        response, before = ramp(detector.cells, detector.spacing / source.magnification, hann), gamma.cos()
    rows = filtered(y[:, 0] * before.to(y), response).permute(1, 2, 0).contiguous()
    out = torch.zeros(len(px), len(y), dtype=y.dtype, device=y.device)
    for view, ((ex, ey), (ux, uy)) in enumerate(zip(along.tolist(), up.tolist(), strict=True)):
        side, depth = px * ex + py * ey, radius - (px * ux + py * uy)
        if source.curved:
            place, share = torch.atan2(side, depth) * source.to_detector, 1.0 / (side**2 + depth**2)
        else:
            place, share = side / depth * source.to_detector, (radius / depth) ** 2
        out += _interpolated(rows[view], _cell(detector, place)) * (share * weights[view]).to(y.dtype)[:, None]
    return out.T.reshape(len(y), *operator.in_shape)


def fdk(operator: ConeCT, y: Tensor, hann: bool = False) -> Tensor:
    """Projections [B, 1, views, rows, columns] of a cone beam on a flat detector -> volumes [B, Z, 1, Y, X]."""
    source, rows, columns = operator.source, operator.rows, operator.columns
    if source.curved:
        raise UsageError("FDK is for flat detectors.", "Reconstruct by least squares instead: operator.pinv(y).")
    weights, radius = _full_circle(operator.angles, "FDK").tolist(), source.radius
    cosine = source.to_detector / (source.to_detector**2 + columns.positions**2
                                   + rows.positions[:, None] ** 2).sqrt()
    q = filtered(y[:, 0] * cosine.to(y), ramp(columns.cells, columns.spacing / source.magnification, hann))
    along, up = axes(operator.angles)
    planes, *inplane = operator.size
    px, py = (p.to(y.device) for p in _pixels((inplane[0], inplane[1]), operator.spacing[1:]))
    pz = ((torch.arange(planes, dtype=torch.float64) - (planes - 1) / 2) * operator.spacing[0]).to(y.device)
    out = torch.zeros(planes, len(px), len(y), dtype=y.dtype, device=y.device)
    for view, ((ex, ey), (ux, uy)) in enumerate(zip(along.tolist(), up.tolist(), strict=True)):
        flat = q[:, view].permute(1, 2, 0).reshape(rows.cells * columns.cells, len(y))
        depth = radius - (px * ux + py * uy)
        across = _cell(columns, (px * ex + py * ey) / depth * source.to_detector)
        share = ((radius / depth) ** 2 * weights[view]).to(y.dtype)[:, None]
        for plane in range(planes):
            level = _cell(rows, pz[plane] / depth * source.to_detector)
            out[plane] += _bilinear(flat, level, across, rows.cells, columns.cells) * share
    return out.permute(2, 0, 1).reshape(len(y), *operator.in_shape)


def _bilinear(flat: Tensor, level: Tensor, across: Tensor, rows: int, columns: int) -> Tensor:
    """flat [rows * columns, B] at fractional (row, column) [n], zero outside: [n, B]."""
    out = torch.zeros(len(level), flat.shape[1], dtype=flat.dtype, device=flat.device)
    low, left = level.floor(), across.floor()
    for i, a in ((low, 1 - (level - low)), (low + 1, level - low)):
        for j, b in ((left, 1 - (across - left)), (left + 1, across - left)):
            seen = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
            index = torch.where(seen, i * columns + j, 0.0).long()
            out += flat[index] * torch.where(seen, a * b, 0.0).to(flat.dtype)[:, None]
    return out
