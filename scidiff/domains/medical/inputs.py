"""The volume that somebody names: a NIfTI file, a folder of DICOM images, or a medical data set of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scidiff.core.errors import UsageError, nearest
from scidiff.domains.medical import dicom, nifti, sets
from scidiff.domains.medical.ask import Ask
from scidiff.domains.medical.phantom import Phantom, chest
from scidiff.domains.medical.volume import Volume
from scidiff.store import cards, fetch

DOMAIN = "medical"


def volume_of(ask: Ask) -> tuple[Volume, Phantom | None]:
    """The volume, and the phantom that it is a picture of, if any."""
    given = str(ask.input)
    place = Path(given).expanduser()
    options = {"series": ask.reading.get("series"), "frame": ask.frame}
    plane, modality = str(ask.reading.get("plane") or "auto"), str(ask.reading.get("modality") or "")
    if place.is_dir():
        return dicom.read(given, **options), None
    if place.is_file() and not nifti.is_nifti(place):
        if place.suffix.lower() in (".npy", ".yaml", ".yml"):
            raise UsageError(f"{given} is no volume.", "Measurements are named with --sinogram or --kspace.")
        return dicom.read(given, **options), None
    if place.exists() or nifti.is_nifti(place):
        return nifti.read(given, ask.frame, plane, modality, ask.force), None
    if given not in cards.names() or cards.find(given).domain != DOMAIN:
        known = [n for n in cards.names() if cards.find(n).domain == DOMAIN]
        raise UsageError(f"There is no file, folder or medical data set {given!r}.", nearest(given, known))
    return _of_set(given, ask)


def _of_set(name: str, ask: Ask) -> tuple[Volume, Phantom | None]:
    provided = fetch.provide(cards.find(name))
    options, reading = dict(provided.options), ask.reading
    split, number = str(reading.get("split") or "test"), int(reading.get("number") or 0)
    if provided.reader == "phantom":
        return _phantom(options, split, number, reading)
    if provided.reader == "kspace":
        file = next(iter(provided.files.values()))
        raise UsageError(f"{name} is a measurement, not a volume.", f"Name its file: --kspace {file}")
    if ask.frame is not None:
        options["frame"] = ask.frame
    options = {k: v for k, v in options.items() if k in sets.VOLUME_OPTIONS}
    found = sets.dataset(provided.files, provided.reader, options, split, number + 1)
    if number >= len(found):
        raise UsageError(f"The part {split!r} of {name} has {len(found)} volumes, so there is no number {number}.")
    return found.objects[number], None


def _phantom(options: Mapping[str, Any], split: str, number: int,
             reading: Mapping[str, Any]) -> tuple[Volume, Phantom]:
    parts = options.get("subjects") or {"test": {"chest0": 0}}
    if split not in parts:
        raise UsageError(f"The data set has no part {split!r}.", nearest(split, parts))
    subjects = list(parts[split].items())
    if number >= len(subjects):
        raise UsageError(f"The part {split!r} has {len(subjects)} phantoms, so there is no number {number}.")
    name, seed = subjects[number]
    wanted = {k: reading.get(k) or options.get(k) for k in ("size", "spacing", "finer")}
    made: dict[str, Any] = {k: value for k, value in wanted.items() if value is not None}
    phantom = chest(int(seed))
    return phantom.volume(**made, name=name), phantom


def cut_of(volume: Volume, cut: Any) -> Volume:
    """The slices [first, last + 1] of a volume, or all of them."""
    if cut is None:
        return volume
    if isinstance(cut, (int, float, str)) or len(cut) != 2:
        raise UsageError(f"reading.cut names a first slice and the one after the last, not {cut}.",
                         "Write reading.cut=[12,36].")
    return volume.cut(int(cut[0]), int(cut[1]))
