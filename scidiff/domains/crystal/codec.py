"""Crystals as classes, fractional coordinates and a chart of the cell, and back.

Native object: `pymatgen.core.Structure`, ordered, one element a site, with `properties["id"]` where it has a name. A
crystal of n atoms, padded to N, becomes

    types [N]        int64 index into `elements`
    frac [N, 3]      float32 fractional coordinates in [0, 1)
    lattice [d]      float32 numbers of the chart (lattice.py), standardised: (x - mean) / std

with zeros beyond n. Decoding gives the atoms in the order of the rows in an upright cell: the same crystal up to a
rotation. A left-handed cell is inverted together with its coordinates, which is the same crystal. Nothing is
repaired in decoding; soundness.py says what is wrong with a crystal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.crystal.formula import ELEMENTS, NUMBER, element
from scidiff.domains.crystal.lattice import Chart, chart

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray
    from pymatgen.core import Structure

_AMU = 1.66053906660  # g/cm^3 of one atomic mass unit per cubic Angstrom
_LEAST_STD = 0.02  # of a standardised number: a set of cubic cells alone has no spread of shapes

Standard = dict[str, list[float]]


def build(numbers: Sequence[int], frac: Any, matrix: Any, **properties: Any) -> Structure:
    """A crystal of atomic numbers [n], fractional coordinates [n, 3] and a cell [3, 3] in Angstrom."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(np.asarray(matrix, dtype=np.float64)), [ELEMENTS[int(z) - 1] for z in numbers],
                     np.asarray(frac, dtype=np.float64).reshape(-1, 3), properties=properties)


def unfit(structure: Any) -> str:
    """Why this object is no ordered crystal of known elements with finite numbers; empty where it is one."""
    from pymatgen.core import IStructure

    if not isinstance(structure, IStructure):
        return f"it is a {type(structure).__name__}, not a pymatgen Structure"
    if len(structure) == 0:
        return "it has no atoms"
    for site in structure:
        if not site.is_ordered:
            return f"partial occupancy: {site.species_string} shares a site"
    if not np.isfinite(structure.lattice.matrix).all() or not np.isfinite(structure.frac_coords).all():
        return "it holds numbers that are not finite"
    if abs(np.linalg.det(structure.lattice.matrix)) < 1e-8:
        return "its cell has no volume"
    strange = next((s for s in map(_element, structure) if s not in NUMBER), None)
    return "" if strange is None else f"{strange!r} is no chemical element"


def _element(site: Any) -> str:
    return str(site.specie.symbol)


def symbols(structure: Structure) -> list[str]:
    """The element of each atom, charges and isotopes left out."""
    return ["H" if s in ("D", "T") else s for s in map(_element, structure)]


def composition(structure: Structure) -> dict[str, int]:
    """Counted elements in order of their numbers."""
    found = symbols(structure)
    return {name: found.count(name) for name in sorted(set(found), key=NUMBER.__getitem__)}


def formula(structure: Structure) -> str:
    """The reduced formula as chemists write it, cations first: MgO, CaF2, SrTiO3."""
    return str(structure.composition.element_composition.reduced_formula)


def density(structure: Structure) -> float:
    """Mass over volume in g/cm^3."""
    return _AMU * sum(float(site.specie.atomic_mass) for site in structure) / float(structure.volume)


def identity(structure: Structure) -> str:
    """The name of a crystal; empty where it has none."""
    return str((structure.properties or {}).get("id", ""))


def to_ase(structure: Structure) -> Atoms:
    """An ASE Atoms object with periodic boundaries; `info["id"]` is the name."""
    from ase import Atoms

    named = identity(structure)
    return Atoms(numbers=[NUMBER[s] for s in symbols(structure)], scaled_positions=structure.frac_coords,
                 cell=structure.lattice.matrix, pbc=True, info={"id": named} if named else {})


def from_ase(atoms: Atoms) -> Structure:
    """A crystal of an ASE Atoms object; UsageError where it has no cell."""
    cell = np.asarray(atoms.cell)
    if abs(np.linalg.det(cell)) < 1e-8:
        raise UsageError("These atoms have no cell, so they are no crystal.")
    named = str(atoms.info.get("id", ""))
    return build(atoms.get_atomic_numbers(), atoms.get_scaled_positions(), cell, **({"id": named} if named else {}))


@dataclass(frozen=True)
class CrystalCodec:
    """elements: symbols of the classes; n_max: most atoms; chart: of the cell; standard: its mean and std, or None."""

    elements: tuple[str, ...]
    n_max: int
    chart: str = "polar6"
    standard: Standard | None = None

    def __post_init__(self) -> None:
        if not self.elements or len(set(self.elements)) != len(self.elements):
            raise UsageError("A crystal codec needs elements without repetition.")
        for name in self.elements:
            element(name)
        if self.n_max < 1:
            raise UsageError(f"A crystal codec needs n_max >= 1, not {self.n_max}.")
        dim = self.cell.dim
        for key, values in (self.standard or {}).items():
            if key not in ("mean", "std") or len(values) != dim or not np.isfinite(values).all():
                raise UsageError(f"The standard of the chart {self.chart} is a mean and a std of {dim} numbers each.")
        if self.standard is not None and (set(self.standard) != {"mean", "std"} or min(self.standard["std"]) <= 0):
            raise UsageError("The standard of a chart has a mean and a positive std.")

    @property
    def cell(self) -> Chart:
        return chart(self.chart)

    def supports(self, structure: Any) -> str:
        """Why this crystal cannot be encoded; the empty string where it can."""
        why = unfit(structure)
        if why:
            return why
        if len(structure) > self.n_max:
            return f"it has {len(structure)} atoms, more than {self.n_max}"
        unknown = next((s for s in symbols(structure) if s not in self.elements), None)
        return "" if unknown is None else f"the element {unknown} is not among {', '.join(self.elements)}"

    def encode(self, structures: Sequence[Structure]) -> tuple[dict[str, Tensor], Tensor]:
        """({"types" [B, N], "frac" [B, N, 3], "lattice" [B, d]}, sizes [B] int64); UsageError names the first crystal
        that cannot be encoded."""
        index = {name: i for i, name in enumerate(self.elements)}
        count = len(structures)
        types = np.zeros((count, self.n_max), dtype=np.int64)
        frac = np.zeros((count, self.n_max, 3), dtype=np.float64)
        cells, sizes = np.zeros((count, 3, 3)), np.zeros(count, dtype=np.int64)
        for b, structure in enumerate(structures):
            why = self.supports(structure)
            if why:
                raise UsageError(f"Crystal {b + 1} cannot be encoded: {why}.")
            n = len(structure)
            types[b, :n] = [index[s] for s in symbols(structure)]
            frac[b, :n], cells[b], sizes[b] = structure.frac_coords, structure.lattice.matrix, n
        frac, cells = right_handed(frac, cells)
        state = {"types": torch.from_numpy(types), "frac": torch.from_numpy(folded(frac)),
                 "lattice": self.standardised(self.cell.encode(torch.from_numpy(cells))).float()}
        return state, torch.from_numpy(sizes)

    def decode(self, state: dict[str, Tensor], sizes: Tensor) -> list[Structure]:
        """Crystals of a state; only entries below `sizes` are read."""
        types = state["types"].to("cpu", torch.int64).numpy()
        frac = state["frac"].to("cpu", torch.float64).numpy()
        cells = self.cells(state["lattice"]).numpy()
        numbers = np.array([NUMBER[name] for name in self.elements])
        types = np.minimum(types, len(numbers) - 1)  # a set of one element has a second class that nothing fills
        return [build(numbers[types[b, :n]], frac[b, :n], cells[b]) for b, n in enumerate(sizes.to("cpu").tolist())]

    def cells(self, lattice: Tensor) -> Tensor:
        """Cell matrices [B, 3, 3] in Angstrom, float64 on the CPU, of the component `lattice` [B, d]."""
        x = lattice.to("cpu", torch.float64)
        if self.standard is not None:
            mean, std = (torch.tensor(self.standard[k], dtype=torch.float64) for k in ("mean", "std"))
            x = x * std + mean
        return self.cell.decode(x)

    def standardised(self, x: Tensor) -> Tensor:
        """(x - mean) / std of numbers [B, d] of the chart."""
        if self.standard is None:
            return x
        mean, std = (torch.tensor(self.standard[k], dtype=x.dtype) for k in ("mean", "std"))
        return (x - mean) / std


def right_handed(frac: NDArray, cells: NDArray) -> tuple[NDArray, NDArray]:
    """frac [B, N, 3] and cells [B, 3, 3] with (L, f) -> (-L, -f) where det L < 0: the same crystals."""
    sign = np.where(np.linalg.det(cells) < 0, -1.0, 1.0)[:, None, None]
    return frac * sign, cells * sign


def folded(frac: NDArray) -> NDArray[np.float32]:
    """Fractional coordinates in [0, 1) as float32; what rounds up to 1 becomes 0."""
    x = np.mod(frac, 1.0).astype(np.float32)
    x[x >= 1.0] = 0.0
    return x


def standard(structures: Sequence[Structure], name: str) -> Standard:
    """Mean and std of the numbers of a chart over a set. matrix9: mean 0 and one std of all nine numbers (so that
    scaling commutes with rotations), as published with CrysBFN."""
    cells = torch.from_numpy(np.stack([s.lattice.matrix for s in structures]).astype(np.float64))
    cells = cells * torch.linalg.det(cells).sign().view(-1, 1, 1)
    x = chart(name).encode(cells)
    if name == "matrix9":
        return {"mean": [0.0] * 9, "std": [max(float(x.std(unbiased=False)), _LEAST_STD)] * 9}
    return {"mean": x.mean(0).tolist(), "std": x.std(0, unbiased=False).clamp(min=_LEAST_STD).tolist()}
