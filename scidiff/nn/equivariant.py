"""A network for periodic crystals in Cartesian space: edges are spherical harmonics of vectors, states are tensors.

Rows of L are lattice vectors; d_ij = f_j - f_i, x = d_ij - floor(d_ij) in [0, 1) along each axis. Of the images of atom
j the eight around atom i are taken, blended so that no jump remains where an image enters or leaves:

    r_n = (x - n) L,   n in {0, 1}^3,     w_n = prod_axes cos^2(pi x / 2) where n = 0, sin^2(pi x / 2) where n = 1
    A^l_ij[c] = sum_n w_n exp(-(|r_n| - m_c)^2 / 2 s^2) Y^l(r_n / sqrt(r_n^2 + eps^2))                 (sum_n w_n = 1)

with real spherical harmonics Y^l up to l = lmax (the library e3nn: Geiger & Smidt 2022, arXiv 2207.09453). An atom
has scalars s [w] and, for each l >= 1, C tensors v^l [C, 2 l + 1]. One layer: messages e_ij of scalars as in
`scidiff.nn.cspnet`, with A^0_ij beside the sines and cosines; they weigh the tensors that arrive,

    V^l_i = mean_j (a(e_ij) A^l_ij + b(e_ij) v^l_j),      p, q = two linear mixtures of V over channels
    s_i += MLP(s_i, mean_j e_ij, p^l . q^l),              v^l_i += gates * (p^l, Clebsch-Gordan products p^l1 x q^l2)

Products of equal parity alone are kept, so reflections are respected. Outputs: the vector u of an atom read along each
lattice vector, u . L_a / |L_a|^2 (the fractional coordinates of u in a rectangular cell, and finite in a flat one),
to which the scalars add their own numbers; and the lattice C L + L T with C [3, 3] from scalars and a tensor T [3, 3]
from scalars, v^2 and outer products of vectors. Under L -> L Q with orthogonal Q types and displacements stay and the
lattice turns along; a common shift of f changes nothing.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.nn.cspnet import AtomInputs, EdgeLinear, Values, atoms, gram, mean_atom, neighbours, pair_fourier

if TYPE_CHECKING:
    from scidiff.core.spec import Context

SOFT = 0.1
"""Length, in the units of L, below which the direction of a vector fades."""


def harmonics(lmax: int) -> nn.Module:
    """Y^0 ... Y^lmax of vectors [..., 3] as [..., (lmax + 1)^2]: polynomials, |Y^l|^2 = 2 l + 1 on the unit sphere.

    Raises MissingLibrary without e3nn.
    """
    try:
        from e3nn import get_optimization_defaults, o3, set_optimization_defaults
    except ModuleNotFoundError as error:
        raise MissingLibrary("e3nn", "The equivariant backbone", 'pip install "scidiff[equivariant]"') from error
    before = get_optimization_defaults()["jit_mode"]
    set_optimization_defaults(jit_mode="eager")  # plain operations: they compile, and differentiate twice
    try:
        return o3.SphericalHarmonics(list(range(lmax + 1)), normalize=False, normalization="component")
    finally:
        set_optimization_defaults(jit_mode=before)


def clebsch_gordan(l1: int, l2: int, l3: int) -> Tensor:
    """The coupling [2 l1 + 1, 2 l2 + 1, 2 l3 + 1] of unit-variance entries to entries of unit variance, float64."""
    from e3nn import o3

    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)


def paths(lmax: int) -> list[tuple[int, int, int]]:
    """(l1, l2, l3) of all products of tensors, 1 <= l <= lmax, that keep the parity of polynomials."""
    degrees = range(1, lmax + 1)
    return [(a, b, c) for a, b, c in product(degrees, repeat=3)
            if a <= b and b - a <= c <= a + b and (a + b + c) % 2 == 0]


def soft(x: Tensor) -> Tensor:
    """Tensors [..., C, m] brought to about unit size; small ones stay as they are."""
    return x * (1 + x.square().mean((-1, -2), keepdim=True)).rsqrt()


class Surroundings(nn.Module):
    """Radial shells times spherical harmonics of the vectors between atoms, and of those to the nearest cells."""

    def __init__(self, channels: int, reach: float, lmax: int) -> None:
        super().__init__()
        self.sphere, self.lmax, self.step = harmonics(lmax), lmax, reach / channels
        self.register_buffer("centres", self.step * torch.arange(channels), persistent=False)
        corners = torch.tensor(list(product((0.0, 1.0), repeat=3)))
        self.register_buffer("corners", corners, persistent=False)
        around = [n for n in product((-1.0, 0.0, 1.0), repeat=3) if any(n)]
        self.register_buffer("around", torch.tensor(around), persistent=False)

    def pairs(self, frac: Tensor, rows: Tensor) -> list[Tensor]:
        """A^l [B, N, N, C, 2 l + 1] for each l, of coordinates [B, N, 3] and lattices [B, 3, 3]."""
        x = frac.unsqueeze(1) - frac.unsqueeze(2)
        x = (x - x.floor()).unsqueeze(-2)
        corners = self.corners.to(x.dtype)
        near = (0.5 * math.pi * x).cos().square()
        weight = torch.where(corners > 0, 1 - near, near).prod(-1)
        return self._moments((x - corners) @ rows[:, None, None], weight)

    def cells(self, rows: Tensor) -> list[Tensor]:
        """The same of the 26 cells around, [B, C, 2 l + 1]; those of odd l vanish."""
        vectors = self.around.to(rows.dtype) @ rows
        return self._moments(vectors, torch.ones_like(vectors[..., 0]))

    def _moments(self, vectors: Tensor, weight: Tensor) -> list[Tensor]:
        length = (vectors.square().sum(-1) + SOFT**2).sqrt()
        shell = (length.unsqueeze(-1) - self.centres.to(length.dtype)) / self.step
        shell = (-0.5 * shell.square()).exp() * weight.unsqueeze(-1)
        total = shell.transpose(-1, -2) @ self.sphere(vectors / length.unsqueeze(-1))
        return [total[..., degree**2 : (degree + 1) ** 2] for degree in range(self.lmax + 1)]


class Layer(nn.Module):
    """One round of messages: scalars and tensors of each atom from those of all."""

    def __init__(self, width: int, channels: int, cell: int, geometry: int, lmax: int) -> None:
        super().__init__()
        self.width, self.channels, self.lmax, self.paths = width, channels, lmax, paths(lmax)
        self.norm = nn.LayerNorm(width)
        self.first = EdgeLinear(width, cell, geometry)
        self.second = nn.Linear(width, width)
        self.strength = nn.Linear(width, 2 * lmax * channels)
        self.mix = nn.ModuleList(nn.Linear(channels, 2 * channels, bias=False) for _ in range(lmax))
        gates = channels * (lmax + len(self.paths))
        self.node = nn.Sequential(nn.Linear(2 * width + lmax * channels, width), nn.SiLU(),
                                  nn.Linear(width, width + gates))
        for i, path in enumerate(self.paths):
            self.register_buffer(f"coupling{i}", clebsch_gordan(*path), persistent=False)

    def forward(self, s: Tensor, v: list[Tensor], around: list[Tensor], geometry: Tensor, cell: Tensor, seen: Tensor,
                count: Tensor) -> tuple[Tensor, list[Tensor]]:
        """s [B, N, w]; for each l >= 1 v [B, N, C, 2 l + 1] and around [B, N, N, C, 2 l + 1]; seen [B, N, N]."""
        u = self.norm(s)
        e = F.silu(self.second(F.silu(self.first(u, cell, geometry))))
        mean = (seen.to(e.dtype).unsqueeze(2) @ e).squeeze(2) / count
        share = (seen / count).unsqueeze(-1)
        strength = (self.strength(e) * share).chunk(2 * self.lmax, -1)
        left, right, products = [], [], []
        for i, old in enumerate(v):
            arrived = ((strength[2 * i].unsqueeze(-1) * around[i]).sum(2)
                       + torch.einsum("bijc,bjcm->bicm", strength[2 * i + 1], soft(old)))
            p, q = self.mix[i](soft(arrived).transpose(-1, -2)).transpose(-1, -2).chunk(2, -2)
            left.append(p)
            right.append(q)
            products.append((p * q).sum(-1) / math.sqrt(p.shape[-1]))
        out = self.node(torch.cat([u, mean, *products], -1))
        gates = out[..., self.width :].unsqueeze(-1).split(self.channels, -2)
        v = [old + gate * p for old, gate, p in zip(v, gates, left, strict=False)]
        for i, (a, b, c) in enumerate(self.paths):
            coupling = getattr(self, f"coupling{i}").to(left[0].dtype)
            pair = (left[a - 1].unsqueeze(-1) * right[b - 1].unsqueeze(-2)).flatten(-2)
            v[c - 1] = v[c - 1] + gates[self.lmax + i] * (pair @ coupling.flatten(0, 1))
        return s + out[..., : self.width], v


class EquivariantCrystal(nn.Module):
    """Predicts types, coordinates and lattices of crystals whose lattice is a matrix (chart matrix9, one scale).

    width: scalars of an atom; channels: tensors of each degree up to `lmax`, and radial shells out to `reach` (units of
    the standardised lattice); frequencies: sines and cosines of each axis' differences. The rest as in `CSPNetDense`.
    """

    def __init__(self, classes: int, seen: int | None = None, lattice_size: int = 9, extra: int = 0, width: int = 64,
                 channels: int = 16, depth: int = 3, lmax: int = 2, reach: float = 4.0, frequencies: int = 8,
                 clock: int = 64, steps: int | None = None, size_input: bool = True, self_conditioning: bool = False,
                 separate_times: bool = False, conditions: dict[str, int] | None = None) -> None:
        super().__init__()
        if lattice_size != 9:
            raise UsageError("The equivariant backbone turns with the lattice: it needs a matrix of nine numbers, "
                             f"not {lattice_size}.", "Choose the chart matrix9, or a backbone cspnet_*.")
        if lmax < 2:
            raise UsageError(f"backbone.lmax must be 2 or more, not {lmax}.")
        self.self_conditioning, self.lmax = self_conditioning, lmax
        self.register_buffer("frequencies", torch.arange(1, 1 + frequencies), persistent=False)
        self.register_buffer("quadrupole", clebsch_gordan(2, 1, 1), persistent=False)
        self.surroundings = Surroundings(channels, reach, lmax)
        self.inputs = AtomInputs(seen or classes, classes, width, extra, 3 if separate_times else 1, clock, steps,
                                 size_input, self_conditioning, conditions)
        self.cell_in = nn.Linear(channels, width, bias=False)
        self.tensors_in = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in range(2, lmax + 1, 2))
        cell, geometry = 9 * (1 + self_conditioning), channels + 6 * frequencies
        self.layers = nn.ModuleList(Layer(width, channels, cell, geometry, lmax) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.frac_out = nn.Linear(width, 3, bias=False)
        self.push_out = nn.Linear(channels, 1, bias=False)
        self.lattice_out = nn.Linear(width, 9 + 1, bias=False)
        self.outer_out = nn.Linear(channels, 2, bias=False)
        self.quadrupole_out = nn.Linear(channels, 1, bias=False)
        self.types_out = nn.Linear(width, classes, bias=False)

    def forward(self, features: Values, t: Tensor, ctx: Context, previous: Values | None = None) -> Values:
        kind = self.norm.weight.dtype
        exact = torch.float64 if kind == torch.float64 else torch.float32
        frac = features["frac"].to(exact)
        frac = frac.unsqueeze(-1) if frac.dim() == 3 else frac
        rows = features["lattice"].to(exact).view(-1, 3, 3)
        real = atoms(frac, ctx)
        seen, count = neighbours(real, self_pairs=True)
        with torch.autocast(frac.device.type, enabled=False):
            around, beyond = self.surroundings.pairs(frac[..., 0], rows), self.surroundings.cells(rows)
            geometry = torch.cat([around[0].squeeze(-1), pair_fourier(frac[..., 0], self.frequencies)], -1).to(kind)
            cell = gram(rows)
            if self.self_conditioning:
                past = gram(previous["lattice"].to(exact).view(-1, 3, 3)) if previous else torch.zeros_like(cell)
                cell = torch.cat([cell, past], -1)
        around, cell, seen = [x.to(kind) for x in around[1:]], cell.to(kind), seen.to(kind)
        h = self.inputs(features, frac, t, ctx, previous, real.sum(1))
        h = h + self.cell_in(beyond[0].squeeze(-1).to(kind)).unsqueeze(1)
        v = [x.to(kind) for x in beyond[1:]]
        for mix, degree in zip(self.tensors_in, range(2, self.lmax + 1, 2), strict=True):
            v[degree - 1] = mix(v[degree - 1].transpose(-1, -2)).transpose(-1, -2)
        v = [x.unsqueeze(1).expand(*h.shape[:2], -1, -1) for x in v]
        for layer in self.layers:
            h, v = layer(h, v, around, geometry, cell, seen, count)
        h = self.norm(h)
        return {"types": self.types_out(h), "frac": self._displacement(h, soft(v[0]), rows),
                "lattice": self._lattice(h, v, rows, real)}

    def _displacement(self, s: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
        """[B, N, 3], along each lattice vector in units of its length."""
        push = self.push_out(vectors.transpose(-1, -2)).squeeze(-1).to(rows.dtype)
        with torch.autocast(push.device.type, enabled=False):
            along = push @ (rows / (rows.square().sum(-1, keepdim=True) + SOFT)).transpose(1, 2)
        return self.frac_out(s) / (2 * math.pi) + along

    def _lattice(self, s: Tensor, v: list[Tensor], rows: Tensor, real: Tensor) -> Tensor:
        """C L + L T, [B, 9]."""
        invariant = self.lattice_out(mean_atom(s, real)).to(rows.dtype)
        first, second = self.outer_out(soft(v[0]).transpose(-1, -2)).to(rows.dtype).unbind(-1)
        bent = self.quadrupole_out(mean_atom(soft(v[1]), real).transpose(-1, -2)).squeeze(-1).to(rows.dtype)
        with torch.autocast(s.device.type, enabled=False):
            tensor = mean_atom(first.unsqueeze(-1) * second.unsqueeze(-2), real)
            tensor = tensor + torch.einsum("bm,mxy->bxy", bent, self.quadrupole.to(rows.dtype))
            eye = torch.eye(3, dtype=rows.dtype, device=rows.device)
            tensor = tensor + invariant[:, 9, None, None] * eye
            return (invariant[:, :9].view(-1, 3, 3) @ rows + rows @ tensor).flatten(1)
