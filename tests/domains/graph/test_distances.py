"""Distances, kernels and MMD against slow definitions; floors and intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest

networkx = pytest.importorskip("networkx", reason="networkx is not installed")

from scidiff.domains.graph import distances, topology  # noqa: E402
from scidiff.domains.graph.data import read  # noqa: E402

EGO = [networkx.gnp_random_graph(n, 0.4, seed=n) for n in range(5, 15)]
TREES = [networkx.random_labeled_tree(n, seed=n) for n in range(4, 12)]


def _features(graphs):
    return topology.features(*topology.padded(graphs))


def _transport(p, q, scale):
    """Earth mover's distance as a linear programme over plans T >= 0 with marginals p and q."""
    from scipy.optimize import linprog

    n = len(p)
    cost = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / scale
    marginals = np.concatenate([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))])
    return linprog(cost.ravel(), A_eq=marginals[:-1], b_eq=np.concatenate([p, q])[:-1]).fun


def test_emd_on_a_grid_is_the_optimal_transport():
    chance = np.random.default_rng(0)
    x, y = chance.integers(0, 9, (3, 8)).astype(float), chance.integers(0, 9, (2, 12)).astype(float)
    for scale in (1.0, 100.0):
        found = distances.Kernel("emd", 1.0, scale).distances(x, y)
        for i, j in np.ndindex(found.shape):
            p, q = np.pad(x[i] / x[i].sum(), (0, 4)), y[j] / y[j].sum()
            assert found[i, j] == pytest.approx(_transport(p, q, scale), abs=1e-9)


def _slow(protocol, graphs, others):
    """The published computation, one pair of graphs at a time, from networkx alone."""

    def histograms(graph):
        laplacian = networkx.normalized_laplacian_matrix(graph).toarray()
        eigenvalues, vectors = np.linalg.eigh(laplacian)
        gains = topology.wavelet_filters(eigenvalues.clip(0, 2))
        top = topology.wavelet_filters(np.zeros(1))[0, 0]
        energy = [((vectors @ np.diag(g) @ vectors.T) ** 2).sum(1) for g in gains]
        return {
            "degree": np.array(networkx.degree_histogram(graph), dtype=float),
            "clustering": np.histogram(list(networkx.clustering(graph).values()), 100, (0.0, 1.0))[0],
            "orbit": topology.orbits(topology.padded([graph])[0])[0].sum(0) / len(graph),
            "spectrum": np.histogram(eigenvalues.clip(-1e-5, 2), 200, (-1e-5, 2.0))[0],
            "wavelet": np.concatenate([np.histogram(e, 100, (0.0, top))[0] for e in energy]),
        }

    sigma = {"degree": 1.0, "clustering": 0.1, "orbit": 30.0, "spectrum": 1.0, "wavelet": 1.0}

    def kernel(name, x, y):
        size = max(len(x), len(y))
        x, y = (np.concatenate([v, np.zeros(size - len(v))]) for v in (x, y))
        if name != "orbit":
            x, y = x / x.sum(), y / y.sum()
        if protocol == "spectre":
            d = 0.5 * np.abs(x - y).sum()
        elif name == "orbit":
            d = np.sqrt(((x - y) ** 2).sum())
        else:
            d, carried = 0.0, 0.0
            for difference in x - y:  # what is carried over from bin to bin
                carried += difference
                d += abs(carried)
            d /= 100.0 if name == "clustering" else 1.0
        return np.exp(-(d**2) / (2 * sigma[name] ** 2))

    def mean(name, first, second):
        return np.mean([[kernel(name, a[name], b[name]) for b in second] for a in first])

    one, two = [histograms(g) for g in graphs], [histograms(g) for g in others]
    names = list(sigma)[:4] if protocol == "gdss" else list(sigma)
    return {n: mean(n, one, one) + mean(n, two, two) - 2 * mean(n, one, two) for n in names}


@pytest.mark.parametrize("protocol", sorted(distances.PROTOCOLS))
def test_values_are_those_of_a_slow_transcription(protocol):
    grams = distances.grams(distances.PROTOCOLS[protocol], _features(EGO), _features(TREES))
    expected = _slow(protocol, EGO, TREES)
    assert grams.keys() == expected.keys()
    for name, gram in grams.items():
        assert gram.mmd2() == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
        assert gram.mmd2() > 0.0


@pytest.mark.parametrize("protocol", sorted(distances.PROTOCOLS))
def test_a_set_is_at_no_distance_from_itself_and_order_does_not_matter(protocol):
    kernels = distances.PROTOCOLS[protocol]
    for gram in distances.grams(kernels, _features(EGO), _features(EGO[::-1])).values():
        assert gram.mmd2() == pytest.approx(0.0, abs=1e-14)
    there = distances.grams(kernels, _features(EGO), _features(TREES))
    back = distances.grams(kernels, _features(TREES), _features(EGO))
    assert all(there[n].mmd2() == pytest.approx(back[n].mmd2(), abs=1e-14) for n in kernels)


def test_rows_without_mass_and_of_different_length():
    kernel = distances.Kernel("tv", 1.0)
    assert kernel.distances(np.zeros((1, 3)), np.array([[0.0, 2.0]])).tolist() == [[0.5]]
    assert kernel.distances(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0, 5.0]])).tolist() == [[1.0]]
    assert distances.Kernel("emd", 1.0).distances(np.array([[1.0]]), np.array([[0.0, 0.0, 5.0]])).tolist() == [[2.0]]


def _random_gram(n, m, seed):
    chance = np.random.default_rng(seed)
    x, y = chance.normal(size=(n, 2)), chance.normal(0.3, 1.0, (m, 2))
    kernel = distances.Kernel("l2", 1.0, normalise=False)
    return distances.Grams(kernel.gram(x, x), kernel.gram(y, y), kernel.gram(x, y))


def test_expected_value_is_the_mean_over_all_choices():
    from itertools import combinations

    gram = _random_gram(7, 5, 0)
    for count in (1, 3, 7):
        values = []
        for chosen in combinations(range(7), count):
            some = np.array(chosen)
            values.append(distances.Grams(gram.xx[np.ix_(some, some)], gram.yy, gram.xy[some]).mmd2())
        assert gram.expected(count) == pytest.approx(np.mean(values), abs=1e-12)
    assert gram.expected(7) == pytest.approx(gram.mmd2(), abs=1e-12)


def test_deviations_are_resampled_values_about_their_mean():
    gram = _random_gram(12, 9, 1)
    chance = np.random.default_rng(5)
    x, y = (chance.multinomial(k, np.full(k, 1 / k), 40000) / k for k in (12, 9))
    found = gram.deviations(x, y)
    assert found.mean() == pytest.approx(0.0, abs=5 * found.std() / 200)
    i, j = (np.repeat(np.arange(k), (k * w[0]).round().astype(int)) for k, w in ((12, x), (9, y)))
    again = distances.Grams(gram.xx[np.ix_(i, i)], gram.yy[np.ix_(j, j)], gram.xy[np.ix_(i, j)]).mmd2()
    bias = (1 - gram.xx.mean()) / 12 + (1 - gram.yy.mean()) / 9
    assert found[0] == pytest.approx(again - bias - gram.mmd2(), abs=1e-12)


def test_weights_are_whole_draws_and_repeat():
    x, y = distances.weights(6, 4, 50, seed=3)
    assert x.shape == (50, 6) and y.shape == (50, 4)
    assert np.allclose(x.sum(1), 1.0) and np.allclose(6 * x, (6 * x).round())
    again = distances.weights(6, 4, 50, seed=3)
    assert np.array_equal(x, again[0]) and np.array_equal(y, again[1])
    assert not np.array_equal(x, distances.weights(6, 4, 50, seed=4)[0])


def test_intervals_hold_the_mean_where_sets_differ():
    chance = np.random.default_rng(2)
    kernel = distances.Kernel("l2", 1.0, normalise=False)
    values, held = [], []
    for k in range(150):
        x, y = chance.normal(size=(30, 1)), chance.normal(1.0, 1.0, (25, 1))
        gram = distances.Grams(kernel.gram(x, x), kernel.gram(y, y), kernel.gram(x, y))
        values.append(gram.mmd2())
        held.append(distances.span(gram.mmd2() + gram.deviations(*distances.weights(30, 25, 300, k))))
    truth = np.mean(values)
    assert 0.88 <= np.mean([low <= truth <= high for low, high in held]) <= 0.99


def test_ratio_leaves_out_what_prints_as_nothing():
    bases = {"degree": 0.00024, "clustering": 0.0, "orbit": 0.00004, "spectrum": 0.02}
    values = {"degree": 0.00048, "clustering": 0.3, "orbit": 0.1, "spectrum": 0.01}
    assert distances.ratio(values, bases) == pytest.approx((2.0 + 0.5) / 2)
    assert distances.ratio(values, bases, decimals=4) == pytest.approx((2.4 + 0.5) / 2)
    assert np.isnan(distances.ratio(values, {"clustering": 0.0}))


@pytest.mark.parametrize(
    ("name", "protocol", "expected"),
    [  # of the whole training split against the test split, to the four decimals that papers print
        ("planar", "spectre", {"degree": 0.0002, "clustering": 0.0310, "orbit": 0.0005, "spectrum": 0.0038,
                               "wavelet": 0.0012}),
        ("tree", "spectre", {"degree": 0.0001, "clustering": 0.0, "orbit": 0.0}),
    ],
)
def test_train_test_distances_of_staged_sets(data, name, protocol, expected):
    file = data / "graph" / f"{name}.npz"
    train, test = (_features(read(file, part).objects) for part in ("train", "test"))
    grams = distances.grams(distances.PROTOCOLS[protocol], train, test)
    assert {metric: round(grams[metric].mmd2(), 4) for metric in expected} == expected
