"""`reconstruct`: an object from a measurement, by a domain that offers it, with a trained prior or without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.api.deliver import deliver, figure
from scidiff.api.rollout import Lazily
from scidiff.api.settings import (
    Outcome,
    Progress,
    Settings,
    agreed_model,
    device_of,
    lasting,
    same_model,
    settings_of,
    started,
    typed,
)
from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from scidiff.domains.base import Samples
    from scidiff.domains.model import Model
    from scidiff.store.run import RunFolder

FILES = ("input", "sinogram", "geometry", "kspace")
DECISIVE = (*FILES, "operator", "noise", "simulation", "posterior", "volume", "frame", "reading", "size", "force",
            "seed", "condition", "precision")
"""Settings that decide a reconstruction, besides `sampling`."""
LINES = 9
"""Figures that are told at the end, at most: the first ones of the domain."""


def reconstruct(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Reconstructs into a run folder: files of the domain, metrics, card, report.

    Raises UsageError for impossible requests, which leave no folder; finished samples and the last stored step stay
    when it is interrupted, and `resume` continues to the same result as that of an uninterrupted run.
    """
    from scidiff.domains import load_domain
    from scidiff.domains.model import pick_device
    from scidiff.store.run import RunFolder, free, open_existing

    config = settings_of("reconstruct", settings)
    about, resume = config.get("domain") or {}, config.get("resume")
    domain = load_domain(about.get("name", ""))
    offered = getattr(domain, "reconstruct", None)
    if offered is None:
        raise UsageError(f"The domain {domain.name!r} does not offer 'reconstruct'.")
    if config.get("solver"):
        raise UsageError("A reconstruction steps as its posterior solver says, so 'solver' cannot be set.",
                         "Settings of the posterior are posterior.KEY=VALUE, such as posterior.eta=0.5.")
    device, precision = device_of(config)
    ask = asked(config, device, precision)
    model = _model(config, domain, ask)
    domain = domain if model is None else model.domain
    name = model.name if model is not None else _method(config)
    kept = _kept(config, model)
    earlier = open_existing(resume) if resume else None
    if earlier is not None:
        if model is not None:
            same_model(earlier, model)
        _same_settings(earlier, kept)
    elif config.get("out"):
        free(config["out"])

    def make() -> RunFolder:
        run = RunFolder.create("reconstruct", name, ask["seed"], kept, out=config.get("out"),
                               command=typed("reconstruct", settings), device=str(pick_device(device)),
                               cite=list(((model.config if model else {}).get("data") or {}).get("references", ())))
        started(progress, run.path)
        return run

    if earlier is not None:
        started(progress, earlier.path)
    store = Lazily(make, earlier)
    samples: Samples = domain.reconstruct(model, ask, store, progress)  # type: ignore[attr-defined]
    title = f"{samples.meta.get('method', 'Reconstruction')} of {Path(str(_source(config))).name}"
    made = deliver(store.open(), model, samples, config, title, progress)
    made.summary = {**_summary(samples), **made.summary}
    return made


def asked(config: Mapping[str, Any], device: str, precision: int | str) -> dict[str, Any]:
    """What a domain is asked for; the keys are those of `scidiff.domains.medical.ask.Ask`."""
    sampling = config["sampling"]
    ask = {key: config.get(key) for key in DECISIVE}
    ask.update(samples=sampling["num"], steps=sampling.get("steps"), chunk=sampling.get("chunk"),
               rivals=bool(sampling.get("rivals", True)), checkpoint=float(sampling.get("checkpoint", 30.0)),
               device=device, precision=precision, seed=int(config["seed"]), force=bool(config.get("force")),
               noise=dict(config.get("noise") or {}), volume=dict(config.get("volume") or {}),
               reading=dict(config.get("reading") or {}), condition=dict(config.get("condition") or {}),
               study=dict(config.get("study") or {}), simulation=str(config.get("simulation") or "same"))
    return ask


def _model(config: Mapping[str, Any], domain: Any, ask: Mapping[str, Any]) -> Model | None:
    """The prior: the named one, else the one that the domain chooses for the request; None where none is needed."""
    named = config.get("from")
    if not _solver_of_the_core(config):
        if named:
            raise UsageError(f"The method {_method(config)!r} needs no prior.", "Leave --from out.")
        return None
    choose = getattr(domain, "prior_for", None)
    source = named or (choose(ask) if choose is not None else (config.get("domain") or {}).get("model"))
    if source is None:
        raise UsageError("This posterior solver needs a prior, and none is shipped for this measurement.",
                         "Name one with --from, or take a method without one, such as --posterior admm_tv.")
    return agreed_model(source, config)


def _solver_of_the_core(config: Mapping[str, Any]) -> bool:
    """Whether the posterior is a solver that takes a prior; the other methods belong to the domain."""
    from scidiff.core.posterior import Posterior
    from scidiff.store import targets

    target = (config.get("posterior") or {}).get("_target_")
    found = None if target is None else targets.locate(str(target))
    return found is None or (isinstance(found, type) and issubclass(found, Posterior))


def _method(config: Mapping[str, Any]) -> str:
    return str((config.get("posterior") or {}).get("_target_", "none")).rpartition(".")[2].lower()


def _source(config: Mapping[str, Any]) -> Any:
    return next((config[key] for key in FILES if config.get(key)), "")


def _kept(config: Mapping[str, Any], model: Model | None) -> dict[str, Any]:
    """The settings as the run folder keeps them: files by their whole paths, and the recipe of the model."""
    kept = {**config, "resume": None}
    for key in FILES:
        place = Path(str(config[key])).expanduser() if isinstance(config.get(key), str) else None
        if place is not None and place.exists():
            kept[key] = str(place.absolute())
    if model is not None:
        recipe = ("experiment", "domain", "data", "spec", "backbone", "denoiser", "objective", "weights_sha256")
        kept["from"] = lasting(config.get("from"), model)
        kept["model"] = {k: model.config[k] for k in recipe if k in model.config}
    return kept


def _same_settings(run: RunFolder, kept: Mapping[str, Any]) -> None:
    """UsageError where a run would be continued with other settings than it began with."""
    before = run.config
    pairs = [(key, before.get(key), kept.get(key)) for key in DECISIVE]
    pairs += [(f"sampling.{k}", before.get("sampling", {}).get(k), kept["sampling"].get(k)) for k in ("num", "steps")]
    for key, old, new in pairs:
        if (old or None) != (new or None):
            raise UsageError(f"The run {run.path} was begun with {key}={old}, not {new}.",
                             "Continue it with its own settings.")


def _summary(samples: Samples) -> dict[str, str]:
    """Lines for people: what was done, how good it is, and what to mind."""
    meta, lost = samples.meta, [v for v in samples.verdicts if not v.valid]
    rows = {"method": str(meta.get("method", "")), "measured by": str(meta.get("operator", ""))}
    if len(samples) > 1:
        rows["samples"] = str(len(samples))
    if meta.get("cost"):
        rows["a sample"] = str(meta["cost"])
    rows.update({m.name: figure(m) for m in samples.metrics[:LINES] if m.value is not None})
    if lost:
        rows["unsound"] = f"{len(lost)} of {len(samples)}: {lost[0].reason}"
    rows.update({f"note {i}" if i > 1 else "note": note for i, note in enumerate(meta.get("notes") or (), 1)})
    return rows
