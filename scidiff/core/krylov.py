"""Conjugate gradients on batches: one Krylov space a sample, scalars per sample in float64.

Samples that have converged, or that a stop rule calls good enough, stay where they are while the others go on, so a
sample's answer does not depend on its batch. Stopping early regularises: the iterate holds the well measured
directions first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scidiff.core.operator import LinearOperator

_PIECE = 1 << 22  # entries that a dot product turns into float64 at a time


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, float64 [B]; the real part where values are complex."""
    if a.is_complex() != b.is_complex():
        a, b = (a.real, b) if a.is_complex() else (a, b.real)
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = a.flatten(1), b.flatten(1)
    width = max(_PIECE // max(len(a), 1), 1)
    if a.shape[1] <= width:
        return torch.linalg.vecdot(a.double(), b.double())
    pieces = zip(a.split(width, 1), b.split(width, 1), strict=True)
    return torch.stack([torch.linalg.vecdot(p.double(), q.double()) for p, q in pieces]).sum(0)


def scaled(factor: Tensor, x: Tensor) -> Tensor:
    """Each sample of x [B, ...] times its number in factor [B], in the precision of x."""
    real = x.dtype.to_real() if x.dtype.is_complex else x.dtype
    return x * factor.to(real).view(-1, *[1] * (x.dim() - 1))


def _fraction(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """a / b where a sample still moves and b > 0, else 0."""
    ok = where & (b > 0)
    return torch.where(ok, a / torch.where(ok, b, 1.0), 0.0)


def conjugate_gradient(normal: Callable[[Tensor], Tensor], rhs: Tensor, start: Tensor | None = None,
                       iterations: int = 50, tolerance: float = 1e-6,
                       stop: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """x of normal(x) = rhs for a symmetric positive (semi)definite map of [B, ...]; started at zero by default.

    A sample rests once |rhs - normal(x)| <= tolerance |rhs|, or once stop(x, residual) -> bool [B] says so (asked
    before every iteration). With tolerance 0 and no stop rule nothing waits for the device.
    """
    x = torch.zeros_like(rhs) if start is None else start
    r = rhs if start is None else rhs - normal(start)
    p, rr = r, dot(r, r)
    enough = tolerance**2 * dot(rhs, rhs)
    moving = torch.ones_like(rr, dtype=torch.bool)
    for _ in range(iterations):
        moving = moving & (rr > enough)
        if stop is not None:
            moving = moving & ~stop(x, r)
        if (tolerance > 0 or stop is not None) and not bool(moving.any()):
            break
        q = normal(p)
        step = _fraction(rr, dot(p, q), moving)
        x, r = x + scaled(step, p), r - scaled(step, q)
        latest = dot(r, r)
        p, rr = r + scaled(_fraction(latest, rr, moving), p), latest
    return x


def least_squares(operator: LinearOperator, y: Tensor, start: Tensor | None = None, iterations: int = 100,
                  tolerance: float = 1e-6, noise: float = 0.0) -> Tensor:
    """argmin_x |A x - y| nearest to `start` (zero by default), by CGLS: [B, *out_shape] -> [B, *in_shape].

    A sample rests once |A^T r| <= tolerance |A^T y|, r = y - A x, or at the noise level |r| <= noise sqrt(m) of m real
    numbers of standard deviation `noise`. The residual is carried along, so the second test costs nothing.
    """
    b = operator.adjoint(y)
    x = torch.zeros_like(b) if start is None else start
    r = y if start is None else y - operator.forward(start)
    s = b if start is None else operator.adjoint(r)
    p, ss = s, dot(s, s)
    enough = tolerance**2 * dot(b, b)
    numbers = math.prod(operator.out_shape) * (2 if operator.out_dtype.is_complex else 1)
    moving = torch.ones_like(ss, dtype=torch.bool)
    for _ in range(iterations):
        moving = moving & (ss > enough) & (dot(r, r) > noise**2 * numbers)
        if not bool(moving.any()):
            break
        q = operator.forward(p)
        step = _fraction(ss, dot(q, q), moving)
        x, r = x + scaled(step, p), r - scaled(step, q)
        s = operator.adjoint(r)
        latest = dot(s, s)
        p, ss = s + scaled(_fraction(latest, ss, moving), p), latest
    return x
