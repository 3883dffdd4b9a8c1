"""Which samples of k-space are measured: masks [Y, X] with DC at (Y // 2, X // 2), a centre for calibration, a seed.

    random, equispaced, gaussian     whole lines across `axis`: uniform, evenly spaced, denser in the middle
    random2d, gaussian2d, poisson    single samples: uniform, denser in the middle, variable-density Poisson disc
    radial                           spokes through the centre at golden angles, on the grid

The centre is always measured and counts: of n lines (samples) exactly round(n / acceleration) are kept, whatever the
seed. Spokes come whole, as many as bring the count nearest to that. Draws are functions of (seed, kind) alone.

Weighted draws without replacement keep the smallest keys -log(u) / w (Efraimidis and Spirakis 2006). Poisson discs are
thrown at the points in random order; a point p is taken while no earlier q has |p - q| < f r(q), r = 1 + density |k|;
f falls by a tenth whenever no point is left, until the count is reached (relaxation dart throwing, McCool and Fiume
1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest
from scidiff.core.run import uniform

LINES = ("random", "equispaced", "gaussian")
SAMPLES = ("random2d", "gaussian2d", "poisson", "radial")
GOLDEN = math.pi * (math.sqrt(5) - 1) / 2  # radians: 111.246 degrees
_PACKED = 0.7  # discs of radius d that stand at least d apart, thrown at random, cover this many points / d^2


@dataclass(frozen=True)
class Mask:
    """A sampling pattern of k-space, drawn for any size.

    `calibration` is the fully sampled centre of every axis that is undersampled, a share of it (below 1) or a number of
    lines; by default 8 %, beyond an acceleration of 6 4 %. `axis` is where lines are left out ("x": columns). `std` is
    the standard deviation of the Gaussian densities in widths of k-space; `density` says how much wider Poisson discs
    are at the edge of k-space than at its centre (0: the same everywhere).
    """

    kind: str = "random"
    acceleration: float = 4.0
    calibration: float | int | None = None
    seed: int = 0
    axis: str = "x"
    std: float = 1 / 6
    density: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in LINES + SAMPLES:
            raise UsageError(f"There is no mask {self.kind!r}.", nearest(self.kind, LINES + SAMPLES))
        if not self.acceleration >= 1:
            raise UsageError(f"An acceleration is 1 or more, not {self.acceleration:g}.")
        if self.calibration is not None and not self.calibration >= 0:
            raise UsageError(f"The calibration centre is a share or a number of lines, not {self.calibration:g}.")
        if self.axis not in ("x", "y"):
            raise UsageError(f"Lines are left out along 'x' or 'y', not {self.axis!r}.")
        if not (self.std > 0 and self.density >= 0):
            raise UsageError(f"A mask has a positive std and a density >= 0, not {self.std:g} and {self.density:g}.")

    def centre(self, n: int) -> int:
        """Lines of an axis of n that are measured for calibration."""
        wanted = self.calibration
        if wanted is None:
            wanted = 0.08 if self.acceleration <= 6 else 0.04
        return min(n, round(wanted * n) if wanted < 1 else round(wanted))

    def draw(self, size: Sequence[int]) -> Tensor:
        """The mask [Y, X], bool; true where k-space is measured."""
        height, width = int(size[0]), int(size[1])
        if self.kind in LINES:
            line = self._line(width if self.axis == "x" else height)
            return (line[None] if self.axis == "x" else line[:, None]).expand(height, width).contiguous()
        block = torch.zeros(height, width, dtype=torch.bool)
        block[_middle(height, self.centre(height)), _middle(width, self.centre(width))] = True
        total = self._total(height * width, int(block.sum()), "samples")
        y, x = _offsets(height)[:, None], _offsets(width)
        if self.kind == "radial":
            return _spokes(block, total, float(self._draw(1)) * math.pi)
        if self.kind == "poisson":
            return _discs(block, total, 1.0 + self.density * torch.hypot(y, x), self._draw(height * width).argsort())
        spread = ((y / 2) ** 2 + (x / 2) ** 2) / (2 * self.std**2) if self.kind == "gaussian2d" else torch.zeros(())
        return self._weighted(block.flatten(), total, spread.expand(height, width).flatten()).view(height, width)

    def _line(self, n: int) -> Tensor:
        """Which of the n lines are kept, bool [n]."""
        kept = torch.zeros(n, dtype=torch.bool)
        kept[_middle(n, self.centre(n))] = True
        total = self._total(n, int(kept.sum()), "lines")
        if self.kind == "equispaced":
            rest = (~kept).nonzero()[:, 0]
            count = total - (n - len(rest))
            if count:
                place = (torch.arange(count, dtype=torch.float64) + float(self._draw(1))) * (len(rest) / count)
                kept[rest[place.long()]] = True
            return kept
        spread = (_offsets(n) / 2) ** 2 / (2 * self.std**2) if self.kind == "gaussian" else torch.zeros(n)
        return self._weighted(kept, total, spread)

    def _weighted(self, kept: Tensor, total: int, spread: Tensor) -> Tensor:
        """`kept` and further points of weight exp(-spread), `total` in all."""
        keys = (-self._draw(len(kept)).log()).log() + spread
        order = torch.where(kept, -math.inf, keys).argsort()
        chosen = torch.zeros_like(kept)
        chosen[order[:total]] = True
        return chosen

    def _total(self, n: int, centre: int, what: str) -> int:
        total = max(1, round(n / self.acceleration))
        if centre > total:
            raise UsageError(f"The calibration centre alone has {centre} of {n} {what}, more than the {total} that an "
                             f"acceleration of {self.acceleration:g} leaves.", "Lower one of the two.")
        return total

    def _draw(self, count: int) -> Tensor:
        """Uniform float64 [count]."""
        return uniform(self.seed, torch.arange(1), f"mask-{self.kind}", count)[0]


def _offsets(n: int) -> Tensor:
    """Distance of each line from DC, 1 at the edge of k-space, float64 [n]."""
    return (torch.arange(n, dtype=torch.float64) - n // 2) / (n / 2)


def _middle(n: int, count: int) -> slice:
    """`count` lines around DC."""
    start = n // 2 - count // 2
    return slice(start, start + count)


def _spokes(block: Tensor, total: int, start: float) -> Tensor:
    """`block` and spokes at golden angles from `start` on, one by one, until the count is nearest to `total`."""
    height, width = block.shape
    along = torch.linspace(-1, 1, 4 * max(height, width) + 1, dtype=torch.float64)
    chosen = block
    for spoke in range(4 * max(height, width)):
        angle = start + spoke * GOLDEN
        row = (height // 2 + along * (height / 2) * math.sin(angle)).round().long().clamp(0, height - 1)
        column = (width // 2 + along * (width / 2) * math.cos(angle)).round().long().clamp(0, width - 1)
        more = chosen.clone()
        more[row, column] = True
        if abs(int(more.sum()) - total) > abs(int(chosen.sum()) - total) and spoke:
            break
        chosen = more
    return chosen


def _discs(block: Tensor, total: int, radius: Tensor, order: Tensor) -> Tensor:
    """`block` and samples, thrown in this `order`, that keep apart by multiples of `radius` [Y, X]: `total` in all."""
    height, width = block.shape
    chosen, missing = block.flatten().nonzero()[:, 0].tolist(), total - int(block.sum())
    low, high = 0.0, float(max(height, width))
    for _ in range(60):  # the f at which a first round is expected to find what is missing
        factor = (low + high) / 2
        expected = (_PACKED / (factor * radius[~block]) ** 2).clamp(max=1.0).sum()
        low, high = (factor, high) if expected > missing else (low, factor)
    factor, queue, apart, mark = 1.2 * high, order.tolist(), radius.flatten().tolist(), b"\1" * width
    while True:
        taken = bytearray(height * width)  # plain bytes: a tensor costs more a slice than the slice is long

        def cover(point: int) -> None:
            row, column = divmod(point, width)
            limit = max(0, math.ceil((factor * apart[point]) ** 2) - 1)  # noqa: B023  (called in this round alone)
            reach = math.isqrt(limit)
            for other in range(max(0, row - reach), min(height, row + reach + 1)):
                half = math.isqrt(limit - (other - row) ** 2)
                start, stop = max(0, column - half), min(width, column + half + 1)
                taken[other * width + start : other * width + stop] = mark[: stop - start]  # noqa: B023

        for point in chosen:
            cover(point)
        for point in queue:
            if missing and not taken[point]:
                cover(point)
                chosen.append(point)
                missing -= 1
        if not missing:
            break
        factor = 0.9 * factor if factor > 0.3 else 0.0  # at 0 anything goes: the count is always reached
    found = torch.zeros(height * width, dtype=torch.bool)
    found[torch.tensor(chosen)] = True
    return found.view(height, width)


def acquired(kspace: Tensor) -> Tensor:
    """Where k-space [..., C, Y, X] holds anything: the mask [Y, X] of a scan whose gaps are zeros."""
    if kspace.dim() < 3:
        raise UsageError(f"k-space has the axes coil, y, x at least, not the shape {tuple(kspace.shape)}.")
    found = (kspace != 0).flatten(0, -3).any(0)
    if not bool(found.any()):
        raise UsageError("This k-space is zero everywhere.")
    return found


def calibration_size(mask: Tensor) -> tuple[int, int]:
    """(rows, columns) of a fully measured block around DC, grown evenly, then along each axis; (0, 0) without DC."""
    height, width = mask.shape

    def full(rows: int, columns: int) -> bool:
        return rows <= height and columns <= width and bool(mask[_middle(height, rows), _middle(width, columns)].all())

    rows = columns = 0
    while full(rows + 1, columns + 1):
        rows, columns = rows + 1, columns + 1
    while rows and full(rows + 1, columns):
        rows += 1
    while columns and full(rows, columns + 1):
        columns += 1
    return rows, columns
