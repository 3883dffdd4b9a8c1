"""Predictor-corrector sampling whose Langevin steps have a given size instead of a signal-to-noise ratio.

    x <- x + e score + sqrt(2 e) xi,     e = step (sigma_t / sigma_end)^2

at the level t where a step starts, then the predictor goes from t to s; sigma_end belongs to the end of the grid. With
step = 0 a component is predicted alone but has the same stages, so that it can share a state with corrected ones
(coordinates corrected, the cell not). Source: Jiao et al. 2023 (DiffCSP), arXiv 2309.04475.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.core.plan import Row
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.corrected import Corrected
from scidiff.core.solvers.fixed import Method, Part, gaussian

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class StepCorrector(Corrected):
    """`predictor` has one stage a step; n_corr corrections before it. A last step that returns the data prediction is
    preceded by its corrections too."""

    predictor: Method = field(default_factory=lambda: Ancestral(eta=1.0))
    step: float = 1e-5
    n_corr: int = 1

    def __post_init__(self) -> None:
        if self.n_corr < 0 or not (math.isfinite(self.step) and self.step >= 0.0):
            raise UsageError("A corrector of given steps needs n_corr >= 0 and a step from 0 on.")

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        predicted, out = self.predictor.parts(name, component, times), []
        for (t, _), stages in zip(pairwise(times), predicted, strict=True):
            rows: tuple[Row, ...] = ()
            if self.step > 0.0:
                path = gaussian(component, "A corrector of given steps")
                e = self.step * (path.coefficients(t).sigma / path.coefficients(times[-1]).sigma) ** 2
                rows = (Row(name, "affine", "score", b=(e,), on=(0,), c=math.sqrt(2.0 * e), tag="langevin", t=t, s=t),)
            out.append([*(Part(t, rows) for _ in range(self.n_corr)), *stages])
        return out
