"""Periodic grids: wavenumbers, which of them are kept, and the symbols of an equation on them, all in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.pde.equations.equation import Equation, Extent, Waves
from scidiff.domains.pde.equations.etd import coefficients


def lengths(extent: Extent, dims: int) -> tuple[float | Tensor, ...]:
    """One length an axis: floats, or float64 tensors [B]."""
    if isinstance(extent, Tensor) and extent.dim():
        return (extent.to(torch.float64),) * dims
    given = tuple(float(e) for e in extent) if isinstance(extent, (tuple, list)) else (float(extent),) * dims
    if len(given) != dims:
        raise UsageError(f"The box has {len(given)} lengths, but the equation lives in {dims} dimension(s).")
    return given


def numbers(n: int, halved: bool, device: torch.device | str = "cpu") -> Tensor:
    """Signed mode numbers of one axis, float64. (A float32 call cast afterwards is off by 4e-8.)"""
    make = torch.fft.rfftfreq if halved else torch.fft.fftfreq
    return make(n, 1.0 / n, dtype=torch.float64, device=device)


def along(values: Tensor, axis: int, dims: int) -> Tensor:
    """[n] -> [1, .., n, .., 1] with n at `axis`."""
    return values.view([1] * axis + [-1] + [1] * (dims - 1 - axis))


def wavenumbers(shape: tuple[int, ...], extent: Extent, device: torch.device | str = "cpu",
                whole: bool = False) -> Waves:
    """Angular wavenumbers of the half (or whole) spectrum, one tensor an axis: [1, .., n, .., 1] or [B, 1, ..]."""
    dims, out = len(shape), []
    for axis, (n, length) in enumerate(zip(shape, lengths(extent, dims), strict=True)):
        modes = along(numbers(n, axis == dims - 1 and not whole, device), axis, dims)
        length = length.to(device).view(-1, *[1] * (dims + 1)) if isinstance(length, Tensor) else length
        out.append(2.0 * math.pi * modes / length)
    return tuple(out)


def kept(shape: tuple[int, ...], degree: int, dealias: bool) -> tuple[int, ...]:
    """Largest kept mode of every axis: below N / (degree + 1), or below the Nyquist mode."""
    return tuple((n - 1) // (degree + 1) if dealias else (n - 1) // 2 for n in shape)


@dataclass(frozen=True)
class Symbols:
    """An equation on a grid: float64 or complex128 tensors over the modes, zero where a mode is not kept.

    mask [*modes]; linear [.., C or 1, *modes]; nonlinear [.., C, P, *modes] or None; lift [F, *modes] or None; force
    [C, *modes] or None. Leading axes are there where extent, dt or a parameter differs from sample to sample.
    """

    mask: Tensor
    linear: Tensor
    nonlinear: Tensor | None
    lift: Tensor | None
    force: Tensor | None

    @classmethod
    def of(cls, equation: Equation, shape: tuple[int, ...], extent: Extent, dealias: bool,
           device: torch.device, whole: bool = False) -> Symbols:
        k, dims = wavenumbers(shape, extent, device, whole), len(shape)
        nonlinear = equation.symbols(k)
        most = kept(shape, equation.degree, dealias and nonlinear is not None)
        mask = torch.ones([1] * dims, dtype=torch.bool, device=device)
        for axis, n in enumerate(shape):
            mask = mask & (along(numbers(n, axis == dims - 1 and not whole, device), axis, dims).abs() <= most[axis])

        def on(value: Tensor | None) -> Tensor | None:
            return None if value is None else torch.where(mask, value, torch.zeros_like(value))

        linear = torch.where(mask, equation.linear(k), 0.0)
        return cls(mask, linear, on(nonlinear), on(equation.lift(k)), on(equation.force(k)))

    def weights(self, dt: float | Tensor, order: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights of one step, and what a constant force adds in it; zero where a mode is not kept."""
        dims = self.mask.dim()
        h = dt.to(self.mask.device, torch.float64).view(-1, *[1] * (dims + 1)) if isinstance(dt, Tensor) else dt
        raw = coefficients(self.linear, h, order if self.nonlinear is not None else 1)
        force = {}
        if self.force is not None:
            # The force is constant: each stage meets it with the sum of that stage's weights.
            total = {1: raw["n0"], 2: raw["n0"], 4: raw["n0"] + 2.0 * raw.get("n1", 0.0) + raw.get("n3", 0.0)}[order]
            force = {"last": total * self.force} | ({"stage": raw["stage"] * self.force} if order == 4 else {})
        return {n: torch.where(self.mask, w, torch.zeros_like(w)) for n, w in raw.items()}, force

    def rows(self, part: slice) -> Symbols:
        """The symbols of a part of the batch."""
        dims = self.mask.dim()

        def cut(value: Tensor | None, own: int) -> Tensor | None:
            return value[part] if value is not None and value.dim() > dims + own else value

        return replace(self, linear=cut(self.linear, 1), nonlinear=cut(self.nonlinear, 2), lift=cut(self.lift, 1),
                       force=cut(self.force, 1))
