"""What methods have in common that put corrections around the steps of another: they advance as that one does."""

from __future__ import annotations

from dataclasses import dataclass

from scidiff.core.solvers.fixed import Method
from scidiff.core.solvers.grid import Grid


@dataclass(frozen=True)
class Corrected:
    """`predictor` has one stage a step; its order, its last step and its grid are those of the whole."""

    predictor: Method

    @property
    def order(self) -> int:
        return self.predictor.order

    @property
    def last(self) -> str:
        return getattr(self.predictor, "last", "stop")

    def default_grid(self) -> Grid:
        return self.predictor.default_grid()
