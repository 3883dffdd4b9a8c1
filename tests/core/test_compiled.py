"""Compiled networks and captured loops give what plain ones give, and a compiled network is one program."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.guidance import ClassifierFree
from scidiff.core.path import VP
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec


class Small(torch.nn.Module):
    """A backbone that reads the state, the time and a condition."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        torch.nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, features, t, ctx, previous):
        value, present = ctx.cond["y"]
        more = torch.stack([t, value * present], -1)
        return {"x": torch.tanh(self.layer(torch.cat([features["x"], more], -1)))}


def conditioned(batch, device="cpu", value=1.0):
    y = torch.full((batch,), value, device=device), torch.ones(batch, dtype=torch.bool, device=device)
    return Context.of(batch, device, cond={"y": y})


def guided(device="cpu", **more):
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})
    denoiser = ClassifierFree(NetworkDenoiser(spec, Small(), kinds={"x": "data"}), 2.0).to(device)
    return Sampler(spec, denoiser, Fixed(Exponential(), 12), **more)


def test_a_compiled_network_is_one_program_for_all_steps(monkeypatch):
    frames = torch._dynamo.utils.counters["frames"]
    ordinary = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: ordinary(self, backend="eager"))
    torch._dynamo.reset()
    before = frames["total"]
    compiled = guided(compile=True).run(conditioned(6), 0)
    assert 1 <= frames["total"] - before <= 2
    assert torch.allclose(compiled.state["x"], guided().run(conditioned(6), 0).state["x"], atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["compile", "cuda_graph"])
def test_compiled_and_captured_runs_equal_plain_ones_on_a_gpu(how):
    """Guided, with another condition in the second chunk: nothing of the first may live on in the graph."""
    plain, fast = guided("cuda"), guided("cuda", **{how: True})
    for value in (1.0, -2.0):
        ctx = conditioned(64, "cuda", value)
        a, b = plain.run(ctx, 3), fast.run(ctx, 3)
        assert torch.allclose(a.state["x"], b.state["x"], atol=1e-4)
        assert torch.allclose(a.predictions["x"].data, b.predictions["x"].data, atol=1e-4)
