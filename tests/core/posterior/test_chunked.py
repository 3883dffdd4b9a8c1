"""A denoiser in chunks is the denoiser: values, gradients, conditions, memory; and it holds one chunk at a time."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.denoiser import MEMORY, NetworkDenoiser
from scidiff.core.path import VP
from scidiff.core.posterior import Chunked
from scidiff.core.run import Run
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec

SPEC = StateSpec({"x": Component(Euclidean(), VP(), (4,)), "z": Component(Euclidean(), VP(), (2,))})


class Backbone(torch.nn.Module):
    """Looks at the state, a condition, the time and its own last estimate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.sizes = torch.nn.Linear(12, 6), []

    def forward(self, features, t, ctx, previous):
        last = features["x"] * 0.0 if previous is None else previous["x"]
        value, present = ctx.cond["c"]
        self.sizes.append(len(t))
        inputs = [features["x"], features["z"], last, t[:, None], (value * present)[:, None]]
        out = torch.tanh(self.layer(torch.cat(inputs, 1)))
        return {"x": out[:, :4], "z": out[:, 4:]}


@pytest.fixture
def prior():
    return NetworkDenoiser(SPEC, Backbone(), self_conditioning=True)


def inputs(batch):
    g = torch.Generator().manual_seed(1)
    state = {"x": torch.randn(batch, 4, generator=g), "z": torch.randn(batch, 2, generator=g)}
    ctx = Context.of(batch, cond={"c": (torch.randn(batch, generator=g), torch.arange(batch) % 2 == 0)})
    return state, ctx


@pytest.mark.parametrize("t", [0.4, torch.linspace(0.1, 0.9, 7)])
def test_values_conditions_and_memory_are_those_of_the_whole_batch(prior, t):
    state, ctx = inputs(7)
    chunked, one, other = Chunked(prior, 3), Run(0), Run(0)
    for _ in range(2):  # the second call looks at what the first one remembered
        with torch.no_grad():
            whole, parts = prior(state, t, ctx, one), chunked(state, t, ctx, other)
        for name in SPEC:
            torch.testing.assert_close(parts[name].data, whole[name].data)
            torch.testing.assert_close(parts[name].velocity, whole[name].velocity)
            torch.testing.assert_close(other.memory[MEMORY][name], one.memory[MEMORY][name])
    assert prior.backbone.sizes[-3:] == [3, 3, 1]
    assert chunked.self_conditioning and chunked.spec is SPEC


def test_gradients_are_those_of_the_whole_batch_and_chunks_are_computed_anew(prior):
    state, ctx = inputs(7)
    run = Run(0)
    run.memory[MEMORY] = {"x": torch.ones(7, 4), "z": torch.ones(7, 2)}
    slopes = []
    for denoiser in (prior, Chunked(prior, 2)):
        x = state["x"].clone().requires_grad_()
        again = Run(0)
        again.memory[MEMORY] = dict(run.memory[MEMORY])
        clean = denoiser({**state, "x": x}, 0.5, ctx, again)["x"].data
        prior.backbone.sizes.clear()
        slopes.append(torch.autograd.grad(clean.square().sum(), x)[0])
    torch.testing.assert_close(slopes[1], slopes[0])
    assert sorted(prior.backbone.sizes) == [1, 2, 2, 2]


def test_what_is_kept_for_the_way_back_does_not_grow_with_the_width_of_the_network(prior):
    state, ctx = inputs(8)
    sizes = {}
    for name, denoiser in {"whole": prior, "chunked": Chunked(prior, 2)}.items():
        kept: dict[int, int] = {}

        def keep(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            x = state["x"].clone().requires_grad_()
            clean = denoiser({**state, "x": x}, 0.5, ctx, Run(0))["x"].data
        sizes[name] = sum(kept.values())
        assert clean.requires_grad
    assert sizes["chunked"] < 0.5 * sizes["whole"]
