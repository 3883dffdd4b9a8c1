"""Pictures of molecules: grids with the reason under invalid ones, and property histograms beside the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.domains.base import Verdict
from scidiff.domains.molecule import chemistry
from scidiff.domains.molecule.reference import Reference, describe
from scidiff.domains.pictures import of_samples, svg

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_PANEL = (220, 190)
_COLUMNS = 6
_INK, _PAPER = "#1f5a8a", "#b9b9b9"


def _legend(name: str, verdict: Verdict, parts: int) -> str:
    if not verdict.valid:
        return f"{name}: {verdict.reason}"
    return name if parts == 1 else f"{name}: {parts} parts"


def _draw(canvas: Any, molecules: Sequence[Mol], verdicts: Sequence[Verdict], ids: Sequence[str]) -> Any:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDepictor

    drawn = []
    with rdBase.BlockLogs():
        for mol in molecules:
            copy = chemistry.finished(mol)
            rdDepictor.Compute2DCoords(copy)
            if not chemistry.noted_problem(copy):
                Chem.Kekulize(copy, clearAromaticFlags=True)
            drawn.append(copy)
        options = canvas.drawOptions()
        options.prepareMolsBeforeDrawing = False
        options.legendFontSize = 15
        options.clearBackground = True
        canvas.DrawMolecules(
            drawn,
            legends=[_legend(i, v, chemistry.fragments(m)) for i, v, m in zip(ids, verdicts, molecules, strict=True)],
        )
    canvas.FinishDrawing()
    return canvas.GetDrawingText()


def _canvas(kind: str, count: int) -> Any:
    from rdkit.Chem.Draw import rdMolDraw2D

    columns = max(min(count, _COLUMNS), 1)
    rows = (count + columns - 1) // columns
    make = rdMolDraw2D.MolDraw2DSVG if kind == "svg" else rdMolDraw2D.MolDraw2DCairo
    return make(columns * _PANEL[0], rows * _PANEL[1], *_PANEL)


def grid_svg(molecules: Sequence[Mol], verdicts: Sequence[Verdict], ids: Sequence[str]) -> str:
    """A grid of structure drawings as SVG text without an XML header; invalid ones bear their reason."""
    text = _draw(_canvas("svg", len(molecules)), molecules, verdicts, ids)
    return text[text.index("<svg") :]


def grid_png(molecules: Sequence[Mol], verdicts: Sequence[Verdict], ids: Sequence[str]) -> bytes:
    """The same grid as PNG bytes."""
    return _draw(_canvas("png", len(molecules)), molecules, verdicts, ids)


def histograms_svg(molecules: Sequence[Mol], reference: Reference | None = None) -> str:
    """Densities of logP, QED, molecular weight and size of valid molecules, with the reference in grey."""
    import matplotlib
    from matplotlib.figure import Figure

    described = describe(molecules)
    with matplotlib.rc_context({"svg.hashsalt": "scidiff", "font.size": 9}):
        figure = Figure(figsize=(10.5, 2.6), layout="constrained")
        axes = figure.subplots(1, len(described))
        for axis, (name, values) in zip(axes, described.items(), strict=True):
            known = None if reference is None else reference.quantiles[name]
            both = values if known is None else np.concatenate([values, known])
            edges = _edges(name, both)
            if known is not None:
                axis.hist(known, edges, density=True, color=_PAPER, label=reference.title)
            axis.hist(
                np.clip(values, edges[0], edges[-1]),
                edges,
                density=True,
                histtype="step",
                color=_INK,
                linewidth=1.6,
                label=f"samples ({len(values)})",
            )
            unit = chemistry.PROPERTIES[name]
            axis.set_xlabel(name if unit == "1" else f"{name} / ({unit})")
            axis.set_yticks([])
            axis.spines[["left", "right", "top"]].set_visible(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
        return svg(figure)


def _edges(name: str, values: np.ndarray) -> np.ndarray:
    if name == "heavy atoms":
        return np.arange(np.floor(values.min()) - 0.5, np.ceil(values.max()) + 1.5)
    low, high = np.quantile(values, [0.002, 0.998])
    return np.linspace(low, high if high > low else low + 1.0, 41)


def pictures(
    molecules: Sequence[Mol], verdicts: Sequence[Verdict], ids: Sequence[str], reference: Reference | None = None
) -> dict[str, str | bytes]:
    """Caption -> SVG: the first samples as they came, the invalid ones with reasons, and the histograms."""
    out = of_samples(molecules, verdicts, ids, grid_svg)
    good = [m for m, v in zip(molecules, verdicts, strict=True) if v.valid]
    if len(good) > 1:
        out["Properties of the valid samples" + ("" if reference is None else " beside the reference")] = (
            histograms_svg(good, reference)
        )
    return out
