"""The measured order of a solver, against exact endpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.path import VP, GaussianPath
from scidiff.core.run import uniform
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed, Method
from scidiff.core.spec import Context
from scidiff.testing.require import require


def check_solver_order(method: Method, order: float | None = None, path: GaussianPath | None = None,
                       counts: Sequence[int] = (32, 64, 128), tolerance: float = 0.3, kind: str = "data") -> float:
    """The measured order of a deterministic method: slope of the median error over the number of steps.

    The target is a mixture on the line, where the probability flow keeps quantiles, so the endpoint of every start is
    known exactly: x_s = F_s^{-1}(F_t(x_t)). `order` defaults to the method's own; returns the slope, which must lie
    within `tolerance` of it.
    """
    path, nominal = path or VP(), float(method.order if order is None else order)
    mixture = GaussianMixture([[-1.0], [0.4], [1.5]], [0.35, 0.25, 0.4], [0.4, 0.35, 0.25])
    denoiser = AnalyticMixture(mixture, path, kind=kind)
    spec, ctx = denoiser.spec(), Context.of(64)
    driver = Fixed(method, steps=counts[0])
    times = driver.times(spec)
    first, last = path.coefficients(times[0]), path.coefficients(times[-1])
    z = torch.special.ndtri(uniform(0, ctx.ids, "order") * 0.9 + 0.05)
    start = first.sigma * z
    exact = _quantile(mixture, last, _distribution(mixture, first, start[:, 0]))
    errors = []
    for count in counts:
        sampler = Sampler(spec, denoiser, Fixed(method, steps=count), dtype=torch.float64)
        end = sampler.run(ctx, 0, start={"x": start}, t_start=times[0]).state["x"][:, 0]
        errors.append(float((end - exact).abs().median()))
    x = torch.tensor([math.log(c) for c in counts], dtype=torch.float64)
    y = torch.tensor([math.log(max(e, 1e-300)) for e in errors], dtype=torch.float64)
    slope = -float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    told = ", ".join(f"{c}: {e:.2e}" for c, e in zip(counts, errors, strict=True))
    name = type(method).__name__
    require(abs(slope - nominal) <= tolerance, f"{name} has order {slope:.2f}, not {nominal:g} ({told}).")
    return slope


def _distribution(mixture: GaussianMixture, k: Any, x: Tensor) -> Tensor:
    """F(x) of the mixture on the line at the scales of `k`, [B]."""
    width = (k.alpha**2 * mixture.stds[:, 0] ** 2 + k.sigma**2) ** 0.5
    return (torch.special.ndtr((x[:, None] - k.alpha * mixture.means[:, 0]) / width) * mixture.weights).sum(-1)


def _quantile(mixture: GaussianMixture, k: Any, p: Tensor) -> Tensor:
    low, high = torch.full_like(p, -20.0 - 20.0 * k.sigma), torch.full_like(p, 20.0 + 20.0 * k.sigma)
    for _ in range(100):
        middle = 0.5 * (low + high)
        below = _distribution(mixture, k, middle) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)
