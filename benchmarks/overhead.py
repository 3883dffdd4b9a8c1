"""B1 of `benchmarks/solvers.py`: what one step costs with a trivial network (x * 0.5), in microseconds.

Ours run through the public Sampler, final check included; peers are given their schedule outside the clock. The
contestants take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import peers
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.path import VP
from scidiff.core.path.base import Prediction
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec

STEPS, REPEATS, WARM = 50, 7, 2
SHAPES = ((64, 8), (16, 4, 32, 32))
THREE = {"positions": (16, 3), "cell": (6,), "types": (16, 8)}
Timed = Callable[[], float]


class Half(Denoiser):
    """Predicts the noise as half of the state."""

    def forward(self, state: Any, t: Any, ctx: Context, run: Any = None) -> Any:
        return {name: Prediction("noise", x * 0.5) for name, x in state.items()}


def _ours(method: Any, shapes: dict[str, tuple[int, ...]], batch: int) -> Timed:
    spec = StateSpec({name: Component(Euclidean(), VP(), shape) for name, shape in shapes.items()})
    sampler, context = Sampler(spec, Half(), Fixed(method, STEPS)), Context.of(batch)
    start = {name: torch.randn(batch, *shape) for name, shape in shapes.items()}

    def run() -> float:
        begin = time.perf_counter()
        sampler.run(context, 0, start=start)
        return time.perf_counter() - begin

    return run


def _diffusers(cls: str, shape: tuple[int, ...], **config: Any) -> Timed:
    scheduler = getattr(peers.load("diffusers"), cls)(**config)
    start = torch.randn(shape)

    def run() -> float:
        scheduler.set_timesteps(STEPS)
        x = start
        begin = time.perf_counter()
        for t in scheduler.timesteps:
            x = scheduler.step(x * 0.5, t, x).prev_sample
        return time.perf_counter() - begin

    return run


def _k(function: str, shape: tuple[int, ...]) -> Timed:
    sampler = getattr(peers.load("k_diffusion"), function)
    sigmas, start = torch.linspace(math.log(80.0), math.log(0.01), STEPS + 1).exp(), torch.randn(shape)

    def run() -> float:
        begin = time.perf_counter()
        sampler(lambda x, sigma: x * 0.5, start, sigmas, disable=True)
        return time.perf_counter() - begin

    return run


def _azula(cls: str, shape: tuple[int, ...], **options: Any) -> Timed:
    import importlib

    denoise, noise = importlib.import_module("azula.denoise"), importlib.import_module("azula.noise")

    class Exact(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = noise.VPSchedule()

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, **_: Any) -> Any:
            return denoise.DiracPosterior(x_t * 0.5)

    sampler, start = getattr(peers.load("azula"), cls)(Exact(), steps=STEPS, silent=True, **options), torch.randn(shape)

    def run() -> float:
        begin = time.perf_counter()
        sampler(start)
        return time.perf_counter() - begin

    return run


def _contestants(shape: tuple[int, ...]) -> dict[str, Timed]:
    one = {"x": shape[1:]}
    second = {"order": 2, "corrector": 0}
    out = {"scidiff exponential 2 (noise form)": _ours(Exponential(form="noise", **second), one, shape[0]),
           "scidiff default (order 4, corrector)": _ours(Exponential(), one, shape[0]),
           "scidiff DPM++2M": _ours(Exponential(variant="dpmpp"), one, shape[0]),
           "scidiff DDIM": _ours(Ancestral(), one, shape[0]),
           "scidiff 2M-SDE, noise per sample": _ours(Exponential(variant="dpmpp", eta=1.0), one, shape[0]),
           "scidiff DDPM, noise per sample": _ours(Ancestral(eta=1.0), one, shape[0])}
    if len(shape) == 2:
        out["scidiff exponential 2, three components"] = _ours(Exponential(form="noise", **second), THREE, shape[0])
    if peers.load("diffusers") is not None:
        out["diffusers DPM++2M"] = _diffusers("DPMSolverMultistepScheduler", shape)
        out["diffusers DPM++2M-SDE"] = _diffusers(
            "DPMSolverMultistepScheduler", shape, algorithm_type="sde-dpmsolver++"
        )
        out["diffusers UniPC2"] = _diffusers("UniPCMultistepScheduler", shape)
        out["diffusers DDIM"] = _diffusers("DDIMScheduler", shape)
    if peers.load("k_diffusion") is not None:
        out["k-diffusion Euler"] = _k("sample_euler", shape)
        out["k-diffusion 2M"] = _k("sample_dpmpp_2m", shape)
        out["k-diffusion 2M-SDE (Brownian tree)"] = _k("sample_dpmpp_2m_sde", shape)
    if peers.load("azula") is not None:
        out["azula DDIM"] = _azula("DDIMSampler", shape)
        out["azula xEAB2"] = _azula("xEABSampler", shape, order=2)
    return out


def overhead() -> list[dict[str, Any]]:
    """One table: least and median microseconds a step for each state, and the ratios that matter."""
    rows: dict[str, dict[str, Any]] = {}
    notes = []
    for shape in SHAPES:
        contestants = _contestants(shape)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(WARM + REPEATS):
            for name, run in contestants.items():
                spent = run() / STEPS * 1e6
                if turn >= WARM:
                    times[name].append(spent)
        label = str(shape).replace(" ", "")
        for name, spent in times.items():
            rows.setdefault(name, {"solver": name}).update(
                {f"{label} min": round(min(spent), 2), f"{label} median": round(statistics.median(spent), 2)})
        for mine, peer in (("scidiff exponential 2 (noise form)", "diffusers DPM++2M"),
                           ("scidiff exponential 2 (noise form)", "k-diffusion 2M"),
                           ("scidiff exponential 2, three components", "diffusers DPM++2M"),
                           ("scidiff 2M-SDE, noise per sample", "diffusers DPM++2M-SDE")):
            if mine in times and peer in times:
                least, middle = (
                    min(times[mine]) / min(times[peer]),
                    statistics.median(times[mine]) / statistics.median(times[peer]),
                )
                notes.append(f"{label}: {mine} / {peer} = {least:.3f} (min), {middle:.3f} (median).")
    return [
        {
            "title": f"B1: microseconds a step, trivial network included, {STEPS} steps, {REPEATS} repeats",
            "rows": list(rows.values()),
            "notes": notes,
        }
    ]
