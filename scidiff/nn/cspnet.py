"""CSPNet on padded tensors: a network for periodic crystals that sees differences of fractional coordinates alone.

Atoms i of a cell have fractional coordinates f_i (a torus, period 1) and states h_i [w]; cell invariants are c [d]. One
layer (Jiao et al. 2023, arXiv 2309.04475), with u = LN(h) and frequencies k:

    g_ij = (sin 2 pi k (f_j - f_i), cos 2 pi k (f_j - f_i))                      for each k and axis
    e_ij = silu(W2 silu(W [u_i, u_j, c, g_ij] + b) + b2)
    h_i += MLP([u_i, mean_j e_ij])

W is one matrix, as published, but never meets a concatenation: W [u_i, u_j, c, g_ij] = W_i u_i + W_j u_j + W_c c +
W_g g_ij, so that products are made per atom, per crystal and per pair where they belong. Sines and cosines are taken
once per atom; those of pairs follow from the identities of angle differences. The mean runs over the other atoms (over
the atom itself where it is alone; with `self_pairs` over all, as published).

Outputs: a displacement of each atom along each axis in periods, logits of the types, and the lattice: d numbers of an
invariant chart, or with `lattice="matrix"` (rows are lattice vectors) C L, C [3, 3] read off the mean atom and L L^T
taken as the invariants. Permutations of the atoms permute; a common shift of all f changes nothing, nor does a rotation
or reflection L -> L Q but the output for L, which turns along. Entries beyond a crystal's size are never read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.nn.embed import ConditionEmbedding, TimeEmbedding

if TYPE_CHECKING:
    from scidiff.core.spec import Context

LATTICES = ("invariant", "matrix")
Values = dict[str, Tensor]


def pair_fourier(frac: Tensor, frequencies: Tensor) -> Tensor:
    """sin and cos of 2 pi k (f_j - f_i): [B, N, N, 6 K] of coordinates [B, N, 3] and whole numbers k [K].

    Sines come first; each half runs over axes, then frequencies.
    """
    angle = (2 * math.pi * frac.unsqueeze(-1) * frequencies.to(frac.dtype)).flatten(2)
    sin, cos = angle.sin(), angle.cos()
    sin_i, cos_i, sin_j, cos_j = sin.unsqueeze(2), cos.unsqueeze(2), sin.unsqueeze(1), cos.unsqueeze(1)
    return torch.cat([sin_j * cos_i - cos_j * sin_i, cos_j * cos_i + sin_j * sin_i], -1)


def gram(rows: Tensor) -> Tensor:
    """L L^T of lattices [B, 3, 3], flat: [B, 9]."""
    return (rows @ rows.transpose(1, 2)).flatten(1)


def at_autocast(x: Tensor) -> Tensor:
    """x in the number format that matrix products use here, converted once for all layers."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def neighbours(real: Tensor, self_pairs: bool) -> tuple[Tensor, Tensor]:
    """Which atoms j the mean of atom i runs over, bool [B, N, N], and how many they are, [B, 1, 1] (at least 1).

    real: bool [B, N]. Without `self_pairs` an atom counts itself only where it is alone.
    """
    b, n = real.shape
    count = real.sum(1).view(b, 1, 1)
    seen = real.unsqueeze(1).expand(b, n, n)
    if not self_pairs:
        other = ~torch.eye(n, dtype=torch.bool, device=real.device)
        seen = seen & (other | (count == 1))
        count = count - 1
    return seen, count.clamp(min=1)


class StepEmbedding(nn.Module):
    """t [B, C] -> [B, C * width]: sinusoids of the step i = steps (1 - t) + 1, periods from 2 pi to 2 pi * 10,000."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        falling = torch.exp(-math.log(10_000.0) * torch.linspace(0, 1, width // 2))
        self.register_buffer("frequencies", falling, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        step = self.steps * (1 - t) + 1
        angle = step.unsqueeze(-1).to(self.frequencies.dtype) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)


class AtomInputs(nn.Module):
    """What is known of each atom but its place, as states [B, N, width].

    seen: width of features["types"]; classes: types predicted; extra: further channels per coordinate (how certain a
    belief is); times: how many times are given; clock: width of their embedding, which with `steps` is the published
    one of step numbers; size_input: log N. With `self_conditioning` the last estimates enter as well: class
    probabilities, and sin and cos - 1 of the way from the state to the estimate.
    """

    def __init__(self, seen: int, classes: int, width: int, extra: int = 0, times: int = 1, clock: int = 128,
                 steps: int | None = None, size_input: bool = True, self_conditioning: bool = False,
                 conditions: dict[str, int] | None = None) -> None:
        super().__init__()
        self.seen, self.classes, self.extra, self.times = seen, classes, extra, times
        self.size_input, self.self_conditioning = size_input, self_conditioning
        self.types = nn.Linear(seen, width)
        self.time = TimeEmbedding(clock, columns=times) if steps is None else StepEmbedding(clock, steps)
        self.per_atom = width + 3 * extra + (classes + 6) * self_conditioning
        self.per_crystal = (clock if steps is None else clock * times) + size_input
        self.enter = nn.Linear(self.per_atom + self.per_crystal, width)
        self.condition = ConditionEmbedding(conditions, width) if conditions else None

    def forward(self, features: Values, frac: Tensor, t: Tensor, ctx: Context, previous: Values | None,
                count: Tensor) -> Tensor:
        """frac [B, N, 3, 1 + extra], count [B] atoms; t [B] or [B, times]."""
        kind = self.enter.weight.dtype
        b = frac.shape[0]
        if frac.shape[-1] != 1 + self.extra or features["types"].shape[-1] != self.seen:
            raise ScidiffError(f"The network was made for {self.seen} types and {self.extra} further channels per "
                               f"coordinate, not for {features['types'].shape[-1]} and {frac.shape[-1] - 1}.",
                               "Set backbone.seen and backbone.extra to what the path tells.")
        atom = [self.types(features["types"].to(kind)), frac[..., 1:].flatten(2).to(kind)]
        if self.self_conditioning:
            atom += self._past(frac[..., 0], previous, kind)
        t = t.reshape(b, -1)
        crystal = [self.time(t.expand(b, self.times)).to(kind)]
        if self.size_input:
            crystal.append(count.to(kind).log().unsqueeze(-1))
        atomic, common = self.enter.weight.split((self.per_atom, self.per_crystal), 1)
        h = F.linear(torch.cat(atom, -1), atomic) + F.linear(torch.cat(crystal, -1), common, self.enter.bias)[:, None]
        return h if self.condition is None else h + self.condition(ctx.cond, b)[:, None]  # type: ignore[index]

    def _past(self, position: Tensor, previous: Values | None, kind: torch.dtype) -> list[Tensor]:
        b, n = position.shape[:2]
        if not previous:
            return [position.new_zeros(b, n, self.classes + 6, dtype=kind)]
        way = 2 * math.pi * (previous["frac"].to(position.dtype) - position)
        return [previous["types"].to(kind), way.sin().to(kind), (way.cos() - 1).to(kind)]


class EdgeLinear(nn.Linear):
    """The linear map of [u_i, u_j, c, g_ij], its weight the published matrix, applied part by part."""

    def __init__(self, width: int, cell: int, geometry: int) -> None:
        super().__init__(2 * width + cell + geometry, width)
        self.parts = (width, width, cell, geometry)

    def forward(self, u: Tensor, cell: Tensor, geometry: Tensor) -> Tensor:
        """u [B, N, w], cell [B, d], geometry [B, N, N, G] -> [B, N, N, w]; i is the first of the two atoms."""
        first, second, common, pair = self.weight.split(self.parts, 1)
        left = F.linear(u, first, self.bias) + F.linear(cell, common).unsqueeze(1)
        # The sums are taken in place: what a linear map returns is not needed for its gradient.
        return F.linear(geometry, pair).add_(left.unsqueeze(2)).add_(F.linear(u, second).unsqueeze(1))


class Layer(nn.Module):
    """One round of messages among the atoms of each crystal."""

    def __init__(self, width: int, cell: int, geometry: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = EdgeLinear(width, cell, geometry)
        self.second = nn.Linear(width, width)
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, h: Tensor, geometry: Tensor, cell: Tensor, seen: Tensor, count: Tensor) -> Tensor:
        """h [B, N, w], geometry [B, N, N, G], cell [B, d], seen [B, N, 1, N] of zeros and ones, count [B, 1, 1]."""
        u = self.norm(h)
        e = F.silu(self.second(F.silu(self.first(u, cell, geometry))))
        mean = (seen.to(e.dtype) @ e).squeeze(2) / count
        return h + self.node(torch.cat([u, mean.to(u.dtype)], -1))


class CSPNetDense(nn.Module):
    """Predicts types, coordinates and lattices of crystals.

    classes: types predicted; seen: width of the types' features (default the same). lattice: "invariant" for
    `lattice_size` numbers that no rotation changes, "matrix" for the nine entries of L, standardised by one number.
    frequencies: how many, from `lowest` upwards (0 is the published first). `separate_times`: types, coordinates and
    lattice have times of their own, [B, 3] (types at time 0 are known). The rest as in `AtomInputs`.
    """

    def __init__(self, classes: int, seen: int | None = None, lattice_size: int = 6, lattice: str | None = None,
                 extra: int = 0, width: int = 128, depth: int = 4, frequencies: int = 16, lowest: int = 1,
                 self_pairs: bool = False, clock: int = 128, steps: int | None = None,
                 size_input: bool = True, self_conditioning: bool = False, separate_times: bool = False,
                 conditions: dict[str, int] | None = None) -> None:
        super().__init__()
        lattice = lattice or ("matrix" if lattice_size == 9 else "invariant")
        if lattice not in LATTICES:
            raise UsageError(f"backbone.lattice cannot be {lattice!r}.", nearest(lattice, LATTICES))
        if lattice == "matrix" and lattice_size != 9:
            raise UsageError(f"A lattice as a matrix has nine numbers, not {lattice_size}.",
                             "Choose the chart matrix9.")
        self.matrix, self.self_pairs, self.self_conditioning = lattice == "matrix", self_pairs, self_conditioning
        self.lattice_size = lattice_size
        self.register_buffer("frequencies", torch.arange(lowest, lowest + frequencies), persistent=False)
        self.inputs = AtomInputs(seen or classes, classes, width, extra, 3 if separate_times else 1, clock, steps,
                                 size_input, self_conditioning, conditions)
        cell = lattice_size * (1 + self_conditioning)
        self.layers = nn.ModuleList(Layer(width, cell, 6 * frequencies) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.frac_out = nn.Linear(width, 3, bias=False)
        self.lattice_out = nn.Linear(width, lattice_size, bias=False)
        self.types_out = nn.Linear(width, classes, bias=False)

    def forward(self, features: Values, t: Tensor, ctx: Context, previous: Values | None = None) -> Values:
        kind = self.norm.weight.dtype
        exact = torch.float64 if kind == torch.float64 else torch.float32
        frac = features["frac"].to(exact)
        frac = frac.unsqueeze(-1) if frac.dim() == 3 else frac
        real = atoms(frac, ctx)
        seen, count = neighbours(real, self.self_pairs)
        lattice = features["lattice"].to(exact)
        with torch.autocast(frac.device.type, enabled=False):
            geometry = pair_fourier(frac[..., 0], self.frequencies)
            cell = self.invariants(lattice)
            if self.self_conditioning:
                past = self.invariants(previous["lattice"].to(exact)) if previous else torch.zeros_like(cell)
                cell = torch.cat([cell, past], -1)
        geometry, cell = at_autocast(geometry.to(kind)), cell.to(kind)
        seen = at_autocast(seen.unsqueeze(2).to(kind))
        h = self.inputs(features, frac, t, ctx, previous, real.sum(1))
        for layer in self.layers:
            h = layer(h, geometry, cell, seen, count)
        h = self.norm(h)
        return {"types": self.types_out(h), "frac": self.frac_out(h) / (2 * math.pi),
                "lattice": self.lattice_of(self.lattice_out(mean_atom(h, real)), lattice)}

    def invariants(self, lattice: Tensor) -> Tensor:
        """What the network sees of lattices [B, d]: themselves, or the nine entries of L L^T."""
        if not self.matrix:
            return lattice
        return gram(lattice.view(-1, 3, 3))

    def lattice_of(self, raw: Tensor, lattice: Tensor) -> Tensor:
        """The lattice's output of the head's numbers [B, d]: themselves, or C L."""
        if not self.matrix:
            return raw
        with torch.autocast(raw.device.type, enabled=False):
            return (raw.to(lattice.dtype).view(-1, 3, 3) @ lattice.view(-1, 3, 3)).flatten(1)


def atoms(frac: Tensor, ctx: Context) -> Tensor:
    """Which entries are atoms, bool [B, N]."""
    real = ctx.mask(("N",))
    return torch.ones(frac.shape[:2], dtype=torch.bool, device=frac.device) if real is None else real


def mean_atom(x: Tensor, real: Tensor) -> Tensor:
    """The mean of [B, N, ...] over the atoms, [B, ...]."""
    mask = real.view(*real.shape, *[1] * (x.dim() - 2)).to(x.dtype)
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1)
