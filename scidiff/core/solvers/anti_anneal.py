"""Velocity anti-annealing: flows that hurry towards the data,  dx/dt = (1 + slope (1 - t)) v.

The factor is 1 at the source and 1 + slope at the data (t = 0). The end of the path is no longer a draw of the model's
law but nearer to what it predicts: single structures become more accurate and a set less varied. slope 5 is usual for
crystals; choose it on validation data. Source: Luo et al. 2025 (CrystalFlow), arXiv 2412.11693; the idea is that of
Bose et al. 2024, arXiv 2310.02391.

On straight paths (flow matching) the data prediction is x - t v, so an Euler step with factor above t / (t - s) passes
it. `capped` stops there: near t = 0 steps then return the prediction itself instead of swinging around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.core.solvers.fixed import Part, closing, integrated
from scidiff.core.solvers.runge_kutta import TABLEAUS, RungeKutta, tangent_row, velocity_only

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class AntiAnnealed(RungeKutta):
    """Any scheme of Runge and Kutta for the hurried velocity; `capped` for scheme euler."""

    slope: float = 5.0
    capped: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slope < 0.0:
            raise UsageError(f"The slope of anti-annealing is a number from 0 on, unlike {self.slope}.")
        if self.capped and self.scheme != "euler":
            raise UsageError("Capped anti-annealing is defined for Euler's scheme.", "Use scheme=euler.")

    def factor(self, t: float, width: float) -> float:
        """What the velocity at t is multiplied with in a step of length -width."""
        hurried = 1.0 + self.slope * (1.0 - t)
        return min(hurried, max(t / -width, 1.0)) if self.capped else hurried

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        velocity_only(component, "Anti-annealing")
        tableau = TABLEAUS[self.scheme]
        out: list[list[Part]] = []
        for t, s in integrated(times, self.last):
            width, stages = s - t, []
            factors = [self.factor(t + c * width, width) for c in tableau.c]
            for c, row in zip(tableau.c, [*tableau.a, tableau.b], strict=True):
                moves = [width * f * v for f, v in zip(factors, row, strict=False)]
                stages.append(Part(t + c * width, (tangent_row(name, moves, t, s),)))
            out.append(stages)
        return [*out, *closing(name, times, self.last)]
