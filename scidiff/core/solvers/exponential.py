"""Exponential multistep solvers: the linear part of a Gaussian path exactly, the prediction by a polynomial in lambda.

A step t -> s raises lambda by h. With nodes u_j = lambda_j - lambda_t of past predictions, D = data, E = noise:

    data   x_s = (sigma_s/sigma_t) e^{-eta h} x_t + alpha_s sum_j b_j D_j + sigma_s sqrt(1 - e^{-2 eta h}) xi
           sum_j b_j u_j^k = int_0^h kappa e^{-kappa (h - u)} u^k du,   kappa = 1 + eta
    noise  x_s = (alpha_s/alpha_t) x_t - sigma_s sum_j b_j E_j,   sum_j b_j u_j^k = int_0^h e^{h - u} u^k du

(x less its centre.) The data form is DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) and, with eta > 0, its SDE; the noise
form DPM-Solver (arXiv 2206.00927) and, where alpha = 1, a pure tangent increment, hence right on tori. `corrector`
repeats the step just made with the prediction at its end among the nodes (UniPC, Zhao et al. 2023, arXiv 2302.04867),
here with exact moments. It costs no network call and, both formulas being linear, no operation either: correction and
next prediction are one row. `variant="dpmpp"` is the published second-order multistep rule (data form, M_1 -> h M_0 / 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import UsageError, nearest
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, clean_row, gaussian
from scidiff.core.solvers.grid import Grid, LambdaGrid
from scidiff.core.solvers.moments import exponential_moments, weights

if TYPE_CHECKING:
    from scidiff.core.spec import Component

FORMS = ("auto", "noise", "data")


@dataclass(frozen=True)
class Exponential:
    """The default solver of Gaussian paths.

    order: nodes of the predictor, 1 to 4 (warm-up 1, 2, ...). corrector: nodes of the corrector, 0 for none, "auto" for
    one more than the predictor. form: "auto" is data with eta > 0 and on given levels, else noise. final_order: an upper
    bound on the order of the last step. last: "stop" at the end of the grid, or "data" to return the data prediction there.
    """

    order: int = 2
    form: str = "auto"
    corrector: int | str = "auto"
    eta: float = 0.0
    variant: str = "exact"
    final_order: int | None = None
    last: str = "stop"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"An exponential solver has no form {self.form!r}.", nearest(self.form, FORMS))
        if self.variant not in ("exact", "dpmpp"):
            raise UsageError(f"The variant of an exponential solver is 'exact' or 'dpmpp', not {self.variant!r}.")
        if not 1 <= self.order <= 4 or self.eta < 0.0:
            raise UsageError("An exponential solver needs an order from 1 to 4 and eta >= 0.")
        if self.variant == "dpmpp" and (self.order != 2 or self.form == "noise" or self.corrector not in (0, "auto")):
            raise UsageError("The variant 'dpmpp' is a second-order rule in data form without a corrector.")
        if self.eta > 0.0 and self.form == "noise":
            raise UsageError("A stochastic exponential solver works in data form.", "Use form=data.")

    def default_grid(self) -> Grid:
        return LambdaGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "An exponential solver")
        noise = not self._data_form(component)
        form, depth = ("noise" if noise else "data"), self._nodes_of_corrector(component)
        k = [path.coefficients(t) for t in times]
        out: list[list[Part]] = []
        before: tuple[float, tuple[float, ...], list[float]] | None = None
        steps = len(times) - 1
        for i in range(steps):
            t, s = times[i], times[i + 1]
            if i == steps - 1 and self.last == "data":
                out.append([Part(t, (clean_row(name, t, s),))])
                break
            now, then = k[i], k[i + 1]
            h = then.lam - now.lam
            order = self.order if i < steps - 1 or self.final_order is None else self.final_order
            lams = [v.lam for v in k[max(0, i - order + 1):i + 1]][::-1]
            nodes = [(v - now.lam) / h for v in lams if math.isfinite(v) or v == now.lam] if math.isfinite(h) else [0.0]
            a, gain, b = self._rule(noise, now, then, h, nodes)
            fresh = then.sigma * math.sqrt(-math.expm1(-2.0 * self.eta * h)) if self.eta > 0.0 else 0.0
            total = [gain * w for w in b]
            if before is not None and depth and math.isfinite(h):
                gain_before, b_before, fix = before
                correction = [gain_before * (c - p) for c, p in zip(fix, [0.0, *b_before, *[0.0] * len(fix)], strict=False)]
                total = [x + a * y for x, y in _padded(total, correction)]
            row = Row(name, "affine", form, a=a, b=tuple(total), on=tuple(range(len(total))), m=then.c - a * now.c, c=fresh,
                      t=t, s=s)
            out.append([Part(t, (row,))])
            before = self._correction(noise, k, i, h, depth, gain, b) if depth and math.isfinite(h) else None
        return out

    def _data_form(self, component: Component) -> bool:
        data = self.form == "data" or self.eta > 0.0 or self.variant == "dpmpp"
        if component.space.wraps:
            if data:
                raise UsageError("On a torus an exponential solver works in noise form without eta.")
            return False
        return data or (self.form == "auto" and component.path.levels is not None)

    def _nodes_of_corrector(self, component: Component) -> int:
        if self.corrector == "auto":
            return 0 if self.variant == "dpmpp" or component.path.levels is not None else self.order + 1
        return int(self.corrector)

    def _rule(self, noise: bool, now: Any, then: Any, h: float, nodes: list[float]) -> tuple[float, float, tuple[float, ...]]:
        """Factor of x, common factor of the weights, and the weights."""
        if noise:
            return then.alpha / now.alpha, -then.sigma, weights(nodes, exponential_moments(len(nodes), h, h))
        kappa = 1.0 + self.eta
        a = then.sigma / now.sigma * (math.exp(-self.eta * h) if self.eta > 0.0 else 1.0)
        if not math.isfinite(h):
            return a, then.alpha, (1.0,)
        moments = exponential_moments(len(nodes), -kappa * h, kappa * h)
        if self.variant == "dpmpp" and len(nodes) > 1:
            moments[1] = 0.5 * moments[0]
        return a, then.alpha, weights(nodes, moments)

    def _correction(self, noise: bool, k: list[Any], i: int, h: float, depth: int, gain: float,
                    b: tuple[float, ...]) -> tuple[float, tuple[float, ...], list[float]]:
        """What the next row needs to repeat step i with the prediction at its end, newest node first."""
        lams = [v.lam for v in k[max(0, i - depth + 2):i + 2]][::-1]
        nodes = [(v - k[i].lam) / h for v in lams if math.isfinite(v)]
        return gain, b, list(self._rule(noise, k[i], k[i + 1], h, nodes)[2])


def _padded(x: list[float], y: list[float]) -> list[tuple[float, float]]:
    n = max(len(x), len(y))
    return list(zip([*x, *[0.0] * (n - len(x))], [*y, *[0.0] * (n - len(y))], strict=True))
