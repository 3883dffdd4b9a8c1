"""Data sets of volumes: which file belongs to which subject, which subject to which part, and slices to train on.

A card's layout names the readers here and says, under `options`,

    modality    CT or MR
    subjects    {part: {subject: [file, ...]}}; parts are train, valid, test, and others by name ("ood": another
                distribution than the prior was made for)
    evaluated   {file: [first, last + 1]}: the slices that published figures are about
    contrasts   {contrast: [file, ...]} of MR
    frame, slices    as for `nifti.read`

A subject belongs to one part alone: neighbouring slices of a person are almost the same picture, so a split by slices
or files would test on what was trained. Files of subjects that may be the same person under two names stay out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.domains.base import Records
from scidiff.domains.medical import measurements, nifti, phantom
from scidiff.domains.medical.intensity import CT, Scale, scale_for
from scidiff.domains.medical.volume import Volume, at_size

Subjects = Mapping[str, Mapping[str, Sequence[str]]]
VOLUME_OPTIONS = ("modality", "subjects", "evaluated", "contrasts", "frame", "slices", "central")
PHANTOM_OPTIONS = ("size", "spacing", "finer", "subjects")


def dataset(files: Mapping[str, Path], reader: str, options: Mapping[str, Any], split: str | None = None,
            limit: int | None = None) -> Records:
    """Records of a data set as its card lays it out: `Volume` objects, or `KSpace` ones where that was measured.

    reader: "volumes", "phantom" or "kspace". options may add `central=True`: the evaluated slices alone.
    """
    if reader not in READERS:
        raise UsageError(f"There is no reader of medical data named {reader!r}.", nearest(reader, READERS))
    return READERS[reader](files, options, split, limit)


def check_subjects(subjects: Subjects, name: str = "the data set") -> None:
    """ScidiffError where a subject or a file stands in two places."""
    for kind, entries in (("subject", [(s, part) for part, group in subjects.items() for s in group]),
                          ("file", [(f, s) for group in subjects.values() for s, fs in group.items() for f in fs])):
        seen: dict[str, str] = {}
        for entry, place in entries:
            if entry in seen:
                raise ScidiffError(f"The {kind} {entry} of {name} stands in {seen[entry]} and in {place}, so the parts "
                                   "are not independent.")
            seen[entry] = place


def volumes(files: Mapping[str, Path], options: Mapping[str, Any], split: str | None = None,
            limit: int | None = None) -> Records:
    """The volumes of one part, or of all, named subject/file."""
    _known(options, VOLUME_OPTIONS)
    subjects: Subjects = options.get("subjects") or {"test": {Path(file).stem: [file] for file in files}}
    check_subjects(subjects)
    contrast = {file: name for name, group in (options.get("contrasts") or {}).items() for file in group}
    found, names = [], []
    for subject, file in _part(subjects, split)[:limit]:
        name = f"{subject}/{file.removesuffix('.gz').removesuffix('.nii')}"
        volume = nifti.read(files[file], options.get("frame"), options.get("slices", "auto"),
                            str(options.get("modality", "")))
        if options.get("central") and (shown := (options.get("evaluated") or {}).get(file)):
            volume = volume.cut(int(shown[0]), int(shown[1]))
        found.append(replace(volume, name=name, contrast=contrast.get(file, "")))
        names.append(name)
    return Records(found, names)


def phantoms(files: Mapping[str, Path], options: Mapping[str, Any], split: str | None = None,
             limit: int | None = None) -> Records:
    """Chest phantoms, a seed each: subjects {part: {name: seed}}."""
    _known(options, PHANTOM_OPTIONS)
    parts: Mapping[str, Mapping[str, int]] = options.get("subjects") or {"test": {"chest0": 0}}
    check_subjects({part: {name: [str(seed)] for name, seed in group.items()} for part, group in parts.items()})
    made = {k: options[k] for k in ("size", "spacing", "finer") if k in options}
    chosen = [(name, int(seed)) for part in _wanted(parts, split) for name, seed in parts[part].items()][:limit]
    return Records([phantom.chest(seed).volume(**made, name=name) for name, seed in chosen], [n for n, _ in chosen])


def kspaces(files: Mapping[str, Path], options: Mapping[str, Any], split: str | None = None,
            limit: int | None = None) -> Records:
    """Measured k-space, one object a file."""
    _known(options, ("axes", "centre"))
    chosen = list(files.items())[:limit]
    return Records([measurements.read_kspace(path, **options) for _, path in chosen],
                   [Path(name).stem for name, _ in chosen])


READERS = {"volumes": volumes, "phantom": phantoms, "kspace": kspaces}


def _known(options: Mapping[str, Any], names: Sequence[str]) -> None:
    for key in options:
        if key not in names:
            raise UsageError(f"The reader of this data set has no option {key!r}.", nearest(key, names))


def _wanted(subjects: Mapping[str, Any], split: str | None) -> list[str]:
    if split is not None and split not in subjects:
        raise UsageError(f"The data set has no part {split!r}.", nearest(split, subjects))
    return [split] if split is not None else list(subjects)


def _part(subjects: Subjects, split: str | None) -> list[tuple[str, str]]:
    """(subject, file) in the order of the card."""
    return [(subject, file) for part in _wanted(subjects, split) for subject, files in subjects[part].items()
            for file in files]


# -- slices to train on


@dataclass(frozen=True, eq=False)
class Slices:
    """x float32 [N, 1, S, S] in the range of the prior; which volume [N] and which of its slices [N] each one is."""

    x: Tensor
    volume: Tensor
    place: Tensor
    names: list[str]
    scales: list[Scale]
    spacing: list[tuple[float, float, float]]

    def __len__(self) -> int:
        return len(self.x)


def slices(found: Iterable[Volume], size: int = 128, scale: str = "ct", least: float = 0.05) -> Slices:
    """Slices of size x size of some volumes, each volume on its own scale (see `intensity.scale_for`).

    Volumes are padded to squares with air and averaged over equal areas (`volume.at_size`) before the scale is taken.
    Slices whose largest value stays below `least` hold air only and are left out.
    """
    parts, volume, place, names, scales, spacing = [], [], [], [], [], []
    for k, one in enumerate(found):
        small = at_size(one, size, fill=CT.low if one.modality == "CT" else 0.0)
        own = scale_for(small.data, one.modality, scale)
        x = own.encode(small.data)
        kept = (x.abs().flatten(1).amax(1) > least).nonzero().flatten()
        parts.append(x[kept])
        volume.append(torch.full_like(kept, k))
        place.append(kept)
        names.append(one.name)
        scales.append(own)
        spacing.append(small.spacing)
    if not parts:
        raise UsageError("There are no volumes to take slices from.")
    return Slices(torch.cat(parts), torch.cat(volume), torch.cat(place), names, scales, spacing)
