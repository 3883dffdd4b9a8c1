"""Checkpoints that cannot run code: safetensors weights beside a YAML config.

A checkpoint is a folder

    model.safetensors   weights (EMA), stored as float32, float16 or bfloat16, loaded as float32
    config.yaml         format: 1, experiment, alias, domain {name, ...}, spec, backbone, denoiser, sampling,
                        statistics, weights_sha256
    card.md             what it was trained on and how, its metrics with their commands, its limits
    evaluation.json     metrics as numbers (optional)

written as a whole or not at all. `load` verifies the format number, the completeness and the hash of the
weights, and that every target in the config is one that `scidiff.store.targets` permits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError, nearest
from scidiff.store import atomic, targets
from scidiff.store.locate import PACKAGE, shared_folder

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
WEIGHTS, CONFIG, CARD, EVALUATION = "model.safetensors", "config.yaml", "card.md", "evaluation.json"
PRETRAINED = PACKAGE / "pretrained"
_STORAGE = ("float32", "float16", "bfloat16")
_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: its config, its weights on the CPU (float32 or float64), its folder."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    folder: Path

    @property
    def experiment(self) -> str:
        return str(self.config.get("experiment", self.folder.name))

    @property
    def domain(self) -> str:
        return _domain(self.config)

    @property
    def card(self) -> str:
        file = self.folder / CARD
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @property
    def evaluation(self) -> dict[str, Any]:
        file = self.folder / EVALUATION
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@dataclass(frozen=True)
class Shipped:
    """One line of `scidiff list models`."""

    experiment: str
    alias: str
    domain: str
    megabytes: float
    summary: str
    folder: Path


def save(
    folder: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    card: str,
    *,
    evaluation: Mapping[str, Any] | None = None,
    storage: str = "float32",
) -> Path:
    """Writes the whole checkpoint folder, replacing an older one; `storage` is the type of the weights."""
    data = _pack(weights, storage)
    full = {"format": FORMAT, **config}
    full["format"] = FORMAT
    full["weights_sha256"] = hashlib.sha256(data).hexdigest()
    with atomic.writing_folder(folder) as new:
        (new / WEIGHTS).write_bytes(data)
        (new / CONFIG).write_text(atomic.dump_yaml(full), encoding="utf-8")
        (new / CARD).write_text(card.rstrip() + "\n", encoding="utf-8")
        if evaluation is not None:
            atomic.write_json(new / EVALUATION, evaluation)
    return Path(folder)


def amend(folder: str | os.PathLike[str], changes: Mapping[str, Any], note: str = "") -> Path:
    """Writes a checkpoint anew with some settings of its config replaced, and a note at the end of its card."""
    place = Path(folder)
    stored = load(place)
    card = (place / CARD).read_text(encoding="utf-8")
    evaluation = atomic.read_json(place / EVALUATION) if (place / EVALUATION).is_file() else None
    config = {**stored.config, **changes}
    return save(place, stored.weights, config, f"{card.rstrip()}\n\n{note}", evaluation=evaluation)


def load(folder_or_file: str | os.PathLike[str], *, extra_prefixes: Iterable[str] = ()) -> Checkpoint:
    """Reads and verifies a checkpoint folder (or a file in one); a defect is one `ScidiffError` sentence."""
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    place = Path(folder_or_file).expanduser()
    if not place.exists():
        raise ScidiffError(f"The checkpoint {place} does not exist.")
    if place.is_file() and place.name not in (WEIGHTS, CONFIG, CARD, EVALUATION):
        _refuse_pickle(place.read_bytes()[:16], place)
        raise ScidiffError(
            f"{place} is not a checkpoint.", f"Name the folder that holds {WEIGHTS} and {CONFIG}."
        )
    folder = place.parent if place.is_file() else place
    config = read_config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise ScidiffError(f"The checkpoint {folder} has no {WEIGHTS}.")
    data = file.read_bytes()
    _refuse_pickle(data[:16], file)
    _refuse_truncated(data, file)
    expected = config.get("weights_sha256")
    if not isinstance(expected, str):
        raise ScidiffError(f"{folder / CONFIG} has no weights_sha256, so its weights cannot be verified.")
    if hashlib.sha256(data).hexdigest() != expected.lower():
        raise ScidiffError(
            f"The weights {file} do not match the hash in {CONFIG}: one of them was changed or damaged.",
            "Fetch or copy the checkpoint again.",
        )
    try:
        stored = parse(data)
    except SafetensorError as error:
        raise ScidiffError(f"{file} is not a valid safetensors file ({error}).") from error
    targets.check(config, extra_prefixes)
    return Checkpoint(config, {name: _widen(value) for name, value in stored.items()}, folder)


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of a checkpoint folder, its format number verified; loads no weights and no torch."""
    place = Path(folder)
    if not place.is_dir():
        raise ScidiffError(f"The checkpoint {place} does not exist.")
    if not (place / CONFIG).is_file():
        raise ScidiffError(f"The checkpoint {place} has no {CONFIG}.")
    config = atomic.read_yaml(place / CONFIG, "checkpoint config")
    if config.get("format") != FORMAT:
        raise ScidiffError(
            f"The checkpoint {place} has format {config.get('format')!r}; this scidiff reads {FORMAT}.",
            "Update scidiff." if isinstance(config.get("format"), int) else "",
        )
    return config


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder that is meant: shipped name or alias, run, folder, file, or hub `org/name`."""
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    looks_like_path = path.is_absolute() or text.startswith((".", "~")) or text.endswith(os.sep)
    marked = any((path / name).exists() for name in (CONFIG, WEIGHTS, "checkpoint"))
    if path.exists() and (path.is_file() or marked or looks_like_path or os.sep in text):
        return _folder_at(path)
    models = shipped()
    wanted = text.replace("-", "_").lower()
    for model in models:
        if wanted in (model.experiment.lower(), model.alias.replace("-", "_").lower()):
            return model.folder
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+", text)
        and not looks_like_path
        and not Path(text.split("/")[0]).is_dir()
    ):
        return _from_hub(text)
    if looks_like_path or "/" in text or os.sep in text:
        raise UsageError(f"The checkpoint or run {text} does not exist.")
    recipes = _recipes()
    if recipe := recipes.get(wanted):
        raise UsageError(
            f"The weights of {recipe!r} are not part of the package.",
            f"Train them with 'scidiff train {recipe}', then name the run's folder with --from.",
        )
    names = [m.experiment for m in models] + [m.alias for m in models if m.alias] + list(recipes)
    raise UsageError(f"There is no model named {text!r}.", nearest(text, names))


def shipped(root: str | os.PathLike[str] | None = None) -> list[Shipped]:
    """The models that the package carries, by name."""
    found = []
    for file in sorted(Path(root or PRETRAINED).glob(f"*/{CONFIG}")):
        config = read_config(file.parent)
        size = sum(part.stat().st_size for part in file.parent.iterdir() if part.is_file())
        found.append(
            Shipped(
                experiment=str(config.get("experiment", file.parent.name)),
                alias=str(config.get("alias") or ""),
                domain=_domain(config),
                megabytes=round(size / 1e6, 2),
                summary=str(config.get("summary") or _first_sentence(file.parent / CARD)),
                folder=file.parent,
            )
        )
    return found


def _recipes() -> dict[str, str]:
    """Name or alias -> name of every packaged experiment."""
    found = {}
    for file in sorted((shared_folder("conf") / "experiment").glob("*.yaml")):
        alias = str(atomic.read_yaml(file, "experiment").get("alias") or file.stem)
        found |= {alias.replace("-", "_").lower(): file.stem, file.stem.lower(): file.stem}
    return found


def _folder_at(path: Path) -> Path:
    if path.is_file():
        if path.name in (WEIGHTS, CONFIG):
            return path.parent
        _refuse_pickle(path.read_bytes()[:16], path)
        raise UsageError(f"{path} is not a checkpoint.", f"Name a folder that holds {WEIGHTS} and {CONFIG}.")
    if (path / WEIGHTS).is_file():
        return path
    if (path / "checkpoint").is_dir():
        return path / "checkpoint"
    raise UsageError(f"{path} holds neither {WEIGHTS} nor the checkpoint of a training run.")


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            "huggingface_hub", f"Loading {name!r} from the hub", 'pip install "scidiff[hub]"'
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG, CARD, EVALUATION]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        known = [m.experiment for m in shipped()]
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ScidiffError(
            f"The hub gave no model {name!r} ({first}).", f"Shipped models: {', '.join(known)}."
        ) from error


def _pack(weights: Mapping[str, Tensor], storage: str) -> bytes:
    import torch
    from safetensors.torch import save as serialise

    if storage not in _STORAGE:
        raise UsageError(f"Weights cannot be stored as {storage!r}.", nearest(storage, _STORAGE))
    stored = {}
    for name, value in weights.items():
        kept = value.detach().to("cpu")
        if storage != "float32" and kept.dtype in (torch.float32, torch.float64):
            narrow = kept.to(getattr(torch, storage))
            if not torch.equal(torch.isfinite(narrow), torch.isfinite(kept)):
                raise ScidiffError(
                    f"The weight {name!r} overflows in {storage}.", "Store it as bfloat16 or float32."
                )
            kept = narrow
        stored[name] = kept.clone().contiguous()  # safetensors refuses tensors that share memory
    return serialise(stored)


def _widen(value: Tensor) -> Tensor:
    import torch

    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _refuse_pickle(head: bytes, file: Path) -> None:
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return
    if head[:1] == _PICKLE or head[:4] == _ZIP:
        raise ScidiffError(
            f"{file} is a pickle, which could run code when it is opened; scidiff does not load such files.",
            "Ask its author for safetensors; weights released with GDSS are converted by: scidiff copy FILE.pth OUT.",
        )


def _refuse_truncated(data: bytes, file: Path) -> None:
    if len(data) < 8:
        raise ScidiffError(
            f"{file} is truncated: it has {len(data)} bytes.", "Fetch or copy the checkpoint again."
        )
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{":
        raise ScidiffError(f"{file} is not a safetensors file.")
    missing = ScidiffError(f"{file} is truncated: its end is missing.", "Fetch or copy the checkpoint again.")
    if 8 + length > len(data):
        raise missing
    try:
        header = json.loads(data[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        complete = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ScidiffError(f"{file} is not a valid safetensors file: its header is damaged.") from error
    if complete > len(data):
        raise missing


def _domain(config: Mapping[str, Any]) -> str:
    domain = config.get("domain", "")
    return str(domain.get("name", "") if isinstance(domain, Mapping) else domain)


def _first_sentence(card: Path) -> str:
    if card.is_file():
        for line in card.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith(("#", "---", "|", "<")):
                return line.strip()
    return ""
