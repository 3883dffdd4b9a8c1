"""Trajectories and first states from files: what is accepted, and what is refused with which sentence.

Accepted: .nc (NetCDF 3 and 4) and .h5/.hdf5 in the layouts of `layouts`; a folder of such files; a run folder (its
rollout.nc). A trajectory needs a time axis with equal steps, uniform coordinates that increase, finite values and a
periodic box whose end point is not stored twice. What breaks a rule becomes a Rejection (where, what, why) and reading
goes on; a file that cannot be read at all is a UsageError, or a Rejection inside a folder.

Splits: as the file says (pdearena groups), else with `window` the last tenth of each trajectory in time is for testing,
else a tenth of the trajectories, chosen by a hash of the first frame, whatever else the file holds.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest
from scidiff.core.run import mix_int
from scidiff.domains.base import Records, Rejection
from scidiff.domains.pde.data import AXES, FILE, length, resample, to_dataset
from scidiff.domains.pde.layouts import Series, Wanted, series

EXTENSIONS = (".nc", ".nc4", ".cdf", ".h5", ".hdf5")
UNEVEN = 1e-3  # of a grid's or a clock's step that single steps may differ from their mean
JUMP = 3.0  # times the largest difference of neighbours: a larger one across the end of the box is no periodic field
SAME_BOX = 1e-3  # relative difference of two lengths of a box that counts as none


@dataclass(frozen=True)
class Options:
    """Options of `read` (data.options.NAME=...).

    fields           names of the variables to read (where a file names none: the names to give); None: all fields
    time, trajectory, member   names of axes, where they cannot be guessed
    extent, interval lengths of the box (x last) and time between two frames, where the file is silent
    boundary         "periodic": it is, whatever the values look like
    drop_endpoint    leave out the last point of every axis (both ends of the period are stored)
    shape            resample to this grid, by Fourier series
    multiple_of      a number of points that is no multiple of this is refused
    least_frames     trajectories with fewer frames are refused
    window           cut trajectories into pieces of this many frames
    test_share, split_seed     of the split (module docstring)
    invalid          "keep" or "reject" values that are not finite; None keeps them in scidiff's own runs, so that an
                     evaluation counts them
    equation         {name, parameters} that the fields obey, if known: a reference can then be solved for
    nominal          {extent, interval} that stand for a set in which they differ from trajectory to trajectory
    """

    fields: Sequence[str] | None = None
    time: str | None = None
    trajectory: str | None = None
    member: str | None = None
    extent: Sequence[float] | float | None = None
    interval: float | None = None
    boundary: str | None = None
    drop_endpoint: bool = False
    shape: Sequence[int] | None = None
    multiple_of: int = 1
    least_frames: int = 2
    window: int | None = None
    test_share: float = 0.1
    split_seed: int = 0
    invalid: str | None = None
    equation: Mapping[str, Any] | None = None
    nominal: Mapping[str, Any] | None = None

    def wanted(self, split: str | None) -> Wanted:
        names = (self.fields,) if isinstance(self.fields, str) else self.fields
        return Wanted(tuple(names) if names else None, self.time, self.trajectory, self.member, split)


READ_OPTIONS = tuple(f.name for f in dataclasses.fields(Options))


class Refused(Exception):
    """Why a trajectory cannot be used, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason} ({remedy})" if remedy else reason)
        self.reason, self.remedy = reason, remedy


def read(path: str | Path, split: str | None = None, limit: int | None = None, **options: Any) -> Records:
    """The trajectories of a file or folder as xarray.Datasets (module docstring; `Options`)."""
    rules = _options(options)
    if rules.window is not None and rules.window < 2:
        raise UsageError(f"window={rules.window} frames hold no step.", "Take at least 2.")
    objects, names, rejected = [], [], []
    for one in _everything(Path(path).expanduser(), rules.wanted(split), rejected):
        if limit is not None and len(objects) >= limit:
            break
        try:
            fit = checked(one, rules)
        except Refused as why:
            rejected.append(Rejection(one.name, _text(one), str(why)))
            continue
        for name, piece in _pieces(fit, rules, split):
            if limit is None or len(objects) < limit:
                objects.append(_dataset(piece, name, rules, Path(path)))
                names.append(name)
    return Records(objects, names, rejected)


def _options(given: Mapping[str, Any]) -> Options:
    for name in given:
        if name not in READ_OPTIONS:
            raise UsageError(f"The readers of fields have no option {name!r}.", nearest(name, READ_OPTIONS))
    return Options(**given)


def _everything(path: Path, wanted: Wanted, rejected: list[Rejection]) -> Iterator[Series]:
    """Every series of a file, or of the files of a folder, where an unreadable one is noted."""
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    if path.is_file():
        yield from series(path, wanted)
        return
    files = [path / FILE] if (path / FILE).is_file() else sorted(
        f for f in path.iterdir() if f.is_file() and f.suffix.lower() in EXTENSIONS and not f.name.startswith("."))
    if not files:
        raise UsageError(f"The folder {path} holds no file of fields.", f"Readable: {', '.join(EXTENSIONS)}.")
    for file in files:
        try:
            yield from series(file, wanted)
        except UsageError as error:
            if len(files) == 1:
                raise
            rejected.append(Rejection(file.name, "", str(error)))


# -- rules


def checked(one: Series, rules: Options) -> Series:
    """The series with its grid and clock settled; Refused where it breaks a rule."""
    one = dataclasses.replace(one, points=list(one.points))
    frames = one.frames.shape[-one.space - 2]
    if frames < rules.least_frames:
        if one.times is None and frames == 1:
            raise Refused(f"there is no time axis among ({', '.join(one.dims)})", "name it with time=...")
        raise Refused(f"{frames} frame{'s' * (frames != 1)}, fewer than {rules.least_frames}")
    _settle_grid(one, rules)
    _settle_clock(one, rules, frames)
    if one.boundary and one.boundary != "periodic" and rules.boundary != "periodic":
        raise Refused(f"the boundary is not periodic ({one.boundary})", "only periodic boxes can be modelled")
    finite = np.isfinite(one.frames)
    if not finite.all():
        keep = rules.invalid == "keep" or (rules.invalid is None and one.made_here)
        if not keep:
            channel = int(np.argwhere(~finite)[0][-one.space - 1])
            raise Refused(f"{one.fields[channel]} holds {int((~finite).sum())} values that are not finite")
    elif one.boundary != "periodic" and rules.boundary != "periodic":
        _look_periodic(one)
    if rules.shape is not None:
        shape = tuple(int(n) for n in np.atleast_1d(rules.shape))
        if len(shape) != one.space:
            raise Refused(f"shape has {len(shape)} numbers, the fields have {one.space} axes of space")
        _onto(one, shape)
    for axis, n in zip(AXES[one.space], one.shape, strict=True):
        if n % rules.multiple_of:
            fitting = [math.ceil(m / rules.multiple_of) * rules.multiple_of for m in one.shape]
            raise Refused(f"{n} points in {axis} are no multiple of {rules.multiple_of}",
                          f"resample with shape={fitting}")
    return one


def _settle_grid(one: Series, rules: Options) -> None:
    """Coordinates of every axis, uniform, without a second end point."""
    given = None if rules.extent is None else np.atleast_1d(rules.extent).astype(float).tolist()
    if given is not None and len(given) != one.space:
        raise Refused(f"extent has {len(given)} numbers, the fields have {one.space} axes of space")
    for k, (axis, n) in enumerate(zip(AXES[one.space], one.shape, strict=True)):
        points = one.points[k]
        if n < 2:
            raise Refused(f"a single point in {axis}")
        if points is not None and len(points) != n:
            raise Refused(f"{n} values but {len(points)} coordinates in {axis}")
        if points is not None:
            steps = np.diff(points)
            mean = float(steps.mean())
            if not (np.isfinite(points).all() and (steps > 0).all()):
                raise Refused(f"the coordinates of {axis} do not increase")
            if _uneven(points, steps, mean):
                raise Refused(f"the grid is not uniform: steps in {axis} between {steps.min():.6g} and "
                              f"{steps.max():.6g}", "interpolate to equal steps first")
        if rules.drop_endpoint:
            one.frames = np.take(one.frames, range(n - 1), axis=k - one.space)
            one.truth = None if one.truth is None else np.take(one.truth, range(n - 1), axis=k - one.space)
            points, n = None if points is None else points[:-1], n - 1
        elif _repeats(one, k):
            raise Refused(f"the last point of {axis} repeats the first: both ends of the period are stored",
                          "leave it out with drop_endpoint=true")
        if given is not None:
            points = np.arange(n) * (given[k] / n) if points is None else points
            if abs(length(points) - given[k]) > SAME_BOX * given[k]:
                raise Refused(f"{axis} covers a length of {length(points):.6g}, not the given {given[k]:.6g}")
        if points is None:
            raise Refused(f"{axis} has no coordinates", "say the lengths of the box with extent=[...]")
        one.points[k] = points


def _uneven(points: np.ndarray, steps: np.ndarray, mean: float) -> bool:
    """Whether steps differ by more than `UNEVEN` and the rounding of coordinates that were stored in float32."""
    return float(np.abs(steps - mean).max()) > UNEVEN * mean + 2.0**-23 * float(np.abs(points).max())


def _repeats(one: Series, k: int) -> bool:
    """Whether the last point of an axis holds the values of the first, which differ from those between."""
    values = np.moveaxis(one.frames, k - one.space, 0)
    close = 1e-5 * float(np.nanmax(np.abs(values), initial=0.0))
    ends = float(np.nanmax(np.abs(values[-1] - values[0]), initial=0.0))
    return ends <= close and any(float(np.nanmax(np.abs(v - values[0]), initial=0.0)) > 10.0 * close
                                 for v in values[1:-1])


def _settle_clock(one: Series, rules: Options, frames: int) -> None:
    """Times of the frames, with equal steps."""
    if one.times is not None and len(one.times) != frames:
        raise Refused(f"{frames} frames but {len(one.times)} times")
    if one.times is None or (rules.interval and frames == 1):
        if rules.interval is None and frames > 1:
            raise Refused("the frames have no times", "say the time between two frames with interval=...")
        one.times = (rules.interval or 1.0) * np.arange(frames)
        return
    if frames == 1:
        return
    steps = np.diff(one.times)
    mean = float(steps.mean())
    if not (np.isfinite(one.times).all() and (steps > 0).all()):
        raise Refused("the times do not increase")
    if _uneven(one.times, steps, mean):
        raise Refused(f"the time steps differ: between {steps.min():.6g} and {steps.max():.6g}")
    if rules.interval is not None and abs(mean - rules.interval) > UNEVEN * mean:
        raise Refused(f"the frames lie {mean:.6g} apart, not the given {rules.interval:.6g}")


def _look_periodic(one: Series) -> None:
    """Refused where the values jump across the end of the box far more than anywhere inside it."""
    for k, axis in enumerate(AXES[one.space]):
        values = np.moveaxis(one.frames, k - one.space, 0)
        inside = float(np.abs(np.diff(values, axis=0)).max())
        across = float(np.abs(values[-1] - values[0]).max())
        if len(values) > 4 and across > JUMP * inside and across > 1e-6 * float(np.abs(values).max()):
            raise Refused(f"the field does not look periodic in {axis}: it jumps by {across:.3g} across the end of the "
                          f"box, and by at most {inside:.3g} between neighbours", "if it is, say boundary=periodic")


def _onto(one: Series, shape: tuple[int, ...]) -> None:
    box = [length(p) for p in one.points]  # type: ignore[arg-type]
    one.frames = resample(torch.from_numpy(np.ascontiguousarray(one.frames)), shape).numpy()
    if one.truth is not None:
        one.truth = resample(torch.from_numpy(np.ascontiguousarray(one.truth)), shape).numpy()
    one.points = [p[0] + np.arange(n) * (e / n) for p, n, e in zip(one.points, shape, box, strict=True)]  # type: ignore[index]


# -- pieces and splits


def _pieces(one: Series, rules: Options, split: str | None) -> Iterator[tuple[str, Series]]:
    """(name, piece) on the side of the split that is asked for."""
    if split not in (None, "train", "valid", "test"):
        raise UsageError(f"There is no split {split!r} of trajectories.", nearest(split, ("train", "valid", "test")))
    named = one.split is not None
    if split == "valid" and not named:
        raise UsageError("Files without splits of their own have no split 'valid'.", "Take train, test or null.")
    if named and split is not None and one.split != split:
        return
    if rules.window is None:
        if split is None or named or side(one.frames, rules.test_share, rules.split_seed) == split:
            yield one.name, one
        return
    axis = one.frames.ndim - one.space - 2
    number = one.frames.shape[axis] // rules.window
    tested = 0 if number < 2 else max(round(rules.test_share * number), 1)
    for i in range(number):
        if split is None or named or ("test" if i >= number - tested else "train") == split:
            part = slice(i * rules.window, (i + 1) * rules.window)
            cut = (slice(None),) * axis + (part,)
            yield f"{one.name}.{i:04d}", dataclasses.replace(
                one, frames=one.frames[cut], times=one.times[part],  # type: ignore[index]
                truth=None if one.truth is None else one.truth[part])


def side(frames: np.ndarray, test_share: float = 0.1, seed: int = 0) -> str:
    """ "train" or "test", from a hash of the first frame's values in float32 and a seed alone."""
    first = np.ascontiguousarray(frames[0] if frames.ndim < 5 else frames[0, 0], dtype="<f4")
    return "test" if mix_int(mix_int(seed) ^ zlib.crc32(first.tobytes())) < test_share * 2.0**64 else "train"


def _dataset(one: Series, name: str, rules: Options, path: Path) -> Any:
    axes = AXES[one.space]
    attrs = {**one.attrs, "source": path.name, "id": name, "boundary": "periodic"}
    if rules.equation is not None:
        law = {"name": rules.equation} if isinstance(rules.equation, str) else dict(rules.equation)
        attrs["equation"] = {**law, **({"viscosity": one.attrs["viscosity"]} if "viscosity" in one.attrs else {})}
    if rules.nominal is not None:
        attrs |= {"nominal_extent": np.atleast_1d(rules.nominal["extent"]).astype(float).tolist(),
                  "nominal_dt": float(rules.nominal["interval"])}
    frames = one.frames if one.frames.dtype == np.float32 else one.frames.astype(np.float32)
    return to_dataset(frames, one.times, dict(zip(axes, one.points, strict=True)), one.fields, one.units, attrs,
                      truth=None if one.truth is None else one.truth.astype(np.float32), interval=rules.interval,
                      time_unit=one.time_unit, space_unit=one.space_unit)


def _text(one: Series) -> str:
    return f"{'x'.join(map(str, one.frames.shape))} of {', '.join(one.fields)}"


# -- first states


def init_state(
    path: str | Path,
    fields: Sequence[str],
    shape: Sequence[int],
    extent: Sequence[float],
    history: int = 1,
    *,
    interval: float | None = None,
    at: int = -1,
    resample: bool = False,
    **options: Any,
) -> Tensor:
    """First states [T, H, C, *space], float32, from a file: its last frames, or those that end with frame number `at`.

    Every trajectory and member of the file is one state. `interval` is the model's time between two frames: the file's
    frames are taken that far apart. `resample` allows another grid of the same box. `options` are those of `read`.
    """
    rules = _options({**options, "fields": tuple(fields), "least_frames": 1, "invalid": "reject"})
    found = list(_everything(Path(path).expanduser(), rules.wanted(None), []))
    states = []
    for one in found:
        where = f"{Path(path).name}" + (f", {one.name}" if len(found) > 1 else "")
        try:
            fit = checked(one, rules)
        except Refused as why:
            remedy = why.remedy
            raise UsageError(f"{where}: {why.reason}.", f"{remedy[0].upper()}{remedy[1:]}." if remedy else "") from None
        states.append(_state(fit, where, tuple(shape), tuple(extent), history, interval, at, resample))
    if not states:
        raise UsageError(f"{path} holds no state.")
    return torch.cat(states)


def _state(one: Series, where: str, shape: tuple[int, ...], extent: tuple[float, ...], history: int,
           interval: float | None, at: int, resampled: bool) -> Tensor:
    if one.space != len(shape):
        raise UsageError(f"{where} has {one.space} axes of space, the model has {len(shape)}.")
    for axis, points, wanted in zip(AXES[one.space], one.points, extent, strict=True):
        if abs(length(points) - wanted) > SAME_BOX * wanted:  # type: ignore[arg-type]
            raise UsageError(f"{where} covers a length of {length(points):.6g} in {axis}, but the model was trained on "  # type: ignore[arg-type]
                             f"a box of {wanted:.6g}.")
    if one.shape != shape:
        if not resampled:
            mine, its = ("x".join(map(str, n)) for n in (one.shape, shape))
            raise UsageError(f"{where} has {mine} points, the model {its}.",
                             "Resample it by its Fourier series with resample=true.")
        _onto(one, shape)
    frames = torch.from_numpy(np.ascontiguousarray(one.frames, dtype=np.float32))
    frames = frames if frames.dim() == one.space + 3 else frames.unsqueeze(0)
    count = frames.shape[1]
    last = at + count if at < 0 else at
    if not 0 <= last < count:
        raise UsageError(f"{where} has no frame {at}: it holds {count}.")
    stride = 1
    if history > 1 and interval is not None and count > 1:
        step = float(one.times[-1] - one.times[0]) / (count - 1)  # type: ignore[index]
        stride = max(round(interval / step), 1)
        if abs(stride * step - interval) > UNEVEN * interval:
            raise UsageError(f"The frames of {where} lie {step:.6g} apart, and the model's step of {interval:.6g} is "
                             "no multiple of that.")
    first = last - stride * (history - 1)
    if first < 0:
        need = stride * (history - 1) + 1
        raise UsageError(f"The model needs a history of {history} frames, {need} in the file up to the first state; "
                         f"{where} has {last + 1}.")
    return frames[:, first : last + 1 : stride]
