"""Whether a composition is chemically plausible: neutral with charges that its elements can carry.

Valid are: one element alone; metals alone; otherwise some choice of oxidation states that is neutral with every cation
less electronegative than every anion, missing electronegativities passing (Davies et al. 2016,
doi 10.1016/j.chempr.2016.09.010). By smact with its list of 2014, which published tables used; newer lists pass more.
Compositions of more than 8 elements are invalid, as the search would not end, and those of 6 to 8 are decided in a
process with a time limit (pool.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from scidiff.core.errors import MissingLibrary
from scidiff.domains.base import Verdict
from scidiff.domains.crystal.matching import composition_key
from scidiff.domains.crystal.pool import Pool

if TYPE_CHECKING:
    from pymatgen.core import Structure

MOST_ELEMENTS = 8
OXIDATION_STATES = "smact14"
_QUICK = 5  # elements up to which smact answers at once


def compositional(structures: Iterable[Structure], pool: Pool | None = None) -> list[Verdict]:
    """Verdicts of the compositional rule; compositions of many elements run under the time limit of a pool."""
    keys = [composition_key(s) for s in structures]
    known = compositions(set(keys), pool)
    return [known[key] for key in keys]


def compositions(keys: Iterable[tuple[tuple[int, int], ...]],
                 pool: Pool | None = None) -> dict[tuple[tuple[int, int], ...], Verdict]:
    """Verdict of each reduced composition ((Z, count), ...)."""
    out: dict[tuple[tuple[int, int], ...], Verdict] = {}
    slow = []
    for key in keys:
        if not key:
            out[key] = Verdict(False, "has no atoms")
        elif len(key) > MOST_ELEMENTS:
            out[key] = Verdict(False, f"has {len(key)} elements, more than the {MOST_ELEMENTS} that are searched")
        elif len(key) <= _QUICK:
            out[key] = _verdict(smact_verdict(formula(key)), formula(key))
        else:
            slow.append(key)
    if slow:
        with Pool() if pool is None else nullcontext(pool) as workers:
            answers = workers.run([("composition", (formula(key),)) for key in slow])
            for key, answer in zip(slow, answers, strict=True):
                out[key] = _verdict(bool(answer.value), formula(key), answer.problem, workers.limit)
    return out


def _verdict(valid: bool, name: str, problem: str = "", limit: float = 0.0) -> Verdict:
    if problem:
        why = f"could not be decided within {limit:g} s" if problem == "time" else f"could not be decided ({problem})"
        return Verdict(False, f"the charges of {name} {why}")
    return Verdict(valid, "" if valid else f"no oxidation states make {name} neutral with electronegative anions")


def formula(key: Sequence[tuple[int, int]]) -> str:
    """Na1Cl1 of ((11, 1), (17, 1))."""
    from pymatgen.core import Element

    return "".join(f"{Element.from_Z(z).symbol}{n}" for z, n in key)


@functools.lru_cache(maxsize=65536)
def smact_verdict(name: str) -> bool:
    """smact's answer on a formula, with its oxidation states of 2014; elements that it does not know are invalid."""
    try:
        from smact.screening import smact_validity
    except ImportError as error:
        raise MissingLibrary("smact", "Compositional validity", "pip install smact") from error
    try:
        return bool(smact_validity(name, oxidation_states_set=OXIDATION_STATES))
    except (NameError, KeyError):
        return False
