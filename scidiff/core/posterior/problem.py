"""What a posterior solver is given: a measurement y = A x0 + sigma n of one component, and the prior of the state.

`Measurement` speaks the layout of the state. A component of one sample has the shape `dims`. Where the operator takes
such images, every sample has its own measurement: x [B, *dims] <-> y [B, *out_shape]. Where it takes Z of them
(in_shape = (Z, *dims): cone beams, down-sampling along z), the batch of the state holds the slices of volumes,
x [V Z, *dims] <-> y [V, *out_shape], one volume after another, and scalars such as norms belong to a volume.
`sigma` is the standard deviation of each real number of y: of both parts of complex ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Times, time_of
from scidiff.core.errors import UsageError, nearest
from scidiff.core.krylov import dot, least_squares
from scidiff.core.operator import LinearOperator
from scidiff.core.path.base import Prediction
from scidiff.core.path.gaussian import Coefficients, GaussianPath
from scidiff.core.run import Run
from scidiff.core.spec import Context, Site, State, StateSpec


class Measurement:
    """y [V, *out_shape] of an operator; UsageError where shapes do not fit or y is not finite."""

    def __init__(self, operator: LinearOperator, y: Tensor, sigma: float = 0.0,
                 dims: tuple[int, ...] | None = None) -> None:
        dims = operator.in_shape if dims is None else tuple(dims)
        if operator.dtype.is_complex:
            raise UsageError(f"{operator} takes complex images and the prior's are real.",
                             "Put an operator before it that makes a complex image of two channels (A @ B).")
        if operator.in_shape not in (dims, (*operator.in_shape[:1], *dims)):
            raise UsageError(f"{operator} takes images of shape {operator.in_shape}, and the prior makes {dims}.",
                             "Crop or pad the images, or choose another prior.")
        if tuple(y.shape[1:]) != operator.out_shape:
            raise UsageError(f"{operator} gives measurements of shape {operator.out_shape}, not {tuple(y.shape[1:])}.",
                             "Is the batch axis missing?")
        if not bool(torch.isfinite(torch.view_as_real(y) if y.is_complex() else y).all()):
            raise UsageError("The measurement holds values that are not finite.")
        if not (math.isfinite(sigma) and sigma >= 0.0):
            raise UsageError(f"The standard deviation of the noise is a number from 0 on, unlike {sigma}.")
        self.operator, self.y, self.sigma, self.dims = operator, y, float(sigma), dims
        self.slices = 0 if operator.in_shape == dims else operator.in_shape[0]

    @property
    def count(self) -> int:
        """Samples (slices) of the state that this measures."""
        return len(self.y) * max(self.slices, 1)

    @property
    def numbers(self) -> int:
        """Real numbers in one measurement."""
        return math.prod(self.operator.out_shape) * (2 if self.operator.out_dtype.is_complex else 1)

    def to(self, dtype: torch.dtype) -> Measurement:
        """The same with y in the precision of `dtype`."""
        kind = dtype.to_complex() if self.y.is_complex() else dtype
        return Measurement(self.operator, self.y.to(kind), self.sigma, self.dims)

    def normalised(self) -> Measurement:
        """The same in units in which the operator has norm 1: step sizes and weights then mean the same for all."""
        norm = self.operator.norm()
        return Measurement(self.operator.unit_norm(), self.y / norm, self.sigma / norm, self.dims)

    def repeated(self, times: int) -> Measurement:
        """`times` copies, one after another."""
        y = self.y[None].expand(times, *self.y.shape).flatten(0, 1)
        return Measurement(self.operator, y, self.sigma, self.dims)

    def fold(self, x: Tensor) -> Tensor:
        """x as the operator takes it."""
        return x.unflatten(0, (-1, self.slices)) if self.slices else x

    def flat(self, x: Tensor) -> Tensor:
        """The inverse of `fold`."""
        return x.flatten(0, 1) if self.slices else x

    def per_sample(self, values: Tensor) -> Tensor:
        """Numbers of the measurements [V] as numbers of the samples [B]."""
        return values.repeat_interleave(self.slices) if self.slices else values

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.forward(self.fold(x))

    def adjoint(self, r: Tensor) -> Tensor:
        return self.flat(self.operator.adjoint(r))

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return self.adjoint(self.forward(x))

    def residual(self, x: Tensor) -> Tensor:
        """y - A x."""
        return self.y - self.forward(x)

    def length(self, r: Tensor) -> Tensor:
        """|r| of each measurement, float64 [V]."""
        return dot(r, r).sqrt()

    def fits(self, x: Tensor) -> Tensor:
        """Whether |y - A x| <= sqrt(m) sigma, the noise level, bool [V]; x as the operator takes it."""
        r = self.y - self.operator.forward(x)
        return dot(r, r) <= self.sigma**2 * self.numbers

    def pinv(self, r: Tensor, iterations: int = 100, noise: float = 0.0) -> Tensor:
        """A^+ r; with `noise` by CGLS that stops at this noise level."""
        return self.flat(self.operator.pinv(r, iterations=iterations, noise=noise))

    def fitted(self, x: Tensor, iterations: int, stop: bool = True) -> Tensor:
        """`iterations` of CGLS on |y - A x| from x, which rest at the noise level if `stop`."""
        return self.flat(least_squares(self.operator, self.y, self.fold(x), iterations, 1e-6,
                                       self.sigma if stop else 0.0))

    def prox(self, v: Tensor, gamma: float, iterations: int = 50, tolerance: float = 1e-6,
             y: Tensor | None = None) -> Tensor:
        """argmin_x |A x - y|^2 / 2 + |x - v|^2 / (2 gamma)."""
        return self.flat(self.operator.prox(self.fold(v), self.y if y is None else y, gamma, iterations, tolerance))

    def slope(self, x: Tensor, image: bool = False) -> Tensor:
        """Minus the gradient of |y - A x|^2 / 2, or, with `image`, of |A^T (y - A x)|^2 / 2, per unit of curvature."""
        down = self.adjoint(self.residual(x))
        norm = self.operator.norm()
        return self.normal(down) / norm**4 if image else down / norm**2

    def iterations_cost(self, iterations: int) -> int:
        """Applications of A or A^T in a prox or a pseudo-inverse: at most this many."""
        return 3 if self.operator.svd() is not None else 2 + 2 * iterations


@dataclass(eq=False)
class Problem:
    """A measurement and a prior: the denoiser of a state, one component of which is measured.

    `name` is that component (default: the only one). Continuous components are computed in `dtype`. `made` keeps what
    solvers build from denoiser and spec alone.
    """

    denoiser: Denoiser
    spec: StateSpec
    measurement: Measurement
    name: str = ""
    dtype: torch.dtype = torch.float32
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.name = self.name or next(iter(self.spec))
        if self.name not in self.spec:
            raise UsageError(f"The state has no component {self.name!r} to measure.", nearest(self.name, self.spec))
        component = self.spec[self.name]
        if not isinstance(component.path, GaussianPath):
            raise UsageError(f"Posterior solvers need a Gaussian path, and {self.name!r} is on a "
                             f"{type(component.path).__name__}.", "Choose a prior made with a diffusion or a flow.")
        if component.shape != self.measurement.dims:
            raise UsageError(f"The measured images have the shape {self.measurement.dims}, those of the prior "
                             f"{component.shape}.")

    @cached_property
    def path(self) -> GaussianPath:
        return self.spec[self.name].path  # type: ignore[return-value]

    def site(self, ctx: Context) -> Site:
        return ctx.at(self.name, self.spec[self.name])

    @cached_property
    def t_end(self) -> float | None:
        """Where integration ends, if not where the path does: some tables of levels reach sigma = 0."""
        clean = self.path.coefficients(self.path.bounds[0]).sigma == 0.0
        return 1.0 / getattr(self.path, "steps", 1000) if clean else None

    @property
    def end(self) -> float:
        """The last time at which the network is asked."""
        return self.path.bounds[0] if self.t_end is None else self.t_end

    def level(self, t: Times) -> Coefficients:
        """The coefficients of the path at t."""
        when = time_of(t, self.name)
        if isinstance(when, Tensor):
            raise UsageError("Posterior solvers move a whole batch at one time.", "Choose a fixed solver.")
        return self.path.coefficients(when)

    def reached(self, t: Times, s: Times, end: float | None = None) -> Coefficients:
        """The coefficients after a step t -> s; those of clean data after the step that returns the data estimate.

        That step has s = 0. So has the one before on a path that ends at t = 0, and then starts above it.
        """
        here, k = time_of(t, self.name), self.level(s)
        closing = time_of(s, self.name) == 0.0 and (here == 0.0 or (self.end if end is None else end) > 0.0)
        return k._replace(alpha=1.0, sigma=0.0, c=0.0) if closing else k

    def bound(self, pred: Prediction, state: State, t: Times, ctx: Context) -> Prediction:
        return pred.bind(self.path, state[self.name], time_of(t, self.name), self.site(ctx))

    def predict(self, x: Tensor, t: float, ctx: Context, run: Run) -> Prediction:
        """One call of the network on a state that is this component alone."""
        state = {self.name: x}
        return self.bound(self.denoiser(state, t, ctx, run)[self.name], state, t, ctx)

    def corrupted(self, x0: Tensor, t: float, ctx: Context, run: Run, tag: str) -> tuple[Tensor, Tensor]:
        """(alpha x0 + c mu + sigma eps, eps)."""
        k, eps = self.level(t), self.noise(ctx, run, tag)
        return self.path.shifted(k.alpha * x0 + k.sigma * eps, k.c, self.site(ctx)), eps

    def noise(self, ctx: Context, run: Run, tag: str) -> Tensor:
        """Standard normal noise of the component, [B, *dims]."""
        return run.handle(self.site(ctx), self.dtype).normal(tag)

    def measured_noise(self, ctx: Context, run: Run, tag: str) -> Tensor:
        """Standard normal noise of the measurement, [V, *out_shape]; keyed by a volume's first slice."""
        m = self.measurement
        of = Context(ctx.ids[:: m.slices]) if m.slices else ctx
        parts = (2,) if m.y.is_complex() else ()
        z = run.noise(f"{self.name}/measured", tag, (*m.operator.out_shape, *parts), of).to(self.dtype)
        return torch.view_as_complex(z) if parts else z
