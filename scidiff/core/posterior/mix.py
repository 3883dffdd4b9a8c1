"""The step that most data-consistency methods share: a clean estimate, mixed with old and with fresh noise.

    x_s = alpha_s D + c_s mu + sigma_s ( sqrt(1 - eta^2) E + eta xi )

D and E are what the prediction holds: a wrapper that keeps its noise estimate keeps the E of the network beside a
corrected D. Other than in DDIM, eta is a share of sigma_s itself. With `flow` eta^2 = 1 - u_s, where u = rho/(1 + rho)
is the time of the straight path with the same ratio rho of noise to signal (Kim et al. 2025, arXiv 2503.08136).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, closing, ends, gaussian, integrated
from scidiff.core.solvers.grid import Grid, PowerGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class Mix:
    """eta = 0: DDIM; eta = 1: all noise is fresh."""

    eta: float = 0.85
    flow: bool = False
    last: str = "data"
    order: int = 1

    def __post_init__(self) -> None:
        ends(self.last)
        if not 0.0 <= self.eta <= 1.0:
            raise UsageError(f"The share eta of fresh noise lies in [0, 1], unlike {self.eta}.")

    def default_grid(self) -> Grid:
        return PowerGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "A mixing solver")
        out: list[list[Part]] = []
        for t, s in integrated(times, self.last):
            then = path.coefficients(s)
            eta = math.sqrt(then.alpha / (then.alpha + then.sigma)) if self.flow else self.eta
            kept = then.sigma * math.sqrt(max(1.0 - eta * eta, 0.0))
            clean = Row(name, "affine", "data", a=0.0, b=(then.alpha,), on=(0,), m=then.c, t=t, s=s)
            noise = Row(name, "affine", "noise", a=1.0, b=(kept,), on=(0,), c=then.sigma * eta, tag="mix", t=t, s=s)
            out.append([Part(t, (clean, noise))])
        return [*out, *closing(name, times, self.last)]
