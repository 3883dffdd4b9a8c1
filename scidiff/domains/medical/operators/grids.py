"""How the grid of a prior stands to that of an operator, as operators to put before it.

    Crop    the middle of a larger image: a prior of 128 x 128 pixels makes slices of 96 x 120, the rest is unmeasured
    Whole   a volume [C, Z, Y, X], as networks in three dimensions see it, as slices [Z, C, Y, X] for an operator of
            slices or of volumes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import Composition, LinearOperator


class Crop(LinearOperator):
    """The middle [..., Y, X] of images [..., S, T]; where a margin is odd, the smaller part comes first."""

    def __init__(self, shape: Sequence[int], size: Sequence[int]) -> None:
        *lead, rows, columns = (int(n) for n in shape)
        height, width = int(size[0]), int(size[1])
        if height > rows or width > columns:
            raise UsageError(f"Images of {rows} x {columns} pixels have no middle of {height} x {width}.")
        top, left = (rows - height) // 2, (columns - width) // 2
        self.margins = (left, columns - width - left, top, rows - height - top)
        self.window = (slice(top, top + height), slice(left, left + width))
        super().__init__((*lead, rows, columns), (*lead, height, width))
        self.slice_separable = len(lead) < 2

    def _forward(self, x: Tensor) -> Tensor:
        return x[(..., *self.window)].contiguous()

    def _adjoint(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y, self.margins)


class Cropped(Composition):
    """An operator after a Crop, which reaches every image and shortens none of those: the norm is the operator's."""

    def __init__(self, operator: LinearOperator, shape: Sequence[int]) -> None:
        super().__init__(operator, Crop(shape, operator.in_shape[-2:]))

    def norm(self, iterations: int = 100, tolerance: float = 1e-10, device: torch.device | str = "cpu") -> float:
        return self.outer.norm(iterations, tolerance, device)


class Whole(LinearOperator):
    """An operator of slices (C, Y, X), or of volumes (Z, C, Y, X), on volumes [B, C, Z, Y, X] of `depth` slices.

    The measurement of a volume is [Z, *out_shape] of an operator of slices, that of the operator itself otherwise.
    """

    slice_separable = False

    def __init__(self, operator: LinearOperator, depth: int) -> None:
        self.operator, self.depth, self.by_slice = operator, int(depth), operator.slice_separable
        channels, *plane = operator.in_shape[-3:]
        out = (self.depth, *operator.out_shape) if self.by_slice else operator.out_shape
        if not self.by_slice and operator.in_shape[0] != self.depth:
            raise UsageError(f"{operator} takes volumes of {operator.in_shape[0]} slices, not {depth}.")
        super().__init__((channels, self.depth, *plane), out, operator.dtype, operator.out_dtype)

    def _forward(self, x: Tensor) -> Tensor:
        slices = x.transpose(1, 2)
        if not self.by_slice:
            return self.operator.forward(slices.contiguous())
        return torch.stack([self.operator.forward(one.contiguous()) for one in slices])

    def _adjoint(self, y: Tensor) -> Tensor:
        found = torch.stack([self.operator.adjoint(one) for one in y]) if self.by_slice else self.operator.adjoint(y)
        return found.transpose(1, 2).contiguous()
