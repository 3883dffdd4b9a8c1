"""Figures over a set of generated crystals, each with interval, floor, protocol, reference and count.

valid                    share that the model's domain accepts
structurally valid, compositionally valid      shares under the rules of validity.py and charges.py
unique, novel            shares that match no earlier crystal of the set, and no training crystal (uniqueness.py)
V.U.N.                   share that are all of these: valid by both rules, unique and novel
density W1, elements W1  Wasserstein-1 distances of mass density and number of elements, 1,000 valid crystals at most
match, RMSE, cRMSE       crystals paired by id, best of the samples of a row (matching.py), each under two filters:
                         F, none; V, prediction and truth are both valid by both rules (no fingerprint is asked for)
cRMSE F - floor          paired difference from the template prediction of the same rows; below 0: better than it
METRe                    every reference crystal against all generated ones of its composition, and its cRMSE

Rows of the reference without a sample take part in no paired figure. Crystals without ids get METRe and the figures of
the set alone. Where METRe or duplicates need more than 50,000 comparisons, a random part of the rows is measured, and
said. Shares carry Wilson 95 % intervals, means bootstrap ones over rows; the floor of match, RMSE, cRMSE and METRe is
the template prediction (retrieval.py), of shares the test set, of distances fresh training crystals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from scidiff.core.errors import UsageError
from scidiff.core.statistics import bootstrap, wilson
from scidiff.domains.base import Metric, Verdict
from scidiff.domains.crystal import charges, matching, properties, uniqueness, validity
from scidiff.domains.crystal.matching import PREDICTION, Found, Pair
from scidiff.domains.crystal.pool import Pool

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from scidiff.domains.crystal.reference import Floor, Reference

MOST_DESCRIBED = 1000
MOST_CALLS = 50_000
_DRAWS = 1000
_RULES = {"structurally valid": "atoms at least 0.5 A apart, cell of at least 0.1 A^3",
          "compositionally valid": f"neutral by smact ({charges.OXIDATION_STATES}), metals and single elements pass"}


def metrics(structures: Sequence[Structure], verdicts: Sequence[Verdict], reference: Reference | None = None,
            seed: int = 0, pool: Pool | None = None) -> list[Metric]:
    """All figures of the module docstring; those that need a reference only where one is given.

    pool: the processes that compare, with their time limit; one of its own where none is given.
    """
    if not structures:
        raise UsageError("There are no crystals to evaluate.")
    with Pool() if pool is None else nullcontext(pool) as workers:
        possible = np.array([not validity.constructible(s) for s in structures])
        sound = np.array([v.valid for v in validity.structural(structures)])
        charged = np.array([v.valid for v in charges.compositional(structures, workers)])
        flags = {"valid": np.array([v.valid for v in verdicts]), "structurally valid": sound,
                 "compositionally valid": charged}
        out = [_share(name, found, reference, _RULES.get(name, "the verdict of the model's domain"))
               for name, found in flags.items()]
        out += _novelty(structures, possible, sound & charged, reference, workers, seed)
        if reference is None:
            return out
        out += _distances(structures, sound & charged, reference, seed)
        return out + _matches(structures, possible, sound & charged, reference, workers, seed)


def _share(name: str, flags: np.ndarray, reference: Reference | None, protocol: str, against: str = "",
           note: str = "") -> Metric:
    share = wilson(int(flags.sum()), len(flags))
    floor = None if reference is None else reference.shares.get(name)
    return Metric(name, share.value if len(flags) else None, (share.low, share.high), floor, protocol, against,
                  len(flags), "higher", note=note if len(flags) else "not computed: no crystal has a possible cell")


def _novelty(structures: Sequence[Structure], possible: np.ndarray, valid: np.ndarray, reference: Reference | None,
             pool: Pool, seed: int) -> list[Metric]:
    own = uniqueness.within(structures, possible, pool, seed)
    rule = f"{matching.IDENTITY}, primitive cells, crystals with a possible cell"
    out = [_share("unique", ~own.matched[possible[own.chosen]], reference,
                  f"matches no earlier crystal of the set; {rule}", note=_told(own, len(structures)))]
    training = None if reference is None else reference.training()
    if reference is None or not training:
        return out
    known = uniqueness.against(structures, possible, training, pool, seed)
    title = f"{reference.name} train ({len(training)})"
    out.append(_share("novel", ~known.matched[possible[known.chosen]], reference,
                      f"matches no training crystal; {rule}", title, _told(known, len(structures))))
    both = np.intersect1d(own.chosen, known.chosen)
    fresh = ~own.matched[np.isin(own.chosen, both)] & ~known.matched[np.isin(known.chosen, both)]
    out.append(_share("V.U.N.", fresh & valid[both], reference, "valid by both rules, unique and novel", title))
    return out


def _told(found: uniqueness.Repeats, count: int) -> str:
    part = f"of {len(found.chosen)} drawn from {count}" if len(found.chosen) < count else ""
    late = f"{found.late} comparisons ran out of time and count as different" if found.late else ""
    return "; ".join(x for x in (part, late) if x)


def _distances(structures: Sequence[Structure], valid: np.ndarray, reference: Reference, seed: int) -> list[Metric]:
    places = np.flatnonzero(valid)
    if len(places) > MOST_DESCRIBED:
        places = np.sort(np.random.default_rng(seed).choice(places, MOST_DESCRIBED, replace=False))
    chosen = [structures[i] for i in places]
    out = []
    for name, unit, measure in (("density", "g/cm^3", properties.densities),
                                ("elements", "", properties.element_counts)):
        title, protocol = f"{name} W1", "Wasserstein-1 distance; crystals that are valid by both rules"
        if len(chosen) < 2:
            out.append(Metric(title, None, None, None, protocol, reference.title, len(chosen), unit=unit,
                              note="not computed: fewer than two valid crystals"))
            continue
        values, known = np.asarray(measure(chosen), dtype=np.float64), reference.test.values(name)
        out.append(Metric(title, properties.wasserstein(values, known), properties.interval(values, known, seed),
                          properties.floor(reference.train, reference.test, name, len(chosen)), protocol,
                          reference.title, len(chosen), unit=unit))
    return out


def _matches(structures: Sequence[Structure], possible: np.ndarray, valid: np.ndarray, reference: Reference,
             pool: Pool, seed: int) -> list[Metric]:
    """Paired figures and METRe; one row that says why where the reference has no crystals here."""
    truth = reference.structures()
    if truth is None:
        return [Metric("METRe", None, None, None, str(PREDICTION), reference.title, 0, "higher",
                       note="not computed: the crystals of the reference are not on this machine (data.root=)")]
    paired = matching.same_id(structures, truth)
    rows = np.array(sorted({j for _, j in paired}) if paired else range(len(truth)), dtype=np.int64)
    everyone = _affordable(matching.same_composition(structures, truth, rows.tolist()), rows, seed)
    asked = sorted((i, j) for i, j in {*paired, *(p for pairs in everyone.values() for p in pairs)} if possible[i])
    found = matching.displacements(structures, truth, asked, pool)
    floor = reference.rows(rows.tolist(), pool)
    out = _paired(paired, rows, found, valid, truth, reference, floor, pool, seed) if paired else []
    return out + _metre(everyone, rows, found, reference, floor if paired or len(everyone) == len(rows) else None,
                        pool, seed)


def _affordable(pairs: Sequence[Pair], rows: np.ndarray, seed: int) -> dict[int, list[Pair]]:
    """Pairs by row, of all rows or of the first rows of a random order that need MOST_CALLS comparisons."""
    groups: dict[int, list[Pair]] = {int(j): [] for j in rows}
    for pair in pairs:
        groups[pair[1]].append(pair)
    if len(pairs) <= MOST_CALLS:
        return groups
    kept, total = {}, 0
    for j in np.random.default_rng(seed).permutation(rows).tolist():
        total += len(groups[j])
        if total > MOST_CALLS and kept:
            break
        kept[j] = groups[j]
    return kept


def _paired(paired: Sequence[Pair], rows: np.ndarray, found: Found, valid: np.ndarray, truth: Sequence[Structure],
            reference: Reference, floor: Floor | None, pool: Pool, seed: int) -> list[Metric]:
    right = [truth[j] for j in rows]
    sound = np.array([v.valid for v in validity.structural(right)])
    sound &= np.array([v.valid for v in charges.compositional(right, pool)])
    every = np.zeros(len(truth), dtype=bool)
    every[rows] = sound
    samples = Counter(j for _, j in paired)
    most, least = max(samples.values()), min(samples.values())
    best = f"best of {most}" if most == least else f"best of {least} to {most}"
    left = f"{len(rows)} of {len(truth)} rows have a sample" if len(rows) < len(truth) else ""
    note = "; ".join(x for x in (left, found.note(pool.limit), "" if floor is None else f"floor: {floor.title}") if x)
    out = []
    for mark, told, allowed in (
            ("F", "no filter", paired),
            ("V", "prediction and truth structurally and compositionally valid",
             [(i, j) for i, j in paired if valid[i] and every[j]])):
        rms = found.best(allowed, len(truth))[rows]
        base = None if floor is None else np.where(floor.sound, floor.rms, np.nan) if mark == "V" else floor.rms
        protocol = f"StructureMatcher {PREDICTION}; {mark}: {told}; {best}"
        out += _figures(f" {mark}", rms, base, protocol, reference.title, note, seed)
        if base is not None and mark == "F":
            gap = _mean(matching.corrected(rms) - matching.corrected(base), seed)
            out.append(Metric("cRMSE F - floor", *gap, 0.0, f"paired by row; {protocol}", reference.title, len(rows),
                              note=note))
    if most > 1:
        seen: set[int] = set()
        first = [(i, j) for i, j in paired if j not in seen and not seen.add(j)]
        rms = found.best(first, len(truth))[rows]
        protocol = f"StructureMatcher {PREDICTION}; F: no filter; the first sample of each row"
        out += _figures(" F, first sample", rms, None if floor is None else floor.rms, protocol, reference.title, note,
                        seed)
    return out


def _figures(mark: str, rms: np.ndarray, base: np.ndarray | None, protocol: str, title: str, note: str, seed: int,
             share: str = "match") -> list[Metric]:
    """Match rate, RMSE and cRMSE of rms [rows] (NaN: no match), with those of the floor."""
    matched = ~np.isnan(rms)
    rate = wilson(int(matched.sum()), len(rms))
    hit = None if base is None else ~np.isnan(base)
    out = [Metric(f"{share}{mark}", rate.value, (rate.low, rate.high), None if hit is None else float(hit.mean()),
                  protocol, title, len(rms), "higher", note=note)]
    count = int(matched.sum())
    own = None if base is None or hit is None or not hit.any() else float(base[hit].mean())
    name = f"RMSE{mark}" if share == "match" else f"{share} RMSE"
    told = "; ".join(x for x in (note, "" if count else "not computed: no row is matched") if x)
    out.append(Metric(name, *(_mean(rms[matched], seed) if count else (None, None)), own,
                      f"over matched rows, in (V / N)^(1/3); {protocol}", title, count, note=told))
    name = f"cRMSE{mark}" if share == "match" else f"{share} cRMSE"
    own = None if base is None else float(matching.corrected(base).mean())
    out.append(Metric(name, *_mean(matching.corrected(rms), seed), own,
                      f"unmatched rows count {PREDICTION.stol:g}; {protocol}", title, len(rms), note=note))
    return out


def _mean(values: np.ndarray, seed: int) -> tuple[float, tuple[float, float] | None]:
    if len(values) < 2:
        return float(values.mean()), None
    found = bootstrap(torch.mean, torch.from_numpy(np.asarray(values, dtype=np.float64)), _DRAWS, seed)
    return found.value, (found.low, found.high)


def _metre(everyone: dict[int, list[Pair]], rows: np.ndarray, found: Found, reference: Reference, floor: Floor | None,
           pool: Pool, seed: int) -> list[Metric]:
    chosen = np.isin(rows, list(everyone))
    size = int(rows.max()) + 1
    rms = found.best([pair for pairs in everyone.values() for pair in pairs], size)[rows[chosen]]
    part = f"{int(chosen.sum())} of {len(rows)} rows, drawn at random" if not chosen.all() else ""
    title = "" if floor is None else f"floor: {floor.title}, each row by its own"
    note = "; ".join(x for x in (part, found.note(pool.limit), title) if x)
    protocol = f"StructureMatcher {PREDICTION}; each reference crystal against all of its composition, no filter"
    base = None if floor is None else floor.rms[chosen]
    return _figures("", rms, base, protocol, reference.title, note, seed, share="METRe")
