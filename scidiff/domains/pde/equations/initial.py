"""Random smooth periodic fields that depend on (seed, id) alone: sums of sines and band-limited Gaussian fields."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scidiff.core.run import uniform


def sines(name: str, ids: Tensor, seed: int, shape: tuple[int, ...], count: int, amplitude: float,
          waves: int) -> Tensor:
    """[B, 1, n] float64: `count` sines of amplitude U(-a, a), phase U(0, 2 pi) and 1 .. `waves` waves in the box."""
    size = amplitude * (2.0 * uniform(seed, ids, f"{name}.amplitude", count)[:, :, None] - 1.0)
    phase = 2.0 * math.pi * uniform(seed, ids, f"{name}.phase", count)[:, :, None]
    number = 1.0 + torch.floor(waves * uniform(seed, ids, f"{name}.waves", count))[:, :, None]
    x = 2.0 * math.pi * torch.arange(shape[0], dtype=torch.float64, device=ids.device) / shape[0]
    return (size * torch.sin(number * x + phase)).sum(1, keepdim=True)


def smooth(name: str, ids: Tensor, seed: int, shape: tuple[int, ...], largest: int) -> Tensor:
    """[B, 1, *shape] float64 Gaussian fields of mean 0 and variance 1 with equal power in all modes 1 .. `largest`.

    The coefficients belong to modes, not to grid points: another grid shows the same field.
    """
    dims = len(shape)
    axes = [torch.arange(-largest, largest + 1, dtype=torch.float64, device=ids.device) for _ in shape]
    modes = torch.stack([m.flatten() for m in torch.meshgrid(*axes, indexing="ij")], 1)
    square = (modes**2).sum(1)
    modes = modes[(square > 0.0) & (square <= largest**2)]
    modes = modes[: len(modes) // 2]  # one of every pair (k, -k): the list is antisymmetric around its middle
    u = uniform(seed, ids, f"{name}.field", 2 * len(modes))
    radius = torch.sqrt(-2.0 * torch.log(u[:, : len(modes)]) / len(modes))
    phase = 2.0 * math.pi * u[:, len(modes) :]
    waves = []
    for axis, n in enumerate(shape):
        x = 2.0 * math.pi * torch.arange(n, dtype=torch.float64, device=ids.device) / n
        waves.append(torch.exp(1j * modes[:, axis, None] * x))
    real, imaginary = radius * torch.cos(phase), radius * torch.sin(phase)
    field = torch.zeros(len(ids), *shape, dtype=torch.float64, device=ids.device)
    for m in range(len(modes)):  # one mode after the other: a matrix product would round by the size of the batch
        wave = waves[0][m] if dims == 1 else waves[0][m, :, None] * waves[1][m]
        field += real[:, m].view(-1, *[1] * dims) * wave.real - imaginary[:, m].view(-1, *[1] * dims) * wave.imag
    return field.unsqueeze(1)
