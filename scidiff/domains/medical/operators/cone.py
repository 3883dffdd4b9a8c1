"""Cone beam tomography of whole volumes, the rays computed on the fly.

Volumes [B, Z, 1, Y, X] -> projections [B, 1, views, rows, columns]. View by view, Joseph's four taps a step are found
and gathered; the adjoint adds them back with the same indices and weights, so it is exact. Nothing is kept between
calls; a view's rays are worked off in pieces that bound the memory. On a GPU the adjoint's order of summation changes
from run to run, in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.nn.functional import embedding_bag

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator
from scidiff.domains.medical.operators.ct import spread
from scidiff.domains.medical.operators.rays import Detector, Source, cone_rays, joseph_volume

PIECE = 1 << 21  # taps worked off at a time


class ConeCT(LinearOperator):
    """Cone beam from a source on a circle in the plane z = 0: `views` equal steps over 360 degrees, or `angles`.

    `spacing_mm` is one number or (z, y, x). By default the source is four half diagonals of the in-plane image from the
    axis and as far again from the detector, whose cells, one voxel wide at the axis, see the whole volume.
    """

    slice_separable = False

    def __init__(self, size: Sequence[int], views: int | None = None, angles: Sequence[float] | Tensor | None = None,
                 rows: Detector | None = None, columns: Detector | None = None, source: Source | None = None,
                 spacing_mm: float | Sequence[float] = 1.0) -> None:
        self.size = (int(size[0]), int(size[1]), int(size[2]))
        given = (spacing_mm,) * 3 if isinstance(spacing_mm, (int, float)) else tuple(spacing_mm)
        if len(given) != 3 or min(given) <= 0:
            raise UsageError(f"Spacing is one positive number or (z, y, x), in mm, not {spacing_mm}.")
        dz, dy, dx = self.spacing = (float(given[0]), float(given[1]), float(given[2]))
        planes, height, width = self.size
        half = math.hypot(height * dy, width * dx) / 2
        self.source = source or Source(4 * half, 8 * half)
        radius = self.source.radius
        if radius <= half:
            raise UsageError(f"The source at {radius:g} mm lies inside of the volume, whose corners are {half:g} mm "
                             "from the axis.")
        fan = math.asin(half / radius)
        if columns is None:
            cell = min(dy, dx) * self.source.magnification
            reach = self.source.to_detector * (fan if self.source.curved else math.tan(fan))
            columns = Detector(math.ceil(2 * reach / cell), cell)
        if rows is None:
            cell = dz * self.source.magnification
            reach = self.source.to_detector * planes * dz / 2 / (radius - half)
            rows = Detector(math.ceil(2 * reach / cell), cell)
        self.rows, self.columns, self.angles = rows, columns, spread(views, angles, 360.0)
        slope = float(rows.positions.abs().max()) / self.source.to_detector
        if slope * math.sqrt(2.0) >= 1.0:
            raise UsageError("The cone is too wide: rays steeper than 45 degrees along z are not projected.")
        super().__init__((planes, 1, height, width), (1, len(self.angles), rows.cells, columns.cells))

    def _pieces(self, like: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rays start..stop of the flattened views, voxels [R, taps], weights [R, taps]) after one another."""
        cells = self.rows.cells * self.columns.cells
        step = max(1, PIECE // (4 * max(self.size[1:])))
        for view in range(len(self.angles)):
            points, directions = cone_rays(self.angles[view : view + 1], self.rows, self.columns, self.source)
            points, directions = (r.reshape(-1, 3).to(like.device) for r in (points, directions))
            for start in range(0, cells, step):
                stop = min(start + step, cells)
                index, weight = joseph_volume(points[start:stop], directions[start:stop], self.size, self.spacing)
                yield slice(view * cells + start, view * cells + stop), index, weight.to(like.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        volume = x.reshape(len(x), -1).T.contiguous()
        y = volume.new_empty(math.prod(self.out_shape), len(x))
        for rays, index, weight in self._pieces(x):
            y[rays] = embedding_bag(index, volume, mode="sum", per_sample_weights=weight)
        return y.T.reshape(len(x), *self.out_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        rows = y.reshape(len(y), -1).T.contiguous()
        volume = rows.new_zeros(math.prod(self.in_shape), len(y))
        for rays, index, weight in self._pieces(y):
            volume.index_add_(0, index.flatten(), (weight[..., None] * rows[rays, None]).flatten(0, 1))
        return volume.T.reshape(len(y), *self.in_shape)
