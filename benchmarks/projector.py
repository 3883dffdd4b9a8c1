"""The tabulated projector beside a rotation projector, and beside scikit-image, ASTRA and deepinv where installed.

    python benchmarks/projector.py [--sizes 256 512] [--views 8 20 60 180] [--threads 1 2] [--no-large] [--out PATH]

Parallel beam, float32, batches of 16 slices, milliseconds a slice; the contestants take turns and the best of the turns
counts. On one thread times are CPU times of the process, so that what else runs on the machine is not counted; on more
threads they are wall times. The rotation projector is written here: `grid_sample` turns the image under each view and
the columns are summed, its adjoint by autograd. It and the peers, which take slice by slice, are timed on at most 12
views and scaled. All see the whole image with n sqrt 2 cells. `mismatch` is
|<Ax, y> - <x, A^T y>| / (|Ax| |y|) of random float32 batches, summed in float64; memory is that of the table.
Extras: pip install -c constraints.txt scikit-image astra-toolbox deepinv (ASTRA wants the CUDA runtime library).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import math
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from solvers import show  # noqa: E402
from torch.nn.functional import affine_grid, grid_sample  # noqa: E402

from scidiff.core.operator import dot  # noqa: E402
from scidiff.domains.medical.operators.ct import ParallelCT  # noqa: E402
from scidiff.store import atomic  # noqa: E402

Timed = Callable[[], Any]
Pair = tuple[Timed, Timed, float]  # forward, adjoint, and the factor from their time to one slice with all views
BATCH, FEW = 16, 12


def race(contestants: dict[str, Timed], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Least seconds of each contestant over `repeats` turns, after one to warm up."""
    best = dict.fromkeys(contestants, math.inf)
    for run in contestants.values():
        run()
    for _ in range(repeats):
        for name, run in contestants.items():
            begin = clock()
            run()
            best[name] = min(best[name], clock() - begin)
    return best


def rotation(n: int, angles: torch.Tensor) -> Pair:
    """Turn the image under each view and sum its columns, a batch at a time; the adjoint is autograd's.

    The image is padded to its diagonal, so that the detector is the one that the others have.
    """
    chosen = angles[:: math.ceil(len(angles) / FEW)] * (math.pi / 180)
    cells = math.ceil(n * 2**0.5)
    before = (cells - n) // 2
    x = torch.rand(BATCH, 1, n, n)
    grids = [affine_grid(torch.tensor([[[c, -s, 0.0], [s, c, 0.0]]]), [1, 1, cells, cells], align_corners=False)
             for c, s in zip(chosen.cos().tolist(), chosen.sin().tolist(), strict=True)]

    def forward(x: torch.Tensor = x) -> torch.Tensor:
        x = torch.nn.functional.pad(x, (before, cells - n - before) * 2)
        turned = (grid_sample(x, grid.expand(BATCH, -1, -1, -1), align_corners=False) for grid in grids)
        return torch.stack([t.sum(-2) for t in turned], 2)

    leaf = x.clone().requires_grad_()
    y = forward(leaf)
    weight = torch.rand_like(y)
    return (lambda: forward(), lambda: torch.autograd.grad(y, leaf, weight, retain_graph=True),
            len(angles) / len(chosen) / BATCH)


def scikit_image(n: int, angles: torch.Tensor) -> Pair:
    transform = importlib.import_module("skimage.transform")
    chosen = angles[:: math.ceil(len(angles) / FEW)].numpy()
    image = torch.rand(n, n).numpy()
    sinogram = transform.radon(image, chosen, circle=False)
    return (lambda: transform.radon(image, chosen, circle=False),
            lambda: transform.iradon(sinogram, chosen, output_size=n, filter_name=None, circle=False),
            len(angles) / len(chosen))


def astra(n: int, angles: torch.Tensor) -> Pair:
    library = importlib.import_module("astra")
    chosen = angles[:: math.ceil(len(angles) / FEW)]
    volume = library.create_vol_geom(n, n)
    views = library.create_proj_geom("parallel", 1.0, math.ceil(n * 2**0.5), (chosen * math.pi / 180).numpy())
    operator = library.OpTomo(library.create_projector("linear", views, volume))
    image = torch.rand(n * n).numpy()
    sinogram = operator * image
    return lambda: operator * image, lambda: operator.T * sinogram, len(angles) / len(chosen)


def deepinv(n: int, angles: torch.Tensor) -> Pair:
    library = importlib.import_module("deepinv")
    chosen = angles[:: math.ceil(len(angles) / FEW)].float()
    physics = library.physics.Tomography(angles=chosen, img_width=n, circle=False, device="cpu", normalize=False)
    x = torch.rand(BATCH, 1, n, n)
    y = physics.A(x)
    return lambda: physics.A(x), lambda: physics.A_adjoint(y), len(angles) / len(chosen) / BATCH


PEERS = {"rotation": rotation, "scikit-image": scikit_image, "ASTRA CPU linear": astra, "deepinv": deepinv}


def rivals() -> dict[str, Callable[[int, torch.Tensor], Pair]]:
    """The contestants that can be imported; what cannot is said."""
    found = {"rotation": rotation}
    for name, module in (("scikit-image", "skimage.transform"), ("ASTRA CPU linear", "astra"), ("deepinv", "deepinv")):
        try:
            importlib.import_module(module)
            found[name] = PEERS[name]
        except (ImportError, OSError) as error:
            print(f"{name} is left out: {error}")
    return found


def case(n: int, views: int, threads: int, repeats: int, others: dict[str, Any]) -> dict[str, Any]:
    """One row: milliseconds a slice, forward and adjoint, of every contestant."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    operator = ParallelCT((n, n), views=views)
    x = torch.rand(BATCH, 1, n, n)
    y = operator(x)
    operator.adjoint(y)
    pairs: dict[str, Pair] = {"scidiff": (lambda: operator(x), lambda: operator.adjoint(y), 1 / BATCH)}
    pairs |= {name: make(n, operator.angles) for name, make in others.items()}
    runs = {f"{name} {way}": run for name, pair in pairs.items() for way, run in zip(("A", "A^T"), pair, strict=False)}
    best = race(runs, repeats, clock)
    row: dict[str, Any] = {"size": n, "views": views, "threads": threads}
    for name, pair in pairs.items():
        row |= {f"{name} {way}": best[f"{name} {way}"] * pair[2] * 1e3 for way in ("A", "A^T")}
    for name in others:
        row |= {f"{name} / scidiff, {way}": row[f"{name} {way}"] / row[f"scidiff {way}"] for way in ("A", "A^T")}
    a, b = torch.randn(BATCH, 1, n, n), torch.randn(BATCH, *operator.out_shape)
    left, right = operator(a), operator.adjoint(b)
    row["mismatch"] = float(((dot(left, b) - dot(a, right)).abs() / (dot(left, left) * dot(b, b)).sqrt()).max())
    row["table, MB"] = operator.nbytes / 1e6
    return row


def memory(n: int, views: int) -> dict[str, Any]:
    """What the largest case holds: the table as it is, and what it would be without the symmetry of the views."""
    begin = time.process_time()
    operator = ParallelCT((n, n), views=views)
    x = torch.rand(1, 1, n, n)
    y = operator(x)
    built = time.process_time() - begin
    operator.adjoint(y)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"size": n, "views": views, "tabulated views": len(operator.base), "table, GB": operator.nbytes / 1e9,
            "without symmetry, GB": operator.nbytes / 1e9 * views / len(operator.base), "build, CPU s": built,
            "peak memory of the process, GB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--views", type=int, nargs="+", default=[8, 20, 60, 180])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-large", action="store_true", help="leave out the memory of 512 x 512, 720 views")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "projector.json")
    options = parser.parse_args()
    others = rivals()
    packages = {"scikit-image": "scikit-image", "ASTRA CPU linear": "astra-toolbox", "deepinv": "deepinv"}
    versions = {"torch": torch.__version__}
    versions |= {packages[name]: importlib.metadata.version(packages[name]) for name in others if name in packages}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    tables = []
    if not options.no_large:
        torch.set_num_threads(1)
        tables.append({"title": "Memory of the largest table", "rows": [memory(512, 720)]})
        show(tables[-1])
    for threads in options.threads:
        rows = [case(n, v, threads, options.repeats, others) for n in options.sizes for v in options.views]
        kind = "CPU time" if threads == 1 else "wall time"
        tables.append({"title": f"Milliseconds a slice, batches of {BATCH}, threads: {threads} ({kind})", "rows": rows})
        show(tables[-1])
    content = {
        "kind": "benchmark", "title": "Parallel beam projectors",
        "command": "python benchmarks/" + " ".join(["projector.py", *sys.argv[1:]]), "versions": versions,
        "notes": f"{platform.machine()}, CPU, float32, best of {options.repeats} turns of all contestants. Compare "
                 "ratios within a row, not times: the machine may be shared. What could not be imported is "
                 "left out.",
        "tables": tables,
    }
    print(f"\n{atomic.write_json(options.out, content)}")


if __name__ == "__main__":
    main()
