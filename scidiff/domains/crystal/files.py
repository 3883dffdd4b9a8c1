"""Writers of crystal files: one run, one id everywhere.

samples.csv holds a row a sample, samples.extxyz all samples with verdict and reason (`scidiff evaluate` reads it),
cif/<id>.cif one crystal each in P 1, poscar/<id>.vasp on request; crystals.png shows the first. A sample whose cell is
no cell at all stands in samples.csv alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.domains.crystal import soundness, view, xyz
from scidiff.domains.crystal.codec import composition, density, formula, symbols
from scidiff.domains.crystal.data import RUN_FILE
from scidiff.domains.crystal.formula import text as written
from scidiff.domains.crystal.lattice import parameters
from scidiff.store import atomic

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from scidiff.domains.base import Samples, Verdict

SYMPREC = 0.1
"""Angstrom by which atoms may miss the places of a space group: generated coordinates are not exact."""
POSCAR = "poscar"  # a property of crystals for which such files are wanted
_MOST_DRAWN = 24


def write_samples(samples: Samples, folder: Path) -> list[Path]:
    """samples.csv, samples.extxyz, cif/<id>.cif, poscar/<id>.vasp where asked for, crystals.png; each appears whole or
    not at all."""
    rows = samples.table()
    drawn = [(s, row) for s, row in zip(samples.objects, rows, strict=True) if buildable(s)]
    told = ("id", "seed", "valid", "reason", "rank", "material_id", "formula", "space_group")
    frames = [xyz.frame(s, {k: row[k] for k in told if k in row}) for s, row in drawn]
    written_files = [
        atomic.write_table(folder / "samples.csv", rows),
        atomic.write_text(folder / RUN_FILE, "".join(frames)),
    ]
    for kind, suffix, text in (("cif", "cif", as_cif), (POSCAR, "vasp", as_poscar)):
        wanted = [(s, row) for s, row in drawn if kind == "cif" or s.properties.get(POSCAR)]
        if not wanted:
            continue
        with atomic.writing_folder(folder / kind) as new:
            for structure, row in wanted:
                (new / f"{row['id']}.{suffix}").write_text(text(structure, str(row["id"])), encoding="utf-8")
        written_files += [folder / kind / f"{row['id']}.{suffix}" for _, row in wanted]
    if samples.objects:
        first = slice(0, _MOST_DRAWN)
        picture = view.grid_png(samples.objects[first], samples.verdicts[first], samples.ids[first])
        written_files.append(atomic.write_bytes(folder / "crystals.png", picture))
    return written_files


def buildable(structure: Structure) -> bool:
    """Whether other programs can open it: a cell with volume, finite coordinates, atoms."""
    import numpy as np

    return bool(len(structure) and not soundness.impossible_cell(structure.lattice.matrix)
                and np.isfinite(structure.frac_coords).all())


def as_cif(structure: Structure, name: str) -> str:
    """A CIF that spells out all atoms (P 1); fractional coordinates in [0, 1)."""
    import numpy as np
    import torch

    lengths, angles = parameters(torch.tensor(structure.lattice.matrix).unsqueeze(0))
    cell = [f"_cell_length_{x}    {v:.8f}" for x, v in zip("abc", lengths[0].tolist(), strict=True)]
    cell += [f"_cell_angle_{x}    {v:.8f}" for x, v in zip(("alpha", "beta", "gamma"), angles[0].tolist(), strict=True)]
    atoms = [f"  {kind} {kind}{i} {x:.8f} {y:.8f} {z:.8f} 1" for i, (kind, (x, y, z)) in
             enumerate(zip(symbols(structure), np.mod(structure.frac_coords, 1.0).tolist(), strict=True), 1)]
    return "\n".join([
        f"data_{name}", "_symmetry_space_group_name_H-M    'P 1'", "_symmetry_Int_Tables_number    1", *cell,
        f"_cell_volume    {structure.volume:.6f}", f"_chemical_formula_structural    {formula(structure)}",
        f"_chemical_formula_sum    '{written(composition(structure))}'", "loop_", "  _symmetry_equiv_pos_site_id",
        "  _symmetry_equiv_pos_as_xyz", "  1 'x, y, z'", "loop_", "  _atom_site_type_symbol", "  _atom_site_label",
        "  _atom_site_fract_x", "  _atom_site_fract_y", "  _atom_site_fract_z", "  _atom_site_occupancy", *atoms, ""])


def as_poscar(structure: Structure, name: str) -> str:
    """A VASP file with direct coordinates, atoms of one element together."""
    from pymatgen.io.vasp.inputs import Poscar

    return Poscar(structure.get_sorted_structure(), comment=name).get_str(direct=True)


def table(structures: Sequence[Structure], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Columns of samples.csv: formula, atoms, space group, density, volume per atom, cell."""
    judged = [v.valid for v in verdicts] if verdicts else [True] * len(structures)
    return [_row(s, valid) for s, valid in zip(structures, judged, strict=True)]


def _row(structure: Structure, valid: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"formula": formula(structure), "num_atoms": len(structure)}
    if "material_id" in structure.properties:
        row["material_id"] = structure.properties["material_id"]
    row |= dict.fromkeys(("space_group", "space_group_number", "density_g_per_cm3", "volume_per_atom_A3"), "")
    if valid:
        group, number = space_group(structure)
        row |= {"space_group": group, "space_group_number": number,
                "density_g_per_cm3": round(density(structure), 4),
                "volume_per_atom_A3": round(structure.volume / len(structure), 4)}
    return row


def ranking(structures: Sequence[Structure], verdicts: Sequence[Verdict],
            costs: Sequence[float]) -> list[dict[str, Any]]:
    """rank within the reduced formula (1: best; valid ones first) and cost per atom of each crystal."""
    each = [cost / max(len(s), 1) for cost, s in zip(costs, structures, strict=True)]
    order = sorted(range(len(structures)), key=lambda i: (not verdicts[i].valid, each[i], i))
    seen: dict[str, int] = {}
    ranks = {}
    for i in order:
        name = formula(structures[i])
        ranks[i] = seen[name] = seen.get(name, 0) + 1
    return [{"rank": ranks[i], "cost_per_atom": round(each[i], 4)} for i in range(len(structures))]


def space_group(structure: Structure, symprec: float = SYMPREC) -> tuple[str, int]:
    """International symbol and number by spglib; ("P1", 1) where it finds none."""
    import spglib

    from scidiff.domains.crystal.formula import NUMBER

    cell = (structure.lattice.matrix, structure.frac_coords, [NUMBER[s] for s in symbols(structure)])
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except spglib.error.SpglibError:
        found = None
    return ("P1", 1) if found is None else (str(found.international), int(found.number))
