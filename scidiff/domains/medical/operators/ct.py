"""Parallel and fan beam tomography of slices by Joseph's matrix; units of a line integral are (value x mm).

Slices [B, 1, Y, X] -> sinograms [B, 1, views, cells]. On a square image with a centred detector, views at b, 90 - b,
90 + b, ... are one view of the image turned by right angles or mirrored:

    A_{b + 90 k} x = A_b (x turned by k right angles),      A_{-b} x = A_b (x mirrored in its columns), cells reversed.

Where the angles come in such sets, only those in [0, 45] are tabulated and the turned images join the batch: a quarter
of the memory for views over 180 degrees, an eighth for a full circle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator
from scidiff.domains.medical.operators.rays import Detector, Source, fan_rays, joseph, pair, parallel_rays
from scidiff.domains.medical.operators.table import KEEP, Table

Turn = tuple[int, bool]  # right angles, then mirrored


def spread(views: int | None, angles: Sequence[float] | Tensor | None, span: float, start: float = 0.0) -> Tensor:
    """Angles in degrees, float64 [V]: the given ones, or `views` equal steps over `span` without its end."""
    if (views is None) == (angles is None):
        raise UsageError("A projector takes a number of views or a list of angles, one of the two.")
    if angles is None:
        if views is None or views < 1:
            raise UsageError(f"A projector needs at least one view, not {views}.")
        return start + torch.arange(views, dtype=torch.float64) * (span / views)
    found = torch.as_tensor(angles, dtype=torch.float64).flatten()
    if not len(found) or not bool(torch.isfinite(found).all()):
        raise UsageError("Angles are finite numbers in degrees, at least one.")
    return found


def _folded(angle: float) -> tuple[float, Turn]:
    """The angle in [0, 45] and the turn that brings a view there."""
    turns, rest = divmod(round(angle % 360.0, 9), 90.0)
    return (rest, (int(turns) % 4, False)) if rest <= 45.0 else (round(90.0 - rest, 9), ((int(turns) + 1) % 4, True))


class ViewTable(LinearOperator):
    """Views of slices by a table of rays; the subclasses say which rays an angle has."""

    def __init__(self, size: Sequence[int], angles: Tensor, detector: Detector, spacing_mm: float | Sequence[float],
                 symmetric: bool, keep: int) -> None:
        self.size, self.spacing = (int(size[0]), int(size[1])), pair(spacing_mm)
        self.angles, self.detector = angles, detector
        super().__init__((1, *self.size), (1, len(angles), detector.cells))
        square = self.size[0] == self.size[1] and self.spacing[0] == self.spacing[1] and detector.offset == 0.0
        self.turns: list[Turn] = [(0, False)]
        self.base, self._base_of, self._turn_of = angles, torch.arange(len(angles)), torch.zeros(len(angles)).long()
        if symmetric and square:
            self._fold()
        candidates = 2 * max(self.size) * detector.cells
        self.table = Table(self._build, len(self.base), detector.cells, math.prod(self.size), candidates, keep)

    def _fold(self) -> None:
        """Tabulates one view for each set that turns and mirrors make, if that costs no extra work to speak of."""
        folded = [_folded(float(a)) for a in self.angles]
        base, turns = sorted({b for b, _ in folded}), sorted({t for _, t in folded})
        if len(base) * len(turns) <= 1.15 * len(folded) and len(set(folded)) == len(folded):
            self.base, self.turns = torch.tensor(base, dtype=torch.float64), turns
            self._base_of = torch.tensor([base.index(b) for b, _ in folded])
            self._turn_of = torch.tensor([turns.index(t) for _, t in folded])

    def rays(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """(points, unit directions) of the rays of these views, float64 [V, D, 2] in mm."""
        raise NotImplementedError

    def _build(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        points, directions = self.rays(self.base[start:stop])
        return joseph(points.reshape(-1, 2), directions.reshape(-1, 2), self.size, self.spacing)

    @property
    def nbytes(self) -> int:
        """Memory of the table so far, in bytes; it is built on first use."""
        return self.table.nbytes()

    def _forward(self, x: Tensor) -> Tensor:
        b, cells = len(x), self.detector.cells
        slices = x[:, 0].permute(1, 2, 0).contiguous()  # slices last: the table gathers whole rows of them
        turned = torch.stack([_turned(slices, turn) for turn in self.turns], 2)
        y = self.table.forward(turned.reshape(math.prod(self.size), -1)).view(-1, cells, len(self.turns), b)
        parts = y.new_empty(len(self.angles), cells, b)
        for i, turn in enumerate(self.turns):
            mine = (self._turn_of == i).nonzero()[:, 0].to(y.device)
            part = y[self._base_of.to(y.device)[mine], :, i]
            parts[mine] = part.flip(1) if turn[1] else part
        return parts.permute(2, 0, 1)[:, None].contiguous()

    def _adjoint(self, y: Tensor) -> Tensor:
        b, cells = len(y), self.detector.cells
        parts = y[:, 0].permute(1, 2, 0).contiguous()
        bases = parts.new_zeros(len(self.base), cells, len(self.turns), b)
        for i, turn in enumerate(self.turns):
            mine = (self._turn_of == i).nonzero()[:, 0].to(y.device)
            part = parts[mine]
            bases[self._base_of.to(y.device)[mine], :, i] = part.flip(1) if turn[1] else part
        x = self.table.adjoint(bases.view(len(self.base) * cells, -1)).view(*self.size, len(self.turns), b)
        whole = _turned_back(x[:, :, 0], self.turns[0])
        for i, turn in enumerate(self.turns[1:], 1):
            whole = whole + _turned_back(x[:, :, i], turn)
        return whole.permute(2, 0, 1)[:, None].contiguous()


def _turned(x: Tensor, turn: Turn) -> Tensor:
    """An image [Y, X, B], turned by right angles and then mirrored."""
    x = torch.rot90(x, turn[0], (0, 1)) if turn[0] else x
    return x.flip(1) if turn[1] else x


def _turned_back(x: Tensor, turn: Turn) -> Tensor:
    x = x.flip(1) if turn[1] else x
    return torch.rot90(x, -turn[0], (0, 1)) if turn[0] else x


class ParallelCT(ViewTable):
    """Parallel beam: `views` equal steps over 180 degrees, or `angles` in degrees.

    `detector` is a Detector or a number of cells of the width of a pixel; by default they cover the image's diagonal.
    `spacing_mm` is the pixel size, one number or (y, x); `keep` bounds the memory of the table, in bytes.
    """

    def __init__(self, size: Sequence[int], views: int | None = None, angles: Sequence[float] | Tensor | None = None,
                 detector: Detector | int | None = None, spacing_mm: float | Sequence[float] = 1.0,
                 symmetric: bool = True, keep: int = KEEP) -> None:
        dy, dx = pair(spacing_mm)
        if not isinstance(detector, Detector):
            cell = min(dy, dx)
            diagonal = math.hypot(size[0] * dy, size[1] * dx) / cell
            detector = Detector(math.ceil(diagonal - 1e-9) if detector is None else detector, cell)
        super().__init__(size, spread(views, angles, 180.0), detector, spacing_mm, symmetric, keep)

    def rays(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        return parallel_rays(angles, self.detector)


class LimitedAngle(ParallelCT):
    """Parallel beam over the angles from `start` to `stop` degrees (without the end) alone, one a degree by default."""

    def __init__(self, size: Sequence[int], start: float = 0.0, stop: float = 90.0, views: int | None = None,
                 detector: Detector | int | None = None, spacing_mm: float | Sequence[float] = 1.0,
                 symmetric: bool = True, keep: int = KEEP) -> None:
        if not 0 < stop - start <= 180:
            raise UsageError(f"A limited range of angles is at most 180 degrees wide, not {start} to {stop}.")
        count = max(1, round(stop - start)) if views is None else views
        super().__init__(size, None, spread(count, None, stop - start, start), detector, spacing_mm, symmetric, keep)


class FanCT(ViewTable):
    """Fan beam from a point source on a circle: `views` equal steps over 360 degrees, or `angles` in degrees.

    The default source is four half diagonals from the axis and as far again from the detector, whose default cells, one
    pixel wide at the axis, see the whole image.
    """

    def __init__(self, size: Sequence[int], views: int | None = None, angles: Sequence[float] | Tensor | None = None,
                 detector: Detector | None = None, source: Source | None = None,
                 spacing_mm: float | Sequence[float] = 1.0, symmetric: bool = True, keep: int = KEEP) -> None:
        dy, dx = pair(spacing_mm)
        half = math.hypot(size[0] * dy, size[1] * dx) / 2
        self.source = source or Source(4 * half, 8 * half)
        if self.source.radius <= half:
            raise UsageError(f"The source at {self.source.radius:g} mm lies inside of the image, whose corners are "
                             f"{half:g} mm from the axis.")
        if detector is None:
            width = min(dy, dx) * self.source.magnification
            fan = math.asin(half / self.source.radius)
            reach = self.source.to_detector * (fan if self.source.curved else math.tan(fan))
            detector = Detector(math.ceil(2 * reach / width), width)
        super().__init__(size, spread(views, angles, 360.0), detector, spacing_mm, symmetric, keep)

    def rays(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        return fan_rays(angles, self.detector, self.source)
