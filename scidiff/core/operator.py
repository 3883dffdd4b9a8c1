"""Linear operators with an exact adjoint: what a measurement y = A x + noise is made of.

An operator acts on batches, x [B, *in_shape] -> y [B, *out_shape], in the precision and on the device of its input.
Inner products are <a, b> = Re sum conj(a) b, summed in float64; A^T is the adjoint in them:

    <A x, y> = <x, A^T y>        (the conjugate transpose of a complex matrix; Re A^H y where x is real and y complex)

`forward` and `adjoint` are autograd functions whose derivatives are each other, so a chain through them is
differentiable any number of times. A real operator acts on both parts of complex values.

    norm        largest singular value: Lanczos iteration on A^T A from a fixed start
    pinv(y)     x of least norm among those of least |A x - y|        (SVD, or CGLS started at zero)
    prox(v, y)  argmin_x |A x - y|^2 / 2 + |x - v|^2 / (2 gamma)      (SVD, or conjugate gradients started at v)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.krylov import conjugate_gradient, dot, least_squares, scaled
from scidiff.core.run import uniform

__all__ = ["SVD", "LinearOperator", "conjugate_gradient", "dot", "least_squares", "scaled", "stack"]

Shape = tuple[int, ...]
Actor = Callable[[Tensor], Tensor]


def _real(x: Tensor) -> torch.dtype:
    return x.dtype.to_real() if x.is_complex() else x.dtype


class _Act(torch.autograd.Function):
    """A or A^T of one operator; the derivative of each is the other's adjoint."""

    @staticmethod
    def forward(x: Tensor, operator: LinearOperator, back: bool) -> Tensor:
        return operator._adjoint(x) if back else operator._forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.operator, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.operator.forward(gradient) if ctx.back else ctx.operator.adjoint(gradient), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return ctx.operator.adjoint(tangent) if ctx.back else ctx.operator.forward(tangent)


@dataclass(frozen=True)
class SVD:
    """A = U diag(s) V^T by actions. Coefficients are [B, *s.shape]; s >= 0 may hold zeros, in any order.

    V^T A^T U = diag(s), and U, V keep the length of every coefficient vector that U^T, V^T can produce (in a Fourier
    basis those of real images are Hermitian, so white noise in the basis is V^T of white noise in the image).
    """

    s: Tensor
    u: Actor
    ut: Actor
    v: Actor
    vt: Actor

    def along(self, coefficients: Tensor) -> Tensor:
        """s in the precision and on the device of some coefficients."""
        return self.s.to(coefficients.device, _real(coefficients))

    def scale(self, factor: float) -> SVD:
        sign = 1.0 if factor >= 0 else -1.0
        return SVD(self.s * abs(factor), lambda c: sign * self.u(c), lambda y: sign * self.ut(y), self.v, self.vt)


class LinearOperator(ABC):
    """A linear map of batches with its exact adjoint; a subclass gives `_forward` and `_adjoint`.

    `dtype` and `out_dtype` say whether x and y are real or complex; the precision is that of the input. Where
    `slice_separable`, the batch axis may hold the slices of a volume, each of which is measured by itself.
    """

    slice_separable: bool = True

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], dtype: torch.dtype = torch.float32,
                 out_dtype: torch.dtype | None = None) -> None:
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.dtype, self.out_dtype = dtype, out_dtype or dtype
        self._norm: float | None = None

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...

    def svd(self) -> SVD | None:
        """The singular value decomposition by actions, or None where there is none in closed form."""
        return None

    def slab(self, start: int, stop: int) -> LinearOperator:
        """The operator of the slices start..stop-1 of a volume."""
        if not self.slice_separable:
            raise UsageError(f"{self} measures whole volumes; it has no part for slices {start} to {stop}.")
        return self

    def forward(self, x: Tensor) -> Tensor:
        """A x, [B, *in_shape] -> [B, *out_shape]."""
        return self._act(x, False)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, [B, *out_shape] -> [B, *in_shape]."""
        return self._act(y, True)

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return self.adjoint(self.forward(x))

    def _act(self, x: Tensor, back: bool) -> Tensor:
        shape, kind = (self.out_shape, self.out_dtype) if back else (self.in_shape, self.dtype)
        if tuple(x.shape[1:]) != shape:
            what, found = ("measurement", "an image") if back else ("image", "a measurement")
            raise UsageError(f"{self} takes a batch of {what}s of shape {shape}, not {tuple(x.shape)}.",
                             f"Is this {found}, or is the batch axis missing?")
        if not (x.is_floating_point() or x.is_complex()):
            raise UsageError(f"{self} takes real or complex numbers, not {x.dtype}.", "Convert with .float().")
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if kind.is_complex and not x.is_complex():
            x = x.to(x.dtype.to_complex())
        elif x.is_complex() and not kind.is_complex:
            re, im = _Act.apply(x.real, self, back), _Act.apply(x.imag, self, back)
            return re + 1j * im
        return _Act.apply(x, self, back)  # type: ignore[return-value]

    def measure(self, x: Tensor, noise: Callable[[Tensor, int, Tensor], Tensor] | None = None, seed: int = 0,
                ids: Tensor | None = None) -> Tensor:
        """noise(A x, seed, ids): a simulated measurement; `ids` [B] name the samples (0, 1, ... by default)."""
        y = self.forward(x)
        if noise is None:
            return y
        return noise(y, seed, torch.arange(len(y), device=y.device) if ids is None else ids)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix [m, n] of the operator, for small sizes."""
        n = math.prod(self.in_shape)
        eye = torch.eye(n, dtype=dtype.to_complex() if self.dtype.is_complex else dtype)
        return self.forward(eye.view(n, *self.in_shape)).reshape(n, -1).T

    def norm(self, iterations: int = 100, tolerance: float = 1e-10, device: torch.device | str = "cpu") -> float:
        """The largest singular value, cached: Lanczos on A^T A in float64 until it changes by less than `tolerance`."""
        if self._norm is None:
            self._norm = self._largest(iterations, tolerance, torch.device(device))
        return self._norm

    def _largest(self, iterations: int, tolerance: float, device: torch.device) -> float:
        count = math.prod(self.in_shape)
        start = uniform(0, torch.arange(2), "operator-norm", count).to(device) * 2 - 1
        q = (torch.complex(start[0], start[1]) if self.dtype.is_complex else start[0]).view(1, *self.in_shape)
        q, before = q / dot(q, q).sqrt().item(), torch.zeros_like(q)
        diagonal, off, value = [], [], 0.0
        for k in range(min(iterations, count)):
            w = self.normal(q) - (off[-1] * before if off else 0.0)
            diagonal.append(float(dot(w, q)))
            w = w - diagonal[-1] * q
            side = torch.diag(torch.tensor(off, dtype=torch.float64), -1) if off else torch.zeros(1, 1)
            latest = float(torch.linalg.eigvalsh(torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + side)[-1])
            length = float(dot(w, w).sqrt())
            if length <= 1e-13 * max(latest, 1e-300) or (k > 1 and abs(latest - value) <= tolerance * latest):
                value = latest
                break
            off.append(length)
            q, before, value = w / length, q, latest
        return math.sqrt(max(value, 0.0))

    def unit_norm(self) -> LinearOperator:
        """The operator divided by its norm."""
        norm = self.norm()
        if norm == 0.0:
            raise UsageError(f"{self} is zero, so it cannot be scaled to norm 1.")
        return self * (1.0 / norm)

    def pinv(self, y: Tensor, iterations: int = 100, tolerance: float = 1e-6, noise: float = 0.0,
             start: Tensor | None = None) -> Tensor:
        """A^+ y, [B, *out_shape] -> [B, *in_shape]: by SVD where there is one, else by CGLS.

        CGLS stops a sample after `iterations`, when |A^T r| <= tolerance |A^T y|, or at the noise level
        |r| <= noise sqrt(m), r = y - A x, m measured numbers of standard deviation `noise`; a `start` other than zero
        keeps its part outside of the range of A^T.
        """
        svd = self.svd() if noise == 0.0 and start is None else None
        if svd is not None:
            c = svd.ut(y)
            s = svd.along(c)
            seen = s > _negligible(s)
            return svd.v(torch.where(seen, c / torch.where(seen, s, 1.0), 0.0))
        return least_squares(self, y, start, iterations, tolerance, noise)

    def prox(self, v: Tensor, y: Tensor, gamma: float | Tensor, iterations: int = 50,
             tolerance: float = 1e-6) -> Tensor:
        """argmin_x |A x - y|^2 / 2 + |x - v|^2 / (2 gamma); gamma is a number or [B], and may be infinite.

        At infinity this is the nearest x to v of least |A x - y|. By SVD where there is one, else by conjugate
        gradients started at v, until the residual is `tolerance` times the first.
        """
        weight = torch.as_tensor(gamma, dtype=torch.float64, device=v.device).expand(len(v))
        svd = self.svd()
        if svd is not None:
            c = svd.vt(v)
            s = svd.along(c).double()
            g = weight.view(-1, *[1] * s.dim())
            seen = s > _negligible(s)
            factor = torch.where(seen, 1.0 / (1.0 / g + s * s).clamp(min=1e-300) * s, 0.0)
            return v + svd.v((svd.ut(y) - svd.along(c) * c) * factor.to(_real(c)))
        if bool(torch.isinf(weight).all()):
            return v + least_squares(self, y - self.forward(v), None, iterations, tolerance)
        if bool(torch.isinf(weight).any()):
            raise UsageError("prox takes finite weights gamma or infinite ones, not both in one batch.")
        rhs = scaled(weight, self.adjoint(y - self.forward(v)))
        return v + conjugate_gradient(lambda p: p + scaled(weight, self.normal(p)), rhs, None, iterations, tolerance)

    @property
    def T(self) -> LinearOperator:
        """The adjoint as an operator."""
        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum((self, other))

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return Sum((self, other * -1.0))

    def __mul__(self, factor: float) -> LinearOperator:
        return Scaled(self, float(factor))

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> LinearOperator:
        return Scaled(self, 1.0 / float(factor))

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.in_shape}->{self.out_shape}"


def _negligible(s: Tensor) -> float:
    """Below this a singular value is rounding."""
    return float(s.max()) * torch.finfo(s.dtype).eps * 16 if s.numel() else 0.0


class Adjoint(LinearOperator):
    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.out_shape, operator.in_shape, operator.out_dtype, operator.dtype)
        self.operator, self.slice_separable = operator, operator.slice_separable

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._forward(y)

    def slab(self, start: int, stop: int) -> LinearOperator:
        return self.operator.slab(start, stop).T

    def svd(self) -> SVD | None:
        svd = self.operator.svd()
        return svd and SVD(svd.s, svd.v, svd.vt, svd.u, svd.ut)

    @property
    def T(self) -> LinearOperator:
        return self.operator


class Composition(LinearOperator):
    """A B: first the inner operator B, then the outer one A."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        both = inner.out_dtype.is_complex and not outer.dtype.is_complex  # the outer one acts on both parts
        if outer.in_shape != inner.out_shape or (both and outer.out_dtype.is_complex):
            raise UsageError(f"{outer} cannot follow {inner}: the one gives {inner.out_shape} ({inner.out_dtype}), the "
                             f"other takes {outer.in_shape} ({outer.dtype}).")
        super().__init__(inner.in_shape, outer.out_shape, inner.dtype, inner.out_dtype if both else outer.out_dtype)
        self.outer, self.inner = outer, inner
        self.slice_separable = outer.slice_separable and inner.slice_separable

    def _forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner._forward(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        between = self.outer.adjoint(y)
        return self.inner._adjoint(between if self.inner.out_dtype.is_complex else between.real)

    def slab(self, start: int, stop: int) -> LinearOperator:
        return Composition(self.outer.slab(start, stop), self.inner.slab(start, stop))


class Sum(LinearOperator):
    """A + B + ... of operators between the same spaces."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        a = operators[0]
        for b in operators[1:]:
            if (a.in_shape, a.out_shape, a.dtype.is_complex, a.out_dtype.is_complex) != (
                    b.in_shape, b.out_shape, b.dtype.is_complex, b.out_dtype.is_complex):
                raise UsageError(f"{a} and {b} cannot be added: they act between different spaces.")
        super().__init__(a.in_shape, a.out_shape, a.dtype, a.out_dtype)
        self.operators = tuple(operators)
        self.slice_separable = all(o.slice_separable for o in operators)

    def _forward(self, x: Tensor) -> Tensor:
        return sum((o._forward(x) for o in self.operators[1:]), self.operators[0]._forward(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return sum((o._adjoint(y) for o in self.operators[1:]), self.operators[0]._adjoint(y))

    def slab(self, start: int, stop: int) -> LinearOperator:
        return Sum([o.slab(start, stop) for o in self.operators])


class Scaled(LinearOperator):
    """c A for a real number c."""

    def __init__(self, operator: LinearOperator, factor: float) -> None:
        super().__init__(operator.in_shape, operator.out_shape, operator.dtype, operator.out_dtype)
        self.operator, self.factor, self.slice_separable = operator, factor, operator.slice_separable

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._forward(x) * self.factor

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._adjoint(y) * self.factor

    def slab(self, start: int, stop: int) -> LinearOperator:
        return Scaled(self.operator.slab(start, stop), self.factor)

    def svd(self) -> SVD | None:
        svd = self.operator.svd()
        return svd and svd.scale(self.factor)

    def norm(self, iterations: int = 100, tolerance: float = 1e-10, device: torch.device | str = "cpu") -> float:
        return abs(self.factor) * self.operator.norm(iterations, tolerance, device)


class Stack(LinearOperator):
    """Several operators of one image; the measurement [B, m1 + m2 + ...] is theirs, flattened, one after the other."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        a = operators[0]
        for b in operators[1:]:
            if (a.in_shape, a.dtype.is_complex) != (b.in_shape, b.dtype.is_complex):
                raise UsageError(f"{a} and {b} cannot be stacked: they take different images.")
        self.operators = tuple(operators)
        self.sizes = [math.prod(o.out_shape) for o in operators]
        kinds = sorted((o.out_dtype for o in operators), key=lambda kind: kind.is_complex)
        super().__init__(a.in_shape, (sum(self.sizes),), a.dtype, kinds[-1])
        self.slice_separable = all(o.slice_separable for o in operators)

    def split(self, y: Tensor) -> list[Tensor]:
        """The measurement of each operator, [B, *its out_shape]."""
        parts = [p.unflatten(1, o.out_shape) for p, o in zip(y.split(self.sizes, 1), self.operators, strict=True)]
        return [p if o.out_dtype.is_complex else p.real for p, o in zip(parts, self.operators, strict=True)]

    def _forward(self, x: Tensor) -> Tensor:
        return torch.cat([o._forward(x).flatten(1) for o in self.operators], 1)

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = [o._adjoint(p) for o, p in zip(self.operators, self.split(y), strict=True)]
        return sum(parts[1:], parts[0])

    def slab(self, start: int, stop: int) -> LinearOperator:
        return Stack([o.slab(start, stop) for o in self.operators])


def stack(operators: Sequence[LinearOperator]) -> Stack:
    """The operators, applied to one image, as one operator; `.split(y)` gives their measurements back."""
    return Stack(operators)
