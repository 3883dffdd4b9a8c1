"""The non-uniform Fourier transform against the direct sum, its order of accuracy, and radial scans."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.medical.operators.coils import birdcage
from scidiff.domains.medical.operators.mri import MRI
from scidiff.domains.medical.operators.nufft import KaiserBessel, NonCartesianMRI, RadialMRI, radial
from scidiff.testing import check_operator


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


def places(count, seed=0):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def direct(trajectory, x):
    """N^-1/2 sum_r x(r) exp(-2 pi i k . r) of images [B, 1, Y, X]: [B, 1, m]."""
    y, x_axis = (torch.arange(n, dtype=torch.float64) - n // 2 for n in x.shape[-2:])
    f_y, f_x = (torch.exp(-2j * math.pi * torch.outer(k, r)) for k, r in zip(trajectory.T, (y, x_axis), strict=True))
    return torch.einsum("my,bcyx,mx->bcm", f_y, x, f_x) / math.sqrt(len(y) * len(x_axis))


@pytest.mark.parametrize("operator", [
    RadialMRI((6, 5), 4, width=4), RadialMRI((6, 6), 5, real=True, width=3, oversampling=1.5),
    radial((6, 7), 3, golden=True, coils=2), NonCartesianMRI((5, 8), places(20), numbers(2, 5, 8), real=True),
], ids=str)
def test_non_cartesian_mri_conforms(operator):
    check_operator(operator, batch=2, solves=operator.in_shape[2] < 7)


@pytest.mark.parametrize("size", [(24, 20), (17, 30), (64, 64)])
def test_it_is_the_direct_sum_to_a_ten_thousandth(size):
    k, x = places(300), numbers(2, 1, *size)
    for real, image in ((False, x), (True, x.real)):
        exact = direct(k, image.to(torch.complex128))
        found = NonCartesianMRI(size, k, real=real)(image)
        assert float((found - exact).norm() / exact.norm()) < 2e-5
        single = NonCartesianMRI(size, k, real=real)(image.to(torch.complex64 if not real else torch.float32))
        assert float((single - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("oversampling, widths", [(2.0, range(2, 7)), (1.5, range(2, 8))])
def test_the_error_falls_exponentially_with_the_width(oversampling, widths):
    """By exp(-pi sqrt(1 - 1/s)) with each point: the measured order within 12 % of that."""
    k, x = places(400), numbers(1, 1, 32, 32)
    exact = direct(k, x)
    errors = torch.tensor([float((NonCartesianMRI((32, 32), k, width=w, oversampling=oversampling)(x) - exact).norm()
                                 / exact.norm()) for w in widths])
    order = float((errors[0] / errors[-1]).log() / (len(errors) - 1))
    print(f"\noversampling {oversampling}: errors {errors.tolist()}, order {order:.3f}")
    assert order == pytest.approx(math.pi * math.sqrt(1 - 1 / oversampling), rel=0.12)
    assert bool((errors[1:] < errors[:-1]).all())


def test_the_window_and_its_transform():
    window = KaiserBessel(6, 2.0)
    u = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    for f in (0.0, 0.1, 0.25):
        integral = torch.trapezoid(window.weight(u) * torch.cos(2 * math.pi * f * u), u)
        assert float(window.transform(torch.tensor(f, dtype=torch.float64))) == pytest.approx(float(integral), rel=1e-5)
    assert float(window.weight(torch.tensor([3.01])).sum()) == 0.0
    assert float(window.weight(torch.zeros(1))) == pytest.approx(1.0)


def test_on_the_grid_it_is_the_fast_transform():
    size, maps = (12, 9), birdcage((12, 9), 3, dtype=torch.complex128)
    mask = numbers(*size, seed=3).real > 0
    k = mask.nonzero().double()
    k = torch.stack([(k[:, i] - n // 2) / n for i, n in enumerate(size)], 1)
    x, plain = numbers(2, 1, *size), MRI(mask, maps)
    fine = NonCartesianMRI(size, k, maps, width=8)
    assert torch.allclose(fine(x), plain(x), atol=1e-5)
    assert torch.allclose(fine.adjoint(plain(x)), plain.normal(x), atol=1e-5)


def test_pieces_of_a_batch_are_the_whole(monkeypatch):
    from scidiff.domains.medical.operators import nufft

    operator, x = radial((8, 10), 4, coils=3), numbers(5, 1, 8, 10)
    y = operator(x)
    back = operator.adjoint(y)
    monkeypatch.setattr(nufft, "_PIECE", 4 * 16 * 20)
    assert torch.allclose(operator(x), y, rtol=1e-12) and torch.allclose(operator.adjoint(y), back, rtol=1e-12)
    own = RadialMRI((8, 10), 4, maps=numbers(5, 2, 8, 10))
    assert torch.allclose(own.slab(1, 3)(x[1:3]), own(x)[1:3])


@pytest.mark.parametrize("golden", [False, True])
def test_densities_fill_the_disc_of_k_space(golden):
    operator = RadialMRI((32, 32), 55, golden=golden)
    assert float(operator.density.sum()) == pytest.approx(math.pi / 4, rel=0.01)
    radius = operator.trajectory.norm(dim=-1)
    second = float((operator.density * radius**2).sum())  # int k^2 dA = pi / 32 on the disc of radius 1/2
    assert second == pytest.approx(math.pi / 32, rel=0.02)
    angles = torch.atan2(operator.trajectory[:, 0], operator.trajectory[:, 1]).reshape(55, -1)[:, -1] % math.pi
    gap = torch.cat([angles.sort().values, angles.min()[None] + math.pi]).diff()
    assert float(gap.max() / gap.min()) < (2.7 if golden else 1.01)


@pytest.mark.parametrize("coils, golden", [(1, False), (6, True)])
def test_enough_spokes_give_the_image_back(coils, golden):
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) for n in (40, 36))
    image = torch.exp(-((y[:, None] - 3) ** 2 / 30 + (x + 4) ** 2 / 50))[None, None]
    operator = radial((40, 36), 70, golden=golden, coils=coils, real=True)
    gridded = operator.gridded(operator(image))
    assert float((gridded - image).norm() / image.norm()) < 0.03
    found = operator.pinv(operator(image), iterations=30)
    assert float((found - image).norm() / image.norm()) < 1e-3


def test_what_cannot_be_is_refused():
    for wrong, sentence in ((lambda: NonCartesianMRI((8, 8), places(4) * 3), "within 0.5"),
                            (lambda: NonCartesianMRI((8, 8), torch.zeros(3)), "list of places"),
                            (lambda: NonCartesianMRI((8, 8), torch.zeros(0, 2)), "list of places"),
                            (lambda: NonCartesianMRI((8, 8), places(4), width=1), "width of 2"),
                            (lambda: NonCartesianMRI((8, 8), places(4), oversampling=1.0), "oversampling"),
                            (lambda: NonCartesianMRI((2, 8), places(4)), "too small"),
                            (lambda: NonCartesianMRI((8, 8), places(4) * math.nan), "within 0.5"),
                            (lambda: RadialMRI((8, 8), 0), "at least one spoke")):
        with pytest.raises(UsageError, match=sentence):
            wrong()
