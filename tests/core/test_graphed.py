"""The loop as one CUDA graph gives what the plain loop gives, chunk after chunk."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, ring8
from scidiff.core.errors import UsageError
from scidiff.core.graphed import GraphedLoop, detached, tensors
from scidiff.core.path import VP
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.adaptive import Adaptive
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.spec import Context


def sampler(driver, rules=(), **more):
    denoiser = AnalyticMixture(ring8(), VP(), kind="noise")
    return Sampler(denoiser.spec(), denoiser, driver, rules, **more)


@pytest.mark.gpu
@pytest.mark.parametrize("method", [Exponential(), Ancestral(eta=1.0)], ids=str)
def test_replays_equal_the_plain_loop(method):
    class Resident(AnalyticMixture):
        def __init__(self):
            super().__init__(ring8(), VP(), kind="noise")
            m = self.mixture
            m.means, m.stds, m.weights = m.means.cuda(), m.stds.cuda(), m.weights.cuda()

    denoiser = Resident()
    plain = Sampler(denoiser.spec(), denoiser, Fixed(method, 12))
    graphed = Sampler(denoiser.spec(), denoiser, Fixed(method, 12), cuda_graph=True)
    for seed, first in ((0, 0), (1, 0), (0, 64)):
        ctx = Context(torch.arange(first, first + 64, device="cuda"))
        a, b = plain.run(ctx, seed), graphed.run(ctx, seed)
        assert torch.allclose(a.state["x"], b.state["x"], rtol=1e-4, atol=1e-5) and a.nfe == b.nfe


def test_predictions_of_a_replay_are_its_own():
    """The static buffers are written again by the next chunk, and a conversion must not be remembered beyond it."""
    one, ctx = sampler(Fixed(Ancestral(), 4)), Context.of(3)
    with torch.inference_mode():
        loop = one._begin(ctx, 0, None, 1.0, None)
        one._loop(loop, None)
    first = detached(loop, ctx)["x"]
    noise, data = first.noise.clone(), first.data.clone()
    with torch.inference_mode():
        loop.predictions["x"].value.fill_(7.0)
        loop.seen["x"].fill_(7.0)
    second = detached(loop, ctx)["x"]
    assert torch.equal(first.noise, noise) and torch.equal(first.data, data)
    assert not torch.allclose(second.data, data) and float(second.noise.max()) == 7.0


def test_what_cannot_be_captured_is_refused():
    with pytest.raises(UsageError, match="fixed plan"):
        GraphedLoop(sampler(Adaptive()))
    with pytest.raises(UsageError, match="rules"):
        GraphedLoop(sampler(Fixed(Ancestral(), 3), [lambda *a: {}]))


def test_static_buffers_cover_everything_that_differs_among_chunks():
    two = torch.zeros(2)
    ctx = Context.of(2, sizes=torch.tensor([1, 2]), cond={"y": (two, two.bool())}, centre={"x": two},
                     known={"x": (two, two.bool())}, source={"x": two}, meta={"cell": two, "note": "kept"})
    names = [name for name, _ in tensors(ctx)]
    assert names == ["ids", "sizes", "cond/y", "cond/y/present", "known/x", "known/x/where", "centre/x", "source/x",
                     "meta/cell"]
