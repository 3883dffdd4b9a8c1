"""Gray-Scott: two reacting species whose spots grow and divide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.core.run import uniform
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


@dataclass(frozen=True, eq=False)
class GrayScott(Equation):
    """a_t = D_a lap a - a b^2 + F (1 - a),  b_t = D_b lap b + a b^2 - (F + K) b, on a periodic square; without units.

    a is fed at the rate F, b leaves at the rate F + K. Diffusion D_a = 2e-5, D_b = 1e-5 on a square of side 2.5 is the
    classical setting; F, K choose the pattern: 0.03, 0.062 spots that divide; 0.04, 0.06 worms; 0.03, 0.0565 a maze.
    Good values: 128 x 128 points, dt 1 (times are long: thousands of units).
    """

    feed: Parameter = 0.03
    kill: Parameter = 0.062
    diffusion_a: Parameter = 2e-5
    diffusion_b: Parameter = 1e-5

    name: ClassVar[str] = "gray_scott"
    dims: ClassVar[int] = 2
    channels: ClassVar[int] = 2
    fields: ClassVar[tuple[str, ...]] = ("a", "b")
    units: ClassVar[tuple[str, ...]] = ("1", "1")
    degree: ClassVar[int] = 3
    shape: ClassVar[tuple[int, ...]] = (128, 128)
    extent: ClassVar[tuple[float, ...]] = (2.5, 2.5)
    burn_in: ClassVar[float] = 1000.0
    parity: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("feed", "kill", "diffusion_a", "diffusion_b"):
            within(name, getattr(self, name), 0.0, 1.0, closed=True)

    @property
    def typical(self) -> Typical:
        return Typical(rms=0.6, largest=1.0, dt=1.0)

    def linear(self, k: Waves) -> Tensor:
        square, feed, kill = squared(k), spread(self.feed, 2), spread(self.kill, 2)
        return joined((-spread(self.diffusion_a, 2) * square - feed,
                       -spread(self.diffusion_b, 2) * square - feed - kill), 2)

    def products(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        """a b^2."""
        return u[:, :1] * u[:, 1:].square()

    def symbols(self, k: Waves) -> Tensor:
        one = torch.ones_like(squared(k))
        return joined((-one, one), 2).unsqueeze(-3)

    def force(self, k: Waves) -> Tensor:
        fed = (squared(k) == 0.0).to(torch.float64) * spread(self.feed, 2)
        return joined((fed, torch.zeros_like(fed)), 2)

    def rate(self, k: Waves, fastest: float) -> Tensor:
        return fastest**2 * torch.ones_like(squared(k))

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """a = 1, b = 0 with eight smooth spots of a = 0.5, b = 0.25 at random places, 1/25 of the box in radius."""
        place = uniform(seed, ids, "gray_scott.place", 16).view(-1, 8, 2)
        near = torch.zeros(len(ids), *shape, dtype=torch.float64, device=ids.device)
        axes = [torch.arange(n, dtype=torch.float64, device=ids.device) / n for n in shape]
        for spot in place.unbind(1):
            away = [torch.sin(math.pi * (x - spot[:, i, None])) / math.pi for i, x in enumerate(axes)]
            square = away[0][:, :, None] ** 2 + away[1][:, None, :] ** 2
            near = torch.maximum(near, torch.exp(-square / (2.0 * 0.04**2)))
        return torch.stack([1.0 - 0.5 * near, 0.25 * near], 1).to(dtype)
