"""Burgers: shocks that viscosity holds open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.domains.pde.equations.equation import Equation, Extent, Parameter, Typical, Waves, columns, spread, within
from scidiff.domains.pde.equations.initial import sines


@dataclass(frozen=True, eq=False)
class Burgers(Equation):
    """u_t + u u_x = nu u_xx on a periodic interval; all without units.

    nu is the viscosity. Shocks of height h are 4 nu / h wide and need about four points: on [0, 2 pi) with |u| about 1,
    nu = 0.05 is well resolved by 128 points and nu = 0.01 by 512. The energy only falls; the mean is conserved. The
    substitution u = -2 nu (ln phi)_x turns it into the heat equation for phi (Cole, Hopf): exact solutions for tests.
    """

    viscosity: Parameter = 0.05

    name: ClassVar[str] = "burgers"
    dims: ClassVar[int] = 1
    shape: ClassVar[tuple[int, ...]] = (128,)
    extent: ClassVar[tuple[float, ...]] = (2.0 * math.pi,)
    parity: ClassVar[int] = -1

    def __post_init__(self) -> None:
        within("viscosity", self.viscosity, 0.0, 100.0)

    @property
    def typical(self) -> Typical:
        return Typical(rms=0.7, largest=2.0, dt=0.01)

    def linear(self, k: Waves) -> Tensor:
        return -spread(self.viscosity, 1) * k[0] ** 2

    def products(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul(u, u, out=out)

    def symbols(self, k: Waves) -> Tensor:
        return columns(-0.5j * k[0], 1)

    def rate(self, k: Waves, fastest: float) -> Tensor:
        return k[0].abs() * fastest

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """Three sines of one to four waves, rms 0.7 on average."""
        return sines("burgers", ids, seed, shape, count=3, amplitude=1.0, waves=4).to(dtype)
