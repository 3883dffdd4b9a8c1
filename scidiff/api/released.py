"""`copy` of a weight file that the authors of a method released: from their format to a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scidiff.api.settings import Outcome, Progress
from scidiff.core.errors import UsageError, nearest

_SOURCES = ("root", "path")


def copy_released(file: str | Path, folder: str | Path, data: Mapping[str, str] | None = None, force: bool = False,
                  progress: Progress | None = None) -> Outcome:
    """Writes the checkpoint that a released GDSS file describes; nothing in the file is ever run.

    data: {"root": folder of the data set's own files} or {"path": a file of graphs or molecules} gives the sizes of
    samples; without it they are those of the published training split, where the set is known. force: replace a
    checkpoint that is there.
    """
    from scidiff.store import checkpoint, gdss, released
    from scidiff.store.model import assemble

    source, target = Path(file).expanduser(), Path(folder).expanduser()
    _free(target, force)
    if progress is not None:
        progress("Reading weights", 0, None)
    made = gdss.convert(released.read(source), source.name)
    options = made.config["domain"]["options"]
    told = "those of the published training split" if options["sizes"] else "any up to the largest; the file tells none"
    if data:
        sizes = _sizes(made.config["domain"], made.config["data"]["name"], data, progress)
        options["sizes"] = made.config["statistics"]["sizes"] = sizes
        told = f"those of {sum(sizes):,} objects read from data.{next(iter(data))}"
    assemble(made.config, made.weights)  # weights that do not fit their network are found before anything is written
    text = gdss.card(made.config, made.weights, made.data, source.name, made.averaged, told)
    checkpoint.save(target, made.weights, made.config, text)
    count = sum(value.numel() for value in made.weights.values())
    return Outcome(target, summary={"model": made.config["experiment"], "parameters": f"{count:,}", "sizes": told,
                                    "card": str(target / checkpoint.CARD)})


def _sizes(about: Mapping[str, Any], name: str, data: Mapping[str, str], progress: Progress | None) -> list[int]:
    """The histogram of sizes of a data set, as the domain counts it."""
    from scidiff.domains import load_domain
    from scidiff.store import cards
    from scidiff.store.fetch import provide

    for key in data:
        if key not in _SOURCES:
            raise UsageError(f"'copy' of a weight file has no setting 'data.{key}'.",
                             nearest(f"data.{key}", [f"data.{k}" for k in _SOURCES]))
    if len(data) > 1:
        raise UsageError("The sizes of samples come from one place.", "Give data.root or data.path.")
    options = {**about["options"], "sizes": []}
    domain = load_domain(about["name"], options)
    if "path" in data:
        place = Path(data["path"]).expanduser()
        records = domain.read(place).require(place)
    else:
        found = provide(cards.find(name), data["root"], progress)
        records = domain.dataset(found.files, found.reader, found.options, "train").require(data["root"])
    return [int(n) for n in domain.fit(records.objects)[1]["sizes"]]


def _free(target: Path, force: bool) -> None:
    """UsageError where something stands in the way that may not be replaced."""
    from scidiff.store.checkpoint import CONFIG, WEIGHTS

    if not target.exists():
        return
    ours = target.is_dir() and (target / CONFIG).is_file() and (target / WEIGHTS).is_file()
    empty = target.is_dir() and not any(target.iterdir())
    if not empty and not (ours and force):
        raise UsageError(f"{target} is already there.",
                         "Replace it with --force." if ours else "Name a folder that does not exist yet.")
