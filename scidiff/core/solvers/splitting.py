"""Symmetric splitting of the reverse SDE (S4): one network call a step, the linear part solved exactly.

The reverse operator is split into its linear part F (drift and noise) and its score part S. A step of length h at t:

    x <- Langevin step with the score s(x, t)
    x <- F over (t, t - h/2);     x <- x + h g(t)^2 s;     x <- F over (t - h/2, t - h)

all with one s. F over (t, r): x <- (alpha_r / alpha_t) x + sqrt(v) xi with the variance that the linear reverse SDE
gathers on the way,

    exact      v = alpha_r^2 (rho_t^2 - rho_r^2),  rho = sigma / alpha      VP: e^{-2c} - 1,  VE: sigma_t^2 - sigma_r^2
    published  v = alpha_t^2 (rho_t^2 - rho_r^2)                            VP: 1 - e^{2c},   VE: the same

where e^{-c} = alpha_r / alpha_t; both agree to first order in h. h = t_start / n for n steps. The last step looks
beyond t = 0, where VP and VE schedules are continued as they are, and returns the mean of its second F.
Source: Jo, Lee & Hwang 2022, arXiv 2202.02514, section 3.3 and appendix B.
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
from scidiff.core.solvers.fixed import Part
from scidiff.core.solvers.grid import Grid, PowerGrid
from scidiff.core.solvers.reverse import corrector_factors, levels, preserving, without_centre

if TYPE_CHECKING:
    from scidiff.core.spec import Component


def linear(path: GaussianPath, t: float, r: float, exact: bool) -> tuple[float, float]:
    """Factor of the mean and standard deviation of F from t to r < t; r may lie a little below 0."""
    now, then = path.coefficients(t), path.coefficients(r)
    gap = _rho2(path, t) - _rho2(path, r)
    return then.alpha / now.alpha, (then.alpha if exact else now.alpha) * math.sqrt(max(gap, 0.0))


def _rho2(path: GaussianPath, t: float) -> float:
    """(sigma / alpha)^2; 1 / alpha^2 - 1 goes on smoothly where sigma does not exist any more."""
    k = path.coefficients(t)
    return 1.0 / k.alpha**2 - 1.0 if preserving(path) else (max(k.sigma, 0.0) / k.alpha) ** 2


@dataclass(frozen=True)
class Splitting:
    """snr, scale, batch_norms: the Langevin step, as in the predictor-corrector solver; snr = 0 leaves it out.

    exact: the exact variance of F instead of the published one. Made for grids uniform in t.
    """

    snr: float = 0.15
    scale: float = 1.0
    batch_norms: bool = False
    exact: bool = False
    order: int = 1
    last: ClassVar[str] = "data"  # the grid ends with an evaluation at t_end, whose step returns its mean

    def __post_init__(self) -> None:
        if not (self.snr >= 0.0 and self.scale >= 0.0):
            raise UsageError("The snr and the scale of a splitting solver must not be negative.")

    def default_grid(self) -> Grid:
        return PowerGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = without_centre(component, "A splitting solver")
        h, _ = levels(times)
        factors = corrector_factors(path, times) if self.snr > 0.0 else []
        norms, out = "batch" if self.batch_norms else "sample", []
        for k, (t, s) in enumerate(pairwise(times)):
            middle, end = t - 0.5 * h, t - h
            first, noise = linear(path, t, middle, self.exact)
            second, more = linear(path, middle, end, self.exact)
            rows = (
                Row(name, "affine", "score", a=first, b=(h * path.coefficients(t).g2,), on=(0,), c=noise, tag="half",
                    t=t, s=s),
                Row(name, a=second, c=more if k + 2 < len(times) else 0.0, t=t, s=s),
            )
            if factors:
                rows = (Row(name, "langevin", norms, a=self.snr, b=(factors[k],), c=self.scale, tag="langevin", t=t,
                            s=t), *rows)
            out.append([Part(t, rows)])
        return out
