"""B2 and B3 of `benchmarks/solvers.py`: errors of ODE solvers against a fine solution, variances of SDE solvers
exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import peers
import stochastic
import torch
from torch import Tensor

from scidiff.core.analytic import AnalyticMixture, GaussianMixture, mixture32, random_mixture, ring8
from scidiff.core.path import VP
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.euler_maruyama import EulerMaruyama
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed, Grid, LambdaGrid
from scidiff.core.solvers.variance import endpoint_variance
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec

NFE = (8, 16, 32, 64)
PATH = VP()
T_END = 1e-3
OURS = {
    "scidiff default": Exponential(),
    "scidiff default, data form": Exponential(form="data"),
    "scidiff dpmpp (2M)": Exponential(variant="dpmpp"),
    "scidiff DDIM": Ancestral(),
}
WARPED = LambdaGrid(middle=0.2, ends=0.2)


class Problem:
    """512 starts of one mixture, and where the probability flow takes them."""

    def __init__(self, mixture: GaussianMixture, count: int = 512, seed: int = 0) -> None:
        from scipy.integrate import solve_ivp

        k = PATH.coefficients(1.0)
        noise = torch.randn(count, mixture.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
        self.start = k.alpha * mixture.sample(count, seed) + k.sigma * noise
        self.mixture, self.context = mixture, Context.of(count)
        self.denoiser = AnalyticMixture(mixture, PATH, kind="noise")
        self.spec = self.denoiser.spec()

        def slope(tau: float, y: Any) -> Any:
            x = torch.from_numpy(y).view_as(self.start)
            return -mixture.velocity(x, PATH.coefficients(float(1.0 - tau))).numpy().ravel()

        fine = solve_ivp(slope, (0.0, 1.0 - T_END), self.start.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-10)
        self.truth = torch.from_numpy(fine.y[:, -1]).view_as(self.start)

    def errors(self, x: Tensor) -> dict[str, float]:
        """RMSE over coordinates, median error of a sample, share of samples in another mode (error > 5 std)."""
        far = (x - self.truth).pow(2).sum(1).sqrt()
        return {"rmse": float((x - self.truth).pow(2).mean().sqrt()), "median": float(far.median()),
                "flips": float((far > 5.0 * float(self.mixture.stds.max())).double().mean())}

    def ours(self, method: Any, steps: int, grid: Grid) -> dict[str, float]:
        sampler = Sampler(self.spec, self.denoiser, Fixed(method, steps, grid=grid, t_end=T_END), dtype=torch.float64)
        return self.errors(sampler.run(self.context, 0, start={"x": self.start}).state["x"])

    def peer(self, solve: peers.Solver, steps: int, grid: Grid) -> dict[str, float]:
        levels = [PATH.coefficients(t) for t in grid(PATH, steps, 1.0, T_END)]
        return self.errors(solve(self.mixture.posterior_mean, self.start, [k.alpha for k in levels],
                                 [k.sigma for k in levels]))


def targets(seed: int | None) -> dict[str, list[Problem]]:
    """Ring, 32-D mixture, random mixtures of seeds 0-4; with `seed`, five fresh ones beside them."""
    out = {"ring": [Problem(ring8())], "32-D mixture": [Problem(mixture32())],
           "random 0-4": [Problem(random_mixture(i)) for i in range(5)]}
    if seed is not None:
        out[f"random {seed}-{seed + 4}"] = [Problem(random_mixture(i)) for i in range(seed, seed + 5)]
    return out


def _cells(
    problems: Mapping[str, Sequence[Problem]], measure: Callable[[Problem, int], dict[str, float]]
) -> dict[str, Any]:
    """target -> NFE -> errors, averaged over the problems of a target."""
    out: dict[str, dict[int, dict[str, float]]] = {}
    for name, group in problems.items():
        out[name] = {}
        for n in NFE:
            found = [measure(p, n) for p in group]
            out[name][n] = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
    return out


def mean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(math.log(v) for v in values) / len(values))


def flat(cells: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    return [cells[name][n]["rmse"] for name in names for n in NFE]


def ode_accuracy(seed: int | None) -> list[dict[str, Any]]:
    """B2: one table a grid and a set of targets."""
    problems = targets(seed)
    sets = [("seeds 0-4", ["ring", "32-D mixture", "random 0-4"])]
    if seed is not None:
        sets.append((f"seeds {seed}-{seed + 4}", ["ring", "32-D mixture", f"random {seed}-{seed + 4}"]))
    tables = []
    for label, grid in (("uniform lambda", LambdaGrid()), ("warped lambda (0.2, 0.2)", WARPED)):
        mine = {name: _cells(problems, lambda p, n, m=m, g=grid: p.ours(m, n, g)) for name, m in OURS.items()}
        theirs = {name: _cells(problems, lambda p, n, s=s, g=grid: p.peer(s, n, g))
                  for name, s in peers.ode_solvers().items()}
        for which, names in sets:
            best = min(theirs, key=lambda p: mean(flat(theirs[p], names)), default=None)
            rows = []
            for name, cells in [*mine.items(), *sorted(theirs.items(), key=lambda kv: mean(flat(kv[1], names)))]:
                row: dict[str, Any] = {"solver": name, "geometric mean": mean(flat(cells, names))}
                if best is not None:
                    ratios = [a / b for a, b in zip(flat(cells, names), flat(theirs[best], names), strict=True)]
                    row |= {"ratio to best peer": mean(ratios), "largest ratio": max(ratios)}
                row |= {f"{target} {n}": cells[target][n]["rmse"] for target in names for n in NFE}
                rows.append(row)
            detail = "; ".join(
                f"{target} {n}: median {mine['scidiff default'][target][n]['median']:.1e}, "
                f"flips {mine['scidiff default'][target][n]['flips']:.1%}"
                for target in names
                for n in NFE
            )
            tables.append({"title": f"B2: RMSE of the endpoint, {label} grid for all, {which}", "rows": rows,
                           "notes": [f"Best single peer: {best}.", f"scidiff default, further: {detail}."]})
    return tables


def sde_variance() -> list[dict[str, Any]]:
    """B3: relative error of the final variance for N(0, 0.5^2) data, eta = 1."""
    counts, q = (8, 16, 32, 64, 128), 0.5
    spec = StateSpec({"x": Component(Euclidean(), PATH, (1,))})
    ours = {"scidiff default, eta 1": Exponential(eta=1.0),
            "scidiff order 2, no corrector": Exponential(order=2, corrector=0, reach=math.inf, eta=1.0),
            "scidiff dpmpp (2M), eta 1": Exponential(variant="dpmpp", eta=1.0),
            "scidiff DDPM": Ancestral(eta=1.0), "scidiff Euler-Maruyama": EulerMaruyama()}
    errors: dict[str, list[float]] = {}
    for name, method in ours.items():
        pairs = [endpoint_variance(Fixed(method, n, grid=LambdaGrid()).plan(spec), PATH, q) for n in counts]
        errors[name] = [found / exact - 1.0 for found, exact in pairs]
    for name, solve in stochastic.solvers().items():
        errors[name] = [stochastic.relative_error(solve, PATH, q, n, T_END) for n in counts]
    second = [n for n in errors if n in stochastic.SECOND_ORDER]
    best = min(second, key=lambda n: abs(errors[n][counts.index(32)]), default=None)
    rows = []
    for name, values in errors.items():
        row: dict[str, Any] = {"solver": name}
        if best is not None:
            row["ratio at 32"] = abs(values[2]) / abs(errors[best][2])
        rows.append(row | {f"N = {n}": v for n, v in zip(counts, values, strict=True)})
    return [
        {
            "title": "B3: relative error of the final variance, N network calls, eta = 1",
            "rows": rows,
            "notes": [
                f"Exact, from each solver's linear response. Best second-order SDE solver of the peers at 32: {best}."
            ],
        }
    ]
