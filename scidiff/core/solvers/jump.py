"""Methods for categories: mixture velocity, closed-form rates, Bayes posterior.

With m(t) the share of entries that follow the source law, a step t -> s leaves with probability a = 1 - m(s)/m(t).
Re-noising of strength eta (graph.md 4.1, in the direction t = 0 data): after the step a share min(1/2, eta (t - s)
s) is redrawn from the source law, and the probability of leaving is raised by eta (t - s) to pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import UsageError
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part
from scidiff.core.solvers.grid import Grid, PowerGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component


def _categorical(component: Component, who: str) -> Any:
    """The component's path, or UsageError where it does not move categories."""
    if not component.space.categorical:
        raise UsageError(f"{who} moves categories, not {type(component.path).__name__}.",
                         "Name a method for this component under solver.methods.")
    return component.path


def _ends(last: str) -> None:
    if last not in ("mode", "sample"):
        raise UsageError(f"The last step of a categorical solver is 'mode' or 'sample', not {last!r}.")


@dataclass(frozen=True)
class Mixture:
    """Leave with probability a, then redraw from the prediction; the default for discrete flows. `last`: mode or
    sample."""

    eta: float = 0.0
    last: str = "mode"
    order: int = 1

    def __post_init__(self) -> None:
        _ends(self.last)

    def default_grid(self) -> Grid:
        return PowerGrid(2.0)

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = _categorical(component, "The mixture solver")
        out = []
        for t, s in zip(times, times[1:], strict=False):
            if s <= 0:
                row = Row(name, "mode", t=t, s=s) if self.last == "mode" else Row(name, "jump", a=1.0, t=t, s=s)
            else:
                goal = path.mass(s)
                share = min(0.5, self.eta * (t - s) * s, goal)
                row = Row(name, "jump", a=1 - (goal - share) / (1 - share) / path.mass(t), c=share, t=t, s=s)
            out.append([Part(t, (row,))])
        return out


@dataclass(frozen=True)
class Rate:
    """Continuous-time jumps with the closed-form rate; eta adds balanced jumps, omega pulls towards the prediction."""

    eta: float = 0.0
    omega: float = 0.0
    last: str = "mode"
    order: int = 1

    def __post_init__(self) -> None:
        _ends(self.last)

    def default_grid(self) -> Grid:
        return PowerGrid(2.0)

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        _categorical(component, "The rate solver")
        out = []
        for t, s in zip(times, times[1:], strict=False):
            if s <= 0:
                row = Row(name, "mode", t=t, s=s) if self.last == "mode" else Row(name, "jump", a=1.0, t=t, s=s)
            else:
                row = Row(name, "rate", a=t - s, b=(self.eta, self.omega), t=t, s=s)
            out.append([Part(t, (row,))])
        return out


@dataclass(frozen=True)
class Posterior:
    """Ancestral sampling with the exact Bayes kernel (D3PM, DiGress); every path accepts it. eta is for Gaussian
    paths."""

    eta: float = 1.0
    last: str = "sample"
    order: int = 1

    def __post_init__(self) -> None:
        _ends(self.last)

    def default_grid(self) -> Grid:
        return PowerGrid(1.0)

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        out = []
        for t, s in zip(times, times[1:], strict=False):
            mode = s <= 0 and self.last == "mode" and component.space.categorical
            out.append([Part(t, (Row(name, "mode" if mode else "posterior", a=self.eta, t=t, s=s),))])
        return out
