"""`evaluate`: measures a run, a file or a folder of samples."""

from __future__ import annotations

from pathlib import Path

from scidiff.api.deliver import figure, reference_of
from scidiff.api.settings import Outcome, Progress, Settings, settings_of, started, typed
from scidiff.core.errors import UsageError


def evaluate(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Measures a run, a file or a folder of samples; `publish` collects results into benchmarks/RESULTS.md."""
    from scidiff.domains import load_domain
    from scidiff.domains.base import Samples, sample_id
    from scidiff.evaluation.evaluate import figures, measure, publish, record
    from scidiff.evaluation.origin import origin_of
    from scidiff.evaluation.report import write_report
    from scidiff.store.run import RunFolder

    config = settings_of("evaluate", settings)
    path = config.get("path")
    if path is None:
        page = publish()
        return Outcome(page.parent, summary={"written": str(page)})
    place = Path(path).expanduser()
    about, origin = config.get("domain") or {}, origin_of(place)
    domain = load_domain(about["name"], origin.get("options"))
    reference = reference_of(domain, config.get("reference") or origin.get("data"), quiet=not config.get("reference"),
                             root=(config.get("data") or {}).get("root"))
    domain = domain if reference is None else domain.judging_by(reference)
    if origin.get("trained"):
        verb = "rollout" if hasattr(domain, "rollout") else "generate"
        raise UsageError(f"{place} is a training run; it holds no samples yet.",
                         f"Draw some: scidiff {verb} --from {place}")
    records = domain.read(place).require(place)
    limit = config["sampling"].get("num")
    objects = records.objects[: limit or None]
    verdicts = domain.check(objects)
    ids = records.names[: len(objects)] if origin else [sample_id(i) for i in range(len(objects))]
    samples = Samples(objects, ids, int(origin.get("seed", 0)), verdicts, domain)
    samples.meta = {"source": str(place.name), "rejected": len(records.rejected), **origin.get("meta", {})}
    samples.metrics = measure(domain, objects, verdicts, reference, seed=int(config["seed"]), progress=progress,
                              rejected=records.rejected)
    if origin and not config.get("out"):
        folder = place
    else:
        run = RunFolder.create("evaluate", place.stem, int(config["seed"]), config, out=config.get("out"),
                               command=typed("evaluate", settings))
        folder = run.path
    started(progress, folder)
    figures(folder, samples.metrics, samples.meta, records.rejected)
    if config["sampling"].get("report", True):
        write_report(folder, domain, samples, reference, title=f"{len(samples)} objects of {place.name}", config=config,
                     rejected=records.rejected)
    if not (origin and not config.get("out")):
        run.finish(samples.meta)
    summary = {"objects": str(len(samples))}
    if records.rejected:
        first = records.rejected[0]
        summary["rejected"] = f"{len(records.rejected)} (the first, {first.where}: {first.reason})"
    summary.update({m.name: figure(m) for m in samples.metrics if m.value is not None})
    if config["sampling"].get("report", True):
        summary["report"] = str(folder / "report.html")
    if config.get("publish"):
        record(origin.get("model") or place.stem, samples.metrics, samples.meta, origin.get("command", ""),
               origin.get("checkpoint"))
        summary["published"] = str(publish())
    return Outcome(folder, samples, samples.metrics, summary)
