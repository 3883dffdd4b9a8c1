"""What the pictures of samples have in common: which samples are drawn, under which caption, and how figures are saved.

Nothing here draws: a domain gives its own drawing of a grid, and figures come as they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from scidiff.domains.base import Verdict

DRAWN = 24
"""Samples in the first picture."""
INVALID = 12

Grid = Callable[[Sequence[Any], Sequence[Verdict], Sequence[str]], str | bytes]


def of_samples(objects: Sequence[Any], verdicts: Sequence[Verdict], ids: Sequence[str],
               grid: Grid) -> dict[str, str | bytes]:
    """Caption -> picture: the first samples as they came and, where not all are seen, invalid ones with reasons."""
    out: dict[str, str | bytes] = {}
    if not objects:
        return out
    first, shown = slice(0, DRAWN), min(len(objects), DRAWN)
    caption = f"The first {shown} samples, as drawn" if shown > 1 else "The sample"
    out[caption] = grid(objects[first], verdicts[first], ids[first])
    bad = [i for i, v in enumerate(verdicts) if not v.valid]
    if bad and len(objects) > DRAWN:
        some = bad[:INVALID]
        out[f"Invalid samples ({len(some)} of {len(bad)}) and why"] = grid(
            [objects[i] for i in some], [verdicts[i] for i in some], [ids[i] for i in some])
    return out


def png(figure: Any, dpi: int = 110) -> bytes:
    """A figure of matplotlib as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def svg(figure: Any) -> str:
    """A figure of matplotlib as an SVG element; equal figures give equal text under one hash salt."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg"):]
