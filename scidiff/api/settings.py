"""What every verb begins with: settings, device, model; and the Outcome that it ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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


def settings_of(verb: str, settings: Settings) -> dict[str, Any]:
    """The composed settings of a verb."""
    if isinstance(settings, Mapping):
        return dict(settings)
    from scidiff.config import compose

    return compose(verb, list(settings))


def typed(verb: str, settings: Settings) -> list[str] | None:
    """The command that stands for a call from Python; None: the process was started by one."""
    return None if isinstance(settings, Mapping) else ["scidiff", verb, *settings]


def started(progress: Progress | None, folder: Path) -> None:
    """Tells whoever watches where the results go."""
    told = getattr(progress, "started", None)
    if told is not None:
        told(folder)


def device_of(settings: Mapping[str, Any]) -> tuple[str, int | str]:
    """The device that was asked for and the precision; sets the number of threads."""
    asked: Any = settings.get("device") or {}
    about: Mapping[str, Any] = {"device": asked} if isinstance(asked, str) else asked
    if about.get("threads"):
        import torch

        torch.set_num_threads(int(about["threads"]))
    return str(about.get("device", "auto")), about.get("precision", settings.get("precision", 32))


def agreed_model(source: str, config: Mapping[str, Any]) -> Model:
    """The model of that name, if it belongs to the domain of the settings."""
    from scidiff import api

    model = api.load(source, "cpu")
    wanted = (config.get("domain") or {}).get("name")
    if wanted and wanted != model.domain.name:
        raise UsageError(f"The model {source!r} makes objects of the domain {model.domain.name!r}, not {wanted!r}.")
    return model


def resolved(config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The settings as the run folder keeps them: the solver that really runs, and the recipe of the model."""
    from scidiff.domains.model import merged_solver

    solver = merged_solver(model.config["solver"], config.get("solver"), config["sampling"].get("steps"))
    return {**config, "from": lasting(config.get("from"), model), "resume": None, "solver": solver,
            "model": recipe_of(model)}


def recipe_of(model: Model) -> dict[str, Any]:
    """What a run folder keeps of its model."""
    kept = ("experiment", "domain", "data", "spec", "backbone", "denoiser", "objective", "weights_sha256")
    return {k: model.config[k] for k in kept if k in model.config}


def lasting(source: str | None, model: Model) -> str | None:
    """A model named by a relative path gets its whole path: a run is continued and measured from elsewhere too."""
    place = Path(source).expanduser().absolute() if source else None
    if source is None or place is None or model.folder is None:
        return source
    found = model.folder.absolute()
    return str(place) if place in (found, *found.parents) or place.parent == found else source


def same_model(run: RunFolder, model: Model) -> None:
    """ScidiffError where the weights are no longer those that the run began with."""
    before = (run.config.get("model") or {}).get("weights_sha256")
    if before is not None and before != model.config.get("weights_sha256"):
        raise ScidiffError(f"The model {model.name!r} has changed since the run {run.path} began.",
                           "Start a new run, or bring the earlier weights back.")
