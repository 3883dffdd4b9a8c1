"""Blur, down-sampling, masks and mixtures: conformance with their SVDs, and the values they must give."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import dot
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.operators.simple import (
    BOUNDARIES,
    AveragePool,
    Bicubic,
    Blur,
    Diagonal,
    DownsampleZ,
    GaussianBlur,
    Inpainting,
    Keep,
    MetalTrace,
    Mixture,
    Stripes,
    bicubic_matrix,
)
from scidiff.testing import check_operator


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KERNEL = numbers(3, 5, seed=1)
POOL = AveragePool((4, 6), 2)


@pytest.mark.parametrize("operator", [
    *(Blur((6, 7), KERNEL, boundary) for boundary in BOUNDARIES), GaussianBlur((6, 5), 0.8), POOL, Bicubic((8, 4), 2),
    DownsampleZ((6, 2, 3), 3), DownsampleZ((4, 3, 2), 2, "bicubic"), Inpainting((6, 5), share=0.6), Stripes((4, 10)),
    Diagonal(numbers(3, 4)), Keep(numbers(2, 3, 4) > 0), Mixture([POOL, 0.5 * POOL]), Mixture([POOL, POOL, POOL]),
    -2.0 * POOL, POOL.T, MetalTrace(ParallelCT((8, 8), views=6), torch.eye(8).bool() & (torch.arange(8) == 3)),
], ids=str)
def test_simple_operators_conform(operator):
    check_operator(operator, batch=2)


@pytest.mark.parametrize("operator", [GaussianBlur((6, 6), 0.7), Bicubic((8, 8), 4), Inpainting((5, 5)), POOL,
                                      Blur((6, 6), KERNEL.abs()), Mixture([POOL, POOL])], ids=str)
def test_the_singular_values_are_those_of_the_matrix(operator):
    exact = torch.linalg.svdvals(operator.dense())
    found = operator.svd().s.flatten().sort(descending=True).values
    assert torch.allclose(found[: len(exact)], exact[: len(found)], atol=1e-10)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_blur_is_the_convolution_with_its_boundary(boundary):
    x = numbers(2, 1, 6, 7)
    padded = torch.nn.functional.pad(x, (7, 7, 6, 6), mode={"zero": "constant", "reflect": "constant"}.get(
        boundary, boundary))
    if boundary == "reflect":
        wide = torch.cat([x.flip(-1), x, x.flip(-1)], -1)
        padded = torch.cat([wide.flip(-2), wide, wide.flip(-2)], -2)
    exact = torch.nn.functional.conv2d(padded, KERNEL.flip(0, 1)[None, None])[..., 5:11, 5:12]
    assert torch.allclose(Blur((6, 7), KERNEL, boundary)(x), exact)


@pytest.mark.parametrize("boundary", ["circular", "replicate", "reflect"])
def test_a_constant_image_stays_and_a_gaussian_blur_is_separable(boundary):
    ones = torch.ones(1, 1, 12, 9, dtype=torch.float64)
    operator = GaussianBlur((12, 9), 1.1, boundary)
    assert torch.allclose(operator(ones), ones)
    line = torch.exp(-0.5 * (torch.arange(-5, 6).double() / 1.1) ** 2)
    table = torch.outer(line / line.sum(), line / line.sum())
    x = numbers(2, 1, 12, 9)
    assert torch.allclose(Blur((12, 9), table, boundary)(x), operator(x), atol=1e-12)


def test_gaussian_variances_add():
    twice, once = GaussianBlur((64, 64), 1.5), GaussianBlur((64, 64), math.hypot(1.5, 1.5))
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[..., 32, 30] = 1.0
    assert float((twice(twice(x)) - once(x)).abs().max()) < 1e-5


def test_down_sampling_keeps_what_it_should():
    x = numbers(3, 1, 8, 12)
    assert torch.allclose(AveragePool((8, 12), 4)(x), torch.nn.functional.avg_pool2d(x, 4))
    ramp = (2.0 + 0.5 * torch.arange(64).double()).expand(1, 1, 64, 64)
    low = Bicubic((64, 64), 4)(ramp)
    centres = 2.0 + 0.5 * (4 * torch.arange(16).double() + 1.5)
    assert torch.allclose(low[..., 3:-3], centres[3:-3].expand(1, 1, 16, 10))
    assert torch.allclose(bicubic_matrix(40, 1), torch.eye(40, dtype=torch.float64))
    theirs = torch.nn.functional.interpolate(x[:1], scale_factor=0.5, mode="bicubic", antialias=True)
    assert torch.allclose(Bicubic((8, 12), 2)(x[:1])[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=1e-6)
    volume = numbers(2, 6, 1, 3, 4)
    assert torch.allclose(DownsampleZ((6, 3, 4), 2)(volume), volume.view(2, 3, 2, 1, 3, 4).mean(2))
    with pytest.raises(UsageError, match="whole volumes"):
        DownsampleZ((6, 3, 4), 2).slab(0, 2)


def test_masks_and_stripes():
    mask = numbers(5, 6) > 0
    x = numbers(2, 1, 5, 6)
    known = Inpainting((5, 6), mask)
    assert torch.equal(known(x), x[:, 0][:, mask]) and torch.equal(known.normal(x), x * mask)
    assert torch.equal(known.pinv(known(x)), x * mask)
    assert torch.equal(known.prox(x, known(x) + 1, math.inf), x + mask)
    share = Inpainting((100, 100), share=0.3, seed=4).out_shape[0] / 10_000
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 10_000) ** 0.5
    gain = Stripes((7, 50), 0.3, 0.4).gain[0]
    assert sorted(gain[0].tolist()) == pytest.approx([0.6] * 15 + [1.0] * 35)
    assert torch.equal(gain, gain[:1].expand(7, 50))


def test_metal_hides_the_rays_that_meet_it():
    projector, metal = ParallelCT((24, 24), views=15), torch.zeros(24, 24, dtype=torch.bool)
    metal[9:12, 14:16] = True
    operator = MetalTrace(projector, metal)
    image = numbers(1, 1, 24, 24).abs()
    changed = torch.where(metal, image + 100.0, image)
    assert torch.equal(operator(changed), operator(image))
    assert 0.7 < operator.out_shape[0] / math.prod(projector.out_shape) < 0.95
    with pytest.raises(UsageError, match="keeps nothing"):
        MetalTrace(ParallelCT((24, 24), views=3, detector=8), torch.ones(24, 24))


def test_a_mixture_is_the_sum_of_its_sources():
    first, second = GaussianBlur((6, 6), 0.6), GaussianBlur((6, 6), 1.2)
    x = numbers(3, 2, 1, 6, 6)
    mixed = Mixture([first, 2.0 * second])
    assert torch.allclose(mixed(x), first(x[:, 0]) + 2 * second(x[:, 1]))
    same = Mixture([first, first])
    split = same.pinv(first(x[:, 0]))
    assert torch.allclose(split[:, 0], split[:, 1]) and torch.allclose(same(split), first(x[:, 0]), atol=1e-6)
    assert bool((dot(split, split) < dot(x[:, 0], x[:, 0])).all())


def test_what_does_not_fit_is_refused():
    for wrong in (lambda: AveragePool((5, 6), 2), lambda: Bicubic((6, 6), 4), lambda: Blur((6, 6), torch.ones(2, 3)),
                  lambda: Blur((6, 6), torch.ones(3, 3), "wrap"), lambda: DownsampleZ((4, 4, 4), 2, "nearest"),
                  lambda: Inpainting((4, 4), torch.ones(3, 4)), lambda: Mixture([POOL, POOL.T])):
        with pytest.raises(UsageError):
            wrong()
