"""Slabs: any chunk gives the volume's result; conjugate gradients against dense solves; memory stays flat."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import conjugate_gradient
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.operators.mri import cartesian
from scidiff.domains.medical.operators.simple import Diagonal, DownsampleZ
from scidiff.domains.medical.streaming import OnVolumes, by_slabs, conjugate_gradient_by_slabs, halo, slabs
from scidiff.domains.medical.tv import Admm, Gradient, TVz

torch.set_num_threads(1)
F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_slabs_cover_every_slice_once():
    for count, chunk in ((7, 3), (6, 3), (1, 5), (5, None)):
        parts = slabs(count, chunk)
        assert [i for a, b in parts for i in range(a, b)] == list(range(count))
        assert all(b - a <= (chunk or count) for a, b in parts)
    assert halo(0, 3, 7) == (0, 4) and halo(3, 6, 7) == (2, 7) and halo(3, 6, 7, False) == (3, 6)
    with pytest.raises(UsageError, match="at least one slice"):
        slabs(3, 0)


@pytest.mark.parametrize("chunk", [1, 2, 5, None])
def test_a_network_sees_its_slices_in_chunks(chunk):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 3)).double()
    x, level = draw(5, 1, 8, 8), draw(5)
    seen = []

    def function(part, t):
        seen.append(len(part))
        return net(part * t.view(-1, 1, 1, 1))

    with torch.no_grad():
        found = by_slabs(function, x, level, chunk=chunk)
        torch.testing.assert_close(found, net(x * level.view(-1, 1, 1, 1)))
    assert sum(seen) == 5 and max(seen) == min(chunk or 5, 5)


def test_functions_that_lose_slices_are_refused():
    with pytest.raises(UsageError, match="turned 2 slices into 1"):
        by_slabs(lambda part: part.mean(0, keepdim=True), draw(4, 2), chunk=2)
    with pytest.raises(UsageError, match="one number of slices"):
        by_slabs(lambda a, b: a, draw(4, 2), draw(3, 2))


@pytest.mark.parametrize("make", [lambda: ParallelCT((6, 6), views=5), lambda: cartesian((6, 6), seed=1),
                                  lambda: DownsampleZ((7, 6, 6), 1)], ids=["slices", "complex", "whole"])
def test_an_operator_on_volumes_is_the_operator(make):
    operator = make()
    kind = torch.complex128 if operator.dtype.is_complex else F64
    x = draw(7, 1, 6, 6, dtype=kind)
    y = operator(x if operator.slice_separable else x[None])
    noisy = y + 0.1
    whole = operator.adjoint(y)
    whole = whole if operator.slice_separable else whole[0]
    for chunk in (2, 7, None):
        on = OnVolumes(operator, y, chunk)
        torch.testing.assert_close(on.adjoint(), whole)
        parts = torch.cat([on.normal(x[i:j], i, j) for i, j in on.slabs])
        torch.testing.assert_close(parts, whole)
        misfit = OnVolumes(operator, noisy, chunk).misfit(x)
        total = 0.01 * (y.numel() if on.whole else y[0].numel())
        torch.testing.assert_close(misfit, torch.full((7,), total, dtype=F64))
        assert on.numbers == y.numel() // len(y) * (2 if y.is_complex() else 1)
    with pytest.raises(UsageError, match="takes one measurement"):
        OnVolumes(operator, y[..., :-1])


def coupled(operator, count, penalty):
    """N = A^T A + R Dz^T Dz by slabs, from the matrices alone."""
    gradient = Gradient("z")

    def normal(p, start, stop):
        low, high = halo(start, stop, count)
        part = p[low:high]
        inner = part[start - low : len(part) - (high - stop)]
        return operator.normal(inner) + penalty * gradient.gram(part, start - low, high - stop)

    return normal


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_coupled_slices_are_solved_as_one_system(chunk):
    operator = ParallelCT((4, 4), views=9)
    normal, rhs = coupled(operator, 5, 0.8), draw(5, 1, 4, 4)
    matrix = torch.stack([normal(e.view(5, 1, 4, 4), 0, 5).flatten() for e in torch.eye(80, dtype=F64)])
    exact = torch.linalg.solve(matrix, rhs.flatten()).view_as(rhs)
    found = conjugate_gradient_by_slabs(normal, rhs, iterations=90, tolerance=1e-11, chunk=chunk)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)
    start = draw(5, 1, 4, 4, seed=1)
    few = conjugate_gradient_by_slabs(normal, rhs, start, 4, chunk=chunk)
    whole = conjugate_gradient(lambda p: normal(p[0], 0, 5)[None], rhs[None], start[None], 4, 0.0)[0]
    torch.testing.assert_close(few, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(start, draw(5, 1, 4, 4, seed=1), rtol=0, atol=0)  # where it began is left alone


def test_slices_by_themselves_have_their_own_steps():
    operator = ParallelCT((5, 5), views=8)
    rhs = draw(6, 1, 5, 5) * torch.logspace(-3, 3, 6, dtype=F64).view(-1, 1, 1, 1)
    found = conjugate_gradient_by_slabs(lambda p, i, j: operator.normal(p[i:j]), rhs, None, 9, 1e-4, False, 4)
    torch.testing.assert_close(found, conjugate_gradient(operator.normal, rhs, None, 9, 1e-4), rtol=1e-9, atol=1e-12)
    moving = torch.tensor([True, False] * 3)
    some = conjugate_gradient_by_slabs(lambda p, i, j: operator.normal(p[i:j]), rhs, rhs, 9, 0.0, False, 4,
                                       moving=moving)
    assert torch.equal(some[1::2], rhs[1::2]) and not bool((some[::2] == rhs[::2]).flatten(1).all(1).any())


def test_single_precision_is_summed_in_double():
    """A step length from float32 sums of a million numbers far apart in size would be off by percents."""
    big = torch.full((4, 1, 512, 512), 1e-4)
    big[0, 0, 0, 0] = 1e4
    on = OnVolumes(Diagonal(torch.ones(1, 512, 512)), big, chunk=2)
    assert float(on.misfit(torch.zeros_like(big)).sum()) == pytest.approx(1e8 + (4 * 512**2 - 1) * 1e-8, rel=1e-14)


@pytest.mark.parametrize("axes", ["z", "yx", "zyx"])
def test_a_chunk_changes_nothing(axes):
    operator = ParallelCT((8, 8), views=6)
    y = operator(draw(9, 1, 8, 8).abs()) + 0.1
    results = []
    for chunk in (1, 4, None):
        on = OnVolumes(operator, y, chunk)
        admm = Admm(on, Gradient(axes, (2.0, 1.0, 1.0)), on.adjoint(), 0.3, 2.0)
        x, w = torch.zeros_like(on.adjoint()), admm.zero()
        for _ in range(3):
            before = w
            x, w = admm.iterate(x, w)
        results.append((x, w, *admm.residuals(x, w, before), admm.balance(w, *admm.residuals(x, w, before)[:2], 1.01)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


PROGRAM = """
import resource, sys, torch
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.tv import TVz
torch.set_num_threads(1)
depth = int(sys.argv[1])
operator = ParallelCT((64, 64), views=4)
volume = torch.zeros(depth, 1, 64, 64)
y, memory = operator(volume[:4]).repeat(depth // 4, 1, 1, 1), {}
for _ in range(2):
    volume = TVz(cg=2, chunk=4)(volume, y, operator, memory)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_grows_by_the_state_alone(root):
    """From 400 to 4000 slices: at most ten volumes more (x in and out, data, two w, residual, directions, sinogram)."""
    peaks = [int(subprocess.run([sys.executable, "-c", PROGRAM, str(depth)], cwd=root, capture_output=True, text=True,
                                check=True).stdout) for depth in (400, 4000)]
    assert (peaks[1] - peaks[0]) / (3600 * 64 * 64 * 4) < 10.0


def test_slabs_may_be_worked_on_elsewhere(device):
    operator = ParallelCT((8, 8), views=6)
    y, x = operator(draw(5, 1, 8, 8)), torch.zeros(5, 1, 8, 8, dtype=F64)
    there = TVz(chunk=2, device=str(device))(x, y, operator, {})
    assert there.device == x.device
    torch.testing.assert_close(there, TVz(chunk=2)(x, y, operator, {}), rtol=1e-6, atol=1e-8)
