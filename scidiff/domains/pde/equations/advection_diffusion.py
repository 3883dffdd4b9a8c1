"""Advection and diffusion with constant coefficients: linear, so that every step is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.pde.equations.equation import Equation, Extent, Parameter, Typical, Waves, spread, squared, within
from scidiff.domains.pde.equations.initial import smooth


@dataclass(frozen=True, eq=False)
class AdvectionDiffusion(Equation):
    """u_t + c (u_x + u_y) = nu (u_xx + u_yy) on a periodic box in one or two dimensions; all without units.

    c is the speed along every axis, nu the diffusivity (0: pure transport). One step is one multiplication by
    exp(-(i c k + nu k^2) dt), exact for any dt; the whole spectrum below the Nyquist mode is kept.
    """

    speed: Parameter = 1.0
    viscosity: Parameter = 0.01
    dims: int = 1

    name: ClassVar[str] = "advection"
    parity: ClassVar[int] = 0

    def __post_init__(self) -> None:
        within("viscosity", self.viscosity, 0.0, 100.0, closed=True)
        within("speed", self.speed, -1e3, 1e3)
        if self.dims not in (1, 2):
            raise UsageError(f"Advection and diffusion are here in 1 or 2 dimensions, not in {self.dims}.")

    @property
    def shape(self) -> tuple[int, ...]:
        return (64,) * self.dims

    @property
    def extent(self) -> tuple[float, ...]:
        return (2.0 * math.pi,) * self.dims

    @property
    def typical(self) -> Typical:
        return Typical(rms=1.0, largest=4.0, dt=0.1)

    def linear(self, k: Waves) -> Tensor:
        turning = sum(k[1:], k[0]) * spread(self.speed, self.dims)
        return torch.complex(-squared(k) * spread(self.viscosity, self.dims) + 0.0 * turning, -turning)

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """Gaussian fields with equal power in the modes up to 4."""
        return smooth("advection", ids, seed, shape, largest=4).to(dtype)
