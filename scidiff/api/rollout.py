"""`rollout`: forecasts of a trained model, by a domain that offers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.api.deliver import deliver, figure
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
    from torch import Tensor

    from scidiff.domains.base import Samples
    from scidiff.store.run import RunFolder

HORIZON = "correlation time 0.8"
"""The figure that is told first, where a domain has it."""
DECISIVE = ("equation", "init", "seed", "condition", "guidance", "solver", "precision")
"""Settings that decide a forecast, besides `sampling`."""


class Lazily:
    """A run folder that is made when the first part is written: an impossible request leaves nothing behind."""

    def __init__(self, make: Callable[[], RunFolder], existing: RunFolder | None = None) -> None:
        self._make, self._run = make, existing

    def open(self) -> RunFolder:
        if self._run is None:
            self._run = self._make()
        return self._run

    def has_part(self, name: str) -> bool:
        return self._run is not None and self._run.has_part(name)

    def write_part(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> Path:
        return self.open().write_part(name, tensors, notes)

    def read_part(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.open().read_part(name)


def rollout(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Rolls states out in time into a run folder: files of the domain, metrics, report.

    Raises UsageError for impossible requests, which leave no folder; what is finished when it is interrupted stays, and
    `resume` continues it with the same forecasts as an uninterrupted run.
    """
    from scidiff.domains import load_domain
    from scidiff.domains.model import pick_device
    from scidiff.store.run import RunFolder, free, open_existing

    config = settings_of("rollout", settings)
    source, resume = model_for(config), config.get("resume")
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
    earlier = open_existing(resume) if resume else None
    if earlier is not None:
        same_model(earlier, model)
        _same_settings(earlier, kept)
    elif config.get("out"):
        free(config["out"])  # before the reference is solved, not after

    def make() -> RunFolder:
        run = RunFolder.create("rollout", model.name, ask["seed"], kept, out=config.get("out"),
                               command=typed("rollout", settings), device=str(pick_device(device)),
                               cite=list((model.config.get("data") or {}).get("references", ())))
        started(progress, run.path)
        return run

    if earlier is not None:
        started(progress, earlier.path)
    store = Lazily(make, earlier)
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


def _same_settings(run: RunFolder, kept: Mapping[str, Any]) -> None:
    """UsageError where a run would be continued with other settings than it began with."""
    before = run.config
    pairs = [(key, before.get(key), kept.get(key)) for key in DECISIVE]
    inside = ("num", "length", "trajectories", "truth", "chunk", "steps")
    pairs += [(f"sampling.{k}", before.get("sampling", {}).get(k), kept["sampling"].get(k)) for k in inside]
    for key, old, new in pairs:
        if (old or None) != (new or None):
            raise UsageError(f"The run {run.path} was begun with {key}={old}, not {new}.",
                             "Continue it with its own settings.")


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
