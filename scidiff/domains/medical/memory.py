"""What a reconstruction will take of the memory, said before it is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from scidiff.core.errors import UsageError
from scidiff.domains.medical.volume import Volume

SHARE = 0.8  # of the free memory that may be filled
COPIES = 3  # of a measurement that live at once


def free() -> int | None:
    """Bytes that can be had, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def afford(wanted: float, what: str, remedy: str = "Reconstruct fewer slices with reading.cut=[first,last].") -> None:
    """UsageError where something would take more memory than there is."""
    room = free()
    if room is not None and wanted > SHARE * room:
        raise UsageError(f"{what} would take {wanted / 1e9:,.3g} GB of memory, and {room / 1e9:,.3g} GB are free.",
                         remedy)


def afford_measurement(operator: Mapping[str, Any], volume: Volume) -> None:
    """UsageError where the views (spokes, coils) of an operator's config ask for more memory than there is."""
    listed = operator.get("angles")
    count = len(listed) if isinstance(listed, (list, tuple)) else operator.get("views") or operator.get("spokes") or 0
    if isinstance(count, bool) or not isinstance(count, (int, float)) or count < 1:
        return
    height, width = volume.size
    cells = math.ceil(math.hypot(height, width)) * (len(volume.data) if operator.get("size") == "volume" else 1)
    slices = 1 if operator.get("size") == "volume" else len(volume.data)
    noun = "spokes" if operator.get("spokes") else "views"
    afford(4.0 * COPIES * count * cells * slices, f"{int(count):,} {noun} of {len(volume.data)} slices of {height} x "
           f"{width} pixels", f"Take fewer {noun}, or fewer slices with reading.cut=[first,last].")
