"""Accuracies of a von Mises Bayesian flow such that the entropy of the belief falls linearly with the time.

`steps` sightings y_i ~ vM(x, alpha_i) of an angle x lead from the flat prior to a belief of concentration `final`:

    beta_i    H(beta_i) = H(0) + (i / steps) (H(final) - H(0)),             the concentration aimed at after i sightings
    alpha_1   = beta_1
    alpha_i   E_{phi ~ vM(0, alpha_i)} | beta_{i-1} + alpha_i e^{i phi} | = beta_i         (i >= 2)

The expectation is a quadrature (the published method draws random numbers); sqrt(1 + a^2) - 1 <= a A(a) encloses the
root: with d = beta_i - beta_{i-1}, d <= alpha_i <= sqrt(d (d + 2)). It pretends that the belief so far has exactly its
aim, so the true mean concentration runs some percent below beta_i. Source: Wu et al. 2025, arXiv 2502.02016.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError
from scidiff.core.path.von_mises import POINTS, entropy, half_width, resultant, second_resultant

# At first alpha and beta are about equal, and the length has a kink where they cancel; later it is smooth, and the
# trapezoidal rule on a circle converges geometrically.
_KINKED, _SMOOTH_POINTS = 8, 513


class Moments(NamedTuple):
    """Per number of sightings 0 .. steps, float64: mean along x, variance along and across x of the sum of
    alpha_j e^{i y_j}; and alpha_{i+1} and its mean resultant for i = 0 .. steps - 1."""

    mean: Tensor
    along: Tensor
    across: Tensor
    alpha: Tensor
    resultant: Tensor


def _checked(steps: int, final: float) -> None:
    if steps < 1 or not (math.isfinite(final) and final > 0.0):
        raise ScidiffError(f"A von Mises flow needs at least one step and a positive final concentration, not {steps} "
                           f"and {final}.")


@lru_cache(maxsize=32)
def concentrations(steps: int, final: float) -> tuple[float, ...]:
    """beta_1 .. beta_steps."""
    _checked(steps, final)
    share = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    top = float(entropy(torch.zeros((), dtype=torch.float64)))
    goal = top + share * (float(entropy(torch.tensor(final, dtype=torch.float64))) - top)
    low, high = torch.zeros_like(goal), torch.full_like(goal, final)
    for _ in range(100):
        mid = 0.5 * (low + high)
        above = entropy(mid) > goal
        low, high = torch.where(above, mid, low), torch.where(above, high, mid)
    return (*(0.5 * (low + high)).tolist()[:-1], float(final))


def expected_length(beta: Tensor, alpha: Tensor, points: int = POINTS) -> Tensor:
    """E |beta + alpha e^{i phi}| for phi ~ vM(0, alpha), by the trapezoidal rule; [J] for beta, alpha [J]."""
    u = torch.linspace(0.0, 1.0, points // 2 + 1, dtype=torch.float64)
    cosine = (u * half_width(alpha)[:, None]).cos()
    alpha, beta = alpha[:, None], beta[:, None]
    weight = (alpha * (cosine - 1.0)).exp()
    weight[:, 0] *= 0.5
    weight[:, -1] *= 0.5
    length = (beta * beta + alpha * alpha + 2.0 * alpha * beta * cosine).clamp(min=0.0).sqrt()
    return (weight * length).sum(1) / weight.sum(1)


def falsi(f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, rounds: int = 200) -> Tensor:
    """Roots of a rising f between low and high, entry by entry (regula falsi, the Illinois variant)."""
    a, b, fa, fb = low, high, f(low), f(high)
    for _ in range(rounds):
        gap = fb - fa
        c = torch.where(gap == 0.0, b, b - fb * (b - a) / torch.where(gap == 0.0, 1.0, gap))
        fc = f(c)
        crossed = fc * fb < 0.0
        a, fa = torch.where(crossed, b, a), torch.where(crossed, fb, 0.5 * fa)
        settled = (c - b).abs() <= 1e-13 * b.abs()
        b, fb = c, fc
        if bool((settled | (fc == 0.0)).all()):
            break
    return b


@lru_cache(maxsize=32)
def accuracies(steps: int, final: float) -> tuple[float, ...]:
    """alpha_1 .. alpha_steps."""
    beta = torch.tensor(concentrations(steps, final), dtype=torch.float64)
    before, rise = beta[:-1], beta.diff()
    low, high = rise, (rise * (rise + 2.0)).sqrt()
    out = [beta[:1]]
    for part, points in ((slice(0, _KINKED), POINTS), (slice(_KINKED, None), _SMOOTH_POINTS)):
        start, goal = before[part], beta[1:][part]

        def excess(alpha: Tensor, start: Tensor = start, goal: Tensor = goal, points: int = points) -> Tensor:
            return expected_length(start, alpha, points) - goal

        if len(goal):
            out.append(falsi(excess, low[part], high[part]))
    return tuple(torch.cat(out).tolist())


@lru_cache(maxsize=32)
def moments(steps: int, final: float, device: torch.device) -> Moments:
    """The moments of the summed sightings, on a device."""
    with torch.inference_mode(False):
        alpha = torch.tensor(accuracies(steps, final), dtype=torch.float64)
        first, second = resultant(alpha), second_resultant(alpha)
        each = (alpha * first, alpha**2 * (0.5 * (1.0 + second) - first**2), alpha**2 * 0.5 * (1.0 - second))
        sums = [torch.cat([torch.zeros(1, dtype=torch.float64), v.clamp(min=0.0).cumsum(0)]) for v in each]
        return Moments(*(v.to(device) for v in (*sums, alpha, first)))
