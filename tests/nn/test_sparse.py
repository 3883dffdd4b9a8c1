"""Sparse message passing: neighbourhoods are complete where they must be, predictors are equivariant."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.nn.sparse import Neighbours, SparsePredictor

geometric = pytest.mark.skipif(find_spec("torch_geometric") is None, reason="torch_geometric is not installed")


def random_edges(nodes=60, count=200, seed=0):
    """Directed edges without repetition or loops, [2, E]."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randint(nodes, (2, count), generator=g)
    pairs = pairs[:, pairs[0] != pairs[1]]
    return pairs.T.unique(dim=0).T


def reached(edges, seeds, rounds):
    """Nodes whose messages arrive at the seeds within so many rounds, and the edges that carry them."""
    known, used = set(seeds), set()
    for _ in range(rounds):
        into = [(a, b) for a, b in edges.T.tolist() if b in known]
        used |= set(into)
        known |= {a for a, _ in into}
    return known, used


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_whole_neighbourhoods_are_those_of_a_search(rounds):
    edges = random_edges()
    seeds = torch.tensor([5, 40, 17])
    found = Neighbours(edges, 60).sample(seeds, [-1] * rounds)
    nodes, carried = reached(edges, seeds.tolist(), rounds)
    assert found.nodes[:3].tolist() == seeds.tolist()
    assert set(found.nodes.tolist()) == nodes and len(found.nodes) == len(nodes)
    named = found.nodes[found.edges]
    assert {tuple(e) for e in named.T.tolist()} == carried and named.shape[1] == len(carried)
    assert torch.equal(edges[:, found.places], named)


def test_sampled_neighbourhoods_are_parts_of_at_most_so_many_edges_drawn_alike():
    edges = random_edges(count=600)
    near, draws = Neighbours(edges, 60), torch.Generator().manual_seed(0)
    found = near.sample(torch.arange(0, 60, 7), [3, 2], draws)
    into = torch.bincount(found.edges[1], minlength=len(found.nodes))
    known = torch.bincount(edges[1], minlength=60)[found.nodes]
    assert torch.equal(into[:9], known[:9].clamp(max=3))
    assert int(into[9:].max()) <= 2
    assert len(found.places.unique()) == len(found.places)
    assert torch.equal(edges[:, found.places], found.nodes[found.edges])
    node = int(torch.bincount(edges[1]).argmax())
    degree = int((edges[1] == node).sum())
    met = torch.bincount(torch.cat([near.sample(torch.tensor([node]), [3], draws).places for _ in range(1000)]),
                         minlength=edges.shape[1])[edges[1] == node]
    share = 3 / degree
    assert float((met / 1000 - share).abs().max()) < 5 * (share * (1 - share) / 1000) ** 0.5


def test_batches_meet_every_seed_once_and_repeat_with_their_generator():
    near = Neighbours(random_edges(), 60)

    def drawn():
        return list(near.batches(torch.arange(10, 35), 8, [2], torch.Generator().manual_seed(3)))

    first, again = drawn(), drawn()
    assert sorted(torch.cat([seeds for seeds, _ in first]).tolist()) == list(range(10, 35))
    assert [len(seeds) for seeds, _ in first] == [8, 8, 8, 1]
    assert all(torch.equal(a.places, b.places) for (_, a), (_, b) in zip(first, again, strict=True))
    lonely = near.sample(torch.tensor([59]), [0, 0])
    assert lonely.nodes.tolist() == [59] and lonely.edges.shape == (2, 0)


@geometric
@pytest.mark.parametrize("edge_features", [0, 2])
def test_a_node_reads_the_same_from_its_neighbourhood_as_from_the_whole_graph(edge_features):
    torch.manual_seed(0)
    edges = random_edges()
    x, about = torch.randn(60, 4), torch.randn(edges.shape[1], edge_features)
    net = SparsePredictor(4, outputs=3, width=16, depth=2, level="node", edge_features=edge_features).eval()
    seeds = torch.tensor([3, 30, 58, 11])
    found = Neighbours(edges, 60).sample(seeds, [-1, -1])
    part = net(x[found.nodes], found.edges, edge_features=about[found.places] if edge_features else None)[:4]
    whole = net(x, edges, edge_features=about if edge_features else None)[seeds]
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)
    assert len(found.nodes) < 60


@geometric
@pytest.mark.parametrize("layer", ["gine", "gps"])
def test_graphs_in_a_batch_are_predicted_as_alone_and_whatever_the_order_of_their_nodes(layer):
    torch.manual_seed(0)
    net = SparsePredictor(4, outputs=2, width=16, depth=2, layer=layer, heads=2, size=10.0).eval()
    sizes = [12, 7, 1]
    parts = [(torch.randn(n, 4), random_edges(n, 3 * n, n)) for n in sizes]
    alone = torch.cat([net(x, e) for x, e in parts])
    start = [0, 12, 19]
    shifted = torch.cat([e + s for (_, e), s in zip(parts, start, strict=True)], 1)
    joined = net(torch.cat([x for x, _ in parts]), shifted,
                 torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)), 3)
    torch.testing.assert_close(joined, alone, rtol=1e-4, atol=1e-5)
    x, edges = parts[0]
    order = torch.randperm(12)
    back = order.argsort()
    torch.testing.assert_close(net(x[order], back[edges]), alone[:1], rtol=1e-4, atol=1e-5)
    nodes = SparsePredictor(4, width=16, depth=2, layer=layer, heads=2, level="node").eval()
    torch.testing.assert_close(nodes(x[order], back[edges]), nodes(x, edges)[order], rtol=1e-4, atol=1e-5)


@geometric
def test_sums_see_size_and_means_do_not():
    """Two copies of a graph: the mean and the maximum over nodes stay, the sum doubles."""
    torch.manual_seed(0)
    net = SparsePredictor(2, width=8, depth=1).eval()
    x, edges = torch.randn(5, 2), random_edges(5, 12)
    twice = torch.cat([edges, edges + 5], 1)
    pooled = []
    net._pooled = lambda h, graph, graphs, real=net._pooled: pooled.append(real(h, graph, graphs)) or pooled[-1]
    net(x, edges)
    net(torch.cat([x, x]), twice)
    one, two = pooled
    torch.testing.assert_close(two[:, :8], 2 * one[:, :8])
    torch.testing.assert_close(two[:, 8:], one[:, 8:])


@pytest.mark.parametrize("name, value", [("layer", "gin"), ("level", "edge")])
def test_unknown_settings_are_sentences(name, value):
    with pytest.raises(UsageError, match=f"no {name} '{value}'"):
        SparsePredictor(3, **{name: value})
