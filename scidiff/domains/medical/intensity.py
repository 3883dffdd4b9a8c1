"""Values of a scan and the range of a prior: x = (v - low) / (high - low), and back.

    CT         v in HU, cut to [-1000, 1000] (air to bone), or to 3071 where dense bone and metal matter; x in [0, 1]
    magnitude  v in scanner units, low 0, high the 99.9th percentile of the foreground of that volume; not cut

A prior remembers how far the 1 % and 99 % quantiles of its training volumes reached. A scan whose own quantiles leave
that range by more than a fifth of its width, or that fills less than a twentieth of it, is refused with the numbers: a
raw CT stored without its rescale intercept, or an image already scaled to [0, 1], would else give a picture that looks
like a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from scidiff.core.errors import UsageError, nearest

OUTSIDE = 0.2  # of the trained range's width that a scan's quantiles may lie outside of it
FILLED = 0.05  # of the trained range's width that a scan fills at least
MOST = 1 << 24  # values looked at for a quantile; larger volumes are thinned evenly


@dataclass(frozen=True)
class Scale:
    """A linear map of values onto the range of a prior; `clip` cuts values to [low, high] first.

    floor: values below it are not measured (scanners fill the outside of the round field of view with -2000 or -3024
    HU); quantiles take them for the floor.
    """

    low: float
    high: float
    unit: str = ""
    clip: bool = False
    floor: float | None = None

    def __post_init__(self) -> None:
        if not self.high > self.low:
            raise UsageError(f"A range of values ends above where it begins, unlike {self.low:g} to {self.high:g}.")

    @property
    def width(self) -> float:
        return self.high - self.low

    def encode(self, v: Tensor) -> Tensor:
        """Values as the prior knows them."""
        if v.is_complex() and (self.clip or self.low != 0.0):
            raise UsageError("Complex values have no lower end to start from.", "Take the magnitude first.")
        return ((v.clamp(self.low, self.high) if self.clip else v) - self.low) / self.width

    def decode(self, x: Tensor) -> Tensor:
        """Values of the scan; differences, such as a standard deviation, are multiplied by `width` instead."""
        return x * self.width + self.low

    def lost(self, v: Tensor) -> float:
        """The share of values above `high`, which `encode` cuts."""
        return float((v > self.high).double().mean()) if self.clip else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


CT = Scale(-1000.0, 1000.0, "HU", clip=True, floor=-1024.0)
CT_WIDE = Scale(-1000.0, 3071.0, "HU", clip=True, floor=-1024.0)
SCALES = {"ct": CT, "ct_wide": CT_WIDE}


def quantiles(v: Tensor, at: tuple[float, ...], floor: float | None = None) -> tuple[float, ...]:
    """Quantiles of real values (of the magnitude where they are complex)."""
    values = (v.abs() if v.is_complex() else v).detach().cpu().numpy().ravel()
    values = values[:: -(-len(values) // MOST)]
    if floor is not None:
        values = np.maximum(values, floor)
    return tuple(float(q) for q in np.quantile(values, at))


def foreground(v: Tensor) -> Tensor:
    """Magnitudes above a tenth of the 99.9th percentile: a head without the air around it."""
    magnitude = v.abs() if v.is_complex() else v
    return magnitude[magnitude > 0.1 * quantiles(magnitude, (0.999,))[0]]


def magnitude_scale(v: Tensor, percentile: float = 99.9) -> Scale:
    """The scale of one MR volume: zero to a percentile of its foreground."""
    inside = foreground(v)
    if not len(inside) or not (top := quantiles(inside, (percentile / 100,))[0]) > 0:
        raise UsageError("The volume has no positive values, so it is no magnitude image.",
                         "Is it a phase image, or scaled to mean zero?")
    return Scale(0.0, top, "of the 99.9th percentile")


def scale_for(volume_data: Tensor, modality: str, name: str = "ct") -> Scale:
    """The scale of a volume: that of `name` ("ct" or "ct_wide") for CT, its own for everything else."""
    if modality != "CT":
        return magnitude_scale(volume_data)
    if name not in SCALES:
        raise UsageError(f"There is no range {name!r} of CT values.", nearest(name, SCALES))
    return SCALES[name]


# -- the range that a prior knows


@dataclass(frozen=True)
class Known:
    """The lowest 1 % and the highest 99 % quantile of the volumes that a prior was trained on, in its own range (x)."""

    low: float
    high: float

    @classmethod
    def of(cls, volumes: Iterable[Tensor]) -> Known:
        """From the training volumes, scaled: the widest range among them, since subjects and scanners differ."""
        low, high = zip(*(quantiles(x, (0.01, 0.99)) for x in volumes), strict=True)
        return cls(min(low), max(high))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Known:
        return cls(float(stored["low"]), float(stored["high"]))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def check_range(v: Tensor, scale: Scale, known: Known, name: str, force: bool = False) -> str:
    """"" where values v (as in the file, not scaled) lie in the range that a prior knows; else UsageError with numbers.

    With `force` the sentence is returned instead, to be printed beside the results.
    """
    low, high = quantiles(v, (0.01, 0.99), scale.floor)
    first, last = (known.low * scale.width + scale.low, known.high * scale.width + scale.low)
    width = last - first
    outside = max(first - low, high - last, 0.0)
    told = f"98 % of the values of {name} lie between {low:.4g} and {high:.4g}{_unit(scale)}"
    if outside > OUTSIDE * width:
        why = (f"{told}, but those that the prior was trained on between {first:.4g} and {last:.4g}: {outside:.4g} "
               "outside, more than a fifth of that range.")
    elif high - low < FILLED * width:
        why = (f"{told} and fill less than a twentieth of the range from {first:.4g} to {last:.4g} that the prior was "
               "trained on.")
    else:
        return ""
    if force:
        return f"{why} The prior was made to work outside of what it knows; trust the picture accordingly."
    raise UsageError(why, "Check the units (CT must be in HU); --force reconstructs all the same.")


def _unit(scale: Scale) -> str:
    return f" {scale.unit}" if scale.unit == "HU" else ""

