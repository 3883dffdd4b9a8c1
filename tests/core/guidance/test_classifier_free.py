"""T15: batched guidance equals two calls; w = 1 and times outside the interval are one plain call; guided laws."""

import pytest
import torch
from torch import nn

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.denoiser import MEMORY, Denoiser, NetworkDenoiser
from scidiff.core.errors import UsageError
from scidiff.core.guidance import ClassifierFree
from scidiff.core.path import VP, Linear, MarginalPath, Prediction, UniformPath, WrappedPath
from scidiff.core.run import Run
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec

MIX = GaussianMixture([[-1.0, 0.5], [1.2, -0.3], [0.2, 1.0]], [0.3, 0.2, 0.5], [0.5, 0.3, 0.2])
LABELS = [0, 1, 1]


def labelled(batch: int = 6, dtype: torch.dtype = torch.int64) -> Context:
    label = (torch.arange(batch) % 2).to(dtype)
    return Context.of(batch, cond={"label": (label, torch.ones(batch, dtype=torch.bool))})


class Counting(Denoiser):
    """Counts calls and remembers the batch sizes it met."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.sizes, self.spec = inner, [], inner.spec
        self.self_conditioning = inner.self_conditioning

    def forward(self, state, t, ctx, run=None):
        self.sizes.append(ctx.batch)
        return self.inner(state, t, ctx, run)


class Toy(nn.Module):
    """A backbone of two components that mixes them, the condition, the time and its own past."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(3 + 4 * 5 + 1 + 1 + 3 + 4 * 5, 3 + 4 * 5, dtype=torch.float64)

    def forward(self, features, t, ctx, previous):
        b = ctx.batch
        value, present = ctx.cond["label"]
        past = (torch.zeros(b, 23, dtype=torch.float64) if previous is None
                else torch.cat([previous["x"].double(), previous["k"].double().flatten(1)], -1))
        clock = t.double().reshape(b, -1).mean(-1, keepdim=True)
        seen = torch.cat([features["x"].double(), features["k"].double().flatten(1),
                          (value * present).double().view(b, 1), clock, past], -1)
        out = torch.tanh(self.lin(seen))
        return {"x": out[:, :3], "k": out[:, 3:].view(b, 5, 4)}


def joint(self_conditioning: bool = True) -> NetworkDenoiser:
    spec = StateSpec({"x": Component(Euclidean(), VP(), (3,)),
                      "k": Component(Categorical(4), UniformPath(), (5,))})
    return NetworkDenoiser(spec, Toy(), self_conditioning=self_conditioning)


def start(batch: int = 6):
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(batch, 3, dtype=torch.float64, generator=g),
            "k": torch.randint(0, 4, (batch, 5), generator=g)}


@pytest.mark.parametrize("t", [0.4, {"x": 0.3, "k": 0.8}, torch.linspace(0.1, 0.9, 6, dtype=torch.float64)])
def test_one_batched_call_equals_two_calls_with_their_own_memories(t):
    inner, state, ctx = joint(), start(), labelled()
    absent = labelled()
    absent.cond = {"label": (absent.cond["label"][0], torch.zeros(6, dtype=torch.bool))}
    counted = Counting(inner)
    guided = ClassifierFree(counted, 2.5)
    run, with_, without = Run(0), Run(0), Run(0)
    for _ in range(3):
        got = guided(state, t, ctx, run)
        c, u = inner(state, t, ctx, with_), inner(state, t, absent, without)
        for n in ("x", "k"):
            expected = 2.5 * c[n].value + (1 - 2.5) * u[n].value
            torch.testing.assert_close(got[n].value, expected, rtol=0, atol=1e-12)
            assert run.memory[MEMORY][n].shape[0] == 6
    assert counted.sizes == [12, 12, 12]


def test_data_of_a_guided_prediction_is_the_guided_data():
    inner, state, ctx = joint(False), start(), labelled()
    absent = labelled()
    absent.cond = {"label": (absent.cond["label"][0], torch.zeros(6, dtype=torch.bool))}
    got = ClassifierFree(inner, 3.0)(state, 0.5, ctx)["x"].data
    c, u = inner(state, 0.5, ctx)["x"].data, inner(state, 0.5, absent)["x"].data
    torch.testing.assert_close(got, u + 3.0 * (c - u), rtol=1e-12, atol=1e-12)


def test_categories_are_guided_to_the_geometric_mixture():
    inner, state, ctx = joint(False), start(), labelled()
    absent = labelled()
    absent.cond = {"label": (absent.cond["label"][0], torch.zeros(6, dtype=torch.bool))}
    p_c, p_u = inner(state, 0.5, ctx)["k"].probs, inner(state, 0.5, absent)["k"].probs
    geometric = p_c**1.7 * p_u ** (1 - 1.7)
    geometric = geometric / geometric.sum(-1, keepdim=True)
    got = ClassifierFree(inner, 1.7)(state, 0.5, ctx)["k"].probs
    torch.testing.assert_close(got, geometric, rtol=1e-10, atol=1e-12)


def test_weight_one_and_times_outside_the_interval_are_one_plain_call():
    counted = Counting(joint())
    state, ctx, run = start(), labelled(), Run(0)
    ClassifierFree(counted, 1.0)(state, 0.5, ctx, run)
    guided = ClassifierFree(counted, 2.0, interval=(0.2, 0.6))
    for t in (0.1, 0.7, {"x": 0.7, "k": 0.1}):
        plain = joint()(state, t, ctx)
        run.memory.clear()
        torch.testing.assert_close(guided(state, t, ctx, run)["x"].value, plain["x"].value, rtol=0, atol=0)
    assert counted.sizes == [6, 6, 6, 6]
    guided(state, 0.2, ctx, run)
    guided(state, {"x": 0.3, "k": 0.9}, ctx, run)
    assert counted.sizes[4:] == [12, 12]


def test_a_context_may_be_filled_anew_between_two_runs():
    """A captured loop copies the next chunk's conditions into the same buffers."""
    guided, state, ctx = ClassifierFree(joint(False), 2.0), start(), labelled()
    before = guided(state, 0.5, ctx, Run(0))["x"].value
    ctx.cond["label"][0].copy_(1 - ctx.cond["label"][0])
    after = guided(state, 0.5, ctx, Run(0))["x"].value
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, ClassifierFree(joint(False), 2.0)(state, 0.5, ctx)["x"].value)


def test_points_of_a_torus_are_mixed_the_short_way_round():
    class Points(Denoiser):
        def __init__(self):
            super().__init__()
            self.spec = StateSpec({"x": Component(Torus(), WrappedPath(), (1,))})

        def forward(self, state, t, ctx, run=None):
            value = torch.where(ctx.cond["label"][1], 0.02, 0.98).view(-1, 1)
            return {"x": self.spec["x"].path.read(value, state["x"], t, ctx.at("x", self.spec["x"]), "data")}

    got = ClassifierFree(Points(), 2.0)({"x": torch.zeros(6, 1)}, 0.5, labelled())["x"].data
    torch.testing.assert_close(got, torch.full((6, 1), 0.06))


def test_no_condition_is_one_call():
    counted = Counting(AnalyticMixtureWithSpec())
    state = {"x": torch.randn(4, 2)}
    ClassifierFree(counted, 3.0)(state, 0.5, Context.of(4))
    assert counted.sizes == [4]


class AnalyticMixtureWithSpec(AnalyticMixture):
    """The oracle with its spec as an attribute, as networks have it."""

    def __init__(self, path=None) -> None:
        super().__init__(MIX, path or VP(), labels=LABELS)
        self.spec = AnalyticMixture.spec(self)


def test_a_component_outside_its_interval_stays_conditional():
    inner, state, ctx = joint(False), start(), labelled()
    got = ClassifierFree(inner, 4.0, interval=(0.5, 1.0))(state, {"x": 0.9, "k": 0.1}, ctx)
    plain = inner(state, {"x": 0.9, "k": 0.1}, ctx)
    torch.testing.assert_close(got["k"].value, plain["k"].value, rtol=0, atol=1e-14)
    assert (got["x"].value - plain["x"].value).abs().max() > 1e-4


def test_a_time_per_sample_chooses_per_sample():
    inner, state, ctx = joint(False), start(), labelled()
    ctx.cond = {"label": (torch.ones(6), ctx.cond["label"][1])}
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.2], dtype=torch.float64)
    got = ClassifierFree(inner, 4.0, interval=(0.25, 0.75))(state, t, ctx)["x"].value
    plain = inner(state, t, ctx)["x"].value
    same = (got - plain).abs().amax(1) < 1e-13
    assert same.tolist() == [True, False, False, False, True, True]


def test_the_interval_in_lambda_is_the_interval_in_time_of_its_path():
    path = Linear()
    low, high = path.coefficients(0.8).lam, path.coefficients(0.3).lam
    guided = ClassifierFree(AnalyticMixtureWithSpec(path), 2.0, interval=(low, high), clock="lambda")
    assert [guided.strength(t, "x") for t in (0.2, 0.31, 0.79, 0.9)] == [1.0, 2.0, 2.0, 1.0]
    spec = StateSpec({"k": Component(Categorical(3), MarginalPath(marginal=(0.2, 0.3, 0.5)), (4,))})
    with pytest.raises(UsageError, match="clock=t"):
        ClassifierFree(NetworkDenoiser(spec, nn.Identity()), clock="lambda")


@pytest.mark.parametrize("kind", ["data", "noise", "velocity", "score"])
@pytest.mark.parametrize("w", [0.0, 2.0, 3.5])
def test_the_guided_score_is_that_of_the_tilted_mixture(kind, w):
    """grad log [p_t(x | c)^w p_t(x)^(1 - w)] by autograd, on a grid of times."""
    path, ctx = VP(), labelled(8)
    guided = ClassifierFree(AnalyticMixture(MIX, path, kind=kind, labels=LABELS), w)
    for t in (0.05, 0.2, 0.5, 0.8, 1.0):
        k = path.coefficients(t)
        x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        value, _ = ctx.cond["label"]
        of_class = [MIX.restricted(torch.tensor(LABELS) == c).log_prob(x, k.alpha, k.sigma) for c in (0, 1)]
        log_c = torch.where(value == 0, of_class[0], of_class[1])
        tilted = w * log_c + (1 - w) * MIX.log_prob(x, k.alpha, k.sigma)
        (score,) = torch.autograd.grad(tilted.sum(), x)
        got = guided({"x": x.detach()}, t, ctx)["x"].score
        torch.testing.assert_close(got, score, rtol=1e-8, atol=1e-8)


def test_rescaling_restores_the_spread_of_the_conditional_estimate():
    inner, state, ctx = joint(False), start(), labelled()
    c = inner(state, 0.5, ctx)["x"].data
    full = ClassifierFree(inner, 6.0, rescale=1.0)(state, 0.5, ctx)["x"].data
    torch.testing.assert_close(full.std(1, correction=0), c.std(1, correction=0), rtol=1e-10, atol=1e-12)
    half = ClassifierFree(inner, 6.0, rescale=0.5)(state, 0.5, ctx)["x"].data
    none = ClassifierFree(inner, 6.0)(state, 0.5, ctx)["x"].data
    torch.testing.assert_close(half, 0.5 * (full + none), rtol=1e-10, atol=1e-12)


def test_memory_survives_a_plain_step_between_guided_ones():
    guided, state, ctx, run = ClassifierFree(joint(), 2.0, interval=(0.4, 0.6)), start(), labelled(), Run(0)
    for t in (0.9, 0.5, 0.3, 0.5):
        out = guided(state, t, ctx, run)
        assert torch.isfinite(out["x"].value).all() and run.memory[MEMORY]["k"].shape == (6, 5, 4)


def test_it_nests_in_the_sampler():
    from scidiff.core.sampler import Sampler
    from scidiff.core.solvers.fixed import Fixed
    from scidiff.core.solvers.jump import Posterior

    inner = AnalyticMixtureWithSpec(Linear(t_max=0.99, t_min=1e-3))
    ctx = labelled(400)
    means = []
    for w in (1.0, 3.0):
        counted = Counting(inner)
        sampler = Sampler(inner.spec, ClassifierFree(counted, w), Fixed(Posterior(eta=0.0), steps=20))
        x = sampler.run(ctx, seed=0).state["x"]
        assert counted.sizes == [400 if w == 1.0 else 800] * 20
        means.append(x[ctx.cond["label"][0] == 0].mean(0))
    # Guidance pushes the first class away from the second, along the line between them.
    direction = MIX.means[0] - MIX.means[1]
    assert float((means[1] - means[0]).double() @ direction) > 0.05


def test_settings_are_checked():
    inner = joint()
    for wrong in ({"interval": (0.5, 0.5)}, {"clock": "sigma"}, {"rescale": 1.5}):
        with pytest.raises(UsageError):
            ClassifierFree(inner, 2.0, **wrong)


def test_an_unbound_prediction_is_mixed_too():
    class Bare(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"x": Prediction("data", ctx.cond["label"][1].double()[:, None] * state["x"])}

    out = ClassifierFree(Bare(), 3.0)({"x": torch.ones(6, 2, dtype=torch.float64)}, 0.5, labelled())
    assert out["x"].path is None and float(out["x"].value.mean()) == 3.0
