"""Running moments, quantiles and coverage against their definitions and laws; the split against projections."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import dot
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.operators.mri import cartesian
from scidiff.domains.medical.operators.simple import DownsampleZ
from scidiff.domains.medical.uncertainty import (
    Welford,
    conformal_factor,
    coverage,
    quantile_maps,
    scaled_interval,
    split,
)

torch.set_num_threads(1)
F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [torch.float32, F64, torch.complex64])
def test_running_moments_are_those_of_all_samples(kind):
    samples = 1000.0 + draw(9, 20, 1, 3, 4, dtype=kind)  # far from zero, where sums of squares would cancel
    running, first, second = Welford(), Welford(), Welford()
    for i, x in enumerate(samples):
        running.add(x)
        (first if i < 3 else second).add(x)
    first.merge(second)
    first.merge(Welford())
    empty = Welford()
    empty.merge(first)
    exact = samples.to(torch.complex128 if kind.is_complex else F64)
    std = ((exact - exact.mean(0)).abs().square().sum(0) / 8).sqrt()
    for each in (running, first, empty):
        assert each.count == 9
        torch.testing.assert_close(each.mean, exact.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(each.std, std, rtol=1e-9, atol=0)


def test_one_sample_has_no_spread_and_a_stored_state_goes_on():
    a, b = draw(2, 1, 3, 3), draw(2, 1, 3, 3, seed=1)
    one, other = Welford(), Welford()
    one.add(a)
    assert float(one.std.abs().max()) == 0.0
    other.load_state_dict(one.state_dict())
    other.add(b)
    torch.testing.assert_close(other.std, (a - b).abs() / math.sqrt(2))
    with pytest.raises(UsageError, match="one shape"):
        other.add(a[:1])
    for ask in ("mean", "std"):
        with pytest.raises(UsageError, match="before the first"):
            getattr(Welford(), ask)


def test_quantiles_are_order_statistics():
    samples = torch.arange(1.0, 10.0)[torch.randperm(9, generator=torch.Generator().manual_seed(0))].view(9, 1, 1, 1, 1)
    low, half, between, high = quantile_maps(samples.expand(9, 5, 1, 2, 2), [0.1, 0.5, 0.25, 0.99], chunk=2)
    assert (float(low[0, 0, 0, 0]), float(half.max()), float(high.min())) == (1.0, 5.0, 9.0)
    assert float(between.mean()) == pytest.approx(2.5)
    for bad in ([], [0.0], [1.2]):
        with pytest.raises(UsageError, match="levels between"):
            quantile_maps(samples, bad)


@pytest.mark.parametrize("count, levels, expected", [(19, (0.05, 0.95), 0.9), (9, (0.1, 0.9), 0.8),
                                                     (4, (0.05, 0.95), 0.6)])
def test_a_truth_like_the_samples_is_covered_as_promised(count, levels, expected):
    """Exchangeable truths lie between order statistics i and j with probability (j - i) / (N + 1)."""
    samples, truth = draw(count, 40, 1, 32, 32), draw(40, 1, 32, 32, seed=5)
    low, high = quantile_maps(samples, levels)
    found = coverage(low, high, truth)
    assert found.value == pytest.approx(expected, abs=0.01)
    assert found.low < found.value < found.high < found.low + 0.02


def test_coverage_counts_voxels_of_the_mask():
    truth, where = torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    where[0, 0, 0] = where[2, 0, 1, 1] = True
    low = torch.zeros_like(truth)
    low[0, 0, 0, 0] = 0.5
    assert coverage(low, low + 1, truth, where).value == pytest.approx(2 / 3)
    assert coverage(low, low + 1, truth).value == pytest.approx(11 / 12)
    with pytest.raises(UsageError, match="without voxels"):
        coverage(low, low, truth, where & False)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_conformal_factor_repairs_intervals_of_the_wrong_width(level):
    """Fitted on one volume, the corrected interval covers another of the same law at the level."""
    spread = 0.5 + draw(10, 1, 20, 20, seed=9).abs()
    first, second = (spread * draw(10, 1, 20, 20, seed=i) for i in (1, 2))
    centre, half = torch.zeros_like(spread), 0.3 * spread  # far too narrow
    factor = conformal_factor(centre, half, first, level)
    assert factor == pytest.approx(float(torch.special.ndtri(torch.tensor(0.5 + level / 2))) / 0.3, rel=0.05)
    low, high = scaled_interval(centre - half, centre + half, factor)
    assert coverage(low, high, second).value == pytest.approx(level, abs=0.02)
    assert coverage(low, high, first).value == pytest.approx(level, abs=1e-3)
    assert conformal_factor(centre, half, first, level, spread < 1.0) == pytest.approx(factor, rel=0.1)


def test_the_conformal_factor_at_its_ends():
    one = torch.ones(4, 1, 1, 1)
    errors = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1)
    assert conformal_factor(0 * one, one, errors, 0.6) == 3.0  # rank ceil(5 x 0.6) = 3
    assert conformal_factor(0 * one, one, errors, 0.9) == math.inf  # four voxels promise no 90 %
    assert conformal_factor(errors, 0 * one, errors, 0.5) == 0.0
    assert conformal_factor(0 * one, 0 * one, errors, 0.5) == math.inf


@pytest.mark.parametrize("make", [lambda: cartesian((8, 8), "random", 2.0, seed=2),
                                  lambda: ParallelCT((6, 6), angles=[10.0, 50.0]), lambda: DownsampleZ((6, 4, 4), 2)],
                         ids=["svd", "cgls", "volumes"])
def test_the_split_is_a_projection(make):
    """Both parts are orthogonal, what is seen measures as the whole does, what is invented measures as nothing."""
    operator = make()
    shape = operator.in_shape if not operator.slice_separable else (5, *operator.in_shape)
    x = draw(*shape, dtype=torch.complex128 if operator.dtype.is_complex else F64)
    found = split(x, operator, tolerance=1e-12, chunk=2)

    def measured(v):
        return operator(v if operator.slice_separable else v[None])

    torch.testing.assert_close(found.seen + found.invented, x)
    torch.testing.assert_close(measured(found.seen), measured(x), rtol=1e-6, atol=1e-7)
    assert abs(float(dot(found.seen, found.invented).sum())) < 1e-6 * float(dot(x, x).sum())
    rank = torch.linalg.matrix_rank(operator.dense()).item() / math.prod(operator.in_shape)
    assert found.share == pytest.approx(1 - rank, abs=0.15)  # white noise spreads its energy evenly


def test_nothing_is_invented_of_what_was_back_projected():
    operator = ParallelCT((6, 6), angles=[0.0, 45.0, 100.0])
    x = operator.adjoint(draw(3, *operator.out_shape))
    assert split(x, operator, tolerance=1e-12).share < 1e-10
    assert split(torch.zeros_like(x), operator).share == 0.0
