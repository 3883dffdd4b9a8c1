"""Differences and their adjoints against matrices, shrinkage against its definition, ADMM against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import dot
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.operators.simple import Diagonal, DownsampleZ, Inpainting
from scidiff.domains.medical.streaming import OnVolumes
from scidiff.domains.medical.tv import TV3D, Admm, Gradient, TVz, lengths, minimise, shrink, total_variation

torch.set_num_threads(1)
F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def identity(size):
    return Diagonal(torch.ones(1, *size, dtype=F64))


@pytest.mark.parametrize("axes", ["z", "yx", "zyx", "xz"])
@pytest.mark.parametrize("kind", [F64, torch.complex128])
def test_differences_have_their_exact_adjoint(axes, kind):
    gradient = Gradient(axes, (3.0, 1.5, 1.5))
    x, g = draw(5, 2, 4, 3, dtype=kind), draw(len(axes), 5, 2, 4, 3, seed=1, dtype=kind)
    dx = gradient(x)
    left, right = float(dot(dx[None], g[None])), float(dot(x[None], gradient.adjoint(g)[None]))
    assert left == pytest.approx(right, rel=1e-13)
    torch.testing.assert_close(gradient.gram(x), gradient.adjoint(dx))
    for k, axis in enumerate(axes):
        dim, gain = {"z": (0, 0.5), "y": (-2, 1.0), "x": (-1, 1.0)}[axis]
        ahead = torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, x.shape[dim] - 1, 1)], dim)
        torch.testing.assert_close(dx[k], gain * (ahead - x))


def test_the_ends_are_neumann():
    """A constant has no differences, and the last slice does not know the first."""
    gradient = Gradient("zyx")
    assert float(gradient(torch.ones(4, 1, 3, 3)).abs().max()) == 0.0
    x = torch.zeros(6, 1, 2, 2)
    x[-1] = 1.0
    assert float(Gradient("z")(x)[0, 0].abs().max()) == 0.0
    assert float(Gradient("z").gram(x)[0].abs().max()) == 0.0
    assert Gradient("z").bound == 4.0


@pytest.mark.parametrize("cut", [(0, 3), (2, 5), (4, 7), (0, 7)])
def test_a_slab_with_its_neighbours_is_a_part_of_the_whole(cut):
    gradient = Gradient("zyx", (2.0, 1.0, 1.0))
    x, g = draw(7, 1, 4, 5), draw(3, 7, 1, 4, 5, seed=1)
    start, stop = cut
    low, high = max(start - 1, 0), min(stop + 1, 7)
    before, after = start - low, high - stop
    torch.testing.assert_close(gradient(x[start:high], after), gradient(x)[:, start:stop])
    torch.testing.assert_close(gradient.gram(x[low:high], before, after), gradient.gram(x)[start:stop])
    torch.testing.assert_close(gradient.adjoint(g[:, low:stop], before, stop == 7), gradient.adjoint(g)[start:stop])


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("kind", [F64, torch.complex128])
def test_shrinkage_minimises_what_it_should(isotropic, kind):
    g, threshold = draw(2, 40, 1, 1, 1, dtype=kind), 0.7

    def objective(d):
        parts = (d - g).abs().square().sum(0, keepdim=True) if isotropic else (d - g).abs().square()
        return 0.5 * parts + threshold * lengths(d, isotropic)

    best = shrink(g, threshold, isotropic)
    for seed in range(30):
        assert bool((objective(best + 0.3 * draw(*g.shape, seed=seed + 2, dtype=kind)) >= objective(best)).all())
    assert bool(((lengths(best, isotropic) == 0) == (lengths(g, isotropic) <= threshold)).all())


def test_total_variation_of_a_box():
    """A box has its faces as total variation, each counted with the gain of its axis."""
    x = torch.zeros(6, 1, 8, 8)
    x[2:4, :, 1:6, 3:7] = 2.0  # 2 x 5 x 4 voxels of height 2
    faces = {"z": 2 * 5 * 4, "y": 2 * 2 * 4, "x": 2 * 2 * 5}
    assert float(total_variation(x, Gradient("zyx"))) == pytest.approx(2.0 * sum(faces.values()))
    assert float(total_variation(x, Gradient("zyx", (4.0, 1.0, 1.0)))) == pytest.approx(
        2.0 * (faces["z"] / 4 + faces["y"] + faces["x"]))
    assert float(total_variation(x, Gradient("zyx"), isotropic=True)) < float(total_variation(x, Gradient("zyx")))


def test_two_values_are_denoised_in_closed_form():
    """(a - p)^2 / 2 + (b - q)^2 / 2 + L |a - b|: both values move by L towards each other, at most to their mean."""
    y = torch.tensor([0.0, 3.0], dtype=F64).view(2, 1, 1, 1)
    for weight, expected in ((0.5, [0.5, 2.5]), (2.0, [1.5, 1.5])):
        admm = problem(y, "z", weight, 1.0)
        found = minimise(admm, torch.zeros_like(y), 100)
        assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def problem(y, axes, weight, penalty, cg=6, **more):
    operator = identity(y.shape[2:])
    on = OnVolumes(operator, y)
    return Admm(on, Gradient(axes), on.adjoint(), weight, penalty, cg=cg, **more)


@pytest.mark.parametrize("isotropic", [False, True])
def test_admm_finds_the_minimum(isotropic):
    """No step in any direction lowers the objective, and both residuals vanish."""
    y, weight = draw(4, 1, 5, 5), 0.4
    admm = problem(y, "zyx", weight, 1.0, isotropic=isotropic)
    x, w = torch.zeros_like(y), admm.zero()
    for _ in range(200):
        before = w
        x, w = admm.iterate(x, w)
    assert max(float(r.max()) for r in admm.residuals(x, w, before)[:2]) < 1e-4

    def objective(v):
        return 0.5 * float((v - y).square().sum()) + weight * float(total_variation(v, Gradient("zyx"), isotropic))

    least = objective(x)
    for seed in range(20):
        assert objective(x + 10.0 ** -(seed % 4) * draw(*y.shape, seed=seed + 5)) > least - 1e-4


def test_stopping_rules_and_balancing_end_at_the_same_minimum():
    y = draw(2, 1, 4, 5)
    plain = minimise(problem(y, "zyx", 0.3, 1.0), torch.zeros_like(y), 120)
    told = []
    for penalty in (1e-2, 1e2):
        done = minimise(problem(y, "zyx", 0.3, penalty), torch.zeros_like(y), 400, tolerance=1e-5, adaptive=True,
                        watch=lambda number, _: told.append(number))
        torch.testing.assert_close(done, plain, atol=1e-3, rtol=0)
    assert told.count(1) == 2 and max(told) < 400


def test_slices_by_themselves_are_their_batch():
    """In the plane every slice has its own step lengths and its own end."""
    y = draw(4, 1, 6, 6)
    y[1] *= 50.0
    settings = {"iterations": 40, "tolerance": 1e-3, "adaptive": True}
    together = minimise(problem(y, "yx", 0.3, 1.0, cg=3), torch.zeros_like(y), **settings)
    for z in range(4):
        alone = minimise(problem(y[z : z + 1], "yx", 0.3, 1.0, cg=3), torch.zeros_like(y[:1]), **settings)
        torch.testing.assert_close(together[z : z + 1], alone)


def test_the_noise_level_stops_the_inner_iteration():
    operator = ParallelCT((16, 16), views=12)
    truth = torch.zeros(3, 1, 16, 16, dtype=F64)
    truth[:, :, 5:11, 4:12] = 1.0
    noise = 0.5
    y = operator(truth) + noise * draw(3, *operator.out_shape)
    on = OnVolumes(operator, y)
    far = torch.zeros_like(truth)
    for level, rests in ((noise, True), (0.0, False)):
        admm = Admm(on, Gradient("z"), on.adjoint(), 1e-6, 1e-6, cg=60, noise=level)
        x = admm.moved(far, admm.zero())
        ratio = float(on.misfit(x).sum().sqrt()) / (noise * math.sqrt(3 * on.numbers))
        assert (0.8 < ratio <= 1.0) if rests else ratio < 0.6
    assert not bool(admm.fits(far).any())


def test_duals_live_on_between_calls():
    """Ten calls of one iteration are one call of ten, for any chunk, and the estimate may be replaced in between."""
    operator = ParallelCT((12, 12), views=6)
    y = operator(draw(7, 1, 12, 12).abs())
    start, memory = torch.zeros(7, 1, 12, 12, dtype=F64), {}
    x = start
    for _ in range(10):
        x = TVz(cg=2, chunk=3)(x, y, operator, memory)
    whole = {}
    torch.testing.assert_close(x, TVz(iterations=10, cg=2, chunk=None)(start, y, operator, whole))
    (kept,), (other,) = (m.values() for m in (memory, whole))
    torch.testing.assert_close(kept["0"]["w"], other["0"]["w"])
    again = {k: dict(v) for k, v in memory.items()}
    first = TVz(cg=2)(x, y, operator, memory)
    torch.testing.assert_close(TVz(cg=2)(x, y, operator, again), first, rtol=0, atol=0)  # a stored state repeats
    assert float((TVz(cg=2)(x, y, operator, {}) - first).abs().max()) > 1e-6  # and matters


def test_one_step_is_the_formula():
    """x, d and u after one step with an exact solve, written with the matrices of A and D."""
    operator = ParallelCT((4, 4), views=9)
    x, penalty, weight = draw(3, 1, 4, 4), 0.7, 0.2
    y = operator(x) + draw(3, *operator.out_shape, seed=3)
    memory = {}
    step = TVz(weight=weight, penalty=penalty, cg=60, unit_norm=False)
    a = torch.block_diag(*[operator.dense()] * 3)
    n = 16
    d_matrix = torch.zeros(3 * n, 3 * n, dtype=F64)
    for i in range(2 * n):
        d_matrix[i, i], d_matrix[i, i + n] = -1.0, 1.0
    d, u = torch.zeros(3 * n, dtype=F64), torch.zeros(3 * n, dtype=F64)
    for _ in range(3):
        got = step(x, y, operator, memory)
        exact = torch.linalg.solve(a.T @ a + penalty * d_matrix.T @ d_matrix,
                                   a.T @ y.flatten() + penalty * d_matrix.T @ (d - u))
        w = d_matrix @ exact + u
        d = w.sign() * (w.abs() - weight / penalty).clamp(min=0)
        u = w - d
        torch.testing.assert_close(got.flatten(), exact, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(next(iter(memory.values()))["0"]["w"].flatten(), w, rtol=1e-6, atol=1e-8)


def test_the_memory_of_one_measurement_serves_no_other():
    operator = ParallelCT((8, 8), views=4)
    y = operator(draw(4, 1, 8, 8))
    memory, step, x = {}, TVz(), torch.zeros(4, 1, 8, 8, dtype=F64)
    step(x, y, operator, memory)
    with pytest.raises(UsageError, match="another measurement"):
        step(x, y + 1.0, operator, memory)
    with pytest.raises(UsageError, match="another measurement"):
        step(x[:3], y[:3], operator, memory)
    step(x, y, operator, memory)


def test_scaled_measurements_give_the_same_volume():
    """Weights are for an operator of norm 1: measuring in other units changes nothing."""
    operator = ParallelCT((10, 10), views=5)
    y, x = operator(draw(3, 1, 10, 10)), torch.zeros(3, 1, 10, 10, dtype=F64)
    plain = TV3D()(x, y, operator, {})
    torch.testing.assert_close(TV3D()(x, 10.0 * y, 10.0 * operator, {}), plain)
    torch.testing.assert_close(TV3D()(x, y / operator.norm(), operator.unit_norm(), {}), plain)


def test_volumes_of_a_batch_do_not_touch():
    operator = ParallelCT((8, 8), views=4)
    y, x = operator(draw(6, 1, 8, 8)), draw(6, 1, 8, 8, seed=1)
    both, memory = TVz(slices=3), {}
    one = [TVz()(x[i : i + 3], y[i : i + 3], operator, {}) for i in (0, 3)]
    torch.testing.assert_close(both(x, y, operator, memory), torch.cat(one))
    with pytest.raises(UsageError, match="no volumes of 4"):
        TVz(slices=4)(x, y, operator, {})


def test_operators_of_whole_volumes():
    """Thick slices to thin ones: total variation along z fills in what averaging left open."""
    truth = torch.ones(8, 1, 4, 4, dtype=F64)
    truth[5:] = 3.0
    operator = DownsampleZ((8, 4, 4), 2)
    y = operator(truth[None])
    memory, x = {}, torch.zeros(1, 8, 1, 4, 4, dtype=F64)
    for _ in range(150):
        x = TVz(weight=1e-3, penalty=0.02, cg=5)(x, y, operator, memory)
    assert float((x[0] - truth).abs().amax((1, 2, 3))[torch.tensor([0, 1, 2, 3, 6, 7])].max()) < 0.1
    assert float((operator(x) - y).abs().max()) < 0.05


def test_missing_pixels_of_a_flat_image_are_filled():
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    operator = Inpainting((12, 12), mask)
    truth = torch.full((2, 1, 12, 12), 0.6, dtype=F64)
    y = operator(truth)
    x = TV3D(weight=1e-3, penalty=0.1, iterations=150)(torch.zeros_like(truth), y, operator, {})
    torch.testing.assert_close(x, truth, atol=0.02, rtol=0)


@pytest.mark.parametrize("make, words", [
    (lambda: Gradient("za"), "some of the axes"), (lambda: Gradient(""), "some of the axes"),
    (lambda: Gradient("z", (0.0, 1.0, 1.0)), "three positive sizes"),
    (lambda: problem(draw(2, 1, 2, 2), "z", 1.0, 0.0), "a penalty > 0"),
    (lambda: TVz()(draw(3, 1, 8, 8), draw(2, 1, 4, 12), ParallelCT((8, 8), views=4), {}), "3 slices with 2"),
])
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()
