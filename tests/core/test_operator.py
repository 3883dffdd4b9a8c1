"""Linear operators: algebra against dense matrices, solutions against closed forms, derivatives of any order."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import SVD, LinearOperator, conjugate_gradient, dot, least_squares, stack
from scidiff.testing import check_operator


class Matrix(LinearOperator):
    """A dense matrix; `takes` says whether images are real or complex."""

    def __init__(self, matrix, takes=torch.float32):
        super().__init__((matrix.shape[1],), (matrix.shape[0],), takes,
                         torch.complex64 if matrix.is_complex() else torch.float32)
        self.matrix = matrix

    def _forward(self, x):
        matrix = self._like(x)
        return x.to(matrix.dtype) @ matrix.T

    def _adjoint(self, y):
        g = y @ self._like(y).conj()
        return g if self.dtype.is_complex else g.real

    def _like(self, x):
        wide = x.dtype in (torch.float64, torch.complex128)
        kinds = (torch.complex64, torch.complex128) if self.matrix.is_complex() else (torch.float32, torch.float64)
        return self.matrix.to(kinds[wide])


class Decomposed(Matrix):
    def svd(self):
        u, s, vh = torch.linalg.svd(self.matrix, full_matrices=False)
        return SVD(s, lambda c: c @ u.T, lambda y: y @ u, lambda c: c @ vh, lambda x: x @ vh.T)


class Mismatched(Matrix):
    def _adjoint(self, y):
        return super()._adjoint(y) * 1.0001


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


A = numbers(5, 8, seed=1)
B = numbers(8, 8, seed=2)
C = numbers(6, 8, seed=3, dtype=torch.complex128)


@pytest.mark.parametrize("operator", [
    Matrix(A), Decomposed(A), Decomposed(A) * -3.0, Matrix(C), Matrix(C, torch.complex64), Matrix(A) @ Matrix(B),
    Matrix(A).T, Matrix(A) + 2.0 * Matrix(B[:5]), -Matrix(A) / 3 - Matrix(A), stack([Matrix(A), Matrix(B)]),
    stack([Matrix(A), Matrix(C)]), Matrix(A) @ Matrix(C, torch.complex64).T @ Matrix(C, torch.complex64),
], ids=str)
def test_the_algebra_conforms(operator):
    check_operator(operator)


def test_the_algebra_is_that_of_matrices():
    a, b = Matrix(A), Matrix(B)
    both = stack([a, b])
    for operator, matrix in [(a @ b, A @ B), (a.T, A.T), (a + a, 2 * A), (a - 3 * a, -2 * A), (a / 4, A / 4),
                             ((a @ b).T, (A @ B).T), (both, torch.cat([A, B])), (a.T @ a, A.T @ A)]:
        assert torch.allclose(operator.dense(), matrix)
    x = numbers(3, 8)
    first, second = both.split(both(x))
    assert torch.equal(first, a(x)) and torch.equal(second, b(x))
    assert torch.allclose(a.normal(x), x @ A.T @ A)
    assert a.T.T is a


@pytest.mark.parametrize("wrong", [Mismatched(A), Mismatched(C, torch.complex64)])
def test_an_adjoint_that_is_off_by_1e_4_is_found(wrong):
    with pytest.raises(AssertionError, match="disagree"):
        check_operator(wrong)


def test_what_is_not_linear_or_not_batched_is_found():
    class Affine(Matrix):
        def _forward(self, x):
            return super()._forward(x) + 1e-9

    class Coupled(Matrix):
        def _forward(self, x):
            return super()._forward(x + x.mean(0))

        def _adjoint(self, y):
            return super()._adjoint(y + y.mean(0))

    for wrong in (Affine(A), Coupled(A)):
        with pytest.raises(AssertionError):
            check_operator(wrong)


@pytest.mark.parametrize("operator", [Matrix(A), Matrix(B), Matrix(A) @ Matrix(B), Matrix(C, torch.complex64)], ids=str)
def test_norm_is_the_largest_singular_value(operator):
    exact = float(torch.linalg.matrix_norm(operator.dense(), 2))
    assert operator.norm() == pytest.approx(exact, rel=1e-10)
    assert operator.unit_norm().norm() == pytest.approx(1.0, rel=1e-10)
    assert (-4.0 * operator).norm() == pytest.approx(4 * exact, rel=1e-10)


def test_norm_of_close_singular_values():
    s = torch.tensor([1.0, 0.999, 0.998, 0.5] + [0.1] * 60, dtype=torch.float64)
    q = torch.linalg.qr(numbers(64, 64, seed=5)).Q
    assert Matrix(q * s).norm() == pytest.approx(1.0, rel=1e-8)
    with pytest.raises(UsageError, match="zero"):
        Matrix(torch.zeros(3, 3)).unit_norm()


@pytest.mark.parametrize("kind", [Matrix, Decomposed])
def test_pinv_and_prox_are_the_closed_forms(kind):
    operator, y, v = kind(A), numbers(3, 5, seed=6), numbers(3, 8, seed=7)
    assert torch.allclose(operator.pinv(y, tolerance=1e-12), y @ torch.linalg.pinv(A).T)
    gamma = torch.tensor([1e-3, 0.5, 40.0], dtype=torch.float64)
    found = operator.prox(v, y, gamma, tolerance=1e-13, iterations=200)
    for i, g in enumerate(gamma):
        exact = torch.linalg.solve(g * A.T @ A + torch.eye(8), g * A.T @ y[i] + v[i])
        assert torch.allclose(found[i], exact)
    nearest = operator.prox(v, y, math.inf, tolerance=1e-12)
    assert torch.allclose(operator(nearest), y)
    assert torch.allclose(nearest, v + (y - v @ A.T) @ torch.linalg.pinv(A).T)


def test_a_stack_with_zero_rows_has_a_pinv_by_svd():
    half = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64))
    found = Decomposed(half).pinv(torch.ones(1, 3, dtype=torch.float64))
    assert torch.allclose(found, torch.tensor([[0.5, 0.0, 1.0]], dtype=torch.float64))


def test_conjugate_gradients_end_in_n_steps_and_start_where_told():
    matrix = B.T @ B + torch.eye(8)
    rhs = numbers(4, 8, seed=8)
    exact = torch.linalg.solve(matrix, rhs.T).T
    found = conjugate_gradient(lambda x: x @ matrix, rhs, iterations=12, tolerance=1e-12)
    assert torch.allclose(found, exact, atol=1e-9)
    assert torch.equal(conjugate_gradient(lambda x: x @ matrix, rhs, start=exact, tolerance=1e-6), exact)
    none = conjugate_gradient(lambda x: x @ matrix, torch.zeros_like(rhs), tolerance=0.0, iterations=3)
    assert torch.equal(none, torch.zeros_like(rhs))


def test_a_sample_does_not_depend_on_its_batch():
    """Samples of very different difficulty rest at different iterations, each where it would rest alone."""
    matrix = B.T @ B
    rhs = numbers(4, 8, seed=9) * torch.tensor([1e-6, 1.0, 1e6, 0.0], dtype=torch.float64)[:, None]

    def solve(b):
        return conjugate_gradient(lambda x: x @ matrix, b, tolerance=1e-3, stop=lambda x, r: dot(x, x) > 1e9)

    together = solve(rhs)
    assert torch.allclose(together, torch.cat([solve(rhs[i : i + 1]) for i in range(4)]), rtol=1e-12, atol=0)


def test_least_squares_stops_at_the_noise_level():
    rows = numbers(40, 20, seed=10) * torch.logspace(0, -3, 20, dtype=torch.float64)
    operator, truth = Matrix(rows), numbers(2, 20, seed=11)
    y = operator(truth) + 0.05 * numbers(2, 40, seed=12)
    found = least_squares(operator, y, noise=0.05)
    ratio = dot(y - operator(found), y - operator(found)).sqrt() / (0.05 * 40**0.5)
    assert bool((ratio <= 1.0).all()) and bool((ratio > 0.6).all())
    full = least_squares(operator, y, iterations=500, tolerance=1e-12)
    assert bool((dot(found - truth, found - truth) < dot(full - truth, full - truth)).all())


def test_a_solution_is_differentiable_through_its_iterations():
    operator, v = Matrix(A), numbers(1, 8, seed=13)
    y = numbers(1, 5, seed=14).requires_grad_()

    def by_prox(y):
        return operator.prox(v, y, 0.7, iterations=12, tolerance=0.0)

    jacobian = torch.autograd.functional.jacobian(by_prox, y)[0, :, 0]
    exact = torch.linalg.solve(0.7 * A.T @ A + torch.eye(8), 0.7 * A.T)
    assert torch.allclose(jacobian, exact, atol=1e-6)


@pytest.mark.slow  # torch compiles rules of its own on the first functional transform
def test_functional_transforms():
    operator, x, w = Matrix(A), numbers(2, 8), numbers(2, 8, seed=3)
    assert torch.allclose(torch.func.jvp(operator, (x,), (w,))[1], operator(w))
    assert torch.allclose(torch.func.vjp(operator, x)[1](operator(w))[0], operator.normal(w))


def test_the_hessian_of_the_misfit_is_the_normal_matrix():
    operator = Matrix(A)
    hessian = torch.autograd.functional.hessian(lambda z: 0.5 * dot(operator(z), operator(z)).sum(), numbers(1, 8))
    assert torch.allclose(hessian.view(8, 8), A.T @ A)


def test_dot_is_float64_in_pieces_and_of_complex_values():
    a = torch.full((2, 2_200_000), 0.1, dtype=torch.float32)
    exact = 2_200_000 * float(a[0, 0]) ** 2
    assert dot(a, a).dtype == torch.float64
    assert torch.allclose(dot(a, a), torch.tensor([exact, exact], dtype=torch.float64), rtol=1e-12)
    z, w = numbers(2, 7, dtype=torch.complex128), numbers(2, 7, seed=1, dtype=torch.complex128)
    assert torch.allclose(dot(z, w), (z.conj() * w).sum(1).real)
    assert torch.allclose(dot(z, w.real), (z.real * w.real).sum(1))


def test_measurements_take_noise_by_seed_and_sample():
    operator, x = Matrix(A), numbers(3, 8)
    noisy = operator.measure(x, lambda y, seed, ids: y + seed + ids[:, None], seed=5, ids=torch.tensor([1, 2, 3]))
    assert torch.equal(noisy, operator(x) + 5 + torch.tensor([[1], [2], [3]]))
    assert torch.equal(operator.measure(x), operator(x))


def test_what_does_not_fit_is_one_sentence():
    operator = Matrix(A)
    for wrong in (lambda: operator(numbers(8)), lambda: operator(numbers(2, 5)),
                  lambda: operator.adjoint(numbers(2, 8)),
                  lambda: operator(torch.ones(2, 8, dtype=torch.long)), lambda: operator @ operator,
                  lambda: operator + Matrix(B), lambda: stack([operator, operator.T]),
                  lambda: operator.prox(numbers(2, 8), numbers(2, 5), torch.tensor([1.0, math.inf]))):
        with pytest.raises(UsageError):
            wrong()
    assert operator.slab(0, 3) is operator
    assert operator(numbers(2, 8).to(torch.bfloat16)).dtype == torch.float32
