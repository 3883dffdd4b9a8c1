"""Coverage of a test set by generated crystals, in the space of fingerprints (an extra: needs matminer).

    structure fingerprint     mean over sites of CrystalNN order parameters (matminer, preset "ops")
    composition fingerprint   132 Magpie statistics (matminer), standardised by the training crystals
    COV-R   share of test crystals whose nearest generated structure fingerprint is within delta_s *and* whose nearest
            generated composition fingerprint is within delta_c (the two need not be of one crystal)
    COV-P   the same from the generated side, divided by the number generated, fingerprint or not

Source: Xie et al. 2022 (arXiv 2110.06197), with its cut-offs. A fingerprint takes 0.1 to 1 s and runs under the time
limit of pool.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from scidiff.core.errors import MissingLibrary
from scidiff.core.statistics import wilson
from scidiff.domains.base import Metric
from scidiff.domains.crystal import validity
from scidiff.domains.crystal.matching import packed
from scidiff.domains.crystal.pool import Pool

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from scidiff.domains.crystal.reference import Reference

INSTALL = 'pip install "scidiff[crystal-eval]"'
CUTOFFS = {"mp_20": (0.4, 10.0), "perov_5": (0.2, 4.0), "carbon_24": (0.2, 4.0)}
"""Beginning of the data set's name -> (delta_s, delta_c); other sets take those of MP-20."""
_BLOCK = 512


def available() -> bool:
    """Whether matminer is installed."""
    return find_spec("matminer") is not None


def site_fingerprint(structure: Structure) -> list[float]:
    """Mean CrystalNN fingerprint over the sites; runs in the workers of a pool."""
    from matminer.featurizers.site import CrystalNNFingerprint  # type: ignore[import-not-found]

    made = CrystalNNFingerprint.from_preset("ops")
    return np.mean([made.featurize(structure, i) for i in range(len(structure))], axis=0).tolist()


def structure_fingerprints(structures: Sequence[Structure], pool: Pool) -> NDArray[np.float64]:
    """[M, F], a row of NaN where there is none (impossible cell, failure, time limit)."""
    possible = [i for i, s in enumerate(structures) if not validity.constructible(s)]
    answers = pool.run([("fingerprint", (packed(structures[i]),)) for i in possible])
    width = max((len(a.value) for a in answers if a.value is not None), default=1)
    out = np.full((len(structures), width), np.nan)
    for i, answer in zip(possible, answers, strict=True):
        if answer.value is not None:
            out[i] = answer.value
    return out


def composition_fingerprints(structures: Sequence[Structure]) -> NDArray[np.float64]:
    """Magpie statistics [M, 132]."""
    from matminer.featurizers.composition import ElementProperty  # type: ignore[import-not-found]

    made = ElementProperty.from_preset("magpie")
    known: dict[str, list[float]] = {}
    for structure in structures:
        name = structure.composition.reduced_formula
        if name not in known:
            known[name] = made.featurize(structure.composition)
    return np.array([known[s.composition.reduced_formula] for s in structures], dtype=np.float64)


def near(rows: NDArray[np.float64], others: NDArray[np.float64], cutoff: float) -> NDArray[np.bool_]:
    """Which rows [n, d] have one of the others [m, d] within the cut-off; rows of NaN have none and are none."""
    from scipy.spatial.distance import cdist

    others = others[~np.isnan(others).any(1)]
    out = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows) if len(others) else 0, _BLOCK):
        block = rows[start:start + _BLOCK]
        usable = ~np.isnan(block).any(1)
        if usable.any():
            out[start:start + _BLOCK][usable] = cdist(block[usable], others).min(1) <= cutoff
    return out


def coverage(generated: tuple[NDArray[np.float64], NDArray[np.float64]],
             test: tuple[NDArray[np.float64], NDArray[np.float64]],
             cutoffs: tuple[float, float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which test crystals are covered, and which generated ones cover: (structure, composition) fingerprints each."""
    usable = ~np.isnan(generated[0]).any(1)  # a crystal without the one fingerprint does not lend the other
    held = tuple(np.where(usable[:, None], g, np.nan) for g in generated)
    recall = near(test[0], held[0], cutoffs[0]) & near(test[1], held[1], cutoffs[1])
    precision = near(held[0], test[0], cutoffs[0]) & near(held[1], test[1], cutoffs[1])
    return recall, precision


def figures(structures: Sequence[Structure], reference: Reference, limit: float = 60.0) -> list[Metric]:
    """COV-R and COV-P; MissingLibrary without matminer, rows that are not computed without the test crystals."""
    if not available():
        raise MissingLibrary("matminer", "Coverage", INSTALL)
    truth = reference.structures()
    if truth is None:
        return [Metric(name, None, reference=reference.title, better="higher",
                       note="not computed: the crystals of the reference are not on this machine (data.root=)")
                for name in ("COV-R", "COV-P")]
    cutoffs = next((c for start, c in CUTOFFS.items() if reference.name.startswith(start)), CUTOFFS["mp_20"])
    basis = composition_fingerprints(reference.training() or truth)
    mean, std = basis.mean(0), np.where(basis.std(0) > 0, basis.std(0), 1.0)
    with Pool(limit) as pool:
        made, known = ((structure_fingerprints(s, pool), (composition_fingerprints(s) - mean) / std)
                       for s in (structures, truth))
    out = []
    for name, flags in zip(("COV-R", "COV-P"), coverage(made, known, cutoffs), strict=True):
        share = wilson(int(flags.sum()), len(flags))
        protocol = f"CrystalNN and Magpie fingerprints, cut-offs {cutoffs[0]:g} and {cutoffs[1]:g}"
        out.append(Metric(name, share.value, (share.low, share.high), None, protocol, reference.title, len(flags),
                          "higher"))
    return out
