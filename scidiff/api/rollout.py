"""`rollout`: forecasts of a trained model, by a domain that offers them."""

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
    resolved,
    settings_of,
)
from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from scidiff.domains.base import Samples

HORIZON = "correlation time 0.8"
"""The figure that is told first, where a domain has it."""
DECISIVE = ("equation", "init", "seed", "condition", "guidance", "solver", "precision")
INSIDE = ("num", "length", "trajectories", "truth", "chunk", "steps")
"""Settings that decide a forecast, by themselves and in `sampling`."""


def rollout(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Rolls states out in time into a run folder: files of the domain, metrics, report.

    Raises UsageError for impossible requests, which leave no folder; what is finished when it is interrupted stays, and
    `resume` continues it with the same forecasts as an uninterrupted run.
    """
    from scidiff.domains import load_domain

    config = settings_of("rollout", settings)
    source = model_for(config)
    model = None if source is None else agreed_model(source, config)
    domain = load_domain((config.get("domain") or {}).get("name", "")) if model is None else model.domain
    offered = getattr(domain, "rollout", None)
    if offered is None:
        raise UsageError(f"The domain {domain.name!r} does not offer 'rollout'.")
    device, precision = device_of(config)
    if precision not in (32, 64):
        raise UsageError(f"Fields are rolled out with precision 32 or 64, not {precision}.")
    sampling = config["sampling"]
    ask = {
        "members": sampling["num"], "steps": sampling["length"], "trajectories": sampling.get("trajectories"),
        "truth": bool(sampling.get("truth", True)), "calls": sampling.get("steps"), "chunk": sampling.get("chunk"),
        "seed": int(config["seed"]), "init": config.get("init"), "equation": config.get("equation"),
        "condition": dict(config.get("condition") or {}), "solver": config.get("solver"),
        "options": dict((config.get("domain") or {}).get("options") or {}), "guidance": config.get("guidance"),
        "device": device, "precision": precision,
    }
    if model is None:
        offered(None, ask)
        raise UsageError("Say which model to roll out.", "Name one with --from; 'scidiff list models' shows them.")
    # A run is resumed from elsewhere too.
    init = str(Path(ask["init"]).expanduser().absolute()) if ask["init"] else None
    kept = resolved({**config, "from": source, "init": init}, model)
    store = folder_of("rollout", model.name, settings, config, kept, model, DECISIVE, INSIDE, device, progress)
    samples: Samples = offered(model, ask, store, progress)
    made = deliver(store.open(), model, samples, config, f"{len(samples)} rollouts of {model.name}", progress)
    made.summary = {**_summary(samples), **made.summary}
    return made


def model_for(config: Mapping[str, Any]) -> str | None:
    """The model that the settings name, or a shipped one (first the domain's own) that knows their equation."""
    from scidiff.core.errors import ScidiffError
    from scidiff.store import checkpoint

    about, wanted = config.get("domain") or {}, config.get("equation")
    own = about.get("model")
    if config.get("from") or not wanted:
        return config.get("from") or own
    places = [(m.experiment, m.folder) for m in checkpoint.shipped() if m.domain == about.get("name")]
    places.sort(key=lambda place: place[0] != own)
    for name, folder in places:
        try:
            options = (checkpoint.read_config(folder).get("domain") or {}).get("options") or {}
        except ScidiffError:  # a damaged model is no candidate
            continue
        if (options.get("equation") or {}).get("name") == wanted:
            return name
    return None


def _summary(samples: Samples) -> dict[str, str]:
    """Lines for people: how far, how sure, at what cost."""
    meta, lost = samples.meta, [v for v in samples.verdicts if not v.valid]
    rows = {"rollouts": f"{_counted(len(samples), 'trajectory')} of {_counted(meta['members'], 'member')}, "
                        f"{_counted(meta['time steps'], 'step')} of {meta['interval']:g} {meta['time unit']}"}
    rows.update({m.name: figure(m) for m in samples.metrics if m.name == HORIZON})
    rows["blow-ups"] = f"{len(lost)} of {_counted(len(samples), 'trajectory')}: {lost[0].reason}" if lost else "none"
    rows["network calls"] = f"{meta['steps']} a step"
    if meta.get("ms per step"):
        count, block = len(samples) * meta["members"], meta.get("rows together", 0)
        whole = meta["ms per step"]
        rows["speed"] = f"{whole:.4g} ms a step, {whole / count:.3g} ms for each of its rows"
        if count < block:
            rows["speed"] += f" (computed as {block} rows; --batch changes that)"
    return rows


def _counted(number: int, noun: str) -> str:
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else many}"
