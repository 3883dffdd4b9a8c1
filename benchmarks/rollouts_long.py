"""A shipped one-step model over ten thousand steps, and what a step costs beside the spectral solver.

    python benchmarks/rollouts_long.py [--model ks] [--steps 10000] [--trajectories 16] [--rows shipped first plain]

Stability: trajectories from test states; a trajectory holds while it is finite and within three times the largest
training value, and its energy is right while the mean of u^2 over the last 2,000 steps lies within 10 % of the truth's
mean on the attractor. Rows: the model as shipped, without band and kept mean, and its first call alone.
Cost: processor time of one thread, best of three, for one trajectory and for 128 in a batch, beside the solver with
the equation's own accurate step and with the largest step that stays finite, both in float32.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from scidiff import api  # noqa: E402
from scidiff.domains.pde.reference import developed, future  # noqa: E402
from scidiff.domains.pde.rollout import Stepper, march, row_ids  # noqa: E402

TEST, LATE = 30_001, 2_000


def stepper(model: Any, levels: list[int] | None = None, band: bool = True) -> Stepper:
    """The model as it is shipped, or with other levels, or without its band and kept mean."""
    domain = model.domain
    limit = torch.tensor([3 * a / b for a, b in zip(domain.largest, domain.std, strict=True)])
    drawing = model.drawing({"levels": levels} if levels is not None else None)
    return Stepper(drawing.sampler, domain.transition, len(domain.fields), limit=limit,
                   band=domain.bandlimit if band else None, conserve=domain.conserve and band)


def attractor_energy(domain: Any) -> float:
    """Mean of u^2 of the truth: 64 trajectories of 200 steps."""
    first = developed(domain, torch.arange(64), TEST)
    return float(future(domain, first[:, -1], 200).pow(2).mean())


def held(model: Any, step: Stepper, first: torch.Tensor, steps: int, energy: float) -> dict[str, Any]:
    """Shares of trajectories that stay finite and of right energy to the end, and when the first one failed."""
    domain, count = model.domain, len(first)
    late, seen, failed, alive = torch.zeros(count, dtype=torch.float64), 0, 0, torch.ones(count, dtype=torch.bool)
    right = torch.ones(count, dtype=torch.bool)
    wrong_at = 0
    for number, frame, alive in march(step, domain.scaling.apply(first).float(), row_ids(torch.arange(count), 1), 0,
                                      steps):
        late += domain.scaling.undo(frame.unsqueeze(1)).double().pow(2).flatten(1).mean(1).nan_to_num(torch.inf)
        seen += 1
        if not failed and not bool(alive.all()):
            failed = number
        if seen == min(LATE, steps):
            right = alive & ((late / seen / energy - 1).abs() <= 0.1)
            ratio = late / seen / energy
            if not wrong_at and not bool(right.all()):
                wrong_at = number
            late, seen = torch.zeros_like(late), 0
    return {"finite to the end": f"{int(alive.sum())} of {count}",
            "energy within 10 % to the end": f"{int(right.sum())} of {count}",
            "energy over the truth's, last steps": f"{float(ratio.min()):.3g} to {float(ratio.max()):.3g}",
            "first failure at step": failed or "none",
            "energy first wrong in the steps before": wrong_at or "none"}


def cost(domain: Any, step: Stepper, first: torch.Tensor) -> list[dict[str, Any]]:
    """Milliseconds of a step of 0.8 time units for one trajectory and for 128."""
    from scidiff.domains.pde.equations import SpectralSolver

    frames = domain.scaling.apply(first).float()
    rows = [{"what": "model", "network calls a step": 0}]
    for count in (1, 128):
        part, ids = frames[:count], torch.arange(count)
        rows[0][f"ms a step, {count}"] = 1e3 * fastest(lambda p=part, i=ids: step(p, i, 0, 1), 3 if count > 1 else 20)
    rows[0]["network calls a step"] = step.nfe
    accurate = max(round(domain.interval / domain.law.typical.dt), 1)
    for label, parts in (("spectral solver, accurate step", accurate), ("spectral solver, largest stable step", 2)):
        solver = SpectralSolver(domain.law, domain.shape, domain.extent, domain.interval / parts)
        row: dict[str, Any] = {"what": f"{label} ({domain.interval / parts:g})", "network calls a step": 0}
        for count in (1, 128):
            state = first[:count, -1].float()
            row[f"ms a step, {count}"] = 1e3 * fastest(lambda s=state, p=parts, r=solver: r.rollout(s, 8 * p, 8 * p),
                                                       5) / 8
        rows.append(row)
    return rows


def fastest(call: Any, times: int) -> float:
    """Processor seconds of the fastest of some calls, after one that warms up."""
    call()
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ks")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--trajectories", type=int, default=16)
    every = ["shipped", "first", "plain"]
    parser.add_argument("--rows", nargs="+", choices=every, default=every)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = api.load(options.model, "cpu")
    domain = model.domain
    first = developed(domain, torch.arange(max(options.trajectories, 128)), TEST)
    energy = attractor_energy(domain)
    top = len(next(iter(model.spec.values())).path.levels) - 1
    rows = []
    ways = {"shipped": ("as shipped", stepper(model)), "first": ("first call alone", stepper(model, [top])),
            "plain": ("as shipped, without band and kept mean", stepper(model, band=False))}
    for label, step in (ways[key] for key in options.rows):
        rows.append({"rollout": label, **held(model, step, first[:options.trajectories], options.steps, energy)})
        print(json.dumps(rows[-1]), flush=True)
    speed = cost(domain, stepper(model), first)
    for row in speed:
        print(json.dumps(row), flush=True)
    content = {
        "kind": "benchmark",
        "title": f"The shipped model {model.name}: {options.steps:,} steps, and the cost of a step",
        "command": f"python benchmarks/rollouts_long.py --rows {' '.join(options.rows)}",
        "date": datetime.date.today().isoformat(), "versions": {"torch": torch.__version__},
        "notes": [f"{options.trajectories} trajectories from test states (seed {TEST}), one member each. Truth: mean "
                  f"u^2 = {energy:.4g} on the attractor. Energy is judged over the last {LATE:,} steps.",
                  "Cost: one thread, processor time, best of several; the model is no faster than the solver of its "
                  "own equation, and no speed-up is claimed."],
        "tables": [{"title": "Stability", "rows": rows},
                   {"title": f"Cost of one step of {domain.interval:g} time units", "rows": speed}],
    }
    target = ROOT / "benchmarks" / "results" / f"rollouts_long_{model.name}.json"
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
