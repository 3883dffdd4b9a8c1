"""Volumes slab by slab: temporary memory is that of a few slices, whatever the number of slices.

A volume [Z, C, Y, X] is cut along z into slabs of `chunk` slices. What acts on slices is given one slab after the
other; what couples neighbours along z sees one slice more on either side (a halo). Sums over the volume are the sums
of float64 numbers per slice, so `chunk` changes memory and speed, and of the result no more than the rounding.

    normal(p, start, stop)  slices start .. stop-1 of N p, for a symmetric positive (semi)definite map N of volumes

The volume may lie in host memory while the slabs are worked on by another `device`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator, dot, scaled

Slab = tuple[int, int]
Normal = Callable[[Tensor, int, int], Tensor]
CHUNK = 16


def slabs(count: int, chunk: int | None = CHUNK) -> list[Slab]:
    """(start, stop) of the slabs of `count` slices; None makes one slab of them all."""
    if chunk is not None and chunk < 1:
        raise UsageError(f"A slab has at least one slice, not {chunk}.")
    step = max(count, 1) if chunk is None else chunk
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def by_slabs(function: Callable[..., Tensor], *volumes: Tensor, chunk: int | None = CHUNK,
             device: torch.device | str | None = None) -> Tensor:
    """function(*slabs) of one slab of every volume [Z, ...] after the other, written into one result [Z, ...].

    The function works on slices by themselves. Slabs are moved to `device`, the result lies where the first volume is.
    """
    lengths = {len(v) for v in volumes}
    if len(lengths) != 1 or not len(volumes[0]):
        raise UsageError(f"Volumes that go through a function together have one number of slices, not {lengths}.")
    out: Tensor | None = None
    for start, stop in slabs(len(volumes[0]), chunk):
        part = function(*(v[start:stop].to(device or v.device) for v in volumes))
        if len(part) != stop - start:
            raise UsageError(f"The function turned {stop - start} slices into {len(part)}.")
        if out is None:
            out = torch.empty((len(volumes[0]), *part.shape[1:]), dtype=part.dtype, device=volumes[0].device)
        out[start:stop] = part
    assert out is not None
    return out


class OnVolumes:
    """An operator as it acts on one volume [Z, C, Y, X]: slab by slab where it measures slices, else all at once.

    Measurements are [Z, *out_shape] of an operator of slices and [1, *out_shape] of one of whole volumes. Numbers per
    slice are float64 [Z]; an operator of whole volumes has one number, repeated.
    """

    def __init__(self, operator: LinearOperator, y: Tensor, chunk: int | None = CHUNK,
                 device: torch.device | str | None = None) -> None:
        self.operator, self.whole = operator, not operator.slice_separable
        if tuple(y.shape[1:]) != operator.out_shape or not len(y) or (self.whole and len(y) != 1):
            count = "one measurement" if self.whole else "one measurement a slice"
            raise UsageError(f"{operator} takes {count} of shape {operator.out_shape}, not {tuple(y.shape)}.")
        self.shape = operator.in_shape if self.whole else (len(y), *operator.in_shape)
        self.y, self.device = y, device or y.device
        self.slabs = slabs(self.shape[0], None if self.whole else chunk)

    def part(self, start: int, stop: int) -> LinearOperator:
        return self.operator if self.whole else self.operator.slab(start, stop)

    def normal(self, x: Tensor, start: int, stop: int) -> Tensor:
        """A^T A of the slices start .. stop-1, which `x` holds."""
        part = self.part(start, stop)
        return part.normal(x[None])[0] if self.whole else part.normal(x)

    def each(self, function: Callable[[LinearOperator, Tensor], Tensor]) -> Tensor:
        """function(operator, measurement) -> slices of one slab after the other, [Z, C, Y, X], where y lies."""
        out: Tensor | None = None
        for start, stop in self.slabs:
            y = self.y if self.whole else self.y[start:stop]
            x = function(self.part(start, stop), y.to(self.device))
            x = x[0] if self.whole else x
            if out is None:
                out = torch.empty(self.shape, dtype=x.dtype, device=self.y.device)
            out[start:stop] = x
        assert out is not None
        return out

    def adjoint(self) -> Tensor:
        """A^T y, [Z, C, Y, X]."""
        return self.each(lambda part, y: part.adjoint(y))

    def misfit(self, x: Tensor) -> Tensor:
        """|A x - y|^2 of each slice, float64 [Z]."""
        found = []
        for start, stop in self.slabs:
            part, y = self.part(start, stop), self.y if self.whole else self.y[start:stop]
            image = x[start:stop].to(self.device)
            r = part.forward(image[None] if self.whole else image) - y.to(self.device)
            found.append(dot(r, r).to(x.device))
        return torch.cat(found).expand(self.shape[0])

    @property
    def numbers(self) -> int:
        """Real numbers that are measured of each slice (of the volume, by an operator of whole volumes)."""
        return math.prod(self.operator.out_shape) * (2 if self.operator.out_dtype.is_complex else 1)


def squares(a: Tensor, b: Tensor, parts: list[Slab], coupled: bool) -> Tensor:
    """<a, b> of each slice, float64 [Z]; where slices are coupled that of the volume, repeated."""
    each = torch.cat([dot(a[i:j], b[i:j]) for i, j in parts])
    return each.sum().expand(len(each)) if coupled else each


def halo(start: int, stop: int, count: int, wanted: bool = True) -> Slab:
    """The slab with the neighbours that it has inside of the volume."""
    return (max(start - 1, 0), min(stop + 1, count)) if wanted else (start, stop)


def conjugate_gradient_by_slabs(normal: Normal, rhs: Tensor, start: Tensor | None = None, iterations: int = 5,
                                tolerance: float = 0.0, coupled: bool = True, chunk: int | None = CHUNK,
                                enough: Callable[[Tensor], Tensor] | None = None,
                                moving: Tensor | None = None) -> Tensor:
    """x [Z, ...] of N x = rhs by conjugate gradients from `start` (zero by default).

    `coupled` maps have one step length for the volume, others one for each slice. A volume (or slice) rests once
    |rhs - N x| <= tolerance |rhs|, or once enough(x) -> bool [Z] says so before an iteration; those that are not
    `moving` [Z] from the start stay at `start`. Four volumes are held: x, residual, direction and N direction.
    """
    parts = slabs(len(rhs), chunk)
    x = torch.zeros_like(rhs) if start is None else start.clone()
    r = rhs.clone()
    if start is not None:
        for i, j in parts:
            r[i:j] -= normal(x, i, j)
    p, q = r.clone(), torch.empty_like(r)
    rr = squares(r, r, parts, coupled)
    limit = tolerance**2 * squares(rhs, rhs, parts, coupled) if tolerance > 0 else torch.zeros_like(rr)
    active = torch.ones_like(rr, dtype=torch.bool) if moving is None else moving
    for _ in range(iterations):
        active = active & (rr > limit)
        if enough is not None:
            active = active & ~enough(x)
        if not bool(active.any()):
            break
        for i, j in parts:
            q[i:j] = normal(p, i, j)
        step = _fraction(rr, squares(p, q, parts, coupled), active)
        for i, j in parts:
            x[i:j] += scaled(step[i:j], p[i:j])
            r[i:j] -= scaled(step[i:j], q[i:j])
        latest = squares(r, r, parts, coupled)
        turn = _fraction(latest, rr, active)
        for i, j in parts:
            p[i:j] = r[i:j] + scaled(turn[i:j], p[i:j])
        rr = latest
    return x


def _fraction(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """a / b where something still moves and b > 0, else 0."""
    sound = where & (b > 0)
    return torch.where(sound, a / torch.where(sound, b, 1.0), 0.0)
