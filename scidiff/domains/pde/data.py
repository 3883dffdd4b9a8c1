"""Trajectories as xarray.Datasets: made, taken apart, judged and written.

Dataset   dims ("time", "x"), ("time", "y", "x") or ("time", "z", "y", "x"), "member" before them in an ensemble;
          one variable a field, `<field>_true` (without members) where a reference exists; coordinates in the units that
          their attributes name; attributes: equation (JSON text), extent, boundary, dt (time between two frames), dx,
          parameters of the equation, source, seed, id
frames    tensors [F, C, *space] or [M, F, C, *space], physical values, periodic grid x_i = i L / N without an end point
file      rollout.nc, NetCDF4: (trajectory, member, time, y, x) in compressed float32, each file whole or not at all
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import MissingLibrary, UsageError, nearest
from scidiff.domains.base import Records, Rejection, Verdict
from scidiff.store import atomic

if TYPE_CHECKING:
    from xarray import Dataset

    from scidiff.domains.base import Samples
    from scidiff.domains.pde.bank import TrajectoryBank

AXES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}
TRUTH = "_true"
READERS = ("equation", "field_file")
FILE = "rollout.nc"
_CHUNK = 1 << 18  # values in one compressed block of a file: a megabyte
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class About:
    """What a trajectory says of itself: lengths and times in `space_unit` and `time_unit`, interval between frames."""

    equation: dict[str, Any] | None
    fields: tuple[str, ...]
    units: tuple[str, ...]
    shape: tuple[int, ...]
    extent: tuple[float, ...]
    interval: float
    time_unit: str = "1"
    space_unit: str = "1"


def library() -> Any:
    """xarray, or MissingLibrary with what to install."""
    try:
        import xarray
    except ImportError as error:
        raise MissingLibrary("xarray", "The pde domain", "pip install xarray h5netcdf") from error
    return xarray


def resample(frames: Tensor, shape: Sequence[int]) -> Tensor:
    """Periodic fields [..., *space] on another grid of the same box, by their Fourier series.

    Exact for fields that both grids resolve; modes that the new grid cannot carry are cut off. The mode of half the
    points counts as a cosine on both grids, so a finer grid and back is the identity.
    """
    for axis, n in enumerate(shape, frames.dim() - len(shape)):
        frames = _resample_axis(frames, axis, n)
    return frames


def _resample_axis(frames: Tensor, axis: int, n: int) -> Tensor:
    old = frames.shape[axis]
    if old == n:
        return frames
    few = min(old, n)
    hat = torch.fft.rfft(frames.to(torch.float64), dim=axis, norm="forward").narrow(axis, 0, few // 2 + 1).clone()
    if few % 2 == 0:  # the two ends of the shorter spectrum fall together there
        hat.select(axis, few // 2).mul_(0.5 if n > old else 2.0)
    return torch.fft.irfft(hat, n=n, dim=axis, norm="forward").to(frames.dtype)


def to_dataset(
    frames: Tensor | np.ndarray,
    times: Tensor | Sequence[float] | np.ndarray | None = None,
    coords: Mapping[str, Any] | None = None,
    fields: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    attrs: Mapping[str, Any] | None = None,
    *,
    extent: Sequence[float] | None = None,
    interval: float | None = None,
    truth: Tensor | np.ndarray | None = None,
    domain: Any = None,
    time_unit: str | None = None,
    space_unit: str | None = None,
) -> Dataset:
    """One trajectory, frames [F, C, *space] or [M, F, C, *space]; `truth` [F, C, *space].

    times or interval (first frame at 0); coords {axis: values} or extent (lengths of the box, in the order of *space).
    `domain` gives fields, units, extent and equation where they are not said here.
    """
    known = domain.options() if domain is not None else {}
    fields = tuple(fields or known.get("fields") or ("u",))
    units = tuple(units or known.get("units") or ("1",) * len(fields))
    time_unit, space_unit = time_unit or known.get("time_unit", "1"), space_unit or known.get("space_unit", "1")
    extent = tuple(extent or known.get("extent") or ())
    if not (coords or extent):
        raise UsageError("A trajectory needs the lengths of its box, or its coordinates.")
    axes = AXES[len(coords or extent)]
    values = np.asarray(frames)
    space = values.shape[-len(axes):]
    lead = ("member", "time")[-(values.ndim - len(axes) - 1):]
    if values.ndim - len(axes) not in (2, 3) or values.shape[-len(axes) - 1] != len(fields):
        raise UsageError(f"Frames of shape {list(values.shape)} are not [frames, {len(fields)} fields, "
                         f"{', '.join(axes)}].")
    if times is None:
        times = (1.0 if interval is None else interval) * np.arange(values.shape[len(lead) - 1])
    times = np.asarray(times, dtype=np.float64)
    points = {a: np.asarray(coords[a], dtype=np.float64) if coords else np.arange(n) * (extent[i] / n)
              for i, (a, n) in enumerate(zip(axes, space, strict=True))}
    extent = extent or tuple(length(points[a]) for a in axes)
    variables = {name: ((*lead, *axes), np.moveaxis(values, len(lead), 0)[i], {"units": unit, "long_name": name})
                 for i, (name, unit) in enumerate(zip(fields, units, strict=True))}
    for i, name in enumerate(fields if truth is not None else ()):
        about = {"units": units[i], "long_name": f"{name}, reference solution"}
        variables[name + TRUTH] = (("time", *axes), np.asarray(truth)[:, i], about)
    places = {"time": ("time", times, {"units": time_unit, "long_name": "time", "axis": "T"})}
    for a in axes:
        places[a] = (a, points[a], {"units": space_unit, "long_name": f"{a} position", "axis": a.upper()})
    if len(lead) == 2:
        places["member"] = ("member", np.arange(values.shape[0]), {"long_name": "member of the ensemble"})
    marks: dict[str, Any] = {"boundary": "periodic", "extent": [float(x) for x in extent],
                             "dx": float(extent[-1]) / space[-1]}
    step = interval if len(times) < 2 else float(times[-1] - times[0]) / (len(times) - 1)
    if step is not None:
        marks["dt"] = float(step)
    if known.get("equation"):
        marks["equation"] = known["equation"]
    marks |= attrs or {}
    if isinstance(marks.get("equation"), Mapping):
        marks["equation"] = json.dumps(marks["equation"])
    return library().Dataset(variables, places, {k: v for k, v in marks.items() if v is not None})


def from_dataset(ds: Dataset, fields: Sequence[str] | None = None) -> tuple[Tensor, Tensor, tuple[float, ...], dict]:
    """(frames [F, C, *space] or [M, F, C, *space], times [F] float64, extent, attributes); dtype as it is stored."""
    names = tuple(fields or field_names(ds))
    for name in names:
        if name not in ds.data_vars:
            raise UsageError(f"The trajectory has no variable {name!r}.", nearest(name, field_names(ds)))
    axes = axes_of(ds, names[0])
    lead = ("member", "time") if "member" in ds[names[0]].dims else ("time",)
    each = [torch.from_numpy(np.array(ds[name].transpose(*lead, *axes).values)) for name in names]
    times = torch.from_numpy(np.array(ds["time"].values, dtype=np.float64))
    return torch.stack(each, len(lead)), times, extent_of(ds, axes), dict(ds.attrs)


def field_names(ds: Dataset) -> tuple[str, ...]:
    """The variables that evolve: numbers over time and space, references left out."""
    return tuple(str(name) for name, v in ds.data_vars.items()
                 if "time" in v.dims and v.dtype.kind == "f" and not str(name).endswith(TRUTH)
                 and len(set(v.dims) - {"time", "member"}) > 0)


def axes_of(ds: Dataset, name: str) -> tuple[str, ...]:
    """The axes of space of a variable, x last."""
    dims = tuple(str(d) for d in ds[name].dims if d not in ("time", "member"))
    return next((a for a in AXES.values() if set(a) == set(dims)), dims)


def extent_of(ds: Dataset, axes: Sequence[str]) -> tuple[float, ...]:
    """Lengths of the box: as the attributes say, or from the coordinates."""
    said = np.atleast_1d(ds.attrs.get("extent", ())).tolist()
    return tuple(float(x) for x in said) if len(said) == len(axes) else tuple(length(ds[a].values) for a in axes)


def length(points: np.ndarray) -> float:
    """The period of a uniform grid without its end point."""
    n = len(points)
    return float(points[-1] - points[0]) * n / (n - 1) if n > 1 else 1.0


def describe(ds: Dataset) -> About:
    """What a trajectory says of itself; where box or interval vary within its set, those of the set (`nominal_...`)."""
    names = field_names(ds)
    if not names:
        raise UsageError("The trajectory holds no field: no variable of numbers has a time axis and an axis of space.")
    axes = axes_of(ds, names[0])
    times = ds["time"].values
    step = ds.attrs.get("nominal_dt", float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1
                        else ds.attrs.get("dt"))
    if step is None:
        raise UsageError("The trajectory is a single frame, so the time between two frames is unknown.")
    extent = tuple(np.atleast_1d(ds.attrs.get("nominal_extent", extent_of(ds, axes))).tolist())
    law = ds.attrs.get("equation")
    return About(json.loads(law) if isinstance(law, str) else law, names,
                 tuple(str(ds[n].attrs.get("units", "1")) for n in names), tuple(ds.sizes[a] for a in axes), extent,
                 round(float(step), 12), str(ds["time"].attrs.get("units", "1")),
                 str(ds[axes[0]].attrs.get("units", "1")) if axes[0] in ds.coords else "1")


def stacked(objects: Sequence[Dataset], fields: Sequence[str]) -> Tensor:
    """Frames [B, F, C, *space] of trajectories on one grid; every member counts as a trajectory."""
    parts = [from_dataset(o, fields)[0] for o in objects]
    space = len(axes_of(objects[0], fields[0]))
    parts = [p if p.dim() == space + 3 else p.unsqueeze(0) for p in parts]
    for part in parts[1:]:
        for what, a, b in (("frames", parts[0].shape[1], part.shape[1]),
                           ("points", tuple(parts[0].shape[3:]), tuple(part.shape[3:]))):
            if a != b:
                raise UsageError(f"The trajectories differ in their number of {what}: {a} and {b}.",
                                 "Cut them to one length with data.options.window=...; read one grid at a time."
                                 if what == "frames" else "Read one grid at a time.")
    return torch.cat(parts)


def verdict(ds: Dataset, fields: Sequence[str], limits: Sequence[float] = ()) -> Verdict:
    """Sound where every value is finite and within its field's limit (none given: only finite)."""
    for i, name in enumerate(fields):
        if name not in ds.data_vars:
            return Verdict(False, f"the variable {name} is missing")
        values = np.moveaxis(ds[name].values, ds[name].dims.index("time"), 0)
        values = values.reshape(len(values), -1)
        broken = ~np.isfinite(values).all(1)
        if broken.any():
            first = int(broken.argmax())
            return Verdict(False, f"{name} is not finite from time {float(ds['time'][first]):g} on")
        size = np.abs(values).max(1)
        if i < len(limits) and (size > limits[i]).any():
            first = int((size > limits[i]).argmax())
            return Verdict(False, f"|{name}| reaches {size[first]:.3g} at time {float(ds['time'][first]):g}; the limit "
                                  f"is {limits[i]:.3g}")
    return Verdict(True)


def row(ds: Dataset, fields: Sequence[str]) -> dict[str, Any]:
    """Columns of samples.csv: frames, members, last time, and rms and largest value of every field."""
    out: dict[str, Any] = {"frames": ds.sizes["time"], "members": ds.sizes.get("member", 1),
                           "time_end": round(float(ds["time"][-1]), 6)}
    for name in fields:
        values = ds[name].values.astype(np.float64)
        good = values[np.isfinite(values)]
        unit = str(ds[name].attrs.get("units", "1"))
        end = "" if unit == "1" else "_" + unit.replace(" ", "_").replace("/", "_per_")
        out[f"{name}_rms{end}"] = float(f"{math.sqrt(float((good**2).mean())):.4g}") if good.size else ""
        out[f"{name}_largest{end}"] = float(f"{float(np.abs(good).max()):.4g}") if good.size else ""
    return out


# -- files


def write_netcdf(samples: Samples, folder: Path, single: bool = False) -> list[Path]:
    """rollout.nc with all trajectories; one file a trajectory (s0007.nc) if `single`, or where grid or times differ."""
    objects = list(samples.objects)
    if not objects:
        return []
    marks = {"Conventions": "CF-1.11", "title": "Trajectories of fields", "source": "scidiff", "seed": samples.seed}
    if single or not all(_alike(objects[0], o) for o in objects[1:]):
        return [save(o.assign_attrs({**marks, "id": name, **o.attrs, "valid": v.valid, "reason": v.reason}),
                     folder / f"{name}.nc")
                for name, o, v in zip(samples.ids, objects, samples.verdicts, strict=True)]
    return [save(_together(objects, samples, marks), folder / FILE)]


def save(ds: Dataset, path: str | Path) -> Path:
    """One NetCDF4 file of compressed float32, written whole or not at all."""
    encoding: dict[str, dict[str, Any]] = {}
    for name, v in ds.variables.items():
        if name in ds.coords and v.dtype.kind in "if":
            encoding[str(name)] = {"_FillValue": None}
        elif v.dtype.kind == "f" and v.ndim > 1:
            encoding[str(name)] = {"dtype": "float32", "zlib": True, "complevel": 1, "shuffle": True,
                                   "_FillValue": np.float32(np.nan), "chunksizes": _chunks(v.shape)}
        elif v.dtype.kind in "OU":
            encoding[str(name)] = {"dtype": "S1"}  # characters: viewers of NetCDF know no strings of variable length
    plain = ds.assign_attrs({k: _plain(v) for k, v in ds.attrs.items()})
    target = Path(path)
    try:
        with atomic.writing(target) as temporary:
            plain.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
    except (ImportError, ModuleNotFoundError, ValueError) as error:
        if "h5netcdf" not in str(error):
            raise
        raise MissingLibrary("h5netcdf", "Writing NetCDF files", "pip install h5netcdf") from error
    return target


def _together(objects: Sequence[Dataset], samples: Samples, marks: dict[str, Any]) -> Dataset:
    """Trajectories of one grid under a new first dimension; attributes that differ become variables."""
    first, variables = objects[0], {}
    for name, v in first.data_vars.items():
        variables[name] = (("trajectory", *v.dims), np.stack([o[name].values for o in objects]), v.attrs)
    keys = dict.fromkeys(k for o in objects for k in o.attrs if k != "id")
    for key in keys:
        each = [_plain(o.attrs.get(key, "")) for o in objects]
        if all(_same(each[0], other) for other in each[1:]):
            marks[key] = each[0]
            continue
        numbers = all(isinstance(e, (int, float)) for e in each)
        name = key if key not in first.variables else f"{key}_of_trajectory"
        variables[name] = ("trajectory", np.array(each if numbers else [json.dumps(e) if not isinstance(e, str) else e
                                                                        for e in each]))
    variables["id"] = ("trajectory", np.array(samples.ids), {"long_name": "name of the trajectory in every file"})
    sound = np.array([v.valid for v in samples.verdicts], dtype=np.int8)
    variables["valid"] = ("trajectory", sound, {"flag_values": np.array([0, 1], dtype=np.int8),
                                                "flag_meanings": "blown_up sound"})
    places = {name: (c.dims, c.values, c.attrs) for name, c in first.coords.items()}
    places["trajectory"] = ("trajectory", np.arange(len(objects)), {"long_name": "trajectory"})
    return library().Dataset(variables, places, marks)


def _alike(a: Dataset, b: Dataset) -> bool:
    return (a.sizes == b.sizes and set(a.data_vars) == set(b.data_vars) and set(a.coords) == set(b.coords)
            and all(np.array_equal(a[c].values, b[c].values) for c in a.coords))


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(np.array_equal(a, b))


def _plain(value: Any) -> Any:
    """An attribute as NetCDF can hold it."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Mapping):
        return json.dumps(atomic.plain(value))
    return str(value) if isinstance(value, Path) else value


def _chunks(shape: Sequence[int]) -> tuple[int, ...]:
    """Whole last axes as far as a block reaches, single entries before them."""
    out, size = [], 1
    for n in reversed(shape):
        part = max(min(n, _CHUNK // size), 1)
        out.append(part)
        size *= part
    return tuple(reversed(out))


# -- data sets


def dataset(
    files: Mapping[str, Path],
    reader: str,
    options: Mapping[str, Any],
    split: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Records:
    """The trajectories of a data set: `equation` solves for them (see bank.from_options), `field_file` reads files.

    field_file: `split_files` {split: file} where each split has its own; the other options are those of `readers.read`.
    """
    if reader not in READERS:
        raise UsageError(f"The pde domain has no reader {reader!r}.", nearest(reader, READERS))
    if reader == "equation":
        from scidiff.domains.pde.bank import from_options

        return of_bank(from_options(options, split or "train", limit), progress)
    from scidiff.domains.pde.readers import read

    more = dict(options)
    by_split = more.pop("split_files", None)
    path = files[by_split[split or "train"]] if by_split else next(iter(files.values()))
    return read(path, split=split, limit=limit, **more)


def of_bank(bank: TrajectoryBank, progress: Progress | None = None) -> Records:
    """One Dataset for each trajectory of a bank, sharing its memory map."""
    frames = bank.frames(progress=progress).numpy()
    scalars = bank.scalars()
    objects, names = [], []
    for i, number in enumerate(bank.ids()):
        mine = {name: float(values[i]) for name, values in scalars.items()}
        extent = (mine["extent"],) * len(bank.shape) if "extent" in mine else bank.extent
        step = mine.get("interval", bank.interval)
        law = bank.equation.to_config() | {k: v for k, v in mine.items() if k not in ("extent", "interval")}
        attrs = {"equation": json.dumps(law), "source": "equation", "seed": bank.seed, "split": bank.split,
                 "id": f"{bank.split}-{number:05d}", "dt": step}
        told = {"burn_in": bank.burn_in, "solve_shape": bank.solve_shape and list(bank.solve_shape)}
        attrs |= {k: v for k, v in told.items() if v is not None}
        attrs |= {k: v for k, v in law.items() if isinstance(v, (int, float))}
        if "extent" in mine:
            attrs["nominal_extent"] = list(bank.extent)
        if "interval" in mine:
            attrs["nominal_dt"] = bank.interval
        objects.append(to_dataset(frames[i], step * np.arange(len(frames[i])), fields=bank.equation.fields,
                                  units=bank.equation.units, extent=extent, attrs=attrs))
        names.append(attrs["id"])
    lost = [Rejection(f"trajectory {n}", "", "laminar: two neighbouring states do not move apart")
            for n in bank.rejected()]
    return Records(objects, names, lost)
