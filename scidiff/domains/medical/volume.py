"""A volume: slices of numbers, and where they lie in the patient.

Axis order. `data` is [Z, C, Y, X]: slice, channel, row, column; slices are the batch that operators and networks see.
The centre of voxel (z, y, x) lies at the world point, in mm,

    (R, A, S) = affine (x, y, z, 1)          R, A, S grow towards the patient's right, front and head.

Columns, rows and slices grow along the direction that they are closest to:

    axial      columns to the right, rows to the front, slices to the head
    coronal    columns to the right, rows to the head,  slices to the front
    sagittal   columns to the front, rows to the head,  slices to the right

so every volume meets a prior in the pose of its training data. Files order and direct their axes as they like; a
`Layout` is the permutation and mirroring between the two, exact both ways. Nothing is resampled on reading or writing;
`at_size` is the one function that does it, on request.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the world axis across each plane
SAME = 0.02  # relative difference of two voxel edges that counts as none


@dataclass(frozen=True, eq=False)
class Volume:
    """`data` [Z, C, Y, X] float32 or complex64 on the CPU; `affine` float64 [4, 4] (module docstring).

    modality: "CT" (values in HU), "MR" (scanner units) or "" where nobody said. source: what a writer needs to give the
    file back its own header (`nifti.NiftiSource`, `dicom.DicomSource`); None for a volume of our own making.
    contrast: of MR, such as "t1" or "flair"; "" where nobody said.
    """

    data: Tensor
    affine: np.ndarray
    modality: str = ""
    name: str = "volume"
    source: Any = None
    contrast: str = ""

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or not (self.data.is_floating_point() or self.data.is_complex()):
            raise UsageError(f"A volume is real or complex [Z, C, Y, X], not {self.data.dtype} "
                             f"{tuple(self.data.shape)}.")
        object.__setattr__(self, "affine", checked_affine(self.affine, self.name))

    @property
    def size(self) -> tuple[int, int]:
        """(Y, X) of a slice."""
        return int(self.data.shape[2]), int(self.data.shape[3])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Edges of a voxel along (z, y, x) in mm."""
        x, y, z = (float(edge) for edge in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x

    @property
    def orientation(self) -> str:
        """The letters that columns, rows and slices grow towards: "RAS" for axial slices."""
        world, sign = closest(self.affine)
        return "".join("LPI"[w] if s < 0 else "RAS"[w] for w, s in zip(world, sign, strict=True))

    @property
    def plane(self) -> str:
        """axial, coronal or sagittal: the plane that a slice is closest to."""
        across = closest(self.affine)[0][2]
        return next(name for name, axis in PLANES.items() if axis == across)

    def like(self, data: Tensor, name: str | None = None) -> Volume:
        """Other numbers [Z, C', Y, X] at the same voxels, with the same source."""
        if (data.shape[0], *data.shape[2:]) != (self.data.shape[0], *self.data.shape[2:]):
            raise UsageError(f"{tuple(data.shape)} values do not lie at the voxels of {self.name}, "
                             f"{tuple(self.data.shape)}.")
        return replace(self, data=data, name=self.name if name is None else name)

    def cut(self, start: int, stop: int) -> Volume:
        """Slices start .. stop - 1, still at their places in the world."""
        if not 0 <= start < stop <= len(self.data):
            raise UsageError(f"{self.name} has slices 0 to {len(self.data) - 1}, so not {start} to {stop - 1}.")
        shift = np.eye(4)
        shift[2, 3] = start
        return replace(self, data=self.data[start:stop], affine=self.affine @ shift)


# -- axes


@dataclass(frozen=True)
class Layout:
    """How tensor axes (z, y, x) stand in a file's array: the file axis of each, and whether it is mirrored."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def _mirrored(self) -> tuple[int, ...]:
        return tuple(i for i, flip in enumerate(self.flips) if flip)

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """A file's array [i, j, k] as [Z, 1, Y, X]."""
        turned = np.flip(array.transpose(self.axes), self._mirrored)
        return torch.from_numpy(np.ascontiguousarray(turned))[:, None]

    def to_file(self, data: Tensor) -> np.ndarray:
        """[Z, 1, Y, X] as the file's array [i, j, k]."""
        turned = np.flip(data[:, 0].cpu().numpy(), self._mirrored)
        return np.ascontiguousarray(turned.transpose(np.argsort(self.axes)))

    def affine(self, of_file: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor's affine, from that of a file's array of `shape`."""
        return of_file @ self._index(shape)

    def file_affine(self, of_tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The file's affine, for an array of `shape`, from the tensor's."""
        return of_tensor @ np.linalg.inv(self._index(shape))

    def _index(self, shape: tuple[int, ...]) -> np.ndarray:
        """[4, 4] from (x, y, z, 1) to (i, j, k, 1)."""
        index = np.zeros((4, 4))
        index[3, 3] = 1.0
        for column, (axis, flip) in enumerate(zip(reversed(self.axes), reversed(self.flips), strict=True)):
            index[axis, column] = -1.0 if flip else 1.0
            index[axis, 3] = shape[axis] - 1 if flip else 0.0
        return index


def layout(affine: np.ndarray, slices: str = "auto") -> Layout:
    """The layout that brings a file's array to the pose of the module docstring.

    slices: "axial", "coronal", "sagittal", or "auto": across the voxel edge that differs from the two others, axial
    where all three are alike, the longest edge where all differ.
    """
    if slices != "auto" and slices not in PLANES:
        raise UsageError(f"There is no plane {slices!r}.", nearest(slices, ("auto", *PLANES)))
    world, sign = closest(affine)
    across = _across(np.linalg.norm(affine[:3, :3], axis=0), world) if slices == "auto" else PLANES[slices]
    wanted = (across, *sorted({0, 1, 2} - {across}, reverse=True))  # world axes of (z, y, x)
    axes = tuple(world.index(w) for w in wanted)
    return Layout(axes, tuple(sign[axis] < 0 for axis in axes))  # type: ignore[arg-type]


def closest(affine: np.ndarray) -> tuple[list[int], list[int]]:
    """For each array axis the world axis it is closest to, all different, and the sign."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(directions[w, i]) for i, w in enumerate(p)))
    return list(best), [-1 if directions[w, i] < 0 else 1 for i, w in enumerate(best)]


def _across(edges: np.ndarray, world: list[int]) -> int:
    """The world axis across the slices, from the edges of a voxel."""
    alike = [abs(edges[(i + 1) % 3] - edges[(i + 2) % 3]) <= SAME * max(edges) for i in range(3)]
    if all(alike):
        return PLANES["axial"]
    if sum(alike) == 1:
        return world[alike.index(True)]
    return world[int(np.argmax(edges))]


# -- checks


def checked_affine(affine: Any, name: str) -> np.ndarray:
    """The affine as float64 [4, 4]; UsageError where it is no map of voxels to places."""
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise UsageError(f"The affine of {name} is not a finite 4 x 4 matrix that ends in (0, 0, 0, 1).")
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    if edges.min() == 0 or abs(np.linalg.det(matrix[:3, :3])) < 1e-6 * edges.prod():
        lengths = " x ".join(f"{edge:g}" for edge in edges)
        raise UsageError(f"The affine of {name} is singular: its axes, {lengths} mm long, do not span space.",
                         "Repair the header of the file first.")
    return matrix


def checked_values(array: np.ndarray, name: str, flat: bool = False) -> np.ndarray:
    """An array [i, j, k]; UsageError where it is no volume (with `flat`, no slice either), not finite or constant."""
    if array.ndim != 3 or sorted(array.shape)[0 if not flat else 1] < 2 or 0 in array.shape:
        kind = "an empty array" if 0 in array.shape else "a 2D image" if array.size > 1 else "a single number"
        raise UsageError(f"{name} holds {kind} ({' x '.join(map(str, array.shape))}); a volume has at least two voxels "
                         "along each of three axes.")
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise UsageError(f"{name} holds {array.size - int(finite.sum()):,} values that are not finite, the first at "
                         f"voxel {first}.", "Replace them first, for example by the value of air or zero.")
    if bool((array == array.flat[0]).all()):
        raise UsageError(f"{name} holds the value {array.flat[0]:g} everywhere, so there is nothing to reconstruct.")
    return array


def centred_affine(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """The affine of [Z, Y, X] voxels with edges (z, y, x) in mm whose middle lies at the origin: axial slices."""
    affine = np.diag([*reversed(spacing), 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * edge for n, edge in zip(reversed(shape), reversed(spacing), strict=True)]
    return affine


# -- size


def area_weights(n: int, m: int) -> Tensor:
    """float64 [m, n]: the mean of n cells over m <= n equal intervals, shared by the length of the overlap."""
    if not 0 < m <= n:
        raise UsageError(f"{n} pixels cannot be averaged to {m}.")
    edges = torch.arange(m + 1, dtype=torch.float64) * (n / m)
    cells = torch.arange(n, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return overlap.clamp(min=0.0) * (m / n)


def at_size(volume: Volume, size: int, fill: float = 0.0) -> Volume:
    """The volume with slices of size x size: padded to a square with `fill`, then averaged over equal areas.

    Smaller slices are padded only. The affine follows, so every voxel stays at its place; there is no way back to the
    source's header.
    """
    rows, columns = volume.size
    side = max(rows, columns, size)
    top, left = (side - rows) // 2, (side - columns) // 2
    padded = torch.full((*volume.data.shape[:2], side, side), fill, dtype=volume.data.dtype)
    padded[..., top : top + rows, left : left + columns] = volume.data
    factor = side / size
    if side > size:
        weights = area_weights(side, size).to(padded.dtype)
        padded = weights @ padded @ weights.T
    index = np.diag([factor, factor, 1.0, 1.0])
    index[0, 3], index[1, 3] = (factor - 1) / 2 - left, (factor - 1) / 2 - top
    return replace(volume, data=padded.contiguous(), affine=volume.affine @ index, source=None)

