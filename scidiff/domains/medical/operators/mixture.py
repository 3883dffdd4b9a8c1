"""Several sources in one measurement, y = sum_k A_k x_k: haze over tissue, rings in a detector, metal in a scan.

    Blend     sources of one kind seen by one operator with a gain each,  y = A sum_k g_k x_k,  x [B, K, *in_shape].
              Closed forms are those of A: singular values |g| s, along the combination g / |g| of the sources.
    Sources   sources of any shapes by operators of their own; they stand flattened, one after the other, in x.

(Sources of one shape with different operators: `simple.Mixture`.) A measurement alone cannot tell sources apart that
look alike to it: pinv gives the shortest answer, y shared out in proportion to the gains. A prior for each source, or
weights in `prox`, decide otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import SVD, Adjoint, LinearOperator, stack
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.operators.simple import Diagonal, Keep, MetalTrace, Separable


class Blend(LinearOperator):
    """x [B, K, *operator.in_shape] -> operator(sum_k gains[k] x_k)."""

    def __init__(self, operator: LinearOperator, gains: Sequence[float]) -> None:
        self.operator, self.gains = operator, torch.tensor([float(g) for g in gains], dtype=torch.float64)
        if not len(self.gains) or not bool(torch.isfinite(self.gains).all()) or not bool(self.gains.any()):
            raise UsageError(f"A blend has a finite gain for each source, not all of them zero, not {list(gains)}.")
        super().__init__((len(self.gains), *operator.in_shape), operator.out_shape, operator.dtype, operator.out_dtype)
        self.slice_separable = operator.slice_separable

    def _along(self, like: Tensor) -> Tensor:
        """The gains, shaped to multiply sources [B, K, *in_shape]."""
        return self.gains.to(like.device, like.real.dtype).view(-1, *[1] * len(self.operator.in_shape))

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._forward((x * self._along(x)).sum(1))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._spread(self.operator._adjoint(y))

    def _spread(self, x: Tensor) -> Tensor:
        return x[:, None] * self._along(x)

    def slab(self, start: int, stop: int) -> LinearOperator:
        return Blend(self.operator.slab(start, stop), self.gains.tolist())

    def svd(self) -> SVD | None:
        inner = self.operator.svd()
        if inner is None:
            return None
        length = float(self.gains.norm())
        return SVD(inner.s * length, inner.u, inner.ut, lambda c: self._spread(inner.v(c)) / length,
                   lambda x: inner.vt((x * self._along(x)).sum(1) / length))


class Sources(Adjoint):
    """x [B, n_1 + n_2 + ...], the sources flattened one after the other -> sum_k A_k x_k."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        a = operators[0]
        for b in operators[1:]:
            if (a.out_shape, a.out_dtype.is_complex) != (b.out_shape, b.out_dtype.is_complex):
                raise UsageError(f"{a} and {b} cannot be sources of one measurement: they give {a.out_shape} and "
                                 f"{b.out_shape}.")
        self.operators = tuple(operators)
        self._row = stack([o.T for o in operators])
        super().__init__(self._row)

    def split(self, x: Tensor) -> list[Tensor]:
        """The sources [B, *in_shape of its operator], one after the other."""
        return self._row.split(x)

    def join(self, sources: Sequence[Tensor]) -> Tensor:
        """x [B, n_1 + n_2 + ...] of the sources, as `split` gives them."""
        shapes = [tuple(s.shape[1:]) for s in sources]
        wanted = [o.in_shape for o in self.operators]
        if shapes != wanted:
            raise UsageError(f"{self} joins sources of the shapes {wanted}, not {shapes}.")
        return torch.cat([s.flatten(1) for s in sources], 1)

    def slab(self, start: int, stop: int) -> LinearOperator:
        return Sources([o.slab(start, stop) for o in self.operators])


def haze(size: Sequence[int], gains: Sequence[float] = (1.0, 0.5)) -> Blend:
    """Images laid over each other, x [B, K, 1, Y, X] -> sum_k gains[k] x_k: tissue under haze."""
    return Blend(Diagonal(torch.ones(1, *size)), gains)


def with_rings(projector: ParallelCT) -> Sources:
    """A slice and an offset [1, 1, cells] of the detector's cells, the same in all views: what rings come from."""
    _, views, cells = projector.out_shape
    return Sources([projector, Separable((1, 1, cells), {1: torch.ones(views, 1, dtype=torch.float64)})])


def with_metal(projector: LinearOperator, metal: Tensor) -> Sources:
    """A slice and whatever the rays that meet metal (`metal` [Y, X], bool) add to it, [number of those rays]."""
    trace = projector(metal.to(torch.float32).view(1, *projector.in_shape))[0]
    return Sources([projector, Keep(trace > 1e-6 * trace.max()).T])


def discs(size: Sequence[int], places: Sequence[Sequence[float]]) -> Tensor:
    """bool [Y, X]: pixels in discs (y, x, radius), in shares of the image's shorter side from its middle."""
    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / min(size) for n in size)
    found = torch.zeros(tuple(int(n) for n in size), dtype=torch.bool)
    for place in places:
        if len(place) != 3 or place[2] <= 0:
            raise UsageError(f"A disc is (y, x, radius) with a positive radius, not {list(place)}.")
        found |= torch.hypot(y[:, None] - place[0], x - place[1]) <= place[2]
    if not bool(found.any()):
        raise UsageError(f"The discs {[list(p) for p in places]} hold no pixel of an image of {tuple(size)}.")
    return found


def metal_trace(size: Sequence[int], views: int | None = 180, angles: Sequence[float] | None = None,
                detector: int | None = None, spacing_mm: float | Sequence[float] = 1.0,
                metal: Sequence[Sequence[float]] = ((0.0, 0.1, 0.06),)) -> MetalTrace:
    """A parallel beam without the rays through discs of metal (y, x, radius); see `discs` and `ParallelCT`."""
    return MetalTrace(ParallelCT(size, views, angles, detector, spacing_mm), discs(size, metal))
