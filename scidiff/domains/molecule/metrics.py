"""Figures over a set of generated molecules, each with interval, floor, protocol, reference and count.

valid      share that passes full sanitisation as drawn (chemistry.py); nothing is corrected
connected  share of all samples that are valid and in one piece
unique     distinct canonical stereo-free SMILES over valid molecules
novel      share of the distinct valid ones that are not in the training split
NSPDK MMD  biased linear MMD^2 of nspdk.py over valid molecules (graph protocol of GDSS)
Morgan-count MMD^2   unbiased, over valid connected molecules (fingerprints.py)
W1         Wasserstein distances of logP, QED, molecular weight and size, over valid molecules
FCD        Fréchet ChemNet distance, where one of the packages fcd, fcd_torch is installed

Shares carry Wilson 95 % intervals. The intervals of distances describe the draw of the samples, reference held fixed.
The floor is what fresh training molecules score (MMD, W1), or the test molecules themselves (shares).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scidiff.core.errors import UsageError
from scidiff.domains.base import Metric, Verdict
from scidiff.domains.molecule import chemistry, chemnet
from scidiff.domains.molecule.fingerprints import mmd_biased, mmd_deviation, mmd_unbiased, morgan_rows
from scidiff.domains.molecule.nspdk import nspdk_rows
from scidiff.domains.molecule.reference import Reference, describe, wasserstein

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_Z = 1.959963984540054
_RESAMPLES = 200


def wilson(successes: int, count: int, z: float = _Z) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927), 95 % by default; (0, 1) for no trials."""
    if count == 0:
        return 0.0, 1.0
    p = successes / count
    centre = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def unique_interval(counts: Counter[str]) -> tuple[float, float]:
    """95 % interval of distinct / total: jackknife (a molecule counts by being alone), Wilson where nothing repeats."""
    n, distinct = sum(counts.values()), len(counts)
    alone = sum(c == 1 for c in counts.values()) / n
    if n < 2 or distinct == n:
        return wilson(distinct, n)
    half = _Z * math.sqrt(alone * (1 - alone) / (n - 1))
    return max(distinct / n - half, 0.0), min(distinct / n + half, 1.0)


def metrics(
    molecules: Sequence[Mol], verdicts: Sequence[Verdict], reference: Reference | None = None
) -> list[Metric]:
    """All figures of the module docstring; those that need a reference only where one is given."""
    n = len(molecules)
    if n == 0:
        raise UsageError("There are no molecules to evaluate.")
    valid = [chemistry.finished(m) for m, v in zip(molecules, verdicts, strict=True) if v.valid]
    whole = [m for m in valid if chemistry.fragments(m) == 1]
    out = [
        _share(
            "valid", len(valid), n, reference, "sanitisation of the graph as drawn, no correction, no charge rule"
        ),
        _share("connected", len(whole), n, reference, "valid and one fragment; no largest-fragment rule"),
    ]
    if not valid:
        return out
    counts = Counter(chemistry.canonical(m) for m in valid)
    floor = None if reference is None else reference.floor("unique", n)
    out.append(
        Metric(
            "unique",
            len(counts) / len(valid),
            unique_interval(counts),
            floor,
            "distinct canonical SMILES without stereo / valid",
            "",
            len(valid),
            "higher",
        )
    )
    if reference is not None:
        known = reference.known(chemistry.stable_hash(counts))
        protocol = "distinct valid molecules that are not in the training split; low where a set is nearly exhaustive"
        out.append(_share("novel", int((~known).sum()), len(known), reference, protocol))
        out += _distances(valid, whole, reference)
        out += _property_distances(
            describe([m for m, v in zip(molecules, verdicts, strict=True) if v.valid]), reference
        )
        out.append(_fcd(list(counts.elements()), reference))
    return out


def _share(name: str, successes: int, count: int, reference: Reference | None, protocol: str) -> Metric:
    floor = None if reference is None else reference.floor(name, count)
    title = "" if reference is None or name != "novel" else f"{reference.name} train ({len(reference.hashes)})"
    return Metric(name, successes / max(count, 1), wilson(successes, count), floor, protocol, title, count, "higher")


def _distances(valid: Sequence[Mol], whole: Sequence[Mol], reference: Reference) -> list[Metric]:
    out = []
    for name, chosen, features, against, distance, key, protocol in (
        (
            "NSPDK MMD",
            valid,
            nspdk_rows,
            reference.nspdk,
            mmd_biased,
            "nspdk",
            "biased linear MMD^2, radius and distance up to 4, 16 bits, stable hash; valid molecules",
        ),
        (
            "Morgan-count MMD^2",
            whole,
            morgan_rows,
            reference.morgan,
            mmd_unbiased,
            "morgan",
            "unbiased linear MMD^2, L2-normalised Morgan-2 counts, 4096 bins; valid connected molecules",
        ),
    ):
        count = len(chosen)
        if count < 3:
            out.append(
                Metric(
                    name,
                    None,
                    None,
                    None,
                    protocol,
                    reference.title,
                    count,
                    "lower",
                    note="not computed: fewer than three molecules",
                )
            )
            continue
        rows = features(chosen)
        value, error = distance(rows, against), _Z * mmd_deviation(rows, against)
        low = value - error if key == "morgan" else max(value - error, 0.0)
        note = "unbiased: values around 0 may be negative" if key == "morgan" else "biased: grows with 1 / count"
        out.append(
            Metric(
                name,
                value,
                (low, value + error),
                reference.floor(key, count),
                protocol,
                reference.title,
                count,
                "lower",
                note=note,
            )
        )
    return out


def _property_distances(described: dict[str, np.ndarray], reference: Reference) -> list[Metric]:
    out = []
    chance = np.random.default_rng(0)
    for name, values in described.items():
        known = reference.quantiles[name]
        value = wasserstein(values, known)
        # resampling adds its own distance, so the spread is put around the value itself
        spread = np.std([wasserstein(chance.choice(values, len(values)), known) for _ in range(_RESAMPLES)])
        out.append(
            Metric(
                f"{name} W1",
                value,
                (max(value - _Z * float(spread), 0.0), value + _Z * float(spread)),
                reference.floor(name, len(values)),
                "Wasserstein-1 distance; valid molecules",
                reference.title,
                len(values),
                "lower",
                "" if chemistry.PROPERTIES[name] == "1" else chemistry.PROPERTIES[name],
            )
        )
    return out


def _fcd(smiles: list[str], reference: Reference) -> Metric:
    name, protocol = "FCD", "Fréchet ChemNet distance to the test split without stereo; valid molecules"
    count = len(smiles)

    def missing(why: str) -> Metric:
        return Metric(name, None, None, None, protocol, reference.title, count, "lower", note=f"not computed: {why}")

    if not chemnet.available():
        return missing(f"needs the ChemNet weights of the package fcd ({chemnet.INSTALL})")
    if reference.chemnet is None and not reference.smiles:
        return missing("this reference set holds no ChemNet statistics")
    if count < 2:
        return missing("fewer than two molecules")
    values = chemnet.activations(smiles)
    found = chemnet.Activations.of(values)
    note = "biased: grows with 1 / count"
    if reference.chemnet is None:
        against, floor = chemnet.Activations.of(chemnet.activations(reference.smiles)), None
    else:
        against, floor = reference.chemnet.plain, reference.chemnet.floor(count)
        if reference.chemnet.raw is not None:
            note += f"; to the test strings with their stereo: {chemnet.frechet(found, reference.chemnet.raw):.3f}"
    value, error = chemnet.frechet(found, against), _Z * chemnet.frechet_error(values, against)
    interval = (max(value - error, 0.0), value + error) if np.isfinite(error) else None
    return Metric(name, value, interval, floor, protocol, reference.title, count, "lower", note=note)
