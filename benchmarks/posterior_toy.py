"""Every posterior solver on a Gaussian problem whose posterior is known: bias, spread and residual in one table.

    python benchmarks/posterior_toy.py [--samples 1000] [--paths VP Linear] [--only NAME ...] [--out FILE.json]

The problem is `scidiff.core.posterior.toy.GaussianToy`: 32 dimensions, Matern 3/2 covariance of length 4, 16 random
rows, sigma_y = 0.05, seed 0, and the exact denoiser; operator scaled to norm 1. bias = |mean - true mean| over
|true mean|, spread = sampled over true standard deviation, residual = root mean square of (y - A x) / sigma_y. Where
every rule of a solver is linear the figures are exact (mean and covariance of its affine map of the noise); elsewhere
they come from samples, and `noise` is the 95 % error of the bias. One thread, about a minute a path.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from solvers import show  # noqa: E402

from scidiff.core.path import VP, Linear  # noqa: E402
from scidiff.core.path.gaussian import GaussianPath  # noqa: E402
from scidiff.core.posterior import (  # noqa: E402
    DDNM,
    DDRM,
    DDS,
    DPS,
    MBIR,
    DiffPIR,
    FlowChef,
    FlowDPS,
    PiGDM,
    Posterior,
)
from scidiff.core.posterior.toy import GaussianToy  # noqa: E402
from scidiff.core.procedure import DAPS, PnPDM, PnPFlow, REDDiff  # noqa: E402
from scidiff.core.solvers.exponential import Exponential  # noqa: E402
from scidiff.core.solvers.fixed import Fixed  # noqa: E402
from scidiff.store import atomic  # noqa: E402

PATHS: dict[str, GaussianPath] = {"VP": VP(t_min=1e-4), "Linear": Linear()}
LINEAR, SAMPLED = True, False
SOLVERS: list[tuple[str, Posterior, bool]] = [
    ("PiGDM, exact covariance, multistep 50", PiGDM(50, "exact", cg=20, tolerance=1e-10), LINEAR),
    ("PiGDM, exact covariance, DDIM 200", PiGDM(200, "exact", cg=20, tolerance=1e-10), LINEAR),
    ("PiGDM, isotropic, DDIM 100", PiGDM(100), LINEAR),
    ("DPS 200, zeta 0.5", DPS(200, zeta=0.5), SAMPLED),
    ("DDNM 100, stop at the noise", DDNM(100), SAMPLED),
    ("DDNM 100, no stop", DDNM(100, stop=False), LINEAR),
    ("DDRM 20", DDRM(20), LINEAR),
    ("DDRM 100", DDRM(100), LINEAR),
    ("DiffPIR 100, xi 1", DiffPIR(100), LINEAR),
    ("DiffPIR 100, xi 0.3", DiffPIR(100, xi=0.3), LINEAR),
    ("DDS 50, least squares, stop", DDS(50), SAMPLED),
    ("DDS 50, g = 1", DDS(50, weight=1.0), SAMPLED),
    ("DDS 50, g = 1/sigma_y^2, no stop", DDS(50, weight=1.0, relative=True, stop=False), SAMPLED),
    ("DDS 50, g = 1/sigma_y^2, no stop, eta 0", DDS(50, 0.0, weight=1.0, relative=True, stop=False), SAMPLED),
    ("MBIR 200 levels, data step without TV", MBIR(200), SAMPLED),
    ("RED-diff 200", REDDiff(200), SAMPLED),
    ("DAPS 100 x 5, rho 100 to 0.1", DAPS(100), SAMPLED),
    ("PnP-DM 60 x 10, r 10 to 0.1", PnPDM(60, 10), SAMPLED),
    ("PnP-DM 100 x 10, r 10 to 0.02", PnPDM(100, 10, r_min=0.02), SAMPLED),
    ("FlowDPS 28", FlowDPS(), LINEAR),
    ("FlowDPS 28, |y - A D|", FlowDPS(image=False), LINEAR),
    ("FlowDPS 28, |y - A D|, no final step", FlowDPS(image=False, final=False), LINEAR),
    ("FlowChef 100", FlowChef(), LINEAR),
    ("FlowChef 100, |y - A D|", FlowChef(image=False), LINEAR),
    ("PnP-Flow 100 x 5", PnPFlow(), SAMPLED),
]


def measured(toy: GaussianToy, name: str, method: Posterior, linear: bool, count: int) -> dict[str, Any]:
    """One row of the table."""
    more = {"solver": Fixed(Exponential(last="data"), 50)} if "multistep" in name else {}
    cost = method.cost(toy.problem(1), **more)
    begin = time.process_time()
    noise = None
    if linear:
        mean, cov = toy.moments(method, **more)
    else:
        x = toy.samples(method, count, **more)
        mean, cov = x.mean(0), torch.cov(x.T)
        noise = 1.96 * float((torch.trace(cov) / count).sqrt() / toy.posterior[0].norm())
    return {"solver": name, "kind": method.role, "evaluations": cost.evaluations, "backprops": cost.backprops,
            "projections": cost.projections, **toy.figures(mean, cov), "noise": noise,
            "seconds": time.process_time() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000, help="of each solver that has no exact figures")
    parser.add_argument("--paths", nargs="+", choices=tuple(PATHS), default=list(PATHS))
    parser.add_argument("--only", nargs="+", default=[""], help="solvers whose names begin like this")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "posterior_toy.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = []
    for name in options.paths:
        toy = GaussianToy(PATHS[name])
        rows: list[dict[str, Any]] = [{"solver": "the posterior", **toy.figures(*toy.posterior)}]
        chosen = [entry for entry in SOLVERS if entry[0].startswith(tuple(options.only))]
        rows += [measured(toy, *entry, options.samples) for entry in chosen]
        tables.append({"title": f"Posterior solvers on the Gaussian toy, path {name}", "rows": rows})
        show(tables[-1])
    content = {
        "kind": "benchmark", "title": "Posterior solvers where the posterior is known",
        "command": f"python benchmarks/posterior_toy.py --samples {options.samples} --paths {' '.join(options.paths)}",
        "versions": {"torch": torch.__version__},
        "notes": "n = 32, Matern 3/2 of length 4, 16 Gaussian rows, sigma_y 0.05, seed 0, exact denoiser, float64, "
                 "one thread. Figures without a noise are exact. evaluations, backprops and projections (A or A^T, at "
                 "most) are those of a sample, by cost(). seconds: CPU time of the row.",
        "tables": tables,
    }
    print(f"\n{atomic.write_json(options.out, content)}")


if __name__ == "__main__":
    main()
