"""The perceptron for vectors: shapes, zero start, times per component, conditions, past estimates, fit of a mean."""

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.spec import Context
from scidiff.nn.mlp import MLP


def moved(net: MLP) -> MLP:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.double()


def test_it_starts_at_zero_and_keeps_the_shapes_of_its_outputs():
    net = MLP({"x": 6, "k": 12}, {"x": (3, 2), "k": (4, 3)}, width=16, depth=2)
    out = net({"x": torch.randn(5, 3, 2), "k": torch.randn(5, 4, 3)}, torch.rand(5), Context.of(5))
    assert out["x"].shape == (5, 3, 2) and out["k"].shape == (5, 4, 3)
    assert not out["x"].any() and not out["k"].any()


def test_samples_do_not_see_each_other():
    net = moved(MLP({"x": 4}, width=16))
    x, t = torch.randn(6, 4).double(), torch.rand(6).double()
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    whole = net({"x": x}, t, Context.of(6))["x"]
    torch.testing.assert_close(net({"x": x[order]}, t[order], Context.of(6))["x"], whole[order], rtol=0, atol=1e-12)


def test_times_conditions_and_the_past_reach_the_output():
    net = moved(MLP({"x": 4, "y": 2}, width=16, clocks=2, conditions={"c": 3}, self_conditioning=True))
    x = {"x": torch.randn(4, 4).double(), "y": torch.randn(4, 2).double()}
    ctx = Context.of(4, cond={"c": (torch.randn(4, 3), torch.tensor([True, True, False, False]))})
    t = torch.rand(4, 2).double()
    base = net(x, t, ctx)["x"]
    assert (net(x, t.flip(1), ctx)["x"] - base).abs().max() > 1e-6
    assert (net(x, t, ctx, {n: v + 1 for n, v in x.items()})["x"] - base).abs().max() > 1e-6
    other = Context.of(4, cond={"c": (torch.randn(4, 3), ctx.cond["c"][1])})
    changed = (net(x, t, other)["x"] - base).abs().amax(1) > 1e-9
    assert changed.tolist() == [True, True, False, False]


def test_outputs_need_inputs():
    with pytest.raises(UsageError, match="without inputs: z"):
        MLP({"x": 2}, {"z": 2})


def test_it_learns_a_linear_map():
    torch.manual_seed(0)
    net, a = MLP({"x": 3}, width=32, depth=1), torch.randn(3, 3)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(200):
        x = torch.randn(128, 3)
        loss = (net({"x": x}, torch.rand(128), Context.of(128))["x"] - x @ a).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
