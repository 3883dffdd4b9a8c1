"""Ancestral sampling of Gaussian paths: DDIM, DDPM and what lies between, as affine rows.

    x_s = alpha_s D + c_s mu + k (x_t - alpha_t D - c_t mu) / sigma_t + sqrt(sigma_s^2 - k^2) xi,   0 <= k <= sigma_s

k = sigma_s is DDIM (Song et al. 2021, arXiv 2010.02502); eta = 1 takes the posterior of the path itself: Ornstein-
Uhlenbeck (Ho et al. 2020, arXiv 2006.11239) or residual shift. eta scales the standard deviation of the fresh noise.
`gain` multiplies the fresh noise alone and leaves k as it is: the marginals are then no longer the path's, which is
what the calibration of an ensemble's spread asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, closing, ends, gaussian, integrated
from scidiff.core.solvers.grid import Grid, LambdaGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class Ancestral:
    """eta = 0: DDIM (order 1); eta = 1: DDPM. form: which prediction the rows use, "auto" as in the exponential
    solver."""

    eta: float = 0.0
    form: str = "auto"
    last: str = "stop"
    order: int = 1
    gain: float = 1.0

    def __post_init__(self) -> None:
        ends(self.last)
        if self.form not in ("auto", "noise", "data"):
            raise UsageError(f"The form of an ancestral solver is 'auto', 'noise' or 'data', not {self.form!r}.")
        if not 0.0 <= self.eta <= 1.0:
            raise UsageError(f"The eta of an ancestral solver lies in [0, 1], unlike {self.eta}.")
        if not (math.isfinite(self.gain) and self.gain >= 0.0):
            raise UsageError(f"The gain of the noise is a number from 0 on, unlike {self.gain}.")

    def default_grid(self) -> Grid:
        return LambdaGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "An ancestral solver")
        noise = component.space.wraps or (self.form != "data" and component.path.levels is None)
        out: list[list[Part]] = []
        for t, s in integrated(times, self.last):
            now, then = path.coefficients(t), path.coefficients(s)
            fresh = self.eta * path.fresh_noise(t, s) if self.eta > 0.0 else 0.0
            keep = math.sqrt(max(then.sigma * then.sigma - fresh * fresh, 0.0))
            if noise:
                a, b = then.alpha / now.alpha, keep - now.sigma * then.alpha / now.alpha
            else:
                a, b = keep / now.sigma, then.alpha - now.alpha * keep / now.sigma
            row = Row(name, "affine", "noise" if noise else "data", a=a, b=(b,), on=(0,), m=then.c - a * now.c,
                      c=self.gain * fresh, t=t, s=s)
            out.append([Part(t, (row,))])
        return [*out, *closing(name, times, self.last)]
