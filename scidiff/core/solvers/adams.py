"""Adams-Bashforth in rho = sigma / alpha (PLMS, LMS): y = x / alpha moves by dy / d rho = E.

    x_s = (alpha_s / alpha_t) x_t + alpha_s sum_j b_j E_j
    sum_j b_j (rho_j - rho_t)^k = (rho_s - rho_t)^{k+1} / (k + 1)

(x less its centre.) One network call a step; the order grows 1, 2, ... over the first steps. Source: Liu et al. 2022,
arXiv 2202.09778; exact for unequal steps as in the linear multistep sampler of Karras's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, closing, ends, gaussian, integrated
from scidiff.core.solvers.grid import Grid, LambdaGrid
from scidiff.core.solvers.moments import polynomial_moments, weights

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class Adams:
    """order 1 is DDIM; on tori every order moves along tangents."""

    order: int = 4
    last: str = "stop"

    def __post_init__(self) -> None:
        ends(self.last)
        if not 1 <= self.order <= 6:
            raise UsageError(f"An Adams solver has an order from 1 to 6, not {self.order}.")

    def default_grid(self) -> Grid:
        return LambdaGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "An Adams solver")
        if path.levels is not None:
            raise UsageError("An Adams solver cannot start from pure noise at a level.", "Use solver=posterior.")
        out: list[list[Part]] = []
        for i, (t, s) in enumerate(integrated(times, self.last)):
            now, then = path.coefficients(t), path.coefficients(s)
            a, width = then.alpha / now.alpha, then.rho - now.rho
            past = [path.coefficients(v).rho for v in times[max(0, i - self.order + 1):i + 1]][::-1]
            b = weights([(r - now.rho) / width for r in past], polynomial_moments(len(past)))
            row = Row(name, "affine", "noise", a=a, b=tuple(then.alpha * width * w for w in b), on=tuple(range(len(b))),
                      m=then.c - a * now.c, t=t, s=s)
            out.append([Part(t, (row,))])
        return [*out, *closing(name, times, self.last)]
