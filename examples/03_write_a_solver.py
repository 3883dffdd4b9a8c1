"""A new solver in thirty lines, and its order of convergence measured.

With lambda the half log-SNR and E the predicted noise, a Gaussian path obeys d(x / alpha) = -e^{-lambda} E d lambda.
The exponential midpoint rule predicts E at the start of a step, walks half of it, and crosses the whole step with the
E found there. A method only writes a table of such rows; the loop, the noise, the batches and the network calls belong
to the Sampler, so the method works for every Gaussian path, every model and every guidance.

    python examples/03_write_a_solver.py [fast=true]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scidiff.core.path import VP, Linear
from scidiff.core.plan import Row
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Part, gaussian
from scidiff.core.solvers.grid import Grid, LambdaGrid
from scidiff.core.spec import Component
from scidiff.testing import check_solver_order


@dataclass(frozen=True)
class Midpoint:
    """Two network calls a step, second order (DPM-Solver-2 of Lu et al. 2022, arXiv 2206.00927)."""

    order: int = 2

    def default_grid(self) -> Grid:
        return LambdaGrid()

    def parts(self, name: str, component: Component, times: Sequence[float]) -> list[list[Part]]:
        path = gaussian(component, "The midpoint rule")

        def cross(at: float, start: float, end: float, keep: bool) -> Part:
            """Evaluates the network at `at`, then moves from `start` to `end` with the noise found there."""
            now, then = path.coefficients(start), path.coefficients(end)
            b = -then.sigma * math.expm1(then.lam - now.lam)
            a = then.alpha / now.alpha
            return Part(at, (Row(name, form="noise", base="start", a=a, b=(b,), on=(0,), keep=keep, t=at, s=end),))

        steps = []
        for t, s in pairwise(times):
            middle = float(path.t_of_lambda((path.coefficients(t).lam + path.coefficients(s).lam) / 2))
            steps.append([cross(t, t, middle, keep=False), cross(middle, t, s, keep=True)])
        return steps


def main(fast: bool = False) -> None:
    counts = (16, 32, 64) if fast else (32, 64, 128, 256)
    for path in (VP(), Linear()):
        for method in (Ancestral(), Midpoint()):
            measured = check_solver_order(method, path=path, counts=counts)
            print(f"{type(path).__name__:8s} {type(method).__name__:10s} order {method.order}, measured {measured:.2f}")


if __name__ == "__main__":
    main(fast="fast=true" in sys.argv[1:])
