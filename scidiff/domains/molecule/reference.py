"""Statistics of a reference set: all that evaluation needs of QM9 (or any set) without its molecules.

`datasets/<name>/reference.npz` holds derived numbers only (allow_pickle=False):

    meta          JSON: name, source, file hash, split, counts, RDKit version, floors
    morgan_mean   float32 [4096], and morgan_self in meta: mean and unbiased self term of the test split
    nspdk_mean    float32 [65536]: mean feature vector of the test split
    hash_steps    uint8 [8, n]: bytes of the differences of the sorted 64-bit hashes of canonical training strings
    quantiles     float32 [properties, 1001]: logP, QED, MW, heavy atoms of the test split at levels (k + 0.5) / 1001

Floors say what a perfect generator (fresh training molecules) scores against the test split. Unbiased MMD^2: the value
between the full splits. Biased MMD^2 of n molecules: |mu - nu|^2 + (1 - |mu|^2) / n, exact in expectation. Wasserstein
distances: mean over draws of n training molecules at a few n, interpolated in log n.

    python -m scidiff.domains.molecule.reference qm9 qm9_smiles.csv.gz datasets/qm9/reference.npz --fcd
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
from scidiff.domains.molecule import chemistry, chemnet
from scidiff.domains.molecule.data import read_table
from scidiff.domains.molecule.fingerprints import LinearReference, SparseRows, morgan_rows
from scidiff.domains.molecule.nspdk import nspdk_rows
from scidiff.domains.references import Search
from scidiff.store import atomic

if TYPE_CHECKING:
    from rdkit.Chem import Mol

LEVELS = 1001
_FORMAT = 1
_DRAWS = 20
_SIZES = (100, 1000, 10000)
_BLOCK = 10000
_MOST_DESCRIBED = 20000  # training molecules whose properties are computed for the floors


@dataclass(frozen=True)
class Reference:
    """Statistics of a test split and of its training split; the floors are those of the module docstring."""

    name: str
    morgan: LinearReference
    nspdk: LinearReference
    hashes: np.ndarray
    quantiles: dict[str, np.ndarray]
    floors: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    chemnet: chemnet.FcdReference | None = None
    smiles: tuple[str, ...] = ()  # only where the molecules themselves were read; never stored

    @property
    def title(self) -> str:
        """What the metrics print as their reference."""
        return f"{self.name} {self.meta.get('part', 'test')} ({self.meta.get('count', self.morgan.count)})"

    def known(self, hashes: np.ndarray) -> np.ndarray:
        """Which of these canonical hashes belong to training molecules, bool [n]."""
        place = np.searchsorted(self.hashes, hashes)
        inside = place < len(self.hashes)
        return (
            inside & (self.hashes[np.minimum(place, len(self.hashes) - 1)] == hashes) if len(self.hashes) else inside
        )

    def floor(self, name: str, count: int) -> float | None:
        """Floor of a metric for `count` samples; None where there is no training split."""
        value = self.floors.get(name)
        if isinstance(value, dict) and "distance" in value:
            return value["distance"] + (1.0 - value["self"]) / max(count, 1)
        if isinstance(value, dict):
            sizes = np.array([float(n) for n in value])
            order = np.argsort(sizes)
            known = np.log(np.array(list(value.values()))[order])
            return float(np.exp(np.interp(np.log(max(count, 1)), np.log(sizes[order]), known)))
        return value


def quantiles(values: np.ndarray) -> np.ndarray:
    """Quantiles at the levels (k + 0.5) / 1001, shape [1001]."""
    return np.quantile(np.asarray(values, dtype=np.float64), (np.arange(LEVELS) + 0.5) / LEVELS)


def wasserstein(values: np.ndarray, reference: np.ndarray) -> float:
    """W_1 between a sample and a reference given by `quantiles`: the mean gap of the quantile functions."""
    return float(np.abs(quantiles(values) - reference).mean())


def describe(molecules: Sequence[Mol]) -> dict[str, np.ndarray]:
    """Property name -> values, float64 [n]."""
    rows = [chemistry.properties(m) for m in molecules]
    return {name: np.array([r[name] for r in rows]) for name in chemistry.PROPERTIES}


def build(name: str, test: Sequence[Mol], train: Sequence[Mol], meta: dict[str, Any]) -> Reference:
    """Statistics of `test`, with novelty and floors against `train` (may be empty: then no floors)."""
    from rdkit import rdBase

    if len(test) < 2:
        raise UsageError("A reference set needs at least two molecules.")
    morgan, nspdk = LinearReference.of(morgan_rows(test)), LinearReference.of(nspdk_rows(test))
    described = describe(test)
    table = {p: quantiles(v) for p, v in described.items()}
    strings = [chemistry.canonical(m) for m in test]
    hashes = np.unique(chemistry.stable_hash(chemistry.canonical(m) for m in train or test))
    reference = Reference(
        name,
        morgan,
        nspdk,
        hashes,
        table,
        {},
        {
            "format": _FORMAT,
            "name": name,
            "count": len(test),
            "train_count": len(train),
            "rdkit": rdBase.rdkitVersion,
            **meta,
        },
        smiles=tuple(strings),
    )
    if train:
        reference.floors.update(
            _floors(reference, train),
            valid=1.0,
            connected=float(np.mean([chemistry.fragments(m) == 1 for m in test])),
            unique=len(set(strings)) / len(strings),
            novel=float(1.0 - reference.known(chemistry.stable_hash(sorted(set(strings)))).mean()),
        )
    return reference


def _floors(reference: Reference, train: Sequence[Mol]) -> dict[str, Any]:
    def linear(features: Any) -> tuple[np.ndarray, float]:
        total, squares = 0.0, 0.0
        for start in range(0, len(train), _BLOCK):
            rows: SparseRows = features(train[start : start + _BLOCK])
            total, squares = total + rows.sum(), squares + rows.squared_norms().sum()
        n = len(train)
        return total / n, float((total @ total - squares) / (n * (n - 1)))

    mean, self_term = linear(morgan_rows)
    floors: dict[str, Any] = {
        "morgan": self_term + reference.morgan.self_term - 2.0 * float(mean @ reference.morgan.mean)
    }
    mean, self_term = linear(nspdk_rows)
    gap = mean - reference.nspdk.mean
    floors["nspdk"] = {"distance": float(gap @ gap), "self": self_term}
    chance = np.random.default_rng(0)
    most = chance.permutation(len(train))[:_MOST_DESCRIBED]
    for name, values in describe([train[i] for i in most]).items():
        floors[name] = {
            n: float(
                np.mean([wasserstein(chance.choice(values, n), reference.quantiles[name]) for _ in range(_DRAWS)])
            )
            for n in _SIZES
        }
    return floors


def save(reference: Reference, path: str | Path) -> Path:
    """Writes the archive atomically."""
    meta = {
        **reference.meta,
        "morgan_self": reference.morgan.self_term,
        "nspdk_self": reference.nspdk.self_term,
        "properties": list(reference.quantiles),
        "floors": reference.floors,
    }
    steps = np.diff(reference.hashes, prepend=np.uint64(0)).astype("<u8").view(np.uint8).reshape(-1, 8).T
    with atomic.writing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            meta=np.array(json.dumps(meta)),
            hash_steps=np.ascontiguousarray(steps),
            morgan_mean=reference.morgan.mean.astype(np.float32),
            nspdk_mean=reference.nspdk.mean.astype(np.float32),
            quantiles=np.stack(list(reference.quantiles.values())).astype(np.float32),
        )
    return Path(path)


def load(path: str | Path) -> Reference:
    """A stored reference, with `fcd.npz` beside it where there is one; one sentence where the file is damaged."""
    beside = Path(path).with_name("fcd.npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            steps = np.ascontiguousarray(archive["hash_steps"].T).view("<u8").reshape(-1).astype(np.uint64)
            count = int(meta["count"])
            table = dict(zip(meta["properties"], archive["quantiles"].astype(np.float64), strict=True))
            return Reference(
                meta["name"],
                LinearReference(archive["morgan_mean"].astype(np.float64), float(meta["morgan_self"]), count),
                LinearReference(archive["nspdk_mean"].astype(np.float64), float(meta["nspdk_self"]), count),
                np.cumsum(steps, dtype=np.uint64),
                table,
                meta["floors"],
                meta,
                chemnet.load(beside) if beside.is_file() else None,
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ScidiffError(f"The reference file {path} is damaged or of another kind ({error}).") from error


def find(name: str) -> Reference:
    """A reference by the name of its data set, or from a file: `.npz` as stored, or molecules read on the spot."""
    return Search("molecule", "molecules", ("nspdk_mean",), load, _of_samples)(name)


def _of_samples(path: Path) -> Reference:
    records = read_table(path, invalid="reject").require(path)
    return build(path.name, records.objects, [], {"part": "all", "source": path.name})


def build_fcd(file: Path, test: Sequence[Mol], train: Sequence[Mol]) -> chemnet.FcdReference:
    """ChemNet statistics of the test split without stereo and with it, and floors from training molecules."""
    from importlib import metadata

    from rdkit import Chem

    strings = [chemistry.canonical(m) for m in test]
    plain = chemnet.Activations.of(chemnet.activations(strings))
    stereo = [Chem.MolToSmiles(m) for m in test]
    raw = None if stereo == strings else chemnet.Activations.of(chemnet.activations(stereo))
    order = np.random.default_rng(0).permutation(len(train))
    floors = {}
    for size in (1000, 10000):
        if size <= len(train):
            fresh = chemnet.Activations.of(chemnet.activations([chemistry.canonical(train[i]) for i in order[:size]]))
            floors[size] = chemnet.frechet(fresh, plain)
    version = next((f"{d} {metadata.version(d)}" for d in ("fcd", "fcd_torch") if _installed(d)), "fcd")
    return chemnet.FcdReference(
        plain, raw, {"source": file.name, "part": "test", "package": version, "floors": floors}
    )


def _installed(distribution: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds a reference file from a table with a split."""
    parser = argparse.ArgumentParser(
        description="Statistics of a set of molecules, for evaluation without its molecules."
    )
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--largest-fragment", action="store_true")
    parser.add_argument("--max-atoms", type=int)
    parser.add_argument("--atoms", help="allowed atom types, comma-separated, such as C,N,O,N+,O-")
    parser.add_argument("--fcd", action="store_true", help=f"also write fcd.npz ({chemnet.INSTALL})")
    given = parser.parse_args(arguments)
    options: dict[str, Any] = {
        "largest_fragment": given.largest_fragment,
        "max_atoms": given.max_atoms,
        "atoms": given.atoms.split(",") if given.atoms else None,
    }
    test = read_table(given.file, "test", **options).require(given.file)
    train = read_table(given.file, "train", **options).require(given.file)
    meta = {
        "part": "test",
        "source": given.file.name,
        "options": options,
        "sha256": hashlib.sha256(given.file.read_bytes()).hexdigest(),
    }
    reference = build(given.name, test.objects, train.objects, meta)
    save(reference, given.out)
    print(
        f"{given.out}: {len(test)} test and {len(train)} training molecules, {given.out.stat().st_size / 1e6:.2f} MB"
    )
    print(json.dumps(reference.floors, indent=1))
    if given.fcd:
        found = build_fcd(given.file, test.objects, train.objects)
        chemnet.save(found, given.out.with_name("fcd.npz"))
        print(json.dumps(found.meta))


if __name__ == "__main__":
    main()
