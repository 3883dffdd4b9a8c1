"""Predictor guidance: exact laws wherever the gradient of f is known in closed form."""

from __future__ import annotations

import itertools

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.guidance import ClassifierFree, PredictorGuidance
from scidiff.core.path import VP, AbsorbingPath, Bridge, Linear, MarginalPath, Prediction, UniformPath
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.jump import Mixture
from scidiff.core.space import Categorical, Euclidean, Symmetric
from scidiff.core.spec import Component, Context, StateSpec

MEAN, STD, PULL = [0.4, -1.0], 0.6, torch.tensor([1.5, -0.5], dtype=torch.float64)


def gaussian(mean=MEAN, path=None, kind="data"):
    return AnalyticMixture(GaussianMixture([mean], [STD]), path or VP(), kind=kind)


def clean_pull(denoiser):
    """f = w.E[x0 | x_t] of a Gaussian, which the features determine."""
    path, mean = denoiser.path, torch.tensor(MEAN, dtype=torch.float64)

    def predictor(features, t, ctx):
        k = path.coefficients(t.double())
        variance = k.alpha**2 * STD**2 + k.sigma**2
        y = features["x"].double()
        estimate = mean + (k.alpha * STD**2 / variance)[:, None] * (y - k.alpha[:, None] * mean)
        return estimate @ PULL

    return predictor


@pytest.mark.parametrize("kind", ["data", "noise", "score", "velocity", "angular"])
@pytest.mark.parametrize("t", [0.1, 0.5, torch.tensor([0.2, 0.4, 0.6, 0.9], dtype=torch.float64)])
def test_a_gaussian_is_shifted_by_k_times_variance_times_slope(kind, t):
    weight = 0.7
    plain = gaussian(kind=kind)
    shifted = gaussian([m + weight * STD**2 * float(w) for m, w in zip(MEAN, PULL, strict=True)], kind=kind)
    guided = PredictorGuidance(plain, clean_pull(plain), weight, spec=plain.spec())
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = guided({"x": x}, t, Context.of(4))["x"]
    wanted = shifted({"x": x}, t, Context.of(4))["x"]
    assert got.kind == kind
    torch.testing.assert_close(got.value, wanted.value, rtol=1e-5, atol=1e-5)  # the clock of networks is float32


def test_a_guided_run_ends_at_the_shifted_gaussian():
    plain = gaussian(path=VP())
    guided = PredictorGuidance(plain, clean_pull(plain), 1.0, spec=plain.spec())
    sampler = Sampler(plain.spec(), guided, Fixed(Exponential(), steps=24), dtype=torch.float64)
    x = sampler.run(Context.of(4000), seed=3).state["x"]
    assert not x.requires_grad
    goal = torch.tensor(MEAN, dtype=torch.float64) + STD**2 * PULL
    torch.testing.assert_close(x.mean(0), goal, rtol=0, atol=4 * STD / 4000**0.5)
    torch.testing.assert_close(x.std(0), torch.full((2,), STD, dtype=torch.float64), rtol=0.05, atol=0)


class Pairs(Denoiser):
    """Predicts a zero score for a symmetric matrix."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, state, t, ctx, run=None):
        return {"edges": Prediction("score", torch.zeros_like(state["edges"]))}


def test_a_pair_of_real_entries_is_one_degree_of_freedom():
    """d f / d a_ij with a_ij = a_ji moved together, by finite differences; nothing on the diagonal or on padding."""
    spec = StateSpec({"edges": Component(Symmetric(), VP(), ("N", "N"))})
    ctx = Context.of(2, sizes=torch.tensor([3, 4]), n_max=4)
    g = torch.Generator().manual_seed(1)
    tilt = torch.randn(4, 4, dtype=torch.float64, generator=g)
    a = torch.randn(2, 4, 4, dtype=torch.float64, generator=g)
    a = a + a.transpose(1, 2)

    def predictor(features, t, ctx):
        return (features["edges"] ** 2 * tilt).sum((1, 2)) * ctx.sizes

    got = PredictorGuidance(Pairs(spec), predictor, 0.5)({"edges": a}, 0.5, ctx)["edges"].value
    for b, i, j in itertools.product(range(2), range(4), range(4)):
        step = torch.zeros_like(a)
        step[b, i, j] = step[b, j, i] = 1e-6
        slope = (predictor({"edges": a + step}, None, ctx) - predictor({"edges": a - step}, None, ctx))[b] / 2e-6
        real = i != j and max(i, j) < int(ctx.sizes[b])
        assert float(got[b, i, j]) == pytest.approx(0.5 * float(slope) if real else 0.0, abs=1e-6)


JOINT = torch.rand(3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) ** 3
WORTH = torch.randn(3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


def two_nodes(path, edge_path):
    return StateSpec({"nodes": Component(Categorical(3), path, (2,)),
                      "edges": Component(Categorical(2, pairs=True), edge_path, (2, 2))})


class Exact(Denoiser):
    """The exact denoiser of a law [3, 3, 2] over the classes of two nodes and of the pair between them."""

    def __init__(self, law, spec):
        super().__init__()
        self.law, self.spec = law / law.sum(), spec

    def posterior(self, state, t, ctx):
        """p(x0 | x_t), [B, 3, 3, 2], and p(x_t), [B]."""
        nodes, pair = state["nodes"], state["edges"][:, 0, 1]
        seen = []
        for name, z, count in (("nodes", nodes[:, 0], 3), ("nodes", nodes[:, 1], 3), ("edges", pair, 2)):
            path = self.spec[name].path
            q = path.law(ctx.at(name, self.spec[name]))
            m = float(path.mass(t))
            seen.append((1 - m) * torch.nn.functional.one_hot(z, len(q)).double()[:, :count] + m * q[z][:, None])
        both = self.law * torch.einsum("bi,bj,bk->bijk", *seen)
        total = both.sum((1, 2, 3))
        return both / total[:, None, None, None], total

    def forward(self, state, t, ctx, run=None):
        p = self.posterior(state, t, ctx)[0]
        nodes = torch.stack([p.sum((2, 3)), p.sum((1, 3))], 1)
        pair = p.sum((1, 2))[:, None, None, :].expand(-1, 2, 2, -1)
        return {"nodes": Prediction("logits", nodes.log()), "edges": Prediction("logits", pair.log())}


def every_state(node_classes, pair_classes):
    rows = list(itertools.product(range(node_classes), range(node_classes), range(pair_classes)))
    nodes = torch.tensor([r[:2] for r in rows])
    edges = torch.zeros(len(rows), 2, 2, dtype=torch.int64)
    edges[:, 0, 1] = edges[:, 1, 0] = torch.tensor([r[2] for r in rows])
    return {"nodes": nodes, "edges": edges}, Context.of(len(rows))


@pytest.mark.parametrize("t", [0.15, 0.6, 0.95])
@pytest.mark.parametrize("paths", [(UniformPath(), UniformPath()),
                                   (MarginalPath(marginal=(0.5, 0.2, 0.3)), MarginalPath(marginal=(0.8, 0.2)))])
def test_independent_entries_and_a_linear_f_are_reweighted_exactly(paths, t):
    """p(x0 | x_t) exp(k f) factorises, so the gradient is all there is: every x_t of the two nodes and their pair."""
    spec = two_nodes(*paths)
    one, two, pair = JOINT.sum((1, 2)), JOINT.sum((0, 2)), JOINT.sum((0, 1))
    law = torch.einsum("i,j,k->ijk", one, two, pair)
    of_nodes, of_pair = torch.tensor([0.3, -1.0, 0.8]), torch.tensor([0.0, 1.2])

    def predictor(features, t, ctx):
        bonds = torch.triu(features["edges"] @ of_pair, 1).sum((1, 2))
        return (features["nodes"] @ of_nodes).sum(1) + bonds

    weight = 1.3
    tilt = of_nodes[:, None, None] + of_nodes[None, :, None] + of_pair[None, None, :]
    wanted = Exact(law * (weight * tilt.double()).exp(), spec)
    state, ctx = every_state(3, 2)
    got = PredictorGuidance(Exact(law, spec), predictor, weight)(state, t, ctx)
    goal = wanted(state, t, ctx)
    torch.testing.assert_close(got["nodes"].probs, goal["nodes"].probs, rtol=1e-5, atol=1e-7)
    for i, j in ((0, 1), (1, 0)):
        torch.testing.assert_close(got["edges"].probs[:, i, j], goal["edges"].probs[:, i, j], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_masked_entries_follow_bayes_for_any_law_and_any_worth(t):
    """h(x_t) = E[exp(F(x0)) | x_t] and f its logarithm, linear in each entry's one-hot vector: the guided prediction of
    a masked entry is that of the law p exp(F), correlations included."""
    spec = two_nodes(AbsorbingPath(), AbsorbingPath())
    plain, wanted = Exact(JOINT, spec), Exact(JOINT * WORTH.exp(), spec)
    state, ctx = every_state(4, 3)
    possible = plain.posterior(state, t, ctx)[1] > 0
    table = (plain.posterior(state, t, ctx)[0] * WORTH.exp()).sum((1, 2, 3)).log().view(4, 4, 3)

    def predictor(features, t, ctx):
        pair = 0.5 * (features["edges"][:, 0, 1] + features["edges"][:, 1, 0])
        return torch.einsum("bi,bj,bk,ijk->b", features["nodes"][:, 0].double(), features["nodes"][:, 1].double(),
                            pair.double(), table)

    assert bool(possible.all())
    got = PredictorGuidance(plain, predictor, 1.0)(state, t, ctx)
    goal = wanted(state, t, ctx)
    masked = state["nodes"] == 3
    torch.testing.assert_close(got["nodes"].probs[masked], goal["nodes"].probs[masked], rtol=1e-5, atol=1e-6)
    open_ = state["edges"][:, 0, 1] == 2
    torch.testing.assert_close(got["edges"].probs[open_, 0, 1], goal["edges"].probs[open_, 0, 1], rtol=1e-5, atol=1e-6)


def test_a_guided_chain_draws_the_tilted_law():
    """One pair and a linear f: the whole law is known, and 100 short steps reach it within its sampling error."""
    spec = StateSpec({"edges": Component(Categorical(2, pairs=True), UniformPath(), ("N", "N"))})
    law = torch.tensor([0.8, 0.2])

    class One(Denoiser):
        def __init__(self):
            super().__init__()
            self.spec = spec

        def forward(self, state, t, ctx, run=None):
            here = torch.nn.functional.one_hot(state["edges"], 2).double()
            p = law * ((1 - t) * here + t / 2)
            return {"edges": Prediction("logits", p.log())}

    guided = PredictorGuidance(One(), lambda f, t, ctx: f["edges"][:, 0, 1, 1], 2.0)
    count = 20_000
    ctx = Context.of(count, sizes=torch.full((count,), 2), n_max=2)
    driver = Fixed(Mixture(last="sample"), steps=100)
    edges = Sampler(spec, guided, driver).run(ctx, seed=1).state["edges"]
    goal = float(law[1] * torch.e**2 / (law[0] + law[1] * torch.e**2))
    assert float(edges[:, 0, 1].double().mean()) == pytest.approx(goal, abs=4 * (goal * (1 - goal) / count) ** 0.5)
    assert torch.equal(edges, edges.transpose(1, 2))


def test_outside_its_interval_and_with_weight_zero_nothing_changes():
    plain = gaussian()
    x = {"x": torch.randn(3, 2, dtype=torch.float64)}
    calls = []

    def predictor(features, t, ctx):
        calls.append(t)
        return features["x"].sum(1)

    for guided in (PredictorGuidance(plain, predictor, 0.0, spec=plain.spec()),
                   PredictorGuidance(plain, predictor, 2.0, interval=(0.4, 0.8), spec=plain.spec()),
                   PredictorGuidance(plain, predictor, 2.0, components=(), spec=plain.spec())):
        torch.testing.assert_close(guided(x, 0.2, Context.of(3))["x"].data, plain(x, 0.2, Context.of(3))["x"].data)
    assert not calls
    late = PredictorGuidance(plain, predictor, 2.0, interval=(0.4, 0.8), spec=plain.spec())
    t = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    moved = (late(x, t, Context.of(3))["x"].data - plain(x, t, Context.of(3))["x"].data).abs().amax(1) > 0
    assert moved.tolist() == [False, True, False]


def test_a_state_without_signal_is_left_alone():
    plain = gaussian(path=Linear())
    guided = PredictorGuidance(plain, lambda f, t, ctx: f["x"].sum(1), 3.0, spec=plain.spec())
    x = {"x": torch.randn(2, 2, dtype=torch.float64)}
    torch.testing.assert_close(guided(x, 1.0, Context.of(2))["x"].value, plain(x, 1.0, Context.of(2))["x"].value)
    both = torch.tensor([1.0, 0.5], dtype=torch.float64)
    moved = (guided(x, both, Context.of(2))["x"].value - plain(x, both, Context.of(2))["x"].value).abs().amax(1)
    assert float(moved[0]) == 0.0 and float(moved[1]) > 0.0


def test_guidance_nests():
    plain = gaussian()
    x = {"x": torch.randn(3, 2, dtype=torch.float64)}
    inner = PredictorGuidance(plain, lambda f, t, ctx: f["x"][:, 0], 1.0, spec=plain.spec())
    outer = PredictorGuidance(inner, lambda f, t, ctx: f["x"][:, 1], 2.0)
    both = PredictorGuidance(plain, lambda f, t, ctx: f["x"][:, 0] + 2.0 * f["x"][:, 1], 1.0, spec=plain.spec())
    torch.testing.assert_close(outer(x, 0.4, Context.of(3))["x"].data, both(x, 0.4, Context.of(3))["x"].data)
    assert ClassifierFree(inner).needs_grad


def test_what_cannot_be_guided_is_said_in_a_sentence():
    plain = gaussian()
    with pytest.raises(UsageError, match="no component 'y' to guide"):
        PredictorGuidance(plain, lambda f, t, c: f["x"], components=["y"], spec=plain.spec())
    with pytest.raises(UsageError, match="interval"):
        PredictorGuidance(plain, lambda f, t, c: f["x"], interval=(0.5, 0.5), spec=plain.spec())
    with pytest.raises(UsageError, match="needs to know the state"):
        PredictorGuidance(Denoiser(), lambda f, t, c: f["x"])
    wrong = PredictorGuidance(plain, lambda f, t, ctx: f["x"], spec=plain.spec())
    with pytest.raises(ScidiffError, match="one number a sample"):
        wrong({"x": torch.zeros(3, 2)}, 0.5, Context.of(3))
    spec = StateSpec({"x": Component(Euclidean(), Bridge(), (2,))})

    class Straight(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"x": Prediction("velocity", state["x"])}

    guided = PredictorGuidance(Straight(), lambda f, t, ctx: f["x"].sum(1), spec=spec)
    with pytest.raises(ScidiffError, match="cannot guide a component on a Bridge"):
        guided({"x": torch.zeros(3, 2)}, 0.5, Context.of(3))
