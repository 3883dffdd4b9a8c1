"""Networks by noise level: every sample meets its own part, whatever shares its batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.spec import Context
from scidiff.nn.router import Router
from scidiff.nn.unet import UNet

SMALL = {"widths": (8,), "blocks": 1, "patch": 2, "embed": 8}


def router(edges=(0.4, 0.8)):
    torch.manual_seed(0)
    made = Router([partial(UNet, **SMALL) for _ in range(len(edges) + 1)], edges, channels_in=2, channels_out=1, dims=1)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


def batch(count=6):
    g = torch.Generator().manual_seed(1)
    seen = torch.randn(count, 1, 16, generator=g)
    ctx = Context(torch.arange(count), cond={"previous": (seen, torch.ones(count, dtype=torch.bool))})
    return {"u": torch.randn(count, 1, 16, generator=g)}, ctx


def test_a_mixed_batch_equals_each_sample_at_its_own_part():
    net, (features, ctx) = router(), batch()
    t = torch.tensor([0.1, 0.4, 0.5, 0.8, 0.9, 1.0])
    out = net(features, t, ctx)["u"]
    for i, part in enumerate((0, 0, 1, 1, 2, 2)):
        row = torch.tensor([i])
        alone = net.parts[part]({"u": features["u"][row]}, t[row], ctx.take(row))["u"]
        assert torch.allclose(out[row], alone, atol=1e-6)


def test_only_the_part_that_owns_the_time_is_called_and_learns():
    net, (features, ctx) = router(), batch()
    net(features, torch.full((6,), 0.6), ctx)["u"].square().mean().backward()
    has = [any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters()) for part in net.parts]
    assert has == [False, True, False]


@pytest.mark.parametrize("edges", [(0.4,), (0.8, 0.4), (0.0, 0.5), (0.5, 1.0)])
def test_edges_must_separate_the_parts(edges):
    with pytest.raises(UsageError, match="needs 2 rising times"):
        Router([partial(UNet, **SMALL)] * 3, edges, channels_in=2, channels_out=1, dims=1)
