"""Relaxation of crystals by the potential CHGNet, and distance from the convex hull (an extra: needs chgnet).

CHGNet (Deng et al. 2023, doi 10.1038/s42256-023-00716-3) carries its weights in its package. Cell and positions are
relaxed together until the largest force falls below `fmax`. Reported are

    energy          eV / atom after relaxation
    RMSD            rms displacement of the relaxed against the generated crystal (matching.py) in Angstrom
    e_hull          eV / atom above the convex hull of entries that the user supplies
    S.U.N.          stable (e_hull <= 0), unique and novel; mS.U.N. with e_hull <= 0.1

The hull file is JSON (also gzipped): a list of {"composition": "Li2 O1", "energy": eV of that formula}. Energies of the
file and of the potential must share one scheme of corrections; CHGNet's do with the corrected Materials Project ones.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.core.errors import MissingLibrary, ScidiffError
from scidiff.core.statistics import mean_interval, wilson
from scidiff.domains.base import Metric
from scidiff.domains.crystal import matching, validity

if TYPE_CHECKING:
    from pymatgen.analysis.phase_diagram import PhaseDiagram
    from pymatgen.core import Composition, Structure

INSTALL = 'pip install "scidiff[chgnet]"'
STABLE, METASTABLE = 0.0, 0.1  # eV / atom
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Relaxed:
    """A relaxed crystal, its energy in eV / atom, and how far it moved in Angstrom (None: to another crystal)."""

    structure: Structure
    energy: float
    moved: float | None
    converged: bool


def available() -> bool:
    """Whether CHGNet is installed."""
    return find_spec("chgnet") is not None


def relax(structures: Sequence[Structure], fmax: float = 0.1, steps: int = 500,
          device: str = "cpu") -> list[Relaxed | None]:
    """Each crystal relaxed, None where that is impossible; MissingLibrary without chgnet."""
    if not available():
        raise MissingLibrary("chgnet", "Relaxation", INSTALL)
    from chgnet.model import StructOptimizer  # type: ignore[import-not-found]

    optimiser = StructOptimizer(use_device=device)
    sound = validity.structural(structures)
    return [_relaxed(s, optimiser, fmax, steps) if v.valid else None for s, v in zip(structures, sound, strict=True)]


def _relaxed(structure: Structure, optimiser: Any, fmax: float, steps: int) -> Relaxed | None:
    try:
        found = optimiser.relax(structure, fmax=fmax, steps=steps, verbose=False)
        final, path = found["final_structure"], found["trajectory"]
        energy, force = float(path.energies[-1]) / len(final), float(np.linalg.norm(path.forces[-1], axis=1).max())
        rms = matching.compare(final, structure)
    except (ValueError, ArithmeticError, RuntimeError, np.linalg.LinAlgError):
        return None  # a cell that fell apart under the potential
    if not np.isfinite(energy):
        return None
    moved = None if rms is None else rms * (0.5 * (final.volume + structure.volume) / len(final)) ** (1.0 / 3.0)
    return Relaxed(final, energy, moved, force <= fmax)


@dataclass
class Hull:
    """Convex hulls of the entries (composition, energy in eV), made one chemical system at a time."""

    entries: list[tuple[Composition, float]]

    def __post_init__(self) -> None:
        self._made: dict[frozenset[str], PhaseDiagram | None] = {}

    @classmethod
    def read(cls, path: str | Path) -> Hull:
        """From the JSON file of the module docstring; one sentence where it is of another kind."""
        from pymatgen.core import Composition

        file = Path(path)
        try:
            with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
                return cls([(Composition(row["composition"]), float(row["energy"])) for row in json.load(stream)])
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ScidiffError(f"The hull file {file} cannot be read ({error}).",
                               'It is a JSON list of {"composition": "Li2 O1", "energy": -14.3}.') from error

    def above(self, composition: Composition, energy: float) -> float | None:
        """eV / atom above the hull for a total energy in eV; None where the file does not span these elements."""
        from pymatgen.entries.computed_entries import ComputedEntry

        diagram = self._diagram(frozenset(e.symbol for e in composition.elements))
        if diagram is None:
            return None
        return float(diagram.get_e_above_hull(ComputedEntry(composition, energy), allow_negative=True))

    def _diagram(self, system: frozenset[str]) -> PhaseDiagram | None:
        from pymatgen.analysis.phase_diagram import PhaseDiagram
        from pymatgen.entries.computed_entries import ComputedEntry

        if system not in self._made:
            inside = [ComputedEntry(c, e) for c, e in self.entries if {x.symbol for x in c.elements} <= system]
            pure = {e.composition.elements[0].symbol for e in inside if len(e.composition.elements) == 1}
            self._made[system] = PhaseDiagram(inside) if pure == system else None
        return self._made[system]


def figures(relaxed: Sequence[Relaxed | None], hull: Hull | None = None,
            fresh: Sequence[bool] | None = None) -> list[Metric]:
    """Figures over relaxed crystals; `fresh`: which are unique and novel, for S.U.N. with a hull."""
    kept = [r for r in relaxed if r is not None]
    told = f"{len(relaxed) - len(kept)} of {len(relaxed)} could not be relaxed" if len(kept) < len(relaxed) else ""
    protocol = "CHGNet, cell and positions"
    out = []
    for name, unit, values in (("energy", "eV/atom", [r.energy for r in kept]),
                               ("relaxation RMSD", "A", [r.moved for r in kept if r.moved is not None])):
        mean = mean_interval(np.array(values)) if len(values) > 1 else None  # type: ignore[arg-type]
        out.append(Metric(name, None if mean is None else mean.value, None if mean is None else (mean.low, mean.high),
                          None, f"mean; {protocol}", "", len(values), unit=unit,
                          note=told if mean is not None else "not computed: fewer than two relaxed crystals"))
    rate = wilson(sum(r.converged for r in kept), len(relaxed))
    out.append(Metric("converged", rate.value, (rate.low, rate.high), None, f"of all crystals; {protocol}", "",
                      len(relaxed), "higher"))
    if hull is None:
        return out
    height = [None if r is None else hull.above(r.structure.composition, r.energy * len(r.structure)) for r in relaxed]
    unknown = sum(h is None for h in height)
    note = f"{unknown} without a hull or a relaxed crystal count as unstable" if unknown else ""
    flags = {mark: np.array([h is not None and h <= most + _ROUNDING for h in height])
             for mark, most in (("stable", STABLE), ("metastable", METASTABLE))}
    if fresh is not None:
        flags |= {"S.U.N.": flags["stable"] & np.asarray(fresh), "mS.U.N.": flags["metastable"] & np.asarray(fresh)}
    for name, found in flags.items():
        most = STABLE if name in ("stable", "S.U.N.") else METASTABLE
        share = wilson(int(found.sum()), len(found))
        more = ", unique and novel" if name.endswith("S.U.N.") else ""
        out.append(Metric(name, share.value, (share.low, share.high), None,
                          f"at most {most:g} eV/atom above the hull after relaxation{more}; {protocol}",
                          "the hull file", len(found), "higher", note=note))
    return out
