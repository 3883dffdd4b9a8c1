"""Ramachandran plots, one panel for each class of residue."""

from __future__ import annotations

import io
from collections.abc import Sequence

from scidiff.domains.base import Verdict
from scidiff_ramachandran.basins import BASINS, CLASSES, Residue


def pictures(objects: Sequence[Residue], verdicts: Sequence[Verdict]) -> dict[str, str | bytes]:
    """One PNG: allowed pairs as dots, outliers as crosses, centres of the basins as rings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(CLASSES), sharey=True), CLASSES, strict=True):
        for valid, style in ((True, {"marker": ".", "color": "#33608c"}), (False, {"marker": "x", "color": "#c0392b"})):
            chosen = [r for r, v in zip(objects, verdicts, strict=True) if r.kind == kind and v.valid == valid]
            axes.scatter([r.phi for r in chosen], [r.psi for r in chosen], s=12, linewidths=0.8, **style)
        axes.scatter([b.phi for b in BASINS[kind]], [b.psi for b in BASINS[kind]], s=90, facecolors="none",
                     edgecolors="#888888")
        axes.set(xlim=(-180, 180), ylim=(-180, 180), xlabel="phi [degrees]", title=kind, aspect="equal",
                 xticks=(-180, 0, 180), yticks=(-180, 0, 180))
    figure.axes[0].set_ylabel("psi [degrees]")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return {"Torsion angles by class of residue": buffer.getvalue()}
