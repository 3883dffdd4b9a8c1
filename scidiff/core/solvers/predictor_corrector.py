"""Predictor-corrector sampling: a step of any method, and Langevin steps at the level it reached.

    x <- x + e score + sqrt(2 e) scale xi,     e = 2 factor (snr |xi| / |score|)^2

Each corrector is a network call of its own. Norms are per sample, or over the whole batch with `batch_norms` (the
mean of the norms, as in the published code of GDSS); in a handful of dimensions they fluctuate so much that large steps
spoil samples, so correct components with many entries. With `before` the corrections come first, at the level where
the step starts (arXiv 2202.02514). Source: Song et al. 2021, algorithm 5, arXiv 2011.13456.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scidiff.core.errors import UsageError
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.plan import Row
from scidiff.core.solvers.corrected import Corrected
from scidiff.core.solvers.euler_maruyama import EulerMaruyama
from scidiff.core.solvers.fixed import Method, Part, gaussian

if TYPE_CHECKING:
    from scidiff.core.spec import Component


@dataclass(frozen=True)
class PredictorCorrector(Corrected):
    """`predictor` has one stage a step. factor: None takes the predictor's own factors, where it has such, and else
    (alpha_t / alpha_s)^2 of the step, which is 1 on VE paths."""

    predictor: Method = field(default_factory=EulerMaruyama)
    n_corr: int = 1
    snr: float = 0.16
    scale: float = 1.0
    factor: float | None = None
    batch_norms: bool = False
    before: bool = False

    def __post_init__(self) -> None:
        if self.n_corr < 0 or (self.n_corr > 0 and self.snr <= 0.0):
            raise UsageError("A predictor-corrector solver needs n_corr >= 0 and a positive snr.")

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "A predictor-corrector solver")
        predicted, out = self.predictor.parts(name, component, times), []
        own = getattr(self.predictor, "corrector_factors", None)
        given = own(path, times) if own is not None and self.factor is None else None
        for i, (stages, t, s) in enumerate(zip(predicted, times, times[1:], strict=False)):
            if i == len(predicted) - 1 and self.last == "data" and not self.before:
                out.append(stages)
                break
            at = t if self.before else s
            factor = self._factor(path, t, s) if given is None else given[i]
            row = Row(
                name,
                "langevin",
                "batch" if self.batch_norms else "sample",
                a=self.snr,
                b=(factor,),
                c=self.scale,
                tag="langevin",
                t=at,
                s=at,
            )
            corrections = [Part(at, (row,)) for _ in range(self.n_corr)]
            out.append([*corrections, *stages] if self.before else [*stages, *corrections])
        return out

    def _factor(self, path: GaussianPath, t: float, s: float) -> float:
        return (path.coefficients(t).alpha / path.coefficients(s).alpha) ** 2 if self.factor is None else self.factor
