"""DiffGraph on Retail Rocket beside the published figures, and beside the same model without diffusion.

    python benchmarks/recommendation.py --root FOLDER [--seeds 0 1 2] [--bridges diffusion sum none] [--publish-only]

FOLDER holds retail_rocket.npz. For each model and seed: (1) one bought pair of each user who has two or more is held
out of every relation, and validation Recall@20 on these pairs chooses the epoch; (2) the model is trained anew on all
training pairs for that many epochs; (3) it is tested once. The test pairs choose nothing. Settings are those of
conf/recommendation.yaml. Finished runs are kept in the folder `--work` and are not repeated; a run takes three to six
minutes of one core.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from solvers import show  # noqa: E402
from torch import Tensor  # noqa: E402

from scidiff.core.statistics import Estimate, bootstrap  # noqa: E402
from scidiff.domains.graph import interactions  # noqa: E402
from scidiff.domains.graph.interactions import Interactions, ranking  # noqa: E402
from scidiff.domains.graph.recommendation import DiffGraph, fit  # noqa: E402
from scidiff.store import atomic, targets  # noqa: E402

NAMES = {"diffusion": "DiffGraph", "sum": "without diffusion (sum of the views)", "none": "bought pairs alone"}
PUBLISHED = {"Recall@20": 0.0620, "NDCG@20": 0.0367}
FIGURES = tuple(PUBLISHED)
CALLS = (1, 2, 20, None)


def one_run(config: dict[str, Any], data: Interactions, bridge: str, seed: int, shorter: bool) -> dict[str, Any]:
    """Chooses the epoch on validation pairs, trains anew on everything, tests once; `shorter`: and shorter chains."""
    began = time.process_time()
    objective, training = targets.build(config["objective"]), targets.build(config["training"])
    node = {**config["model"], "bridge": bridge}
    part, valid = data.hold_out(node["target"], config["data"]["split_seed"])

    def told(line: dict[str, float]) -> None:
        print(f"{bridge} {seed} " + " ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)

    chosen = fit(lambda: targets.build(node, interactions=part), part, valid, objective, training, seed, told)
    best = next(line for line in chosen.history if line["epoch"] == chosen.epochs)
    final = fit(lambda: targets.build(node, interactions=data), data, None, objective,
                replace(training, epochs=chosen.epochs), seed, told)
    known = data.relation(node["target"])
    return {"epochs": chosen.epochs, "valid": {n: best[n] for n in FIGURES},
            "held out": tested(chosen.model, known, data.test), "test": tested(final.model, known, data.test),
            "chain": chain(final.model, known, data.test) if shorter and bridge == "diffusion" else [],
            "seconds": time.process_time() - began}


def tested(model: DiffGraph, known: Tensor, test: Tensor) -> dict[str, list[float]]:
    """Each user's figures."""
    return {name: value.tolist() for name, value in ranking(*model.embeddings(), known, test).items()}


def chain(model: DiffGraph, known: Tensor, test: Tensor) -> list[dict[str, Any]]:
    """The chain of posterior means with fewer network calls: figures, and how far the embeddings are from all steps."""
    full = torch.cat(model.embeddings())
    rows = []
    for calls in CALLS:
        users, items = model.embeddings(calls)
        away = float((torch.cat([users, items]) - full).norm() / full.norm())
        found = ranking(users, items, known, test)
        rows.append({"network calls": calls or model.path.steps, **{n: float(v.mean()) for n, v in found.items()},
                     "relative distance to all steps": away})
    return rows


def over_users(runs: Sequence[dict[str, Any]], part: str, name: str) -> Tensor:
    """Each user's figure, mean over the seeds."""
    return torch.tensor([run[part][name] for run in runs], dtype=torch.float64).mean(0)


def span(found: Estimate) -> str:
    return f"[{found.low:.4f}, {found.high:.4f}]"


def row(title: str, runs: Sequence[dict[str, Any]], part: str) -> dict[str, Any]:
    """One model: mean over seeds and users, 95 % interval over users, least and largest seed."""
    out: dict[str, Any] = {"model": title, "seeds": len(runs)}
    for name in FIGURES:
        users = over_users(runs, part, name)
        each = [float(torch.tensor(run[part][name]).mean()) for run in runs]
        out |= {name: float(users.mean()), f"{name}, 95 % over users": span(bootstrap(torch.mean, users)),
                f"{name}, seeds": f"{min(each):.4f} to {max(each):.4f}"}
    return out


def difference(runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], title: str) -> dict[str, Any]:
    """Paired over users: the mean of both over their seeds, subtracted."""
    out: dict[str, Any] = {"DiffGraph minus": title}
    for name in FIGURES:
        gap = over_users(runs, "test", name) - over_users(others, "test", name)
        out |= {name: float(gap.mean()), f"{name}, 95 % over users": span(bootstrap(torch.mean, gap))}
    return out


def floors(data: Interactions, target: str, relations: Sequence[str]) -> list[dict[str, Any]]:
    """Items by popularity, the same list for every user."""
    rows = []
    for title, names in (("most bought", [target]), ("most seen in all relations", relations)):
        scores = interactions.popularity(data, names)
        found = ranking(torch.ones(data.users, 1), scores, data.relation(target), data.test)
        run = {"test": {name: value.tolist() for name, value in found.items()}}
        rows.append(row(title, [run], "test"))
    return rows


def tables(runs: dict[str, list[dict[str, Any]]], data: Interactions, config: dict[str, Any]) -> list[dict[str, Any]]:
    target, names = config["model"]["target"], [config["model"]["target"], *config["model"]["auxiliary"]]
    known = {bridge: found for bridge, found in runs.items() if found}
    out = [{"title": f"Test: {len(data.test)} users, one item each, among {data.items} items less those bought before",
            "rows": [{"model": "DiffGraph, published", **PUBLISHED},
                     *[row(NAMES[b], found, "test") for b, found in known.items()],
                     *floors(data, target, names)]}]
    if "diffusion" in known and len(known) > 1:
        out.append({"title": "What the diffusion brings: difference of each user's figures on the test",
                    "rows": [difference(known["diffusion"], found, NAMES[b]) for b, found in known.items()
                             if b != "diffusion"]})
    out.append({"title": "Validation, and the test of the model that never saw the validation pairs",
                "rows": [{"model": NAMES[b], "epochs": ", ".join(str(r["epochs"]) for r in found),
                          **{f"validation {n}": sum(r["valid"][n] for r in found) / len(found) for n in FIGURES},
                          **{f"test {n}": float(over_users(found, "held out", n).mean()) for n in FIGURES},
                          "CPU minutes a seed": sum(r["seconds"] for r in found) / len(found) / 60}
                         for b, found in known.items()]})
    if known.get("diffusion"):
        out.append({"title": "The chain of posterior means with fewer network calls, first seed",
                    "rows": known["diffusion"][0]["chain"]})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder that holds the data (default: SCIDIFF_DATA or the cache)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bridges", nargs="+", choices=tuple(NAMES), default=list(NAMES))
    parser.add_argument("--publish-only", action="store_true", help="write the tables of finished runs; train nothing")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "recommendation")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "recommendation.json")
    options = parser.parse_args()
    config = atomic.read_yaml(ROOT / "conf" / "recommendation.yaml", "config")
    data = interactions.load(config["data"]["name"], options.root)
    runs: dict[str, list[dict[str, Any]]] = {bridge: [] for bridge in options.bridges}
    for seed in options.seeds:
        for bridge in options.bridges:
            file = options.work / f"{bridge}_{seed}.json"
            if not file.is_file() and not options.publish_only:
                atomic.ensure_folder(options.work)
                atomic.write_json(file, one_run(config, data, bridge, seed, seed == options.seeds[0]))
            if file.is_file():
                runs[bridge].append(atomic.read_json(file))
    content = {
        "kind": "benchmark", "title": "DiffGraph on Retail Rocket",
        "command": "python benchmarks/recommendation.py --root FOLDER",
        "versions": {"torch": importlib.metadata.version("torch")},
        "notes": ["Settings of conf/recommendation.yaml. The epoch is chosen on validation pairs, the model then "
                  "trained on all training pairs for as many epochs; the published figures choose the best epoch on "
                  "the test. Intervals: bootstrap over users of the mean over seeds.",
                  "No test pair stands in any relation, and 58 % of the test items were never bought by anyone else."],
        "tables": tables(runs, data, config),
    }
    for table in content["tables"]:
        show(table)
    atomic.write_json(options.out, content)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
