"""StateSpec survives JSON with every path; contexts mask, take and double consistently."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from scidiff.core.errors import ScidiffError
from scidiff.core.path import (
    EDM,
    RDDM,
    VE,
    VP,
    AbsorbingPath,
    Bridge,
    Cosine,
    DiscreteDDPM,
    LevelPath,
    Linear,
    LinearVP,
    MarginalPath,
    MeanReverting,
    Poly,
    ResShift,
    SubVP,
    UniformPath,
    WrappedPath,
)
from scidiff.core.space import Categorical, Euclidean, Symmetric, Torus, ZeroMean
from scidiff.core.spec import Component, Context, StateSpec

REAL = [VP(0.2, 10.0, weight="min_snr"), SubVP(), VE(0.1, 1.0), EDM(), Cosine(offset=0.008), LinearVP(),
        Linear(centred=True), Poly(3.0), DiscreteDDPM(rule="scaled_linear"), DiscreteDDPM(alphas_bar=(0.9, 0.5, 0.1)),
        MeanReverting(), ResShift(), RDDM(), LevelPath((0.01, 0.5, 1.0)), LevelPath.geometric(1e-3, 3),
        Bridge("trig", "sine", 0.5)]
CLASSES = [MarginalPath(marginal=(0.25, 0.5, 0.25)), UniformPath("cosine"), AbsorbingPath(weighted=True)]


def build(node):
    node = dict(node)
    module, name = node.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**node)


@pytest.mark.parametrize("space, path", [
    *((Euclidean(), p) for p in REAL), *((Categorical(3, pairs=True), p) for p in CLASSES),
    (Torus(2.0), WrappedPath()), (ZeroMean(), VP()), (Symmetric(), VE())], ids=str)
def test_json_round_trip(space, path):
    spec = StateSpec({"a": Component(space, path, ("N", "N")), "b": Component(Euclidean(), VP(), (8,))})
    again = StateSpec.from_config(json.loads(json.dumps(spec.to_config())), build)
    assert dict(again) == dict(spec)
    assert list(again) == ["a", "b"] and again["a"].padded == (True, True)


def test_shapes_are_checked():
    with pytest.raises(ScidiffError, match="positive integers"):
        Component(Euclidean(), VP(), ("M", 3))
    with pytest.raises(ScidiffError, match="needs sizes"):
        Context.of(2).at("x", Component(Euclidean(), VP(), ("N",)))
    with pytest.raises(ScidiffError, match="at least one"):
        StateSpec({})


def test_context_take_and_double():
    present = torch.tensor([True, False, True])
    ctx = Context(torch.arange(3), torch.tensor([1, 2, 3]), cond={"y": (torch.arange(3.0), present)},
                  meta={"cell": torch.arange(3), "note": "kept"})
    some = ctx.take(torch.tensor([2, 0]))
    assert some.ids.tolist() == [2, 0] and some.sizes.tolist() == [3, 1] and some.n_max == 3
    assert some.meta["cell"].tolist() == [2, 0] and some.meta["note"] == "kept"
    twice = ctx.doubled()
    assert twice.cond["y"][1].tolist() == [True, False, True, False, False, False]
    assert twice.ids.tolist() == [0, 1, 2, 0, 1, 2]
    mask = ctx.mask(("N", "N"))
    assert mask.shape == (3, 3, 3) and mask.flatten(1).sum(1).tolist() == [1, 4, 9]


def test_time_buffer_is_reused():
    ctx = Context.of(4)
    with torch.inference_mode():
        a = ctx.time(0.25)
    with torch.no_grad():
        assert ctx.time(0.5) is a and a.tolist() == [0.5] * 4
    assert ctx.time(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)).dtype == torch.float32


def test_what_a_context_keeps_from_sampling_serves_gradients_too():
    ctx = Context.of(2, sizes=torch.tensor([1, 2]))
    weight = torch.ones((), requires_grad=True)
    with torch.inference_mode():
        ctx.time(0.1), ctx.mask(("N",))
    loss = (weight * ctx.time(0.25)).sum() + (weight * ctx.time(0.5)).sum()
    loss = loss + torch.where(ctx.mask(("N",)), weight, 0.0).sum()
    loss.backward()
    assert float(weight.grad) == 2 * 0.25 + 2 * 0.5 + 3
