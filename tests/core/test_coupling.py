"""T17: couplings are permutations that cost less, keep shapes, and respect conditions and sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from scidiff.core.analytic import ring8
from scidiff.core.coupling import ExactOT, Immiscible, Independent, squared_distances
from scidiff.core.errors import ScidiffError
from scidiff.core.spec import Context

ALL = [ExactOT(), Immiscible(), Immiscible(half=True)]


def batch(n=24, shape=(3, 2), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g), torch.randn(n, *shape, generator=g)


def test_distances():
    x, y = batch()
    exact = (x[:, None] - y[None]).flatten(2).square().sum(-1)
    assert torch.allclose(squared_distances(x, y), exact, atol=1e-4)


@pytest.mark.parametrize("coupling", [Independent(), *ALL])
def test_whole_samples_are_permuted(coupling):
    x0, x1 = batch()
    out = coupling(x0, x1, Context.of(24))
    assert out.shape == x1.shape and out.dtype == x1.dtype
    place = (out[:, None] == x1[None]).flatten(2).all(-1)
    assert torch.equal(place.sum(0), torch.ones(24, dtype=torch.int64))
    assert torch.equal(place.sum(1), torch.ones(24, dtype=torch.int64))
    assert torch.equal(out.sum(0).round(decimals=4), x1.sum(0).round(decimals=4))


@pytest.mark.parametrize("coupling", ALL)
def test_cost_falls(coupling):
    for seed in range(5):
        x0, x1 = batch(seed=seed)
        out = coupling(x0, x1, Context.of(24))
        power = 2 if type(coupling) is ExactOT else 1
        before, after = ((x0 - v).flatten(1).norm(dim=1) ** power for v in (x1, out))
        assert float(after.sum()) < float(before.sum())


def test_exact_means_the_best_of_all_permutations():
    x0, x1 = batch(5, (2,), 3)
    cost = squared_distances(x0, x1)
    best = min(sum(float(cost[i, p[i]]) for i in range(5)) for p in itertools.permutations(range(5)))
    p = ExactOT().permutation(x0, x1, Context.of(5))
    assert abs(float(cost[torch.arange(5), p].sum()) - best) < 1e-4


def test_immiscible_costs_are_distances_in_half_precision_on_demand():
    x0, x1 = batch(6, (2,), 3)
    distance = (x0[:, None] - x1[None]).norm(dim=-1)
    torch.testing.assert_close(Immiscible().cost(x0, x1), distance, rtol=1e-5, atol=1e-5)
    half = Immiscible(half=True).cost(x0, x1)
    assert half.dtype == torch.float16 and torch.allclose(half.float(), distance, rtol=1e-3)


def test_infinite_penalty_never_mixes_classes():
    x0, x1 = batch(30)
    label = torch.arange(30) % 3
    present = torch.arange(30) < 24
    ctx = Context.of(30, cond={"label": (label, present)})
    p = ExactOT(condition_penalty=math.inf).permutation(x0, x1, ctx)
    assert torch.equal(torch.where(present, label, -1), torch.where(present, label, -1)[p])
    assert not torch.equal(p, torch.arange(30))
    free = ExactOT().permutation(x0, x1, ctx)
    seen = torch.where(present, label, -1)
    assert not torch.equal(seen, seen[free])
    mixed = [int((seen != seen[ExactOT(condition_penalty=w).permutation(x0, x1, ctx)]).sum()) for w in (0.0, 2.0, 1e6)]
    assert mixed[0] >= mixed[1] >= mixed[2] == 0


def test_sizes_are_never_mixed():
    x0, x1 = batch(20, (5, 2))
    ctx = Context.of(20, sizes=torch.arange(20) % 4 + 2)
    for coupling in ALL:
        p = coupling.permutation(x0, x1, ctx)
        assert torch.equal(ctx.sizes, ctx.sizes[p])


def test_paths_become_straighter():
    """On the ring the coupled displacement is shorter, hence less curvature is left to learn."""
    x0 = ring8().sample(256, 0)
    x1 = torch.randn(256, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = ExactOT()(x0, x1, Context.of(256))
    assert float((x0 - out).square().mean()) < 0.5 * float((x0 - x1).square().mean())


def test_unknown_condition():
    with pytest.raises(ScidiffError, match="Did you mean 'label'"):
        x0, x1 = batch()
        ctx = Context.of(24, cond={"label": (torch.zeros(24), torch.ones(24, dtype=torch.bool))})
        ExactOT(condition_penalty=1.0, conditions=("labels",))(x0, x1, ctx)
