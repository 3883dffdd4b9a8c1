"""Slices and volumes from the files and folders that people have, and samples as NIfTI files.

A run folder holds samples.csv with a row a sample, slices.png, and slices/s0007.nii.gz: a slice (or block) with its
voxels in mm, CT in HU, MR on the scale of its prior. A file of one slice is read as it is; whole volumes (NIfTI, a
DICOM series, a NumPy array [slices, rows, columns]) are cut to the slices of the prior. Of a folder of four files or
more the last one is left for testing. Files that do not say what they are hold CT where values reach below -500.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.base import Records, Rejection, Samples
from scidiff.domains.medical import dicom, nifti
from scidiff.domains.medical.codec import cut
from scidiff.domains.medical.volume import Volume, centred_affine, checked_values
from scidiff.store import atomic

SPLIT = ("train", "test")
SLICES = "slices"
IN_HU = -500.0  # magnitudes are never below it, and air in HU is
ENOUGH = 4  # files of a folder of which one is left for testing


def read(path: str | Path, size: int, scale: str = "ct", depth: int | None = None, modality: str = "",
         fields: Sequence[float] = (1.0,), split: str | None = None, frame: int | None = None, slices: str = "auto",
         contrast: str = "") -> Records:
    """Native slices of a file or folder; files of a folder that cannot be used are rejected with a reason."""
    place = Path(path).expanduser()
    if not place.exists():
        raise UsageError(f"{place} does not exist.")
    if split not in (None, *SPLIT):
        raise UsageError(f"Files of one's own have the parts {' and '.join(SPLIT)}, not {split!r}.")
    found, rejected = [], []
    files = _files(place)
    several = len(files) > 1
    for file in _part(files, split):
        try:
            one = _volume(file, modality, frame, slices)
            found.append(replace(one, modality=one.modality or _guessed(one), contrast=contrast, name=_stem(file)))
        except ScidiffError as error:
            if not several:
                raise
            rejected.append(Rejection(file.name, "", str(error)))
    objects: list[Volume] = []
    for one in found:
        whole = tuple(one.data.shape[2:]) == (size, size) and len(one.data) == (depth or 1)
        objects += [replace(one, source=None)] if whole else cut([one], size, scale, depth, fields)
    return Records(objects, [o.name for o in objects], rejected)


def _files(place: Path) -> list[Path]:
    """The volumes of a folder: its NIfTI and NumPy files, or else the folder itself as a DICOM series."""
    if place.is_file():
        return [place]
    place = place / SLICES if (place / SLICES).is_dir() else place
    known = (".nii", ".nii.gz", ".npy")
    found = sorted(f for f in place.iterdir() if f.name.lower().endswith(known) and not f.name.startswith("."))
    return found or [place]


def _part(files: list[Path], split: str | None) -> list[Path]:
    if split is None or len(files) < ENOUGH:
        return files
    return files[-1:] if split == "test" else files[:-1]


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".npy")


def _volume(file: Path, modality: str, frame: int | None, slices: str) -> Volume:
    if file.is_dir():
        return dicom.read(file, frame=frame)
    if file.suffix.lower() == ".npy":
        return _array(file, modality)
    return nifti.read(file, frame, slices, modality, flat=True)


def _guessed(one: Volume) -> str:
    return "CT" if not one.data.is_complex() and float(one.data.min()) < IN_HU else "MR"


def _array(file: Path, modality: str) -> Volume:
    """[slices, rows, columns] or one slice [rows, columns], in voxels of 1 mm."""
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        told = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{file} cannot be read as a NumPy array ({told}).") from error
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise UsageError(f"{file} holds no real numbers.")
    array = checked_values((array[None] if array.ndim == 2 else array).astype(np.float32), str(file), flat=True)
    data = torch.from_numpy(np.ascontiguousarray(array))[:, None]
    return Volume(data, centred_affine(array.shape, (1.0, 1.0, 1.0)), modality, _stem(file))


def write(samples: Samples, folder: Path) -> list[Path]:
    """samples.csv, slices/<id>.nii.gz of every sample and slices.png; each appears whole or not at all."""
    written = [atomic.write_table(folder / "samples.csv", samples.table())]
    inside = atomic.ensure_folder(folder / SLICES)
    written += [nifti.write(one, inside / f"{name}.nii.gz")
                for name, one in zip(samples.ids, samples.objects, strict=True)]
    for picture in list(samples.domain.view(samples.objects, samples.verdicts, samples.ids).values())[:1]:
        if isinstance(picture, bytes):
            written.append(atomic.write_bytes(folder / f"{SLICES}.png", picture))
    return written
