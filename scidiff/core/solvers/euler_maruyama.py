"""Reverse-time SDEs in t: Euler-Maruyama and a stochastic Heun method.

    backward, step delta = t - s:   x_s = x_t - delta (v - w score) + sqrt(2 w delta) xi

has the path's marginals for every w(t) >= 0; w = 0 is the probability flow. One-sided paths take w = eta g^2 / 2, so
that eta = 1 is the reverse SDE of Song et al. 2021 (arXiv 2011.13456); two-sided bridges w = eta gamma^2, which
vanishes at both ends (Albergo et al. 2023, arXiv 2303.08797). The Heun corrector replaces the drift by the mean of
the drifts at both ends of the step, with the same noise (weak order 2 in the drift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import UsageError
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, closing, ends, integrated
from scidiff.core.solvers.grid import Grid, NaturalGrid
from scidiff.core.solvers.runge_kutta import velocity_only

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class EulerMaruyama:
    """eta scales the diffusion; heun=True takes two network calls a step."""

    eta: float = 1.0
    heun: bool = False
    last: str = "stop"
    order: int = 1

    def __post_init__(self) -> None:
        ends(self.last)
        if self.eta < 0.0:
            raise UsageError("The eta of a stochastic solver must not be negative.")

    def default_grid(self) -> Grid:
        return NaturalGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        velocity_only(component, "The Euler-Maruyama solver")
        out: list[list[Part]] = []
        for t, s in integrated(times, self.last):
            step, w = t - s, self._diffusion(component.path, t)
            noise = math.sqrt(2.0 * w * step)
            if isinstance(component.path, GaussianPath) and not self.heun:
                stages = [Part(t, (self._drift_row(name, component.path, t, s, w, noise),))]
            else:
                stages = [Part(t, self._two_rows(name, t, s, (-step,), (step * w,), noise))]
            if self.heun:
                there = self._diffusion(component.path, s)
                stages.append(Part(s, self._two_rows(name, t, s, (-0.5 * step, 0.5 * step),
                                                     (0.5 * step * there, -0.5 * step * w), 0.0)))
            out.append(stages)
        return [*out, *closing(name, times, self.last)]

    def _diffusion(self, path: Any, t: float) -> float:
        k = path.coefficients(t)
        return self.eta * (0.5 * k.g2 if isinstance(path, GaussianPath) else k.gamma**2)

    def _drift_row(self, name: str, path: GaussianPath, t: float, s: float, w: float, noise: float) -> Row:
        """Velocity and score of a one-sided path together, as one multiple of E."""
        k, step = path.coefficients(t), t - s
        gain = step * (k.delta / k.alpha - w / k.sigma)
        return Row(name, "affine", "noise", a=1.0 - step * k.drift, b=(gain,), on=(0,),
                   m=step * (k.drift * k.c - k.dc), c=noise, t=t, s=s)

    def _two_rows(self, name: str, t: float, s: float, velocity: tuple[float, ...], score: tuple[float, ...],
                  noise: float) -> tuple[Row, ...]:
        on = tuple(range(len(velocity)))
        rows = [Row(name, "affine", "velocity", b=velocity, on=on, t=t, s=s)]
        if self.eta > 0.0:
            rows.append(Row(name, "affine", "score", b=score, on=on, c=noise, t=t, s=s))
        return tuple(rows)
