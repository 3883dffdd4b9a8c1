"""Korteweg-de Vries: dispersion against steepening, with solitons as exact solutions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.domains.pde.equations.equation import Equation, Extent, Parameter, Typical, Waves, columns, spread, within
from scidiff.domains.pde.equations.initial import sines


@dataclass(frozen=True, eq=False)
class KortewegDeVries(Equation):
    """u_t + 6 u u_x + delta u_xxx = 0 on a periodic interval; all without units.

    delta is the dispersion, 1 in the normal form, where u = c/2 sech^2(sqrt(c)/2 (x - c t)) is a soliton of speed c.
    Conserves the integrals of u, u^2 and u^3 - delta u_x^2 / 2. Good values: L = 32 with 128 points and dt 0.005.
    The linear part only turns phases, so the explicit term meets no damping: dt 6 |u| k must stay below about 2.8.
    """

    dispersion: Parameter = 1.0

    name: ClassVar[str] = "kdv"
    dims: ClassVar[int] = 1
    shape: ClassVar[tuple[int, ...]] = (128,)
    extent: ClassVar[tuple[float, ...]] = (32.0,)
    parity: ClassVar[int] = 0

    def __post_init__(self) -> None:
        within("dispersion", self.dispersion, 0.0, 100.0)

    @property
    def typical(self) -> Typical:
        return Typical(rms=0.7, largest=2.5, dt=0.005)

    def linear(self, k: Waves) -> Tensor:
        return 1j * spread(self.dispersion, 1) * k[0] ** 3

    def products(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul(u, u, out=out)

    def symbols(self, k: Waves) -> Tensor:
        return columns(-3.0j * k[0], 1)

    def rate(self, k: Waves, fastest: float) -> Tensor:
        return 6.0 * k[0].abs() * fastest

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """Three sines of one to three waves, rms 0.7 on average; they break into trains of solitons."""
        return sines("kdv", ids, seed, shape, count=3, amplitude=1.0, waves=3).to(dtype)

    @staticmethod
    def soliton(x: Tensor, speed: float) -> Tensor:
        """The travelling wave c/2 sech^2(sqrt(c) x / 2) of the normal form (delta = 1)."""
        return 0.5 * speed / torch.cosh(0.5 * math.sqrt(speed) * x) ** 2
