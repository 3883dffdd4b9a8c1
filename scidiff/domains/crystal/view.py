"""Pictures of crystals: cells in projection with the reason under invalid ones, and distributions beside a reference.

Every cell is looked at from the same direction, a little from above; atoms on a face, an edge or a corner are drawn at
each of its images. Discs have the covalent radius and the usual colour of their element; what is
farther away is paler.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.domains.base import Verdict
from scidiff.domains.crystal import soundness
from scidiff.domains.crystal.codec import composition, density, formula, symbols
from scidiff.domains.crystal.formula import NUMBER
from scidiff.domains.pictures import of_samples, png, svg

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

_COLUMNS = 6
_EDGE = 0.02  # of fractional coordinates: an atom so near to a face is drawn on the opposite one too
_TURN = np.radians((-72.0, 18.0))  # about x and about z
_INK, _BAD, _PAPER, _LINE = "#1f5a8a", "#b04a2f", "#b9b9b9", "#8a98a5"
_CORNERS = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
_EDGES = [(i, j) for i, j in itertools.combinations(range(8), 2) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 1]


def projected(points: NDArray) -> NDArray:
    """Cartesian points [n, 3], turned: two coordinates lie in the picture, the third points to us."""
    (sx, sz), (cx, cz) = np.sin(_TURN), np.cos(_TURN)
    about_z = np.array([[cz, -sz, 0.0], [sz, cz, 0.0], [0.0, 0.0, 1.0]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cx, -sx], [0.0, sx, cx]])
    return points @ (about_x @ about_z).T


def images(frac: NDArray) -> tuple[NDArray, NDArray]:
    """Atoms of the cell and their copies on opposite faces: fractional coordinates [m, 3] and atom numbers [m]."""
    places, owner = [], []
    for i, f in enumerate(np.mod(frac, 1.0)):
        shifts = [(0.0, 1.0) if x < _EDGE else (-1.0, 0.0) if x > 1 - _EDGE else (0.0,) for x in f]
        for shift in itertools.product(*shifts):
            places.append(f + np.array(shift))
            owner.append(i)
    return np.array(places).reshape(-1, 3), np.array(owner, dtype=np.int64)


def _draw(axis: Any, structure: Structure, centre: tuple[float, float]) -> None:
    """One cell in a square of side 0.84 around `centre`; nothing where there is no cell to draw."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Circle

    matrix = structure.lattice.matrix
    if soundness.impossible_cell(matrix) or not np.isfinite(structure.frac_coords).all():
        axis.text(*centre, "no cell", fontsize=7, color=_BAD, ha="center", va="center")
        return
    corners = projected(_CORNERS @ matrix)
    places, owner = images(structure.frac_coords)
    at = projected(places @ matrix)
    numbers = np.array([NUMBER[s] for s in symbols(structure)])[owner]
    radii = 0.45 * np.array([covalent_radii[z] if z < len(covalent_radii) else 1.5 for z in numbers])
    both = np.concatenate([corners[:, :2], at[:, :2] - radii[:, None], at[:, :2] + radii[:, None]])
    low, high = both.min(0), both.max(0)
    scale = 0.84 / max(float((high - low).max()), 1e-9)
    offset = np.array(centre) - 0.5 * scale * (low + high)
    flat = corners[:, :2] * scale + offset
    lines = [(flat[i], flat[j]) for i, j in _EDGES]
    axis.add_collection(LineCollection(lines, colors=_LINE, linewidths=0.6, zorder=1))
    order = np.argsort(at[:, 2], kind="stable")
    depth = (at[:, 2] - at[:, 2].min()) / max(float(np.ptp(at[:, 2])), 1e-9)
    pale = 0.35 * (1 - depth)[:, None]
    colours = pale + (1 - pale) * jmol_colors[np.minimum(numbers, len(jmol_colors) - 1)]
    discs = [Circle(at[k, :2] * scale + offset, radii[k] * scale) for k in order]
    axis.add_collection(PatchCollection(discs, facecolors=[np.clip(colours[k], 0, 1) for k in order],
                                        edgecolors="#40474d", linewidths=0.35, zorder=2))


def _figure(structures: Sequence[Structure], verdicts: Sequence[Verdict], ids: Sequence[str]) -> Any:
    from matplotlib.figure import Figure

    columns = max(min(len(structures), _COLUMNS), 1)
    rows = max(-(-len(structures) // columns), 1)
    figure = Figure(figsize=(1.9 * columns, 1.9 * 1.2 * rows))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    axis.set_aspect("equal")
    axis.set_xlim(0.0, columns)
    axis.set_ylim(-1.2 * rows, 0.0)
    for k, (structure, verdict, name) in enumerate(zip(structures, verdicts, ids, strict=True)):
        across, down = k % columns + 0.5, -1.2 * (k // columns) - 0.5
        _draw(axis, structure, (across, down))
        told = [f"{name}  {formula(structure)}"] + ([] if verdict.valid else textwrap.wrap(verdict.reason, 38)[:2])
        axis.text(across, down - 0.47, "\n".join(told), fontsize=6, ha="center", va="top",
                  color="black" if verdict.valid else _BAD)
    return figure


def grid_png(structures: Sequence[Structure], verdicts: Sequence[Verdict], ids: Sequence[str]) -> bytes:
    """A grid of cells as PNG bytes, name and formula under each; invalid ones bear their reason."""
    return png(_figure(structures, verdicts, ids))


def described(structures: Sequence[Structure]) -> dict[str, NDArray]:
    """What the histograms show, by the words under them."""
    return {"density (g/cm^3)": np.array([density(s) for s in structures]),
            "volume per atom (A^3)": np.array([s.volume / len(s) for s in structures]),
            "atoms per cell": np.array([float(len(s)) for s in structures]),
            "elements per crystal": np.array([float(len(composition(s))) for s in structures])}


def histograms_svg(structures: Sequence[Structure], reference: Any = None) -> str:
    """Distributions of valid crystals; a reference's, where its `described` has them under the same names, in grey."""
    import matplotlib
    from matplotlib.figure import Figure

    own, known = described(structures), getattr(reference, "described", None) or {}
    with matplotlib.rc_context({"svg.hashsalt": "scidiff", "font.size": 9}):
        figure = Figure(figsize=(10.5, 2.6), layout="constrained")
        for axis, (name, values) in zip(figure.subplots(1, len(own)), own.items(), strict=True):
            other = np.asarray(known[name], dtype=np.float64) if name in known else None
            both = values if other is None else np.concatenate([values, other])
            edges = _bins(both, counted=name.endswith(("cell", "crystal")))
            if other is not None:
                axis.hist(other, edges, density=True, color=_PAPER, label=str(getattr(reference, "title", "reference")))
            axis.hist(values, edges, density=True, histtype="step", color=_INK, linewidth=1.5,
                      label=f"samples ({len(values)})")
            axis.set_xlabel(name)
            axis.set_yticks([])
            axis.spines[["right", "top", "left"]].set_visible(False)
        figure.axes[0].legend(frameon=False, fontsize=7)
        return svg(figure)


def _bins(values: NDArray, counted: bool) -> NDArray:
    if counted:
        return np.arange(values.min() - 0.5, values.max() + 1.5)
    low, high = np.percentile(values, (0.5, 99.5))
    return np.linspace(low - 1e-3, max(high, low + 1e-3) + 1e-3, 33)


def pictures(structures: Sequence[Structure], verdicts: Sequence[Verdict], ids: Sequence[str],
             reference: Any = None) -> dict[str, str | bytes]:
    """Caption -> picture: the first samples as they came, the invalid ones with reasons, and distributions."""
    out = of_samples(structures, verdicts, ids, grid_png)
    good = [s for s, v in zip(structures, verdicts, strict=True) if v.valid]
    if good:
        caption = "Distributions of the valid samples"
        out[caption + ("" if reference is None else " beside the reference")] = histograms_svg(good, reference)
    return out
