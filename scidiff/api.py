"""The verbs as functions: what the command line does, callable from Python.

Each verb takes the settings that `scidiff.config.compose(verb, overrides)` returns (or the overrides themselves, as a
list of `key=value` strings), does the work in a run folder and returns an `Outcome` with the native objects. For
samples without any file use `load(name).sample(num, seed=...)`.

`progress(label, done, total)` is called along the way; where it has a `started(folder)`, that is told the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import ScidiffError, UsageError

if TYPE_CHECKING:
    from scidiff.domains.base import Metric, Samples
    from scidiff.domains.model import Model
    from scidiff.store.run import RunFolder

Settings = Mapping[str, Any] | Sequence[str]
Progress = Callable[[str, int, int | None], None]


@dataclass
class Outcome:
    """What a verb leaves behind: the folder, samples and metrics where there are any, a few lines for people."""

    folder: Path | None
    samples: Samples | None = None
    metrics: list[Metric] = field(default_factory=list)
    summary: dict[str, str] = field(default_factory=dict)


def load(name_or_path: str | Path, device: str | None = "auto") -> Model:
    """A trained model: a shipped name or alias, a run folder, a checkpoint folder, or org/name on the hub."""
    from scidiff.domains.model import Model

    return Model.load(name_or_path, device)


def _settings(verb: str, settings: Settings) -> dict[str, Any]:
    if isinstance(settings, Mapping):
        return dict(settings)
    from scidiff.config import compose

    return compose(verb, list(settings))


def _typed(verb: str, settings: Settings) -> list[str] | None:
    """The command that stands for a call from Python; None: the process was started by one."""
    return None if isinstance(settings, Mapping) else ["scidiff", verb, *settings]


def _started(progress: Progress | None, folder: Path) -> None:
    told = getattr(progress, "started", None)
    if told is not None:
        told(folder)


def _device(settings: Mapping[str, Any]) -> tuple[str, int]:
    about = settings.get("device") or {}
    about = {"device": about} if isinstance(about, str) else about
    if about.get("threads"):
        import torch

        torch.set_num_threads(int(about["threads"]))
    return str(about.get("device", "auto")), int(about.get("precision", settings.get("precision", 32)))


def generate(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Draws samples from a trained model into a run folder: files of the domain, metrics, report.

    Raises UsageError for impossible requests; what is finished when it is interrupted stays, and `resume` continues it
    with the same samples as an uninterrupted run.
    """
    from scidiff.domains.model import join
    from scidiff.store.run import RunFolder, open_existing, part_name
    from scidiff.store.trajectory import Trajectory

    config = _settings("generate", settings)
    sampling = config["sampling"]
    source = config.get("from") or (config.get("domain") or {}).get("model")
    if not source:
        raise UsageError("Say which model to draw from.", "Name one with --from; 'scidiff list models' shows them.")
    model = load(source, "cpu")
    wanted = (config.get("domain") or {}).get("name")
    if wanted and wanted != model.domain.name:
        raise UsageError(f"The model {source!r} makes objects of the domain {model.domain.name!r}, not {wanted!r}.")
    only, resume = list(sampling.get("only") or ()), config.get("resume")
    device, precision = _device(config)
    model.agree(config.get("guidance"), config.get("condition"))
    drawing = model.drawing(config.get("solver"), sampling.get("steps"), config.get("guidance"), device, precision)
    numbers = list(range(int(sampling["num"])))
    ctx = _template(model, config, numbers)
    earlier = open_existing(resume, allow_finished=bool(only)) if resume else None
    cite = list((model.config.get("data") or {}).get("references", ()))
    if earlier is not None:
        _same_model(earlier, model)
    chunks = (earlier.chunks() if earlier else None) or model.chunks(ctx, sampling.get("chunk"))
    keep = _chosen(only, numbers)
    if earlier is not None and only == list(earlier.config["sampling"].get("only") or ()):
        run = earlier
    else:
        run = RunFolder.create("generate", model.name, int(config["seed"]), _resolved(config, model),
                               out=config.get("out") if not only or config.get("out") != resume else None,
                               command=_typed("generate", settings), device=str(drawing.device), cite=cite)
    _started(progress, run.path)
    if only:
        chunks = [c for c in chunks if set(c) & set(keep)]
    run.set_chunks(chunks)
    begun = monotonic()
    finished = [i for i in range(len(chunks)) if run.has_part(part_name(i))]
    watch = Trajectory(run) if sampling.get("trajectory") else None
    for i, state in model.draws(drawing, ctx, chunks, int(config["seed"]), progress, finished, watch):
        if watch is not None:
            watch.write(part_name(i))
        run.write_part(part_name(i), state)
    seconds = monotonic() - begun
    state = join({i: run.read_part(part_name(i))[0] for i in range(len(chunks))}, chunks)
    rows = sorted(row for c in chunks for row in c)
    samples = _decoded(model, ctx, state, rows, keep, int(config["seed"]))
    samples.meta = {"model": model.name, "steps": drawing.nfe, "seconds": None if finished else round(seconds, 2),
                    "samples per second": round(len(rows) / seconds, 2) if seconds > 0 and not finished else None}
    return _deliver(run, model, samples, config, progress)


def _template(model: Model, config: Mapping[str, Any], numbers: Sequence[int]) -> Any:
    import torch

    options = dict((config.get("domain") or {}).get("options") or {})
    if config["sampling"].get("sizes"):
        options["sizes"] = config["sampling"]["sizes"]
    ids = torch.tensor(numbers, dtype=torch.int64)
    return model.template(ids, int(config["seed"]), config.get("condition"), options)


def _chosen(only: Sequence[str], numbers: Sequence[int]) -> list[int]:
    """Sample numbers behind ids such as s0007; all of them where none is named."""
    from scidiff.domains.base import sample_id

    known = {sample_id(i): i for i in numbers}
    for name in only:
        if name not in known:
            raise UsageError(f"There is no sample {name!r} in this run.",
                             f"Its samples are {sample_id(numbers[0])} to {sample_id(numbers[-1])}.")
    return [known[name] for name in only] if only else list(numbers)


def _decoded(model: Model, ctx: Any, state: Any, rows: Sequence[int], keep: Sequence[int], seed: int) -> Samples:
    import torch

    place = {row: k for k, row in enumerate(rows)}
    index = torch.tensor([place[i] for i in keep], dtype=torch.int64)
    part = ctx.take(torch.tensor(list(keep), dtype=torch.int64))
    return model.samples({name: x[index] for name, x in state.items()}, part, seed, list(keep))


def _resolved(config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The settings as the run folder keeps them: the solver that really runs, and the recipe of the model."""
    from scidiff.domains.model import merged_solver

    solver = merged_solver(model.config["solver"], config.get("solver"), config["sampling"].get("steps"))
    kept = ("experiment", "domain", "data", "spec", "backbone", "denoiser", "objective", "weights_sha256")
    recipe = {k: model.config[k] for k in kept if k in model.config}
    return {**config, "from": _lasting(config.get("from"), model), "resume": None, "solver": solver, "model": recipe}


def _lasting(source: str | None, model: Model) -> str | None:
    """A model named by a relative path gets its whole path: a run is continued and measured from elsewhere too."""
    place = Path(source).expanduser().absolute() if source else None
    if source is None or place is None or model.folder is None:
        return source
    found = model.folder.absolute()
    return str(place) if place in (found, *found.parents) or place.parent == found else source


def _same_model(run: RunFolder, model: Model) -> None:
    """ScidiffError where the weights are no longer those that the run began with."""
    before = (run.config.get("model") or {}).get("weights_sha256")
    if before is not None and before != model.config.get("weights_sha256"):
        raise ScidiffError(f"The model {model.name!r} has changed since the run {run.path} began.",
                           "Start a new run, or bring the earlier weights back.")


def _deliver(run: RunFolder, model: Model, samples: Samples, config: Mapping[str, Any],
             progress: Progress | None) -> Outcome:
    """Files, metrics and report of finished samples; marks the run complete."""
    from scidiff.evaluation.evaluate import figures, measure
    from scidiff.evaluation.report import write_report

    sampling = config["sampling"]
    samples.save(run.path)
    reference = None
    if sampling.get("metrics", True):
        reference = _reference(model.domain, (model.config.get("data") or {}).get("name"), quiet=True)
        samples.metrics = measure(model.domain, samples.objects, samples.verdicts, reference, progress=progress)
        figures(run.path, samples.metrics, samples.meta)
    if sampling.get("report", True):
        write_report(run.path, model.domain, samples, reference, title=f"{len(samples)} samples of {model.name}",
                     config=config)
    valid = sum(v.valid for v in samples.verdicts)
    summary = {"samples": str(len(samples)), "valid": f"{valid} ({100 * valid / max(len(samples), 1):.1f} %)",
               "network calls": str(samples.meta["steps"])}
    if samples.meta["samples per second"]:
        summary["speed"] = f"{samples.meta['samples per second']} samples/s"
    if sampling.get("report", True):
        summary["report"] = str(run / "report.html")
    run.finish(samples.meta)
    return Outcome(run.path, samples, samples.metrics, summary)


def _reference(domain: Any, name: str | None, quiet: bool = False) -> Any:
    """Precomputed statistics of a data set; `quiet`: None where there are none."""
    if name is None:
        return None
    try:
        return domain.reference(name)
    except UsageError:
        if quiet:
            return None
        raise


def evaluate(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Measures a run, a file or a folder of samples; `publish` collects results into benchmarks/RESULTS.md."""
    from scidiff.domains import load_domain
    from scidiff.domains.base import Samples, sample_id
    from scidiff.evaluation.evaluate import figures, measure, publish, record
    from scidiff.evaluation.origin import origin_of
    from scidiff.evaluation.report import write_report
    from scidiff.store.run import RunFolder

    config = _settings("evaluate", settings)
    path = config.get("path")
    if path is None:
        page = publish()
        return Outcome(page.parent, summary={"written": str(page)})
    place = Path(path).expanduser()
    about, origin = config.get("domain") or {}, origin_of(place)
    domain = load_domain(about["name"], origin.get("options"))
    reference = _reference(domain, config.get("reference") or origin.get("data"), quiet=not config.get("reference"))
    if origin.get("trained"):
        raise UsageError(f"{place} is a training run; it holds no samples yet.",
                         f"Draw some: scidiff generate --from {place}")
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
                               command=_typed("evaluate", settings))
        folder = run.path
    _started(progress, folder)
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
    summary.update({m.name: _figure(m) for m in samples.metrics if m.value is not None})
    if config["sampling"].get("report", True):
        summary["report"] = str(folder / "report.html")
    if config.get("publish"):
        record(origin.get("model") or place.stem, samples.metrics, samples.meta, origin.get("command", ""),
               origin.get("checkpoint"))
        summary["published"] = str(publish())
    return Outcome(folder, samples, samples.metrics, summary)


def _figure(metric: Metric) -> str:
    value = "not computed" if metric.value is None else f"{metric.value:.4g}"
    span = "" if metric.interval is None else f" [{metric.interval[0]:.4g}, {metric.interval[1]:.4g}]"
    floor = "" if metric.floor is None else f", floor {metric.floor:.2g}"
    return f"{value}{' ' + metric.unit if metric.unit else ''}{span}{floor}"


def train(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Trains a model into a run folder whose `checkpoint/` is what `--from` takes.

    `prepare=FOLDER` only writes the tensor cache, for `python -m scidiff.training FOLDER` on a bare machine.
    """
    from scidiff.store.run import RunFolder, command, open_existing
    from scidiff.training.cache import Cache
    from scidiff.training.loop import check
    from scidiff.training.loop import train as run_training
    from scidiff.training.prepare import prepare

    config = _settings("train", settings)
    if config.get("prepare"):
        cache = prepare(config, progress)
        asked = command(_typed("train", settings))
        cache.config["command"] = f"{asked} && python -m scidiff.training {config['prepare']}"
        folder = cache.write(config["prepare"])
        return Outcome(folder, summary={"tensor cache": str(folder)})
    config["trainer"] = _trainer(config)
    check(config["trainer"])
    run = open_existing(config["resume"]) if config.get("resume") else None
    if run is not None and (run / "cache" / "config.yaml").is_file():
        cache = Cache.open(run / "cache")
    else:
        cache = prepare(config, progress)
        cache.config["command"] = (command(_typed("train", settings)) if run is None
                                   else (run / "command.txt").read_text(encoding="utf-8").strip())
    if run is None:
        run = RunFolder.create("train", str(cache.config["experiment"]), int(config["seed"]), config,
                               out=config.get("out"), command=_typed("train", settings),
                               cite=cache.config["data"].get("references", ()))
    if not (run / "cache" / "config.yaml").is_file():
        cache.write(run / "cache")
    _started(progress, run.path)

    def step(done: int, total: int, values: dict[str, float]) -> None:
        if progress is not None:
            progress("Training", done, total)

    resume = bool(config.get("resume")) and (run / "last.ckpt").is_file()
    checkpoint = run_training(cache, run.path, resume=resume, progress=step if progress is not None else None)
    from shutil import rmtree

    rmtree(run / "cache", ignore_errors=True)
    run.finish({"model": cache.config["experiment"]})
    return Outcome(run.path, summary={"checkpoint": str(checkpoint), "card": str(checkpoint / "card.md")})


def _trainer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings on the device that was asked for; `device=auto` leaves them as they are."""
    device, precision = _device(config)
    if precision != 32:
        raise UsageError("Training runs in float32.", "Leave out precision; trainer.autocast=bf16 is there for a GPU.")
    return {**config["trainer"], **({"accelerator": {"cuda": "gpu"}.get(device, device)} if device != "auto" else {})}


def fetch(name: str, progress: Progress | None = None) -> dict[str, Path]:
    """Brings a data set into the cache (or finds it in a folder or an installed package); its files by name."""
    from scidiff.store import cards
    from scidiff.store import fetch as store

    return store.provide(cards.find(name), progress=progress).files


def reconstruct(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Reconstructs from a measurement, by a domain that offers it."""
    return _capability("reconstruct", settings, progress)


def rollout(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Rolls a state out in time, by a domain that offers it."""
    return _capability("rollout", settings, progress)


def _capability(verb: str, settings: Settings, progress: Progress | None) -> Outcome:
    from scidiff.domains import load_domain

    config = _settings(verb, settings)
    domain = load_domain((config.get("domain") or {}).get("name", ""))
    offered = getattr(domain, verb, None)
    if offered is None:
        raise UsageError(f"The domain {domain.name!r} does not offer {verb!r}.")
    return offered(config, progress)
