"""Exponential multistep solvers: the linear part of a Gaussian path exactly, the prediction by a polynomial in lambda.

A step t -> s raises lambda by h. With nodes u_j = lambda_j - lambda_t of past predictions, D = data, E = noise:

    data   x_s = (sigma_s/sigma_t) e^{-eta h} x_t + alpha_s sum_j b_j D_j + sigma_s sqrt(1 - e^{-2 eta h}) xi
           sum_j b_j u_j^k = int_0^h kappa e^{-kappa (h - u)} u^k du,   kappa = 1 + eta
    noise  x_s = (alpha_s/alpha_t) x_t - sigma_s sum_j b_j E_j,   sum_j b_j u_j^k = int_0^h e^{h - u} u^k du

(x less its centre.) The data form is DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) and, with eta > 0, its SDE;
the noise form DPM-Solver (arXiv 2206.00927) and, where alpha = 1, a pure tangent increment, hence right on tori.
`corrector` repeats the step just made with the prediction at its end among the nodes (UniPC, Zhao et al. 2023,
arXiv 2302.04867), here with exact moments. It costs no network call and, both formulas being linear, no operation
either: correction and next prediction are one row. `variant="dpmpp"` is the published second-order multistep rule
(data form, M_1 -> h M_0 / 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import UsageError, nearest
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, clean_row, ends, gaussian
from scidiff.core.solvers.grid import Grid, LambdaGrid
from scidiff.core.solvers.moments import exponential_moments, weights

if TYPE_CHECKING:
    from scidiff.core.spec import Component

FORMS = ("auto", "noise", "data")


@dataclass(frozen=True)
class Exponential:
    """The default solver of Gaussian paths.

    order: at most so many predictions in the predictor, 1 to 4. reach: only those no further back than this in lambda,
    so that few large steps use a low order and many small ones a high order (a polynomial through points far apart
    extrapolates badly). corrector: how many more the corrector uses, 0 for no corrector. form: "auto" is data with
    eta > 0 and on given levels, else noise. final_order: an upper bound on the order of the last step. last: "stop"
    at the end of the grid, or "data" to return the data prediction there. variant="dpmpp" fixes order 2, no
    corrector, no reach.
    """

    order: int = 4
    corrector: int = 2
    reach: float = 1.5
    form: str = "auto"
    eta: float = 0.0
    variant: str = "exact"
    final_order: int | None = None
    last: str = "stop"

    def __post_init__(self) -> None:
        ends(self.last)
        if self.form not in FORMS:
            raise UsageError(f"An exponential solver has no form {self.form!r}.", nearest(self.form, FORMS))
        if self.variant not in ("exact", "dpmpp"):
            raise UsageError(f"The variant of an exponential solver is 'exact' or 'dpmpp', not {self.variant!r}.")
        if not 1 <= self.order <= 4 or self.eta < 0.0 or self.corrector < 0:
            raise UsageError("An exponential solver needs an order from 1 to 4, eta >= 0 and corrector >= 0.")
        if self.form == "noise" and (self.eta > 0.0 or self.variant == "dpmpp"):
            raise UsageError("A stochastic exponential solver, like the variant 'dpmpp', works in data form.",
                             "Use form=data.")

    def default_grid(self) -> Grid:
        return LambdaGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "An exponential solver")
        noise = not self._data_form(component)
        published = self.variant == "dpmpp"
        order, extra = (2, 0) if published else (self.order, 0 if path.levels is not None else self.corrector)
        reach = math.inf if published else self.reach
        k = [path.coefficients(t) for t in times]
        steps = len(times) - 1
        out: list[list[Part]] = []
        correction: list[float] = []
        for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
            final = i == steps - 1
            if final and self.last == "data":
                out.append([Part(t, (clean_row(name, t, s),))])
                break
            now, then = k[i], k[i + 1]
            most = min(order, self.final_order) if final and self.final_order is not None else order
            past = _past(k, i, most, reach)
            a, gain, b = self._rule(noise, now, then, past)
            used = _plus([gain * w for w in b], [a * w for w in correction])
            h = then.lam - now.lam
            fresh = then.sigma * math.sqrt(-math.expm1(-2.0 * self.eta * h)) if self.eta > 0.0 else 0.0
            row = Row(name, "affine", "noise" if noise else "data", a=a, b=tuple(used), on=tuple(range(len(used))),
                      m=then.c - a * now.c, c=fresh, t=t, s=s)
            out.append([Part(t, (row,))])
            correction = []
            if extra and math.isfinite(h):
                fixed = self._rule(noise, now, then, [then.lam, *_past(k, i, len(past) + extra - 1, math.inf)])[2]
                correction = [gain * w for w in _plus(list(fixed), [0.0, *(-w for w in b)])]
        return out

    def _data_form(self, component: Component) -> bool:
        data = self.form == "data" or self.eta > 0.0 or self.variant == "dpmpp"
        if component.space.wraps and data:
            raise UsageError("On a torus an exponential solver works in noise form without eta.")
        return data or (self.form == "auto" and component.path.levels is not None)

    def _rule(self, noise: bool, now: Any, then: Any, lams: Sequence[float]) -> tuple[float, float, tuple[float, ...]]:
        """Factor of x, common factor of the weights, and the weights of the predictions at `lams`."""
        h = then.lam - now.lam
        kappa = 1.0 + self.eta
        if noise:
            a, gain = then.alpha / now.alpha, -then.sigma
        else:
            a, gain = then.sigma / now.sigma * (math.exp(-self.eta * h) if self.eta > 0.0 else 1.0), then.alpha
        if not math.isfinite(h):
            return a, gain, (1.0,)
        rate, length = (h, h) if noise else (-kappa * h, kappa * h)
        moments = exponential_moments(len(lams), rate, length)
        if self.variant == "dpmpp" and len(lams) > 1:
            moments[1] = 0.5 * moments[0]
        return a, gain, weights([(v - now.lam) / h for v in lams], moments)


def _past(k: Sequence[Any], i: int, count: int, reach: float) -> list[float]:
    """lambda now and of earlier stages, newest first: at most `count`, none further than `reach` or at pure noise."""
    here = k[i].lam
    return [here] + [v.lam for v in k[max(0, i - count + 1):i][::-1] if math.isfinite(v.lam) and here - v.lam <= reach]


def _plus(x: list[float], y: list[float]) -> list[float]:
    return [a + b for a, b in zip_longest(x, y, fillvalue=0.0)]
