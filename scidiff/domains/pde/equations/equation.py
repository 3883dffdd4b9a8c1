"""What an evolution equation on a periodic box tells the solver.

    v_t = L(k) v + sum_p G_p(k) F[ P_p(u_1, ..., u_F) ] + f(k),      u_j = F^-1[ S_j(k) v ]

`v` is the half spectrum of the state (`rfftn`, norm="forward": v_0 is the mean), k the angular wavenumbers. L is the
linear symbol, S_j lifts the state to the fields that are multiplied on the grid (absent: the fields are the state),
P_p are the pointwise products, G_p their symbols and f a constant force. Every equation is one frozen dataclass in one
file; a parameter is a float or a tensor [B], one value a sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from scidiff.core.errors import UsageError

Parameter = float | Tensor
Extent = float | tuple[float, ...] | Tensor
Waves = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Typical:
    """A grown state: its rms, its largest |u|, the largest multiplied field (`speed`), and a step that resolves it."""

    rms: float
    largest: float
    dt: float
    speed: float | None = None

    @property
    def fastest(self) -> float:
        """Largest |field| of the products: the state's own, unless the state is lifted to other fields."""
        return self.largest if self.speed is None else self.speed


def spread(value: Parameter, dims: int) -> Parameter:
    """A parameter as it broadcasts against [B, C, *modes]: floats stay, a tensor [B] becomes [B, 1, 1, ...]."""
    return value.to(torch.float64).view(-1, *[1] * (dims + 1)) if isinstance(value, Tensor) else value


def squared(k: Waves) -> Tensor:
    """|k|^2 on the half spectrum."""
    total = k[0] ** 2
    for axis in k[1:]:
        total = total + axis**2
    return total


def columns(symbol: Tensor, dims: int) -> Tensor:
    """A symbol [*modes] or [B, 1, *modes] as `symbols` wants it for one channel and one product."""
    return symbol.unsqueeze(-dims - 1) if symbol.dim() > dims else symbol.unsqueeze(0).unsqueeze(0)


def joined(parts: Sequence[Tensor], dims: int) -> Tensor:
    """Symbols [*modes] or [B, 1, *modes], one a channel, as [C, *modes] or [B, C, *modes]."""
    modes = torch.broadcast_shapes(*(p.shape[-dims:] for p in parts))
    rows = [p.shape[0] for p in parts if p.dim() > dims]
    lead = (max(rows), 1) if rows else (1,)
    return torch.cat([p.expand(*lead, *modes) for p in parts], -dims - 1)


class Equation:
    """The contract of the module docstring; subclasses are frozen dataclasses whose fields are the parameters."""

    name: ClassVar[str]
    channels: ClassVar[int] = 1
    fields: ClassVar[tuple[str, ...]] = ("u",)
    units: ClassVar[tuple[str, ...]] = ("1",)
    degree: ClassVar[int] = 2  # of the products: products of degree p are free of aliases for |k| < N / (p + 1)
    dims: int = 1
    shape: tuple[int, ...]  # good default grid
    extent: tuple[float, ...]  # default lengths of the box
    burn_in: ClassVar[float] = 0.0  # time units until the state has forgotten how it began
    parity: ClassVar[int] = 0  # the sign s of the symmetry u(x) -> s u(-x); 0: no such symmetry

    @property
    def defaults(self) -> dict[str, Any]:
        """Grid, box and step that resolve a developed state."""
        return {"shape": self.shape, "extent": self.extent, "dt": self.typical.dt}

    @property
    def typical(self) -> Typical:
        raise NotImplementedError

    def linear(self, k: Waves) -> Tensor:
        """L(k), [*modes] or [B or 1, C or 1, *modes], float64 or complex128."""
        raise NotImplementedError

    def lift(self, k: Waves) -> Tensor | None:
        """S_j(k), [F, *modes] or [B, F, *modes], for equations of one channel; None where the fields are the state."""
        return None

    def products(self, u: Tensor, out: Tensor | None = None) -> Tensor:
        """P_p on the grid: [B, F, *shape] -> [B, P, *shape]; `out` may be `u` itself."""
        raise NotImplementedError

    def symbols(self, k: Waves) -> Tensor | None:
        """G_p(k), [C, P, *modes], or [B, C, P, *modes]; None where the equation is linear."""
        return None

    def force(self, k: Waves) -> Tensor | None:
        """f(k), [C, *modes], or None."""
        return None

    def rate(self, k: Waves, fastest: float) -> Tensor | None:
        """Rate of the explicit term at every wavenumber, where the multiplied fields reach `fastest`; None: linear."""
        return None

    def initial(self, ids: Tensor, seed: int, shape: tuple[int, ...], extent: Extent,
                dtype: torch.dtype = torch.float32) -> Tensor:
        """Random initial states [B, C, *shape] that depend on (seed, id) alone, whatever the batch."""
        raise NotImplementedError

    def __getitem__(self, rows: slice | list[int]) -> Self:
        """The same equation for a part of the batch."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**{n: v[rows] if isinstance(v, Tensor) and v.dim() else v for n, v in mine.items()})

    def to_config(self) -> dict[str, Any]:
        """JSON: the name and the parameters; tensors become lists."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **{n: v.tolist() if isinstance(v, Tensor) else v for n, v in mine.items()}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The inverse of `to_config`; lists become float64 tensors."""
        given = {n: v for n, v in config.items() if n != "name"}
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for n in given:
            if n not in known:
                raise UsageError(f"The equation {cls.name!r} has no parameter {n!r}.", f"It has: {', '.join(known)}.")
        return cls(**{n: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for n, v in given.items()})


def within(name: str, value: Parameter, low: float, high: float, closed: bool = False) -> None:
    """Refuses a parameter outside of (low, high), or of [low, high]."""
    least, most = (float(value.min()), float(value.max())) if isinstance(value, Tensor) else (float(value),) * 2
    inside = (low <= least and most <= high) if closed else (low < least and most < high)
    if not (math.isfinite(least) and math.isfinite(most) and inside):
        bad = least if not low <= least or not math.isfinite(least) else most
        raise UsageError(f"The {name.replace('_', ' ')} is {bad:g}; it must lie between {low:g} and {high:g}.")
