"""The one LightningModule: a denoiser, an objective, an optimiser. No domain, no data format.

Learning rate: linear warm-up, then cosine to `floor` times the peak over `max_steps` (or over `max_minutes` of training
time, whichever is further along); with `decay_per_epoch` a constant factor for each pass over the data instead. Time is
counted from the first finished step, so that compiling is not; with `clock: cpu` it is the processor time of this
process, which other work on the machine does not shorten. `clip` bounds the norm of the gradient of the whole model,
or with `clip_parts` of each network in it (the backbone's submodules). Random numbers come from (seed, sample, step),
so a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import math
import time
from typing import Any

import lightning
import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser
from scidiff.core.objective import Batch, Objective
from scidiff.core.run import Run
from scidiff.training.cache import Cache, HoldOut, TrainingBatches, batches_a_pass


class Training(lightning.LightningModule):
    """`settings` is the config group `trainer`."""

    def __init__(self, denoiser: Denoiser, objective: Objective, cache: Cache, settings: dict[str, Any],
                 seed: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._objective, self._cache, self._settings, self._seed = objective, cache, dict(settings), int(seed)
        self._clock = time.process_time if settings.get("clock") == "cpu" else time.monotonic
        self._spent = 0.0
        self._started: float | None = None

    @property
    def minutes(self) -> float:
        """Minutes of training, earlier parts of an interrupted run included."""
        return self._spent + (0.0 if self._started is None else (self._clock() - self._started) / 60)

    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        done = self.global_step / max(int(self._settings["max_steps"]), 1)
        limit = self._settings.get("max_minutes")
        return min(max(done, self.minutes / float(limit) if limit else 0.0), 1.0)

    def _paused(self) -> bool:
        """Whether this piece of a long training has lasted `pause_after` minutes; the next one resumes it."""
        limit = self._settings.get("pause_after")
        return bool(limit) and self.minutes - self._spent >= float(limit)

    def epoch(self) -> int:
        """Finished passes over the training data."""
        s = self._settings
        per_pass = batches_a_pass(len(self._cache.train), int(s["batch"]), bool(s.get("as_they_fall")))
        return self.global_step * self.trainer.world_size // per_pass

    def learning_rate(self) -> float:
        s = self._settings
        warm = min((self.global_step + 1) / max(int(s["warmup"]), 1), 1.0)
        if s.get("decay_per_epoch"):
            return float(s["lr"]) * warm * float(s["decay_per_epoch"]) ** self.epoch()
        floor = float(s["floor"])
        return float(s["lr"]) * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.progress())))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        s = self._settings
        fused = s.get("autocast") != "fp16"
        if s.get("optimizer", "adamw") == "adam":  # weight decay as a term of the loss
            return torch.optim.Adam(self.denoiser.parameters(), lr=float(s["lr"]), betas=tuple(s["betas"]),
                                    weight_decay=float(s["weight_decay"]), fused=fused)
        decay = [p for p in self.denoiser.parameters() if p.dim() > 1]
        plain = [p for p in self.denoiser.parameters() if p.dim() <= 1]
        return torch.optim.AdamW(
            [{"params": decay, "weight_decay": float(s["weight_decay"])}, {"params": plain, "weight_decay": 0.0}],
            lr=float(s["lr"]), betas=tuple(s["betas"]), fused=fused)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
                                    gradient_clip_algorithm: str | None = None) -> None:
        if not (self._settings.get("clip_parts") and gradient_clip_val):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for part in self.denoiser.backbone.children():  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_norm_(part.parameters(), gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self._started is None:
            self._started = self._clock()
        done = self.progress() >= 1.0 or self._paused()
        if self.trainer.world_size > 1:  # clocks differ, and all devices must stop at one step
            done = self.trainer.strategy.reduce_boolean_decision(done, all=False)
        if done:
            self.trainer.should_stop = True

    def training_step(self, batch: Batch, index: int) -> Tensor:
        rate = self.learning_rate()
        for group in self.optimizers().optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        run = Run(self._seed)
        run.step = self.global_step
        loss, metrics = self._objective.loss(self.denoiser, batch, run)
        if self.global_step % int(self._settings["log_every"]) == 0:  # each call costs as much as a small network
            told = {**{f"train/{k}": v for k, v in metrics.items()}, "lr": rate, "minutes": self.minutes}
            self.log_dict(told, batch_size=batch[1].batch)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        # The same noise at every check: the curve shows the model, not the draw.
        run = Run(self._seed + 1)
        run.step = index
        with torch.compiler.set_stance("force_eager"):  # its few batches have lengths of their own
            _, metrics = self._objective.loss(self.denoiser, batch, run)
        self.log_dict({f"valid/{k}": v for k, v in metrics.items()}, batch_size=batch[1].batch)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        s = self._settings
        buckets = int(s.get("buckets") or 1) if s.get("compile") else 0
        data = TrainingBatches(self._cache.train, int(s["batch"]), self._seed, self.global_step, int(s["max_steps"]),
                               buckets=buckets, rank=self.trainer.global_rank,
                               ranks=self.trainer.world_size, as_they_fall=bool(s.get("as_they_fall")))
        return torch.utils.data.DataLoader(data, batch_size=None, num_workers=int(s.get("workers", 0)))

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        data = HoldOut(self._cache.valid, int(self._settings["batch"]))
        return torch.utils.data.DataLoader(data, batch_size=None)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        state, ctx = batch
        return {k: v.to(device) for k, v in state.items()}, ctx.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["minutes"] = self.minutes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._spent = float(checkpoint.get("minutes", 0.0))
