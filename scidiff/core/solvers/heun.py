"""Heun's second-order method of EDM, in y = x / alpha with rho = sigma / alpha as the clock: dy / d rho = E.

Churn first raises the noise of a step to rho_hat = rho (1 + gamma), gamma = min(churn / N, sqrt(2) - 1) inside
[churn_min, churn_max] (in units of rho); the fresh noise is scaled by churn_noise. Two network calls a step.
Source: Karras et al. 2022, algorithm 2, arXiv 2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, closing, ends, gaussian, integrated
from scidiff.core.solvers.grid import Grid, LambdaGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class Heun:
    """churn = 0 is the deterministic method."""

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.003
    last: str = "stop"
    order: int = 2

    def __post_init__(self) -> None:
        ends(self.last)
        if self.churn < 0.0 or self.churn_noise < 0.0:
            raise UsageError("The churn of a Heun solver must not be negative.")

    def default_grid(self) -> Grid:
        return LambdaGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "A Heun solver")
        if path.levels is not None:
            raise UsageError("A Heun solver needs times between the levels of a path.", "Use solver=posterior.")
        out: list[list[Part]] = []
        steps = len(times) - 1
        for t, s in integrated(times, self.last):
            high, stages = self._churned(path, name, t, steps)
            now, then = path.coefficients(high), path.coefficients(s)
            a, width = then.alpha / now.alpha, then.alpha * (then.rho - now.rho)
            m = then.c - a * now.c
            first = Row(name, "affine", "noise", "start", a, (width,), (0,), m, t=high, s=s)
            second = Row(name, "affine", "noise", "start", a, (0.5 * width, 0.5 * width), (0, 1), m, t=high, s=s)
            out.append([*stages, Part(high, (first,)), Part(s, (second,))])
        return [*out, *closing(name, times, self.last)]

    def _churned(self, path: GaussianPath, name: str, t: float, steps: int) -> tuple[float, list[Part]]:
        """The time after churning, and the stage that goes there (without a row where nothing is churned)."""
        if self.churn == 0.0:
            return t, []
        now = path.coefficients(t)
        gamma = min(self.churn / steps, math.sqrt(2.0) - 1.0) if self.churn_min <= now.rho <= self.churn_max else 0.0
        high = path.t_of_lambda(-math.log(now.rho * (1.0 + gamma))) if gamma > 0.0 else t
        if high <= t or high > path.bounds[1]:
            return t, [Part(t, (), evaluate=False)]
        then = path.coefficients(high)
        a = then.alpha / now.alpha
        fresh = math.sqrt(then.sigma**2 - (a * now.sigma) ** 2) * self.churn_noise
        row = Row(name, "affine", a=a, m=then.c - a * now.c, c=fresh, tag="churn", keep=True, t=t, s=high)
        return high, [Part(t, (row,), evaluate=False)]
