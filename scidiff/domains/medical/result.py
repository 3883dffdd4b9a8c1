"""A finished reconstruction: mean, spread and intervals of its samples, its rivals, and what it knows of itself.

All volumes are [Z, 1, Y, X] on the grid of the scan, in the range x of the prior; `Scene.scale` leads to the values of
the file. Moments are gathered sample by sample (Welford); quantiles come from all samples, slab by slab, where these
fit into `QUANTILES` bytes, else from a normal law of the same mean and spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from scidiff.domains.base import Metric
from scidiff.domains.medical.sampled import Archive, sample_part, stacked
from scidiff.domains.medical.scene import Scene
from scidiff.domains.medical.streaming import CHUNK, slabs
from scidiff.domains.medical.uncertainty import Welford, quantile_maps, scaled_interval
from scidiff.domains.medical.volume import Volume

LEVELS = (0.05, 0.95)
NORMAL = 1.6448536269514722  # of the 95 % quantile
QUANTILES = 4_000_000_000


@dataclass(eq=False)
class Reconstruction:
    """method: in a word. std, low, high: of two samples or more; the interval is 90 % of them, widened by `conformal`
    (factor, task that it was fitted on). rivals: name -> volume. invented: the part of the mean that the measurement
    does not see, and `share` of its energy. prior: of the model card. notes: sentences for whoever looks at it.
    """

    scene: Scene
    method: str
    count: int
    archive: Archive
    mean: Tensor
    std: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    conformal: tuple[float, str] = (1.0, "")
    rivals: dict[str, Tensor] = field(default_factory=dict)
    invented: Tensor | None = None
    share: float | None = None
    learned: bool = True
    nfe: int = 0
    seconds: float | None = None
    expected: str = ""
    prior: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: dict[int, list[Metric]] = field(default_factory=dict, repr=False)

    def sample(self, i: int) -> Tensor:
        return self.archive.get(sample_part(i))

    def volume(self, x: Tensor, name: str | None = None) -> Volume:
        """x in the values of the file, at the voxels of the scan."""
        return self.scene.volume.like(self.scene.values(x), name)

    def width(self, x: Tensor, name: str | None = None) -> Volume:
        """A difference or spread in the unit of the file."""
        return self.scene.volume.like(x * self.scene.scale.width, name)


class Drawn(Sequence[Volume]):
    """The samples of a reconstruction as volumes, each made when it is looked at."""

    def __init__(self, found: Reconstruction) -> None:
        self._found = found

    def __len__(self) -> int:
        return self._found.count

    @overload
    def __getitem__(self, i: int) -> Volume: ...
    @overload
    def __getitem__(self, i: slice) -> list[Volume]: ...
    def __getitem__(self, i: int | slice) -> Volume | list[Volume]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._found.volume(self._found.sample(i % len(self)), f"sample {i % len(self)}")

    def __iter__(self) -> Iterator[Volume]:
        return (self[i] for i in range(len(self)))


def gathered(samples: Iterator[tuple[int, Tensor]]) -> Welford:
    """The moments of samples as they come."""
    moments = Welford()
    for _, x in samples:
        moments.add(x)
    return moments


def interval(archive: Archive, moments: Welford, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """The 90 % interval of the samples, `factor` times as wide about its centre: (low, high) float32."""
    count, mean = moments.count, moments.mean
    if count * mean.nelement() * 4 > QUANTILES:
        half = NORMAL * moments.std
        low, high = mean - half, mean + half
    else:
        parts = [quantile_maps(stacked(archive, count, a, b), LEVELS) for a, b in slabs(len(mean), CHUNK)]
        both = torch.cat([p.movedim(0, 1) for p in parts])
        low, high = both[:, 0], both[:, 1]
    low, high = scaled_interval(low, high, factor)
    return low.float(), high.float()
