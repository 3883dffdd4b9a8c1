"""`reconstruct`: an object from a measurement, by a domain that offers it, with a trained prior or without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.api.deliver import deliver, figure
from scidiff.api.folder import folder_of
from scidiff.api.settings import (
    Outcome,
    Progress,
    Settings,
    agreed_model,
    device_of,
    lasting,
    recipe_of,
    settings_of,
)
from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from scidiff.domains.base import Samples
    from scidiff.domains.model import Model

FILES = ("input", "sinogram", "geometry", "kspace")
DECISIVE = (*FILES, "operator", "noise", "simulation", "posterior", "volume", "frame", "reading", "size", "force",
            "seed", "condition", "precision")
INSIDE = ("num", "steps")
"""Settings that decide a reconstruction, by themselves and in `sampling`."""
LINES = 9
"""Figures that are told at the end, at most: the first ones of the domain."""


def reconstruct(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Reconstructs into a run folder: files of the domain, metrics, card, report.

    Raises UsageError for impossible requests, which leave no folder; finished samples and the last stored step stay
    when it is interrupted, and `resume` continues to the same result as that of an uninterrupted run.
    """
    from scidiff.domains import load_domain

    config = settings_of("reconstruct", settings)
    domain = load_domain((config.get("domain") or {}).get("name", ""))
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
    store = folder_of("reconstruct", name, settings, config, kept, model, DECISIVE, INSIDE, device, progress)
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
        kept["from"] = lasting(config.get("from"), model)
        kept["model"] = recipe_of(model)
    return kept


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
