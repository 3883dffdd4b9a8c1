"""One-step models of Kuramoto-Sivashinsky side by side: same network, data and training time, one thread each.

    python benchmarks/rollouts.py tune  ks22                 short runs over learning rates, the best by validation loss
    python benchmarks/rollouts.py train ks22 [--only mse]    trains every method with its learning rate
    python benchmarks/rollouts.py table ks22                 512 test trajectories, writes benchmarks/results/ks22.json

Training time is processor time (trainer.clock=cpu), so two jobs on two cores hardly disturb each other; what is
finished is skipped, so the commands can be repeated after an interruption. Learning rates and levels are chosen on
validation trajectories; the test trajectories are used by `table` alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from scidiff import api  # noqa: E402

METHODS = {
    "mse": ("one-step MSE", ["process=regression"]),
    "unrolled": ("unrolled, 2 steps", ["process=regression", "objective.unroll=2", "objective.detach=false"]),
    "refiner1": ("refiner, K = 1", ["process=refiner", "process.components.default.stds=[6.0e-3,1.0]"]),
    "refiner3": ("refiner, K = 3", ["process=refiner"]),
    "flow": ("flow matching, 4 calls", ["process=rectified_flow", "solver=euler", "solver.steps=4"]),
    "acdm": ("ACDM, 20 calls", ["process=acdm", "domain.options.joint=true", "domain.options.target=direct",
                                "solver=ddpm", "solver.steps=20"]),
}
SYSTEMS = {"ks22": {"minutes": 10.0, "steps": 250, "lyapunov": 0.048, "tune": 1.0},
           "ks64": {"minutes": 20.0, "steps": 160, "lyapunov": 0.0865, "tune": 1.0}}
RATES = (1e-3, 2e-3, 4e-3)
VALID, TEST = 20_001, 30_001
"""Seeds of the initial states."""


def words(system: str, method: str, minutes: float, rate: float) -> list[str]:
    """The overrides of one training run."""
    return [f"experiment={system}", *METHODS[method][1], f"trainer.max_minutes={minutes:g}", f"trainer.lr={rate:g}",
            "trainer.clock=cpu"]


def train(system: str, method: str, minutes: float, rate: float, out: Path) -> dict[str, float]:
    """Trains into `out` unless it is there; returns the last hold-out figures."""
    if not (out / "finished").is_file():
        begun = time.time()
        api.train([*words(system, method, minutes, rate), f"out={out}"])
        print(f"{out.name}: {time.time() - begun:.0f} s", flush=True)
    return last_figures(out)


def last_figures(run: Path) -> dict[str, float]:
    """The last value of every column of the training log."""
    found: dict[str, float] = {}
    for file in sorted(run.rglob("metrics.csv")):
        with open(file, newline="") as handle:
            for row in csv.DictReader(handle):
                found.update({k: float(v) for k, v in row.items() if v})
    return found


def stepper(model: Any, levels: Any = None) -> Any:
    """The model as a function of time steps."""
    from scidiff.core.guidance import Clamp
    from scidiff.domains.pde.rollout import Stepper

    rules = (Clamp(model.spec),) if model.domain.joint else ()
    path = next(iter(model.spec.values())).path
    every = list(levels) if levels is not None else list(range(len(path.levels or ())))
    # What a training settled on (levels, gain) is left out: the table says which levels it means.
    drawing = model.drawing({"levels": every, "method": {"gain": 1.0}} if every else None, rules=rules)
    limit = torch.tensor([3 * a / b for a, b in zip(model.domain.largest, model.domain.std, strict=True)])
    return Stepper(drawing.sampler, model.domain.transition, len(model.domain.fields), model.domain.joint, limit)


def states(system: str, model: Any, seed: int, count: int, steps: int, folder: Path) -> tuple[Any, Any]:
    """First states and truth, kept in a file: solving them takes a minute."""
    from scidiff.domains.pde.reference import developed, future

    place = folder / f"truth_{seed}_{count}_{steps}.pt"
    if not place.is_file():
        first = developed(model.domain, torch.arange(count), seed)
        torch.save((first, future(model.domain, first[:, -1], steps)), place)
    return torch.load(place, weights_only=True)


def forecast(model: Any, levels: Any, first: Any, steps: int) -> tuple[Any, float, int, int]:
    """Physical frames [T, S, C, N] of one member, milliseconds a trajectory-step, network calls a step, blow-ups."""
    from scidiff.domains.pde.rollout import rolled_out

    step = stepper(model, levels)
    begun = time.process_time()
    out, last = rolled_out(step, model.domain.scaling.apply(first).float(), steps)
    spent = 1e3 * (time.process_time() - begun) / (len(first) * steps)
    return (model.domain.scaling.undo(out[:, 0]).double(), spent, step.nfe, int((last[:, 0] < steps).sum()))


def tune(system: str, only: list[str], minutes: float, folder: Path) -> dict[str, float]:
    """Every method gets the same three learning rates for the same time."""
    chosen = {}
    for method in only:
        scores = {}
        for rate in RATES:
            train(system, method, minutes, rate, folder / "tune" / f"{method}_{rate:g}")
            model = api.load(folder / "tune" / f"{method}_{rate:g}", "cpu")
            first, truth = states(system, model, VALID, 64, 60, folder)
            scores[rate] = one_step(model, None, first, truth)
        chosen[method] = min(scores, key=lambda r: scores[r])
        print(f"{method:10s} " + "  ".join(f"{r:g}: {v:.2e}" for r, v in scores.items()), flush=True)
        (folder / f"rate_{method}.json").write_text(json.dumps({"chosen": chosen[method], "scores": scores}))
    return chosen


def one_step(model: Any, levels: Any, first: Any, truth: Any) -> float:
    """Mean squared error of one step, physical units, from eight states of every trajectory."""
    from scidiff.domains.pde.levels import one_step_error

    scaling = model.domain.scaling
    frames = scaling.apply(torch.cat([first, truth], 1)).float()
    return one_step_error(stepper(model, levels), frames, seed=1) * scaling.std[0] ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("tune", "train", "table"))
    parser.add_argument("system", choices=tuple(SYSTEMS))
    parser.add_argument("--only", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--rate", type=float, help="one learning rate for all, instead of the tuned ones")
    parser.add_argument("--trajectories", type=int, default=512)
    parser.add_argument("--runs", type=Path, default=Path("runs/rollouts"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = SYSTEMS[options.system]
    folder = options.runs / options.system
    folder.mkdir(parents=True, exist_ok=True)
    if options.verb == "tune":
        tune(options.system, options.only, options.minutes or about["tune"], folder)
    elif options.verb == "train":
        for method in options.only:
            rate = options.rate or json.loads((folder / f"rate_{method}.json").read_text())["chosen"]
            train(options.system, method, options.minutes or about["minutes"], rate, folder / method)
    else:
        from rollouts_table import table

        table(options.system, about, options.only, folder, options.trajectories)


if __name__ == "__main__":
    main()
