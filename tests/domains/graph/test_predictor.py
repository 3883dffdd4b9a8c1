"""Predictors: features by counting, properties that are learned, exact repeats, files that load back, guided chains."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.guidance import PredictorGuidance
from scidiff.core.path import MarginalPath
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.jump import Mixture
from scidiff.core.space import Categorical
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store import checkpoint

nx = pytest.importorskip("networkx", reason="networkx is not installed")
pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")

from scidiff.domains.graph.predictor import Predictor, load, structure, to_data, train, train_noisy, two_sample  # noqa: E402


def random_graphs(count, low=0.1, high=0.5, size=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    shares = (low + (high - low) * torch.rand(count, generator=g)).tolist()
    return [nx.gnp_random_graph(size, p, seed=seed * 1000 + i) for i, p in enumerate(shares)]


@pytest.mark.parametrize("share", [0.0, 0.15, 0.6, 1.0])
def test_structure_equals_counting(share):
    graph = nx.gnp_random_graph(15, share, seed=3)
    found = structure(to_data(graph).edge_index, 15)
    degree = torch.tensor([d for _, d in graph.degree()], dtype=torch.float32)
    triangles = torch.tensor(list(nx.triangles(graph).values()), dtype=torch.float32)
    clustering = torch.tensor(list(nx.clustering(graph).values()), dtype=torch.float32)
    wanted = torch.stack([torch.log1p(degree), torch.log1p(triangles), clustering], 1)
    torch.testing.assert_close(found, wanted)


def test_names_directions_loops_and_repetitions_of_edges_do_not_matter():
    graph = nx.MultiDiGraph()
    for name, label in (("a", "C"), ("b", "N"), ("c", "C")):
        graph.add_node(name, label=label)
    graph.add_edges_from([("a", "b"), ("b", "a"), ("a", "b"), ("c", "c")])
    found = to_data(graph, ("C", "N"))
    assert found.edge_index.tolist() == [[0, 1], [1, 0]]
    assert found.x[:, 3:].tolist() == [[1, 0], [0, 1], [1, 0]]
    with pytest.raises(UsageError, match="no node label 'N'"):
        to_data(graph, ("C", "O"))
    assert to_data(nx.Graph()).x.shape == (0, 3)


def test_a_property_is_learned_repeats_and_survives_its_file(tmp_path):
    graphs = random_graphs(80)
    edges = torch.tensor([float(g.number_of_edges()) for g in graphs])

    def fitted(seed):
        return train(graphs, edges, what="edges", width=16, depth=1, epochs=15, lr=1e-2, seed=seed)

    first, again = fitted(0), fitted(0)
    fresh = random_graphs(40, seed=1)
    truth = torch.tensor([float(g.number_of_edges()) for g in fresh])
    error = (first(fresh) - truth).square().mean() / truth.var()
    assert float(error) < 0.05
    assert torch.equal(first(fresh), again(fresh))
    torch.testing.assert_close(first(fresh, batch=7), first(fresh), rtol=1e-4, atol=1e-3)
    first.save(tmp_path / "p", "# Edges\n\nA predictor of edge counts.")
    back = load(tmp_path / "p")
    assert isinstance(back, Predictor) and torch.equal(back(fresh), first(fresh))
    assert back.about == first.about


def test_nodes_are_learned_from_sampled_neighbourhoods_and_scored_whole_or_sampled():
    """Mean degree of a node's neighbours: one round of messages knows it, the node alone does not."""
    def truth(graph):
        return [sum(graph.degree(j) for j in graph[i]) / max(len(graph[i]), 1) for i in graph]

    graphs = [nx.barabasi_albert_graph(60, 2, seed=i) for i in range(6)]
    values = [v for g in graphs for v in truth(g)]
    found = train(graphs, values, level="node", width=16, depth=2, epochs=25, batch=64, lr=1e-2, fanouts=(20, 20))
    large = nx.barabasi_albert_graph(80, 2, seed=99)
    goal = torch.tensor(truth(large))
    whole = found([large])
    assert float((whole - goal).square().mean() / goal.var()) < 0.2
    seeds = torch.tensor([7, 75, 31])
    torch.testing.assert_close(found.at_nodes(large, seeds, [-1, -1]), whole[seeds], rtol=1e-4, atol=1e-4)
    assert found.at_nodes(large, seeds, [1, 1]).shape == (3,)
    with pytest.raises(UsageError, match="Only a predictor of nodes"):
        train(graphs[:2], [0.0, 1.0], width=8, depth=1, epochs=1).at_nodes(large, seeds, [-1])


def test_two_sets_are_told_apart_where_they_differ_and_only_there():
    real = random_graphs(40, 0.2, 0.4, seed=10)
    same, other = random_graphs(50, 0.2, 0.4, seed=11), [nx.random_labeled_tree(12, seed=i) for i in range(40)]
    alike = two_sample(real, same, epochs=5, width=16)
    apart = two_sample(real, other, epochs=5, width=16, reference="gnp")
    assert alike.interval[0] <= 0.5 <= alike.interval[1] and alike.count == 80
    assert apart.value > 0.9 and apart.reference == "gnp" and apart.floor == 0.5
    assert two_sample(real, same, epochs=5, width=16) == alike
    with pytest.raises(UsageError, match="takes 8 graphs of each, not 3"):
        two_sample(real, same[:3])


def edge_state(graphs, size):
    state = torch.zeros(len(graphs), size, size, dtype=torch.int64)
    for row, graph in zip(state, graphs, strict=True):
        for u, v in graph.edges():
            row[u, v] = row[v, u] = 1
    sizes = torch.tensor([len(g) for g in graphs])
    return {"edges": state}, Context(torch.arange(len(graphs)), sizes, size)


@pytest.fixture(scope="module")
def noisy():
    spec = StateSpec({"edges": Component(Categorical(2, pairs=True), MarginalPath(marginal=(0.7, 0.3)), ("N", "N"))})
    graphs = [g.subgraph(range(6 + i % 3)).copy() for i, g in enumerate(random_graphs(96, size=8))]
    state, ctx = edge_state(graphs, 8)
    edges = state["edges"].sum((1, 2)).float() / 2
    return spec, state, ctx, train_noisy(spec, state, ctx, edges, nodes=None, pairs="edges", what="edges", count=120,
                                         batch=32, lr=5e-3, dx=16, de=8, dc=16, depth=1, heads=2, walks=3)


def test_the_noisy_predictor_knows_the_clean_property_and_no_order_of_nodes(noisy, tmp_path):
    spec, state, ctx, found = noisy
    edges = state["edges"].sum((1, 2)).float() / 2

    def asked(x, context, t=0.02):
        site = context.at("edges", spec["edges"])
        features = {"edges": spec["edges"].path.features(x, t, site)}
        return found.meant(found(features, torch.full((context.batch,), t), context)).detach()

    at_data = asked(state["edges"], ctx)
    assert float((at_data - edges).square().mean() / edges.var()) < 0.1
    assert float(asked(state["edges"], ctx, 1.0).std()) < float(at_data.std())  # noise says little of the data
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    six = (ctx.sizes == 6).nonzero()[:, 0]
    small = Context(ctx.ids[six], ctx.sizes[six], 6)
    plain = asked(state["edges"][six][:, :6, :6], small)
    torch.testing.assert_close(asked(state["edges"][six][:, order][:, :, order], small), plain, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(plain, at_data[six], rtol=1e-4, atol=1e-3)  # padding is not read
    found.save(tmp_path / "f", "# Noisy edges\n\nA predictor of edge counts.")
    back = load(tmp_path / "f")
    features = {"edges": torch.nn.functional.one_hot(state["edges"], 2).float()}
    half = torch.full((ctx.batch,), 0.5)
    assert torch.equal(back(features, half, ctx), found(features, half, ctx))


class Uninformed(torch.nn.Module):
    """Predicts the marginal law whatever the state."""

    needs_grad = self_conditioning = False

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, state, t, ctx, run=None):
        from scidiff.core.path import Prediction

        law = torch.tensor([0.7, 0.3]).log().expand(*state["edges"].shape, 2)
        return {"edges": Prediction("logits", law)}


def test_a_chain_is_guided_to_more_or_fewer_edges(noisy):
    spec, _, _, found = noisy
    ctx = Context.of(64, sizes=torch.full((64,), 8), n_max=8)

    def edges(weight):
        guided = PredictorGuidance(Uninformed(spec), found, weight)
        state = Sampler(spec, guided, Fixed(Mixture(last="sample"), steps=12)).run(ctx, 0).state["edges"]
        return float(state.sum().double() / 128)

    fewer, plain, more = edges(-3.0), edges(0.0), edges(3.0)
    assert plain == pytest.approx(0.3 * 28, abs=4 * (28 * 0.21 / 64) ** 0.5)
    assert fewer < plain - 2.0
    assert more > plain + 2.0


@pytest.mark.parametrize("words, sentence", [
    ({"kind": "number"}, "no kind 'number'"),
    ({"values": [1.0]}, "one value for each graph: 2"),
    ({"values": [1.0, float("nan")]}, "not finite"),
    ({"level": "node"}, "one value for each node: 24"),
])
def test_wrong_requests_are_sentences(words, sentence):
    values = words.pop("values", [1.0, 2.0])
    with pytest.raises(UsageError, match=sentence):
        train(random_graphs(2), values, **words)


def test_a_file_that_is_no_predictor_is_refused(tmp_path, noisy):
    with pytest.raises(UsageError, match="Name it"):
        load(None)
    checkpoint.save(tmp_path / "model", {"w": torch.zeros(1)}, {"experiment": "x"}, "# x")
    with pytest.raises(ScidiffError, match="holds no predictor"):
        load(tmp_path / "model")
    evil = {"predictor": "sparse", "network": {"_target_": "os.system", "command": "true"}}
    checkpoint.save(tmp_path / "evil", {"w": torch.zeros(1)}, evil, "# x")
    with pytest.raises(ScidiffError, match="not allowed"):
        load(tmp_path / "evil")
    spec, state, ctx, _ = noisy
    with pytest.raises(UsageError, match="reads classes of nodes and pairs"):
        train_noisy(spec, state, ctx, torch.zeros(ctx.batch), nodes="atoms", pairs="edges")
    with pytest.raises(UsageError, match="one finite value for each graph"):
        train_noisy(spec, state, ctx, torch.zeros(3), nodes=None, pairs="edges")
