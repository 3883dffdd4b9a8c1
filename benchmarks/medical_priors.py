"""What a prior of slices is worth before any reconstruction: denoising of subjects it has not seen, and its own slices.

    python benchmarks/medical_priors.py MODEL [--data FOLDER] [--part valid] [--samples 16] [--steps 32] [--out PATH]

Denoising: the slices that published figures are about, plus normal noise of each level; PSNR in dB with range 1, the
mean over slices. Rivals: Gaussian smoothing and isotropic total variation, the best of a few widths or weights on these
very slices at each level; Wiener's filter with the mean power spectrum of the training slices. A prior that does not
beat them has learned nothing that smoothness does not say.

Samples: their figures beside the training slices, and for each the root mean square difference from the nearest
training slice (over whole-pixel shifts of up to 4), beside the same for the unseen slices: samples that lie much nearer
than those are copies. `patchwork` denoises the same slices patch by patch.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from solvers import show  # noqa: E402
from torch import Tensor  # noqa: E402

from scidiff.core.run import Run  # noqa: E402
from scidiff.domains.base import sample_id  # noqa: E402
from scidiff.domains.medical.classical import AdmmTV  # noqa: E402
from scidiff.domains.medical.metrics import psnr  # noqa: E402
from scidiff.domains.medical.operators.simple import Diagonal  # noqa: E402
from scidiff.domains.medical.patchwork import Patchwork  # noqa: E402
from scidiff.domains.model import Model  # noqa: E402
from scidiff.store import cards  # noqa: E402
from scidiff.store.fetch import provide  # noqa: E402

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
WIDTHS = (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0)  # pixels
WEIGHTS = (0.5, 1.0, 2.0)  # of total variation, times the level of the noise
SHIFT = 4


def slices(model: Model, folder: Path, part: str, central: bool) -> list[Any]:
    """Native slices of a part of the data that the model was trained on."""
    card = cards.find(str(model.config["data"]["name"]))
    found = provide(card, folder)
    options = {**found.options, **({"central": True} if central else {})}
    return model.domain.dataset(found.files, found.reader, options, part).objects


def encoded(model: Model, objects: list[Any]) -> Tensor:
    return model.domain.encode(objects)[0]["x"]


def smoothed(x: Tensor, width: float) -> Tensor:
    reach = int(3 * width + 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width) ** 2)
    kernel = kernel / kernel.sum()
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1), padding=(0, reach)), kernel.view(1, 1, -1, 1),
                    padding=(reach, 0))


def wiener(x: Tensor, level: float, power: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(x, norm="ortho") * (power / (power + level**2)), norm="ortho").real


def total_variation(x: Tensor, level: float, weight: float) -> Tensor:
    method = AdmmTV(weight * level, axes="yx", isotropic=True, iterations=40, unit_norm=False)
    return method(x, Diagonal(torch.ones(x.shape[1:])))


def conditioned(model: Model, objects: list[Any]) -> Any:
    """The context of slices, told the contrast of each where the model knows contrasts."""
    ctx = model.template(torch.arange(len(objects)), 0)
    for name, about in model.conditions.items():
        value = (model.domain.properties(objects, [name])[name].float() - about["mean"]) / about["std"]
        ctx.cond[name] = (value, torch.ones(len(objects), dtype=torch.bool))
    return ctx


def denoising(model: Model, objects: list[Any], training: Tensor) -> list[dict[str, Any]]:
    """A row for every level of the noise."""
    x, ctx = encoded(model, objects), conditioned(model, objects)
    power = torch.fft.fft2(training, norm="ortho").abs().square().mean(0)
    draw, rows = torch.Generator().manual_seed(0), []
    patches = Patchwork(model.denoiser, model.spec, int(model.config["objective"].get("patch") or x.shape[-1]))
    for level in LEVELS:
        z = x + level * torch.randn(x.shape, generator=draw)
        t = float(model.spec["x"].path.t_of_lambda(-math.log(level)))
        begin = time.process_time()
        with torch.inference_mode():
            clean = model.denoiser({"x": z}, t, ctx)["x"].data
            spent = (time.process_time() - begin) / len(x)
            tiled = patches({"x": z}, t, ctx, Run(0))["x"].data
        rows.append({
            "sigma": level, "noisy": mean(z, x), "Gaussian": max(mean(smoothed(z, w), x) for w in WIDTHS),
            "Wiener": mean(wiener(z, level, power), x),
            "TV": max(mean(total_variation(z, level, w), x) for w in WEIGHTS), "prior": mean(clean, x),
            "patchwork": mean(tiled, x), "ms a slice": 1e3 * spent})
        print(rows[-1], flush=True)
    return rows


def mean(x: Tensor, truth: Tensor) -> float:
    return float(psnr(x, truth).mean())


def nearest(x: Tensor, training: Tensor) -> Tensor:
    """[B]: the smallest root mean square difference from a training slice, over shifts and the mirror image."""
    best = torch.full((len(x),), math.inf)
    energy = training.square().flatten(1).sum(1)
    for moved in (x, x.flip(-1)):
        for dy in range(-SHIFT, SHIFT + 1, 2):
            for dx in range(-SHIFT, SHIFT + 1, 2):
                flat = moved.roll((dy, dx), (-2, -1)).flatten(1)
                apart = flat.square().sum(1, keepdim=True) + energy - 2.0 * flat @ training.flatten(1).T
                best = torch.minimum(best, apart.amin(1).clamp(min=0.0))
    return (best / training[0].numel()).sqrt()


def samples(model: Model, num: int, steps: int, unseen: Tensor, training: Tensor,
            picture: Path) -> list[dict[str, Any]]:
    """Rows of figures of generated slices, half of them of each contrast; a picture beside the results."""
    asked = [{name: v for name in model.conditions} for v in (0.0, 1.0)] if model.conditions else [{}]
    begin, drawn = time.process_time(), []
    for k, condition in enumerate(asked):
        share = num // len(asked)
        drawn += list(model.sample(share, seed=0, steps=steps, condition=condition, start=k * share))
    spent = (time.process_time() - begin) / len(drawn)
    verdicts = model.domain.check(drawn)
    pages = model.domain.view(drawn, verdicts, [sample_id(i) for i in range(len(drawn))])
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(next(iter(pages.values())))
    rows: list[dict[str, Any]] = [{"figure": m.name, "value": m.value, "floor": m.floor, "count": m.count,
                                   "unit": m.unit, "note": m.note} for m in model.domain.metrics(drawn, verdicts)]
    mine, theirs = nearest(encoded(model, drawn), training), nearest(unseen, training)
    for name, values in (("nearest training slice, samples", mine), ("nearest training slice, unseen slices", theirs)):
        rows.append({"figure": name, "value": float(values.median()), "least": float(values.min()),
                     "count": len(values), "unit": "of the range", "note": "root mean square, median"})
    return [*rows, {"figure": "CPU seconds a sample", "value": spent, "count": len(drawn)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "medical")
    parser.add_argument("--part", default="valid", help="of the data set: valid until every setting is fixed")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.data.is_dir():
        parser.error(f"no staged volumes in {options.data}: name their folder with --data")
    model = Model.load(options.model)
    out = options.out or ROOT / "benchmarks" / "results" / f"medical_prior_{model.name}.json"
    training = encoded(model, slices(model, options.data, "train", False))
    unseen = slices(model, options.data, options.part, True)
    tables = [{"title": f"Denoising {options.part} slices, PSNR in dB", "rows": denoising(model, unseen, training)},
              {"title": f"{options.samples} generated slices, {options.steps} steps",
               "rows": samples(model, options.samples, options.steps, encoded(model, unseen), training,
                               out.with_suffix(".png"))}]
    for table in tables:
        show(table)
    content = {
        "kind": "benchmark", "title": f"The prior {model.name}: denoising and samples",
        "command": "python benchmarks/" + " ".join(["medical_priors.py", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__}, "tables": tables,
        "notes": f"{platform.machine()}, CPU, float32, CPU time on a shared machine. Rivals choose their width or "
                 "weight on the slices themselves; the prior has not seen their subject.",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{out}")


if __name__ == "__main__":
    main()
