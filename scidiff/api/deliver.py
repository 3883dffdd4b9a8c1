"""What every verb that samples ends with: files, metrics, report, and a few lines for people."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scidiff.api.settings import Outcome, Progress
from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from scidiff.domains.base import Metric, Samples
    from scidiff.domains.model import Model
    from scidiff.store.run import RunFolder


def deliver(run: RunFolder, model: Model | None, samples: Samples, config: Mapping[str, Any], title: str,
            progress: Progress | None) -> Outcome:
    """Files, metrics and report of finished samples, by the domain that they name; marks the run complete.

    The caller adds to the summary. What a domain has `explained` of its files stands in README.txt.
    """
    from scidiff.evaluation.evaluate import figures, measure
    from scidiff.evaluation.report import write_report

    sampling, domain = config["sampling"], samples.domain
    samples.save(run.path)
    reference = None
    if sampling.get("metrics", True):
        data = None if model is None else (model.config.get("data") or {}).get("name")
        reference = reference_of(domain, data, quiet=True, root=(config.get("data") or {}).get("root"))
        samples.metrics = measure(domain, samples.objects, samples.verdicts, reference, progress=progress)
        figures(run.path, samples.metrics, samples.meta)
    summary = {}
    if sampling.get("report", True):
        write_report(run.path, domain, samples, reference, title=title, config=config)
        summary["report"] = str(run / "report.html")
    run.finish(samples.meta)
    explained = getattr(domain, "explained", None)
    if explained:
        run.describe(explained)
    return Outcome(run.path, samples, samples.metrics, summary)


def reference_of(domain: Any, name: str | None, quiet: bool = False, root: str | None = None) -> Any:
    """Precomputed statistics of a data set; `quiet`: None where there are none. root: the folder of its files."""
    if name is None:
        return None
    more = {"root": root} if root and "root" in inspect.signature(domain.reference).parameters else {}
    try:
        return domain.reference(name, **more)
    except UsageError:
        if quiet:
            return None
        raise


def figure(metric: Metric) -> str:
    """A metric in one line: value, unit, interval, floor."""
    value = "not computed" if metric.value is None else f"{metric.value:.4g}"
    span = "" if metric.interval is None else f" [{metric.interval[0]:.4g}, {metric.interval[1]:.4g}]"
    floor = "" if metric.floor is None else f", floor {metric.floor:.2g}"
    return f"{value}{' ' + metric.unit if metric.unit else ''}{span}{floor}"
