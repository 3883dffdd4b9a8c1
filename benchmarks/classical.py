"""Reconstructions without a learned prior on staged CT and MR volumes, beside the figures that they are to reach.

    python benchmarks/classical.py [--data FOLDER] [--ct NAME:TASK ...] [--mr NAME:FACTOR ...] [--seeds 10] [--plane]
                                   [--add] [--out PATH]

CT: 32 central slices, (clip(HU, -1000, 1000) + 1000) / 2000, parallel beam of Joseph's matrix, ceil(n sqrt 2) cells of
one pixel, no noise, measured by the operator that reconstructs (an inverse crime). MR: 24 slices divided by the 99.9th
percentile of the volume and known to be real, one coil, random lines, 8 % of them in the middle fully sampled (4 %
beyond an acceleration of 6), mean and range over seeds of the mask. CT is clipped to [0, 1], MR is not; PSNR and SSIM
have the range 1 and are means over the slices whose true maximum exceeds 0.05. Seconds are CPU time. `quoted` is
the PSNR of a reference implementation of the same settings on the same volumes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from solvers import show  # noqa: E402
from torch import Tensor  # noqa: E402

from scidiff.core.operator import LinearOperator  # noqa: E402
from scidiff.domains.medical.classical import CGLS, FBP, SIRT, AdmmTV, Method, ZeroFilled  # noqa: E402
from scidiff.domains.medical.metrics import PLANES, by_plane, psnr, ssim  # noqa: E402
from scidiff.domains.medical.operators.ct import LimitedAngle, ParallelCT  # noqa: E402
from scidiff.domains.medical.operators.mri import cartesian  # noqa: E402

FIRST = {"ct_chest_rider0117": 30, "ct_chest_lidc0314": 40, "mr_t1_ms19": 12, "mr_flair_ms20": 12}
TASKS = ("8", "20", "60", "0-89")
WEIGHTS = {"8": 3.0, "20": 1.0, "60": 0.5, "0-89": 1.0}  # of total variation, for the operator as it is
QUOTED = {  # axial, coronal, sagittal
    ("ct_chest_rider0117", "8"): {"FBP": (13.9, 14.7, 14.0), "TV": (23.2, 25.0, 23.4)},
    ("ct_chest_rider0117", "20"): {"FBP": (19.5, 19.9, 19.6), "TV": (27.3, 28.8, 27.6)},
    ("ct_chest_rider0117", "60"): {"FBP": (27.3, 27.6, 27.3), "TV": (32.5, 33.5, 32.7)},
    ("ct_chest_rider0117", "0-89"): {"FBP": (14.7, 15.2, 15.2), "TV": (21.2, 22.7, 21.7)},
    ("ct_chest_lidc0314", "8"): {"FBP": (12.9,), "TV": (20.1, 22.5, 20.4)},
    ("ct_chest_lidc0314", "20"): {"FBP": (17.4,), "TV": (24.4, 26.9, 24.7)},
    ("ct_chest_lidc0314", "60"): {"FBP": (25.7,), "TV": (30.5, 31.0, 30.7)},
    ("ct_chest_lidc0314", "0-89"): {"FBP": (15.1,), "TV": (19.5, 20.2, 20.5)},
    ("mr_t1_ms19", "4"): {"zero-filled": (22.0,), "TV": (29.6,)},
    ("mr_t1_ms19", "8"): {"zero-filled": (18.6,), "TV": (19.6,)},
    ("mr_flair_ms20", "4"): {"zero-filled": (22.3,), "TV": (27.6,)},
    ("mr_flair_ms20", "8"): {"zero-filled": (19.7,), "TV": (20.4,)},
}


def load(folder: Path, name: str) -> Tensor:
    """The slices of one volume, [Z, 1, Y, X] in the range of the table."""
    image = importlib.import_module("nibabel").load(folder / f"{name}.nii.gz")
    values = np.asarray(image.dataobj, dtype=np.float32)
    volume = torch.from_numpy(values.transpose(2, 1, 0).copy())[:, None]
    if name.startswith("ct"):
        volume = (volume.clamp(-1000, 1000) + 1000) / 2000
    else:
        volume = volume / float(np.quantile(values, 0.999))
    return volume[FIRST[name] : FIRST[name] + (32 if name.startswith("ct") else 24)].clone()


def scored(x: Tensor, truth: Tensor) -> dict[str, float]:
    """PSNR in the three planes and axial SSIM."""
    x = x.abs() if x.is_complex() else x.clamp(0, 1)
    found = {name: float(values.mean()) for name, values in by_plane(psnr, x, truth).items()}
    return found | {"SSIM": float(ssim(x, truth).mean())}


def timed(method: Method, y: Tensor, operator: LinearOperator, truth: Tensor) -> dict[str, float]:
    begin = time.process_time()
    x = method(y, operator)
    spent = time.process_time() - begin
    return scored(x, truth) | {"CPU s": spent}


def ct_rows(truth: Tensor, name: str, task: str, plane: bool) -> list[dict[str, Any]]:
    n = truth.shape[-1]
    operator = LimitedAngle((n, n), 0, 90) if task == "0-89" else ParallelCT((n, n), views=int(task))
    weight, iterations = WEIGHTS[task], 60 if task == "60" else 200
    methods: dict[str, tuple[Method, str]] = {
        "FBP": (FBP(), "FBP"), "FBP, matched": (FBP(matched=True), "FBP"), "CGLS 20": (CGLS(20), ""),
        "SIRT 100": (SIRT(100, bounds=(0, 1)), ""),
        f"ADMM-TV 3D, {iterations}": (AdmmTV(weight, iterations=iterations, unit_norm=False), "TV")}
    if plane:
        methods[f"ADMM-TV 2D, {iterations}"] = AdmmTV(weight, axes="yx", iterations=iterations, unit_norm=False), ""
    y = operator(truth)
    rows = []
    for label, (method, key) in methods.items():
        rows.append({"volume": name, "task": task, "method": label, **timed(method, y, operator, truth),
                     **beside(QUOTED[name, task].get(key, ()))})
        print(rows[-1], flush=True)
    return rows


def beside(quoted: tuple[float, ...]) -> dict[str, float]:
    return {f"quoted {plane}": value for plane, value in zip(PLANES, quoted, strict=False)}


def mr_rows(truth: Tensor, name: str, factor: str, seeds: int) -> list[dict[str, Any]]:
    """Mean over seeds of the mask, and the least and the largest axial PSNR."""
    methods: dict[str, Method] = {"zero-filled": ZeroFilled(chunk=None),
                                  "TV": AdmmTV(0.005, axes="yx", iterations=60, unit_norm=False)}
    found: dict[str, list[dict[str, float]]] = {label: [] for label in methods}
    for seed in range(seeds):
        operator = cartesian(truth.shape[-2:], "random", float(factor), seed=seed, real=True)
        y = operator(truth)
        for label, method in methods.items():
            found[label].append(timed(method, y, operator, truth))
            print(name, factor, seed, label, found[label][-1], flush=True)
    rows = []
    for label, scores in found.items():
        mean = {key: sum(one[key] for one in scores) / seeds for key in scores[0]}
        axial = [one["axial"] for one in scores]
        rows.append({"volume": name, "task": f"x{factor}", "method": "ADMM-TV 2D, 60" if label == "TV" else label,
                     "seeds": seeds, **mean, "least axial": min(axial), "largest axial": max(axial),
                     **beside(QUOTED[name, factor][label])})
    return rows


def joined(out: Path, title: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table in the file, with those measured now in the place of older ones."""
    tables = json.loads(out.read_text(encoding="utf-8"))["tables"] if out.is_file() else []
    old = next((table["rows"] for table in tables if table["title"] == title), [])
    places = {(row["volume"], row["task"], row["method"]): row for row in [*old, *rows]}
    return list(places.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "medical")
    every = {kind: [f"{name}:{task}" for name, task in QUOTED if name.startswith(kind)] for kind in ("ct", "mr")}
    parser.add_argument("--ct", nargs="*", choices=every["ct"], default=every["ct"], metavar="NAME:TASK")
    parser.add_argument("--mr", nargs="*", choices=every["mr"], default=every["mr"], metavar="NAME:FACTOR")
    parser.add_argument("--seeds", type=int, default=10, help="masks of k-space")
    parser.add_argument("--plane", action="store_true", help="total variation of the slices by themselves too (CT)")
    parser.add_argument("--add", action="store_true", help="keep the other rows of the file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "classical.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.data.is_dir():
        parser.error(f"no staged volumes in {options.data}: name their folder with --data")
    tables = []
    for kind, title in (("ct", "Tomography, PSNR in dB"), ("mr", "Undersampled MRI, PSNR in dB over masks")):
        rows = []
        for chosen in getattr(options, kind):
            name, task = chosen.split(":")
            truth = load(options.data, name)
            rows += ct_rows(truth, name, task, options.plane) if kind == "ct" else mr_rows(truth, name, task,
                                                                                        options.seeds)
        rows = joined(options.out, title, rows) if options.add else rows
        if rows:
            tables.append({"title": title, "rows": rows})
            show(tables[-1])
    content = {
        "kind": "benchmark", "title": "Classical reconstruction of medical volumes",
        "command": "python benchmarks/" + " ".join(["classical.py", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__}, "tables": tables,
        "notes": f"{platform.machine()}, CPU, float32. Noise-free measurements by the operator that reconstructs. "
                 "PSNR and SSIM with range 1 over slices whose maximum exceeds 0.05; CT clipped to [0, 1]. CPU seconds "
                 "on a shared machine. Quoted: a reference implementation with the same settings.",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
