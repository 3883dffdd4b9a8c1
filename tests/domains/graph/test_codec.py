"""Round trips, padding, class frequencies and thresholds of the two codings of a graph."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.graph.codec import GraphCodec, build, labels_of, unfit, vocabulary
from scidiff.domains.graph.families import make


def same(a: nx.Graph, b: nx.Graph) -> bool:
    """Equal nodes, edges and labels."""
    return (list(a) == list(b) and {frozenset(e) for e in a.edges()} == {frozenset(e) for e in b.edges()}
            and labels_of(a) == labels_of(b))


def labelled(graphs, names="abc"):
    for k, graph in enumerate(graphs):
        nx.set_node_attributes(graph, {u: names[(u * u + k) % len(names)] for u in graph}, "label")
    return graphs


@pytest.mark.parametrize("labels", [(), ("a", "b", "c")])
def test_classes_come_back_exactly(labels):
    graphs = [*make("community", 8, nodes=(6, 12)), build(3, []), build(1, [])]
    if labels:
        labelled(graphs)
    codec = GraphCodec(labels, 15)
    state, sizes = codec.encode(graphs)
    assert state["edges"].shape == (10, 15, 15) and ("nodes" in state) == bool(labels)
    assert sizes.tolist() == [len(g) for g in graphs]
    assert torch.equal(state["edges"], state["edges"].transpose(1, 2))
    assert state["edges"].sum((1, 2)).tolist() == [2 * g.number_of_edges() for g in graphs]
    for n, row in zip(sizes.tolist(), state["edges"], strict=True):
        assert not row[n:].any() and not row.diagonal().any()
    assert all(same(a, b) for a, b in zip(graphs, codec.decode(state, sizes), strict=True))


def test_only_the_entries_of_the_sample_above_the_diagonal_are_read():
    codec = GraphCodec((), 6)
    edges = torch.ones(1, 6, 6, dtype=torch.int64)
    found = codec.decode({"edges": edges}, torch.tensor([4]))[0]
    assert found.number_of_nodes() == 4 and found.number_of_edges() == 6
    edges = torch.zeros(1, 6, 6, dtype=torch.int64)
    edges[0, 1, 0], edges[0, 0, 2] = 1, 1
    assert list(codec.decode({"edges": edges}, torch.tensor([6]))[0].edges()) == [(0, 2)]


def test_nodes_in_another_order_keep_their_edges_and_labels():
    graph = nx.Graph()
    graph.add_nodes_from([(2, {"label": "c"}), (0, {"label": "a"}), (1, {"label": "b"})])
    graph.add_edge(2, 1)
    codec = GraphCodec(("a", "b", "c"), 3)
    state, sizes = codec.encode([graph])
    assert state["nodes"].tolist() == [[0, 1, 2]]
    assert state["edges"][0, 1, 2] == 1 and state["edges"].sum() == 2
    named = nx.relabel_nodes(graph, {2: "x", 0: "y", 1: "z"})
    state, _ = codec.encode([named])
    assert state["nodes"].tolist() == [[2, 0, 1]] and state["edges"][0, 0, 2] == 1
    assert sizes.tolist() == [3]


def test_marginals_are_shares_of_labels_and_of_unordered_pairs():
    graphs = [build(4, [(0, 1), (1, 2), (2, 3)], list("aaab")), build(2, [(0, 1)], list("bb"))]
    codec = GraphCodec(("a", "b"), 5)
    found = codec.marginals(*codec.encode(graphs))
    np.testing.assert_allclose(found["edges"], [3 / 7, 4 / 7])
    np.testing.assert_allclose(found["nodes"], [0.5, 0.5])
    lonely = GraphCodec((), 3)
    assert lonely.marginals(*lonely.encode([build(1, [])]))["edges"] == [1.0, 0.0]


def test_gdss_nodes_are_clipped_one_hot_degrees():
    star = nx.star_graph(5)
    codec = GraphCodec((), 8, degrees=4)
    state, sizes = codec.encode([star, nx.path_graph(3)])
    assert state["nodes"].dtype == state["edges"].dtype == torch.float32
    assert state["nodes"][0].argmax(-1)[:6].tolist() == [3, 1, 1, 1, 1, 1]
    assert state["nodes"].sum(-1).sum(-1).tolist() == [6, 3]  # padding is the zero vector
    assert [nx.is_isomorphic(a, b) for a, b in zip([star, nx.path_graph(3)], codec.decode(state, sizes), strict=True)]


def test_gdss_edges_are_cut_at_one_half_and_isolated_nodes_dropped():
    codec = GraphCodec((), 4, degrees=3)
    edges = torch.zeros(1, 4, 4)
    for i, j, value in ((0, 1, 0.5), (1, 3, 0.49), (2, 3, 1.7)):
        edges[0, i, j] = edges[0, j, i] = value
    found = codec.decode({"nodes": torch.zeros(1, 4, 3), "edges": edges}, torch.tensor([4]))[0]
    assert sorted(map(len, nx.connected_components(found))) == [2, 2]
    found = codec.decode({"nodes": torch.zeros(1, 4, 3), "edges": edges}, torch.tensor([3]))[0]
    assert found.number_of_nodes() == 2  # node 3 is padding, so 2 is alone
    empty = codec.decode({"nodes": torch.zeros(1, 4, 3), "edges": torch.zeros(1, 4, 4)}, torch.tensor([4]))[0]
    assert empty.number_of_nodes() == 0


def test_a_vocabulary_goes_by_frequency_then_name():
    graphs = [build(4, [], list("bbac")), build(3, [], list("bcc"))]
    assert vocabulary(graphs) == ("b", "c", "a")
    assert vocabulary([build(2, []), build(1, [])]) == ()


@pytest.mark.parametrize("graph, why", [
    (nx.DiGraph([(0, 1)]), "directed"),
    (nx.MultiGraph([(0, 1), (0, 1)]), "multigraph"),
    (nx.Graph([(0, 1), (1, 1)]), "node 1 has an edge to itself"),
    (nx.Graph(), "no nodes"),
    ([(0, 1)], "is a list, not a networkx.Graph"),
])
def test_what_is_no_simple_graph_is_named(graph, why):
    assert why in unfit(graph)
    with pytest.raises(UsageError, match=r"Graph 2 cannot be encoded: ") as caught:
        GraphCodec((), 5).encode([build(2, [(0, 1)]), graph])
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_and_labels_beyond_the_codec_are_named():
    codec = GraphCodec(("a", "b"), 3)
    assert "4 nodes, more than 3" in codec.supports(build(4, [], list("aabb")))
    assert "label 'x' is not among a, b" in codec.supports(build(2, [], list("ax")))
    assert "have no labels" in codec.supports(build(2, []))
    assert codec.supports(build(2, [], list("ab"))) == ""


@pytest.mark.parametrize("graphs, why", [
    ([build(2, [], list("aa")), build(2, [])], "1 of 2 graphs have no node labels"),
    ([build(70, [], [str(i % 66) for i in range(70)])], "66 different labels"),
    ([build(3, [], list("abc")), build(4, [], list("cdab"))], "names rather than classes"),
])
def test_labels_that_are_no_classes_are_refused_with_a_remedy(graphs, why):
    with pytest.raises(UsageError, match=why) as caught:
        vocabulary(graphs)
    assert "data.options.label=null" in str(caught.value)


def test_a_graph_with_some_labels_is_refused():
    graph = build(3, [])
    graph.nodes[0]["label"] = "a"
    with pytest.raises(UsageError, match="2 of the 3 nodes"):
        labels_of(graph)
