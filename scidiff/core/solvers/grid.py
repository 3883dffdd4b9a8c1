"""Time grids: t_start = t_0 > t_1 > ... > t_N = t_end, as Python floats.

`path` is the path of the component that the grid is made for (the first Gaussian one of a joint state).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from scidiff.core.errors import UsageError
from scidiff.core.path.base import Path


class Grid(Protocol):
    """N + 1 decreasing times."""

    def __call__(self, path: Path, steps: int, t_start: float, t_end: float) -> list[float]: ...


def _spaced(values: list[float], t_start: float, t_end: float) -> list[float]:
    return [t_start, *values[1:-1], t_end]


@dataclass(frozen=True)
class PowerGrid:
    """t = t_end + (t_start - t_end) (1 - u)^power: power 1 is uniform, 2 spends more steps near the data."""

    power: float = 1.0

    def __call__(self, path: Path, steps: int, t_start: float, t_end: float) -> list[float]:
        width = t_start - t_end
        return _spaced([t_end + width * (1 - i / steps) ** self.power for i in range(steps + 1)], t_start, t_end)


@dataclass(frozen=True)
class LambdaGrid:
    """Uniform in half log-SNR lambda, the default of Gaussian paths."""

    def __call__(self, path: Path, steps: int, t_start: float, t_end: float) -> list[float]:
        g: Any = path
        low, high = g.coefficients(t_start).lam, g.coefficients(t_end).lam
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UsageError("A grid uniform in lambda needs finite log-SNR at both ends.", "Use solver/grid: PowerGrid.")
        lams = [low + (high - low) * i / steps for i in range(steps + 1)]
        return _spaced([float(g.t_of_lambda(v)) for v in lams], t_start, t_end)


@dataclass(frozen=True)
class KarrasGrid:
    """sigma/alpha^(1/rho) uniform (Karras et al. 2022, arXiv 2206.00364), rho = 7 on the EDM path."""

    rho: float = 7.0

    def __call__(self, path: Path, steps: int, t_start: float, t_end: float) -> list[float]:
        g: Any = path
        first = math.exp(-g.coefficients(t_start).lam / self.rho)
        last = math.exp(-g.coefficients(t_end).lam / self.rho)
        roots = [first + (last - first) * i / steps for i in range(steps + 1)]
        return _spaced([float(g.t_of_lambda(-self.rho * math.log(r))) for r in roots], t_start, t_end)


@dataclass(frozen=True)
class GivenGrid:
    """Exactly these times (searched or tabulated); the number of steps must fit."""

    times: tuple[float, ...]

    def __call__(self, path: Path, steps: int, t_start: float, t_end: float) -> list[float]:
        times = [float(t) for t in self.times]
        if len(times) != steps + 1 or any(a <= b for a, b in zip(times, times[1:], strict=False)):
            raise UsageError(f"A given grid for {steps} steps needs {steps + 1} decreasing times.")
        return times
