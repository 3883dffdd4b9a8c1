"""Sampling of Bayesian flows: the kernel "bayes" of every component, one network call a step.

    end_back   predict the data, then draw the belief at s anew from the flow of the prediction; the old belief is left
    vanilla    predict the data, then add the sightings between t and s to the belief (receive as if x were known)
    mix        end_back for the first `redraws` of the steps, then vanilla

The last step returns the prediction itself; classes are drawn from it ("sample") or their most probable ones are taken
("mode"). On a path of levels (von Mises) the grid is its levels, or those that `solver.levels` names; others take any
grid, by default a uniform one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from scidiff.core.errors import UsageError, nearest
from scidiff.core.plan import Row
from scidiff.core.solvers.fixed import Part
from scidiff.core.solvers.grid import Grid, PowerGrid

if TYPE_CHECKING:
    from scidiff.core.spec import Component

RULES = ("end_back", "vanilla", "mix")


@dataclass(frozen=True)
class Bayes:
    """classes: when a belief about classes is drawn anew, the data are the predicted probabilities ("mean") or a class
    drawn from them ("draw")."""

    order: ClassVar[int] = 1

    rule: str = "end_back"
    redraws: float = 2 / 3
    classes: str = "mean"
    last: str = "sample"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"There is no Bayesian sampler {self.rule!r}.", nearest(self.rule, RULES))
        if not 0.0 <= self.redraws <= 1.0:
            raise UsageError(f"The share of steps that redraw the belief lies in [0, 1], unlike {self.redraws}.")
        if self.classes not in ("mean", "draw"):
            raise UsageError(f"Beliefs about classes are redrawn from their 'mean' or a 'draw', not {self.classes!r}.")
        if self.last not in ("sample", "mode"):
            raise UsageError(f"The last step of a Bayesian sampler is 'sample' or 'mode', not {self.last!r}.")

    def default_grid(self) -> Grid:
        return PowerGrid(1.0)

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        if "bayes" not in component.path.kernels:
            raise UsageError(f"A Bayesian sampler moves beliefs, not {type(component.path).__name__}.",
                             "Name a method for this component under solver.methods.")
        if times[-1] > 0.0:
            raise UsageError(f"A Bayesian sampler runs to t = 0, not to t = {times[-1]:g}.", "Leave solver.t_end out.")
        steps = len(times) - 1
        redrawn = {"end_back": steps, "vanilla": 0, "mix": round(self.redraws * steps)}[self.rule]
        mean, out = float(self.classes == "mean"), []
        for i, (t, s) in enumerate(pairwise(times)):
            form = self.last if i == steps - 1 else "redraw" if i < redrawn else "update"
            out.append([Part(t, (Row(name, "bayes", form, a=mean, t=t, s=s),))])
        return out
