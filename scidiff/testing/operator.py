"""Conformance of a linear operator: the adjoint, linearity, derivatives, batches, the norm, and what solves with it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scidiff.core.operator import LinearOperator, dot
from scidiff.core.run import Run
from scidiff.core.spec import Context
from scidiff.testing.require import require

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}


def check_operator(operator: LinearOperator, batch: int = 3, seed: int = 0, dense: int = 1024,
                   solves: bool = True, exact: dict[torch.dtype, float] | None = None) -> dict[str, float]:
    """Checks an operator with random real and complex batches; what it measured, by name.

    Adjointness |<Ax, y> - <x, A^T y>| / (|Ax| |y|) under `exact` (1e-12 in float64, 1e-5 in float32); linearity;
    gradients of A and of A^T, twice, in float64; a batch is its samples one by one; the layout in memory changes
    nothing. Where the image and the measurement have at most `dense` numbers, the norm against the singular values of
    the matrix. The SVD by actions, if it has one, against the operator. With `solves`, pinv against two of Penrose's
    conditions and prox against its normal equation.
    """
    exact = exact or EXACT
    found: dict[str, float] = {}
    for dtype in (torch.float64, torch.float32):
        for kind in ("", " of complex values"):
            if kind and not (operator.dtype.is_complex or not operator.out_dtype.is_complex):
                continue  # a real image with complex measurements has no complex adjoint
            x = _random(operator.in_shape, batch, seed, dtype, bool(kind) or operator.dtype.is_complex)
            y = _random(operator.out_shape, batch, seed + 1, dtype, bool(kind) or operator.out_dtype.is_complex)
            ax, aty = operator(x), operator.adjoint(y)
            require(ax.shape[1:] == operator.out_shape and aty.shape[1:] == operator.in_shape,
                    f"{operator} gives shapes {tuple(ax.shape)} and {tuple(aty.shape)}.")
            scale = (dot(ax, ax) * dot(y, y)).sqrt().clamp(min=1e-300)
            gap = float(((dot(ax, y) - dot(x, aty)).abs() / scale).max())
            name = f"adjoint{kind}, {str(dtype).removeprefix('torch.')}"
            found[name] = max(gap, found.get(name, 0.0))
            require(gap < exact[dtype], f"{operator} and its adjoint disagree by {gap:.1e} ({dtype}{kind}).")
    _check_linear(operator, batch, seed)
    _check_layout(operator.forward, operator.in_shape, operator.dtype, batch, seed, f"{operator}")
    _check_layout(operator.adjoint, operator.out_shape, operator.out_dtype, batch, seed, f"the adjoint of {operator}")
    _check_gradients(operator, seed)
    if max(math.prod(operator.in_shape), math.prod(operator.out_shape)) <= dense:
        largest = float(torch.linalg.matrix_norm(_matrix(operator), 2))
        found["norm"] = operator.norm()
        require(abs(found["norm"] - largest) <= 1e-6 * max(largest, 1e-300),
                f"The norm of {operator} is {largest:.8g}, not {found['norm']:.8g}.")
    if operator.svd() is not None:
        _check_svd(operator, batch, seed)
    if solves:
        _check_solutions(operator, batch, seed)
    return found


def _random(shape: tuple[int, ...], batch: int, seed: int, dtype: torch.dtype, is_complex: bool) -> Tensor:
    """Standard normal [batch, *shape] in that precision, real or complex."""
    run, ctx = Run(seed), Context.of(batch)
    z = run.noise("operator", "real", shape, ctx)
    z = torch.complex(z, run.noise("operator", "imaginary", shape, ctx)) if is_complex else z
    return z.to(dtype.to_complex() if is_complex else dtype)


def _matrix(operator: LinearOperator) -> Tensor:
    """The matrix of the operator; over the reals, both parts, where only the measurement is complex."""
    matrix = operator.dense()
    if operator.out_dtype.is_complex and not operator.dtype.is_complex:
        return torch.cat([matrix.real, matrix.imag])
    return matrix


def _close(a: Tensor, b: Tensor, tolerance: float, scale: Tensor | None = None) -> bool:
    """|a - b| <= tolerance |scale| over the whole batch; b is the scale by default."""
    return float((a - b).norm()) <= tolerance * float((b if scale is None else scale).norm()) + 1e-300


def _check_linear(operator: LinearOperator, batch: int, seed: int) -> None:
    for action, shape, kind in ((operator.forward, operator.in_shape, operator.dtype),
                                (operator.adjoint, operator.out_shape, operator.out_dtype)):
        a = _random(shape, batch, seed + 2, torch.float64, kind.is_complex)
        b = _random(shape, batch, seed + 3, torch.float64, kind.is_complex)
        require(_close(action(0.7 * a - 2.5 * b), 0.7 * action(a) - 2.5 * action(b), 1e-12,
                       action(a).abs() + action(b).abs()), f"{operator} or its adjoint is not linear.")


def _check_layout(action: Callable[[Tensor], Tensor], shape: tuple[int, ...], kind: torch.dtype, batch: int, seed: int,
                  name: str) -> None:
    x = _random(shape, batch, seed + 4, torch.float64, kind.is_complex)
    together = action(x)
    single = torch.cat([action(x[i : i + 1]) for i in range(batch)])
    require(_close(single, together, 1e-13), f"A batch changes what {name} gives.")
    strange = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    wide = torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]
    for other in (strange, wide, x.conj().resolve_conj().conj()):
        require(_close(action(other), together, 1e-13), f"The layout in memory changes what {name} gives.")


def _check_gradients(operator: LinearOperator, seed: int) -> None:
    for action, shape, kind in ((operator.forward, operator.in_shape, operator.dtype),
                                (operator.adjoint, operator.out_shape, operator.out_dtype)):
        x = _random(shape, 1, seed + 5, torch.float64, kind.is_complex).requires_grad_()
        torch.autograd.gradcheck(action, (x,), fast_mode=True, eps=1e-3, atol=1e-7)
        torch.autograd.gradgradcheck(action, (x,), fast_mode=True, eps=1e-3, atol=1e-7)


def _check_svd(operator: LinearOperator, batch: int, seed: int) -> None:
    svd = operator.svd()
    assert svd is not None
    x = _random(operator.in_shape, batch, seed + 6, torch.float64, operator.dtype.is_complex)
    y = _random(operator.out_shape, batch, seed + 7, torch.float64, operator.out_dtype.is_complex)
    c, d = svd.vt(x), svd.ut(y)
    require(bool((svd.s >= 0).all()), f"A singular value of {operator} is negative.")
    require(c.shape[1:] == svd.s.shape, f"Coefficients of {operator} have another shape than its singular values.")
    require(_close(svd.u(svd.along(c) * c), operator(x), 1e-10), f"U s V^T is not {operator}.")
    require(_close(svd.v(svd.along(d) * d), operator.adjoint(y), 1e-10), f"V s U^T is not the adjoint of {operator}.")
    for there, back, coefficients in ((svd.v, svd.vt, c), (svd.u, svd.ut, d)):
        seen = there(coefficients)
        require(_close(back(seen), coefficients, 1e-10), f"U or V of {operator} has no inverse by its transpose.")
        require(bool(torch.allclose(dot(seen, seen), dot(coefficients, coefficients))),
                f"U or V of {operator} changes lengths.")
    require(abs(float(svd.s.max()) - operator.norm()) <= 1e-6 * operator.norm(),
            f"The largest singular value of {operator} is not its norm.")


def _check_solutions(operator: LinearOperator, batch: int, seed: int) -> None:
    """A A^+ A = A on the range, minimality of pinv in the range of A^T, and the normal equation of prox."""
    x = _random(operator.in_shape, batch, seed + 8, torch.float64, operator.dtype.is_complex)
    y = operator(x)
    x = operator.adjoint(y) / max(operator.norm() ** 2, 1e-300)  # smooth enough for few iterations
    y = operator(x)
    again = operator.pinv(y, iterations=400, tolerance=1e-10)
    require(_close(operator(again), y, 1e-5), f"A A^+ y is not y for a y that {operator} can give.")
    require(_close(dot(again, again - x), torch.zeros(1), 1.0, 1e-4 * dot(x, x)),
            f"A^+ y of {operator} is not the shortest solution.")
    unit = 1.0 / max(operator.norm() ** 2, 1e-300)
    gamma = torch.tensor([unit * 10.0 ** (i - 1) for i in range(batch)], dtype=torch.float64)
    v = _random(operator.in_shape, batch, seed + 9, torch.float64, operator.dtype.is_complex)
    z = operator.prox(v, y, gamma, iterations=400, tolerance=1e-10)
    weight = gamma.view(-1, *[1] * len(operator.in_shape))
    require(_close(z - v, weight * operator.adjoint(y - operator(z)), 1e-6, v),
            f"prox of {operator} is not its minimum.")
