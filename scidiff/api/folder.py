"""The run folder of a verb whose domain stores finished parts on the way: made late, or continued as it was begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.api.settings import Progress, Settings, same_model, started, typed
from scidiff.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from scidiff.domains.model import Model
    from scidiff.store.run import RunFolder


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


def folder_of(verb: str, name: str, settings: Settings, config: Mapping[str, Any], kept: Mapping[str, Any],
              model: Model | None, decisive: Sequence[str], inside: Sequence[str], device: str,
              progress: Progress | None) -> Lazily:
    """The folder that `config` names: a run to continue, or a new one that keeps the settings `kept`.

    decisive: settings that decide the result, and with them `inside` those of `sampling`. UsageError where a run would
    be continued with others of these, or the place of a new one is taken; before any work, not after.
    """
    from scidiff.domains.model import pick_device
    from scidiff.store.run import RunFolder, free, open_existing

    earlier = open_existing(config["resume"]) if config.get("resume") else None
    if earlier is not None:
        if model is not None:
            same_model(earlier, model)
        _same_settings(earlier, kept, decisive, inside)
        started(progress, earlier.path)
    elif config.get("out"):
        free(config["out"])

    def make() -> RunFolder:
        cited = (model.config.get("data") or {}).get("references", ()) if model is not None else ()
        run = RunFolder.create(verb, name, int(config["seed"]), kept, out=config.get("out"),
                               command=typed(verb, settings), device=str(pick_device(device)), cite=list(cited))
        started(progress, run.path)
        return run

    return Lazily(make, earlier)


def _same_settings(run: RunFolder, kept: Mapping[str, Any], decisive: Sequence[str], inside: Sequence[str]) -> None:
    before = run.config
    pairs = [(key, before.get(key), kept.get(key)) for key in decisive]
    pairs += [(f"sampling.{k}", before.get("sampling", {}).get(k), kept["sampling"].get(k)) for k in inside]
    for key, old, new in pairs:
        if (old or None) != (new or None):
            raise UsageError(f"The run {run.path} was begun with {key}={old}, not {new}.",
                             "Continue it with its own settings.")
