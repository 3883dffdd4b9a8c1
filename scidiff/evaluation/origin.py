"""Where samples come from: what a run folder says of them, so that they are judged with the model's own vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scidiff.core.errors import ScidiffError
from scidiff.store import atomic, checkpoint


def origin_of(place: Path) -> dict[str, Any]:
    """What a run folder says of its samples: model, domain options, data, command; empty for other files.

    `checkpoint` is the folder of the model, where it is still there and unchanged.
    """
    if not (place / "config.yaml").is_file() or not (place / "environment.json").is_file():
        return {}
    config = atomic.read_yaml(place / "config.yaml", "run config")
    if "trainer" in config:
        return {"trained": True}
    source, model = config.get("from") or (config.get("domain") or {}).get("model"), config.get("model")
    if not source or not model:
        return {}
    try:
        folder = checkpoint.find(source)
        unchanged = checkpoint.read_config(folder).get("weights_sha256") == model.get("weights_sha256")
    except ScidiffError:  # the run says all that is needed of a model that is gone
        folder, unchanged = None, False
    command = (place / "command.txt").read_text(encoding="utf-8").strip() if (place / "command.txt").is_file() else ""
    finished = atomic.read_json(place / "finished") if (place / "finished").is_file() else {}
    meta = {k: v for k, v in finished.items() if k not in ("at", "files")}
    return {"model": model.get("experiment"), "options": (model.get("domain") or {}).get("options"),
            "data": (model.get("data") or {}).get("name"), "seed": config.get("seed", 0), "command": command,
            "checkpoint": folder if unchanged else None, "meta": meta}
