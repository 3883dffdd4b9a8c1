"""What files of fields look like inside: NetCDF, and three layouts of HDF5. Each yields `Series`, one a trajectory.

netcdf    variables over (trajectory, member, time, z, y, x) in any order, whatever subset; NetCDF 3 and 4
well      HDF5 of The Well: groups t0_fields, t1_fields, dimensions, boundary_conditions (Ohana et al. 2024, arXiv
          2412.00568); arrays [trajectory, time, x, y, z], vectors with their components last
pdebench  HDF5 of PDEBench (Takamoto et al. 2022, arXiv 2210.07182): `tensor` or named arrays [n, t, x, ...] beside
          x-coordinate ... t-coordinate, or numbered groups with data [t, x, ..., c] and grid/x ... grid/t
pdearena  HDF5 of PDE-Refiner's Kuramoto-Sivashinsky sets (Lippe et al. 2023, arXiv 2308.05732): one group a split with
          pde_<frames>-<points> [n, t, x], x, t, and scalars [n] dx, dt, v (viscosity)

Axes of space are put into the order (z, y, x). Nothing is judged here; that is the work of `readers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scidiff.core.errors import MissingLibrary, UsageError, nearest
from scidiff.domains.pde.data import AXES, TRUTH, library

TIME = ("time", "t", "times", "step", "frame", "valid_time")
MEMBER = ("member", "members", "ensemble", "ens", "realization", "realisation", "number")
TRAJECTORY = ("trajectory", "traj", "batch", "sample", "simulation", "case", "run")
_PRIVATE = ("Conventions", "title", "history", "source", "boundary", "extent", "dx", "dt")
_UNNAMED = {1: ("u",), 2: ("u", "v"), 3: ("u", "v", "w")}


@dataclass
class Series:
    """One trajectory as a file holds it: frames [F, C, *space] or [M, F, C, *space]; None where the file is silent."""

    name: str
    frames: np.ndarray
    fields: tuple[str, ...]
    points: list[np.ndarray | None]  # coordinates of every axis of space
    times: np.ndarray | None = None
    units: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    boundary: str = ""  # as the file declares it
    truth: np.ndarray | None = None
    split: str | None = None
    dims: tuple[str, ...] = ()  # names of the axes in the file
    made_here: bool = False
    time_unit: str = "1"
    space_unit: str = "1"

    @property
    def space(self) -> int:
        """Dimensions of space."""
        return len(self.points)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames.shape[-self.space:]


@dataclass(frozen=True)
class Wanted:
    """What a reader may be told about a file: fields, names of axes, and the split."""

    fields: tuple[str, ...] | None = None
    time: str | None = None
    trajectory: str | None = None
    member: str | None = None
    split: str | None = None


def series(path: Path, wanted: Wanted) -> Iterator[Series]:
    """Every trajectory of one file. UsageError where the file is none of the known layouts."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    if head[:3] == b"CDF":
        yield from _netcdf(path, wanted, "scipy")
        return
    if head != b"\x89HDF\r\n\x1a\n":
        raise UsageError(f"{path.name} is neither NetCDF nor HDF5.", "Give the file as .nc or .h5.")
    h5py = hdf5()
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UsageError(f"{path.name} is damaged or incomplete: {_line(error)}.") from error
    with file:
        kind = layout(file)
        if kind in _READERS:
            try:
                yield from _READERS[kind](file, path, wanted)
            except (KeyError, OSError, IndexError) as error:
                raise UsageError(f"{path.name} looks like {kind} but cannot be read: {_line(error)}.") from error
            return
        names = ", ".join(list(file)[:8]) or "nothing"
    if kind != "netcdf":
        raise UsageError(f"The layout of {path.name} is not known (its top level holds {names}).",
                         "Readable: NetCDF, The Well, PDEBench and pdearena HDF5.")
    yield from _netcdf(path, wanted, "h5netcdf")


def hdf5() -> Any:
    """h5py, or MissingLibrary with what to install."""
    try:
        import h5py
    except ImportError as error:
        raise MissingLibrary("h5py", "Reading HDF5 and NetCDF4 files", "pip install h5py h5netcdf") from error
    return h5py


def layout(file: Any) -> str | None:
    """netcdf, well, pdebench, pdearena, or None."""
    names = list(file)
    group = hdf5().Group
    if "_NCProperties" in file.attrs:
        return "netcdf"
    if "t0_fields" in names or "t1_fields" in names:
        return "well"
    if any(isinstance(file[n], group) and any(k.startswith("pde_") for k in file[n]) for n in names):
        return "pdearena"
    if "tensor" in names or any(n.endswith("-coordinate") for n in names):
        return "pdebench"
    if names and all(n.isdigit() for n in names) and "data" in file[names[0]]:
        return "pdebench"
    scales = any(b"DIMENSION_SCALE" in np.bytes_(file[n].attrs.get("CLASS", b"")) for n in names)
    return "netcdf" if scales else None


# -- NetCDF


def _netcdf(path: Path, wanted: Wanted, engine: str) -> Iterator[Series]:
    xarray = library()
    if engine == "h5netcdf":
        hdf5()
        try:
            import h5netcdf  # noqa: F401
        except ImportError as error:
            raise MissingLibrary("h5netcdf", "Reading NetCDF4 files", "pip install h5netcdf") from error
    try:
        ds = xarray.open_dataset(path, engine=engine, decode_times=False, decode_timedelta=False)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise UsageError(f"{path.name} cannot be read as NetCDF: {_line(error)}.") from error
    with ds:
        roles = {"time": _role(ds.dims, wanted.time, TIME, path), "member": _role(ds.dims, wanted.member, MEMBER, path),
                 "trajectory": _role(ds.dims, wanted.trajectory, TRAJECTORY, path)}
        names, space = _fields(ds, wanted, {r for r in roles.values() if r}, path)
        count = ds.sizes[roles["trajectory"]] if roles["trajectory"] else 1
        for i in range(count):
            one = ds.isel({roles["trajectory"]: i}) if roles["trajectory"] else ds
            yield _series_of(one, names, space, roles, path, i if count > 1 else None)


def _role(dims: Any, said: str | None, known: Sequence[str], path: Path) -> str | None:
    if said is not None:
        if said not in dims:
            raise UsageError(f"{path.name} has no axis {said!r}.", nearest(said, [str(d) for d in dims]))
        return said
    return next((str(d) for d in dims if str(d).lower() in known), None)


def _fields(ds: Any, wanted: Wanted, other: set[str], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables to read and their axes of space, (z, y, x)."""
    numbers = {str(n): v for n, v in ds.data_vars.items() if v.dtype.kind in "fiu"}
    for name in wanted.fields or ():
        if name not in numbers:
            raise UsageError(f"{path.name} has no variable {name!r}.", nearest(name, numbers))
    found = {n: tuple(str(d) for d in v.dims if str(d) not in other) for n, v in numbers.items()}
    fields = wanted.fields or tuple(n for n, space in found.items()
                                    if space and not n.endswith(TRUTH) and numbers[n].dtype.kind == "f")
    if not fields:
        raise UsageError(f"{path.name} holds no field: none of its variables ({', '.join(numbers) or 'none'}) has an "
                         "axis of space.")
    space = found[fields[0]]
    if wanted.fields is None:
        fields = tuple(n for n in fields if set(found[n]) == set(space))
    for name in fields:
        if set(found[name]) != set(space) or not space:
            raise UsageError(f"The variables {fields[0]!r} and {name!r} of {path.name} have different axes: "
                             f"({', '.join(numbers[fields[0]].dims)}) and ({', '.join(numbers[name].dims)}).")
    if len(space) > 3:
        raise UsageError(f"{fields[0]!r} in {path.name} has the axes {', '.join(space)} besides time.",
                         "Say which one counts trajectories with trajectory=...")
    return fields, _ordered(space)


def _ordered(space: Sequence[str]) -> tuple[str, ...]:
    """Names of axes with x last where they are called x, y, z; else as they are."""
    lowered = [s.lower() for s in space]
    return tuple(sorted(space, key=lambda s: "zyx".index(s.lower()))) if set(lowered) <= set("xyz") else tuple(space)


def _series_of(one: Any, names: Sequence[str], space: Sequence[str], roles: Mapping[str, str | None], path: Path,
               number: int | None) -> Series:
    time, member = roles["time"], roles["member"]
    lead = [r for r in (member, time) if r in one[names[0]].dims]
    values = np.stack([one[n].transpose(*lead, *space).values for n in names], len(lead))
    timed = time in lead
    attrs = {str(k): _python(v) for k, v in one.attrs.items()}
    scalars = {str(n): v for n, v in one.variables.items() if not v.dims and str(n) != roles["trajectory"]}
    named = _python(scalars.pop("id").values) if "id" in scalars else None
    extra = {n: _python(v.values) for n, v in scalars.items() if n not in ("valid", "reason")}
    truth = None
    if timed and all(n + TRUTH in one.data_vars for n in names):
        truth = np.stack([one[n + TRUTH].transpose(time, *space).values for n in names], 1)
    return Series(
        str(named or attrs.get("id") or _name(path, number)),
        values if timed else np.expand_dims(values, len(lead)),
        tuple(names),
        [np.asarray(one[a].values, dtype=np.float64) if a in one.coords else None for a in space],
        np.asarray(one[time].values, dtype=np.float64) if timed and time in one.coords else None,
        tuple(str(one[n].attrs.get("units", "1")) for n in names),
        {k: v for k, v in (attrs | extra).items() if k not in _PRIVATE and k != "id"},
        str(attrs.get("boundary", "")), truth, attrs.get("split"), tuple(str(d) for d in one[names[0]].dims),
        attrs.get("source") == "scidiff",
        str(one[time].attrs.get("units", "1")) if timed and time in one.coords else "1",
        str(one[space[0]].attrs.get("units", "1")) if space[0] in one.coords else "1",
    )


# -- HDF5


def _well(file: Any, path: Path, wanted: Wanted) -> Iterator[Series]:
    kind = _text(file.attrs.get("grid_type", "cartesian"))
    axes = [_text(a) for a in np.atleast_1d(file["dimensions"].attrs["spatial_dims"])]
    if kind != "cartesian":
        raise UsageError(f"The grid of {path.name} is {kind}; only Cartesian grids can be read.")
    arrays = _well_fields(file, axes)
    for name in wanted.fields or ():
        if name not in arrays:
            raise UsageError(f"{path.name} has no field {name!r}.", nearest(name, arrays))
    names = wanted.fields or tuple(n for n, (a, _) in arrays.items() if all(_flags(a, axes)[1:]))
    if not names:
        raise UsageError(f"{path.name} holds no field that varies in time and space.")
    order = [axes.index(a) for a in _ordered(axes)]
    types = {_text(d): _text(g.attrs["bc_type"]).lower() for g in file.get("boundary_conditions", {}).values()
             for d in np.atleast_1d(g.attrs["associated_dims"])}
    walls = [f"{t} in {d}" for d, t in types.items() if t != "periodic"]
    boundary = ", ".join(walls) if walls else "periodic" if set(types) >= set(axes) else ""
    time = file["dimensions/time"]
    for i in range(int(file.attrs["n_trajectories"])):
        t = np.asarray(time[i] if time.ndim == 2 else time[...], dtype=np.float64)
        points = [np.asarray(p[i] if bool(p.attrs.get("sample_varying")) else p[...], dtype=np.float64)
                  for p in (file["dimensions"][a] for a in axes)]
        shape = (len(t), *(len(p) for p in points))
        each = [np.transpose(_well_values(*arrays[n], i, axes, shape), (0, *(1 + k for k in order))) for n in names]
        given = map(_text, np.atleast_1d(file.attrs.get("simulation_parameters", [])))
        attrs = {k: _python(file.attrs[k]) for k in given if k in file.attrs}
        attrs |= {n: float(np.ravel(s[...])[i if bool(s.attrs.get("sample_varying")) else 0])
                  for n, s in file.get("scalars", {}).items() if not bool(s.attrs.get("time_varying"))}
        yield Series(_name(path, i), np.stack(each, 1), tuple(names), [points[k] for k in order], t,
                     boundary=boundary, attrs=attrs, dims=("time", *axes))


def _well_fields(file: Any, axes: Sequence[str]) -> dict[str, tuple[Any, int | None]]:
    """(array, component) by name; vectors give one name a component."""
    found: dict[str, tuple[Any, int | None]] = {n: (a, None) for n, a in file.get("t0_fields", {}).items()}
    for n, a in file.get("t1_fields", {}).items():
        found |= {f"{n}_{axis}": (a, k) for k, axis in enumerate(axes)}
    for n, a in file.get("t2_fields", {}).items():
        found |= {f"{n}_{x}{y}": (a, len(axes) * j + k) for j, x in enumerate(axes) for k, y in enumerate(axes)}
    return found


def _flags(array: Any, axes: Sequence[str]) -> list[bool]:
    """Does it vary with trajectory, time, and each axis of space?"""
    dims = np.atleast_1d(array.attrs.get("dim_varying", [True] * len(axes)))
    trajectory, time = (bool(array.attrs.get(f"{what}_varying", True)) for what in ("sample", "time"))
    return [trajectory, time, *map(bool, dims)]


def _well_values(array: Any, component: int | None, i: int, axes: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """[time, *space] of one trajectory; what does not vary is repeated."""
    sample, *rest = _flags(array, axes)
    values = np.asarray(array[i] if sample else array[...])
    if component is not None:
        values = values.reshape(*values.shape[: sum(rest)], -1)[..., component]
    place = iter(values.shape)
    return np.broadcast_to(values.reshape([next(place) if on else 1 for on in rest]), shape)


def _pdebench(file: Any, path: Path, wanted: Wanted) -> Iterator[Series]:
    if all(n.isdigit() for n in file):
        for n in sorted(file):
            group = file[n]
            values, grid = group["data"][...], group.get("grid", {})
            axes = [a for a in ("x", "y", "z") if a in grid] or ["x", "y", "z"][: values.ndim - 2]
            yield _bench(path, int(n), {"": values}, {a: grid[a][...] for a in axes if a in grid}, axes,
                         grid["t"][...] if "t" in grid else None, wanted)
        return
    points = {n[0]: file[n][...] for n in file if n.endswith("-coordinate")}
    arrays = {n: a for n, a in file.items() if not n.endswith("-coordinate") and getattr(a, "ndim", 0) >= 3}
    if not arrays:
        raise UsageError(f"{path.name} holds no array over (sample, time, x).")
    axes = [a for a in ("x", "y", "z") if a in points] or ["x", "y", "z"][: next(iter(arrays.values())).ndim - 2]
    for i in range(len(next(iter(arrays.values())))):
        parts = {"" if n == "tensor" else n: np.asarray(a[i]) for n, a in arrays.items()}
        yield _bench(path, i, parts, points, axes, points.get("t"), wanted)


def _bench(path: Path, number: int, parts: Mapping[str, np.ndarray], points: Mapping[str, np.ndarray],
           axes: Sequence[str], times: np.ndarray | None, wanted: Wanted) -> Series:
    """Arrays [t, x, ...] or [t, x, ..., c] by name ("": without one) as a Series with axes (..., y, x)."""
    found: dict[str, np.ndarray] = {}
    for name, values in parts.items():
        if values.ndim == len(axes) + 1:
            values = values[..., None]
        if values.ndim != len(axes) + 2:
            raise UsageError(f"An array of {path.name} has the shape {list(values.shape)}, which does not fit the axes "
                             f"t, {', '.join(axes)}.")
        c = values.shape[-1]
        names = _UNNAMED.get(c, tuple(f"u{k}" for k in range(c))) if not name else \
            (name,) if c == 1 else tuple(f"{name}_{k}" for k in (axes if c == len(axes) else range(c)))
        if not name and len(parts) == 1 and wanted.fields and len(wanted.fields) == c:
            names = wanted.fields  # the file names no fields, so these are their names
        found |= {n: values[..., k] for k, n in enumerate(names)}
    for name in wanted.fields or ():
        if name not in found:
            raise UsageError(f"{path.name} has no field {name!r}.", nearest(name, found))
    fields = wanted.fields or tuple(found)
    frames = np.stack([np.transpose(found[n], (0, *range(len(axes), 0, -1))) for n in fields], 1)
    if times is not None:  # some sets store the end of the last interval too
        times = np.asarray(times, dtype=np.float64)[: len(frames)]
    known = [np.asarray(points[a], dtype=np.float64) if a in points else None for a in reversed(axes)]
    return Series(_name(path, number), frames, fields, known, times, dims=("t", *axes))


def _pdearena(file: Any, path: Path, wanted: Wanted) -> Iterator[Series]:
    groups = [g for g in file if any(k.startswith("pde_") for k in file[g])]
    if wanted.split is not None and wanted.split not in groups:
        raise UsageError(f"{path.name} has no split {wanted.split!r}.", nearest(wanted.split, groups))
    for g in groups if wanted.split is None else [wanted.split]:
        data = file[g]
        key = next(k for k in data if re.fullmatch(r"pde_\d+-\d+", k))
        if wanted.fields not in (None, ("u",)):
            raise UsageError(f"{path.name} has no field {wanted.fields[0]!r}.", "It has: u.")
        n_t, n_x = data[key].shape[1:]
        for i in range(len(data[key])):
            scalar = {n: float(np.ravel(data[n][i] if data[n].ndim else data[n][...])[0])
                      for n in ("dx", "dt", "v") if n in data}
            grid = {n: np.asarray(data[n][i] if data[n].ndim == 2 else data[n][...]) for n in ("x", "t") if n in data}
            x = np.arange(n_x) * scalar["dx"] if "dx" in scalar else grid.get("x")
            t = np.arange(n_t) * scalar["dt"] if "dt" in scalar else grid.get("t")
            attrs = {"viscosity": scalar["v"]} if "v" in scalar else {}
            yield Series(f"{g}-{i:05d}", data[key][i][:, None], ("u",), [x], t, attrs=attrs, boundary="periodic",
                         split=g, dims=("t", "x"))


_READERS = {"well": _well, "pdebench": _pdebench, "pdearena": _pdearena}


def axes_in(one: Series) -> tuple[str, ...]:
    """The names under which the axes of space are known from here on."""
    return AXES[one.space]


def _name(path: Path, number: int | None) -> str:
    return path.stem if number is None else f"{path.stem}-{number:05d}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _python(value: Any) -> Any:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return plain.decode() if isinstance(plain, bytes) else plain


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
