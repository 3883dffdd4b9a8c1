"""Solver plans: a sampling run as a table of floats.

A plan is a list of stages. A stage evaluates the denoiser once, at time t, for the whole state; then its rows update
the components:

    affine     x <- a * base + sum_k b_k H[on_k] + m * centre + c * xi
    langevin, renoise, posterior, jump, rate, unmask, mode, bayes      Path.apply(row, ...)

`base` is the current value or the value at the start of the step ("start"), H the history of predictions of kind
`form`, newest first (on = 0 is the newest prediction), xi fresh noise of the component's space named by `tag`,
`centre` the mean of a centred path. A langevin row has a = snr, b = (factor,), c = scale and form "sample" or "batch"
(whose norms); a bayes row has the form "redraw", "update", "sample" or "mode" (core/path/belief.py). `keep` makes the
result the start of the next step. Times t -> s are kept for kernels and rules that need them. A plan of a fixed solver
holds Python floats only and is storable as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from scidiff.core.errors import ScidiffError

if TYPE_CHECKING:
    from scidiff.core.sampler import Loop
    from scidiff.core.spec import StateSpec

KERNELS = ("affine", "langevin", "renoise", "posterior", "jump", "rate", "unmask", "mode", "bayes")


@dataclass(frozen=True, slots=True)
class Row:
    """One update of one component; see the module's contract."""

    name: str
    kernel: str = "affine"
    form: str = "data"
    base: str = "current"
    a: Any = 1.0
    b: tuple[float, ...] = ()
    on: tuple[int, ...] = ()
    m: float = 0.0
    c: Any = 0.0
    tag: str = "step"
    keep: bool = False
    t: Any = 0.0
    s: Any = 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One evaluation at time t (a float, or a dict per component) and the rows that use it; s is the time reached."""

    t: Any
    s: Any
    rows: tuple[Row, ...]
    evaluate: bool = True
    last: bool = True  # closes a solver step: rules and callbacks act here


@dataclass(frozen=True)
class SolverPlan:
    """All stages of a fixed solver."""

    stages: tuple[Stage, ...]

    @property
    def nfe(self) -> int:
        """Network calls."""
        return sum(s.evaluate for s in self.stages)

    @property
    def steps(self) -> int:
        return sum(s.last for s in self.stages)

    def history(self) -> dict[str, dict[str, int]]:
        """Component -> kind -> how many predictions the affine rows look back."""
        return history_of(r for s in self.stages for r in s.rows)

    def check(self, spec: StateSpec) -> SolverPlan:
        """Itself, or ScidiffError where a row names an unknown component or a kernel that its path refuses."""
        for stage in self.stages:
            for row in stage.rows:
                if row.name not in spec:
                    raise ScidiffError(f"The plan moves an unknown component {row.name!r}.")
                path = spec[row.name].path
                if row.kernel not in path.kernels:
                    raise ScidiffError(f"{type(path).__name__} does not accept the kernel {row.kernel!r}.",
                                       f"It accepts {', '.join(sorted(path.kernels))}.")
        return self

    def to_json(self) -> str:
        """Exact: floats are written with all their digits."""
        return json.dumps([asdict(s) for s in self.stages])

    @classmethod
    def from_json(cls, text: str) -> SolverPlan:
        """The inverse of `to_json`; ScidiffError where the text is no plan."""
        try:
            stages = tuple(
                Stage(s["t"], s["s"], tuple(Row(**{**r, "b": tuple(r["b"]), "on": tuple(r["on"])}) for r in s["rows"]),
                      s["evaluate"], s["last"]) for s in json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise ScidiffError(f"This text is not a solver plan ({error}).") from error
        if any(r.kernel not in KERNELS for s in stages for r in s.rows):
            raise ScidiffError("This solver plan uses an unknown kernel.")
        return cls(stages)


def history_of(rows: Iterator[Row]) -> dict[str, dict[str, int]]:
    """Component -> kind -> look-back of the affine rows."""
    need: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.on:
            kinds = need.setdefault(row.name, {})
            kinds[row.form] = max(kinds.get(row.form, 0), max(row.on) + 1)
    return need


class Driver(Protocol):
    """Hands stages to the loop. Fixed drivers have a plan; others may look at the loop between stages."""

    def history(self, spec: StateSpec) -> dict[str, dict[str, int]]:
        """Which predictions the rows will look back at."""
        ...

    def total(self, spec: StateSpec, t_start: float) -> int:
        """Stages expected, for progress bars (an upper bound where it is not known)."""
        ...

    def stages(self, loop: Loop, t_start: float) -> Iterator[Stage]:
        """The stages, in order."""
        ...
