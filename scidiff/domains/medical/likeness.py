"""How alike two sets of slices are, without pairing any of them.

    histogram    h of the values of all pixels that are not air, in bins of width w over [0, 1.25] of the range;
                 distance = sum_k |H_a(k) - H_b(k)| w with cumulative H: the Wasserstein-1 distance of the values
    spectrum     p(k) = mean over slices of the log power of the Hann-windowed slice in rings of |wavenumber| k;
                 distance = root mean square of 10 log10 differences over k = 1 ... S / 2, in dB
    air          the share of pixels that are air; distance = |difference|

All are sums over slices, so resampled slices give intervals. The floor of a distance is what one subject of the
training data has to the other ones: no sample need come closer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scidiff.core.statistics import Estimate, bootstrap
from scidiff.domains.medical.codec import LEAST

BINS, TOP = 100, 1.25
EMPTY = 1e-8  # power below which a ring counts as empty, in squares of the range
NAMES = ("intensity distance", "spectrum distance", "air difference")


def rows(x: Tensor, least: float = LEAST) -> Tensor:
    """What is summed over slices x [B, S, S] in the range of the prior: [B, BINS + 1 + S // 2] float64.

    Counts of values in bins, of pixels of air, both as shares of the slice, and the log10 power of every ring.
    """
    flat = x.detach().double().flatten(1)
    body = flat > least
    place = (flat / TOP * BINS).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(flat), BINS, dtype=torch.float64).scatter_add_(1, place, body.double())
    return torch.cat([counts / flat.shape[1], (~body).double().mean(1, keepdim=True), spectrum(x)], 1)


def spectrum(x: Tensor) -> Tensor:
    """log10 of the power of slices [B, S, S] in rings 1 ... S // 2 of wavenumbers, float64 [B, S // 2]."""
    size = x.shape[-1]
    window = torch.hann_window(size, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2(x.detach().double() * window[:, None] * window, norm="ortho").abs().square()
    k = torch.fft.fftfreq(size, 1.0 / size).double()
    ring = (k[:, None].square() + k.square()).sqrt().round().long().flatten()
    total = torch.zeros(len(x), size, dtype=torch.float64).index_add_(1, ring, power.flatten(1))
    number = torch.zeros(size, dtype=torch.float64).index_add_(0, ring, torch.ones_like(ring, dtype=torch.float64))
    rings = slice(1, size // 2 + 1)
    return (total[:, rings] / number[rings]).clamp(min=EMPTY).log10()


@dataclass(frozen=True)
class Portrait:
    """A set of slices in these figures: the shares of values [BINS] among pixels that are not air, the share of air,
    the mean log10 power of every ring."""

    values: Tensor
    air: float
    spectrum: Tensor

    @classmethod
    def of(cls, found: Tensor) -> Portrait:
        """From `rows`."""
        mean = found.double().mean(0)
        return cls(mean[:BINS] / mean[:BINS].sum().clamp(min=1e-12), float(mean[BINS]), mean[BINS + 1 :])

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Portrait:
        return cls(torch.tensor(stored["values"], dtype=torch.float64), float(stored["air"]),
                   torch.tensor(stored["spectrum"], dtype=torch.float64))

    def to_json(self) -> dict[str, Any]:
        return {"values": [round(v, 6) for v in self.values.tolist()], "air": round(self.air, 6),
                "spectrum": [round(v, 4) for v in self.spectrum.tolist()]}

    def distance(self, other: Portrait) -> tuple[float, float, float]:
        """Intensity (in shares of the range), spectrum (dB) and air."""
        apart = (self.values - other.values).cumsum(0).abs().sum() * (TOP / BINS)
        ratio = 10.0 * (self.spectrum - other.spectrum)
        return float(apart), float(ratio.square().mean().sqrt()), abs(self.air - other.air)


def floors(found: Tensor, owners: Sequence[str]) -> list[float] | None:
    """The mean distance of one subject's slices from those of the others; None where there is one subject only."""
    names = sorted(set(owners))
    if len(names) < 2:
        return None
    mine = [torch.tensor([owner == name for owner in owners]) for name in names]
    each = [Portrait.of(found[m]).distance(Portrait.of(found[~m])) for m in mine]
    return [round(sum(d[i] for d in each) / len(each), 6) for i in range(len(NAMES))]


def compare(found: Tensor, reference: Portrait, seed: int = 0, draws: int = 200) -> list[Estimate]:
    """The distances of slices (their `rows`) from a portrait, with intervals over resampled slices."""
    def one(i: int) -> Estimate:
        return bootstrap(lambda picked: Portrait.of(picked).distance(reference)[i], found, draws, seed)

    return [one(i) if len(found) > 1 else _alone(found, reference, i) for i in range(len(NAMES))]


def _alone(found: Tensor, reference: Portrait, i: int) -> Estimate:
    value = Portrait.of(found).distance(reference)[i]
    return Estimate(value, -math.inf, math.inf)
