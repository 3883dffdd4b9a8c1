"""Whether a long rollout keeps the climate: spectra, energy, marginals, stability.

On a periodic box with the transform u_k = <u exp(-ikx)>, Parseval's identity reads <u^2> = sum_k |u_k|^2. The spectrum

    E(n) = sum over wavenumbers k with round(|k| / dk) = n of |u_k|^2,    dk = 2 pi / (longest side)

counts both k and -k and is summed over the fields, so sum_n E(n) = <|u|^2> exactly; in one dimension n is the mode. The
energy balance of the Kuramoto-Sivashinsky equation is d/dt <u^2>/2 = <u_x^2> - nu <u_xx^2>: the right side, the budget
gap, is zero in the mean over a stationary run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.statistics import Estimate, sliced_wasserstein, wilson
from scidiff.domains.pde.skill import by_trajectory

FLOOR = 1e-10
"""Energies below this share of the peak are not compared: there a float32 field is rounding."""


def _axes(extent: Sequence[float]) -> tuple[int, ...]:
    return tuple(range(-len(extent), 0))


def _modes(n: int, length: float, half: bool) -> Tensor:
    make = torch.fft.rfftfreq if half else torch.fft.fftfreq
    return 2.0 * math.pi / length * make(n, 1.0 / n, dtype=torch.float64)


def _power(frames: Tensor, dims: int) -> Tensor:
    """|u_k|^2 on the half spectrum of the last axis, counted twice where -k is not in it; float64."""
    axes = tuple(range(-dims, 0))
    power = torch.fft.rfftn(frames.to(torch.float64), dim=axes, norm="forward").abs().square()
    twice = torch.full((power.shape[-1],), 2.0, dtype=torch.float64, device=power.device)
    twice[0] = 1.0
    if frames.shape[-1] % 2 == 0:
        twice[-1] = 1.0
    return power * twice


def energy_spectrum(frames: Tensor, extent: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Wavenumbers [n] and energies [..., n] of fields [..., *space]; float64, E sums to <u^2>."""
    dims = len(extent)
    shape = frames.shape[-dims:]
    power = _power(frames, dims)
    squared = torch.zeros(power.shape[-dims:], dtype=torch.float64)
    for axis, (n, length) in enumerate(zip(shape, extent, strict=True)):
        k = _modes(n, length, axis == dims - 1)
        squared += k.square().view([-1] + [1] * (dims - 1 - axis))
    unit = 2.0 * math.pi / max(extent)
    shell = (squared.sqrt() / unit).round().to(torch.int64).flatten().to(power.device)
    count = int(shell.max()) + 1
    energy = torch.zeros(*power.shape[:-dims], count, dtype=torch.float64, device=power.device)
    energy.index_add_(-1, shell, power.flatten(-dims))
    return unit * torch.arange(count, dtype=torch.float64), energy


def mean_spectrum(frames: Tensor, extent: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Wavenumbers [n] and energies [T, n] of frames [T, ..., C, *space]: summed over fields, averaged over the rest."""
    dims = len(extent)

    def mean(x: Tensor) -> Tensor:
        energy = energy_spectrum(x, extent)[1].sum(-2)
        return energy.flatten(1, -2).mean(1) if energy.dim() > 2 else energy

    k, _ = energy_spectrum(torch.zeros(frames.shape[-dims:]), extent)
    return k, by_trajectory(mean, frames)


def floor_wavenumber(spectrum: Tensor, floor: float = FLOOR) -> int:
    """Index in a spectrum [n] where, beyond the peak, it first falls below `floor` times the peak (n: nowhere)."""
    peak = 1 + int(spectrum[1:].argmax())
    below = (spectrum[peak:] < floor * spectrum[peak]).nonzero()
    return peak + int(below[0]) if len(below) else len(spectrum)


def log_spectral_distance(spectrum: Tensor, true: Tensor, floor: float = FLOOR) -> Tensor:
    """Root mean square of 10 log10 E/E_true, in dB, over 0 < k < floor wavenumber of the truth: [..., n], [n] -> [...].

    The mean mode is left out; energies below the floor count as the floor.
    """
    last = floor_wavenumber(true, floor)
    least = floor * true[1:].max()
    decibel = 10.0 * (spectrum[..., 1:last].clamp(min=least) / true[1:last].clamp(min=least)).log10()
    return decibel.square().mean(-1).sqrt()


def energy(frames: Tensor, extent: Sequence[float]) -> Tensor:
    """<|u|^2> of frames [T, ..., C, *space], summed over fields: [T, ...]."""
    axes = _axes(extent)
    return by_trajectory(lambda x: x.square().mean(axes).sum(-1), frames)


def energy_drift(predicted: Tensor, truth: Tensor, extent: Sequence[float]) -> Tensor:
    """[S]: E / E_true - 1 of rollouts [T, M, S, C, *space], energies averaged over trajectories and members."""
    return energy(predicted, extent).mean((0, 1)) / energy(truth, extent).mean(0) - 1.0


def derivative(frames: Tensor, extent: Sequence[float], axis: int = -1, order: int = 1) -> Tensor:
    """Spectral derivative of fields [..., *space] along a space axis (-1 the last), float64."""
    n, length = frames.shape[axis], tuple(extent)[axis]
    k = _modes(n, length, half=True)
    factor = (1j * k) ** order
    if n % 2 == 0 and order % 2:  # the Nyquist mode has no sine partner, so its odd derivatives vanish on the grid
        factor[-1] = 0.0
    factor = factor.view([-1] + [1] * (-1 - axis)).to(frames.device)
    return torch.fft.irfft(torch.fft.rfft(frames.to(torch.float64), dim=axis) * factor, n=n, dim=axis)


def budget_terms(frames: Tensor, extent: Sequence[float]) -> Tensor:
    """<u_x^2> and <u_xx^2> of one-dimensional fields [..., N]: [..., 2]."""
    if len(extent) != 1:
        raise UsageError("The energy budget <u_x^2> - nu <u_xx^2> is one of fields on a line.")
    power = _power(frames, 1)
    k2 = _modes(frames.shape[-1], extent[0], half=True).square().to(power.device)
    return torch.stack([(power * k2).sum(-1), (power * k2.square()).sum(-1)], -1)


def budget_gap(frames: Tensor, extent: Sequence[float], viscosity: float | Tensor = 1.0) -> Tensor:
    """<u_x^2> - nu <u_xx^2> of one-dimensional fields [..., N]; `viscosity` broadcasts against [...]."""
    terms = budget_terms(frames, extent)
    return terms[..., 0] - viscosity * terms[..., 1]


def thinned(values: Tensor, limit: int = 1 << 20) -> Tensor:
    """At most `limit` of the values, evenly spaced by an odd step, which meets every point of a grid of 2^n points."""
    flat = values.flatten()
    step = -(-flat.numel() // limit)
    return flat[::step | 1] if step > 1 else flat


def wasserstein1(a: Tensor, b: Tensor, limit: int = 1 << 20) -> float:
    """Wasserstein-1 distance of the marginals of two sets of values, in their unit."""
    return sliced_wasserstein(thinned(a, limit), thinned(b, limit), projections=1, order=1.0)


@dataclass(frozen=True)
class Stability:
    """Share of trajectories that stay within the limit (Wilson interval), and where each row first leaves it.

    `first` [T, ...] is a step counted from 1, or 0 for a row that stays. A trajectory is stable if all its members are.
    """

    share: Estimate
    first: Tensor

    @property
    def kept(self) -> Tensor:
        """Bool [T]."""
        return (self.first == 0).flatten(1).all(1) if self.first.dim() > 1 else self.first == 0

    @property
    def earliest(self) -> int:
        """The first step at which any row fails; 0 if none does."""
        bad = self.first[self.first > 0]
        return int(bad.min()) if bad.numel() else 0


def stable(frames: Tensor, limit: float | Sequence[float] | Tensor, dims: int = 1) -> Stability:
    """Frames [T, (M,) S, C, *space] stay finite and below `limit` (one number, or one a field) in absolute value."""
    bound = torch.as_tensor(limit, dtype=torch.float64)
    space = tuple(range(-dims, 0))

    def good(x: Tensor) -> Tensor:
        return (x.abs().amax(space) < bound.to(x.device)).all(-1)  # a comparison with nan is false

    fine = by_trajectory(good, frames)
    first = torch.where(fine.all(-1), 0, 1 + (~fine).to(torch.int64).argmax(-1))
    kept = (first == 0).flatten(1).all(1) if first.dim() > 1 else first == 0
    return Stability(wilson(int(kept.sum()), len(kept)), first)
