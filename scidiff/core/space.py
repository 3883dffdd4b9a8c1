"""Spaces: the geometry in which one component of the state lives, and nothing else.

A space knows how to move (`retract`), how to compare (`log`, `inner`), how to keep a tangent vector inside itself
(`project`) and how many degrees of freedom a sample has (`ndim`). Tensors are [B, *shape]; `mask` is a boolean tensor
that broadcasts against them (True = real entry) or None.

Noise drawn for a space is the projection of standard normal noise, so it has unit variance per degree of freedom.
Symmetric spaces draw by unordered pair. A torus has coordinates in [0, period).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


def sample_sum(x: Tensor) -> Tensor:
    """Sum over everything but the batch axis, shape [B]."""
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with zeros on padding."""
    return x if mask is None else x * mask.to(x.dtype)


@dataclass(frozen=True)
class Space:
    """Common behaviour of flat spaces; `symmetric` says that entries (i, j) and (j, i) are one."""

    symmetric: ClassVar[bool] = False
    categorical: ClassVar[bool] = False
    wraps: ClassVar[bool] = False

    def project(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The nearest tangent vector of the space, zero on padding."""
        return masked(u, mask)

    def retract(self, x: Tensor, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The point reached from x along the tangent vector u."""
        return x + u

    def wrap(self, x: Tensor) -> Tensor:
        """The canonical representative of x; the identity where the space does not wrap."""
        return x

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest tangent vector from x to y."""
        return y - x

    def inner(self, u: Tensor, w: Tensor) -> Tensor:
        """Inner product per sample, shape [B]."""
        return sample_sum(u * w)

    def ndim(self, dims: tuple[int, ...], mask: Tensor | None, batch: int) -> Tensor:
        """Degrees of freedom per sample, float64 [B]; `dims` is the per-sample shape."""
        if mask is None:
            return torch.full((batch,), float(torch.Size(dims).numel()), dtype=torch.float64)
        return sample_sum(mask.expand(batch, *dims).to(torch.float64))

    def to_config(self) -> dict[str, Any]:
        return {"_target_": f"{type(self).__module__}.{type(self).__name__}", **asdict(self)}


@dataclass(frozen=True)
class Euclidean(Space):
    """R^n: images, fields, feature vectors, and anything behind a chart."""


@dataclass(frozen=True)
class ZeroMean(Space):
    """Point clouds [B, N, d] whose masked mean over the points is zero (translations removed)."""

    def project(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return u - u.mean(1, keepdim=True)
        m = mask.to(u.dtype)
        count = m.sum(1, keepdim=True).clamp(min=1)
        return (u - (u * m).sum(1, keepdim=True) / count) * m

    def ndim(self, dims: tuple[int, ...], mask: Tensor | None, batch: int) -> Tensor:
        full = super().ndim(dims, mask, batch)
        return (full - torch.Size(dims[1:]).numel()).clamp(min=0)


@dataclass(frozen=True)
class Symmetric(Space):
    """Symmetric matrices [B, N, N, ...] with zero diagonal (undirected graphs): one degree of freedom a pair."""

    symmetric: ClassVar[bool] = True

    def project(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        half = 0.5 * (u + u.transpose(1, 2))
        off = ~torch.eye(u.shape[1], dtype=torch.bool, device=u.device)
        return masked(half, mask) * off.view(1, *off.shape, *[1] * (u.dim() - 3)).to(u.dtype)

    def inner(self, u: Tensor, w: Tensor) -> Tensor:
        return 0.5 * sample_sum(u * w)

    def ndim(self, dims: tuple[int, ...], mask: Tensor | None, batch: int) -> Tensor:
        tail = torch.Size(dims[2:]).numel()
        if mask is None:
            return torch.full((batch,), dims[0] * (dims[0] - 1) / 2 * tail, dtype=torch.float64)
        pairs = mask.expand(batch, *dims[:2], *mask.shape[3:]).flatten(3)[..., 0] if mask.dim() > 3 else mask
        n = pairs.diagonal(dim1=1, dim2=2).to(torch.float64).sum(-1)
        return n * (n - 1) / 2 * tail


@dataclass(frozen=True)
class Torus(Space):
    """Periodic coordinates in [0, period): fractional coordinates, angles."""

    period: float = 1.0
    wraps: ClassVar[bool] = True

    def wrap(self, x: Tensor) -> Tensor:
        # A tiny negative number rounds up to the period itself; fold it once more.
        y = torch.remainder(x, self.period)
        return torch.where(y >= self.period, y - self.period, y)

    def retract(self, x: Tensor, u: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.wrap(x + u)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        half = 0.5 * self.period
        return torch.remainder(y - x + half, self.period) - half


@dataclass(frozen=True)
class Categorical(Space):
    """K classes per entry, stored as int64 indices; `pairs=True` for unordered pairs (bonds of a graph)."""

    classes: int = 2
    pairs: bool = False
    categorical: ClassVar[bool] = True

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.pairs

    def project(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """Symmetrises real-valued scores over pairs; class indices need none."""
        if self.pairs and u.is_floating_point() and u.dim() == 4:
            u = 0.5 * (u + u.transpose(1, 2))
        return masked(u, mask)

    def ndim(self, dims: tuple[int, ...], mask: Tensor | None, batch: int) -> Tensor:
        return torch.zeros(batch, dtype=torch.float64)
