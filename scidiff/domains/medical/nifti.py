"""Volumes from and to NIfTI-1 and NIfTI-2 (.nii, .nii.gz, pairs of .hdr and .img).

Reading keeps the file's header and affine. Writing gives back a file whose array has the axes of the one that was read
and whose header is that of the source, byte for byte, sform and qform included however oblique they are, except for

    datatype, bitpix, scl_slope, scl_inter     they describe the stored numbers
    vox_offset, magic                          they describe the file (one file where the source was a pair)
    dim, pixdim[4]                             where one frame was taken out of several
    sform, qform                               where the voxels changed (a cut or averaged volume), their codes kept
    cal_min, cal_max                           the display window, where another quantity is written (`window`)

World coordinates are those of the sform where it has a code, else of the qform; a file with neither says nothing about
its orientation and is refused.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.domains.medical.volume import PLANES, Layout, Volume, checked_affine, checked_values, closest, layout
from scidiff.store import atomic

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

EXTENSIONS = (".nii", ".nii.gz", ".hdr", ".img")
MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}


@dataclass(frozen=True, eq=False)
class NiftiSource:
    """The header of a file as it was read, its affine in its own unit, and how its axes stand in the tensor."""

    header: Any
    affine: np.ndarray
    layout: Layout
    shape: tuple[int, ...]
    stored: tuple[int, ...]  # shape of the whole array, frames of length 1 included
    millimetres: float = 1.0

    @property
    def tensor_affine(self) -> np.ndarray:
        return self.layout.affine(self.affine, self.shape) * _rows(self.millimetres)


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise MissingLibrary("nibabel", "A NIfTI file", "pip install nibabel") from error
    return nibabel


def _rows(factor: float) -> np.ndarray:
    """Multiplies the world coordinates of an affine."""
    return np.array([[factor], [factor], [factor], [1.0]])


def is_nifti(path: str | Path) -> bool:
    return str(path).lower().endswith(EXTENSIONS)


def read(path: str | Path, frame: int | None = None, slices: str = "auto", modality: str = "",
         force: bool = False, flat: bool = False) -> Volume:
    """The volume in a file.

    frame: which of several volumes of a 4D file. slices: the plane of the slices, see `volume.layout`. force: take a
    file that does not know its orientation as if its axes pointed to the right, the front and the head. flat: take a
    file of a single slice as well.
    UsageError: no file, no NIfTI, 2D, 4D without a frame, colours, NaN, constant, no or a singular affine.
    """
    nibabel, file = _nibabel(), Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{file} does not exist." if not file.exists() else f"{file} is a folder, not a NIfTI file.")
    try:
        image = nibabel.load(file)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, OSError, ValueError,
            EOFError, zlib.error) as error:
        raise UsageError(f"{file} cannot be read as NIfTI ({_first_line(error)}).") from error
    return from_image(image, str(path), frame, slices, modality, force, flat)


def from_image(image: Nifti1Image, name: str = "the image", frame: int | None = None, slices: str = "auto",
               modality: str = "", force: bool = False, flat: bool = False) -> Volume:
    """The volume of a nibabel image, as `read` makes it."""
    nibabel = _nibabel()
    if not isinstance(image, nibabel.Nifti1Pair):
        raise UsageError(f"{name} is a {type(image).__name__}, not NIfTI.", "Convert it to .nii.gz first.")
    header = image.header.copy()
    affine = checked_affine(_affine(header, name, force), name)
    array = checked_values(_numbers(image, name, frame), name, flat)
    if 1 in array.shape:  # the axis of a single slice lies across it
        across = closest(affine)[0][array.shape.index(1)]
        slices = next(plane for plane, axis in PLANES.items() if axis == across)
    unit = header.get_xyzt_units()[0]
    pose = layout(affine, slices)
    source = NiftiSource(header, affine, pose, array.shape, tuple(image.shape), MILLIMETRES.get(unit, 1.0))
    return Volume(pose.to_tensor(array), source.tensor_affine, modality, name, source)


def to_image(volume: Volume, integers: bool = False, window: bool = False) -> Nifti1Image:
    """A nibabel image of a volume of one channel, in the axes of its source (module docstring).

    integers: store int16, scaled to their whole range unless every value is a whole number that fits; else float32 (or
    complex64). window: set the display window to the range of these values instead of keeping the source's.
    """
    nibabel, source = _nibabel(), volume.source
    if volume.data.shape[1] != 1:
        raise UsageError(f"{volume.name} has {volume.data.shape[1]} channels; a NIfTI file holds one.")
    if not isinstance(source, NiftiSource):
        return _fresh(volume, integers)
    array = source.layout.to_file(volume.data.detach())
    header = source.header.copy()
    moved = not np.array_equal(volume.affine, source.tensor_affine)
    if moved:
        affine = source.layout.file_affine(volume.affine, array.shape) / _rows(source.millimetres)
        _place(header, affine)
    elif len(source.stored) > 3 and np.prod(source.stored) == array.size:
        array = array.reshape(source.stored)
    array = _stored(array, integers)
    header.set_data_dtype(np.int16 if integers and not np.iscomplexobj(array) else array.dtype)
    if window:
        _set_window(header, array)
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    coded = int(header["sform_code"]) or int(header["qform_code"])
    return kind(array, header.get_best_affine() if coded else None, header)  # any other would be written into it


def write(volume: Volume, path: str | Path, integers: bool = False, window: bool = False) -> Path:
    """Writes a .nii or .nii.gz, whole or not at all; see `to_image`."""
    target = Path(path).expanduser()
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError(f"{target} is no name of a NIfTI file.", "It ends in .nii or .nii.gz.")
    image = to_image(volume, integers, window)
    with atomic.writing(target) as temporary:
        image.to_filename(temporary)
    return target


# -- numbers


def _numbers(image: Nifti1Image, name: str, frame: int | None) -> np.ndarray:
    """The array [i, j, k] of one frame, scaled as the header says, float32 or complex64."""
    if image.get_data_dtype().fields is not None:
        raise UsageError(f"{name} holds colours, not measured values.")
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    try:
        if len(shape) <= 3:
            _only_frame(name, frame)
            array = np.asanyarray(image.dataobj).reshape(shape)
        elif len(shape) == 4:
            array = np.asanyarray(image.dataobj[..., _frame(name, frame, shape)]).reshape(shape[:3])
        else:
            raise UsageError(f"{name} has {len(shape)} axes ({' x '.join(map(str, shape))}); a volume has three, a "
                             "series of volumes four.")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"The numbers of {name} cannot be read ({_first_line(error)}).",
                         "Is the file complete?") from error
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
        return array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)


def _only_frame(name: str, frame: int | None) -> None:
    if frame not in (None, 0):
        raise UsageError(f"{name} holds one volume, so there is no frame {frame}.")


def _frame(name: str, frame: int | None, shape: tuple[int, ...]) -> int:
    if frame is None:
        raise UsageError(f"{name} is a series of {shape[3]} volumes ({' x '.join(map(str, shape))}).",
                         f"Choose one with --frame 0 to --frame {shape[3] - 1}.")
    if not 0 <= frame < shape[3]:
        raise UsageError(f"{name} has frames 0 to {shape[3] - 1}, so there is no frame {frame}.")
    return frame


def _stored(array: np.ndarray, integers: bool) -> np.ndarray:
    """The array in the type it is handed to nibabel in; whole numbers that fit are stored unscaled."""
    if not integers or np.iscomplexobj(array):
        return array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)
    limits = np.iinfo(np.int16)
    whole = bool((array == np.rint(array)).all()) and array.min() >= limits.min and array.max() <= limits.max
    return array.astype(np.int16) if whole else array.astype(np.float32)


# -- places


def _affine(header: Any, name: str, force: bool) -> np.ndarray:
    sform, s_code = header.get_sform(coded=True)
    if s_code:
        return sform
    if int(header["qform_code"]):
        try:
            return header.get_qform()
        except (_nibabel().spatialimages.HeaderDataError, ValueError) as error:
            raise UsageError(f"The qform of {name} is no rotation ({_first_line(error)}).",
                             "Repair the header of the file first.") from error
    edges = np.abs(header.get_zooms()[:3]).astype(float)
    if not force:
        raise UsageError(f"{name} has no affine: the codes of its sform and qform are both 0, so nobody knows which "
                         "way is up.", "Set one with the programme that made it, or --force takes its axes for right, "
                         f"front and head, with voxels of {' x '.join(f'{e:g}' for e in edges)} mm.")
    return np.diag([*edges, *(1.0,) * (4 - len(edges))])


def _place(header: Any, affine: np.ndarray) -> None:
    s_code, q_code = int(header["sform_code"]), int(header["qform_code"])
    header.set_sform(affine, s_code or (0 if q_code else 1))
    header.set_qform(affine, q_code or 1)


def _fresh(volume: Volume, integers: bool) -> Nifti1Image:
    """An image of a volume without a NIfTI header of its own: axes (x, y, z), millimetres, scanner coordinates."""
    nibabel = _nibabel()
    array = _stored(np.ascontiguousarray(volume.data.detach()[:, 0].cpu().numpy().transpose(2, 1, 0)), integers)
    image = nibabel.Nifti1Image(array, volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, 1)
    image.set_qform(volume.affine, 1)
    image.set_data_dtype(np.int16 if integers and not np.iscomplexobj(array) else array.dtype)
    return image


def _set_window(header: Any, array: np.ndarray) -> None:
    values = np.abs(array) if np.iscomplexobj(array) else array
    header["cal_min"], header["cal_max"] = values.min(), values.max()


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
