"""A path that exists at given noise levels only; the last one may be pure noise.

    x_j = sqrt(1 - std_j^2) x0 + std_j eps,     t_j = (j + 1) / (K + 1),  j = 0 .. K;   t = 0 is the data

With std_K = 1 the first network call sees no signal and predicts the mean; later calls refine (Lippe et al. 2023,
PDE-Refiner, arXiv 2308.05732). The step from pure noise is exactly "re-noise the prediction". The natural prediction
is `angular` (v-prediction), which is -x0 at pure noise; there is no velocity, since there is no time between levels.
Pure noise tells a network nothing, so with `blank` it sees zeros there: the first call is then a function of its
conditions alone, and a path of the one level 1 is plain regression, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.base import Time, spread
from scidiff.core.path.gaussian import GaussianPath

if TYPE_CHECKING:
    from scidiff.core.spec import Site


@dataclass(frozen=True)
class LevelPath(GaussianPath):
    """`stds` rise strictly from the finest level to the coarsest, at most 1."""

    kinds: ClassVar[frozenset[str]] = frozenset({"data", "noise", "score", "angular"})
    default_kind: ClassVar[str] = "angular"

    stds: tuple[float, ...] = (1.0,)
    blank: bool = True
    _: KW_ONLY
    t_min: float = 0.0

    def __post_init__(self) -> None:
        stds = tuple(float(s) for s in self.stds)
        if not stds or stds[0] <= 0.0 or stds[-1] > 1.0 or any(b <= a for a, b in pairwise(stds)):
            raise ScidiffError(f"The levels of a path rise strictly within (0, 1], unlike {stds}.")
        object.__setattr__(self, "stds", stds)
        if self.t_min <= 0.0:
            object.__setattr__(self, "t_min", 1.0 / len(stds))
        super().__post_init__()
        if self.weight in ("velocity", "likelihood"):
            raise ScidiffError(f"A path of levels has no {self.weight!r} weight: nothing lies between its levels.")

    @classmethod
    def geometric(cls, sigma_min: float, steps: int, **more: float) -> LevelPath:
        """The stds of PDE-Refiner: betas geometric from sigma_min^2 to 1 over `steps` refinements, as stds."""
        if steps < 1:
            return cls((1.0,), **more)  # type: ignore[arg-type]
        kept, stds = 1.0, []
        for j in range(steps + 1):
            kept *= 1.0 - sigma_min ** (2.0 * (steps - j) / steps)
            stds.append(math.sqrt(max(1.0 - kept, 0.0)))
        return cls(tuple(stds), **more)  # type: ignore[arg-type]

    @property
    def levels(self) -> tuple[float, ...]:
        """The legal times, rising."""
        n = len(self.stds)
        return tuple((j + 1) / n for j in range(n))

    def features(self, z: Tensor, t: Time, ctx: Site) -> Tensor:
        """z, or zeros at pure noise (with `blank`)."""
        if not self.blank or self.stds[-1] < 1.0:
            return z
        pure = 1.0 - 0.5 / len(self.stds)  # between the last two levels
        if isinstance(t, Tensor):
            return torch.where(spread(t, z) > pure, torch.zeros_like(z), z)
        return torch.zeros_like(z) if t > pure else z

    def level(self, t: Tensor) -> Tensor:
        """Index of the level at time t, with -1 for the data; refuses other times."""
        place = t * len(self.stds) - 1.0
        index = place.round().long()
        if bool(((place - index).abs() > 1e-4).any()):
            raise ScidiffError("This path exists at its levels only; use their times (`path.levels`).")
        return index

    def sigma(self, t: Tensor) -> Tensor:
        table = torch.tensor((*self.stds, 0.0), dtype=torch.float64, device=t.device)
        return table[self.level(t)]

    def alpha(self, t: Tensor) -> Tensor:
        s = self.sigma(t)
        return ((1.0 - s) * (1.0 + s)).sqrt()

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.nan)

    def dsigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.nan)

    def _t_of_lambda(self, lam: Tensor) -> Tensor:
        times = torch.tensor(self.levels, dtype=torch.float64, device=lam.device)
        distance = (lam.unsqueeze(-1).clamp(min=-40.0) - self.lam(times).clamp(min=-40.0)).abs()
        nearest = distance.argmin(-1)
        if bool((distance.gather(-1, nearest.unsqueeze(-1)) > 1e-6).any()):
            raise ScidiffError("No level of this path has that signal-to-noise ratio.")
        return times[nearest]
