"""`train`: from settings to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scidiff.api.settings import Outcome, Progress, Settings, device_of, settings_of, started, typed
from scidiff.core.errors import UsageError


def train(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Trains a model into a run folder whose `checkpoint/` is what `--from` takes.

    `prepare=FOLDER` only writes the tensor cache, for `python -m scidiff.training FOLDER` on a bare machine.
    """
    from scidiff.store.run import RunFolder, command, open_existing
    from scidiff.training.cache import Cache
    from scidiff.training.loop import check
    from scidiff.training.loop import train as run_training
    from scidiff.training.prepare import prepare

    config = settings_of("train", settings)
    if config.get("prepare"):
        cache = prepare(config, progress)
        asked = command(typed("train", settings))
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
        cache.config["command"] = (command(typed("train", settings)) if run is None
                                   else (run / "command.txt").read_text(encoding="utf-8").strip())
    if run is None:
        run = RunFolder.create("train", str(cache.config["experiment"]), int(config["seed"]), config,
                               out=config.get("out"), command=typed("train", settings),
                               cite=cache.config["data"].get("references", ()))
    if not (run / "cache" / "config.yaml").is_file():
        cache.write(run / "cache")
    started(progress, run.path)

    def step(done: int, total: int, values: dict[str, float]) -> None:
        if progress is not None:
            progress("Training", done, total)

    resume = bool(config.get("resume")) and (run / "last.ckpt").is_file()
    checkpoint = run_training(cache, run.path, resume=resume, progress=step if progress is not None else None)
    if cache.config["trainer"].get("pause_after") and not _complete(run / "last.ckpt", cache.config["trainer"]):
        return Outcome(run.path, summary={"paused": f"continue with: scidiff train --resume {run.path}"})
    _settle(checkpoint)
    from shutil import rmtree

    rmtree(run / "cache", ignore_errors=True)
    run.finish({"model": cache.config["experiment"]})
    return Outcome(run.path, summary={"checkpoint": str(checkpoint), "card": str(checkpoint / "card.md")})


def _complete(last: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a stored training has come to its end."""
    import torch

    stored, limit = torch.load(last, map_location="cpu", weights_only=True), settings.get("max_minutes")
    spent = bool(limit) and float(stored.get("minutes", 0.0)) >= float(limit)
    return spent or int(stored["global_step"]) >= int(settings["max_steps"])


def _settle(folder: Path) -> None:
    """Lets the domain choose, on validation data, what is chosen after a training."""
    from scidiff.domains.model import Model
    from scidiff.store import checkpoint

    model = Model.load(folder)
    changes, note = model.domain.settle(model)
    if changes or note:
        checkpoint.amend(folder, changes, note)


def _trainer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings on the device that was asked for; `device=auto` leaves them as they are."""
    device, precision = device_of(config)
    if precision != 32:
        raise UsageError("Training runs in float32.", "Leave out precision; trainer.autocast=bf16 is there for a GPU.")
    return {**config["trainer"], **({"accelerator": {"cuda": "gpu"}.get(device, device)} if device != "auto" else {})}
