"""Figures over a set of objects, and their JSON form.

`metrics.json` of a run or evaluation (and `evaluation.json` of a shipped model) holds

    format      1
    about       what is known of the samples: model, steps (network calls a sample), seconds, source ...
    metrics     a list of {name, value, interval [low, high], floor, protocol, reference, count, better, unit, note};
                value null: not computed, and note says why; floor: the same figure of training data
    rejected    {count, first: [{where, text, reason}, ...]}: entries of the input that could not be read
    versions, processor, cores, date
"""

from __future__ import annotations

import datetime
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scidiff.core.errors import UsageError
from scidiff.domains.base import Domain, Metric, Rejection, Verdict
from scidiff.evaluation.publish import publish, record
from scidiff.store import atomic
from scidiff.store.run import environment

__all__ = ["evaluate", "figures", "load_figures", "measure", "publish", "record"]

FORMAT = 1
LISTED = 100
Progress = Callable[[str, int, int | None], None]


def measure(domain: Domain, objects: Sequence[Any], verdicts: Sequence[Verdict], reference: Any = None, *,
            seed: int = 0, progress: Progress | None = None, rejected: Sequence[Rejection] = ()) -> list[Metric]:
    """The domain's metrics, made presentable: no NaN, and the share of readable entries where some were not.

    reference: a reference object of the domain, the name of one, or None. seed: of the resampling, for domains whose
    `metrics` takes one. Raises UsageError where there is nothing to measure.
    """
    if not objects:
        raise UsageError("There is nothing to evaluate.")
    if len(objects) != len(verdicts):
        raise UsageError(f"{len(objects)} objects have {len(verdicts)} verdicts.")
    if progress is not None:
        progress("Measuring", 0, 1)
    against = domain.reference(reference) if isinstance(reference, str) else reference
    more = {"seed": seed} if "seed" in inspect.signature(domain.metrics).parameters else {}
    found = [_settled(m) for m in domain.metrics(objects, verdicts, against, **more)]
    if rejected:
        total = len(objects) + len(rejected)
        protocol = "entries of the input that could be read; the others are listed and take part in no other figure"
        found.insert(0, Metric("readable", len(objects) / total, None, None, protocol, "", total, "higher"))
    if progress is not None:
        progress("Measuring", 1, 1)
    return found


def evaluate(domain: Domain, objects: Sequence[Any], verdicts: Sequence[Verdict] | None = None, reference: Any = None,
             *, seed: int = 0) -> list[Metric]:
    """`measure` for use from Python: judges the objects itself where no verdicts are given."""
    judged = domain.check(objects) if verdicts is None else verdicts
    return measure(domain, objects, judged, reference, seed=seed)


def _settled(metric: Metric) -> Metric:
    """A metric whose value is no number becomes one that was not computed."""
    if metric.value is None or math.isfinite(metric.value):
        return metric
    note = "; ".join(x for x in (f"not computed: the value was {metric.value}", metric.note) if x)
    return replace(metric, value=None, interval=None, note=note)


def figures(folder: str | os.PathLike[str], metrics: Sequence[Metric], about: Mapping[str, Any] | None = None,
            rejected: Sequence[Rejection] = ()) -> Path:
    """Writes metrics.json into the folder; returns its path."""
    return atomic.write_json(Path(folder) / "metrics.json", summary(metrics, about, rejected))


def summary(metrics: Sequence[Metric], about: Mapping[str, Any] | None = None,
            rejected: Sequence[Rejection] = ()) -> dict[str, Any]:
    """The content of metrics.json."""
    machine = environment(0, "")
    listed = [{"where": r.where, "text": r.text[:200], "reason": r.reason} for r in rejected[:LISTED]]
    return {
        "format": FORMAT,
        "about": dict(about or {}),
        "metrics": [m.to_json() for m in metrics],
        "rejected": {"count": len(rejected), "first": listed},
        "versions": machine["versions"],
        "processor": machine["processor"],
        "cores": machine["cores"],
        "date": datetime.date.today().isoformat(),
    }


def load_figures(folder: str | os.PathLike[str]) -> tuple[list[Metric], dict[str, Any]]:
    """The metrics and the `about` of a metrics.json."""
    content = atomic.read_json(Path(folder) / "metrics.json")
    known = []
    for row in content["metrics"]:
        span = row.get("interval")
        known.append(Metric(**{**row, "interval": None if span is None else (span[0], span[1])}))
    return known, content["about"]
