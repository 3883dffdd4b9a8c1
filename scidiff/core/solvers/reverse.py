"""Reverse-time SDEs on the discrete levels of the forward process, as score-based models of graphs use them.

With n steps of length h = t_start / n, levels tau_k = t_start (1 - k / (n - 1)) and the score s at the grid's t_k:

    reverse  variance preserving  x <- (2 - sqrt(1 - b)) x + b s + sqrt(b) xi,   b = -2 f(tau_k) h   (ancestral)
             variance exploding   x <- x + G^2 s + G xi,                         G^2 = sigma(tau_k)^2 - sigma(tau_k+1)^2
             others               as euler
    euler    x <- x - h (f x - g^2 s) + g sqrt(h) xi,                            f, g at t_k

f = alpha'/alpha; the level after the last is 0. The last step returns its mean. Source: Song et al. 2021, arXiv
2011.13456, appendices E and F; Jo, Lee & Hwang 2022, arXiv 2202.02514.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from scidiff.core.errors import UsageError
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, gaussian
from scidiff.core.solvers.grid import Grid, PowerGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component

RULES = ("reverse", "euler")


def preserving(path: GaussianPath) -> bool:
    """Whether alpha^2 + sigma^2 = 1 at all times."""
    k = path.coefficients(0.5 * (path.t_min + path.t_max))
    return abs(k.alpha**2 + k.sigma**2 - 1.0) < 1e-12


def without_centre(component: Component, who: str) -> GaussianPath:
    """The component's path, or UsageError where it is not Gaussian or has a centre."""
    path = gaussian(component, who)
    if path.centred:
        raise UsageError(f"{who} has no rule for paths with a centre.", "Use the solver ddpm.")
    return path


def levels(times: Sequence[float]) -> tuple[float, list[float]]:
    """(h, tau_0 > ... > tau_n-1) of a grid whose steps are alike but for the last; UsageError for other grids."""
    count, start = len(times) - 1, times[0]
    gaps = [a - b for a, b in pairwise(times[:-1])]
    if gaps and max(gaps) - min(gaps) > 1e-6 / count:
        raise UsageError("The discretised reverse process has steps of one length.", "Leave solver.grid out.")
    return start / count, [start * (1.0 - k / max(count - 1, 1)) for k in range(count)]


def corrector_factors(path: GaussianPath, times: Sequence[float]) -> list[float]:
    """What multiplies the size of a Langevin step at each level: 1 + 2 f(tau) h, which is 1 - beta on VP paths."""
    h, tau = levels(times)
    factors = [1.0 + 2.0 * h * path.coefficients(t).drift for t in tau]
    if min(factors) <= 0.0:
        raise UsageError(f"{len(tau)} steps are too few for this schedule: its signal is lost within one of them.",
                         "Take more steps, or solver=euler_maruyama.")
    return factors


@dataclass(frozen=True)
class Reverse:
    """rule: "reverse" or "euler". Made for grids uniform in t (`Fixed.t_end` above 0)."""

    rule: str = "reverse"
    order: int = 1
    last: ClassVar[str] = "data"  # the grid ends with an evaluation at t_end, whose step returns its mean

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"A discretised reverse process is 'reverse' or 'euler', not {self.rule!r}.")

    def default_grid(self) -> Grid:
        return PowerGrid()

    def corrector_factors(self, path: GaussianPath, times: Sequence[float]) -> list[float]:
        """Factors of the corrector steps that go with this predictor."""
        return corrector_factors(path, times)

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = without_centre(component, "A discretised reverse process")
        h, tau = levels(times)
        ancestral = self.rule == "reverse" and preserving(path)
        beta, out = [1.0 - f for f in corrector_factors(path, times)] if ancestral else [], []
        for k, (t, s) in enumerate(pairwise(times)):
            here, below = path.coefficients(tau[k]), tau[k + 1] if k + 1 < len(tau) else None
            if beta:
                a, g2 = 2.0 - math.sqrt(1.0 - beta[k]), beta[k]
            elif self.rule == "reverse" and here.dalpha == 0.0:
                a, g2 = 1.0, here.sigma**2 - (0.0 if below is None else path.coefficients(below).sigma ** 2)
            else:
                now = path.coefficients(t)
                a, g2 = 1.0 - h * now.drift, h * now.g2
            c = 0.0 if below is None else math.sqrt(g2)
            out.append([Part(t, (Row(name, "affine", "score", a=a, b=(g2,), on=(0,), c=c, t=t, s=s),))])
        return out
