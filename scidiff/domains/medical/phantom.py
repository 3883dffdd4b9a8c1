"""A chest made of ellipsoids: any resolution, any number of subjects, no data of anybody.

Ellipsoid i has centre c_i, half axes s_i, an angle phi_i about z and a value v_i in HU; later ones lie on top of
earlier ones, and outside of all of them is air (-1000 HU). In the plane z an ellipsoid is an ellipse of half axes
s_xy sqrt(1 - (z - c_z)^2 / s_z^2), so both the image and its line integrals are known in closed form: along a ray the
value is constant between the points where it enters and leaves ellipsoids. `sinogram` adds up these pieces. It shares
no weights with the projectors of `operators`, so it tests them, and measurements made with it are no inverse crime.

World: x to the right, y to the front, z to the head, in mm; the middle of the chest is the origin. `chest(seed)` draws
the body, its organs, ribs, vessels and nodules anew for every seed; the anatomy is that of a drawing, not of a person.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from scidiff.core.errors import UsageError
from scidiff.core.run import uniform
from scidiff.domains.medical.intensity import CT, Scale
from scidiff.domains.medical.operators.ct import ViewTable
from scidiff.domains.medical.volume import Volume, centred_affine

AIR, LUNG, FAT, MUSCLE, BLOOD, SOFT, BONE = -1000.0, -840.0, -95.0, 55.0, 45.0, 35.0, 600.0
DRAWS = 4096  # uniform numbers of a subject


@dataclass(frozen=True, eq=False)
class Phantom:
    """float64 [N, 8]: centre x, y, z and half axes a, b, c in mm, angle in radians, value in HU; the last is on top."""

    ellipsoids: Tensor

    def sections(self, z: float) -> Tensor:
        """The ellipses in the plane z, from bottom to top: [M, 6] centre x, y, half axes a, b, angle, value."""
        e = self.ellipsoids
        share = 1.0 - ((z - e[:, 2]) / e[:, 5]) ** 2
        cut = share > 0
        shrunk = e[cut, 3:5] * share[cut].sqrt()[:, None]
        return torch.cat([e[cut, :2], shrunk, e[cut, 6:]], 1)

    def plane(self, z: float, x: Tensor, y: Tensor) -> Tensor:
        """HU float64 [len(y), len(x)] at the points of a grid (rising coordinates) in the plane z."""
        image = np.full((len(y), len(x)), AIR)
        columns, rows = x.double().numpy(), y.double().numpy()
        for cx, cy, a, b, angle, value in self.sections(z).tolist():
            reach = max(a, b)
            left, right = np.searchsorted(columns, (cx - reach, cx + reach))
            low, high = np.searchsorted(rows, (cy - reach, cy + reach))
            dx, dy = columns[None, left:right] - cx, rows[low:high, None] - cy
            cos, sin = math.cos(angle), math.sin(angle)
            inside = ((dx * cos + dy * sin) / a) ** 2 + ((dy * cos - dx * sin) / b) ** 2 <= 1.0
            image[low:high, left:right][inside] = value
        return torch.from_numpy(image)

    def volume(self, size: Sequence[int] = (32, 128, 128), spacing: Sequence[float] = (4.0, 3.0, 3.0),
               finer: int = 2, name: str = "phantom") -> Volume:
        """A CT volume of `size` (z, y, x) voxels with edges `spacing` in mm about the origin.

        Every voxel is the mean over finer^3 points, so edges have the blur of partial volumes.
        """
        if len(size) != 3 or min(size) < 2 or len(spacing) != 3 or min(spacing) <= 0 or finer < 1:
            raise UsageError(f"A phantom has three sizes from 2 and three positive edges (z, y, x), not {list(size)} "
                             f"and {list(spacing)}.")
        shape = (int(size[0]), int(size[1]), int(size[2]))
        edges = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        z, y, x = (_points(n, edge, finer) for n, edge in zip(shape, edges, strict=True))
        data = torch.empty(shape[0], 1, *shape[1:])
        for k in range(len(data)):
            planes = torch.stack([self.plane(float(z[k * finer + i]), x, y) for i in range(finer)])
            data[k, 0] = avg_pool2d(planes.mean(0, keepdim=True), finer)[0].float()
        return Volume(data, centred_affine(shape, edges), "CT", name)

    def sinogram(self, operator: ViewTable, z: Sequence[float] | Tensor, scale: Scale = CT) -> Tensor:
        """Exact line integrals of scale.encode(HU), in (value x mm), through the middle of every cell, in the planes z.

        float32 [len(z), 1, views, cells], as the operator (parallel or fan beam) would measure a volume without pixels.
        """
        empty = float(scale.encode(torch.tensor([AIR], dtype=torch.float64)))
        if empty != 0.0:
            raise UsageError(f"In the range from {scale.low:g} HU air counts {empty:g}, so rays that never end have no "
                             "finite integral.", f"Take a range that begins at {AIR:g} HU.")
        points, directions = operator.rays(operator.angles)
        rays = (points.reshape(-1, 2), directions.reshape(-1, 2))
        rows = [integrals(self.sections(float(plane)), *rays, scale) for plane in z]
        return torch.stack(rows).view(len(rows), *operator.out_shape).float()


def integrals(ellipses: Tensor, points: Tensor, directions: Tensor, scale: Scale, piece: int = 1 << 14) -> Tensor:
    """Integrals of scale.encode(value) over rays point + t direction (unit), through ellipses of which the last wins.

    ellipses [M, 6] as of `Phantom.sections`; rays float64 [R, 2]; returns float64 [R].
    """
    if not len(ellipses):
        return torch.zeros(len(points), dtype=torch.float64)
    values = scale.encode(ellipses[:, 5])
    cos, sin = ellipses[:, 4].cos(), ellipses[:, 4].sin()
    frame = torch.stack([torch.stack([cos, sin], -1) / ellipses[:, 2:3],
                         torch.stack([-sin, cos], -1) / ellipses[:, 3:4]], 1)  # [M, 2, 2]: to the unit circle
    parts = []
    for start in range(0, len(points), piece):
        p, d = points[start : start + piece], directions[start : start + piece]
        u = torch.einsum("mij,rmj->rmi", frame, p[:, None] - ellipses[None, :, :2])
        v = torch.einsum("mij,rj->rmi", frame, d)
        square, half, rest = (v * v).sum(-1), (u * v).sum(-1), (u * u).sum(-1) - 1.0
        root = (half * half - square * rest).clamp(min=0.0).sqrt()
        enter, leave = (-half - root) / square, (-half + root) / square
        borders = torch.cat([enter, leave], 1).sort(1).values
        middle = 0.5 * (borders[:, 1:] + borders[:, :-1])
        total = torch.zeros(len(p), dtype=torch.float64)
        for k in range(middle.shape[1]):
            inside = (middle[:, k : k + 1] > enter) & (middle[:, k : k + 1] < leave)
            top = inside.shape[1] - 1 - inside.flip(1).int().argmax(1)
            value = torch.where(inside.any(1), values[top], 0.0)
            total += value * (borders[:, k + 1] - borders[:, k])
        parts.append(total)
    return torch.cat(parts)


def _points(n: int, edge: float, finer: int) -> Tensor:
    """Coordinates of n * finer points, `finer` to a voxel, about the origin."""
    return (torch.arange(n * finer, dtype=torch.float64) - (n * finer - 1) / 2) * (edge / finer)


# -- the chest


class _Draw:
    """Uniform numbers of a subject, one after another."""

    def __init__(self, seed: int) -> None:
        self.left = iter(uniform(seed, torch.zeros(1, dtype=torch.int64), "chest-phantom", DRAWS)[0].tolist())

    def __call__(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.left)


def chest(seed: int = 0) -> Phantom:
    """A chest about 35 cm wide and 24 cm deep; the same seed gives the same subject."""
    draw, parts = _Draw(seed), []

    def add(x: float, y: float, z: float, a: float, b: float, c: float, value: float, angle: float = 0.0) -> None:
        parts.append([x, y, z, a, b, c, angle, value + draw(-6.0, 6.0)])

    w, d = draw(160.0, 185.0), draw(108.0, 128.0)  # half width and depth of the body
    fat = draw(8.0, 20.0)
    add(0, 0, 0, w, d, 900, FAT)
    add(0, -1, 0, w - fat, d - fat, 880, MUSCLE)
    chest_w, chest_d = w - fat - 12, d - fat - 10  # half axes of the ring of ribs
    lung_a, lung_b, lung_c = 0.42 * chest_w, 0.80 * chest_d, draw(125.0, 150.0)
    top = draw(5.0, 20.0)
    for side in (-1, 1):
        add(side * 0.51 * chest_w, draw(-4.0, 4.0), top, lung_a, lung_b, lung_c, LUNG, side * draw(0.0, 0.12))
    _vessels(add, draw, 0.51 * chest_w, lung_a, lung_b, top, lung_c)
    add(-draw(12.0, 24.0), 0.25 * chest_d, top - draw(35.0, 55.0), draw(48.0, 58.0), draw(40.0, 48.0), draw(52.0, 64.0),
        SOFT, draw(0.3, 0.7))  # heart; the patient's left is negative x
    add(-draw(16.0, 26.0), -0.52 * chest_d, 0, draw(10.0, 13.0), draw(10.0, 13.0), 600, BLOOD)  # descending aorta
    add(draw(8.0, 16.0), 0.22 * chest_d, top + 40, draw(14.0, 18.0), draw(14.0, 18.0), 60, BLOOD)  # ascending aorta
    add(0, -0.10 * chest_d, top + 110, 9, 9, 85, AIR + 6.0)  # windpipe
    add(0.45 * chest_w, 0.05 * chest_d, top - lung_c - 10, 0.6 * chest_w, 0.75 * chest_d, 75, SOFT + 20)  # liver
    _bones(add, draw, chest_w, chest_d)
    ellipsoids = torch.tensor(parts, dtype=torch.float64)
    ellipsoids[:, 7].clamp_(min=AIR)
    return Phantom(ellipsoids)


def _vessels(add: Callable[..., None], draw: _Draw, middle: float, a: float, b: float, top: float, c: float) -> None:
    """Vessels that thin out from the root of each lung, and a few nodules."""
    for side in (-1, 1):
        for _ in range(46):
            out, turn, rise = draw(0.12, 0.9), draw(0.0, 2 * math.pi), draw(-0.85, 0.85)
            room = math.sqrt(max(0.0, 1.0 - rise * rise)) * 0.92
            x, y = side * middle + out * room * a * math.cos(turn), out * room * b * math.sin(turn)
            thick = 1.2 + 4.0 * (1.0 - out) * draw(0.5, 1.0)
            along = math.atan2(y, x - side * 0.45 * middle)
            add(x, y, top + rise * c, thick * draw(1.5, 5.0), thick, thick * draw(1.0, 4.0), BLOOD, along)
        for _ in range(2):
            size = draw(2.5, 9.0)
            x, y, z = side * middle + draw(-0.5, 0.5) * a, draw(-0.5, 0.5) * b, top + draw(-0.6, 0.6) * c
            add(x, y, z, size, size, size, SOFT)


def _bones(add: Callable[..., None], draw: _Draw, w: float, d: float) -> None:
    """Spine, breastbone, shoulder blades, and ribs that sink from the back to the front."""
    y = -0.72 * d
    for k in range(-9, 10):
        add(0, y, 26.0 * k, 19, 15, 11.5, BONE * 0.45)
        add(0, y - 24, 26.0 * k - 6, 3.5, 14, 8, BONE)
    add(0, y - 16, 0, 8.5, 7.5, 600, SOFT)  # spinal canal
    add(0, 0.96 * d, 20, 17, 5, 95, BONE * 0.55)
    for side in (-1, 1):
        add(side * 0.55 * w, -0.93 * d, 95, 38, 4, 70, BONE, side * 0.5)
    gap, sink = draw(24.0, 30.0), draw(40.0, 70.0)
    for rib in range(-5, 7):
        for side in (-1, 1):
            for step in range(15):
                angle = math.pi * (0.08 + 0.84 * step / 14)  # from the spine around to the breastbone
                x, front = side * w * math.sin(angle), -d * math.cos(angle)
                slope = math.atan2(d * math.sin(angle), side * w * math.cos(angle))
                hard = BONE * (1.0 if step < 11 else 0.4)  # bone behind, cartilage in front
                add(x, front, gap * rib - sink * (step / 14 - 0.5), 0.13 * w, 4.2, 6.5, hard, slope)
