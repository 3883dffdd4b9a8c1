"""Callbacks of training: previews drawn by the same sampler as everywhere, export of averaged weights, plain narration.

Previews and exports run at the end of a validation check, while Lightning has the averaged weights swapped in: it swaps
them back in the same hook, so both stand before the averaging in the trainer's list of callbacks.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.store import checkpoint
from scidiff.training.cache import Cache

QUIET = 3.0
"""Seconds between two plain lines, at least."""


def model_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a training config that a checkpoint keeps: what is needed to rebuild, sample and cite the model."""
    keep = ("experiment", "alias", "summary", "domain", "spec", "backbone", "denoiser", "statistics", "data",
            "objective", "solver", "sampling", "trainer", "seed")
    return {k: copy.deepcopy(config[k]) for k in keep if k in config}


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}."


def card(config: dict[str, Any], steps: int, minutes: float, losses: dict[str, float]) -> str:
    """The model card that a training run writes by itself: data, command, settings, losses."""
    data = config.get("data") or {}
    lines = [
        f"# {config.get('experiment') or 'model'}", "",
        f"Data: {data.get('title') or data.get('name', 'not named')}.",
        f"Licence of the data: {_sentence(data.get('licence') or 'see the data card')}",
        f"Trained {steps} steps in {minutes:.0f} minutes, seed {config.get('seed', 0)}.",
        f"Command: `{config.get('command') or 'scidiff train experiment=' + str(config.get('experiment'))}`", "",
        "| hold-out | value |", "|---|---|", *(f"| {k} | {v:.5f} |" for k, v in sorted(losses.items())),
    ]
    return "\n".join(lines) + "\n"


class Export(lightning.Callback):
    """Writes `checkpoint/` with the averaged weights after every check and at the end."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.config, self.folder = config, folder

    def _write(self, trainer: lightning.Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        losses = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("valid/", "preview/"))}
        weights = {k: v.detach().cpu() for k, v in module.denoiser.backbone.state_dict().items()}
        checkpoint.save(self.folder, weights, model_config(self.config),
                        card(self.config, trainer.global_step, module.minutes, losses))

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._write(trainer, pl_module)


class Narrate(lightning.Callback):
    """Progress for people: calls `progress(step, total, figures)`, or prints one line per 5 percent."""

    def __init__(self, settings: dict[str, Any], progress: Callable[[int, int, dict[str, float]], None] | None) -> None:
        self.total, self.progress, self.every = int(settings["max_steps"]), progress, int(settings["log_every"])
        self.shown, self.said = -1, 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        step = trainer.global_step
        share, now = int(20 * pl_module.progress()), time.monotonic()
        if self.progress is None and (share == self.shown or (now - self.said < QUIET and step != self.total)):
            return
        if self.progress is not None and step % self.every and step != self.total:
            return
        figures = {k: float(v) for k, v in trainer.callback_metrics.items()}
        if self.progress is not None:
            self.progress(step, self.total, figures)
        else:
            self.shown, self.said = share, now
            told = {k: v for k, v in figures.items() if k.split("/")[0] in ("train", "valid", "preview")}
            text = "  ".join(f"{k} {v:.4f}" for k, v in told.items())
            sys.stderr.write(f"{5 * self.shown:3d} %  step {step}  {pl_module.minutes:.1f} min  {text}\n")
            sys.stderr.flush()


class Preview(lightning.Callback):
    """Draws a few samples at every check and logs the domain's cheap figures, where its library is installed."""

    def __init__(self, cache: Cache, config: dict[str, Any]) -> None:
        self.config = config
        self.settings = dict((config["trainer"] or {}).get("preview") or {})
        self.domain: Any = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        from scidiff.domains import load_domain

        if not self.settings.get("num"):
            return
        try:
            self.domain = load_domain(self.config["domain"]["name"], self.config["domain"].get("options"))
        except MissingLibrary as missing:
            sys.stderr.write(f"No previews during training: {missing}\n")

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.domain is None or not trainer.is_global_zero:
            return
        from scidiff.core.sampler import Sampler
        from scidiff.core.spec import stack_ids
        from scidiff.domains.base import Request
        from scidiff.store.targets import build

        denoiser = pl_module.denoiser
        solver = {**self.config["solver"], "steps": int(self.settings.get("steps", 25))}
        request = Request(stack_ids(0, int(self.settings["num"])), seed=0)
        try:
            ctx = self.domain.template(request).to(pl_module.device)
        except UsageError as refused:  # a model that makes nothing unless it is told what
            sys.stderr.write(f"No previews during training: {refused}\n")
            self.domain = None
            return
        with torch.autocast(pl_module.device.type, enabled=False):
            result = Sampler(denoiser.spec, denoiser, build(solver)).run(ctx, seed=0)
        objects = self.domain.decode({k: v.cpu() for k, v in result.state.items()}, ctx.to("cpu"))
        figures = self.domain.preview(objects, self.domain.check(objects))
        pl_module.log_dict({f"preview/{k}": v for k, v in figures.items()})
