"""Allen-Cahn: two phases and the walls between them."""

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
    columns,
    spread,
    squared,
    within,
)
from scidiff.domains.pde.equations.initial import smooth


@dataclass(frozen=True, eq=False)
class AllenCahn(Equation):
    """u_t = eps^2 lap u + u - u^3 on a periodic box in one or two dimensions; all without units.

    eps is the width of a wall: tanh((x - x0)/(sqrt(2) eps)) is at rest between the phases -1 and 1, and a wall needs
    about four points. The energy, the mean of eps^2 |grad u|^2 / 2 + (u^2 - 1)^2 / 4, falls along every solution; in
    two dimensions walls move by their curvature, so a disc of radius R vanishes after R^2 / (2 eps^2).
    Good values: eps 0.1 to 0.2 on [0, 2 pi) with 128 points, dt 0.05. Cubes need the 1/2 rule: |k| < N/4.
    """

    width: Parameter = 0.15
    dims: int = 1

    name: ClassVar[str] = "allen_cahn"
    degree: ClassVar[int] = 3
    parity: ClassVar[int] = 1

    def __post_init__(self) -> None:
        within("width", self.width, 0.0, 100.0)
        if self.dims not in (1, 2):
            raise UsageError(f"Allen-Cahn is here in 1 or 2 dimensions, not in {self.dims}.")

    @property
    def shape(self) -> tuple[int, ...]:
        return (128,) * self.dims

    @property
    def extent(self) -> tuple[float, ...]:
        return (2.0 * math.pi,) * self.dims

    @property
    def typical(self) -> Typical:
        return Typical(rms=0.9, largest=1.1, dt=0.05)

    def linear(self, k: Waves) -> Tensor:
        width = spread(self.width, self.dims)
        return 1.0 - squared(k) * width**2

    def products(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.pow(u, 3, out=out)

    def symbols(self, k: Waves) -> Tensor:
        return columns(-torch.ones_like(squared(k)), self.dims)

    def rate(self, k: Waves, fastest: float) -> Tensor:
        return 3.0 * fastest**2 * torch.ones_like(squared(k))

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """Gaussian fields with equal power in the modes up to 6, rms 0.5."""
        return (0.5 * smooth("allen_cahn", ids, seed, shape, largest=6)).to(dtype)
