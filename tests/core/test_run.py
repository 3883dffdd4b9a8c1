"""Counter noise: a pure function of (seed, id, stream, step, tag, component, logical index), and good enough."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.path import VP, UniformPath
from scidiff.core.run import Run, mix_int, uniform
from scidiff.core.space import Categorical, Euclidean, Symmetric, ZeroMean
from scidiff.core.spec import Component, Context

F64 = torch.float64


def draw(space, shape, ids, sizes=None, n_max=0, seed=0, tag="a", step=0, stream=0, name="x", law="normal"):
    path = UniformPath() if space.categorical else VP()
    ctx = Context(torch.tensor(ids), None if sizes is None else torch.tensor(sizes), n_max)
    run = Run(seed, stream)
    run.step = step
    noise = run.handle(ctx.at(name, Component(space, path, shape)), F64)
    return noise.normal(tag) if law == "normal" else noise.uniform(tag)


@pytest.mark.parametrize("space, shape", [
    (Euclidean(), ("N",)), (Euclidean(), ("N", 3)), (ZeroMean(), ("N", 3)), (Symmetric(), ("N", "N")),
    (Symmetric(), ("N", "N", 2)), (Euclidean(), ("N", "N")), (Categorical(4, pairs=True), ("N", "N")),
])
def test_same_noise_whatever_padding_batch_and_order(space, shape):
    law = "uniform" if space.categorical else "normal"
    ids, sizes = [5, 9, 2, 7], [3, 6, 4, 5]
    full = draw(space, shape, ids, sizes, 6, law=law)
    wide = draw(space, shape, ids, sizes, 11, law=law)
    turned = draw(space, shape, ids[::-1], sizes[::-1], 6, law=law)
    for i, n in enumerate(sizes):
        cut = tuple(slice(0, n) if a == "N" else slice(None) for a in shape)
        mine = full[i][cut]
        alone = draw(space, shape, [ids[i]], [n], n, law=law)[0]
        assert torch.allclose(mine, wide[i][cut], rtol=0, atol=1e-15)
        assert torch.allclose(mine, turned[3 - i][cut], rtol=0, atol=1e-15)
        assert torch.allclose(mine, alone, rtol=0, atol=1e-15)


def test_fixed_shapes_are_bitwise_repeatable():
    assert torch.equal(draw(Euclidean(), (3, 4), [1, 2, 3])[1:2], draw(Euclidean(), (3, 4), [2]))


def test_symmetric_noise():
    x = draw(Symmetric(), ("N", "N"), range(2000), [5] * 2000, 6)
    assert torch.equal(x, x.transpose(1, 2))
    assert bool((x.diagonal(dim1=1, dim2=2) == 0).all()) and bool((x[:, 5] == 0).all())
    upper = x[:, torch.triu(torch.ones(6, 6), 1).bool()][:, [0, 1, 2, 3, 5, 6, 7, 9, 10, 12]]
    assert abs(float(upper.var()) - 1) < 0.05
    u = draw(Categorical(3, pairs=True), ("N", "N"), [0], [4], 4, law="uniform")
    assert torch.equal(u, u.transpose(1, 2))


def test_moments_and_uniformity():
    n = 200_000
    z = draw(Euclidean(), (n,), [3])[0]
    for power, expected, std in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(float((z**power).mean()) - expected) < 4.5 * std / n**0.5
    cdf = 0.5 * (1 + (z.sort().values / 2**0.5).erf())
    grid = (torch.arange(n, dtype=F64) + 0.5) / n
    assert float((cdf - grid).abs().max()) < 1.95 / n**0.5  # Kolmogorov, p = 0.001
    u = draw(Euclidean(), (n,), [3], law="uniform")[0]
    assert float(u.min()) > 0 and float(u.max()) < 1
    counts = torch.histc(u, 100, 0, 1)
    chi2 = float(((counts - n / 100) ** 2 / (n / 100)).sum())
    assert abs(chi2 - 99) < 4.5 * (2 * 99) ** 0.5
    # the low bits of the draw are as good as the high ones
    low = (u * 2**20).frac()
    assert abs(float(low.mean()) - 0.5) < 4.5 / (12 * n) ** 0.5


@pytest.mark.parametrize("change", [{"tag": "b"}, {"step": 1}, {"step": 2**20}, {"stream": 1}, {"name": "y"},
                                    {"seed": 1}, {"ids": [4]}, {"ids": [2**40]}, {"law": "uniform"}])
def test_every_part_of_the_key_makes_independent_noise(change):
    n = 50_000
    base = draw(Euclidean(), (n,), [3])[0]
    other = draw(Euclidean(), (n,), **{"ids": [3], **change})[0]
    if change.get("law") == "uniform":
        other = draw(Euclidean(), (n,), [3], tag="b", law="uniform")[0] - 0.5
    for f in (lambda v: v, torch.abs):
        r = float(torch.corrcoef(torch.stack([f(base), f(other)]))[0, 1])
        assert abs(r) < 4.5 / n**0.5
    shifted = float(torch.corrcoef(torch.stack([base[:-1], other[1:]]))[0, 1])
    assert abs(shifted) < 4.5 / n**0.5


def test_neighbouring_entries_and_ids_are_independent():
    x = draw(Euclidean(), (300,), range(300))
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) < 4.5 / 300
    assert abs(float((x[1:] * x[:-1]).mean())) < 4.5 / 300
    assert x.unique().numel() == x.numel()
    steps = torch.stack([draw(Euclidean(), (50,), [0], step=k)[0] for k in range(400)])
    assert abs(float((steps[1:] * steps[:-1]).mean())) < 4.5 / (400 * 50) ** 0.5


def test_pinned_values():
    """The numbers themselves are part of the promise: runs of earlier versions repeat."""
    assert mix_int(1) == 6238072747940578789
    z = draw(Euclidean(), (2, 2), [0, 1], seed=7, tag="step")
    u = uniform(7, torch.tensor([0, 1]), "size", 2)
    pins = {
        "normal": [-0.13079335655193555, 0.10590907625027834, -0.3332720922631575, -0.8875885953633319,
                   -0.17749920610661482, -0.5282259265280981, 0.23067848032424307, 0.807579954987806],
        "uniform": [0.41759192423776564, 0.9718269991337918,
                    0.07602125270096699, 0.5847437977813608],
    }
    assert torch.allclose(z.flatten(), torch.tensor(pins["normal"], dtype=F64), rtol=0, atol=1e-14)
    assert torch.allclose(u.flatten(), torch.tensor(pins["uniform"], dtype=F64), rtol=0, atol=1e-16)


def test_run_state_round_trip():
    run = Run(11, 3)
    run.step, run.memory["m"] = 17, torch.ones(2)
    again = Run.from_state_dict(run.state_dict())
    ctx = Context.of(2)
    site = ctx.at("x", Component(Euclidean(), VP(), (3,)))
    assert torch.equal(run.handle(site).normal("t"), again.handle(site).normal("t"))
    assert math.isclose(float(again.memory["m"].sum()), 2.0)
