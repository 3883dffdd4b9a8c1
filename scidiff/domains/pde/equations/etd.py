"""Coefficients of exponential time differencing Runge-Kutta, float64.

    v_t = L v + N(v),  z = h L,   phi_1(z) = (e^z - 1)/z,   phi_{j+1}(z) = (phi_j(z) - 1/j!)/z

Orders 1, 2 and 4 of Cox and Matthews (2002). The quotients cancel near z = 0, so there they are means over a circle
around z (Kassam and Trefethen 2005): with |z| < 1 and radius 2 the circle keeps a distance of 1 from the origin and 64
points give every coefficient to a few 1e-16; for |z| >= 1 the formulas are used as they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

POINTS, RADIUS = 64, 2.0


def mean_value(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """An entire function with removable quotients, complex128 -> complex128."""
    near = z.abs() < 1.0
    out = function(torch.where(near, torch.ones_like(z), z))
    close = z[near]
    total = torch.zeros_like(close)
    for j in range(POINTS):
        angle = 2.0 * math.pi * (j + 0.5) / POINTS
        total += function(close + RADIUS * complex(math.cos(angle), math.sin(angle)))
    out[near] = total / POINTS
    return out


def phi1(z: Tensor) -> Tensor:
    return (z.exp() - 1.0) / z


def phi2(z: Tensor) -> Tensor:
    return (z.exp() - 1.0 - z) / z**2


def first(z: Tensor) -> Tensor:
    """Weight of N(v_n) in order 4."""
    return (-4.0 - z + z.exp() * (4.0 - 3.0 * z + z**2)) / z**3


def middle(z: Tensor) -> Tensor:
    """Half the weight of N(a) and of N(b) in order 4."""
    return (2.0 + z + z.exp() * (z - 2.0)) / z**3


def last(z: Tensor) -> Tensor:
    """Weight of N(c) in order 4."""
    return (-4.0 - 3.0 * z - z**2 + z.exp() * (4.0 - z)) / z**3


def coefficients(linear: Tensor, dt: float | Tensor, order: int) -> dict[str, Tensor]:
    """The weights of one step, in the dtype of `linear` (float64 or complex128) and its shape, times h where due.

    whole = e^z; order 1: n0; order 2: a = whole v + n0 N(v), then a + n1 (N(a) - N(v));
    order 4: half = e^(z/2), stage (a and b), n0, n1 (of N(a) and N(b)), n3.
    """
    z = (linear * dt).to(torch.complex128)
    raw = {"whole": z.exp()}
    if order < 4:
        raw["n0"] = dt * mean_value(phi1, z)
        if order == 2:
            raw["n1"] = dt * mean_value(phi2, z)
    else:
        raw |= {"half": (z / 2).exp(), "stage": 0.5 * dt * mean_value(phi1, z / 2), "n0": dt * mean_value(first, z),
                "n1": 2.0 * dt * mean_value(middle, z), "n3": dt * mean_value(last, z)}
    return raw if linear.is_complex() else {name: value.real.contiguous() for name, value in raw.items()}
