"""Our own graph families: exact repeats, and the law that each is drawn by."""

from __future__ import annotations

from collections import Counter
from itertools import product

import networkx as nx
import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from scidiff.core.errors import UsageError
from scidiff.domains.graph.families import FAMILIES, decoded, drawn, make

SMALL = {"tree": {"nodes": 9}, "planar": {"nodes": 12}, "sbm": {"size": (5, 8)}, "community": {}, "ego": {},
         "grid": {"rows": (2, 4), "columns": (3, 5)}}


def edges(graph):
    return sorted(map(tuple, map(sorted, graph.edges())))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_depends_on_seed_part_and_its_number_alone(family):
    many, few = make(family, 6, **SMALL[family]), make(family, 3, **SMALL[family])
    assert [edges(g) for g in many[:3]] == [edges(g) for g in few]
    assert len({str(edges(g)) for g in many}) > 1
    for other in (make(family, 6, seed=1, **SMALL[family]), make(family, 6, part="test", **SMALL[family])):
        assert [edges(g) for g in many] != [edges(g) for g in other]
    assert all(set(g) == set(range(len(g))) and not list(nx.selfloop_edges(g)) for g in many)


def test_words_and_labelled_trees_correspond_one_to_one():
    for n in (2, 3, 4, 5):
        words = list(product(range(n), repeat=n - 2))
        found = {frozenset(map(frozenset, decoded(list(word), n))) for word in words}
        assert len(found) == n ** (n - 2)
        assert all(nx.is_tree(nx.Graph(map(tuple, tree))) for tree in found)


def test_every_labelled_tree_on_four_nodes_is_equally_likely():
    counts = Counter(tuple(edges(g)) for g in make("tree", 1600, nodes=4))
    assert len(counts) == 16
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_trees_are_trees_and_their_degrees_are_one_plus_poisson():
    graphs = make("tree", 60)
    assert all(nx.is_tree(g) and len(g) == 64 for g in graphs)
    degrees = np.array([d for g in graphs for _, d in g.degree()])
    # each of the 62 letters of a word names a node with probability 1/64
    share = (1 - 1 / 64) ** 62
    assert abs((degrees == 1).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(degrees))


def test_triangulations_are_planar_connected_and_maximal_inside_their_hull():
    for graph in make("planar", 8):
        assert nx.is_connected(graph) and nx.check_planarity(graph)[0]
        # Euler: 3 (n - 1) - h edges for a hull of h points, 3 <= h
        assert 3 * 63 - graph.number_of_edges() >= 3
        assert sum(nx.triangles(graph).values()) // 3 >= 2 * 63 - (3 * 63 - graph.number_of_edges())


def test_block_models_have_the_densities_they_are_asked_for():
    graphs = make("sbm", 30, blocks=(2, 2), size=(20, 20))
    inside = across = 0
    for graph in graphs:
        assert len(graph) == 40
        crossing = sum((u < 20) != (v < 20) for u, v in graph.edges())
        across, inside = across + crossing, inside + graph.number_of_edges() - crossing
    assert binomtest(inside, 30 * 2 * 190, 0.3).pvalue > 1e-3
    assert binomtest(across, 30 * 400, 0.005).pvalue > 1e-3
    sizes = [len(g) for g in make("sbm", 60)]
    assert 40 <= min(sizes) < 80 and 120 < max(sizes) <= 200


def test_communities_are_two_halves_that_hang_together():
    graphs = make("community", 80)
    assert {len(g) for g in graphs} == {12, 14, 16, 18, 20}
    densities = []
    for graph in graphs:
        half = len(graph) // 2
        cut = [(u, v) for u, v in graph.edges() if (u < half) != (v < half)]
        assert nx.is_connected(graph) and len(cut) >= 1
        densities.append((graph.number_of_edges() - len(cut)) / (half * (half - 1)))
    assert abs(np.mean(densities) - 0.7) < 0.02


def test_grids_are_products_of_paths():
    for graph in make("grid", 4, rows=(3, 5), columns=(2, 6)):
        assert any(nx.is_isomorphic(graph, nx.grid_2d_graph(a, b)) for a in range(3, 6) for b in range(2, 7)
                   if a * b == len(graph))


def test_ego_networks_have_a_centre_and_sizes_within_their_range():
    graphs = make("ego", 120)
    assert all(g.degree(0) == len(g) - 1 for g in graphs)
    assert min(map(len, graphs)) == 4 and max(map(len, graphs)) <= 18
    assert abs(np.mean([len(g) == 4 for g in graphs]) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 120)


def test_parts_are_drawn_as_the_card_says():
    options = {"family": "tree", "settings": {"nodes": 5}, "train": 4, "valid": 2, "test": 3, "kind": "tree"}
    assert [len(drawn(options, part)) for part in ("train", "valid", "test", None)] == [4, 2, 3, 9]
    assert len(drawn(options, None, limit=5)) == 5
    assert drawn(options, "test").names == ["tree_test_0", "tree_test_1", "tree_test_2"]
    assert edges(drawn(options, "train").objects[0]) == edges(make("tree", 1, nodes=5)[0])


@pytest.mark.parametrize("wrong, why", [
    ({"family": "tre"}, "no graph family 'tre'. Did you mean 'tree'"),
    ({"family": "tree", "settings": {"node": 3}}, "no setting 'node'. Did you mean 'nodes'"),
    ({"family": "tree", "settings": {"nodes": 1}}, "nodes=1 is too few"),
    ({"family": "grid", "settings": {"rows": [5, 3]}}, "not from 5 to 3"),
    ({"family": "community", "settings": {"p_in": 0.01}}, "hardly ever hang together"),
    ({"family": "tree", "many": 3}, "no option 'many'"),
])
def test_wrong_settings_are_answered_by_one_sentence(wrong, why):
    with pytest.raises(UsageError) as caught:
        drawn({"train": 1, **wrong}, "train")
    assert why in str(caught.value)


def test_an_unknown_part_is_named():
    with pytest.raises(UsageError, match="no split 'validation'"):
        drawn({"family": "tree"}, "validation")
