"""`generate`: draws samples from a trained model into a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from scidiff.api.deliver import deliver
from scidiff.api.settings import (
    Outcome,
    Progress,
    Settings,
    agreed_model,
    device_of,
    resolved,
    same_model,
    settings_of,
    started,
    typed,
)
from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from scidiff.domains.base import Samples
    from scidiff.domains.model import Model, Start


def generate(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Draws samples from a trained model into a run folder: files of the domain, metrics, report.

    Raises UsageError for impossible requests; what is finished when it is interrupted stays, and `resume` continues it
    with the same samples as an uninterrupted run.
    """
    from scidiff.domains.model import join
    from scidiff.store.run import RunFolder, open_existing, part_name
    from scidiff.store.trajectory import Trajectory

    config = settings_of("generate", settings)
    sampling = config["sampling"]
    source = config.get("from") or (config.get("domain") or {}).get("model")
    if not source:
        raise UsageError("Say which model to draw from.", "Name one with --from; 'scidiff list models' shows them.")
    model = agreed_model(source, config)
    only, resume = list(sampling.get("only") or ()), config.get("resume")
    device, precision = device_of(config)
    model.agree(config.get("guidance"), config.get("condition"))
    numbers = list(range(int(sampling["num"])))
    ctx = _template(model, config, numbers)
    drawing = model.drawing(config.get("solver"), sampling.get("steps"), config.get("guidance"), device, precision,
                            ctx=ctx)
    earlier = open_existing(resume, allow_finished=bool(only)) if resume else None
    cite = list((model.config.get("data") or {}).get("references", ()))
    if earlier is not None:
        same_model(earlier, model)
    chunks = (earlier.chunks() if earlier else None) or model.chunks(ctx, sampling.get("chunk"))
    begin = _start(model, config, ctx)
    keep = _chosen(only, numbers)
    if earlier is not None and only == list(earlier.config["sampling"].get("only") or ()):
        run = earlier
    else:
        run = RunFolder.create("generate", model.name, int(config["seed"]), resolved(config, model),
                               out=config.get("out") if not only or config.get("out") != resume else None,
                               command=typed("generate", settings), device=str(drawing.device), cite=cite)
    started(progress, run.path)
    if only:
        chunks = [c for c in chunks if set(c) & set(keep)]
    run.set_chunks(chunks)
    begun = monotonic()
    finished = [i for i in range(len(chunks)) if run.has_part(part_name(i))]
    watch = Trajectory(run) if sampling.get("trajectory") else None
    for i, state in model.draws(drawing, ctx, chunks, int(config["seed"]), progress, finished, watch, begin):
        if watch is not None:
            watch.write(part_name(i))
        run.write_part(part_name(i), state)
    seconds = monotonic() - begun
    state = join({i: run.read_part(part_name(i))[0] for i in range(len(chunks))}, chunks)
    rows = sorted(row for c in chunks for row in c)
    samples = _decoded(model, ctx, state, rows, keep, int(config["seed"]))
    samples.meta = {"model": model.name, "steps": drawing.nfe, "seconds": None if finished else round(seconds, 2),
                    "samples per second": round(len(rows) / seconds, 2) if seconds > 0 and not finished else None}
    if sampling.get("rank"):
        samples.ranks = _ranks(model, ctx, state, rows, keep, samples, int(config["seed"]), progress)
    made = deliver(run, model, samples, config, f"{len(samples)} samples of {model.name}", progress)
    valid = sum(v.valid for v in samples.verdicts)
    summary = {"samples": str(len(samples)), "valid": f"{valid} ({100 * valid / max(len(samples), 1):.1f} %)",
               "network calls": str(samples.meta["steps"])}
    if samples.meta["samples per second"]:
        summary["speed"] = f"{samples.meta['samples per second']} samples/s"
    if begin is not None:
        summary["started"] = f"{int(begin.found.sum())} of {len(begin.found)} near a template, at t = {begin.t:g}"
    if samples.ranks:
        summary["best"] = ", ".join(i for i, r in zip(samples.ids, samples.ranks, strict=True) if r["rank"] == 1)
    made.summary = {**summary, **made.summary}
    return made


def _template(model: Model, config: Mapping[str, Any], numbers: Sequence[int]) -> Any:
    import torch

    options = dict((config.get("domain") or {}).get("options") or {})
    if config["sampling"].get("sizes"):
        options["sizes"] = config["sampling"]["sizes"]
    root = (config.get("data") or {}).get("root")
    if root and options.get("like"):
        options.setdefault("root", root)
    ids = torch.tensor(numbers, dtype=torch.int64)
    return model.template(ids, int(config["seed"]), config.get("condition"), options)


def _start(model: Model, config: Mapping[str, Any], ctx: Any) -> Start | None:
    """Where the samples begin, if not in noise."""
    from scidiff.domains.model import Start

    kind, t = config["sampling"].get("start"), config["sampling"].get("t_start", 0.1)
    if not kind:
        return None
    if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 <= t < 1:
        raise UsageError(f"sampling.t_start lies between 0, the data, and 1, the source, unlike {t!r}.")
    name, root = (model.config.get("data") or {}).get("name", ""), (config.get("data") or {}).get("root")
    state, found = model.domain.start(str(kind), ctx, str(name), root)
    return Start(state, found, float(t))


def _ranks(model: Model, ctx: Any, state: Any, rows: Sequence[int], keep: Sequence[int], samples: Samples, seed: int,
           progress: Progress | None) -> list[dict[str, Any]]:
    """Columns of rank and cost for the samples that are kept."""
    import torch

    place = {row: k for k, row in enumerate(rows)}
    index = torch.tensor([place[i] for i in keep], dtype=torch.int64)
    part = ctx.take(torch.tensor(list(keep), dtype=torch.int64))
    costs = model.costs({name: x[index] for name, x in state.items()}, part, model.chunks(part), seed, progress)
    return model.domain.ranking(samples.objects, samples.verdicts, costs.tolist())


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
