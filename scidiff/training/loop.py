"""Setting up a training run: trainer, callbacks, loggers, resume, and the export of the averaged weights.

Everything lives in one folder: `last.ckpt` (Lightning's, for resuming only), `checkpoint/` (safetensors + YAML, what
`--from` takes), `metrics.csv`.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.store import atomic
from scidiff.store.model import assemble
from scidiff.store.targets import build
from scidiff.training.cache import Cache
from scidiff.training.callbacks import Export, Narrate, Preview
from scidiff.training.module import Training

LAST = "last.ckpt"
OPTIMIZERS = ("adam", "adamw")
MIXED: dict[Any, Any] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
Progress = Callable[[int, int, dict[str, float]], None]


def train(cache: Cache, out: str | Path, resume: bool = False, progress: Progress | None = None) -> Path:
    """Trains from a tensor cache into the folder `out`; returns the checkpoint folder.

    `resume` continues from `out/last.ckpt`. Raises UsageError for impossible settings.
    """
    config = cache.config
    settings = dict(config["trainer"])
    check(settings)
    folder = atomic.ensure_folder(out)
    last = folder / LAST
    if resume and not last.is_file():
        raise UsageError(f"{folder} has no {LAST} to resume from.")
    seed = int(config.get("seed", 0))
    torch.manual_seed(seed)
    spec, denoiser = assemble(config)
    objective = build(config["objective"], spec=spec)
    module = Training(denoiser, objective, cache, settings, seed)
    if settings.get("compile"):
        # Three programs a length: without gradients, and with them, self-conditioned or not. Torch stops at eight.
        torch._dynamo.config.recompile_limit = max(8, 4 * int(settings.get("buckets") or 1))
        denoiser.backbone.compile(dynamic=False)
    _quiet()
    trainer = lightning.Trainer(
        accelerator=_accelerator(settings), devices=settings.get("devices", 1),
        strategy=settings.get("strategy", "auto"), precision=MIXED.get(settings.get("autocast"), "32-true"),
        max_steps=int(settings["max_steps"]), max_epochs=-1, gradient_clip_val=float(settings["clip"]),
        val_check_interval=min(int(settings["check_every"]), int(settings["max_steps"])), check_val_every_n_epoch=None,
        num_sanity_val_steps=0, limit_val_batches=int(settings.get("valid_batches", 8)),
        log_every_n_steps=int(settings["log_every"]), logger=_loggers(config, folder),
        callbacks=[
            ModelCheckpoint(folder, filename=LAST.removesuffix(".ckpt"), enable_version_counter=False,
                            every_n_train_steps=int(settings["check_every"]), save_on_train_epoch_end=True),
            Preview(cache, config), Export(config, folder / "checkpoint"),
            WeightAveraging(use_buffers=False, multi_avg_fn=averaging(float(settings["ema"]))),
            Narrate(settings, progress),
        ],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False)
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=str(last) if resume else None, weights_only=True)
    except SystemExit as stop:
        # Lightning answers Ctrl-C with exit(1) and leaves the signal ignored.
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stop
    except torch.OutOfMemoryError as error:
        raise ScidiffError("The GPU ran out of memory.", f"Try trainer.batch={int(settings['batch']) // 2}.") from error
    return folder / "checkpoint"


def averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """The running average a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) at update n.

    The rising d forgets the first weights of a short run. All tensors go in one call: one call each would cost more
    than the step of a small network.
    """
    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        torch._foreach_lerp_(list(averaged), list(current), 1.0 - min(decay, (1.0 + n) / (10.0 + n)))

    return update


def check(settings: Mapping[str, Any]) -> None:
    """UsageError where no training can come of these settings."""
    for key in ("max_steps", "batch"):
        if int(settings[key]) <= 0:
            raise UsageError(f"trainer.{key} must be above 0, not {settings[key]}.")
    if settings.get("optimizer", "adamw") not in OPTIMIZERS:
        raise UsageError(f"There is no optimizer {settings['optimizer']!r}.",
                         nearest(str(settings["optimizer"]), OPTIMIZERS))
    _accelerator(settings)


def _accelerator(settings: Mapping[str, Any]) -> str:
    wanted = str(settings.get("accelerator", "auto"))
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UsageError("Training is set to a GPU, but no CUDA GPU is visible.",
                         "Use trainer=cpu, and leave device out.")
    return wanted


def _loggers(config: dict[str, Any], folder: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    name = (config.get("logger") or {}).get("name", "csv")
    if name == "none":
        return False
    # A resumed run writes beside its earlier log, never over it.
    version = "log" if not (folder / "log").exists() else f"log_{1 + sum(1 for _ in folder.glob('log*'))}"
    csv = CSVLogger(folder, name="", version=version, flush_logs_every_n_steps=50)
    return [csv, TensorBoardLogger(folder, name="", version="tensorboard")] if name == "tensorboard" else csv


def _quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in ("does not have many workers", "litmodels", "LeafSpec", "Checkpoint directory", "tensorboardX"):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
