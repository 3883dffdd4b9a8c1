"""Weights of multistep formulas that integrate a polynomial through past predictions exactly.

With nodes v_j in units of the step (v = 0 now, negative past, 1 the end of the step) and moments m_k = int_0^1
w(tau) tau^k d tau, the weights b_j solve sum_j b_j v_j^k = m_k for k < number of nodes, that is b_j = int w l_j
with the Lagrange polynomials l_j. The exponential moments are h int_0^1 e^{x (1 - tau)} tau^k d tau = h k!
phi_{k+1}(x) with phi_n(x) = sum_j x^j / (j + n)! (Hochbruck & Ostermann 2010, Acta Numerica 19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def phi(n: int, x: float) -> float:
    """phi_n(x), n >= 0: phi_0 = e^x, phi_{n+1} = (phi_n - 1/n!) / x; by the series where that would cancel."""
    if abs(x) < 1.0:
        term = total = 1.0 / math.factorial(n)
        for j in range(1, 24):
            term *= x / (j + n)
            total += term
        return total
    value = math.exp(x)
    for k in range(n):
        value = (value - 1.0 / math.factorial(k)) / x
    return value


def exponential_moments(count: int, rate: float, length: float) -> list[float]:
    """length * int_0^1 e^{rate (1 - tau)} tau^k d tau for k < count."""
    return [length * math.factorial(k) * phi(k + 1, rate) for k in range(count)]


def polynomial_moments(count: int, length: float = 1.0) -> list[float]:
    """length * int_0^1 tau^k d tau for k < count."""
    return [length / (k + 1) for k in range(count)]


def weights(nodes: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """b_j with sum_j b_j nodes_j^k = moments_k, k < len(nodes); nodes must differ."""
    out = []
    for j, v in enumerate(nodes):
        poly, scale = [1.0], 1.0
        for i, w in enumerate(nodes):
            if i == j:
                continue
            # Multiply the polynomial (lowest power first) with (tau - w).
            poly = [high - w * low for low, high in zip([*poly, 0.0], [0.0, *poly], strict=True)]
            scale *= v - w
        out.append(math.fsum(p * m for p, m in zip(poly, moments, strict=False)) / scale)
    return tuple(out)
