"""Cartesian MRI against the Fourier sum, its closed forms against the matrix, and what several coils are good for."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import conjugate_gradient, dot
from scidiff.domains.medical.noise import Gaussian
from scidiff.domains.medical.operators.coils import birdcage
from scidiff.domains.medical.operators.masks import Mask
from scidiff.domains.medical.operators.mri import MRI, cartesian, fft2c, ifft2c, intensity, measured
from scidiff.testing import check_operator


def numbers(*shape, seed=0):
    """Complex standard normal, complex128."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


LINES = Mask("random", 2.0, 2).draw((6, 7))
SCATTERED = Mask("poisson", 2.0, 2).draw((8, 6))
WHOLE = torch.ones(5, 6, dtype=torch.bool)
PHASE = torch.polar(torch.ones(1, 6, 7, dtype=torch.float64), numbers(1, 6, 7).real)


@pytest.mark.parametrize("operator", [
    MRI(LINES), MRI(LINES, real=True), MRI(SCATTERED, real=True), MRI(LINES, PHASE), MRI(LINES, PHASE, real=True),
    MRI(LINES, numbers(3, 6, 7)), MRI(LINES, numbers(3, 6, 7), real=True), MRI(WHOLE, numbers(2, 5, 6)),
    MRI(WHOLE, numbers(2, 5, 6), real=True), MRI(SCATTERED, birdcage((8, 6), 4)).unit_norm(),
], ids=str)
def test_mri_conforms(operator):
    check_operator(operator, batch=2)


def test_the_transform_is_the_centred_sum():
    """F x (k) = sum_r x(r) exp(-2 pi i k r / n) / sqrt(n), pixels and samples counted from n // 2."""
    x = numbers(2, 1, 5, 6)
    y, x_axis = (torch.arange(n, dtype=torch.float64) - n // 2 for n in (5, 6))
    f_y, f_x = (torch.exp(-2j * math.pi * torch.outer(r, r) / len(r)) / len(r) ** 0.5 for r in (y, x_axis))
    exact = f_y @ x @ f_x.T
    assert torch.allclose(fft2c(x), exact) and torch.allclose(ifft2c(exact), x)
    mask, maps = numbers(5, 6, seed=1).real > 0, numbers(3, 5, 6, seed=2)
    assert torch.allclose(MRI(mask, maps)(x), (f_y @ (maps * x) @ f_x.T)[..., mask])
    flat = fft2c(torch.ones(1, 1, 5, 6))
    assert float(flat[0, 0, 2, 3].real) == pytest.approx(math.sqrt(30)) and float(flat.abs().sum()) < 5.48


@pytest.mark.parametrize("operator", [MRI(LINES), MRI(LINES, real=True), MRI(SCATTERED, real=True), MRI(LINES, PHASE),
                                      MRI(WHOLE, numbers(2, 5, 6)), MRI(WHOLE, numbers(2, 5, 6), real=True)], ids=str)
def test_the_singular_values_are_those_of_the_matrix(operator):
    matrix = operator.dense()
    exact = torch.linalg.svdvals(matrix if operator.dtype.is_complex else torch.cat([matrix.real, matrix.imag]))
    found = operator.svd().s.flatten().sort(descending=True).values
    count = min(len(exact), len(found))
    assert torch.allclose(found[:count], exact[:count]) and float(found[count:].sum() + exact[count:].sum()) < 1e-12


def test_a_real_image_is_known_at_the_mirrored_samples_too():
    """Half of k-space and its middle tell everything about a real image, and half about a complex one."""
    half = torch.zeros(7, 8, dtype=torch.bool)
    half[:4] = True
    x = numbers(2, 1, 7, 8)
    known = MRI(half, real=True)
    assert torch.allclose(known.pinv(known(x.real)), x.real)
    unknown = MRI(half)
    assert torch.allclose(unknown.pinv(unknown(x)), unknown.normal(x))
    assert float((unknown.normal(x) - x).norm() / x.norm()) > 0.4


@pytest.mark.parametrize("operator", [MRI(LINES), MRI(LINES, real=True), MRI(WHOLE, numbers(2, 5, 6))], ids=str)
def test_closed_forms_are_what_conjugate_gradients_find(operator):
    v = numbers(2, *operator.in_shape, seed=3)
    v = v if operator.dtype.is_complex else v.real
    y = numbers(2, *operator.out_shape, seed=4)
    exact = conjugate_gradient(lambda p: p + 0.7 * operator.normal(p), v + 0.7 * operator.adjoint(y), None, 200, 1e-13)
    assert torch.allclose(operator.prox(v, y, 0.7), exact)


def test_four_coils_resolve_every_second_line():
    """Sensitivity encoding: two pixels fold onto each other, four coils tell them apart; one coil cannot."""
    size, x = (12, 16), numbers(2, 1, 12, 16)
    mask = Mask("equispaced", 2.0, 0).draw(size)
    several, one = MRI(mask, birdcage(size, 4, dtype=torch.complex128)), MRI(mask)
    found = several.pinv(several(x), iterations=400, tolerance=1e-12)
    assert float((found - x).norm() / x.norm()) < 1e-8
    folded = one.pinv(one(x))
    assert torch.allclose(folded.abs(), folded.roll(8, -1).abs())
    assert float((folded - x).norm() / x.norm()) > 0.5


def test_slices_may_have_maps_of_their_own():
    maps = numbers(3, 2, 6, 7)
    operator, x = MRI(LINES, maps), numbers(3, 1, 6, 7, seed=1)
    alone = [MRI(LINES, maps[z]) for z in range(3)]
    y = torch.cat([o(x[z : z + 1]) for z, o in enumerate(alone)])
    assert torch.equal(operator(x), y)
    assert torch.allclose(operator.adjoint(y), torch.cat([o.adjoint(y[z : z + 1]) for z, o in enumerate(alone)]))
    assert torch.equal(operator(torch.cat([x, 2 * x])), torch.cat([y, 2 * y]))
    assert torch.equal(operator.slab(1, 3)(x[1:]), y[1:]) and operator.slab(1, 3).slices == 2
    assert operator.norm() == pytest.approx(max(o.norm() for o in alone))
    assert operator.slab(2, 3).norm() == pytest.approx(alone[2].norm())
    shared = MRI(LINES, maps[0])
    assert shared.slab(4, 9) is shared
    with pytest.raises(UsageError, match="3 slices"):
        operator(x[:2])
    with pytest.raises(UsageError, match="none of them"):
        operator.slab(3, 4)
    check_operator(operator.slab(1, 2), batch=2, solves=False)


def test_measurements_hold_what_was_measured_and_nothing_else():
    operator = cartesian((16, 12), "gaussian2d", 3.0, coils=3)
    kspace = fft2c(operator.maps * numbers(2, 1, 16, 12))
    y = operator.samples(kspace)
    assert y.shape == (2, 3, 64) and operator.acceleration == 3.0
    assert torch.equal(operator.grid(y), torch.where(operator.mask, kspace, 0.0))
    again, samples = measured(operator.grid(y), operator.maps)
    assert torch.equal(again.mask, operator.mask) and torch.equal(samples, y)
    noisy = operator.measure(torch.zeros(4, 1, 16, 12), Gaussian(0.5), seed=1)
    assert abs(float(noisy.real.var()) - 0.25) < 5 * 0.25 * math.sqrt(2 / noisy.numel())


def test_noise_level_stops_the_solver():
    """CGLS from zero ends where the residual is as large as the noise, before it fits the noise."""
    operator = cartesian((16, 16), "random", 2.0, coils=4)
    y = operator.measure(numbers(3, 1, 16, 16).cumsum(-1).cumsum(-2), Gaussian(2.0), seed=3)
    found = operator.pinv(y, iterations=300, noise=2.0)
    level = (dot(y - operator(found), y - operator(found)) / (2 * math.prod(operator.out_shape))).sqrt()
    assert bool((level <= 2.0).all()) and bool((level > 1.5).all())
    assert float((y - operator(operator.pinv(y, iterations=300))).norm()) < float((y - operator(found)).norm())


def test_intensity_scales_any_scanner_alike():
    operator = cartesian((20, 24), acceleration=2.0, real=True)
    x = numbers(3, 1, 20, 24).abs() + 1.0
    y = operator(x)
    factor = intensity(operator, y)
    assert intensity(operator, 1e4 * y) == pytest.approx(1e4 * factor)
    share = float((operator.adjoint(y / factor).abs() <= 1.0 + 1e-9).double().mean())
    assert share == pytest.approx(0.99, abs=1 / x.numel())


def test_what_does_not_fit_is_refused():
    operator = MRI(LINES, numbers(3, 6, 7))
    for wrong, sentence in ((lambda: MRI(torch.zeros(4, 4)), "0 samples"),
                            (lambda: MRI(torch.ones(2, 4, 4)), "axes y, x"),
                            (lambda: MRI(LINES, torch.ones(3, 7, 6)), "Coil maps"),
                            (lambda: operator.samples(numbers(2, 6, 7)), "takes k-space of shape"),
                            (lambda: measured(numbers(3, 6, 7)), "takes k-space of shape"),
                            (lambda: operator(torch.ones(2, 1, 7, 6)), "batch of images"),
                            (lambda: intensity(operator, torch.zeros(1, *operator.out_shape)), "no scale")):
        with pytest.raises(UsageError, match=sentence):
            wrong()
