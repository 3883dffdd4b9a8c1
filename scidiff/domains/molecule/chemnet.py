"""Fréchet ChemNet distance (Preuer, Renz, Unterthiner, Hochreiter, Klambauer 2018, doi 10.1021/acs.jcim.8b00234).

    FCD = |m - w|^2 + tr(C + V - 2 (C^(1/2) V C^(1/2))^(1/2))

with means and covariances of ChemNet's activations over generated (m, C) and reference (w, V) SMILES. The network
is the one of the optional packages `fcd` or `fcd_torch`; without them nothing is computed, and nothing stands in
for it. The reference side is shipped as `datasets/<name>/fcd.npz`: `mean` float32 [512] and `covariance` float32
[131328] (upper triangle) of the test split without stereo, the same with the suffix `_raw` for the strings with
stereo where the set has any, `meta` JSON with package, counts and floors. The generated side never carries stereo,
so the stereo-free reference leads.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from scidiff.core.errors import MissingLibrary, ScidiffError
from scidiff.store import atomic

INSTALL = "pip install fcd"


def available() -> bool:
    """Whether a package with ChemNet is installed."""
    return find_spec("fcd") is not None or find_spec("fcd_torch") is not None


@dataclass(frozen=True)
class Activations:
    """Mean [512] and covariance [512, 512] of ChemNet's activations over `count` strings."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, values: np.ndarray) -> Activations:
        """Statistics of activations [n, 512]."""
        return cls(values.mean(0), np.cov(values.T), len(values))


def activations(smiles: Sequence[str]) -> np.ndarray:
    """ChemNet's activations of SMILES strings, float64 [n, 512], on the CPU; MissingLibrary without a package."""
    if find_spec("fcd") is not None:
        from fcd import get_predictions, load_ref_model  # type: ignore[import-not-found]

        return get_predictions(load_ref_model(), list(smiles), device="cpu", n_jobs=0).astype(np.float64)
    if find_spec("fcd_torch") is not None:
        from fcd_torch import FCD  # type: ignore[import-not-found]

        return np.asarray(FCD(device="cpu", n_jobs=1).get_predictions(list(smiles)), dtype=np.float64)
    raise MissingLibrary("fcd", "The Fréchet ChemNet distance", INSTALL)


def frechet(a: Activations, b: Activations) -> float:
    """Squared 2-Wasserstein distance of two Gaussians."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.covariance @ root), 0, None)).sum()
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross)


def frechet_error(values: np.ndarray, reference: Activations, groups: int = 20) -> float:
    """Standard error of the distance over draws of the samples: jackknife that leaves out one of `groups` at a time."""
    n = len(values)
    if n < 4 * groups:
        return float("nan")
    total, products = values.sum(0), values.T @ values
    left_out = []
    for group in range(groups):
        part = values[group::groups]
        k = n - len(part)
        mean = (total - part.sum(0)) / k
        covariance = (products - part.T @ part - k * np.outer(mean, mean)) / (k - 1)
        left_out.append(frechet(Activations(mean, covariance, k), reference))
    return float(np.sqrt((groups - 1) * np.var(left_out)))


@dataclass(frozen=True)
class FcdReference:
    """ChemNet statistics of a test split, without stereo, and with it where the set has any."""

    plain: Activations
    raw: Activations | None
    meta: dict[str, Any]

    def floor(self, count: int) -> float | None:
        """FCD of `count` fresh training molecules, linear in 1 / count between the stored counts."""
        stored = {int(n): float(v) for n, v in self.meta.get("floors", {}).items()}
        if not stored:
            return None
        sizes = np.array(sorted(stored, reverse=True))
        return float(np.interp(1.0 / max(count, 1), 1.0 / sizes, [stored[n] for n in sizes]))


def save(reference: FcdReference, path: str | Path) -> Path:
    """Writes the archive atomically."""
    upper = np.triu_indices(len(reference.plain.mean))
    arrays = {"mean": reference.plain.mean, "covariance": reference.plain.covariance[upper]}
    if reference.raw is not None:
        arrays |= {"mean_raw": reference.raw.mean, "covariance_raw": reference.raw.covariance[upper]}
    meta = {**reference.meta, "count": reference.plain.count}
    with atomic.writing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream, meta=np.array(json.dumps(meta)), **{k: v.astype(np.float32) for k, v in arrays.items()}
        )
    return Path(path)


def load(path: str | Path) -> FcdReference:
    """Stored ChemNet statistics; one sentence where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            read = [
                _unpack(archive[f"mean{s}"], archive[f"covariance{s}"], meta["count"])
                for s in ("", "_raw")
                if f"mean{s}" in archive.files
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ScidiffError(f"The reference file {path} is damaged or of another kind ({error}).") from error
    return FcdReference(read[0], read[1] if len(read) > 1 else None, meta)


def _unpack(mean: np.ndarray, upper: np.ndarray, count: int) -> Activations:
    full = np.zeros((len(mean), len(mean)))
    full[np.triu_indices(len(mean))] = upper
    return Activations(mean.astype(np.float64), full + np.triu(full, 1).T, int(count))
