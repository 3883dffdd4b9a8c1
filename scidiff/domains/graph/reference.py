"""Statistics of a reference set of graphs: all that evaluation needs of it, without its graphs.

`datasets/<name>/reference.npz` holds derived numbers only (allow_pickle=False):

    meta        JSON: name, protocol, kind, source, file hash, counts, floors
    nodes       int64 [m]: nodes of the test graphs
    degree, clustering, spectrum, wavelet     uint16 [m, bins]: their histograms (topology.py)
    orbit       int64 [m, 15]: sums over nodes of their orbit counts
    hash_steps  uint8 [8, n]: bytes of the differences of the sorted 64-bit hashes of training graphs (isomorphism.py)

Floors say what a perfect generator scores: fresh training graphs against the test graphs. With kernels K between
training graphs x and test graphs y, n training graphs have the mean MMD^2

    apart + (1 - apart) / n + near,    apart = mean K(x, x') of different graphs, near = mean K(y, y') - 2 mean K(x, y)

`draws` holds mean and standard deviation over random draws of m training graphs, `whole` the value of all of them,
which the published ratio divides by. The floors of shares are the shares of the test graphs themselves.

    python -m scidiff.domains.graph.reference planar planar.npz datasets/planar/reference.npz
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.graph import data, distances, isomorphism, topology, validity
from scidiff.domains.references import Search
from scidiff.store import atomic, cards, fetch

if TYPE_CHECKING:
    from networkx import Graph
    from numpy.typing import NDArray

PUBLISHED = {
    "comm20": ("spectre_emd", ""),
    "planar": ("spectre", "planar"),
    "sbm": ("spectre", "sbm"),
    "tree": ("spectre", "tree"),
    "enzymes": ("gdss", ""),
    "ego_small": ("gdss", ""),
    "community_small": ("gdss", ""),
    "grid": ("gdss", ""),
}
"""Data set -> (protocol of distances.py, kind of validity.py)."""
DRAWS = 20
_FORMAT = 1
_COUNTED = ("degree", "clustering", "spectrum", "wavelet")


@dataclass(frozen=True)
class Reference:
    """Features of a test split, hashes of its training split, and floors as the module docstring has them."""

    name: str
    protocol: str
    kind: str
    nodes: NDArray[np.int64]
    features: dict[str, np.ndarray]
    hashes: NDArray[np.uint64]
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Test graphs."""
        return len(self.nodes)

    @property
    def title(self) -> str:
        """What the metrics print as their reference."""
        return f"{self.name} {self.meta.get('part', 'test')} ({self.count})"

    @property
    def degrees(self) -> np.ndarray:
        """Shares of the degrees 0, 1, 2 ... over all nodes of the test graphs."""
        total = self.features["degree"].sum(0)
        return total / max(total.sum(), 1.0)

    @property
    def kernels(self) -> dict[str, distances.Kernel]:
        return distances.PROTOCOLS[self.protocol]

    def floor(self, metric: str, count: int) -> float | None:
        """Mean MMD^2 of `count` training graphs; None where there is no training split."""
        known = self.floors.get(metric)
        return None if known is None else known["apart"] + (1.0 - known["apart"]) / count + known["near"]

    def known(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these hashes belong to training graphs."""
        return np.isin(hashes, self.hashes)

    def training(self) -> list[Graph] | None:
        """The training graphs, where their data set lies on this machine and is the one described here."""
        try:
            found = _read(self.name, "train", download_missing=False)
        except ScidiffError:
            return None
        same = np.array_equal(_hashes(found), self.hashes)
        return found if same else None


def build(name: str, test: Sequence[Graph], train: Sequence[Graph] = (), *, protocol: str = "spectre", kind: str = "",
          meta: dict[str, Any] | None = None) -> Reference:
    """Statistics of test graphs, with hashes and floors of training graphs where there are any."""
    test, train = ([g for g in graphs if g.number_of_nodes()] for graphs in (test, train))
    if not test:
        raise UsageError("A reference set needs at least one graph with nodes.")
    adjacency, nodes = topology.padded(test)
    found = topology.features(adjacency, nodes)
    shares: dict[str, float] = {}
    floors: dict[str, dict[str, float]] = {}
    hashes = _hashes(train)
    if train:
        grams = distances.grams(distances.PROTOCOLS[protocol], topology.features(*topology.padded(train)), found)
        floors = {metric: _floor(gram, min(len(test), len(train))) for metric, gram in grams.items()}
        shares = _shares(test, kind, hashes)
    about = {"format": _FORMAT, "train_count": len(train), **(meta or {})}
    return Reference(name, protocol, kind, nodes, found, hashes, floors, shares, about)


def _hashes(graphs: Sequence[Graph]) -> NDArray[np.uint64]:
    return np.unique(isomorphism.hashes(*topology.padded(graphs)))


def _floor(gram: distances.Grams, size: int) -> dict[str, float]:
    n, chance = len(gram.xx), np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        some = chance.choice(n, size, replace=False)
        draws.append(distances.Grams(gram.xx[np.ix_(some, some)], gram.yy, gram.xy[some]).mmd2())
    near = float(gram.yy.mean() - 2.0 * gram.xy.mean())
    apart = float((gram.xx.sum() - gram.xx.trace()) / max(n * (n - 1), 1))
    return {"apart": apart, "near": near, "whole": gram.mmd2(), "draws": float(np.mean(draws)),
            "draws_std": float(np.std(draws)), "draws_size": size}


def _shares(test: Sequence[Graph], kind: str, hashes: NDArray[np.uint64]) -> dict[str, float]:
    from networkx import is_connected

    labels = isomorphism.classes(test).labels
    first = labels == np.arange(len(test))
    novel = ~np.isin(isomorphism.hashes(*topology.padded(test)), hashes)
    valid = np.array([validity.check(g, kind).valid for g in test])
    connected = float(np.mean([is_connected(g) for g in test]))
    return {"valid": float(valid.mean()), "connected": connected, "unique": float(first.mean()),
            "novel": float(novel.mean()), "V.U.N.": float((valid & first & novel).mean())}


def save(reference: Reference, path: str | Path) -> Path:
    """Writes the archive atomically."""
    meta = {**reference.meta, "name": reference.name, "protocol": reference.protocol, "kind": reference.kind,
            "floors": reference.floors, "shares": reference.shares}
    steps = np.diff(reference.hashes, prepend=np.uint64(0)).astype("<u8").view(np.uint8).reshape(-1, 8).T
    arrays: dict[str, Any] = {name: reference.features[name].astype(np.uint16) for name in _COUNTED}
    arrays["orbit"] = np.rint(reference.features["orbit"] * reference.nodes[:, None]).astype(np.int64)
    arrays |= {"meta": np.array(json.dumps(meta)), "nodes": reference.nodes, "hash_steps": np.ascontiguousarray(steps)}
    with atomic.writing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    return Path(path)


def load(path: str | Path) -> Reference:
    """A stored reference; one sentence where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            nodes = archive["nodes"].astype(np.int64)
            found = {name: archive[name].astype(np.float64) for name in _COUNTED}
            found["orbit"] = archive["orbit"] / np.maximum(nodes, 1)[:, None]
            steps = np.ascontiguousarray(archive["hash_steps"].T).view("<u8").reshape(-1).astype(np.uint64)
            name, protocol, kind = (str(meta.pop(key)) for key in ("name", "protocol", "kind"))
            floors, shares = meta.pop("floors"), meta.pop("shares")
            hashes = np.cumsum(steps, dtype=np.uint64)
            return Reference(name, protocol, kind, nodes, found, hashes, floors, shares, meta)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ScidiffError(f"The reference file {path} is damaged or of another kind ({error}).") from error


def find(name: str) -> Reference:
    """A reference by the name of its data set, or graphs of a file or folder, read on the spot."""
    return Search("graph", "graphs", ("hash_steps", "spectrum"), load, _of_samples, _of_set)(name)


def _of_samples(path: Path) -> Reference:
    return build(path.name, data.read(path).require(path).objects, meta={"part": "all", "source": path.name})


def _of_set(name: str) -> Reference:
    kind = str(next((x.options["kind"] for x in cards.find(name).layouts if "kind" in x.options), ""))
    return build(name, _read(name, "test"), _read(name, "train"), kind=kind, meta={"part": "test", "source": name})


def _read(name: str, split: str, download_missing: bool = True) -> list[Graph]:
    """One part of a data set, found where training finds it."""
    given = fetch.provide(cards.find(name), download_missing=download_missing)
    return data.dataset(given.files, given.reader, given.options, split).objects


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds a reference file from graphs with a split."""
    parser = argparse.ArgumentParser(description="Statistics of a set of graphs, for evaluation without its graphs.")
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--protocol", choices=sorted(distances.PROTOCOLS))
    parser.add_argument("--kind", choices=validity.KINDS)
    given = parser.parse_args(arguments)
    protocol, kind = PUBLISHED.get(given.name, ("spectre", ""))
    test, train = (data.read(given.file, part).require(given.file).objects for part in ("test", "train"))
    meta = {"part": "test", "source": given.file.name, "sha256": hashlib.sha256(given.file.read_bytes()).hexdigest()}
    made = build(given.name, test, train, protocol=given.protocol or protocol,
                 kind=kind if given.kind is None else given.kind, meta=meta)
    save(made, given.out)
    size = given.out.stat().st_size / 1e3
    print(f"{given.out}: {len(test)} test and {len(train)} training graphs, {made.protocol}, {size:.0f} kB")
    for metric, floor in made.floors.items():
        print(f"  {metric:11s} {floor['draws']:.5f} ± {floor['draws_std']:.5f}   all: {floor['whole']:.5f}")
    print("  " + ", ".join(f"{share} {value:.3f}" for share, value in made.shares.items()))


if __name__ == "__main__":
    main()
