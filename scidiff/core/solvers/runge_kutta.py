"""Explicit Runge-Kutta methods in velocity form, dx = v dt, on every space that can move along a tangent.

    x_i = x_t + (s - t) sum_{j < i} a_ij v_j,   v_j = v(x_j, t + c_j (s - t)),   x_s = x_t + (s - t) sum_j b_j v_j

Network calls a step: euler 1, midpoint 2, heun 2, rk4 4. Two-sided bridges and flow matching are solved this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scidiff.core.errors import UsageError, nearest
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part, closing, ends, integrated
from scidiff.core.solvers.grid import Grid, NaturalGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component


class Tableau(NamedTuple):
    """Butcher's tableau: the strictly lower rows of a, the weights b, the nodes c; `order` of the method."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int


TABLEAUS = {
    "euler": Tableau((), (1.0,), (0.0,), 1),
    "midpoint": Tableau(((0.5,),), (0.0, 1.0), (0.0, 0.5), 2),
    "heun": Tableau(((1.0,),), (0.5, 0.5), (0.0, 1.0), 2),
    "rk4": Tableau(((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0), 4),
}


def tangent_row(name: str, coefficients: Sequence[float], t: float, s: float, keep: bool = False) -> Row:
    """start + sum_j coefficients_j v_j with v_j the velocities of the step, oldest first."""
    newest = len(coefficients) - 1
    terms = [(b, newest - j) for j, b in enumerate(coefficients) if b != 0.0]
    return Row(
        name,
        "affine",
        "velocity",
        "start",
        1.0,
        tuple(b for b, _ in terms),
        tuple(k for _, k in terms),
        keep=keep,
        t=t,
        s=s,
    )


def velocity_only(component: Component, who: str) -> None:
    """UsageError where a component has no velocity."""
    if "velocity" not in component.path.kinds or component.path.levels is not None:
        raise UsageError(f"{who} needs a velocity, which {type(component.path).__name__} does not have.",
                         "Name a method for this component under solver.methods.")


@dataclass(frozen=True)
class RungeKutta:
    """scheme: euler, midpoint, heun or rk4."""

    scheme: str = "euler"
    last: str = "stop"

    def __post_init__(self) -> None:
        ends(self.last)
        if self.scheme not in TABLEAUS:
            raise UsageError(f"There is no Runge-Kutta scheme {self.scheme!r}.", nearest(self.scheme, TABLEAUS))

    @property
    def order(self) -> int:
        return TABLEAUS[self.scheme].order

    def default_grid(self) -> Grid:
        return NaturalGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        velocity_only(component, "A Runge-Kutta solver")
        tableau = TABLEAUS[self.scheme]
        out: list[list[Part]] = []
        for t, s in integrated(times, self.last):
            width, stages = s - t, []
            for c, row in zip(tableau.c, [*tableau.a, tableau.b], strict=True):
                stages.append(Part(t + c * width, (tangent_row(name, [width * v for v in row], t, s),)))
            out.append(stages)
        return [*out, *closing(name, times, self.last)]
