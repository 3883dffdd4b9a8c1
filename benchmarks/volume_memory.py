"""Peak memory of a whole reconstruction against the number of slices: what grows is the state, nothing else.

    python benchmarks/volume_memory.py [--size 512] [--slices 50 100 200 500] [--views 60] [--steps 2] [--chunk 16]

Every row is a process of its own, which reads a sinogram (parallel beam, float32) and reconstructs it by DDS with total
variation between slices and a tiny convolutional prior, the way `scidiff reconstruct --sinogram` does: measurement,
samples with their moments, null space. `peak` is the largest resident memory of that process, `before` what it held
with its libraries, model and operator loaded; `arrays` is the difference in volumes of float32. Where it levels off,
memory is flat but for the state. To reach: 512 x 512 x 500 with 60 views and 2 steps under 16 GiB on the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from solvers import show  # noqa: E402

from scidiff.core.denoiser import NetworkDenoiser  # noqa: E402
from scidiff.core.path.edm import EDM  # noqa: E402
from scidiff.core.spec import Component, StateSpec  # noqa: E402
from scidiff.domains.medical import MedicalDomain  # noqa: E402
from scidiff.domains.medical.intensity import CT  # noqa: E402
from scidiff.domains.medical.operators.ct import ParallelCT  # noqa: E402
from scidiff.domains.medical.phantom import chest  # noqa: E402
from scidiff.domains.medical.reconstruction import reconstruct  # noqa: E402
from scidiff.domains.model import Model  # noqa: E402
from scidiff.nn.patch import PatchUNet  # noqa: E402
from scidiff.store import atomic  # noqa: E402

SPACING = 400.0  # mm of the field of view


def prior(size: int) -> Model:
    """A tiny convolutional prior: its memory is that of a real one, a fifth as wide."""
    domain = MedicalDomain("CT", size=size)
    spec = StateSpec({n: Component(space, EDM(0.002, 40.0), dims) for n, (space, dims) in domain.components().items()})
    network = PatchUNet(widths=(8, 16), embed=16)
    return Model({"experiment": "tiny"}, domain, spec, NetworkDenoiser(spec, network, {"default": "preconditioned"},
                                                                       data_std=0.3, clock="lambda"))


def geometry(size: int, views: int) -> dict[str, Any]:
    edge = SPACING / size
    cells = math.ceil(size * math.sqrt(2.0))
    return {"beam": "parallel", "size": [size, size], "spacing_mm": edge, "angles": {"views": views},
            "detector": {"cells": cells, "spacing_mm": edge}, "slice_spacing_mm": 2.0}


def sinogram(folder: Path, size: int, views: int, slices: int) -> Path:
    """One slice of a chest, `slices` times, as a file; written without holding it."""
    about = geometry(size, views)
    edge, cells = about["spacing_mm"], about["detector"]["cells"]
    volume = chest(0).volume((2, size, size), (2.0, edge, edge), finer=1)
    y = ParallelCT((size, size), views=views, detector=cells, spacing_mm=edge)(CT.encode(volume.data[:1]))[0, 0].numpy()
    file = folder / "y.npy"
    out = np.lib.format.open_memmap(file, "w+", np.float32, (slices, views, cells))
    for k in range(slices):
        out[k] = y
    out.flush()
    return file


def gigabytes() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def child(size: int, slices: int, views: int, steps: int, chunk: int) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        file = sinogram(Path(place), size, views, slices)
        model = prior(size)
        ask = {
            "sinogram": str(file), "geometry": geometry(size, views), "steps": steps, "chunk": chunk, "samples": 1,
            "rivals": False, "force": True,
            "posterior": {"_target_": "scidiff.core.posterior.consistency.DDS", "steps": steps, "cg": 5, "step": None},
        }
        before, begin = gigabytes(), time.process_time()
        found: Any = reconstruct(model.domain, model, ask)  # type: ignore[arg-type]
        assert len(found) == 1
    return {"before": before, "peak": gigabytes(), "seconds": time.process_time() - begin}


def case(size: int, slices: int, options: argparse.Namespace) -> dict[str, Any]:
    words = ["--child", "--size", size, "--slices", slices, "--views", options.views, "--steps", options.steps,
             "--chunk", options.chunk]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    volume = size * size * slices * 4 / 1024**3
    return {"size": size, "slices": slices, "views": options.views, "volume, GiB": volume,
            "before, GiB": found["before"], "peak, GiB": found["peak"],
            "arrays": (found["peak"] - found["before"]) / volume, "CPU s": found["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "volume_memory.json")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.size, options.slices[0], options.views, options.steps, options.chunk)))
        return
    rows = [case(options.size, slices, options) for slices in options.slices]
    table = {"title": f"Peak memory, {options.size} x {options.size} pixels, {options.views} views, {options.steps} "
                      f"steps, {options.chunk} slices at once", "rows": rows}
    show(table)
    content = {
        "kind": "benchmark", "title": "Memory of a reconstruction",
        "command": "python benchmarks/" + " ".join(["volume_memory.py", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__},
        "notes": f"{platform.machine()}, CPU, one thread; one process a row. `arrays`: volumes of float32 above what "
                 "the process held before.",
        "tables": [table],
    }
    print(f"\n{atomic.write_json(options.out, content)}")


if __name__ == "__main__":
    main()
