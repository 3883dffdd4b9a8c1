"""A projector as a precomputed sparse matrix, applied to many slices at once; its adjoint is the transposed matrix.

Applying it is `embedding_bag`: a fused gather, multiply and add over a batch of slices laid out as [pixels, slices].
Two copies of the entries are kept, by ray and by pixel, 8 bytes an entry each. The entries of a ray are summed band by
band of the image, so that what is gathered stays in the cache. The rays come in blocks of views; the
blocks that fit into `keep` bytes stay, the others are built again whenever they are needed, so that the memory stays
bounded whatever the number of views. Weights are float32; float64 images meet the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Builder = Callable[[int, int], tuple[Tensor, Tensor, Tensor]]
BLOCK = 1 << 23  # candidate entries of one block while it is built
KEEP = 1_750_000_000
BAND = 1 << 13  # pixels of a band


@dataclass(frozen=True)
class Rows:
    """A sparse matrix by rows: first entry of each row (and the end) int32, column int32, weight float32."""

    first: Tensor
    column: Tensor
    weight: Tensor

    @classmethod
    def of(cls, counts: Tensor, column: Tensor, weight: Tensor) -> Rows:
        first = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=first[1:])
        return cls(first.int(), column, weight)

    def transposed(self, columns: int) -> Rows:
        counts = torch.bincount(self.column, minlength=columns)
        order = torch.argsort(self.column, stable=True)
        lengths = (self.first[1:] - self.first[:-1]).long()
        row = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32, device=order.device), lengths)
        return Rows.of(counts, row[order], self.weight[order])

    def banded(self, bands: int) -> Rows:
        """The matrix with its rows repeated for each band of BAND columns, the entries of that band in each."""
        rows = len(self.first) - 1
        row = torch.repeat_interleave(torch.arange(rows), (self.first[1:] - self.first[:-1]).long())
        place = self.column.div(BAND, rounding_mode="floor").long() * rows + row
        order = torch.argsort(place, stable=True)
        return Rows.of(torch.bincount(place, minlength=bands * rows), self.column[order], self.weight[order])

    def __call__(self, x: Tensor) -> Tensor:
        """[columns, B] -> [rows, B], in the precision of x."""
        if not len(self.column):
            return x.new_zeros(len(self.first) - 1, x.shape[1])
        return embedding_bag(self.column, x, self.first, mode="sum", per_sample_weights=self.weight.to(x.dtype),
                             include_last_offset=True)

    def to(self, device: torch.device) -> Rows:
        return Rows(self.first.to(device), self.column.to(device), self.weight.to(device))

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.first, self.column, self.weight))


class Table:
    """The matrix of `views` views with `cells` rays each over `pixels` pixels, in blocks of views.

    `build(start, stop)` gives the rays of views start..stop-1 as (entries per ray, pixel, weight);
    `candidates` is the number of entries of a view before those outside of the image are dropped.
    """

    def __init__(self, build: Builder, views: int, cells: int, pixels: int, candidates: int, keep: int = KEEP) -> None:
        step = max(1, BLOCK // candidates)
        self.build, self.cells, self.pixels, self.keep = build, cells, pixels, keep
        self.blocks = [(start, min(start + step, views)) for start in range(0, views, step)]
        self.views, self.bands = views, -(-pixels // BAND)
        self._kept: dict[tuple[torch.device, tuple[int, int]], tuple[Rows, Rows]] = {}

    def _block(self, block: tuple[int, int], device: torch.device) -> tuple[Rows, Rows]:
        """(by band and ray, by pixel) of a block."""
        if (device, block) in self._kept:
            return self._kept[device, block]
        rows = Rows.of(*self.build(*block))
        by_ray = rows.banded(self.bands) if self.bands > 1 else rows
        both = by_ray.to(device), rows.transposed(self.pixels).to(device)
        if self.nbytes(device) + both[0].nbytes + both[1].nbytes <= self.keep:
            self._kept[device, block] = both
        return both

    def nbytes(self, device: torch.device | None = None) -> int:
        """Memory of the blocks that are kept, on one device or in all."""
        return sum(rows.nbytes for (where, _), both in self._kept.items() if device in (None, where) for rows in both)

    def forward(self, x: Tensor) -> Tensor:
        """[pixels, B] -> [views * cells, B]."""
        parts = [self._block(block, x.device)[0](x).unflatten(0, (self.bands, -1)).sum(0) for block in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def adjoint(self, y: Tensor) -> Tensor:
        """[views * cells, B] -> [pixels, B]."""
        total = None
        for start, stop in self.blocks:
            part = self._block((start, stop), y.device)[1](y[start * self.cells : stop * self.cells])
            total = part if total is None else total.add_(part)
        assert total is not None
        return total
