"""The captured loop: refusals on every machine, buffers with a capture of our own, equal bits on a GPU."""

import pytest
import torch
from torch import nn

from scidiff.core.analytic import AnalyticMixture, ring8
from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import NonFinite, UsageError
from scidiff.core.graphed import GraphedLoop, copied, cuda_capture, tensors
from scidiff.core.guidance import ClassifierFree, Clamp
from scidiff.core.path import VP, Linear, UniformPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.jump import Posterior
from scidiff.core.space import Categorical, Euclidean, ZeroMean
from scidiff.core.spec import Component, Context, StateSpec


class Blend(nn.Module):
    """A backbone of positions and classes of variable length, with conditions, masks and its own past."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(2 + 3 + 1 + 1 + 3, 2 + 3)

    def forward(self, features, t, ctx, previous):
        n = ctx.n_max
        value, present = ctx.cond["c"]
        wide = (value * present).float().view(-1, 1, 1).expand(-1, n, 1)
        clock = t.reshape(ctx.batch, -1)[:, :1].view(-1, 1, 1).expand(-1, n, 1)
        mean = features["x"].sum(1, keepdim=True) / ctx.mask(("N",)).sum(1).view(-1, 1, 1)
        past = features["k"] if previous is None else previous["k"].float()
        out = self.lin(torch.cat([features["x"] - mean, features["k"], wide, clock, past], -1))
        return {"x": torch.tanh(out[..., :2]), "k": out[..., 2:]}


def joint(device="cpu"):
    spec = StateSpec({"x": Component(ZeroMean(), Linear(), ("N", 2)), "k": Component(Categorical(3), UniformPath(), ("N",))})
    return spec, NetworkDenoiser(spec, Blend().to(device), kinds={"x": "data"}, self_conditioning=True)


def batch(ids, sizes, value, device="cpu"):
    ids = torch.tensor(ids)
    cond = {"c": (torch.full((len(ids),), value), torch.ones(len(ids), dtype=torch.bool))}
    return Context(ids, sizes=torch.tensor(sizes), n_max=6, cond=cond).to(device)


def again(warm_up, record):
    """A capture that runs the recorded loop anew on its static buffers: what a graph does, without one."""
    warm_up()
    loop = record()

    def replay():
        loop.context._masks.clear()
        fresh = record()
        for n, x in fresh.state.items():
            loop.state[n].copy_(x)
            loop.predictions[n].value.copy_(fresh.predictions[n].value)
        loop.bad = fresh.bad

    return loop, replay


def test_without_a_gpu_it_is_refused_in_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    spec, denoiser = joint()
    with pytest.raises(UsageError, match="solver.cuda_graph=true needs a CUDA GPU, and none is visible"):
        Sampler(spec, denoiser, Fixed(Posterior(), steps=2), cuda_graph=True)


def test_rules_gradients_moving_plans_and_processors_are_refused():
    spec, denoiser = joint()
    with pytest.raises(UsageError, match="without rules"):
        GraphedLoop(Sampler(spec, denoiser, Fixed(Posterior(), steps=2), rules=[Clamp(spec)]))
    denoiser.needs_grad = True
    with pytest.raises(UsageError, match="gradients"):
        GraphedLoop(Sampler(spec, denoiser, Fixed(Posterior(), steps=2)))

    class Moving(Fixed):
        pass

    class Other:
        history = staticmethod(lambda spec: {})

    denoiser.needs_grad = False
    GraphedLoop(Sampler(spec, denoiser, Moving(Posterior(), steps=2)))
    with pytest.raises(UsageError, match="Other makes none"):
        GraphedLoop(Sampler(spec, denoiser, Other()))
    with pytest.raises(UsageError, match="they are on the cpu"):
        GraphedLoop(Sampler(spec, denoiser, Fixed(Posterior(), steps=2))).run(batch([0], [6], 0.0), 0)


def test_the_buffers_carry_everything_that_differs_between_runs():
    spec, denoiser = joint()
    sampler = Sampler(spec, denoiser, Fixed(Posterior(), steps=5))
    graphed = GraphedLoop(sampler, capture=again)
    for ids, sizes, value, seed in (([0, 1, 2], [6, 4, 2], 0.5, 0), ([7, 3, 9], [3, 6, 5], -1.0, 11),
                                    ([0, 1, 2], [6, 4, 2], 0.5, 0)):
        ctx = batch(ids, sizes, value)
        got, want = graphed.run(ctx, seed), sampler.run(ctx, seed)
        for n in spec:
            assert torch.equal(got.state[n], want.state[n])
            assert torch.equal(got.predictions[n].value, want.predictions[n].value)
        assert got.nfe == want.nfe and got.run.step == want.run.step
    assert len(graphed._graphs) == 1
    graphed.run(batch([0, 1], [6, 4], 0.5), 0)
    assert len(graphed._graphs) == 2
    other = Run(5, stream=3)
    assert torch.equal(graphed.run(ctx, other).state["x"], sampler.run(ctx, Run(5, stream=3)).state["x"])


def test_results_survive_the_next_replay():
    mixture = AnalyticMixture(ring8(), VP())
    sampler = Sampler(mixture.spec(), mixture, Fixed(Posterior(), steps=4))
    graphed = GraphedLoop(sampler, capture=again)
    first = graphed.run(Context.of(8), 0)
    kept = first.state["x"].clone()
    data = first.predictions["x"].data.clone()
    graphed.run(Context.of(8), 1)
    assert torch.equal(first.state["x"], kept) and torch.equal(first.predictions["x"].data, data)


def test_values_that_are_not_finite_are_located():
    class Broken(nn.Module):
        def forward(self, features, t, ctx, previous):
            return {"x": features["x"] / (t.view(-1, 1) > 0.5).float()}

    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})
    graphed = GraphedLoop(Sampler(spec, NetworkDenoiser(spec, Broken()), Fixed(Posterior(), steps=4)), capture=again)
    with pytest.raises(NonFinite, match="component 'x' at step"):
        graphed.run(Context.of(3), 0)


def test_copies_share_nothing():
    ctx = batch([0, 1], [6, 4], 0.5)
    ctx.meta = {"frame": torch.zeros(4), "name": "a"}
    ctx.mask(("N",))
    own = copied(ctx)
    assert not own._masks and own.meta["name"] == "a"
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(tensors(ctx).values(), tensors(own).values(), strict=True))
    assert sorted(tensors(own)) == ["cond/c/0", "cond/c/1", "ids", "meta/frame", "sizes"]


@pytest.mark.gpu
def test_graph_equals_the_loop_on_a_gpu():
    spec, denoiser = joint("cuda")
    for wrapped in (denoiser, ClassifierFree(denoiser, 2.0, interval=(0.2, 0.8))):
        sampler = Sampler(spec, wrapped, Fixed(Posterior(), steps=8))
        graphed = GraphedLoop(sampler, capture=cuda_capture)
        for ids, sizes, value, seed in (([0, 1, 2], [6, 4, 2], 0.5, 0), ([7, 3, 9], [3, 6, 5], -1.0, 11)):
            ctx = batch(ids, sizes, value, "cuda")
            got, want = graphed.run(ctx, seed), sampler.run(ctx, seed)
            torch.testing.assert_close(got.state["x"], want.state["x"], rtol=0, atol=0)
            assert torch.equal(got.state["k"], want.state["k"]) and got.nfe == want.nfe


@pytest.mark.gpu
def test_the_sampler_uses_its_graph_on_a_gpu():
    mixture = AnalyticMixture(ring8(), VP())
    mixture.mixture.means, mixture.mixture.stds = mixture.mixture.means.cuda(), mixture.mixture.stds.cuda()
    mixture.mixture.weights = mixture.mixture.weights.cuda()
    plain = Sampler(mixture.spec(), mixture, Fixed(Posterior(), steps=8))
    graphed = Sampler(mixture.spec(), mixture, Fixed(Posterior(), steps=8), cuda_graph=True)
    ctx = Context.of(64, "cuda")
    torch.testing.assert_close(graphed.run(ctx, 3).state["x"], plain.run(ctx, 3).state["x"], rtol=0, atol=0)
    with pytest.raises(UsageError, match="on a GPU"):
        graphed.run(Context.of(4), 0)
