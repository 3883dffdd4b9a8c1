"""Methods for categories: mixture velocity, closed-form rates, Bayes posterior.

With m(t) the share of entries that follow the source law, a step t -> s leaves with probability a = 1 - m(s)/m(t).
Re-noising of strength eta: after the jump a share r = min(1/2, eta (t - s) m(s), m(s)) of the entries is redrawn from
the source law. The jump itself must then reach a smaller mass, m' = (m(s) - r)/(1 - r), so that m(s) is exactly what is
left: a = 1 - m'/m(t). Raising a by eta (t - s) instead overshoots by terms of the order of the step.

At a finite number of steps, entries that jump together are drawn independently, and the chain drifts towards what is
common. A `temperature` slightly above 1 (logits divided by it) works against that; choose it on training data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from scidiff.core.errors import UsageError
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part
from scidiff.core.solvers.grid import Grid, PowerGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class Chain(ABC):
    """One stage a step; `last` says how the chain ends: with the most probable classes ("mode") or a "sample"."""

    order: ClassVar[int] = 1
    _: KW_ONLY
    last: str = "mode"

    def __post_init__(self) -> None:
        if self.last not in ("mode", "sample"):
            raise UsageError(f"The last step of a categorical solver is 'mode' or 'sample', not {self.last!r}.")

    def default_grid(self) -> Grid:
        return PowerGrid(2.0)

    def accept(self, component: Component) -> None:
        """Raises UsageError where the component does not move categories."""
        if not component.space.categorical:
            raise UsageError(f"The {type(self).__name__.lower()} solver moves categories, not "
                             f"{type(component.path).__name__}.",
                             "Name a method for this component under solver.methods.")

    @abstractmethod
    def row(self, name: str, path: Any, t: float, s: float) -> Row:
        """The update from t to s > 0."""

    def end(self, name: str, component: Component, t: float) -> Row:
        """The update from t to 0."""
        return Row(name, "mode", t=t) if self.last == "mode" else Row(name, "jump", a=1.0, t=t)

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        self.accept(component)
        return [[Part(t, (self.row(name, component.path, t, s) if s > 0 else self.end(name, component, t),))]
                for t, s in pairwise(times)]


@dataclass(frozen=True)
class Mixture(Chain):
    """Leave with probability a, then redraw from the prediction; the default for discrete flows."""

    eta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or self.eta < 0:
            raise UsageError("The mixture solver needs a temperature above 0 and eta of at least 0.")

    def row(self, name: str, path: Any, t: float, s: float) -> Row:
        goal = path.mass(s)
        share = min(0.5, self.eta * (t - s) * goal, goal)
        sharpness = () if self.temperature == 1 else (1 / self.temperature,)
        return Row(name, "jump", a=1 - (goal - share) / (1 - share) / path.mass(t), b=sharpness, c=share, t=t, s=s)


@dataclass(frozen=True)
class Rate(Chain):
    """Continuous-time jumps with the closed-form rate; eta adds balanced jumps, omega pulls towards the prediction."""

    eta: float = 0.0
    omega: float = 0.0

    def row(self, name: str, path: Any, t: float, s: float) -> Row:
        return Row(name, "rate", a=t - s, b=(self.eta, self.omega), t=t, s=s)


@dataclass(frozen=True)
class Posterior(Chain):
    """Ancestral sampling with the exact Bayes kernel (D3PM, DiGress); every path accepts it. eta is for Gaussian
    paths."""

    eta: float = 1.0
    _: KW_ONLY
    last: str = "sample"

    def default_grid(self) -> Grid:
        return PowerGrid(1.0)

    def accept(self, component: Component) -> None:
        """Every path has a posterior."""

    def row(self, name: str, path: Any, t: float, s: float) -> Row:
        return Row(name, "posterior", a=self.eta, t=t, s=s)

    def end(self, name: str, component: Component, t: float) -> Row:
        mode = self.last == "mode" and component.space.categorical
        return Row(name, "mode", t=t) if mode else self.row(name, component.path, t, 0.0)
