"""Several sources in one measurement: conformance, closed forms, and what a shortest answer makes of them."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.operator import dot
from scidiff.domains.medical.noise import Ring
from scidiff.domains.medical.operators.ct import ParallelCT
from scidiff.domains.medical.operators.masks import Mask
from scidiff.domains.medical.operators.mixture import (
    Blend,
    Sources,
    discs,
    haze,
    metal_trace,
    with_metal,
    with_rings,
)
from scidiff.domains.medical.operators.mri import MRI
from scidiff.domains.medical.operators.simple import AveragePool, DownsampleZ, GaussianBlur
from scidiff.testing import check_operator

SCAN = MRI(Mask("random", 2.0, 2).draw((5, 6)))


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("operator", [
    Blend(SCAN, [1.0, 0.5, -2.0]), Blend(ParallelCT((4, 5), views=3), [1.0, 3.0]), haze((3, 4)),
    with_rings(ParallelCT((5, 5), views=4)), with_metal(ParallelCT((6, 6), views=5), discs((6, 6), [(0, 0, 0.2)])),
    metal_trace((10, 10), views=6, metal=[(0.0, 0.0, 0.15)]), Sources([MRI(SCAN.mask, real=True), SCAN]),
    Blend(DownsampleZ((4, 2, 3), 2), [1.0, 2.0]),
], ids=str)
def test_mixtures_conform(operator):
    check_operator(operator, batch=2, solves=math.prod(operator.in_shape) < 60)


def test_a_blend_is_one_operator_on_the_sum_of_its_sources():
    blur, x = GaussianBlur((6, 5), 0.8), numbers(3, 3, 1, 6, 5)
    gains = [1.0, -0.5, 2.0]
    operator = Blend(blur, gains)
    assert torch.allclose(operator(x), sum(g * blur(x[:, k]) for k, g in enumerate(gains)))
    exact = torch.linalg.svdvals(operator.dense())
    assert torch.allclose(operator.svd().s.flatten().sort(descending=True).values, exact, atol=1e-10)


def test_the_shortest_sources_share_by_their_gains():
    """pinv of y = x + g h gives x = y / (1 + g^2), h = g y / (1 + g^2)."""
    y, operator = numbers(2, 1, 4, 5), haze((4, 5), (1.0, 0.5))
    found = operator.pinv(y)
    assert torch.allclose(found[:, 0], y / 1.25) and torch.allclose(found[:, 1], 0.5 * y / 1.25)
    guess = numbers(2, 2, 1, 4, 5, seed=1)
    near = operator.prox(guess, y, math.inf)  # the nearest sources that explain y
    assert torch.allclose(operator(near), y)
    assert torch.allclose(near - guess, operator.adjoint(y - operator(guess)) / 1.25)


def test_sources_of_any_shape_are_split_and_joined():
    pool, same = AveragePool((4, 6), 2), GaussianBlur((2, 3), 0.5)
    operator = Sources([pool, same])
    parts = [numbers(3, 1, 4, 6), numbers(3, 1, 2, 3, seed=1)]
    x = operator.join(parts)
    assert operator.in_shape == (30,) and all(torch.equal(a, b) for a, b in zip(operator.split(x), parts, strict=True))
    assert torch.allclose(operator(x), pool(parts[0]) + same(parts[1]))
    back = operator.split(operator.adjoint(operator(x)))
    assert torch.allclose(back[0], pool.adjoint(operator(x))) and torch.allclose(back[1], same.adjoint(operator(x)))
    assert operator.slab(0, 2)(x).equal(operator(x))


def test_rings_are_a_source_of_their_own():
    projector = ParallelCT((12, 12), views=30)
    operator, slices = with_rings(projector), numbers(2, 1, 12, 12).abs()
    clean = projector(slices)
    noisy = Ring(3.0)(clean, 1, torch.arange(2))
    offset = (noisy - clean)[:, :, :1]
    assert torch.allclose(operator(operator.join([slices, offset])), noisy)
    explained, ringed = operator.pinv(noisy, 150), projector.pinv(noisy, 150)
    assert float((operator(explained) - noisy).norm()) < 0.01 * float((projector(ringed) - noisy).norm())
    found, _ = operator.split(explained)
    assert float((found - slices).norm()) < 0.5 * float((ringed - slices).norm())


def test_metal_may_be_left_out_or_be_a_source():
    """Rays through metal hold no news of the slice once anything may add to them: both explain the other rays."""
    projector, metal = ParallelCT((12, 12), views=24), discs((12, 12), [(0.05, -0.1, 0.12)])
    beside, within = metal_trace((12, 12), 24, metal=[(0.05, -0.1, 0.12)]), with_metal(projector, metal)
    assert math.prod(beside.out_shape) + within.operators[1].in_shape[0] == math.prod(projector.out_shape)
    x = numbers(2, 1, 12, 12).abs()
    hit = torch.where(metal, x + 50.0, x)
    assert torch.allclose(beside(hit), beside(x))
    seen = projector(hit)
    assert torch.allclose(within(within.join([x, within.operators[1].adjoint(seen - projector(x))])), seen, atol=1e-5)
    slices, _ = within.split(seen.flatten(1) @ torch.linalg.pinv(within.dense()).T)
    assert torch.allclose(beside(slices), beside(x), atol=1e-6)
    shortest = (beside(hit) @ torch.linalg.pinv(beside.dense()).T).view_as(x)
    assert torch.allclose(beside(shortest), beside(x), atol=1e-6)
    assert bool((dot(shortest, shortest) <= dot(slices, slices) * (1 + 1e-9)).all())


def test_discs_are_where_they_are_said_to_be():
    found = discs((40, 60), [(0.0, 0.25, 0.1), (-0.2, -0.3, 0.05)])
    assert int(found[:, 30:].sum()) == pytest.approx(math.pi * 16, rel=0.1)
    y, x = found[:, 30:].nonzero().double().mean(0).tolist()
    assert y == pytest.approx(19.5, abs=0.5) and x + 30 == pytest.approx(39.5, abs=0.5)


def test_what_does_not_fit_is_refused():
    for wrong, sentence in ((lambda: Blend(SCAN, []), "finite gain"),
                            (lambda: Blend(SCAN, [0.0, 0.0]), "all of them zero"),
                            (lambda: Sources([SCAN, AveragePool((4, 6), 2)]), "cannot be sources"),
                            (lambda: haze((3, 4))(torch.ones(2, 3, 4)), "batch of images"),
                            (lambda: with_rings(ParallelCT((5, 5), views=4)).join([torch.ones(1, 1, 5, 5)]), "joins"),
                            (lambda: discs((8, 8), [(0.0, 0.0, -1.0)]), "positive radius"),
                            (lambda: discs((8, 8), [(9.0, 9.0, 0.1)]), "no pixel")):
        with pytest.raises(UsageError, match=sentence):
            wrong()
