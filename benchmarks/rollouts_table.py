"""The table of benchmarks/rollouts.py: every trained method on the same test trajectories, with its reference rows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
LEVELS = "Levels of the refiners (validation)"


def table(system: str, about: dict[str, Any], methods: list[str], folder: Path, count: int) -> None:
    """Evaluates what is trained, prints and writes benchmarks/results/<system>.json."""
    from rollouts import METHODS, TEST, VALID, forecast, last_figures, states, stepper

    from scidiff import api
    from scidiff.domains.pde.levels import by_level, select_levels
    from scidiff.domains.pde.skill import correlations, high_correlation_time, one_step_mse, paired_difference

    steps, rows, levels_table, kept = about["steps"], [], [], {}
    for method in methods:
        if not (folder / method / "finished").is_file():
            continue
        model = api.load(folder / method, "cpu")
        domain = model.domain
        chosen, variants = None, [("", None)]
        path = next(iter(model.spec.values())).path
        if path.levels is not None and len(path.levels) > 1:
            first, truth = states(system, model, VALID, 64, steps, folder)
            frames = domain.scaling.apply(torch.cat([first, truth], 1)).float()
            for r in by_level(model.spec, model.denoiser, domain.transition, frames[:, :1], frames[:, 1]):
                levels_table.append({"method": METHODS[method][0], "level": r.level, "sigma": r.sigma,
                                     "rms error of v": r.rms_v, "error e_k (units of the target)": r.error})
            chosen = select_levels(lambda levels, m=model: stepper(m, levels), len(path.levels), frames,
                                   domain.interval)
            top = (len(path.levels) - 1,)
            variants = [("all levels", None), ("first call alone", top)]
            if chosen.levels not in (top, tuple(range(len(path.levels)))):
                variants.append((f"levels {list(chosen.levels)}", chosen.levels))
        first, truth = states(system, model, TEST, count, steps, folder)
        figures = last_figures(folder / method)
        for label, levels in variants:
            out, spent, calls, blown = forecast(model, levels, first, steps)
            out = out.nan_to_num(0.0)
            corr = correlations(out.unsqueeze(1), truth)
            kept[method + label] = corr
            times = {level: high_correlation_time(corr, domain.interval, level) for level in (0.8, 0.9)}
            error = one_step_mse(out[:, 0], truth[:, 0], first[:, -1])
            row = {
                "method": METHODS[method][0] + (f", {label}" if label else ""), "calls a step": calls,
                "learning rate": model.config["trainer"]["lr"], "training steps": int(figures.get("step", 0)) + 1,
                "one-step MSE": error.mse.value, **_spans(times, "t"), "own t(.8)": times[0.8].own.value,
                "t(.8) in Lyapunov times": times[0.8].first.value * about["lyapunov"], "blown up": blown,
                "ms a trajectory-step": spent,
            }
            if chosen is not None:
                row["chosen on validation"] = "yes" if _is(levels, chosen.levels, path) else ""
            if method != "mse" and "mse" in kept:
                pair = paired_difference(corr, kept["mse"], domain.interval)
                row["own t(.8) - MSE's"] = pair.own.value
                row["interval"] = f"[{pair.own.low:.3g}, {pair.own.high:.3g}]"
                row["ratio"] = pair.own_ratio.value
            rows.append(row)
            print(json.dumps(row), flush=True)
    target = ROOT / "benchmarks" / "results" / f"rollouts_{system}.json"
    if target.is_file():  # rows of methods that were not asked for stay as they were measured
        before = {t["title"]: t["rows"] for t in json.loads(target.read_text())["tables"]}
        rows = _merged(rows, before.get("Models", []), METHODS)
        levels_table = _merged(levels_table, before.get(LEVELS, []), METHODS)
    content = {
        "kind": "benchmark",
        "title": f"Rollouts of Kuramoto-Sivashinsky, {system}: {about['minutes']:g} minutes of one core a model",
        "command": f"python benchmarks/rollouts.py table {system}",
        "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__},
        "notes": [
            f"{count} test trajectories of {steps} steps of {domain.interval:g} time units, one member each. t(.8): "
            "first crossing of the mean correlation, time units, with the bootstrap interval over trajectories; own "
            "t(.8): mean over trajectories of their own first crossing; differences are paired on trajectories.",
            f"All methods: the same network ({sum(p.numel() for p in model.denoiser.parameters())} parameters), data, "
            "batch and processor time; the learning rate is the best of three by one-step validation error after "
            "short runs of equal length at L = 22. One training seed each.",
        ],
        "tables": [{"title": "Models", "rows": rows}, {"title": LEVELS, "rows": levels_table},
                   *references(model, first, truth, about)],
    }
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")


def _merged(new: list[dict[str, Any]], old: list[dict[str, Any]], methods: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all methods in their order; new ones replace the old ones of their method."""
    def owner(row: dict[str, Any]) -> int:
        names = [label for label, _ in methods.values()]
        return next(i for i, name in enumerate(names) if str(row["method"]).startswith(name))

    fresh = {owner(row) for row in new}
    return sorted([*new, *(row for row in old if owner(row) not in fresh)], key=owner)


def references(model: Any, first: Any, truth: Any, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The solver at the model's step and at equal cost, persistence, and the calibration curve of white error."""
    from scidiff.domains.pde.calibration import calibration_curve, solver_row
    from scidiff.domains.pde.metrics import persistence
    from scidiff.domains.pde.reference import solver
    from scidiff.domains.pde.skill import correlations, high_correlation_time

    domain, few = model.domain, slice(0, 128)
    start, true = first[few, -1].double(), truth[few]
    rows = []
    for label, seconds in (("largest stable step", None), ("1 ms a trajectory-step", 1e-3)):
        row = solver_row(domain.law, true, start, domain.interval, domain.extent, seconds)
        rows.append({"reference": f"spectral solver, {label}", "solver step": row.dt,
                     "one-step MSE": row.error.mse.value, **_spans(row.times, "t"),
                     "ms a trajectory-step": 1e3 * row.seconds})
    corr = correlations(persistence(start, true.shape[1]), true)
    times = {level: high_correlation_time(corr, domain.interval, level) for level in (0.8, 0.9)}
    rows.append({"reference": "persistence", **_spans(times, "t")})
    accurate, every = solver(domain)
    curve = [{"rms of the error": r.sigma, "one-step MSE": r.error.mse.value, **_spans(r.times, "t")}
             for r in calibration_curve(accurate, every, start, true.shape[1], truth=true)]
    return [{"title": "References (128 trajectories)", "rows": rows},
            {"title": "Calibration: white error of known size after every step (128 trajectories)", "rows": curve}]


def _spans(times: dict[float, Any], name: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for level, t in times.items():
        short = f"{level:g}".lstrip("0")
        out[f"{name}({short})"] = t.first.value
        span = f"[{t.first.low:.4g}, {t.first.high:.4g}]"
        out[f"{name}({short}) interval"] = span + (" horizon" if t.censored else "")
    return out


def _is(levels: Any, chosen: tuple[int, ...], path: Any) -> bool:
    return (tuple(range(len(path.levels))) if levels is None else tuple(levels)) == chosen
