"""Charts of a lattice: a cell matrix as a few real numbers, and back.

Rows of a matrix L [3, 3] are the cell vectors a, b, c in Angstrom; a point of fractional coordinates f lies at f L. A
crystal knows its cell up to rotations only, so every chart depends on the Gram matrix G = L L^T alone, and `decode`
gives the matrix in one orientation ("upright": c along z, a in the x-z plane),

    a = (a sin beta, 0, a cos beta),  b = b (-sin alpha cos g, sin alpha sin g, cos alpha),  c = (0, 0, c),
    cos g = (cos alpha cos beta - cos gamma) / (sin alpha sin beta)

    matrix9          the nine numbers of the upright L, row after row; decode leaves a matrix as it is
    lengths_angles   log a, log b, log c; logit((angle - 59.9) / 60.2) of alpha, beta, gamma in degrees: cells whose
                     angles lie between 59.9 and 120.1, as those of all reduced cells do
    polar6           S = log(G) / 2: entries 0-2 sqrt(2) S_01, sqrt(2) S_02, sqrt(2) S_12; entries 3, 4
                     (S_00 - S_11) / sqrt(2), (S_00 + S_11 - 2 S_22) / sqrt(6); entry 5 tr(S) / 3 = log(volume) / 3,
                     apart from the shape. L = exp(S) up to a rotation (Luo et al. 2025, CrystalFlow, arXiv 2412.11693)
    ltri6            the Cholesky factor T of G = T T^T: log T_00, log T_11, log T_22, T_10, T_20, T_21

Encoding and decoding are computed in float64 and given in the dtype of the argument.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, UsageError, nearest

LOWEST, HIGHEST = 59.9, 120.1
_FLAT = 1e-6  # least sin(g)^2 of a decoded cell, so that three impossible angles still give numbers


def parameters(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths [B, 3] in Angstrom and angles [B, 3] (alpha, beta, gamma) in degrees of cells [B, 3, 3]."""
    lengths = matrix.norm(dim=-1)
    unit = matrix / lengths.unsqueeze(-1)
    first, second = unit[:, (1, 0, 0)], unit[:, (2, 2, 1)]
    # The angle of two unit vectors, exact also where they are nearly parallel.
    angles = 2 * torch.atan2((first - second).norm(dim=-1), (first + second).norm(dim=-1))
    return lengths, torch.rad2deg(angles)


def from_parameters(lengths: Tensor, angles: Tensor) -> Tensor:
    """The upright matrix [B, 3, 3] of lengths [B, 3] and angles [B, 3] in degrees."""
    radians = torch.deg2rad(angles)
    cosine, sine = radians.cos(), radians.sin()
    g = (cosine[:, 0] * cosine[:, 1] - cosine[:, 2]) / (sine[:, 0] * sine[:, 1])
    g = g.clamp(-math.sqrt(1 - _FLAT), math.sqrt(1 - _FLAT))
    zero = torch.zeros_like(g)
    a = torch.stack([sine[:, 1], zero, cosine[:, 1]], -1)
    b = torch.stack([-sine[:, 0] * g, sine[:, 0] * (1 - g * g).sqrt(), cosine[:, 0]], -1)
    c = torch.stack([zero, zero, torch.ones_like(g)], -1)
    return torch.stack([a, b, c], 1) * lengths.unsqueeze(-1)


def upright(matrix: Tensor) -> Tensor:
    """The same cells turned so that c lies along z and a in the x-z plane."""
    return from_parameters(*parameters(matrix))


class Chart(ABC):
    """encode: matrix [B, 3, 3] -> [B, dim]; decode: [B, dim] -> matrix [B, 3, 3]."""

    name: ClassVar[str]
    dim: ClassVar[int] = 6

    def encode(self, matrix: Tensor) -> Tensor:
        """Coordinates of cells; ScidiffError where one is not finite or has no volume."""
        exact = matrix.to(torch.float64)
        if not torch.isfinite(exact).all() or (torch.linalg.det(exact).abs() <= 0).any():
            raise ScidiffError("A cell that is not finite or has no volume has no coordinates.")
        return self._encode(exact).to(matrix.dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Cells of coordinates; numbers that are not finite stay so."""
        return self._decode(x.to(torch.float64)).to(x.dtype)

    @abstractmethod
    def _encode(self, matrix: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, x: Tensor) -> Tensor: ...


class Matrix9(Chart):
    """The numbers of the upright matrix."""

    name = "matrix9"
    dim = 9

    def _encode(self, matrix: Tensor) -> Tensor:
        return upright(matrix).flatten(1)

    def _decode(self, x: Tensor) -> Tensor:
        return x.view(-1, 3, 3)


class LengthsAngles(Chart):
    """Log lengths, and angles through a logit."""

    name = "lengths_angles"

    def _encode(self, matrix: Tensor) -> Tensor:
        lengths, angles = parameters(matrix)
        share = (angles - LOWEST) / (HIGHEST - LOWEST)
        if ((share <= 0) | (share >= 1)).any():
            raise UsageError(f"The chart {self.name} takes cells with angles between {LOWEST} and {HIGHEST} degrees.",
                             "Reduce the cells (data.options.niggli=true), or take the chart polar6.")
        return torch.cat([lengths.log(), torch.logit(share)], -1)

    def _decode(self, x: Tensor) -> Tensor:
        return from_parameters(x[:, :3].exp(), LOWEST + (HIGHEST - LOWEST) * torch.sigmoid(x[:, 3:]))


class Polar6(Chart):
    """The logarithm of the polar factor: entries 0-4 the shape, entry 5 log(volume) / 3."""

    name = "polar6"

    def _encode(self, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix @ matrix.transpose(1, 2))
        s = 0.5 * (vectors * values.log().unsqueeze(1)) @ vectors.transpose(1, 2)
        off = math.sqrt(2.0) * torch.stack([s[:, 0, 1], s[:, 0, 2], s[:, 1, 2]], -1)
        x, y, z = s.diagonal(dim1=1, dim2=2).unbind(-1)
        shape = torch.stack([(x - y) / math.sqrt(2.0), (x + y - 2 * z) / math.sqrt(6.0)], -1)
        return torch.cat([off, shape, ((x + y + z) / 3).unsqueeze(-1)], -1)

    def _decode(self, x: Tensor) -> Tensor:
        off, (p, q, size) = x[:, :3] / math.sqrt(2.0), (x[:, i] for i in (3, 4, 5))
        p, q = p / math.sqrt(2.0), q / math.sqrt(6.0)
        s = torch.diag_embed(torch.stack([p + q, q - p, -2 * q], -1))
        for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            s[:, i, j] = s[:, j, i] = off[:, k]
        return upright(torch.linalg.matrix_exp(s) * size.exp().view(-1, 1, 1))


class Ltri6(Chart):
    """A lower triangular matrix with positive diagonal."""

    name = "ltri6"

    def _encode(self, matrix: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(matrix @ matrix.transpose(1, 2))
        below = torch.stack([factor[:, 1, 0], factor[:, 2, 0], factor[:, 2, 1]], -1)
        return torch.cat([factor.diagonal(dim1=1, dim2=2).log(), below], -1)

    def _decode(self, x: Tensor) -> Tensor:
        factor = torch.diag_embed(x[:, :3].exp())
        for k, (i, j) in enumerate(((1, 0), (2, 0), (2, 1))):
            factor[:, i, j] = x[:, 3 + k]
        return upright(factor)


CHARTS: dict[str, type[Chart]] = {c.name: c for c in (Matrix9, LengthsAngles, Polar6, Ltri6)}


def chart(name: str) -> Chart:
    """The chart of that name; UsageError with the nearest ones where there is none."""
    if name not in CHARTS:
        raise UsageError(f"There is no lattice chart {name!r}.", nearest(name, CHARTS))
    return CHARTS[name]()
