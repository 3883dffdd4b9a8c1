"""Two-dimensional Navier-Stokes as vorticity, with Kolmogorov's forcing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.pde.equations.equation import (
    Equation,
    Extent,
    Parameter,
    Typical,
    Waves,
    joined,
    spread,
    squared,
    within,
)
from scidiff.domains.pde.equations.initial import smooth


@dataclass(frozen=True, eq=False)
class NavierStokes2d(Equation):
    """w_t + u w_x + v w_y = nu (w_xx + w_yy) - d w - A k_f cos(k_f y), u = psi_y, v = -psi_x, -(psi_xx + psi_yy) = w.

    w = v_x - u_y is the vorticity on a periodic box, axes (y, x) in this order; nu the viscosity, d a linear drag (per
    time), A sin(k_f y) the force along x. The transport term in Basdevant's form,

        F[u w_x + v w_y] = -(k_x^2 - k_y^2) F[u v] - k_x k_y F[v^2 - u^2],

    needs four transforms. The defaults are the Kolmogorov flow on [0, 2 pi)^2 with nu = 1e-3 ("Re 1000"), drag 0.1 and
    k_f = 4: rms vorticity 4.7, |u| up to 5.5, Lyapunov time 1.6. Good values: 64^2 for tests, 256^2 with dt 0.005 for a
    reference; 128^2 with nu = 5e-3 where time is short. k_f counts waves in the box; it
    is the wavenumber itself where the box has the side 2 pi.
    """

    viscosity: Parameter = 1e-3
    drag: Parameter = 0.1
    forcing_wavenumber: int = 4
    forcing_amplitude: float = 1.0

    name: ClassVar[str] = "kolmogorov"
    dims: ClassVar[int] = 2
    fields: ClassVar[tuple[str, ...]] = ("vorticity",)
    units: ClassVar[tuple[str, ...]] = ("1",)
    shape: ClassVar[tuple[int, ...]] = (64, 64)
    extent: ClassVar[tuple[float, ...]] = (2.0 * math.pi, 2.0 * math.pi)
    burn_in: ClassVar[float] = 40.0
    parity: ClassVar[int] = 0

    def __post_init__(self) -> None:
        within("viscosity", self.viscosity, 0.0, 100.0, closed=True)
        within("drag", self.drag, 0.0, 100.0, closed=True)
        if self.forcing_wavenumber < 1:
            raise UsageError(f"forcing_wavenumber={self.forcing_wavenumber} must be a positive whole number.")

    @property
    def typical(self) -> Typical:
        return Typical(rms=4.7, largest=30.0, dt=0.01, speed=5.5)

    def linear(self, k: Waves) -> Tensor:
        return -spread(self.viscosity, 2) * squared(k) - spread(self.drag, 2)

    def lift(self, k: Waves) -> Tensor:
        """u and v from w: i k_y / k^2 and -i k_x / k^2; no mean flow."""
        (ky, kx), square = k, squared(k)
        inverse = torch.where(square > 0.0, 1.0 / square.clamp(min=1e-300), 0.0)
        return joined((1j * ky * inverse, -1j * kx * inverse), 2)

    def products(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        """u v and v^2 - u^2."""
        first, second = u[:, :1], u[:, 1:]
        if out is None:
            return torch.cat([first * second, (second + first) * (second - first)], 1)
        both = first * second
        torch.square(second, out=out[:, 1:])
        out[:, 1:].addcmul_(first, first, value=-1.0)
        out[:, :1].copy_(both)
        return out

    def symbols(self, k: Waves) -> Tensor:
        ky, kx = k
        return joined((kx**2 - ky**2, kx * ky), 2).unsqueeze(-4)

    def force(self, k: Waves) -> Tensor | None:
        if not self.forcing_amplitude:
            return None
        ky, kx = k
        waves = (ky / ky[..., 1:2, :]).abs().round()
        strength = -0.5 * self.forcing_amplitude * ky.abs()
        return joined((torch.where((kx == 0.0) & (waves == self.forcing_wavenumber), strength, 0.0),), 2)

    def rate(self, k: Waves, fastest: float) -> Tensor:
        return torch.maximum(k[0].abs(), k[1].abs()) * fastest

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """Gaussian vorticity with equal power in the modes up to 4, rms 4."""
        return (4.0 * smooth("navier_stokes", ids, seed, shape, largest=4)).to(dtype)
