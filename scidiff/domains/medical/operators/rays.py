"""Rays of parallel, fan and cone beams, and Joseph's weights along them. Lengths in mm, angles in degrees.

Pixel (j, i) of an image [Y, X] has its centre at x = (i - (X-1)/2) dx, y = (j - (Y-1)/2) dy, so y grows with the row;
planes of a volume [Z, Y, X] likewise along z. For a view at angle b the detector axis is e = (cos b, sin b), and

    parallel   cell at signed distance d: the line x cos b + y sin b = d, direction (-sin b, cos b)
    fan        source R (-sin b, cos b), detector at distance `source_to_detector` behind the centre; a cell at detector
               coordinate s lies at s e on a flat detector, at fan angle s / source_to_detector on a curved one
    cone       a fan with rows of cells along z

Joseph (1982): a ray steps over the rows (or columns) of the image, whichever it crosses faster; where it meets a row it
takes the linear interpolation of the two nearest pixels, times its length from one row to the next. Beyond the image
the values are zero. A sum along a ray is a line integral in (value x mm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scidiff.core.errors import UsageError


def pair(spacing: float | Sequence[float]) -> tuple[float, float]:
    """(first, second) of one number or two, positive."""
    numbers = (float(spacing),) * 2 if isinstance(spacing, (int, float)) else tuple(float(s) for s in spacing)
    if len(numbers) != 2 or min(numbers) <= 0:
        raise UsageError(f"Spacing is one positive number or two, in mm, not {spacing}.")
    return numbers[0], numbers[1]


@dataclass(frozen=True)
class Detector:
    """A row of `cells` of width `spacing` mm whose middle lies `offset` mm along the detector axis."""

    cells: int
    spacing: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.cells < 1 or self.spacing <= 0:
            raise UsageError(f"A detector has at least one cell of positive width, not {self.cells} of "
                             f"{self.spacing} mm.")

    @property
    def positions(self) -> Tensor:
        """Centres of the cells in mm, float64 [cells]."""
        return (torch.arange(self.cells, dtype=torch.float64) - (self.cells - 1) / 2) * self.spacing + self.offset


@dataclass(frozen=True)
class Source:
    """A point source `radius` mm from the axis of rotation, `to_detector` mm from the detector, flat or curved."""

    radius: float
    to_detector: float
    curved: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.radius < self.to_detector:
            raise UsageError(f"The source must be nearer to the axis ({self.radius} mm) than to the detector "
                             f"({self.to_detector} mm).")

    @property
    def magnification(self) -> float:
        return self.to_detector / self.radius

    def cell(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """(along the detector axis, along the central ray from the source) of detector coordinate s, in mm."""
        if self.curved:
            fan = s / self.to_detector
            return self.to_detector * fan.sin(), self.to_detector * fan.cos()
        return s, torch.full_like(s, self.to_detector)


def axes(angles: Tensor) -> tuple[Tensor, Tensor]:
    """(detector axis, direction towards the source) of each view, float64 [V, 2] as (x, y); angles in degrees."""
    b = angles.double() * (math.pi / 180)
    along = torch.stack([b.cos(), b.sin()], -1)
    return along, torch.stack([-along[:, 1], along[:, 0]], -1)


def parallel_rays(angles: Tensor, detector: Detector) -> tuple[Tensor, Tensor]:
    """(a point on each ray, its unit direction), float64 [V, D, 2] as (x, y)."""
    along, up = axes(angles)
    points = detector.positions[None, :, None] * along[:, None]
    return points, up[:, None].expand_as(points)


def fan_rays(angles: Tensor, detector: Detector, source: Source) -> tuple[Tensor, Tensor]:
    """(the source, the unit direction to each cell), float64 [V, D, 2] as (x, y)."""
    along, up = axes(angles)
    side, ahead = source.cell(detector.positions)
    towards = side[None, :, None] * along[:, None] - ahead[None, :, None] * up[:, None]
    return (source.radius * up)[:, None].expand_as(towards), towards / towards.norm(dim=-1, keepdim=True)


def cone_rays(angles: Tensor, rows: Detector, columns: Detector, source: Source) -> tuple[Tensor, Tensor]:
    """(the source, the unit direction to each cell), float64 [V, rows, columns, 3] as (x, y, z)."""
    along, up = axes(angles)
    side, ahead = source.cell(columns.positions)
    flat = side[None, :, None] * along[:, None] - ahead[None, :, None] * up[:, None]
    shape = (len(angles), rows.cells, columns.cells)
    height = rows.positions[None, :, None].expand(shape)
    towards = torch.cat([flat[:, None].expand(*shape, 2), height[..., None]], -1)
    start = torch.cat([source.radius * up, torch.zeros(len(angles), 1, dtype=torch.float64)], -1)
    return start[:, None, None].expand_as(towards), towards / towards.norm(dim=-1, keepdim=True)


def _stepping(points: Tensor, directions: Tensor, size: tuple[int, int], spacing: tuple[float, float]) -> tuple:
    """For rays [R, >= 2]: which step over rows [R], and at each step t [R, n], the fractional index across, both valid.

    Returns (steps over rows, index of the step [n], signed length t, position across in pixels, step exists, length).
    """
    rows, columns = size
    dy, dx = spacing
    steep = directions[:, 1].abs() / dy >= directions[:, 0].abs() / dx
    step = torch.arange(max(size), device=points.device)

    def pick(if_rows: Tensor | float, if_columns: Tensor | float) -> Tensor:
        a, b = (torch.as_tensor(v, dtype=torch.float64, device=points.device) for v in (if_rows, if_columns))
        return torch.where(steep, a, b)[:, None]

    main, width, count, across = pick(dy, dx), pick(dx, dy), pick(rows, columns), pick(columns, rows)
    speed = pick(directions[:, 1], directions[:, 0])
    t = ((step - (count - 1) / 2) * main - pick(points[:, 1], points[:, 0])) / speed
    place = (pick(points[:, 0], points[:, 1]) + t * pick(directions[:, 0], directions[:, 1])) / width + (across - 1) / 2
    return steep, step, t, place, step < count, main / speed.abs()


def joseph(points: Tensor, directions: Tensor, size: tuple[int, int],
           spacing: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Rays [R, 2] through an image [Y, X] as a sparse matrix: (entries per ray int64 [R], pixel int32, weight float32).

    Entries stand ray by ray; pixel = row * X + column; weights in mm.
    """
    rows, columns = size
    steep, step, _, place, exists, length = _stepping(points, directions, size, spacing)
    low = place.floor()
    share = place - low
    across = torch.where(steep, columns, rows)[:, None, None]
    taps = torch.stack([low, low + 1], -1).long()
    weights = torch.stack([1 - share, share], -1) * length[..., None]
    line = step[None, :, None]
    index = torch.where(steep[:, None, None], line * columns + taps, taps * columns + line)
    seen = exists[..., None] & (taps >= 0) & (taps < across) & (weights > 0)
    return seen.flatten(1).sum(1), index[seen].int(), weights[seen].float()


def joseph_volume(points: Tensor, directions: Tensor, size: tuple[int, int, int],
                  spacing: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Rays [R, 3] through a volume [Z, Y, X]: (voxel int64, weight float32), both [R, 4 n]; what lies outside weighs 0.

    Rays step over rows or columns, never over planes: their slope along z must stay below 45 degrees.
    """
    planes, rows, columns = size
    steep, step, t, place, exists, length = _stepping(points, directions, size[1:], spacing[1:])
    height = (points[:, 2:] + t * directions[:, 2:]) / spacing[0] + (planes - 1) / 2
    low, floor = place.floor(), height.floor()
    share, rise = place - low, height - floor
    across = torch.where(steep, columns, rows)[:, None, None]
    taps = torch.stack([low, low + 1, low, low + 1], -1).long()
    level = torch.stack([floor, floor, floor + 1, floor + 1], -1).long()
    weights = torch.stack([(1 - share) * (1 - rise), share * (1 - rise), (1 - share) * rise, share * rise], -1)
    line = step[None, :, None]
    flat = torch.where(steep[:, None, None], line * columns + taps, taps * columns + line)
    seen = exists[..., None] & (taps >= 0) & (taps < across) & (level >= 0) & (level < planes)
    index = torch.where(seen, level * (rows * columns) + flat, 0)
    return index.flatten(1), (torch.where(seen, weights, 0.0) * length[..., None]).flatten(1).float()
