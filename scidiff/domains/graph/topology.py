"""What graphs look like, in numbers: degrees, clustering, small subgraphs, spectrum and wavelets, many at once.

A batch of graphs is `(adjacency, sizes)`: uint8 [G, N, N], symmetric, zero diagonal, zero beyond the size of each
graph, and int64 [G]. Padding never counts. Everything is numpy; counts are exact in float64.

degree      histogram of node degrees
clustering  histogram of c_i = 2 t_i / (d_i (d_i - 1)), 0 where d_i < 2, 100 bins on [0, 1]; t_i triangles at node i
orbit       per node, how often it takes each of the 15 roles in connected induced subgraphs of 2 to 4 nodes (numbering
            of Przulj 2007, as in ORCA): 0 edge; 1 end, 2 middle of a path of three; 3 triangle; 4 end, 5 inside of a
            path of four; 6 leaf, 7 centre of a star; 8 four-cycle; 9 tail, 10 far, 11 joint of a triangle with a tail;
            12 corner, 13 spine of a four-cycle with one chord; 14 complete. In closed form from degrees, triangles and
            common neighbours; only complete quadruples are counted edge by edge
spectrum    histogram of the eigenvalues of 1 - D^-1/2 A D^-1/2 (0 for isolated nodes), 200 bins on [-1e-5, 2]
wavelet     w_fi = sum_k g_f(lambda_k)^2 U_ik^2 = |row i of g_f(L)|^2 for 12 spline filters g_f (Hammond et al. 2011) on
            [0, 2], each with a histogram over nodes, 100 bins on [0, max g]; larger values fall out, as published
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from networkx import Graph
    from numpy.typing import NDArray

ORBITS = 15
CLUSTERING_BINS = 100
SPECTRUM_BINS = 200
WAVELET_FILTERS = 12
WAVELET_BINS = 100
_WAVELET_TOP = 1.0 + 2.0 / (3.0 * math.sqrt(3.0))  # largest value of a filter: of the cubic at 2 - 1/sqrt(3)
_ENTRIES = 1 << 21  # of one working block [G, N, N]
_EDGES = 1 << 12  # rows of one block of edges


def padded(graphs: Sequence[Graph]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Adjacency uint8 [G, N, N] and sizes int64 [G]; node i is row i where nodes are 0 .. n-1, else in their order.

    Directions, repeated edges, loops and attributes are dropped.
    """
    sizes = np.array([graph.number_of_nodes() for graph in graphs], dtype=np.int64)
    width = int(sizes.max(initial=0))
    adjacency = np.zeros((len(graphs), width, width), dtype=np.uint8)
    for matrix, graph, size in zip(adjacency, graphs, sizes.tolist(), strict=True):
        names = range(size) if all(i in graph for i in range(size)) else list(graph)
        place = {name: i for i, name in enumerate(names)}
        edges = np.array([(place[u], place[v]) for u, v in graph.edges()], dtype=np.int64).reshape(-1, 2)
        matrix[edges[:, 0], edges[:, 1]] = matrix[edges[:, 1], edges[:, 0]] = 1
        np.fill_diagonal(matrix, 0)
    return adjacency, sizes


def features(adjacency: NDArray[np.uint8], sizes: NDArray[np.int64], wavelet: bool = True) -> dict[str, np.ndarray]:
    """All of the module docstring by name: counts, float64 [G, bins]; orbit holds means over nodes [G, 15].

    Graphs without nodes have rows of zeros.
    """
    out = {
        "degree": degree_histogram(adjacency, sizes),
        "clustering": clustering_histogram(adjacency, sizes),
        "orbit": orbits(adjacency).sum(1) / np.maximum(sizes, 1)[:, None],
    }
    return out | spectral_histograms(adjacency, sizes, wavelet)


def degree_histogram(adjacency: NDArray[np.uint8], sizes: NDArray[np.int64]) -> np.ndarray:
    """Nodes by degree, [G, largest degree + 1]."""
    degrees = adjacency.sum(2, dtype=np.int64)
    return _counts(degrees, _real(adjacency, sizes), int(degrees.max(initial=0)) + 1)


def clustering_histogram(adjacency: NDArray[np.uint8], sizes: NDArray[np.int64]) -> np.ndarray:
    """Nodes by local clustering coefficient, [G, 100]."""
    return _histogram(clustering(adjacency), _real(adjacency, sizes), np.linspace(0.0, 1.0, CLUSTERING_BINS + 1))


def clustering(adjacency: NDArray[np.uint8]) -> np.ndarray:
    """Local clustering coefficients [G, N]."""
    twice = np.concatenate([np.einsum("gij,gij->gi", a @ a, a) for a in _blocks(adjacency)] or [_nothing(adjacency)])
    degrees = adjacency.sum(2, dtype=np.float64)
    pairs = degrees * (degrees - 1.0)
    return np.divide(twice, pairs, out=np.zeros_like(pairs), where=pairs > 0)


def orbits(adjacency: NDArray[np.uint8]) -> np.ndarray:
    """Orbit counts of every node, float64 [G, N, 15], zero on padding."""
    found = [_orbits(a) for a in _blocks(adjacency)]
    return np.concatenate(found) if found else np.zeros((*adjacency.shape[:2], ORBITS))


def _orbits(a: np.ndarray) -> np.ndarray:
    """Subgraphs counted as they lie on edges, then what larger ones contribute is taken off, densest first."""
    d = a.sum(2)
    common = a @ a
    c = a * common  # common neighbours of the ends of an edge
    pairs = common * (common - 1.0) / 2.0
    pairs -= np.einsum("gii->gi", pairs)[:, :, None] * np.eye(a.shape[1])
    t = c.sum(2) / 2.0
    quads = _quads(a, c)
    over = np.maximum(d - 1.0, 0.0)

    def along(x: np.ndarray) -> np.ndarray:
        return np.einsum("gij,gj->gi", a, x)

    k = quads.sum(2) / 3.0
    spine = (a * pairs - quads).sum(2)
    corner = ((a @ (a * (common - 1.0))) * a).sum(2) / 2.0 - 3.0 * k
    cycle = pairs.sum(2) - corner - spine - 3.0 * k
    joint = t * np.maximum(d - 2.0, 0.0) - 2.0 * spine - 3.0 * k
    tail = along(t) - c.sum(2) - 2.0 * corner - 3.0 * k
    far = np.einsum("gij,gj->gi", c, d - 2.0) - 2.0 * corner - 2.0 * spine - 6.0 * k
    centre = d * over * np.maximum(d - 2.0, 0.0) / 6.0 - joint - spine - k
    leaf = along(over * (d - 2.0)) / 2.0 - tail - far - spine - 2.0 * corner - 3.0 * k
    inside = over * along(over) - c.sum(2) - 2.0 * cycle - 2.0 * joint - far - 4.0 * spine - 2.0 * corner - 6.0 * k
    end = along(along(over)) - d * over - 2.0 * t
    end -= 2.0 * cycle + 2.0 * tail + far + 2.0 * spine + 4.0 * corner + 6.0 * k
    three = (along(over) - 2.0 * t, d * over / 2.0 - t, t)
    return np.stack((d, *three, end, inside, leaf, centre, cycle, tail, far, joint, corner, spine, k), axis=-1)


def _quads(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Complete quadruples on each edge: edges among the common neighbours of its ends, [G, N, N]."""
    out = np.zeros_like(a)
    for matrix, near, found in zip(a, c, out, strict=True):
        rows, columns = np.nonzero(np.triu(near) >= 2.0)
        for start in range(0, len(rows), _EDGES):
            i, j = rows[start : start + _EDGES], columns[start : start + _EDGES]
            shared = matrix[i] * matrix[j]
            found[i, j] = found[j, i] = np.einsum("ek,ek->e", shared @ matrix, shared) / 2.0
    return out


def spectral_histograms(
    adjacency: NDArray[np.uint8], sizes: NDArray[np.int64], wavelet: bool = True
) -> dict[str, np.ndarray]:
    """"spectrum" [G, 200] and, if wanted, "wavelet" [G, 1200]: counts of eigenvalues, and of nodes by filter.

    Eigenvalues are clipped to [0, 2], so that rounding does not push the 2 of a bipartite graph out of the last bin.
    """
    edges = np.linspace(-1e-5, 2.0, SPECTRUM_BINS + 1)
    steps = np.linspace(0.0, _WAVELET_TOP, WAVELET_BINS + 1)
    spectrum = np.zeros((len(sizes), SPECTRUM_BINS))
    waves = np.zeros((len(sizes), WAVELET_FILTERS, WAVELET_BINS))
    for n in np.unique(sizes[sizes > 0]).tolist():
        chosen = np.flatnonzero(sizes == n)
        for some in np.array_split(chosen, -(-len(chosen) * n * n // _ENTRIES)):
            laplacian = normalised_laplacian(adjacency[some, :n, :n])
            if not wavelet:
                spectrum[some] = _histogram(np.linalg.eigvalsh(laplacian).clip(0.0, 2.0), None, edges)
                continue
            values, vectors = np.linalg.eigh(laplacian)
            values = values.clip(0.0, 2.0)
            spectrum[some] = _histogram(values, None, edges)
            # [filter, G, k] x [G, i, k] -> [filter, G, i]
            energy = np.einsum("fgk,gik->fgi", wavelet_filters(values) ** 2, vectors**2, optimize=True)
            waves[some] = np.stack([_histogram(e, e <= _WAVELET_TOP, steps) for e in energy], axis=1)
    out = {"spectrum": spectrum}
    return out | {"wavelet": waves.reshape(len(sizes), -1)} if wavelet else out


def normalised_laplacian(adjacency: np.ndarray) -> np.ndarray:
    """1 - D^-1/2 A D^-1/2 [G, n, n], with zero rows for isolated nodes."""
    a = adjacency.astype(np.float64)
    d = a.sum(-1)
    root = np.divide(1.0, np.sqrt(d), out=np.zeros_like(d), where=d > 0)
    return (d > 0)[..., None] * np.eye(a.shape[-1]) - root[..., :, None] * a * root[..., None, :]


def wavelet_filters(values: np.ndarray) -> np.ndarray:
    """The 12 filters at eigenvalues in [0, 2]: [12, *shape]. One low-pass and 11 wavelets at logarithmic scales.

    With lowest resolved eigenvalue 2 / 20 = 0.1: g_0(x) = top exp(-(x / 0.06)^4), g_f(x) = b(s_f x), s from 2 / 0.1
    down to 1 / 2, and b(y) = y^2 up to 1, the cubic 1 + (y-1)(y-2)(y-3) up to 2, (2 / y)^2 beyond.
    """
    lowest = 2.0 / 20.0
    scales = np.geomspace(2.0 / lowest, 1.0 / 2.0, WAVELET_FILTERS - 1)
    y = scales.reshape(-1, *[1] * values.ndim) * values
    cubic = 1.0 + (y - 1.0) * (y - 2.0) * (y - 3.0)
    tail = np.square(2.0 / np.maximum(y, 2.0))
    bands = np.where(y <= 1.0, y * y, np.where(y < 2.0, cubic, tail))
    low = _WAVELET_TOP * np.exp(-((values / (0.6 * lowest)) ** 4))
    return np.concatenate([low[None], bands])


def _real(adjacency: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.arange(adjacency.shape[1]) < sizes[:, None]


def _blocks(adjacency: np.ndarray) -> Iterator[np.ndarray]:
    """float64 [g, N, N], few enough graphs at a time to stay in memory."""
    step = max(_ENTRIES // max(adjacency.shape[1] ** 2, 1), 1)
    for start in range(0, len(adjacency), step):
        yield adjacency[start : start + step].astype(np.float64)


def _nothing(adjacency: np.ndarray) -> np.ndarray:
    return np.zeros(adjacency.shape[:2])


def _histogram(values: np.ndarray, chosen: np.ndarray | None, edges: np.ndarray) -> np.ndarray:
    """Counts [G, bins] of values [G, n] (where chosen); bins closed below, the last one on both sides."""
    bins = len(edges) - 1
    index = np.minimum(np.searchsorted(edges, values, side="right") - 1, bins - 1)
    return _counts(index, np.ones(values.shape, dtype=bool) if chosen is None else chosen, bins)


def _counts(index: np.ndarray, chosen: np.ndarray, bins: int) -> np.ndarray:
    rows = np.arange(len(index))[:, None] * bins
    flat = np.bincount((index + rows)[chosen], minlength=len(index) * bins)
    return flat.reshape(len(index), bins).astype(np.float64)
