"""Reconstructions without a learned prior, behind one call: method(y, operator) -> volume [Z, C, Y, X].

    ZeroFilled  A^T y / |A|^2                        what was not measured stays zero (one step of steepest descent)
    FBP         filtered back projection             parallel, fan and cone beams (`operators/fbp.py`)
    CGLS        conjugate gradients on |A x - y|^2   (Hestenes and Stiefel 1952), stopped early
    SIRT        x <- x + w C A^T R (y - A x)         (Gilbert 1972; as a gradient method Gregor and Benson 2008)
    AdmmTV      min |A x - y|^2 / 2 + L TV(x)        in the slices (2D) or the volume (3D), see `tv.py`

R and C are the inverse sums of the rows and columns of A, so SIRT asks for weights that are not negative; it converges
for 0 < w < 2. Measurements are [Z, *out_shape] of an operator of slices, [1, *out_shape] of one of volumes. Each method
works on `chunk` slices at a time, which changes its memory, not its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import LinearOperator, Scaled, dot, least_squares, scaled
from scidiff.core.run import uniform
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import FanCT, ParallelCT
from scidiff.domains.medical.operators.fbp import angular_weights, fbp, fdk, filtered, ramp
from scidiff.domains.medical.streaming import CHUNK, OnVolumes
from scidiff.domains.medical.tv import Admm, Gradient, Watch, minimise


class Method(Protocol):
    """What every reconstruction here is."""

    def __call__(self, y: Tensor, operator: LinearOperator) -> Tensor: ...


@dataclass(frozen=True)
class ZeroFilled:
    """The adjoint of the operator scaled to norm 1: zero-filled Fourier transform, plain back projection."""

    chunk: int | None = CHUNK

    @torch.no_grad()
    def __call__(self, y: Tensor, operator: LinearOperator) -> Tensor:
        norm = operator.norm(device=y.device)
        if norm == 0.0:
            raise UsageError(f"{operator} measures nothing.")
        return OnVolumes(operator, y, self.chunk).adjoint() / norm**2


@dataclass(frozen=True)
class FBP:
    """Filtered back projection, Feldkamp-Davis-Kress for cones; `hann` softens the ramp.

    `matched` spreads the filtered rows of a parallel beam by the adjoint of its operator: the back projection of an
    iterative method, a little coarser than interpolating the rows at every pixel.
    """

    hann: bool = False
    matched: bool = False
    chunk: int | None = CHUNK

    @torch.no_grad()
    def __call__(self, y: Tensor, operator: LinearOperator) -> Tensor:
        return OnVolumes(operator, y, self.chunk).each(self._back)

    def _back(self, operator: LinearOperator, y: Tensor) -> Tensor:
        if isinstance(operator, Scaled):
            return self._back(operator.operator, y / operator.factor)
        if self.matched and isinstance(operator, ParallelCT):
            cell = operator.detector.spacing
            rows = filtered(y, ramp(operator.detector.cells, cell, self.hann))
            weights = angular_weights(operator.angles, 180.0) * (cell / math.prod(operator.spacing))
            return operator.adjoint(rows * weights.to(rows)[:, None])
        if isinstance(operator, (ParallelCT, FanCT)) and not self.matched:
            return fbp(operator, y, self.hann)
        if isinstance(operator, ConeCT) and not self.matched:
            return fdk(operator, y, self.hann)
        beams = "parallel beams, where it is matched," if self.matched else "parallel, fan and cone beams,"
        raise UsageError(f"Filtered back projection is for {beams} not for {operator}.",
                         "Choose CGLS, which takes any operator.")


@dataclass(frozen=True)
class CGLS:
    """Least squares from zero. `iterations` regularise; a slice also rests at |A x - y| <= noise sqrt(m)."""

    iterations: int = 20
    tolerance: float = 1e-6
    noise: float = 0.0
    chunk: int | None = CHUNK

    @torch.no_grad()
    def __call__(self, y: Tensor, operator: LinearOperator) -> Tensor:
        return OnVolumes(operator, y, self.chunk).each(
            lambda part, measured: least_squares(part, measured, None, self.iterations, self.tolerance, self.noise))


def reciprocal_sums(operator: LinearOperator, like: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C): one over the sums of the rows (shape of measurements `like`) and columns (of images), 0 where they are.

    Weights are taken for negative where A 1 < |A v| for a random v of entries +1 and -1: no sum of others does that.
    """
    if operator.dtype.is_complex or operator.out_dtype.is_complex:
        raise UsageError(f"{operator} has complex weights, whose sums do not scale a correction.", "Choose CGLS.")
    count = len(like)
    draws = uniform(0, torch.arange(count), "signs", math.prod(operator.in_shape)).view(count, *operator.in_shape)
    signs = torch.where(draws < 0.5, -1.0, 1.0).to(like)
    rows, columns = operator.forward(torch.ones_like(signs)), operator.adjoint(torch.ones_like(like))
    least = [1e-6 * float(total.abs().max()) for total in (rows, columns)]
    if bool((operator.forward(signs).abs() > rows + least[0]).any()):
        raise UsageError(f"{operator} has negative weights, whose sums do not scale a correction.", "Choose CGLS.")
    found = [torch.where(total > low, 1.0 / total.clamp(min=max(low, 1e-30)), 0.0)
             for total, low in zip((rows, columns), least, strict=True)]
    return found[0], found[1]


def corrected(x: Tensor, y: Tensor, operator: LinearOperator, relaxation: float = 1.0) -> Tensor:
    """One iteration of SIRT on a batch x [B, *in_shape] with measurements y [B, *out_shape]."""
    rows, columns = reciprocal_sums(operator, y)
    return x + relaxation * columns * operator.adjoint(rows * (y - operator.forward(x)))


@dataclass(frozen=True)
class SIRT:
    """Simultaneous corrections from zero; `bounds` (low, high) clip the image after each of them.

    A slice rests at |A x - y| <= noise sqrt(m).
    """

    iterations: int = 100
    relaxation: float = 1.0
    bounds: Sequence[float | None] = (None, None)
    noise: float = 0.0
    chunk: int | None = CHUNK

    def __post_init__(self) -> None:
        if not 0 < self.relaxation < 2:
            raise UsageError(f"SIRT converges with a relaxation between 0 and 2, not {self.relaxation:g}.")

    @torch.no_grad()
    def __call__(self, y: Tensor, operator: LinearOperator) -> Tensor:
        on = OnVolumes(operator, y, self.chunk)
        return on.each(lambda part, measured: self._solve(part, measured, on.numbers))

    def _solve(self, operator: LinearOperator, y: Tensor, numbers: int) -> Tensor:
        rows, columns = reciprocal_sums(operator, y)
        x, r = torch.zeros_like(columns), y
        low, high = self.bounds
        moving = torch.ones(len(y), dtype=torch.bool, device=y.device)
        for _ in range(self.iterations):
            if self.noise > 0:
                moving = moving & (dot(r, r) > self.noise**2 * numbers)
                if not bool(moving.any()):
                    break
            latest = x + scaled(self.relaxation * moving.double(), columns * operator.adjoint(rows * r))
            x = latest if low is None and high is None else latest.clamp(low, high)
            r = y - operator.forward(x)
        return x


@dataclass(frozen=True)
class AdmmTV:
    """Least squares with total variation along `axes`: "yx" takes slices by themselves, "zyx" the volume.

    weight L; penalty R, 10 L by default. Both are for an operator of norm 1 and scaled to the one given, unless
    `unit_norm` is off. cg: conjugate gradient iterations in each of the `iterations`. The method stops before them
    where both residuals of ADMM are `tolerance` of their sizes, or where |A x - y| <= noise sqrt(m). adaptive: balances
    the penalty. spacing: voxel size (z, y, x), of which the ratios count. watch(number, x) is told of each iteration.
    """

    weight: float = 2e-4
    penalty: float | None = None
    axes: str = "zyx"
    isotropic: bool = False
    iterations: int = 200
    cg: int = 3
    tolerance: float = 0.0
    noise: float = 0.0
    adaptive: bool = False
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    unit_norm: bool = True
    chunk: int | None = CHUNK

    @torch.no_grad()
    def __call__(self, y: Tensor, operator: LinearOperator, start: Tensor | None = None,
                 watch: Watch | None = None) -> Tensor:
        on = OnVolumes(operator, y, self.chunk)
        scale = operator.norm(device=y.device) ** 2 if self.unit_norm else 1.0
        penalty = 10.0 * self.weight if self.penalty is None else self.penalty
        data = on.adjoint()
        admm = Admm(on, Gradient(self.axes, self.spacing), data, self.weight * scale, penalty * scale, self.isotropic,
                    self.cg, self.noise)
        x = torch.zeros_like(data) if start is None else start
        return minimise(admm, x, self.iterations, self.tolerance, self.adaptive, watch)
