"""The spectral solver beside exponax: CPU time of one trajectory-step at equal order, grid and dealiasing.

    python benchmarks/pde.py [--repeats 9] [--steps 50] [--only KS Kolmogorov] [--out PATH]

One core, one thread, float32, ETDRK4 on both sides, a minute and a half. The contestants take turns and the best of the
turns counts, so that a busy machine changes no ratio. Times are CPU times of the process: what else runs on the core
is not counted. exponax runs jitted, batched by vmap and looped by scan, once staying in Fourier space
(`step_fourier`) and once with one call a step (a transform back and forth each). Ours is `SpectralSolver.rollout` with
its edges. The floor is the cost of the transforms alone: the eight real ones that a step of order 4 asks for in one
dimension (sixteen in two), and the complex ones of half the batch that our rollout does instead. `agreement` is the
relative difference of the two end states in float32 after the steps of one run.
exponax is an extra: pip install -c constraints.txt jax jaxlib exponax
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from solvers import show  # noqa: E402

from scidiff.domains.pde.equations import KuramotoSivashinsky, NavierStokes2d, SpectralSolver  # noqa: E402
from scidiff.store import atomic  # noqa: E402

Timed = Callable[[], None]
LEAST_SECONDS = 5.0  # CPU time of one row
KS_CASES = [(n, batch) for n in (128, 256) for batch in (128, 512)]
KOLMOGOROV_CASES = [(64, 16), (64, 64), (128, 4), (128, 16)]


def pin() -> str:
    """Binds this process to the last of its cores, before any library makes threads; what was bound."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):
        return "one thread, not bound to a core"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return "one thread on one core"


def peer() -> Any:
    """exponax, or a sentence that says how to get it."""
    try:
        import exponax
    except ImportError as error:
        raise SystemExit(f"exponax is not installed ({error}); it is an extra of this benchmark: "
                         "pip install -c constraints.txt jax jaxlib exponax") from error
    return exponax


def race(contestants: dict[str, Timed], repeats: int) -> dict[str, float]:
    """Least CPU seconds of each contestant, after one turn to warm up: `repeats` turns, or more if they are short."""
    best = dict.fromkeys(contestants, math.inf)
    for run in contestants.values():
        run()
    turns, start = 0, time.process_time()
    while turns < repeats or time.process_time() - start < LEAST_SECONDS:
        for name, run in contestants.items():
            begin = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - begin)
        turns += 1
    return best


def exponax_runs(stepper: Any, u0: Any, steps: int) -> tuple[Timed, Timed, Callable[[], Any]]:
    """(staying in Fourier space, one call a step, the end state of the former) of a batch [B, 1, *grid]."""
    import exponax
    import jax
    import jax.numpy as jnp

    dims, points = stepper.num_spatial_dims, stepper.num_points

    def loop(step: Any) -> Any:
        batched = jax.vmap(step)
        return jax.jit(lambda x: jax.lax.scan(lambda c, _: (batched(c), None), x, None, length=steps)[0])

    u = jnp.asarray(u0)
    v = jax.vmap(lambda x: exponax.fft(x, num_spatial_dims=dims))(u)
    fourier, plain = loop(stepper.step_fourier), loop(stepper)
    end = jax.vmap(lambda x: exponax.ifft(x, num_spatial_dims=dims, num_points=points))
    return ((lambda: fourier(v).block_until_ready()), (lambda: plain(u).block_until_ready()),
            lambda: torch.tensor(jax.device_get(end(fourier(v)))))


def transforms(batch: int, shape: tuple[int, ...], stages: int, back: int, forth: int) -> tuple[Timed, Timed]:
    """The transforms of `stages` stages alone: real ones of the batch, complex ones of half of it."""
    real = torch.randn(batch, *shape)
    axes = tuple(range(1, len(shape) + 1))
    half = torch.fft.rfftn(real, dim=axes)
    pair = torch.randn(batch // 2, *shape, dtype=torch.complex64)

    def as_real() -> None:
        for _ in range(stages):
            for _ in range(back):
                torch.fft.irfftn(half, s=shape, dim=axes, norm="forward")
            for _ in range(forth):
                torch.fft.rfftn(real, dim=axes, norm="forward")

    def as_pairs() -> None:
        for _ in range(stages):
            for _ in range(back):
                torch.fft.ifftn(pair, dim=axes, norm="forward")
            for _ in range(forth):
                torch.fft.fftn(pair, dim=axes, norm="forward")

    return as_real, as_pairs


def case(title: str, solver: SpectralSolver, stepper: Any, u0: torch.Tensor, turned: Callable[[Any], Any], steps: int,
         repeats: int, fields: tuple[int, int], unit: float) -> dict[str, Any]:
    """One row; `turned` maps our states to exponax's and back, `fields` counts transforms back and forth a stage."""
    batch = u0.shape[0]
    fourier, plain, end = exponax_runs(stepper, turned(u0).numpy(), steps)
    real, pairs = transforms(batch, solver.shape, 4, *fields)
    with torch.inference_mode():
        ours = solver.rollout(u0, steps, steps)[:, 0]
        agreement = float((turned(end()) - ours).norm() / ours.norm())
        best = race({"ours": lambda: solver.rollout(u0, steps, steps), "fourier": fourier, "plain": plain,
                     "real": lambda: [real() for _ in range(4)], "pairs": lambda: [pairs() for _ in range(4)]}, repeats)
    each = {n: t / batch / (steps if n in ("ours", "fourier", "plain") else 4) * unit for n, t in best.items()}
    return {"grid": title, "batch": batch, "scidiff": each["ours"], "exponax, Fourier space": each["fourier"],
            "exponax, call a step": each["plain"], "ratio": each["ours"] / each["fourier"],
            "real FFTs alone": each["real"], "paired FFTs alone": each["pairs"], "agreement": agreement}


def kuramoto_sivashinsky(steps: int, repeats: int) -> dict[str, Any]:
    exponax = peer()
    equation, dt, rows = KuramotoSivashinsky(), 0.05, []
    for n, batch in KS_CASES:
        u0 = equation.initial(torch.arange(batch), 0, (n,), 64.0)
        stepper = exponax.stepper.KuramotoSivashinskyConservative(1, 64.0, n, dt, order=4)
        rows.append(case(str(n), SpectralSolver(equation, (n,), 64.0, dt), stepper, u0, lambda u: u, steps, repeats,
                         (1, 1), 1e6))
    return {"title": "Kuramoto-Sivashinsky, L = 64, dt = 0.05: microseconds a trajectory-step", "rows": rows}


def kolmogorov(steps: int, repeats: int) -> dict[str, Any]:
    exponax = peer()
    equation, dt, side, rows = NavierStokes2d(), 0.005, 2.0 * math.pi, []
    for n, batch in KOLMOGOROV_CASES:
        u0 = equation.initial(torch.arange(batch), 0, (n, n), side)
        # exponax has the axes in the order (x, y) and the opposite sign of the vorticity.
        stepper = exponax.stepper.KolmogorovFlowVorticity(2, side, n, dt, diffusivity=1e-3, drag=-0.1, injection_mode=4,
                                                          injection_scale=-1.0, order=4)
        rows.append(case(f"{n} x {n}", SpectralSolver(equation, (n, n), side, dt), stepper, u0,
                         lambda u: -u.transpose(-1, -2), steps, repeats, (2, 2), 1e3))
    return {"title": "Kolmogorov flow, nu = 1e-3, dt = 0.005: milliseconds a trajectory-step", "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50, help="steps of a timed run (in two dimensions a fifth)")
    parser.add_argument("--only", nargs="+", choices=("KS", "Kolmogorov"), default=["KS", "Kolmogorov"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "pde_solvers.json")
    options = parser.parse_args()
    bound = pin()
    peer()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "jax", "jaxlib", "exponax")}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    tables = []
    if "KS" in options.only:
        tables.append(kuramoto_sivashinsky(options.steps, options.repeats))
        show(tables[-1])
    if "Kolmogorov" in options.only:
        tables.append(kolmogorov(max(options.steps // 5, 1), options.repeats))
        show(tables[-1])
    content = {
        "kind": "benchmark", "title": "Spectral solvers beside exponax", "command": "python benchmarks/pde.py",
        "versions": versions,
        "notes": f"{platform.machine()}, {bound}, float32, ETDRK4, 2/3 rule. CPU time, best of {options.repeats} turns "
                 "or more; ratio = scidiff / exponax staying in Fourier space. scidiff transforms two samples as one "
                 "complex field, which costs less than the real transforms of both. agreement: relative difference of "
                 "the two end states.",
        "tables": tables,
    }
    print(f"\n{atomic.write_json(options.out, content)}")


if __name__ == "__main__":
    main()
