"""A Gaussian inverse problem whose posterior is known: what every posterior solver is measured against.

    prior         x0 ~ N(0, C) in n = 32 dimensions, C_ij = (1 + d) e^{-d}, d = sqrt(3) |i - j| / 4     (Matern 3/2)
    measurement   y = A x0 + 0.05 n, A of 16 rows with entries N(0, 1/n); x0, n drawn once (seed 0)
    posterior     N(m, S),  S = C - C A^T (A C A^T + sigma_y^2)^-1 A C,  m = C A^T (A C A^T + sigma_y^2)^-1 y
    denoiser      E[x0 | x_t] = alpha C (alpha^2 C + sigma^2)^-1 x_t, in the basis of C

Three figures say how far a sampler is off: bias |mean - m| / |m|, spread = sampled over true standard deviation
(roots of traces), residual = root mean square of (y - A x) / sigma_y, about 1 for the truth.

Where all rules are linear, a sample is an affine function of the normal numbers of its run, and `moments` finds mean
and covariance exactly: sample b of one batch meets noise that is one at the b-th number and zero elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import ScidiffError
from scidiff.core.operator import SVD, LinearOperator
from scidiff.core.path.base import Prediction
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.posterior.base import Posterior
from scidiff.core.posterior.problem import Measurement, Problem
from scidiff.core.run import Run
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, State, StateSpec


class Dense(LinearOperator):
    """A real matrix [m, n] float64 as an operator; `known`: whether it tells its singular values."""

    def __init__(self, matrix: Tensor, known: bool = True) -> None:
        super().__init__((matrix.shape[1],), (matrix.shape[0],))
        self.matrix, self.known = matrix.double(), known
        u, s, vt = torch.linalg.svd(self.matrix, full_matrices=False)
        self._svd = SVD(s, lambda c: c @ u.T.to(c.dtype), lambda y: y @ u.to(y.dtype), lambda c: c @ vt.to(c.dtype),
                        lambda x: x @ vt.T.to(x.dtype))

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y.dtype)

    def svd(self) -> SVD | None:
        return self._svd if self.known else None


class Smooth(Denoiser):
    """The exact denoiser of N(0, V diag(values) V^T), which answers in `kind` (default: the path's own)."""

    def __init__(self, values: Tensor, vectors: Tensor, path: GaussianPath, kind: str | None = None) -> None:
        super().__init__()
        self.values, self.vectors, self.path, self.kind = values, vectors, path, kind or path.default_kind
        self.spec = StateSpec({"x": Component(Euclidean(), path, (len(values),))})
        self.calls = 0

    def gain(self, t: float) -> Tensor:
        """G of D = G x_t, [n, n]."""
        k = self.path.coefficients(t)
        return (self.vectors * (k.alpha * self.values / (k.alpha**2 * self.values + k.sigma**2))) @ self.vectors.T

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        self.calls += 1
        x, when = state["x"], time_of(t, "x")
        clean = x @ self.gain(float(when)).to(x.dtype)
        site = ctx.at("x", self.spec["x"])
        found = Prediction("data", clean, self.path, x, when, site).to(self.kind)
        return {"x": Prediction(self.kind, found, self.path, x, when, site)}


class GaussianToy:
    """The problem above on a given path; `seed` draws A, x0 and the noise, `known` as in `Dense`."""

    def __init__(self, path: GaussianPath, n: int = 32, rows: int = 16, sigma: float = 0.05, length: float = 4.0,
                 seed: int = 0, known: bool = True, kind: str | None = None) -> None:
        g = torch.Generator().manual_seed(seed)
        where = torch.arange(n, dtype=torch.float64)
        d = math.sqrt(3.0) * (where[:, None] - where[None, :]).abs() / length
        self.cov = (1.0 + d) * torch.exp(-d)
        self.values, self.vectors = torch.linalg.eigh(self.cov)
        self.matrix = torch.randn(rows, n, dtype=torch.float64, generator=g) / math.sqrt(n)
        self.truth = self.vectors @ (self.values.sqrt() * torch.randn(n, dtype=torch.float64, generator=g))
        self.y = self.matrix @ self.truth + sigma * torch.randn(rows, dtype=torch.float64, generator=g)
        self.path, self.sigma, self.operator = path, sigma, Dense(self.matrix, known)
        self.denoiser = Smooth(self.values, self.vectors, path, kind)
        self.spec = self.denoiser.spec

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean [n] and covariance [n, n] of x0 given y."""
        a = self.matrix
        seen = a @ self.cov @ a.T + self.sigma**2 * torch.eye(len(a), dtype=torch.float64)
        gain = torch.linalg.solve(seen, a @ self.cov).T
        return gain @ self.y, self.cov - gain @ a @ self.cov

    def problem(self, batch: int, unit_norm: bool = True, dtype: torch.dtype = torch.float64) -> Problem:
        """The same measurement for every sample of a batch."""
        m = Measurement(self.operator, self.y.to(dtype).expand(batch, -1), self.sigma)
        return Problem(self.denoiser, self.spec, m.normalised() if unit_norm else m, dtype=dtype)

    def samples(self, method: Posterior, count: int, seed: int = 0, **more: Any) -> Tensor:
        """Draws of a posterior solver, float64 [count, n]; `more` goes to its `run`."""
        return method.run(self.problem(count), Context.of(count), seed, **more).state["x"]

    def moments(self, method: Posterior, **more: Any) -> tuple[Tensor, Tensor]:
        """Exact mean and covariance of the samples of a posterior solver whose rules are linear."""
        return moments(lambda ctx, run: method.run(self.problem(ctx.batch), ctx, run, **more).state["x"])

    def figures(self, mean: Tensor, cov: Tensor) -> dict[str, float]:
        """bias, spread and residual of samples with this mean and covariance."""
        right, true = self.posterior
        off = self.y - self.matrix @ mean
        misfit = off.square().sum() + torch.trace(self.matrix @ cov @ self.matrix.T)
        return {"bias": float((mean - right).norm() / right.norm()),
                "spread": float((torch.trace(cov) / torch.trace(true)).clamp(min=0.0).sqrt()),
                "residual": float((misfit / len(self.y)).clamp(min=0.0).sqrt() / self.sigma)}


class Impulses(Run):
    """Noise for `moments`: zero, except that sample `number` meets a one at the number of its own."""

    __slots__ = ("places", "recording", "width")

    def __init__(self, places: dict[tuple[Any, ...], int] | None = None) -> None:
        super().__init__(0)
        self.recording = places is None
        self.places = {} if places is None else places
        self.width = 0

    def noise(self, component: str, tag: str, shape: tuple[int, ...], ctx: Context, law: str = "normal",
              padded: tuple[bool, ...] | None = None, symmetric: bool = False) -> Tensor:
        if law != "normal":
            raise ScidiffError("Exact moments exist where all noise is normal.")
        key, size = (self.stream, self.step, tag, component), math.prod(shape)
        if self.recording and key not in self.places:
            self.places[key] = self.width
            self.width += size
        out = torch.zeros(ctx.batch, size, dtype=torch.float64)
        if not self.recording:
            first = self.places[key] + 1
            out[first + torch.arange(size), torch.arange(size)] = 1.0
        return out.view(ctx.batch, *shape)


def moments(run: Callable[[Context, Run], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [n] and covariance [n, n] of run(ctx, run) -> [B, n], an affine function of the numbers that it draws."""
    scout = Impulses()
    run(Context.of(1), scout)
    probe = Impulses(scout.places)
    x = run(Context.of(1 + scout.width), probe)
    response = x[1:] - x[0]
    return x[0], response.T @ response
