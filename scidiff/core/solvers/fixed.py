"""Fixed solvers: a method per component on one grid, compiled once to a plan of floats.

A `Method` turns one component's steps into stages; the driver joins the stages of all components, so the state is
predicted once per stage whatever the number of components. Methods of one state must have the same number of stages a
step. The grid is made for one continuous component (the first by name, whatever the order of the state) within the
bounds that all components share; then every component starts and ends at its own bounds (categories at t = 0, a VP
component at its t_min). A method with `last="data"` ends with one evaluation at t_min that returns the clean
estimate: the grid has one step less, the number of network calls stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.plan import Row, SolverPlan, Stage
from scidiff.core.solvers.grid import GivenGrid, Grid, KarrasGrid, LambdaGrid, NaturalGrid, PowerGrid

if TYPE_CHECKING:
    from scidiff.core.sampler import Loop
    from scidiff.core.spec import Component, StateSpec


@dataclass(frozen=True)
class Part:
    """One component's share of a stage: where it wants the prediction, and its rows."""

    t: float
    rows: tuple[Row, ...]
    evaluate: bool = True


class Method(Protocol):
    """How one component moves along a grid. `order` is its nominal order of convergence."""

    @property
    def order(self) -> int: ...

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        """For each step of the grid the parts of its stages."""
        ...

    def default_grid(self) -> Grid: ...


def gaussian(component: Component, who: str) -> GaussianPath:
    """The component's path, or UsageError where it is not one-sided Gaussian."""
    if not isinstance(component.path, GaussianPath):
        raise UsageError(f"{who} moves Gaussian paths, not {type(component.path).__name__}.",
                         "Name a method for this component under solver.methods.")
    return component.path


def ends(last: str) -> None:
    """UsageError unless `last` is a way in which a method of real numbers may end."""
    if last not in ("stop", "data"):
        raise UsageError(f"The last step of a solver is 'stop' or 'data', not {last!r}.")


def clean_row(name: str, t: float, s: float) -> Row:
    """The last step that returns the data prediction itself."""
    return Row(name, "affine", "data", a=0.0, b=(1.0,), on=(0,), t=t, s=s, keep=True)


def integrated(times: Sequence[float], last: str) -> list[tuple[float, float]]:
    """The steps (t, s) of a grid that are integrated: all of them, or all but the one that `closing` takes."""
    steps = list(pairwise(times))
    return steps[:-1] if last == "data" else steps


def closing(name: str, times: Sequence[float], last: str) -> list[list[Part]]:
    """The parts of the last step where it returns the data prediction; none where the grid is integrated to its end."""
    return [[Part(times[-2], (clean_row(name, times[-2], times[-1]),))]] if last == "data" else []


class Fixed:
    """A driver with a plan. `steps` counts network calls where a method has one stage a step.

    method: for every component that `methods` does not name. grid: default the method's own. t_end: default the paths'
    own end. levels: which levels of a path of levels are visited, as indices from the finest (default: all).
    `compile` and `cuda_graph` are passed on to the Sampler by whoever builds it.
    """

    def __init__(self, method: Method, steps: int = 50, grid: Grid | None = None,
                 methods: Mapping[str, Method] | None = None, t_end: float | None = None,
                 compile: bool = False, cuda_graph: bool = False, levels: Sequence[int] | None = None) -> None:
        if int(steps) < 1:
            raise UsageError(f"A solver needs at least one step, not {steps}.")
        self.method, self.methods, self.steps = method, dict(methods or {}), int(steps)
        self.grid, self.t_end, self.compile, self.cuda_graph = grid, t_end, compile, cuda_graph
        self.levels = None if levels is None else tuple(sorted({int(i) for i in levels}))
        self._plans: dict[tuple[int, float], tuple[StateSpec, SolverPlan]] = {}

    def of(self, name: str) -> Method:
        """The method of a component."""
        return self.methods.get(name, self.method)

    def times(self, spec: StateSpec, t_start: float = 1.0) -> list[float]:
        """The grid for a state, before components are given their own ends."""
        low = max(c.path.bounds[0] for c in spec.values()) if self.t_end is None else self.t_end
        high = min(t_start, min(c.path.bounds[1] for c in spec.values()))
        for levels in (c.path.levels for c in spec.values()):
            if levels is not None:
                chosen = [t for t in self._visited(levels) if t <= high + 1e-12]
                first = max((t for t in levels if t <= high + 1e-12), default=0.0)
                if self.levels is not None and (not chosen or chosen[0] < first):
                    raise UsageError(f"The solver starts at level {sorted(levels).index(first)} of the path and cannot "
                                     f"leave it out of its levels {list(self.levels)}.")
                return [*chosen, 0.0] if chosen and chosen[-1] > 0 else chosen
        if self.levels is not None:
            raise UsageError("solver.levels chooses among the levels of a path that has some, and this state's path is "
                             "continuous.", "Leave solver.levels out, or set solver.steps.")
        if low >= high:
            raise UsageError(f"There is nothing to integrate between t = {high:g} and t = {low:g}.")
        lead = min((n for n, c in spec.items() if not c.space.categorical), default=min(spec))
        grid = self.grid or self.of(lead).default_grid()
        if not self._denoises(spec):
            return grid(spec[lead].path, self.steps, high, low)
        return [*(grid(spec[lead].path, self.steps - 1, high, low) if self.steps > 1 else [high]), 0.0]

    def _visited(self, levels: Sequence[float]) -> list[float]:
        """The times of the levels that are visited, falling."""
        rising = sorted(levels)
        wanted = range(len(rising)) if self.levels is None else self.levels
        if not wanted or not all(0 <= i < len(rising) for i in wanted):
            raise UsageError(f"The path has the levels 0 to {len(rising) - 1}; the solver asks for {list(wanted)}.")
        return [rising[i] for i in sorted(wanted, reverse=True)]

    def _denoises(self, spec: StateSpec) -> bool:
        return any(getattr(self.of(n), "last", "") == "data" for n, c in spec.items() if not c.space.categorical)

    def plan(self, spec: StateSpec, t_start: float = 1.0) -> SolverPlan:
        """The plan for a state, made once."""
        key = (id(spec), t_start)
        if key not in self._plans:
            self._plans[key] = (spec, self._make(spec, t_start).check(spec))
        return self._plans[key][1]

    def _own(self, component: Component, times: list[float], t_start: float) -> list[float]:
        """The grid with a component's own ends; the last t of a denoising grid is 0 already."""
        low, high = component.path.bounds
        own = [min(t_start, high), *times[1:]]
        if self.t_end is None and own[-1] > 0.0:
            own[-1] = low
        return own

    def _make(self, spec: StateSpec, t_start: float) -> SolverPlan:
        for name in self.methods:
            if name not in spec:
                raise UsageError(f"The solver names an unknown component {name!r}.", nearest(name, spec))
        times = self.times(spec, t_start)
        own = {n: self._own(c, times, t_start) for n, c in spec.items()}
        parts = {n: self.of(n).parts(n, c, own[n]) for n, c in spec.items()}
        stages: list[Stage] = []
        for i in range(len(times) - 1):
            counts = {len(parts[n][i]) for n in spec}
            if len(counts) != 1:
                raise ScidiffError("The methods of this state have different numbers of stages a step.",
                                   "Choose methods with equal stages for all components.")
            total = counts.pop()
            for k in range(total):
                share = {n: parts[n][i][k] for n in spec}
                stages.append(
                    Stage(
                        _joint({n: p.t for n, p in share.items()}),
                        _joint({n: own[n][i + 1] for n in spec}),
                        tuple(r for p in share.values() for r in p.rows),
                        any(p.evaluate for p in share.values()),
                        k == total - 1,
                    )
                )
        return SolverPlan(tuple(stages))

    def history(self, spec: StateSpec) -> dict[str, dict[str, int]]:
        return self.plan(spec).history()

    def total(self, spec: StateSpec, t_start: float) -> int:
        return len(self.plan(spec, t_start).stages)

    def stages(self, loop: Loop, t_start: float) -> Iterator[Stage]:
        return iter(self.plan(loop.spec, t_start).stages[loop.stage:])


class Stored:
    """A driver for a plan from elsewhere (JSON, a search)."""

    def __init__(self, plan: SolverPlan) -> None:
        self._plan = plan

    def plan(self, spec: StateSpec, t_start: float = 1.0) -> SolverPlan:
        return self._plan.check(spec)

    def history(self, spec: StateSpec) -> dict[str, dict[str, int]]:
        return self.plan(spec).history()

    def total(self, spec: StateSpec, t_start: float) -> int:
        return len(self._plan.stages)

    def stages(self, loop: Loop, t_start: float) -> Iterator[Stage]:
        return iter(self._plan.stages[loop.stage:])


def _joint(times: dict[str, float]) -> Any:
    """One float where all components agree, else the dict."""
    values = set(times.values())
    return values.pop() if len(values) == 1 else times


__all__ = [
    "Fixed",
    "GivenGrid",
    "Grid",
    "KarrasGrid",
    "LambdaGrid",
    "Method",
    "NaturalGrid",
    "Part",
    "PowerGrid",
    "Stored",
    "clean_row",
    "ends",
    "gaussian",
]
