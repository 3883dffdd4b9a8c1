"""The ring of eight modes on a VP path: starts, a fine solution, and how to measure a solver against it."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, ring8
from scidiff.core.path import VP
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed, LambdaGrid
from scidiff.core.solvers.runge_kutta import RungeKutta
from scidiff.core.spec import Context


class Ring:
    """Errors of solvers at t = 1e-3 for the same starts, float64."""

    def __init__(self, count: int = 96) -> None:
        self.path = VP()
        k = self.path.coefficients(1.0)
        noise = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        self.start = k.alpha * ring8().sample(count, 0) + k.sigma * noise
        self.denoiser = AnalyticMixture(ring8(), self.path, kind="noise")
        self.spec, self.context = self.denoiser.spec(), Context.of(count)
        self.truth = self.end(RungeKutta("rk4"), 1024)

    def end(self, method, steps, grid=None, dtype=torch.float64):
        driver = Fixed(method, steps, grid=grid or LambdaGrid())
        start = {"x": self.start.to(dtype)}
        return Sampler(self.spec, self.denoiser, driver, dtype=dtype).run(self.context, 0, start=start).state["x"]

    def median(self, method, steps, grid=None):
        return float((self.end(method, steps, grid) - self.truth).pow(2).sum(1).sqrt().median())

    def slope(self, method, counts=(32, 64, 128, 256)):
        """Minus the least-squares slope of log error against log N."""
        x = torch.tensor([math.log(n) for n in counts], dtype=torch.float64)
        y = torch.tensor([math.log(self.median(method, n)) for n in counts], dtype=torch.float64)
        return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.fixture(scope="session")
def ring():
    return Ring()
