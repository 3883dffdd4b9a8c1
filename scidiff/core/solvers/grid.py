"""Time grids: t_start = t_0 > t_1 > ... > t_N = t_end, as Python floats.

`path` is the path of the component that the grid is made for (the first Gaussian one of a joint state).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from scidiff.core.errors import UsageError
from scidiff.core.path.base import Path
from scidiff.core.path.gaussian import GaussianPath


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
    """Uniform in half log-SNR lambda, the default of Gaussian paths; uniform in t where there is no lambda.

    With u = i / N and both numbers in [0, 0.5], `middle` moves all points towards the data by middle u (1 - u) and
    `ends` lengthens the first and last steps by 1 + ends: lambda = low + (high - low) (u + middle u (1 - u) + ends
    sin(2 pi u) / 2 pi).
    """

    middle: float = 0.0
    ends: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.middle <= 0.5 and 0.0 <= self.ends <= 0.5):
            raise UsageError("The numbers of a grid uniform in lambda lie between 0 and 0.5.")

    def __call__(self, path: Path, steps: int, t_start: float, t_end: float) -> list[float]:
        if not isinstance(path, GaussianPath):
            return PowerGrid()(path, steps, t_start, t_end)
        g: Any = path
        low, high = g.coefficients(t_start).lam, g.coefficients(t_end).lam
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UsageError(
                "A grid uniform in lambda needs finite log-SNR at both ends.", "Use solver/grid: PowerGrid."
            )
        lams = [low + (high - low) * self._share(i / steps) for i in range(steps + 1)]
        return _spaced([float(g.t_of_lambda(v)) for v in lams], t_start, t_end)

    def _share(self, u: float) -> float:
        return u + self.middle * u * (1.0 - u) + self.ends * math.sin(2.0 * math.pi * u) / (2.0 * math.pi)


@dataclass(frozen=True)
class NaturalGrid:
    """Uniform in t for flows and bridges (paths whose networks predict a velocity), uniform in lambda for the
    others."""

    def __call__(self, path: Path, steps: int, t_start: float, t_end: float) -> list[float]:
        straight = not isinstance(path, GaussianPath) or path.default_kind == "velocity"
        return (PowerGrid() if straight else LambdaGrid())(path, steps, t_start, t_end)


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
