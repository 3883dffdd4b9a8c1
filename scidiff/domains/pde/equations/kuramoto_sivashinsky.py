"""Kuramoto-Sivashinsky: the standard test bed of long rollouts of a chaotic field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.domains.pde.equations.equation import Equation, Extent, Parameter, Typical, Waves, columns, spread, within
from scidiff.domains.pde.equations.initial import sines


@dataclass(frozen=True, eq=False)
class KuramotoSivashinsky(Equation):
    """u_t + u u_x + u_xx + nu u_xxxx = 0 on a periodic interval; all without units.

    nu is the (hyper-)viscosity, 1 by convention; varying sets draw it from U[0.5, 1.5]. The change of scale
    (nu, L, dt) -> (1, L/sqrt(nu), dt/nu) shows that only L/sqrt(nu) matters. Good values: L = 64 with 96 or 128 points
    and dt 0.05 to 0.1 (Lyapunov exponent 0.0865), L = 22 with 64 points (0.048, with a burn-in of 200). L = 28 and 32
    end in cells that do not diverge: no test of a forecast.
    """

    viscosity: Parameter = 1.0

    name: ClassVar[str] = "ks"
    dims: ClassVar[int] = 1
    shape: ClassVar[tuple[int, ...]] = (128,)
    extent: ClassVar[tuple[float, ...]] = (64.0,)
    burn_in: ClassVar[float] = 72.0
    parity: ClassVar[int] = -1

    def __post_init__(self) -> None:
        within("viscosity", self.viscosity, 0.0, 100.0)

    @property
    def typical(self) -> Typical:
        nu = float(self.viscosity.min()) if isinstance(self.viscosity, Tensor) else self.viscosity
        return Typical(rms=1.317 / math.sqrt(nu), largest=3.6 / math.sqrt(nu), dt=0.05 * min(nu, 1.0))

    def linear(self, k: Waves) -> Tensor:
        square = k[0] ** 2
        return square - spread(self.viscosity, 1) * square**2

    def products(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul(u, u, out=out)

    def symbols(self, k: Waves) -> Tensor:
        return columns(-0.5j * k[0], 1)

    def rate(self, k: Waves, fastest: float) -> Tensor:
        return k[0].abs() * fastest

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """Ten sines: amplitude U(-0.5, 0.5), phase U(0, 2 pi), one or two waves in the box."""
        return sines("ks", ids, seed, shape, count=10, amplitude=0.5, waves=2).to(dtype)
