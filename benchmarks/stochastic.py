"""SDE solvers of other libraries as linear maps (B3).

On Gaussian data every one of them is linear in its start and in the noise it draws. Handing it the unit vectors of a
large space for both gives the response of the endpoint to each, and the variance of the endpoint is the sum of their
squares: exact, without a sample. `solve(oracle, x, alphas, sigmas, fresh)` works as in `peers`; fresh() is a new unit
vector. Solvers with two network calls a step get half the steps.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import peers
import torch
from torch import Tensor

Fresh = Callable[[], Tensor]
Stochastic = Callable[[peers.Oracle, Tensor, list[float], list[float], Fresh], Tensor]
SECOND_ORDER = ("diffusers 2M-SDE", "diffusers 2M-SDE (heun)", "diffusers SA-Solver 2/2", "k-diffusion 2M-SDE",
                "k-diffusion 2M-SDE (heun)", "k-diffusion DPM++ SDE (2 calls)", "k-diffusion 2S ancestral (2 calls)")
LARGEST = 1024


def relative_error(solve: Stochastic, path: Any, data_std: float, calls: int, t_end: float) -> float:
    """Relative error of the endpoint's variance on a grid uniform in lambda."""
    from scidiff.core.solvers.fixed import LambdaGrid

    steps = calls // 2 if getattr(solve, "two_calls", False) else calls
    levels = [path.coefficients(t) for t in LambdaGrid()(path, steps, 1.0, t_end)]
    alphas, sigmas = [k.alpha for k in levels], [k.sigma for k in levels]
    used = [0]

    def fresh() -> Tensor:
        used[0] += 1
        unit = torch.zeros(1, LARGEST, dtype=torch.float64)
        unit[0, used[0]] = 1.0
        return unit

    def oracle(x: Tensor, alpha: float, sigma: float) -> Tensor:
        return x * (alpha * data_std**2 / (alpha**2 * data_std**2 + sigma**2))

    start = torch.zeros(1, LARGEST, dtype=torch.float64)
    start[0, 0] = math.sqrt(alphas[0] ** 2 * data_std**2 + sigmas[0] ** 2)
    end = solve(oracle, start, alphas, sigmas, fresh)
    return float(end.square().sum()) / (alphas[-1] ** 2 * data_std**2 + sigmas[-1] ** 2) - 1.0


def _multistep(solver_type: str) -> Stochastic:
    library = peers.load("diffusers")

    def solve(oracle: peers.Oracle, x: Tensor, alphas: list[float], sigmas: list[float], fresh: Fresh) -> Tensor:
        scheduler = library.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2,
                                                        solver_type=solver_type, final_sigmas_type="sigma_min")
        peers.fed(scheduler, alphas, sigmas)
        for i in range(len(alphas) - 1):
            noise = (x - alphas[i] * oracle(x, alphas[i], sigmas[i])) / sigmas[i]
            x = scheduler.step(noise, scheduler.timesteps[i], x, variance_noise=fresh()).prev_sample.double()
        return x

    return solve


def _sa_solver() -> Stochastic:
    library = peers.load("diffusers")
    module = importlib.import_module("diffusers.schedulers.scheduling_sasolver")

    def solve(oracle: peers.Oracle, x: Tensor, alphas: list[float], sigmas: list[float], fresh: Fresh) -> Tensor:
        scheduler = library.SASolverScheduler(predictor_order=2, corrector_order=2, tau_func=lambda t: 1)
        peers.fed(scheduler, alphas, sigmas)
        draw, module.randn_tensor = module.randn_tensor, lambda *a, **k: fresh()
        try:
            for i in range(len(alphas) - 1):
                noise = (x - alphas[i] * oracle(x, alphas[i], sigmas[i])) / sigmas[i]
                x = scheduler.step(noise, scheduler.timesteps[i], x).prev_sample.double()
        finally:
            module.randn_tensor = draw
        return x

    return solve


def _k(function: str, two_calls: bool = False, **options: Any) -> Stochastic:
    sampling = peers.load("k_diffusion")

    def solve(oracle: peers.Oracle, x: Tensor, alphas: list[float], sigmas: list[float], fresh: Fresh) -> Tensor:
        rho = torch.tensor([s / a for a, s in zip(alphas, sigmas, strict=True)], dtype=torch.float64)
        drawn: dict[float, list[tuple[float, Tensor]]] = {}

        def increment(start: Tensor, end: Tensor) -> Tensor:
            """Normalised increments of one Brownian motion in sigma: those from one start share their beginning."""
            a, b = float(start), float(end)
            known = drawn.setdefault(a, [])
            length, value, unit = abs(b - a), torch.zeros_like(x), fresh()
            if known:
                length -= known[0][0]
                value = known[0][1]
            value = value + unit * math.sqrt(length)
            known.append((abs(b - a), value))
            return value / math.sqrt(abs(b - a))

        def denoised(y: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            r = float(sigma[0])
            alpha = (1.0 + r * r) ** -0.5
            return oracle(y * alpha, alpha, r * alpha)

        return getattr(sampling, function)(denoised, x / alphas[0], rho, disable=True, noise_sampler=increment,
                                           **options) * alphas[-1]

    solve.two_calls = two_calls  # type: ignore[attr-defined]
    return solve


def solvers() -> dict[str, Stochastic]:
    """Stochastic peers by name."""
    out: dict[str, Stochastic] = {}
    if peers.load("diffusers") is not None:
        out["diffusers 2M-SDE"] = _multistep("midpoint")
        out["diffusers 2M-SDE (heun)"] = _multistep("heun")
        out["diffusers SA-Solver 2/2"] = _sa_solver()
    if peers.load("k_diffusion") is not None:
        out["k-diffusion 2M-SDE"] = _k("sample_dpmpp_2m_sde")
        out["k-diffusion 2M-SDE (heun)"] = _k("sample_dpmpp_2m_sde", solver_type="heun")
        out["k-diffusion DPM++ SDE (2 calls)"] = _k("sample_dpmpp_sde", two_calls=True)
        out["k-diffusion 2S ancestral (2 calls)"] = _k("sample_dpmpp_2s_ancestral", two_calls=True)
        out["k-diffusion 3M-SDE (third order)"] = _k("sample_dpmpp_3m_sde")
        out["k-diffusion Euler ancestral"] = _k("sample_euler_ancestral")
    return out
