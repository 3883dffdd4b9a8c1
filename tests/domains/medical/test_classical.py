"""Classical reconstructions against each other, against matrices and against phantoms."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import dot
from scidiff.domains.medical.classical import CGLS, FBP, SIRT, AdmmTV, ZeroFilled, corrected, reciprocal_sums
from scidiff.domains.medical.metrics import psnr
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import FanCT, LimitedAngle, ParallelCT
from scidiff.domains.medical.operators.fbp import fbp, fdk
from scidiff.domains.medical.operators.mri import cartesian
from scidiff.domains.medical.operators.simple import Blur, DownsampleZ, GaussianBlur, Inpainting

torch.set_num_threads(1)
F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def phantom(depth=4, n=32):
    """Discs that shrink along z, one of them bright, in [0, 1]."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=F64)] * 2, indexing="ij")
    out = torch.zeros(depth, 1, n, n, dtype=F64)
    for z in range(depth):
        out[z, 0][x**2 + y**2 < (0.9 - 0.08 * z) ** 2] = 0.4
        out[z, 0][(x - 0.2) ** 2 + (y + 0.3) ** 2 < 0.09] = 0.9
        out[z, 0][(x + 0.4) ** 2 + (y - 0.2) ** 2 < 0.06] = 0.1
    return out


METHODS = [FBP(), FBP(matched=True), ZeroFilled(), CGLS(6), SIRT(6), AdmmTV(1e-3, axes="yx", iterations=4),
           AdmmTV(1e-3, iterations=4)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}{getattr(m, 'axes', '')}")
def test_methods_take_their_slices_in_any_chunks(method):
    """One interface: a volume comes back, in the precision of y, linear in scale, whatever the chunk."""
    operator = ParallelCT((16, 16), views=10)
    truth = phantom(5, 16)
    y = operator(truth)
    x = method(y, operator)
    assert x.shape == truth.shape and x.dtype == F64 and float(psnr(x, truth).min()) > 5.0
    chunked = type(method)(**{**vars(method), "chunk": 2})(y, operator)
    torch.testing.assert_close(chunked, x, rtol=1e-9, atol=1e-10)
    assert method(y.float(), operator).dtype == torch.float32
    torch.testing.assert_close(method(3.0 * y, 3.0 * operator), x, rtol=1e-7, atol=1e-9)


def test_back_projection_is_that_of_the_operators():
    truth = phantom(2, 24)
    for operator in (ParallelCT((24, 24), views=40, spacing_mm=1.7), FanCT((24, 24), views=60)):
        y = operator(truth)
        torch.testing.assert_close(FBP(hann=True)(y, operator), fbp(operator, y, True))
        torch.testing.assert_close(FBP()(y * 2, operator * 2.0), fbp(operator, y))
    cone = ConeCT((3, 12, 12), views=20)
    y = cone(phantom(3, 12)[None])
    assert FBP()(y, cone).shape == (3, 1, 12, 12)
    torch.testing.assert_close(FBP()(y, cone), fdk(cone, y)[0])


@pytest.mark.parametrize("spacing", [1.0, (0.7, 1.4)])
def test_the_matched_back_projection_is_an_inverse_too(spacing):
    """Also with pixels that are no squares: the adjoint is rescaled to a sum over views."""
    operator = ParallelCT((48, 48), views=160, spacing_mm=spacing)
    truth = phantom(1, 48)
    y = operator(truth)
    both = [FBP(matched=m)(y, operator) for m in (False, True)]
    assert min(float(psnr(x, truth)) for x in both) > 22.0
    assert float((both[0].mean() / both[1].mean() - 1).abs()) < 0.02


def test_zero_filling_is_the_adjoint_of_fourier():
    x = draw(2, 1, 16, 16, dtype=torch.complex128)
    operator = cartesian((16, 16), "random", 2.0, seed=3)
    y = operator(x)
    torch.testing.assert_close(ZeroFilled()(y, operator), operator.adjoint(y), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ZeroFilled()(0.1 * y, 0.1 * operator), operator.adjoint(y), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(CGLS()(y, operator), operator.pinv(y), rtol=1e-6, atol=1e-8)


def test_cgls_ends_at_the_least_squares_solution():
    operator = LimitedAngle((6, 6), 0, 60, views=4)
    y = draw(3, *operator.out_shape)
    exact = torch.linalg.pinv(operator.dense()) @ y.flatten(1).T
    torch.testing.assert_close(CGLS(200, 1e-12)(y, operator).flatten(1), exact.T, rtol=1e-6, atol=1e-7)


def test_sirt_is_its_matrix_formula_and_converges():
    operator = ParallelCT((5, 5), views=4)
    a = operator.dense()
    y = operator(draw(2, 1, 5, 5).abs())
    rows, columns = a.sum(1), a.sum(0)
    r = torch.where(rows > 1e-6, 1 / rows, 0.0)
    x = torch.zeros(25, 2, dtype=F64)
    for _ in range(3):
        x = x + 1.3 * (a.T @ (r[:, None] * (y.flatten(1).T - a @ x))) / columns[:, None]
    torch.testing.assert_close(SIRT(3, 1.3)(y, operator).flatten(1), x.T)
    long = SIRT(500)(y, operator)
    assert float((operator(long) - y).abs().max()) < 1e-2 * float(y.abs().max())


@pytest.mark.parametrize("operator", [ParallelCT((9, 9), views=7), GaussianBlur((9, 9), 1.2, "zero"),
                                      Inpainting((9, 9), share=0.5, seed=1)], ids=str)
def test_a_correction_never_overshoots(operator):
    """C^1/2 A^T R A C^1/2 has no eigenvalue above 1, so the weighted residual never grows."""
    rows, columns = reciprocal_sums(operator, torch.zeros(1, *operator.out_shape, dtype=F64))
    a = rows.flatten().sqrt()[:, None] * operator.dense() * columns.flatten().sqrt()
    assert float(torch.linalg.matrix_norm(a, 2)) <= 1.0 + 1e-6
    x, y = draw(2, 1, 9, 9), operator(draw(2, 1, 9, 9, seed=1))

    def weighted(v):
        r = operator(v) - y
        return dot(r, rows * r)

    assert bool((weighted(corrected(x, y, operator, 1.9)) <= weighted(x) * (1 + 1e-9)).all())


def test_bounds_and_the_noise_level():
    operator = ParallelCT((24, 24), views=30)
    truth = phantom(3, 24)
    noise = 0.4
    y = operator(truth) + noise * draw(3, *operator.out_shape)
    y[1] = operator(0.01 * truth[1:2])[0] + noise * draw(*operator.out_shape, seed=7)  # hardly more than noise
    free, boxed = SIRT(60)(y, operator), SIRT(60, bounds=(0.0, None))(y, operator)
    assert float(free.min()) < 0.0 <= float(boxed.min())
    level = noise * math.sqrt(math.prod(operator.out_shape))
    for method in (CGLS(200, noise=noise), SIRT(400, noise=noise), AdmmTV(1e-5, axes="yx", cg=2, noise=noise)):
        r = (operator(method(y, operator)) - y).flatten(1).norm(dim=1) / level
        assert bool((r <= 1.0 + 1e-9).all()) and float(r[0]) > 0.75, (method, r)
    long = (operator(CGLS(200)(y, operator)) - y).flatten(1).norm(dim=1) / level
    assert float(long.max()) < 0.75  # without the rule it follows the noise


def test_total_variation_beats_back_projection_where_views_are_few():
    """In three dimensions more than in two: the slices share their edges."""
    operator = ParallelCT((32, 32), views=7)
    truth = phantom()
    y = operator(truth)
    plain, flat, full = (float(psnr(method(y, operator), truth).mean()) for method in (
        FBP(), AdmmTV(4e-4, axes="yx", iterations=40), AdmmTV(4e-4, iterations=40)))
    assert flat > plain + 6.0
    assert full > flat + 0.5


def test_total_variation_of_complex_images():
    """Undersampled k-space of an image with a smooth phase."""
    truth = phantom(2, 32)
    turned = truth * torch.exp(1j * torch.linspace(0, 2, 32, dtype=F64))
    operator = cartesian((32, 32), "random", 2.0, seed=1)
    y = operator(turned)
    zero, tv = ZeroFilled()(y, operator), AdmmTV(2e-3, axes="yx", iterations=80)(y, operator)
    assert float((psnr(tv, truth) - psnr(zero, truth)).min()) > 3.0


def test_watching_and_starting_elsewhere():
    operator = ParallelCT((16, 16), views=12)
    truth = phantom(2, 16)
    y = operator(truth)
    seen = []
    x = AdmmTV(1e-4, iterations=5)(y, operator, watch=lambda number, v: seen.append((number, v.clone())))
    assert [n for n, _ in seen] == [1, 2, 3, 4, 5]
    torch.testing.assert_close(seen[-1][1], x)
    near = AdmmTV(1e-6, iterations=1)(y, operator, start=truth)
    assert float((near - truth).abs().max()) < 1e-2 < float((seen[0][1] - truth).abs().max())


def test_operators_of_whole_volumes_go_through_the_same_call():
    truth = phantom(6, 12)
    operator = DownsampleZ((6, 12, 12), 2)
    y = operator(truth[None])
    for method in (ZeroFilled(), CGLS(30), SIRT(30), AdmmTV(1e-3, iterations=30, cg=5)):
        x = method(y, operator)
        assert x.shape == truth.shape
        assert float((operator(x[None]) - y).abs().max()) < (0.6 if isinstance(method, ZeroFilled) else 0.05)


@pytest.mark.parametrize("make, words", [
    (lambda y, a: FBP()(draw(2, 1, 8, 8), GaussianBlur((8, 8), 1.0)), "parallel, fan and cone beams, not for"),
    (lambda y, a: FBP(matched=True)(FanCT((8, 8), views=9)(draw(1, 1, 8, 8)), FanCT((8, 8), views=9)), "is matched"),
    (lambda y, a: SIRT(relaxation=2.0), "between 0 and 2"),
    (lambda y, a: SIRT()(cartesian((8, 8))(draw(1, 1, 8, 8)), cartesian((8, 8))), "complex weights"),
    (lambda y, a: SIRT()(draw(1, 1, 8, 8), Blur((8, 8), torch.tensor([[-1.0, 3.0, -1.0]]))), "negative weights"),
    (lambda y, a: CGLS()(y[:, :, :2], a), "one measurement a slice"),
    (lambda y, a: ZeroFilled()(y, 0.0 * a), "measures nothing"),
    (lambda y, a: AdmmTV(chunk=0)(y, a), "at least one slice"),
])
def test_what_makes_no_sense_is_refused(make, words):
    operator = ParallelCT((8, 8), views=4)
    with pytest.raises(UsageError, match=words):
        make(operator(draw(2, 1, 8, 8)), operator)
