"""Counts in closed form against brute force, histograms and spectra against their definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

networkx = pytest.importorskip("networkx", reason="networkx is not installed")

from scidiff.domains.graph import topology  # noqa: E402

ROLES = {  # degrees of a connected graph of 2 to 4 nodes (no other has them) -> role of a node of each degree
    (1, 1): {1: 0}, (1, 1, 2): {1: 1, 2: 2}, (2, 2, 2): {2: 3}, (1, 1, 2, 2): {1: 4, 2: 5}, (1, 1, 1, 3): {1: 6, 3: 7},
    (2, 2, 2, 2): {2: 8}, (1, 2, 2, 3): {1: 9, 2: 10, 3: 11}, (2, 2, 3, 3): {2: 12, 3: 13}, (3, 3, 3, 3): {3: 14},
}


def _brute(matrix):
    rows = matrix.tolist()
    out = np.zeros((len(matrix), topology.ORBITS))
    for size in (2, 3, 4):
        for chosen in combinations(range(len(matrix)), size):
            degrees = [sum(rows[i][j] for j in chosen) for i in chosen]
            roles = ROLES.get(tuple(sorted(degrees)), {})
            for node, degree in zip(chosen, degrees, strict=True):
                if roles:
                    out[node, roles[degree]] += 1
    return out


def _labelled(nodes):
    """All graphs on numbered nodes."""
    pairs = list(combinations(range(nodes), 2))
    chosen = (np.arange(1 << len(pairs))[:, None] >> np.arange(len(pairs))) & 1
    out = np.zeros((len(chosen), nodes, nodes), dtype=np.uint8)
    for (i, j), edge in zip(pairs, chosen.T, strict=True):
        out[:, i, j] = out[:, j, i] = edge
    return out


def test_orbits_of_all_labelled_graphs_up_to_five_nodes():
    for nodes in range(1, 6):
        graphs = _labelled(nodes)
        found = topology.orbits(graphs)
        assert all(np.array_equal(counts, _brute(matrix)) for matrix, counts in zip(graphs, found))


def test_orbits_of_all_graphs_of_six_nodes():
    from networkx.generators.atlas import graph_atlas_g

    graphs = [g for g in graph_atlas_g() if g.number_of_nodes() == 6]
    assert len(graphs) == 156
    adjacency, sizes = topology.padded([*graphs, networkx.path_graph(9)])  # padding must not count
    found = topology.orbits(adjacency)
    assert all(np.array_equal(o[:6], _brute(a[:6, :6])) for a, o in zip(adjacency[:-1], found))
    assert not found[:-1, 6:].any() and sizes.tolist() == [6] * 156 + [9]


def test_orbits_follow_the_order_of_nodes_and_the_size_of_blocks(monkeypatch):
    chance = np.random.default_rng(0)
    graphs = [networkx.gnp_random_graph(n, 0.3, seed=n) for n in (5, 23, 40, 31)]
    adjacency, _ = topology.padded(graphs)
    found = topology.orbits(adjacency)
    order = chance.permutation(adjacency.shape[1])
    assert np.array_equal(topology.orbits(adjacency[:, order][:, :, order]), found[:, order])
    monkeypatch.setattr(topology, "_ENTRIES", 1)
    monkeypatch.setattr(topology, "_EDGES", 3)
    assert np.array_equal(topology.orbits(adjacency), found)


def test_orbits_of_known_families():
    n = 361
    adjacency, _ = topology.padded([networkx.grid_2d_graph(19, 19), networkx.star_graph(n - 1),
                                    networkx.complete_graph(30)])
    grid, star, complete = topology.orbits(adjacency)
    assert grid[:, 8].sum() == 4 * 18 * 18  # four corners of every square
    assert grid[:, [3, 9, 10, 11, 12, 13, 14]].sum() == 0  # no triangles
    assert star[0, 7] == (n - 1) * (n - 2) * (n - 3) / 6 and star[1, 6] == (n - 2) * (n - 3) / 2
    assert complete[0, 14] == 29 * 28 * 27 / 6 and complete[0, 4:14].sum() == 0


def test_padded_keeps_numbers_and_drops_what_is_not_simple():
    named = networkx.Graph([("c", "a"), ("a", "b"), ("b", "b")])
    shuffled = networkx.Graph()
    shuffled.add_nodes_from([2, 0, 1])
    shuffled.add_edge(2, 1)
    adjacency, sizes = topology.padded([named, shuffled, networkx.empty_graph(0), networkx.DiGraph([(0, 1)])])
    assert sizes.tolist() == [3, 3, 0, 2] and adjacency.dtype == np.uint8
    assert adjacency[0].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]  # c, a, b
    assert adjacency[1].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert not adjacency[2].any() and adjacency[3, 0, 1] == adjacency[3, 1, 0] == 1
    assert topology.padded([])[0].shape == (0, 0, 0)


def test_histograms_are_those_of_networkx_and_numpy():
    graphs = [networkx.gnp_random_graph(n, p, seed=n) for n, p in ((1, 0.5), (17, 0.4), (30, 0.1), (12, 0.9))]
    found = topology.features(*topology.padded(graphs))
    for k, graph in enumerate(graphs):
        degrees = networkx.degree_histogram(graph)
        assert found["degree"][k, : len(degrees)].tolist() == degrees and found["degree"][k].sum() == len(graph)
        expected = np.histogram(list(networkx.clustering(graph).values()), bins=100, range=(0.0, 1.0))[0]
        assert found["clustering"][k].tolist() == expected.tolist()
        # away from the edge of the last bin both agree: 2 is an eigenvalue of bipartite graphs alone
        values = networkx.normalized_laplacian_spectrum(graph) if len(graph) > 1 else np.zeros(1)
        expected = np.histogram(values, bins=200, range=(-1e-5, 2.0))[0]
        assert found["spectrum"][k].tolist() == expected.tolist()
    assert set(found) == {"degree", "clustering", "orbit", "spectrum", "wavelet"}
    assert topology.spectral_histograms(*topology.padded(graphs), wavelet=False).keys() == {"spectrum"}


def test_every_eigenvalue_of_a_bipartite_graph_is_counted():
    graphs = [networkx.random_labeled_tree(n, seed=n) for n in range(2, 30)]
    found = topology.features(*topology.padded(graphs))["spectrum"]
    assert found.sum(1).tolist() == list(range(2, 30)) and (found[:, -1] >= 1).all()


def test_wavelet_filters_are_the_published_spline():
    # b(y): y^2 up to 1, a cubic that meets both neighbours with equal slopes, (2 / y)^2 beyond 2
    scales = np.exp(np.linspace(np.log(2 / 0.1), np.log(1 / 2), 11))
    rows = np.array([[1, 1, 1, 1], [1, 2, 4, 8], [0, 1, 2, 3], [0, 1, 4, 12]])
    cubic = np.linalg.solve(rows, [1.0, 1.0, 2.0, -1.0])
    values = np.linspace(0.0, 2.0, 401)
    found = topology.wavelet_filters(values)
    assert found.shape == (12, 401)
    for scale, band in zip(scales, found[1:], strict=True):
        y = scale * values
        with np.errstate(divide="ignore"):
            expected = np.where(y <= 1, y**2, np.where(y < 2, cubic @ y[None] ** np.arange(4)[:, None], 4.0 / y**2))
        assert band == pytest.approx(expected, abs=1e-12)
    steps = np.linspace(1.0, 2.0, 200001)
    top = (cubic @ steps[None] ** np.arange(4)[:, None]).max()
    assert found[0] == pytest.approx(top * np.exp(-((values / 0.06) ** 4)), abs=1e-9)
    assert found.max() <= top + 1e-12


def test_wavelet_histograms_count_row_norms_of_the_filtered_laplacian():
    graph = networkx.gnp_random_graph(25, 0.2, seed=3)
    graph.add_node(25)
    adjacency, sizes = topology.padded([graph])
    values, vectors = np.linalg.eigh(topology.normalised_laplacian(adjacency[0]))
    top = topology.wavelet_filters(np.zeros(1))[0, 0]
    expected = []
    for gains in topology.wavelet_filters(values.clip(0, 2)):
        operator = vectors @ np.diag(gains) @ vectors.T
        expected += np.histogram((operator**2).sum(1), bins=100, range=(0.0, top))[0].tolist()
    assert topology.spectral_histograms(adjacency, sizes)["wavelet"][0].tolist() == expected
