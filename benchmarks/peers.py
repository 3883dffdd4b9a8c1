"""The solvers of other libraries behind one call, for `benchmarks/solvers.py`.

Every ODE peer is `solve(oracle, x, alphas, sigmas) -> x` in float64: `oracle(x, alpha, sigma)` is E[x0 | x] of a VP
path (alpha^2 + sigma^2 = 1), alphas and sigmas are the N + 1 levels of the grid, source first. Libraries with
integer or float32 schedules are given these levels directly, and the network is asked at the true level. A library
that is not installed is left out, and `absent` says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Oracle = Callable[[Tensor, float, float], Tensor]
Solver = Callable[[Oracle, Tensor, list[float], list[float]], Tensor]
LIBRARIES = {"diffusers": "diffusers", "k_diffusion": "k-diffusion", "azula": "azula"}


def load(name: str) -> Any:
    """A peer library, or None. k-diffusion's samplers are loaded without the training half of the package."""
    try:
        if name != "k_diffusion":
            return importlib.import_module({"diffusers": "diffusers", "azula": "azula.sample"}[name])
        return _k_diffusion()
    except ImportError:
        return None


def _k_diffusion() -> Any:
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("k_diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    # The one helper that the samplers take from utils, whose module needs torchvision.
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def absent() -> list[str]:
    """One line for every peer that is not installed."""
    return [f"{label} is not installed: its rows are left out (pip install {label})"
            for name, label in LIBRARIES.items() if load(name) is None]


def versions() -> dict[str, str]:
    """Distribution versions of the peers that are here."""
    return {label: importlib.metadata.version(label) for name, label in LIBRARIES.items() if load(name) is not None}


def fed(scheduler: Any, alphas: list[float], sigmas: list[float]) -> None:
    """Gives a diffusers scheduler exactly these levels, in float64."""
    n = len(alphas) - 1
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64) / torch.tensor(alphas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(n)
    scheduler.num_inference_steps = n
    scheduler._step_index = 0


def _diffusers(cls: str, **config: Any) -> Solver:
    library = load("diffusers")

    def solve(oracle: Oracle, x: Tensor, alphas: list[float], sigmas: list[float]) -> Tensor:
        scheduler = getattr(library, cls)(**config)
        fed(scheduler, alphas, sigmas)
        for i in range(len(alphas) - 1):
            clean = oracle(x, alphas[i], sigmas[i])
            noise = (x - alphas[i] * clean) / sigmas[i]
            x = scheduler.step(noise, scheduler.timesteps[i], x).prev_sample
        return x

    return solve


def _k(function: str, **options: Any) -> Solver:
    sampling = load("k_diffusion")

    def solve(oracle: Oracle, x: Tensor, alphas: list[float], sigmas: list[float]) -> Tensor:
        rho = torch.tensor([s / a for a, s in zip(alphas, sigmas, strict=True)], dtype=torch.float64)

        def denoised(y: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            r = float(sigma[0])
            alpha = (1.0 + r * r) ** -0.5
            return oracle(y * alpha, alpha, r * alpha)

        return getattr(sampling, function)(denoised, x / alphas[0], rho, disable=True, **options) * alphas[-1]

    return solve


def _azula(cls: str, half: bool = False, **options: Any) -> Solver:
    """`half`: two network calls a step, so half the steps for the same calls."""
    sample = load("azula")
    denoise, noise = importlib.import_module("azula.denoise"), importlib.import_module("azula.noise")

    def solve(oracle: Oracle, x: Tensor, alphas: list[float], sigmas: list[float]) -> Tensor:
        if half:
            alphas, sigmas = alphas[::2], sigmas[::2]
        n = len(alphas) - 1
        a, s = torch.tensor(alphas, dtype=torch.float64).flip(0), torch.tensor(sigmas, dtype=torch.float64).flip(0)

        class Levels(noise.Schedule):
            """The grid's levels at the times i / N."""

            def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
                i = (t * n).round().long()
                return a[i], s[i]

        class Exact(denoise.Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule = Levels()

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                alpha, sigma = self.schedule(t)
                return denoise.DiracPosterior(oracle(x_t, float(alpha), float(sigma)))

        return getattr(sample, cls)(Exact(), steps=n, silent=True, dtype=torch.float64, **options)(x)

    return solve


def ode_solvers() -> dict[str, Solver]:
    """Deterministic peers by name."""
    out: dict[str, Solver] = {}
    if load("diffusers") is not None:
        multi = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min"}
        out["diffusers DPM++2M"] = _diffusers("DPMSolverMultistepScheduler", solver_order=2, **multi)
        out["diffusers DPM++3M"] = _diffusers("DPMSolverMultistepScheduler", solver_order=3, **multi)
        for order in (2, 3):
            out[f"diffusers UniPC{order}"] = _diffusers("UniPCMultistepScheduler", solver_order=order,
                                                        final_sigmas_type="sigma_min")
            out[f"diffusers UniPC{order} (full final order)"] = _diffusers(
                "UniPCMultistepScheduler", solver_order=order, final_sigmas_type="sigma_min", lower_order_final=False)
    if load("k_diffusion") is not None:
        out["k-diffusion 2M"] = _k("sample_dpmpp_2m")
        out["k-diffusion 3M"] = _k("sample_dpmpp_3m_sde", eta=0.0, noise_sampler=lambda *_: 0.0)
        out["k-diffusion LMS4"] = _k("sample_lms")
    if load("azula") is not None:
        for order in (2, 3):
            out[f"azula xEAB{order}"] = _azula("xEABSampler", order=order)
            out[f"azula zEAB{order}"] = _azula("zEABSampler", order=order)
            out[f"azula REAB{order}"] = _azula("REABSampler", order=order)
        out["azula DDIM"] = _azula("DDIMSampler")
        out["azula Heun"] = _azula("HeunSampler", half=True)
    return out
