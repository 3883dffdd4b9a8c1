"""Verdicts on slices, their figures beside those of the training slices, and their row of samples.csv.

A slice is sound where every value is finite, no more than a thousandth of the pixels leaves the range of the training
data by more than `BEYOND` of the width of the modality's range, it is not constant, and it holds more than air.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from scidiff.core.statistics import wilson
from scidiff.domains.base import Metric, Verdict
from scidiff.domains.medical import likeness
from scidiff.domains.medical.codec import LEAST
from scidiff.domains.medical.intensity import Scale, quantiles
from scidiff.domains.medical.volume import Volume

if TYPE_CHECKING:
    from scidiff.domains.medical import MedicalDomain

BEYOND, FEW = 0.1, 0.001
PROTOCOLS = (
    "Wasserstein-1 distance of the values of pixels that are not air, pooled over slices, in units of the range",
    "RMS difference of the mean log power of Hann-windowed slices over rings of wavenumbers, in dB",
    "difference of the share of pixels that are air",
)
UNITS = ("", "dB", "")


def verdict(one: Volume, scale: Scale, lowest: float = 0.0, highest: float = 1.0) -> Verdict:
    """lowest, highest: of the training data, in the range of the prior."""
    if not bool(torch.isfinite(one.data).all()):
        return Verdict(False, f"{int((~torch.isfinite(one.data)).sum())} values are not finite")
    low, high = quantiles(one.data, (FEW, 1.0 - FEW))
    first, last = scale.decode(torch.tensor([lowest - BEYOND, highest + BEYOND])).tolist()
    unit = " HU" if scale.unit == "HU" else ""
    if low < first or high > last:
        return Verdict(False, f"values from {low:.4g} to {high:.4g}{unit} leave the range {first:.4g} to "
                              f"{last:.4g}{unit} of the training data")
    if float(one.data.max() - one.data.min()) < 1e-3 * scale.width:
        return Verdict(False, f"the value is {float(one.data.mean()):.4g}{unit} everywhere")
    x = (one.data - scale.low) / scale.width
    if quantiles(x, (1.0 - FEW,))[0] < LEAST:
        return Verdict(False, "it holds air only")
    return Verdict(True)


def figures(objects: Sequence[Volume], verdicts: Sequence[Verdict], domain: MedicalDomain,
            seed: int = 0) -> list[Metric]:
    """Share of sound slices, and the distances of all finite ones from the training slices with their floors."""
    good, total = sum(v.valid for v in verdicts), len(verdicts)
    out = []
    if total:
        share = wilson(good, total)
        out.append(Metric("valid", share.value, (share.low, share.high), protocol="finite, in range, not constant, not "
                          "air alone", count=total, better="higher"))
    finite = [o for o in objects if bool(torch.isfinite(o.data).all())]
    if domain.portrait is None or not finite:
        why = "no training slices are known" if domain.portrait is None else "no slice is finite"
        return [*out, *(Metric(name, None, note=why) for name in likeness.NAMES)]
    reference = likeness.Portrait.from_json(domain.portrait)
    planes = torch.cat([domain.intensity.encode(o.data)[:, 0] for o in finite])
    if planes.shape[-1] // 2 != len(reference.spectrum):
        return [*out, *(Metric(name, None, note=f"the training slices have {2 * len(reference.spectrum)} pixels a side")
                        for name in likeness.NAMES)]
    found = likeness.compare(likeness.rows(planes), reference, seed)
    for i, (name, estimate) in enumerate(zip(likeness.NAMES, found, strict=True)):
        floor = domain.floors[i] if domain.floors else None
        interval = (estimate.low, estimate.high) if len(planes) > 1 else None
        out.append(Metric(name, estimate.value, interval, floor, PROTOCOLS[i], "training slices", len(planes),
                          unit=UNITS[i], note="floor: one training subject against the others" if floor else ""))
    return out


def row(one: Volume, scale: Scale) -> dict[str, Any]:
    """Columns of samples.csv."""
    unit = "_HU" if scale.unit == "HU" else ""
    x = (one.data - scale.low) / scale.width
    z, _, pixel = one.spacing
    return {"slices": len(one.data), "pixel_mm": round(pixel, 4), "slice_mm": round(z, 4), "contrast": one.contrast,
            f"mean{unit}": round(float(one.data.mean()), 3), f"lowest{unit}": round(float(one.data.min()), 3),
            f"highest{unit}": round(float(one.data.max()), 3),
            "body_share": round(float((x > LEAST).float().mean()), 4)}
