"""Real measurements from files: sinograms with their geometry, and k-space.

Sinogram: numbers in `y.npy`, geometry in `geo.yaml` (lengths in mm, angles in degrees, axes as in `operators.rays`):

    beam: parallel              parallel, fan or cone
    size: [128, 128]            rows and columns of the image to be reconstructed; slices first for a cone beam
    spacing_mm: 3.0             pixel edge, one number or one for each number of `size`
    angles: {views: 20, span: 180, start: 0}        equal steps without the end, or a list of angles
    detector: {cells: 182, spacing_mm: 3.0, offset_mm: 0.0}     of a cone beam: rows: {...} and columns: {...}
    source: {radius_mm: 541, to_detector_mm: 949, curved: true}     of fan and cone beams
    slice_spacing_mm: 3.0       distance of the slices of parallel and fan beams
    values: integrals           integrals (-log of what is left of the beam), transmission (what is left, in (0, 1]) or
                                counts (photons; `photons: 1.0e5` enter each ray)
    water_per_mm: 0.0193        attenuation of water: the values are attenuation, the image comes out in HU;
                                without it they are sums of the prior's own values times mm, as scidiff simulates them
    sigma: 0.01                 standard deviation of an integral; of counts it follows from the photons

`y.npy` is [views, cells] of one slice or [slices, views, cells]; of a cone beam [views, rows, columns].

K-space: `k.npy`, complex (or real with a last axis of the real and imaginary parts), Cartesian and fully on the grid,
zero where nothing was measured, DC at index n // 2 of both axes (`centre=False`: at index 0):

    [coils, Y, X] one slice          [slices, coils, Y, X] a volume          other orders by name, "slice y x coil"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.core.operator import LinearOperator
from scidiff.domains.medical.intensity import Scale
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import FanCT, ParallelCT
from scidiff.domains.medical.operators.masks import acquired, calibration_size
from scidiff.domains.medical.operators.mri import ifft2c
from scidiff.domains.medical.operators.rays import Detector, Source
from scidiff.domains.medical.volume import centred_affine
from scidiff.store.atomic import read_yaml

BEAMS = ("parallel", "fan", "cone")
VALUES = ("integrals", "transmission", "counts")
KEYS = ("beam", "size", "spacing_mm", "angles", "detector", "rows", "columns", "source", "slice_spacing_mm", "values",
        "photons", "water_per_mm", "sigma")
HU_OF_AIR = -1000.0


# -- sinograms


@dataclass(frozen=True, eq=False)
class Sinogram:
    """y [B, *operator.out_shape] float32, line integrals; sigma their standard deviation (0: unknown).

    water_per_mm: attenuation of water where y integrates attenuation; None where it integrates the prior's values.
    """

    y: Tensor
    operator: LinearOperator
    affine: np.ndarray
    sigma: float = 0.0
    water_per_mm: float | None = None
    name: str = "sinogram"

    def scaled(self, scale: Scale) -> tuple[Tensor, float]:
        """(y, sigma) as integrals of a prior's values x = (HU - low) / (high - low) with low = -1000 HU.

        Attenuation is mu = water (1 + HU / 1000) = water (high - low) x / 1000, so y is divided by a number.
        """
        if self.water_per_mm is None:
            return self.y, self.sigma
        if scale.low != HU_OF_AIR:
            raise UsageError(f"Attenuation is zero at {HU_OF_AIR:g} HU, but the range of the prior begins at "
                             f"{scale.low:g}.", "Take a prior of CT values.")
        factor = self.water_per_mm * scale.width / 1000.0
        return self.y / factor, self.sigma / factor


def read_sinogram(path: str | Path, geometry: str | Path | Mapping[str, Any]) -> Sinogram:
    """The measurement and the operator that a .npy file and a geometry (file or mapping) describe.

    UsageError: unknown or missing keys, impossible geometry, shapes that do not fit, values that cannot be.
    """
    about = dict(geometry) if isinstance(geometry, Mapping) else _yaml(geometry)
    for key in about:
        if key not in KEYS:
            raise UsageError(f"The geometry has no key {key!r}.", nearest(key, KEYS))
    beam, kind = about.get("beam", "parallel"), about.get("values", "integrals")
    if beam not in BEAMS:
        raise UsageError(f"There is no beam {beam!r}.", nearest(str(beam), BEAMS))
    if kind not in VALUES:
        raise UsageError(f"A sinogram holds no {kind!r}.", nearest(str(kind), VALUES))
    operator, affine_of = _operator(about, beam)
    raw = _array(path)
    if np.iscomplexobj(raw):
        raise UsageError(f"{path} holds complex numbers; a sinogram is real.", "Is it k-space? Use --kspace.")
    y = _fitted(raw, operator, beam, str(path))
    y, photons = _integrals(y, kind, about, str(path))
    water = about.get("water_per_mm")
    sigma = about.get("sigma")
    if sigma is None:
        sigma = 0.0 if photons is None else float((1.0 / photons).mean().sqrt())
    return Sinogram(y.float(), operator, affine_of(len(y)), _number(sigma, "sigma", low=0.0),
                    None if water is None else _number(water, "water_per_mm", above=0.0), str(path))


def _yaml(path: str | Path) -> dict[str, Any]:
    try:
        return read_yaml(Path(path).expanduser(), "geometry")
    except ScidiffError as error:
        raise UsageError(error.message, error.remedy) from error


def _operator(about: Mapping[str, Any], beam: str) -> tuple[LinearOperator, Any]:
    """The projector, and a function from the number of slices to the affine of the image."""
    axes = 3 if beam == "cone" else 2
    size = [int(_number(n, "size", low=1.0)) for n in _list(about.get("size"), "size")]
    if len(size) != axes:
        raise UsageError(f"The size of a {beam} beam has {axes} numbers, not {len(size)}.")
    edges = [_number(e, "spacing_mm", above=0.0) for e in _list(about.get("spacing_mm"), "spacing_mm", axes)]
    angles = _angles(about.get("angles"), 180.0 if beam == "parallel" else 360.0)
    source = _source(about.get("source"), beam)
    if beam == "cone":
        rows, columns = (_detector(about.get(key), key) for key in ("rows", "columns"))
        operator: LinearOperator = ConeCT(size, angles=angles, rows=rows, columns=columns, source=source,
                                          spacing_mm=edges)
        return operator, lambda _: centred_affine((size[0], size[1], size[2]), (edges[0], edges[1], edges[2]))
    detector = _detector(about.get("detector"), "detector")
    operator = (ParallelCT(size, angles=angles, detector=detector, spacing_mm=edges) if source is None
                else FanCT(size, angles=angles, detector=detector, source=source, spacing_mm=edges))
    between = _number(about.get("slice_spacing_mm", edges[0]), "slice_spacing_mm", above=0.0)
    return operator, lambda slices: centred_affine((slices, size[0], size[1]), (between, edges[0], edges[1]))


def _angles(given: Any, circle: float) -> Tensor:
    if isinstance(given, Mapping):
        for key in given:
            if key not in ("views", "span", "start"):
                raise UsageError(f"The angles of a geometry have no key {key!r}.",
                                 nearest(key, ("views", "span", "start")))
        views = int(_number(given.get("views"), "views", low=1.0))
        span, start = _number(given.get("span", circle), "span"), _number(given.get("start", 0.0), "start")
        return start + torch.arange(views, dtype=torch.float64) * (span / views)
    return torch.tensor([_number(a, "angles") for a in _list(given, "angles")], dtype=torch.float64)


def _detector(given: Any, key: str) -> Detector:
    if not isinstance(given, Mapping) or "cells" not in given or "spacing_mm" not in given:
        raise UsageError(f"The geometry lacks `{key}: {{cells: ..., spacing_mm: ...}}`.")
    cells, width = _number(given["cells"], "cells", low=1.0), _number(given["spacing_mm"], "spacing_mm", above=0.0)
    return Detector(int(cells), width, _number(given.get("offset_mm", 0.0), "offset_mm"))


def _source(given: Any, beam: str) -> Source | None:
    if beam == "parallel":
        if given is not None:
            raise UsageError("A parallel beam has no source.", "Say `beam: fan`, or leave `source` out.")
        return None
    if not isinstance(given, Mapping) or "radius_mm" not in given or "to_detector_mm" not in given:
        raise UsageError(f"A {beam} beam needs `source: {{radius_mm: ..., to_detector_mm: ...}}`.")
    return Source(_number(given["radius_mm"], "radius_mm", above=0.0),
                  _number(given["to_detector_mm"], "to_detector_mm", above=0.0), bool(given.get("curved", False)))


def _fitted(raw: np.ndarray, operator: LinearOperator, beam: str, name: str) -> Tensor:
    """The array as [B, *out_shape], float64."""
    y = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float64))
    wanted = operator.out_shape[1:]
    one = 3 if beam == "cone" else 2
    if y.ndim == one:
        y = y[None]
    if y.ndim != one + 1 or tuple(y.shape[1:]) != tuple(wanted) or (beam == "cone" and len(y) != 1):
        named = "views, rows, columns" if beam == "cone" else "views, cells of each slice"
        raise UsageError(f"{name} has the shape {tuple(raw.shape)}, but its geometry describes {tuple(wanted)} "
                         f"({named}).")
    if not bool(torch.isfinite(y).all()):
        raise UsageError(f"{name} holds {int((~torch.isfinite(y)).sum()):,} values that are not finite.")
    return y[:, None]


def _integrals(y: Tensor, kind: str, about: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor | None]:
    """(line integrals, photons behind them where they were counted); less than half a photon counts as half of one."""
    if kind == "integrals":
        return y, None
    if kind == "counts":
        entering = _number(about.get("photons"), "photons", above=0.0)
        if float(y.min()) < 0:
            below = int((y < 0).sum())
            raise UsageError(f"{name} holds {below:,} negative photon counts, down to {float(y.min()):g}.",
                             "Was a dark image subtracted? Clip them, or store line integrals instead.")
        counted = y.clamp(min=0.5)
        return torch.log(entering / counted), counted
    if float(y.min()) <= 0 or float(y.max()) > 1.05:
        raise UsageError(f"{name} lies between {float(y.min()):g} and {float(y.max()):g}, but what is left of a beam "
                         "is above 0 and at most 1.", "Counts need `values: counts` and `photons: ...`.")
    return -torch.log(y), None


# -- k-space


@dataclass(frozen=True, eq=False)
class KSpace:
    """y complex64 [Z, coils, Y, X], DC at (Y // 2, X // 2), zero where nothing was measured (for `mri.measured`)."""

    y: Tensor
    name: str = "k-space"

    @property
    def mask(self) -> Tensor:
        """What was measured, bool [Y, X], the same in all slices and coils."""
        return acquired(self.y)

    @property
    def acceleration(self) -> float:
        """Grid points for each measured one."""
        return float(self.mask.double().mean().reciprocal())

    @property
    def calibration(self) -> tuple[int, int]:
        """(rows, columns) of the fully measured centre, from which coil maps can be estimated."""
        return calibration_size(self.mask)

    def zero_filled(self) -> Tensor:
        """Root of the sum of squares over the coil images, float32 [Z, 1, Y, X]: a first look."""
        return ifft2c(self.y).abs().square().sum(1, keepdim=True).sqrt()


def read_kspace(path: str | Path, axes: str | None = None, centre: bool = True) -> KSpace:
    """The k-space in a .npy file (module docstring).

    axes: names of the array's axes, "coil y x" or "slice coil y x" by default. centre: the zero frequency is in the
    middle. UsageError: no numbers, another number of axes, nothing measured, not finite.
    """
    raw = _array(path)
    if not np.iscomplexobj(raw):
        if raw.ndim < 4 or raw.shape[-1] != 2:
            raise UsageError(f"{path} holds real numbers of shape {tuple(raw.shape)}; k-space is complex.",
                             "Store complex numbers, or real and imaginary parts along a last axis of length 2.")
        raw = raw[..., 0] + 1j * raw[..., 1]
    named = ("coil y x" if raw.ndim == 3 else "slice coil y x") if axes is None else axes
    order = named.replace(",", " ").split()
    if sorted(order) not in (["coil", "x", "y"], ["coil", "slice", "x", "y"]) or len(order) != raw.ndim:
        raise UsageError(f"{path} has the shape {tuple(raw.shape)}, which the axes '{named}' do not describe.",
                         "Name each of coil, y, x and, in a volume, slice once, in the order of the array.")
    y = torch.from_numpy(np.ascontiguousarray(raw.transpose([order.index(a) for a in ("slice", "coil", "y", "x")
                                                             if a in order]))).to(torch.complex64)
    y = y if y.ndim == 4 else y[None]
    if not bool(torch.isfinite(torch.view_as_real(y)).all()):
        raise UsageError(f"{path} holds values that are not finite.")
    seen = (y != 0).any(1)
    empty = (~seen.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise UsageError(f"{path} is zero everywhere in {len(empty)} of its {len(y)} slices, the first {empty[0]}.")
    if not bool((seen == seen[:1]).all()):
        raise UsageError(f"The slices of {path} were measured at different points of k-space.",
                         "Reconstruct them one by one.")
    return KSpace(y if centre else torch.fft.fftshift(y, (-2, -1)), str(path))


# -- parts of files


def _array(path: str | Path) -> np.ndarray:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{file} does not exist.")
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"{file} is no .npy file of plain numbers.", "Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iufc" or not array.size:
        raise UsageError(f"{file} holds no numbers.", "Write one array with numpy.save.")
    return array


def _list(given: Any, key: str, repeat: int = 0) -> Sequence[Any]:
    """A list; a single number stands for `repeat` equal ones."""
    if given is None:
        raise UsageError(f"The geometry lacks `{key}`.")
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given or (repeat and len(given) != repeat):
            raise UsageError(f"`{key}` has {len(given)} numbers, not {repeat or 'at least one'}.")
        return given
    if not repeat:
        raise UsageError(f"`{key}` is a list of numbers, not {given!r}.")
    return [given] * repeat


def _number(given: Any, key: str, low: float = -math.inf, above: float = -math.inf) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise UsageError(f"`{key}` in the geometry is a number, not {given!r}.")
    if given < low or not given > above:
        raise UsageError(f"`{key}` in the geometry is {'at least ' + f'{low:g}' if given < low else 'positive'}, not "
                         f"{given:g}.")
    return float(given)
