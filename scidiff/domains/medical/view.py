"""Pictures of slices in grey, as a radiologist expects them: the patient's right on the left, the front on top.

CT is shown twice, over the whole range of the prior and in the soft-tissue window (level 40 HU, width 400 HU); MR from
zero to the 99.9th percentile. Every sheet says its window and unit in a bar beside it.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np

from scidiff.domains.base import Verdict
from scidiff.domains.medical.intensity import Scale
from scidiff.domains.medical.volume import Volume

COLUMNS, MOST = 8, 24
SOFT = (-160.0, 240.0)  # HU
_EDGE, _BAD = 1.25, "#b04a2f"


def windows(scale: Scale) -> dict[str, tuple[float, float]]:
    """Caption -> (darkest, brightest) value."""
    if scale.unit == "HU":
        whole = f"Whole range, {scale.low:g} to {scale.high:g} HU"
        return {whole: (scale.low, scale.high), "Soft tissue, -160 to 240 HU": SOFT}
    return {"Zero to the 99.9th percentile": (scale.low, scale.high)}


def shown(one: Volume) -> np.ndarray:
    """The middle slice as it is hung: rows downwards, the patient's right on the left."""
    return np.flip(one.data[len(one.data) // 2, 0].numpy(), (0, 1))


def sheets(objects: Sequence[Volume], verdicts: Sequence[Verdict], ids: Sequence[str],
           scale: Scale) -> dict[str, str | bytes]:
    """Caption -> PNG: the first slices side by side in every window; the reason stands under those that are unsound."""
    import matplotlib
    from matplotlib.figure import Figure

    chosen = list(zip(objects, verdicts, ids, strict=True))[:MOST]
    if not chosen:
        return {}
    columns = min(COLUMNS, len(chosen))
    lines = -(-len(chosen) // columns)
    out: dict[str, str | bytes] = {}
    with matplotlib.rc_context({"font.size": 7}):
        for caption, (dark, bright) in windows(scale).items():
            figure = Figure(figsize=(_EDGE * columns + 0.9, 1.2 * _EDGE * lines + 0.1), dpi=110, layout="constrained")
            panels = figure.subplots(lines, columns, squeeze=False)
            image = None
            for panel in panels.flat:
                panel.set_axis_off()
            for panel, (one, verdict, name) in zip(panels.flat, chosen, strict=False):
                _, y, x = one.spacing
                image = panel.imshow(np.nan_to_num(shown(one), nan=dark), cmap="gray", vmin=dark, vmax=bright,
                                     aspect=y / x, interpolation="nearest")
                reason = "" if verdict.valid else "\n" + "\n".join(textwrap.wrap(verdict.reason, 26)[:2])
                panel.set_title(f"{name}{reason}", fontsize=6, pad=2, color="black" if verdict.valid else _BAD)
            if image is not None:
                figure.colorbar(image, ax=panels, shrink=0.7, label=scale.unit, aspect=30)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": "scidiff"})
            out[caption] = buffer.getvalue()
    return out
