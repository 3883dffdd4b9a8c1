"""Volumes from a DICOM series, one file a slice, and back as a derived series.

Reading. Files are grouped by SeriesInstanceUID and sorted by the projection of ImagePositionPatient on the normal of
the slices, n = row direction x column direction. With positions p_0 .. p_{N-1} in that order, the world of DICOM (left,
back, head) is turned into that of `volume` (right, front, head):

    column axis   ImageOrientationPatient[0:3] PixelSpacing[1]
    row axis      ImageOrientationPatient[3:6] PixelSpacing[0]
    slice axis    (p_{N-1} - p_0) / (N - 1)
    value         RescaleSlope stored + RescaleIntercept

SliceThickness and SpacingBetweenSlices are not believed: slices may overlap or have gaps between them. Refused, each
with a sentence: several series, images that do not belong together, slices that are missing or doubled, a tilted
gantry, colours, and files with several frames.

Writing. Every slice keeps the attributes of the patient, the study, the equipment and the place; new are the UIDs of
series and images, the pixels (unsigned 16 bits with their own slope and intercept) and what says where they come from:
ImageType DERIVED\\SECONDARY, DerivationDescription, SourceImageSequence. What describes the old pixels (padding,
overlays, icons, lookup tables, signatures) goes.
"""

from __future__ import annotations

import copy
import datetime
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scidiff import __version__
from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.domains.medical.volume import PLANES, Layout, Volume, checked_values, closest, layout
from scidiff.store import atomic

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TILT = 0.2  # degrees between the stack of slices and their normal that rounding may make
UNEVEN = 0.05  # of the step between slices that single steps may differ from it
STORAGE = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
OF_OLD_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "PixelPaddingValue", "PixelPaddingRangeLimit",
                 "SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence", "VOILUTSequence",
                 "ModalityLUTSequence", "DigitalSignaturesSequence", "MACParametersSequence")
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class DicomSource:
    """Headers of the slices, in the order of the tensor's, and how their array [column, row, slice] stands in it."""

    headers: tuple[Any, ...]
    affine: np.ndarray
    layout: Layout
    shape: tuple[int, ...]

    @property
    def tensor_affine(self) -> np.ndarray:
        return self.layout.affine(self.affine, self.shape)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise MissingLibrary("pydicom", "A DICOM series", "pip install pydicom") from error
    return pydicom


def read(folder: str | Path, series: str | int | None = None, frame: int | None = None) -> Volume:
    """The volume of a series in a folder and the folders below it.

    series: the number, UID or end of the UID of one of several series. frame: which of several images at every
    position.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        raise UsageError(f"{root} is one 2D image of a series.", "Name the folder that holds all of its slices.")
    if not root.is_dir():
        raise UsageError(f"{root} does not exist.")
    found = _images(root)
    if not found:
        raise UsageError(f"{folder} holds no DICOM images.")
    chosen = _one_series(found, series, str(folder))
    _belong_together([header for header, _ in chosen], str(folder))
    ordered = _one_frame(_by_position(chosen), frame, str(folder))
    headers = [header for header, _ in ordered]
    step = _even_step(headers, str(folder))
    affine = _affine(headers, step)
    array = np.stack([_pixels(header, file) for header, file in ordered], -1)
    pose = layout(affine, _plane(affine))
    source = DicomSource(tuple(reversed(headers) if pose.flips[0] else headers), affine, pose, array.shape)
    data = pose.to_tensor(checked_values(array, str(folder)))
    return Volume(data, source.tensor_affine, str(headers[0].get("Modality", "")), str(folder), source)


# -- which files


def _images(root: Path) -> list[tuple[Dataset, Path]]:
    """(header, file) of every image below a folder; other files are passed over."""
    pydicom = _pydicom()
    found = []
    for file in sorted(f for f in root.rglob("*") if f.is_file() and not f.name.startswith(".")):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError):
            continue
        if "Rows" in header and "Columns" in header:
            found.append((header, file))
    return found


def _one_series(found: list[tuple[Dataset, Path]], wanted: str | int | None, name: str) -> list[tuple[Dataset, Path]]:
    groups: dict[str, list[tuple[Dataset, Path]]] = {}
    for header, file in found:
        groups.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((header, file))
    if wanted is not None:
        text = str(wanted)
        fitting = [uid for uid, g in groups.items() if text in (uid, str(g[0][0].get("SeriesNumber", "")))]
        fitting = fitting or [uid for uid in groups if uid.endswith(text)]
        if len(fitting) == 1:
            return groups[fitting[0]]
        raise UsageError(f"{name} has {'no' if not fitting else 'more than one'} series {text!r}.", _listed(groups))
    if len(groups) > 1:
        raise UsageError(f"{name} mixes {len(groups)} series.", f"{_listed(groups)} Choose one with series=NUMBER.")
    return next(iter(groups.values()))


def _listed(groups: dict[str, list[tuple[Dataset, Path]]]) -> str:
    rows = [f"{g[0][0].get('SeriesNumber', None) or uid[-12:]} ({g[0][0].get('Modality', '?')}, {len(g)} images, "
            f"{str(g[0][0].get('SeriesDescription', '')) or 'no description'})" for uid, g in groups.items()]
    return f"It holds: {'; '.join(rows[:8])}{'; ...' if len(rows) > 8 else ''}."


def _belong_together(headers: Sequence[Dataset], name: str) -> None:
    """UsageError where images lack a place, are no grey values, or differ in what all slices share."""
    for header in headers:
        frames = int(header.get("NumberOfFrames", None) or 1)
        if frames > 1:
            raise UsageError(f"{name} holds files of {frames} frames each.",
                             "Convert them to NIfTI first (dcm2niix does), or export one file a slice.")
        if int(header.get("SamplesPerPixel", 1)) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
            kind = header.get("PhotometricInterpretation", "of unknown kind")
            raise UsageError(f"{name} holds pictures ({kind}), not measured values.")
        lacking = [k for k, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
                   if header.get(k) is None or len(header[k].value) != n]
        if lacking:
            raise UsageError(f"Images in {name} lack {' and '.join(lacking)}, so nobody knows where they lie.")
        slope = header.get("RescaleSlope", None)
        if (slope is not None and float(slope) == 0.0) or "ModalityLUTSequence" in header:
            raise UsageError(f"The stored values of {name} have no linear scale, so they cannot be turned into units.")
    shared = {
        "size": {(int(h.Rows), int(h.Columns)) for h in headers},
        "modality": {str(h.get("Modality", "")) for h in headers},
        "pixel spacing": {tuple(round(float(v), 5) for v in h.PixelSpacing) for h in headers},
        "orientation": {tuple(round(float(v), 3) + 0.0 for v in h.ImageOrientationPatient) for h in headers},
    }
    for what, values in shared.items():
        if len(values) > 1:
            some = " and ".join(str(value) for value in sorted(values)[:2])
            raise UsageError(f"The images in {name} do not belong together: their {what} differs ({some}).")


# -- places


def _axes(header: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit directions (columns grow, rows grow, normal) in DICOM's world."""
    along = np.array([float(v) for v in header.ImageOrientationPatient])
    row, column = along[:3] / np.linalg.norm(along[:3]), along[3:] / np.linalg.norm(along[3:])
    return row, column, np.cross(row, column)


def _position(header: Dataset) -> np.ndarray:
    return np.array([float(v) for v in header.ImagePositionPatient])


def _depth(header: Dataset) -> float:
    return float(_position(header) @ _axes(header)[2])


def _by_position(chosen: list[tuple[Dataset, Path]]) -> list[tuple[Dataset, Path]]:
    return sorted(chosen, key=lambda one: (round(_depth(one[0]), 3), int(one[0].get("InstanceNumber", None) or 0)))


def _one_frame(ordered: list[tuple[Dataset, Path]], frame: int | None, name: str) -> list[tuple[Dataset, Path]]:
    """One image a position, out of one or, in a series over time, of equally many."""
    places = Counter(round(_depth(header), 3) for header, _ in ordered)
    counts = set(places.values())
    if counts == {1}:
        if frame not in (None, 0):
            raise UsageError(f"{name} holds one volume, so there is no frame {frame}.")
        return ordered
    if len(counts) > 1:
        place, most = places.most_common(1)[0]
        raise UsageError(f"{name} has {most} images at the position {place:g} mm and {min(counts)} elsewhere.",
                         "Remove what does not belong to the series.")
    frames = counts.pop()
    if frame is None:
        raise UsageError(f"{name} is a series of {frames} volumes: every position has {frames} images.",
                         f"Choose one with --frame 0 to --frame {frames - 1}.")
    if not 0 <= frame < frames:
        raise UsageError(f"{name} has frames 0 to {frames - 1}, so there is no frame {frame}.")
    return ordered[frame::frames]


def _even_step(headers: Sequence[Dataset], name: str) -> np.ndarray:
    """The vector from slice to slice; UsageError for one slice, a tilted gantry, missing slices or uneven steps."""
    if len(headers) < 2:
        raise UsageError(f"{name} holds a 2D image: one slice is no volume.")
    places = np.array([_position(header) for header in headers])
    normal = _axes(headers[0])[2]
    along = places[-1] - places[0]
    lean = math.degrees(math.atan2(float(np.linalg.norm(along - (along @ normal) * normal)), float(along @ normal)))
    stated = max(abs(float(header.get("GantryDetectorTilt", None) or 0.0)) for header in headers)
    if lean > TILT or stated > TILT:
        by = (f"{lean:.1f} degrees: its slices do not stand on each other" if lean > TILT
              else f"{stated:.1f} degrees, says its header")
        raise UsageError(f"The gantry of {name} was tilted by {by}.",
                         "Convert it to NIfTI with a tool that straightens it (dcm2niix does), and name that file.")
    steps = np.diff(places @ normal)
    usual = float(np.median(steps))
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > UNEVEN * usual:
        missing = round(float(steps[worst]) / usual) - 1
        even = missing > 0 and abs(steps[worst] / (missing + 1) - usual) <= UNEVEN * usual
        what = f"{missing} slice{'s are' if missing > 1 else ' is'} missing" if even else "the steps are uneven"
        raise UsageError(f"In {name} {what}: {steps[worst]:.3g} mm lie between slices {worst + 1} and {worst + 2} of "
                         f"{len(headers)}, {usual:.3g} mm between others.")
    return along / (len(headers) - 1)


def _affine(headers: Sequence[Dataset], step: np.ndarray) -> np.ndarray:
    """(column, row, slice) to right, front and head in mm."""
    row, column, _ = _axes(headers[0])
    down, across = (float(v) for v in headers[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * across, column * down, step], 1)
    affine[:3, 3] = _position(headers[0])
    return TO_RAS @ affine


def _plane(affine: np.ndarray) -> str:
    """The plane of the images as they were taken: slices of the tensor are slices of the series."""
    across = closest(affine)[0][2]
    return next(name for name, axis in PLANES.items() if axis == across)


# -- pixels


def _pixels(header: Dataset, file: Path) -> np.ndarray:
    """Values [column, row] of one slice in its unit, float32."""
    pydicom = _pydicom()
    try:
        stored = pydicom.dcmread(file).pixel_array
    except (RuntimeError, NotImplementedError, ImportError) as error:  # no decoder for this compression
        syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
        raise MissingLibrary("a decoder", f"{file} ({getattr(syntax, 'name', 'unknown compression')})",
                             "pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg") from error
    except (ValueError, AttributeError, KeyError, OSError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(f"The pixels of {file} cannot be read ({reason}).", "Is the file complete?") from error
    slope, intercept = float(header.get("RescaleSlope", None) or 1), float(header.get("RescaleIntercept", None) or 0)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32).T


def _quantised(array: np.ndarray) -> tuple[np.ndarray, str, str]:
    """(uint16, slope, intercept): whole numbers within 65,536 of each other are kept, others rounded to slope / 2.

    The two factors are texts of at most 16 characters, as DICOM stores them, and the numbers are made with just these.
    """
    low, high = float(array.min()), float(array.max())
    intercept = math.floor(low)
    if high - intercept <= 65535 and bool((array == np.rint(array)).all()):
        slope = "1"
    else:
        slope = f"{(high - intercept) / 65535 * (1 + 1e-6):.8e}"
    stored = np.rint((array.astype(np.float64) - intercept) / float(slope))
    return np.clip(stored, 0, 65535).astype(np.uint16), slope, str(intercept)


def write(volume: Volume, folder: str | Path, description: str, derivation: str,
          when: datetime.datetime | None = None) -> Path:
    """Writes a volume that was read from DICOM (or reconstructed like one) as a derived series in a new folder.

    description: SeriesDescription, up to 64 characters; derivation: how the images were made, up to 1,024.
    UsageError where the volume has no DICOM source, other voxels than it, or complex values.
    """
    source, target = volume.source, Path(folder).expanduser()
    if not isinstance(source, DicomSource):
        raise UsageError(f"{volume.name} was not read from DICOM, so there is no patient to write into a series.",
                         "Save it as NIfTI.")
    if volume.data.is_complex() or volume.data.shape[1] != 1:
        raise UsageError(f"{volume.name} is complex or has several channels; a DICOM series holds real values.",
                         "Save its magnitude.")
    if not np.array_equal(volume.affine, source.tensor_affine) or len(volume.data) != len(source.headers):
        raise UsageError(f"{volume.name} has other voxels than the series it came from.", "Save it as NIfTI.")
    if not bool(torch.isfinite(volume.data).all()):
        raise UsageError(f"{volume.name} holds values that are not finite, which DICOM cannot store.")
    array = source.layout.to_file(volume.data.detach().to(torch.float32))
    stored, slope, intercept = _quantised(array)
    order = -1 if source.layout.flips[0] else 1
    pydicom, now = _pydicom(), when or datetime.datetime.now()
    series = pydicom.uid.generate_uid()
    with atomic.writing_folder(target) as temporary:
        for number, header in enumerate(source.headers[::order]):
            one = _derived(header, series, description, derivation, now)
            one.RescaleSlope, one.RescaleIntercept = slope, intercept
            one.PixelData = np.ascontiguousarray(stored[..., number].T).astype("<u2").tobytes()
            one["PixelData"].VR = "OW"
            one.save_as(temporary / f"{number + 1:04d}.dcm", enforce_file_format=True)
    return target


def _derived(header: Dataset, series: str, description: str, derivation: str, now: datetime.datetime) -> Dataset:
    """The header of a slice with a new identity (module docstring)."""
    pydicom = _pydicom()
    one = copy.deepcopy(header)
    for keyword in OF_OLD_PIXELS:
        if keyword in one:
            delattr(one, keyword)
    for tag in [element.tag for element in one if 0x6000 <= element.tag.group <= 0x60FF]:
        del one[tag]
    kind = str(header.get("SOPClassUID", "") or STORAGE.get(str(header.get("Modality", "")), SECONDARY_CAPTURE))
    old = str(header.get("SOPInstanceUID", ""))
    one.SOPClassUID, one.SOPInstanceUID = kind, pydicom.uid.generate_uid()
    one.SeriesInstanceUID = series
    one.SeriesNumber = int(header.get("SeriesNumber", None) or 0) + 9000
    one.SeriesDescription, one.DerivationDescription = description[:64], derivation[:1024]
    one.ImageType = ["DERIVED", "SECONDARY", *list(header.get("ImageType", None) or [])[2:]]
    if old:
        reference = pydicom.dataset.Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = kind, old
        one.SourceImageSequence = pydicom.sequence.Sequence([reference])
    one.InstanceCreationDate = one.ContentDate = one.SeriesDate = now.strftime("%Y%m%d")
    one.InstanceCreationTime = one.ContentTime = one.SeriesTime = now.strftime("%H%M%S")
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = pydicom.uid.PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"SCIDIFF {__version__}"[:16]
    one.file_meta = meta
    return one
