"""Many crystals in one NumPy archive (.npz), read without unpickling anything.

num_atoms [M]             atoms of each crystal; the arrays below hold crystal after crystal
atomic_numbers [sum N]    element numbers
frac_coords [sum N, 3]    fractional coordinates
lengths, angles [M, 3]    a, b, c in Angstrom and alpha, beta, gamma in degrees (upright cell, lattice.py)
material_id [M]           optional: text
further arrays [M]        numbers of each crystal by name: energies, gaps, a column of yes and no
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scidiff.domains.crystal.entries import Entry, Rules, broken, from_lengths, judged
from scidiff.store.arrays import Damaged, read

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NEEDED = ("num_atoms", "atomic_numbers", "frac_coords", "lengths", "angles")
_OWN = (*_NEEDED, "material_id", "row_index")


def entries(path: Path, rules: Rules, trusted: bool = True) -> Iterator[Entry]:
    """The crystals of an archive; `trusted`: its cells are reduced and its atoms do not overlap."""
    try:
        arrays = read(path)
        ends = _whole(arrays)
    except Damaged as damage:
        yield broken(path.name, str(damage))
        return
    count, stem = len(ends), path.name.split(".")[0]
    ids = arrays.get("material_id")
    about = {k: v for k, v in arrays.items() if k not in _OWN and v.shape == (count,) and v.dtype.kind in "fiub"}
    lengths, angles = arrays["lengths"].tolist(), arrays["angles"].tolist()
    numbers = arrays["atomic_numbers"].tolist()
    begin = 0
    for i, end in enumerate(ends.tolist()):
        name = f"{stem}_{i}" if ids is None else str(ids[i])
        cell = from_lengths(lengths[i], angles[i])
        where = f"{path.name}, crystal {i}"
        if isinstance(cell, str):
            yield broken(where, cell, name)
        else:
            told = {k: v[i].item() for k, v in about.items()}
            yield judged(Entry(where, name, numbers[begin:end], arrays["frac_coords"][begin:end], cell, about=told),
                         rules, trusted)
        begin = end


def _whole(arrays: dict[str, NDArray]) -> NDArray:
    """Where the atoms of each crystal end, int64 [M]; the arrays have the shapes that they must have."""
    for name in _NEEDED:
        if name not in arrays:
            raise Damaged(f"it has no array {name!r}")
        kinds = "iu" if name in ("num_atoms", "atomic_numbers") else "iuf"
        if arrays[name].dtype.kind not in kinds:
            raise Damaged(f"its array {name!r} does not hold {'whole ' if kinds == 'iu' else ''}numbers")
    counts = arrays["num_atoms"]
    if counts.ndim != 1 or (counts.astype(np.int64) < 0).any():
        raise Damaged("its array 'num_atoms' does not hold one count a crystal")
    ends = np.cumsum(counts.astype(np.int64))
    atoms = int(ends[-1]) if len(ends) else 0
    shapes = {"atomic_numbers": (atoms,), "frac_coords": (atoms, 3), "lengths": (len(ends), 3),
              "angles": (len(ends), 3), "material_id": (len(ends),)}
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise Damaged(f"its array {name!r} has the shape {arrays[name].shape}, not {shape}")
    return ends


def packed(found: Sequence[Entry]) -> bytes:
    """The archive of usable entries, compressed; equal entries give equal bytes."""
    import torch

    from scidiff.domains.crystal.codec import folded, right_handed
    from scidiff.domains.crystal.lattice import parameters

    matrices = np.array([entry.matrix for entry in found], dtype=np.float64).reshape(-1, 3, 3)
    lengths, angles = parameters(torch.from_numpy(matrices))
    frac = [right_handed(np.asarray(entry.frac)[None], np.asarray(entry.matrix)[None])[0][0] for entry in found]
    arrays = {
        "num_atoms": np.array([len(entry.numbers) for entry in found], dtype=np.int32),
        "atomic_numbers": np.array([z for entry in found for z in entry.numbers], dtype=np.uint8),
        "frac_coords": folded(np.concatenate([*frac, np.zeros((0, 3))])),
        "lengths": lengths.numpy(), "angles": angles.numpy(),
        "material_id": np.array([entry.name for entry in found], dtype=np.str_),
    }
    numeric = sorted({key for entry in found for key, x in entry.about.items() if isinstance(x, (int, float))})
    for key in numeric:
        arrays[key] = np.array([float(entry.about.get(key, np.nan)) for entry in found])
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
