"""Total variation of volumes [Z, C, Y, X], and the alternating direction method (ADMM) that minimises with it.

    (D_a x)_i = (x_{i+1} - x_i) h_X / h_a   along each chosen axis a of z, y, x;   0 at the last i (a Neumann end)
    TV(x)     = sum |D_a x| over axes and pixels (anisotropic), or the sum of the lengths of the gradients (isotropic)

h are voxel sizes, h_X that along x, so a thick slice counts less than a pixel. A complex difference counts by its
magnitude. ADMM for |A x - y|^2 / 2 + L TV(x) with penalty R (Boyd et al. 2011):

    x <- conjugate gradients on (A^T A + R D^T D) x = A^T y + R D^T (d - u), started at the current x
    d <- shrink(D x + u, L / R)
    u <- u + D x - d

Before the last line stands w = D x + u, from which both are read: d = shrink(w), u = w - d. One w is kept, not two.

`TVz` is one such step for a volume that something else moves as well, a sampler in its data step: w lives on between
the calls, so few iterations suffice in each (Chung et al. 2023, arXiv 2211.10655; 2024, arXiv 2303.05754).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator, dot, scaled
from scidiff.domains.medical.streaming import CHUNK, OnVolumes, conjugate_gradient_by_slabs, halo

PLACE = {"z": 0, "y": -2, "x": -1}


@dataclass(frozen=True)
class Gradient:
    """Differences along `axes` (letters of "zyx") of a volume [Z, ..., Y, X]: [axes, Z, ..., Y, X].

    `spacing` is the voxel size (z, y, x) in mm. Every method also takes a slab with the slices `before` and `after` it
    (0 or 1), and returns what belongs to the slab itself.
    """

    axes: str = "zyx"
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    gains: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.axes or set(self.axes) - set(PLACE) or len(set(self.axes)) != len(self.axes):
            raise UsageError(f"Total variation acts along some of the axes z, y, x, not {self.axes!r}.")
        if len(self.spacing) != 3 or not all(h > 0 and math.isfinite(h) for h in self.spacing):
            raise UsageError(f"Voxels have three positive sizes (z, y, x), not {tuple(self.spacing)}.")
        gains = tuple(float(self.spacing[2]) / float(self.spacing["zyx".index(a)]) for a in self.axes)
        object.__setattr__(self, "gains", gains)

    @property
    def couples(self) -> bool:
        """Whether slices depend on each other."""
        return "z" in self.axes

    @property
    def bound(self) -> float:
        """An upper bound of |D|^2, reached as volumes grow."""
        return 4.0 * sum(g * g for g in self.gains)

    def __call__(self, x: Tensor, after: int = 0) -> Tensor:
        count = len(x) - after
        out = x.new_zeros(len(self.axes), count, *x.shape[1:])
        for k, (axis, gain) in enumerate(zip(self.axes, self.gains, strict=True)):
            taken = x if axis == "z" else x[:count]
            step = torch.diff(taken, dim=PLACE[axis]) * gain
            out[k].narrow(PLACE[axis], 0, step.shape[PLACE[axis]]).copy_(step)
        return out

    def adjoint(self, g: Tensor, before: int = 0, end: bool = True) -> Tensor:
        """D^T g; unless g ends with the last slice of the volume (its z part is ignored), turn `end` off."""
        out = torch.zeros_like(g[0, before:])
        for part, axis, gain in zip(g, self.axes, self.gains, strict=True):
            if axis == "z":
                _gather(out, (part[:-1] if end else part) * gain, before)
            else:
                dim = PLACE[axis]
                _spread(out, part[before:].narrow(dim, 0, part.shape[dim] - 1) * gain, dim)
        return out

    def gram(self, x: Tensor, before: int = 0, after: int = 0) -> Tensor:
        """D^T D x."""
        out = torch.zeros_like(x[before : len(x) - after])
        for axis, gain in zip(self.axes, self.gains, strict=True):
            if axis == "z":
                _gather(out, torch.diff(x, dim=0) * gain**2, before)
            else:
                _spread(out, torch.diff(x[before : len(x) - after], dim=PLACE[axis]) * gain**2, PLACE[axis])
        return out


def _spread(out: Tensor, step: Tensor, dim: int) -> None:
    """Adds to neighbours along `dim` what a difference of theirs gives: minus to the first, plus to the second."""
    if step.shape[dim]:
        out.narrow(dim, 0, step.shape[dim]).sub_(step)
        out.narrow(dim, 1, step.shape[dim]).add_(step)


def _gather(out: Tensor, step: Tensor, before: int) -> None:
    """The same for a slab, of which step[k] is the difference between slices k - before and k - before + 1."""
    forward, back = step[before:][: len(out)], step[: len(out) - 1 + before]
    out[: len(forward)].sub_(forward)
    out[1 - before :][: len(back)].add_(back)


def lengths(g: Tensor, isotropic: bool) -> Tensor:
    """|g| of each difference, or the length of the gradient [1, ...] over the leading axis."""
    size = g.abs()
    return size.square().sum(0, keepdim=True).sqrt() if isotropic else size


def shrink(g: Tensor, threshold: float | Tensor, isotropic: bool = False) -> Tensor:
    """argmin_d |d - g|^2 / 2 + threshold |d|: what is longer than the threshold gets shorter by it, the rest is 0.

    A threshold is a number or broadcasts against g [axes, Z, ...].
    """
    if not isotropic and not g.is_complex():
        return g - torch.clamp(g, -threshold, threshold)  # type: ignore[type-var]
    size = lengths(g, isotropic)
    return g * (1.0 - threshold / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(min=0.0)


def total_variation(x: Tensor, gradient: Gradient, isotropic: bool = False) -> Tensor:
    """TV(x), float64 []."""
    return lengths(gradient(x), isotropic).double().sum()


class Admm:
    """The iteration on one volume, slab by slab. Scalars are float64 [Z]; a coupling along z makes them equal.

    w [axes, Z, ...] starts at zero. `noise`: conjugate gradients stop at |A x - y| = noise sqrt(m), which costs one
    projection an iteration. `iterate` gives a new w and leaves the one that it is given as it was.
    """

    def __init__(self, on: OnVolumes, gradient: Gradient, data: Tensor, weight: float, penalty: float,
                 isotropic: bool = False, cg: int = 3, noise: float = 0.0) -> None:
        if not (weight >= 0 and penalty > 0):
            raise UsageError(f"Total variation takes a weight >= 0 and a penalty > 0, not {weight:g} and {penalty:g}.")
        self.on, self.gradient, self.data, self.isotropic, self.cg = on, gradient, data, isotropic, cg
        self.weight, self.noise = weight, noise
        self.coupled = on.whole or gradient.couples
        self.penalty = torch.full((on.shape[0],), penalty, dtype=torch.float64, device=data.device)

    def zero(self) -> Tensor:
        return self.data.new_zeros(len(self.gradient.axes), *self.data.shape)

    def d_and_u(self, w: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(d, u) of the slices start .. stop-1."""
        part = w[:, start:stop]
        threshold = (self.weight / self.penalty[start:stop]).view(-1, *[1] * (part.dim() - 2))
        d = shrink(part, threshold.to(part.dtype.to_real() if part.is_complex() else part.dtype), self.isotropic)
        return d, part - d

    def _slab(self, start: int, stop: int) -> tuple[int, int, int, int]:
        """(first, last + 1) of a slab with its neighbours along z, and how many those are on either side."""
        low, high = halo(start, stop, self.on.shape[0], self.gradient.couples)
        return low, high, start - low, high - stop

    def _normal(self, p: Tensor, start: int, stop: int) -> Tensor:
        low, high, before, after = self._slab(start, stop)
        part = p[low:high].to(self.on.device)
        q = self.on.normal(part[before : len(part) - after], start, stop)
        q = q + scaled(self.penalty[start:stop].to(q.device), self.gradient.gram(part, before, after))
        return q.to(p.device)

    def moved(self, x: Tensor, w: Tensor, moving: Tensor | None = None) -> Tensor:
        """The next x."""
        rhs = self.data.clone()
        for start, stop in self.on.slabs:
            low, _, before, _ = self._slab(start, stop)
            d, u = self.d_and_u(w, low, stop)
            rhs[start:stop] += scaled(self.penalty[start:stop], self._adjoint(d - u, before, stop))
        enough = None if self.noise <= 0 else self.fits
        chunk = None if self.on.whole else self.on.slabs[0][1]
        return conjugate_gradient_by_slabs(self._normal, rhs, x, self.cg, 0.0, self.coupled, chunk, enough, moving)

    def _adjoint(self, g: Tensor, before: int, stop: int) -> Tensor:
        """D^T g of a slab that ends at `stop`; its last difference along z is a real one unless the volume ends."""
        return self.gradient.adjoint(g, before, stop == self.on.shape[0])

    def fits(self, x: Tensor) -> Tensor:
        """Whether the residual is down at the noise, bool [Z]: for the volume where slices are coupled."""
        misfit, numbers = self.on.misfit(x), float(self.on.numbers)
        if self.gradient.couples and not self.on.whole:
            misfit, numbers = misfit.sum().expand(len(misfit)), numbers * len(misfit)
        return misfit <= self.noise**2 * numbers

    def stretched(self, x: Tensor, w: Tensor) -> Tensor:
        """The next w = D x + u."""
        out = torch.empty_like(w)
        for start, stop in self.on.slabs:
            _, high, _, after = self._slab(start, stop)
            out[:, start:stop] = self.gradient(x[start:high], after) + self.d_and_u(w, start, stop)[1]
        return out

    def iterate(self, x: Tensor, w: Tensor, moving: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.moved(x, w, moving)
        latest = self.stretched(x, w)
        if moving is not None and not bool(moving.all()):
            latest = torch.where(moving.view(1, -1, *[1] * (w.dim() - 2)), latest, w)
        return x, latest

    def residuals(self, x: Tensor, w: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """|D x - d|, R |D^T (d - d before)| and the sizes that they are small beside, max(|D x|, |d|) and R |D^T u|."""
        sums: list[list[Tensor]] = [[], [], [], [], []]
        for start, stop in self.on.slabs:
            low, high, first, after = self._slab(start, stop)
            d, u = self.d_and_u(w, low, stop)
            change = self._adjoint(d - self.d_and_u(before, low, stop)[0], first, stop)
            pull = self._adjoint(u, first, stop)
            dx, d = self.gradient(x[start:high], after).movedim(0, 1), d[:, first:].movedim(0, 1)
            for store, part in zip(sums, (dx - d, dx, d, change, pull), strict=True):
                store.append(dot(part, part))
        gap, dx2, d2, change2, pull2 = (torch.cat(each) for each in sums)
        if self.coupled:
            gap, dx2, d2, change2, pull2 = (v.sum().expand(len(v)) for v in (gap, dx2, d2, change2, pull2))
        rho = self.penalty
        return gap.sqrt(), rho * change2.sqrt(), torch.maximum(dx2, d2).sqrt(), rho * pull2.sqrt()

    def balance(self, w: Tensor, primal: Tensor, dual: Tensor, ratio: float = 10.0, factor: float = 2.0) -> Tensor:
        """Moves the penalty to where both residuals fall alike, and returns w for it: d stays, R u stays."""
        change = torch.where(primal > ratio * dual, factor, torch.where(dual > ratio * primal, 1.0 / factor, 1.0))
        if bool((change == 1.0).all()):
            return w
        out = torch.empty_like(w)
        for start, stop in self.on.slabs:
            d, u = self.d_and_u(w, start, stop)
            out[:, start:stop] = d + scaled(1.0 / change[start:stop], u.movedim(0, 1)).movedim(1, 0)
        self.penalty = self.penalty * change
        return out


def fingerprint(y: Tensor) -> list[float]:
    """Numbers that tell one measurement from another, whatever device it lies on."""
    flat = y.reshape(1, -1)
    ones = torch.ones((), dtype=y.dtype, device=y.device).expand_as(flat)
    return [*map(float, y.shape), float(dot(flat, flat)), float(dot(flat, ones))]


@dataclass(frozen=True)
class TVStep:
    """Iterations of ADMM on a volume that a sampler moves: step(x, y, operator, memory) -> x.

    x [Z, C, Y, X] is the estimate of the clean volume where the iteration starts, y its measurement; `memory` (the
    `memory` of a Run) keeps w and A^T y between the calls. It serves one measurement: another one is refused.
    weight L and penalty R are for an operator of norm 1 and scaled to the one given, unless `unit_norm` is off.
    cg: conjugate gradient iterations in each of the `iterations`; few of them keep what the sampler knows. noise: see
    Admm. slices: of one volume, where the batch holds several. spacing: voxel size (z, y, x).
    device: where slabs of `chunk` slices are measured, if the volume lies elsewhere.
    """

    weight: float = 1.05e-4
    penalty: float = 0.026
    axes: str = "z"
    isotropic: bool = False
    iterations: int = 1
    cg: int = 5
    noise: float = 0.0
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    unit_norm: bool = True
    slices: int | None = None
    chunk: int | None = CHUNK
    device: str | None = None

    @property
    def pairs(self) -> int:
        """Projections there and back that one call costs, after the first."""
        return self.iterations * (self.cg + 1)

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, operator: LinearOperator, memory: MutableMapping[str, Any]) -> Tensor:
        kept = memory.setdefault(f"total-variation-{self.axes}", {})
        scale = operator.norm(device=self.device or x.device) ** 2 if self.unit_norm else 1.0
        done = [self._one(part, measured, operator, kept, str(i), scale)
                for i, (part, measured) in enumerate(self._volumes(x, y, operator))]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _volumes(self, x: Tensor, y: Tensor, operator: LinearOperator) -> Iterator[tuple[Tensor, Tensor]]:
        if not operator.slice_separable:
            yield from zip(x.split(1), y.split(1), strict=True)
            return
        depth = self.slices or len(x)
        if len(x) != len(y) or len(x) % depth:
            raise UsageError(f"{len(x)} slices with {len(y)} measurements are no volumes of {depth} slices.")
        yield from zip(x.split(depth), y.split(depth), strict=True)

    def _one(self, x: Tensor, y: Tensor, operator: LinearOperator, kept: dict[str, Any], name: str,
             scale: float) -> Tensor:
        on = OnVolumes(operator, y, self.chunk, self.device)
        mark, own = fingerprint(y), kept.get(name)
        if own is None:
            own = {"data": on.adjoint(), "mark": mark}
        elif len(own["mark"]) != len(mark) or any(
                not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in zip(own["mark"], mark, strict=True)):
            raise UsageError("The total variation of this run belongs to another measurement.",
                             "Begin every volume with an empty memory.")
        admm = Admm(on, Gradient(self.axes, self.spacing), own["data"], self.weight * scale, self.penalty * scale,
                    self.isotropic, self.cg, self.noise)
        volume, w = x[0] if on.whole else x, own.get("w")
        w = admm.zero() if w is None else w
        for _ in range(self.iterations):
            volume, w = admm.iterate(volume, w)
        kept[name] = {**own, "w": w}
        return volume[None] if on.whole else volume


@dataclass(frozen=True)
class TVz(TVStep):
    """Total variation across the slices, the defaults of sparse views; limited angles take ten times the weight."""

    axes: str = "z"


@dataclass(frozen=True)
class TV3D(TVStep):
    """Total variation along all three axes."""

    axes: str = "zyx"


Watch = Callable[[int, Tensor], None]


def minimise(admm: Admm, x: Tensor, iterations: int, tolerance: float = 0.0, adaptive: bool = False,
             watch: Watch | None = None) -> Tensor:
    """`iterations` of ADMM from x. A volume (or slice) rests once both residuals are `tolerance` of their sizes, or
    once the residual is down at the noise; `adaptive` balances the penalty on the way; watch(number, x) is told.
    """
    w = admm.zero()
    moving = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for number in range(iterations):
        if admm.noise > 0:
            moving = moving & ~admm.fits(x)
        if not bool(moving.all()) and not bool(moving.any()):
            break
        before = w
        x, w = admm.iterate(x, w, moving)
        if watch is not None:
            watch(number + 1, x)
        if tolerance > 0 or adaptive:
            primal, dual, size, pull = admm.residuals(x, w, before)
            moving = moving & ~((primal <= tolerance * size) & (dual <= tolerance * pull))
            if adaptive:
                w = admm.balance(w, primal, dual)
    return x

