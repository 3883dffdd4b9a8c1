"""Trajectories made on the fly from an equation and a seed, and kept in a cache.

A bank is the beginning of an endless sequence. Candidate n of a split starts from `equation.initial` under the key
(seed of the split, n), is burnt in, and gives `num_frames` frames, `interval` apart, the first right after the burn-in.
Candidates that do not separate from a slightly disturbed copy of themselves (laminar cells) are left out, and the next
number takes their place. So trajectory k depends on (settings, seed, split, k) alone:
  * candidates are solved in blocks of fixed numbers (0..b-1, b..2b-1, ...), so that rounding repeats as well;
  * asking for more trajectories changes nothing of the earlier ones, and solves only what is missing;
  * the splits "train", "valid" and "test" have different seeds, made from `seed` and their names: no two share a state.
`vary` draws a box, an interval or a parameter of the equation for every candidate from U[low, high], by (seed, n) too.

Cache: <cache folder>/trajectories/<equation>-<split>-<key>-<count>.npy, float32 [count, F, C, *space], with a .json
beside it that is written last and holds its settings, numbers and checksum. The key is a hash of the settings; a file
that does not agree with its .json is made anew. An interrupted run leaves what it has finished, and continues there.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest
from scidiff.core.run import hash_text, mix_int, uniform
from scidiff.domains.pde.data import resample
from scidiff.store import atomic
from scidiff.store.fetch import cache_folder

if TYPE_CHECKING:
    from scidiff.domains.pde.equations import Equation, SpectralSolver

VERSION = 1
"""Of the solver and of the way from a seed to a trajectory: raise it where either changes."""
SPLITS = ("train", "valid", "test")
CARRIED = ("extent", "interval")  # what may vary besides the parameters of the equation
_POINTS = {"cpu": 1 << 14, "cuda": 1 << 22}  # grid points of one block: enough to fill the device, few to throw away
_PIECE = 1 << 22  # values of the solver that are held before they are resampled and rounded
_LEAST_SHARE = 0.05  # of candidates that must not be laminar
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, eq=False)
class TrajectoryBank:
    """`count` trajectories of an equation (module docstring).

    shape, extent    stored grid and lengths of the box, last axis x
    interval         time between two stored frames; num_frames of them a trajectory
    burn_in          time before the first frame, rounded up to whole intervals; None: as the equation says
    solver_dt        largest step of the solver; a whole number of steps fits into `interval`; None: the equation's own
    solve_shape      grid of the solver, resampled spectrally to `shape`; None: the same
    dtype            arithmetic of the solver; frames are stored in float32
    vary             {"extent" | "interval" | parameter: (low, high)}
    """

    equation: Equation
    shape: tuple[int, ...]
    extent: tuple[float, ...]
    interval: float
    num_frames: int
    count: int
    burn_in: float | None = None
    seed: int = 0
    split: str = "train"
    solver_dt: float | None = None
    solve_shape: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float64
    reject_laminar: bool = False
    vary: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    device: str = "cpu"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"There is no split {self.split!r} of trajectories.", nearest(self.split, SPLITS))
        for name, value, least in (("count", self.count, 1), ("frames", self.num_frames, 1)):
            if value < least:
                raise UsageError(f"{name}={value} must be {least} or more.")
        for name, value in (("interval", self.interval), ("solver_dt", self.solver_dt), *(("extent", e)
                                                                                          for e in self.extent)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise UsageError(f"{name}={value:g} must be positive.")
        if self.burn_in is not None and not (math.isfinite(self.burn_in) and self.burn_in >= 0.0):
            raise UsageError(f"burn_in={self.burn_in:g} must be zero or more.")
        if len(self.shape) != len(self.extent) or len(self.shape) != self.equation.dims:
            raise UsageError(f"The equation {self.equation.name!r} lives in {self.equation.dims} dimensions; the grid "
                             f"has {len(self.shape)} and the box {len(self.extent)}.")
        parameters = [f.name for f in fields(self.equation)]  # type: ignore[arg-type]
        for name, (low, high) in self.vary.items():
            if name not in (*CARRIED, *parameters):
                raise UsageError(f"{name!r} cannot vary.", nearest(name, (*CARRIED, *parameters)))
            if not low <= high:
                raise UsageError(f"vary.{name} is [{low:g}, {high:g}]; the lower bound comes first.")

    # -- what a person asks for

    def frames(self, start: int = 0, count: int | None = None, progress: Progress | None = None) -> Tensor:
        """float32 [n, F, C, *space] of trajectories start, start + 1, ...: a private view of the memory-mapped file."""
        stop = self.count if count is None else start + count
        if not 0 <= start <= stop <= self.count:
            raise UsageError(f"The bank holds trajectories 0 to {self.count - 1}, not {start} to {stop - 1}.")
        return torch.from_numpy(self._open(progress)[0][start:stop])

    def ids(self) -> list[int]:
        """The candidate number of every trajectory."""
        return self._open(None)[1]["ids"][: self.count]

    def rejected(self) -> list[int]:
        """Candidates before the last trajectory that were laminar."""
        kept = self.ids()
        return sorted(set(range(kept[-1] + 1)) - set(kept))

    def scalars(self) -> dict[str, Tensor]:
        """What varies, float64 [count] by name."""
        return self._drawn(torch.tensor(self.ids()))

    # -- settings

    @cached_property
    def split_seed(self) -> int:
        """The seed of this split's initial states."""
        return mix_int(self.seed ^ hash_text(f"trajectories.{self.split}")) >> 1

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """The solver's grid."""
        return tuple(self.solve_shape or self.shape)

    @cached_property
    def every(self) -> int:
        """Steps of the solver from one frame to the next."""
        dt = self.solver_dt or self.equation.typical.dt
        return max(math.ceil(self.interval / dt - 1e-9), 1)

    @cached_property
    def waiting(self) -> int:
        """Intervals of burn-in."""
        time = self.equation.burn_in if self.burn_in is None else self.burn_in
        return math.ceil(time / self.interval - 1e-9)

    @cached_property
    def block(self) -> int:
        """Candidates that are solved together."""
        return max(min(_POINTS.get(self.device.partition(":")[0], 1 << 14) // math.prod(self.grid), 512), 2)

    def settings(self) -> dict[str, Any]:
        """Everything that decides a trajectory, as JSON; not how many there are."""
        return {
            "version": VERSION, "equation": self.equation.to_config(), "shape": list(self.shape),
            "extent": list(self.extent), "interval": self.interval, "frames": self.num_frames,
            "waiting": self.waiting, "every": self.every, "grid": list(self.grid), "block": self.block,
            "dtype": str(self.dtype).removeprefix("torch."), "reject_laminar": self.reject_laminar,
            "vary": {k: [float(x) for x in v] for k, v in sorted(self.vary.items())}, "seed": self.seed,
            "split": self.split, **({} if self.device == "cpu" else {"device": self.device}),
        }

    @cached_property
    def key(self) -> str:
        """The hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:16]

    # -- cache

    @cached_property
    def _home(self) -> Path:
        return self.folder or cache_folder() / "trajectories"

    def path(self, count: int | None = None) -> Path:
        """Where `count` trajectories of these settings lie."""
        name = f"{self.equation.name}-{self.split}-{self.key}-{count or self.count:06d}.npy"
        return self._home / name

    def _open(self, progress: Progress | None) -> tuple[np.ndarray, dict[str, Any]]:
        """The memory map and its record, from the cache or made now."""
        if "_opened" not in self.__dict__:
            found = self._cached()
            if found is None or len(found[0]) < self.count:
                found = self._extend(found, progress)
            self.__dict__["_opened"] = found
        return self.__dict__["_opened"]

    def _cached(self) -> tuple[np.ndarray, dict[str, Any]] | None:
        """The shortest sound file that is long enough, else the longest sound one."""
        stem = self.path(0).name.rpartition("-")[0]
        held = sorted(self._home.glob(f"{stem}-*.json"), key=lambda f: f.name)
        sizes = {file: int(file.stem.rpartition("-")[2]) for file in held if file.stem[-6:].isdigit()}
        enough = [file for file in held if sizes.get(file, 0) >= self.count]
        short = [file for file in reversed(held) if 0 < sizes.get(file, 0) < self.count]
        for file in (*enough, *short):
            found = self._sound(file)
            if found is not None:
                return found
        return None

    def _sound(self, file: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
        """The memory map of a .json file, or None where the two do not agree."""
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            values = np.load(file.with_suffix(".npy"), mmap_mode="c")
            wanted = (len(record["ids"]), self.num_frames, self.equation.channels, *self.shape)
            if record["settings"] == self.settings() and values.shape == wanted and values.dtype == np.float32 \
                    and checksum([values]) == record["crc32"]:
                return values, record
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            pass
        for damaged in (file, file.with_suffix(".npy")):
            with suppress(OSError):
                damaged.unlink()
        return None

    def _extend(
        self, found: tuple[np.ndarray, dict[str, Any]] | None, progress: Progress | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Solves for what is missing; what is finished is kept, also where the work is interrupted."""
        old, ids = (None, []) if found is None else (found[0], list(found[1]["ids"]))
        parts: list[np.ndarray] = [] if old is None else [old]
        had = len(ids)
        first = ids[-1] + 1 if ids else 0
        start = first - first % self.block
        sane = 0  # candidates from `first` on that are not laminar
        try:
            while len(ids) < self.count:
                numbers = torch.arange(start, start + self.block)
                frames, sound = self.solve(numbers)
                wanted = sound & (numbers >= first)
                sane += int(wanted.sum())
                new = numbers[wanted].tolist()[: self.count - len(ids)]
                parts.append(frames[wanted][: len(new)].numpy())
                ids += new
                start += self.block
                if progress is not None:
                    progress("Solving the equation", len(ids), self.count)
                if start - first >= 64 and sane < _LEAST_SHARE * (start - first):
                    raise UsageError(f"{start - first - sane} of {start - first} trajectories are laminar, so these "
                                     f"settings of {self.equation.name!r} are no test of a forecast.",
                                     "Take another extent or viscosity, or reject_laminar=false.")
        finally:
            if len(ids) > had:
                self._write(parts, ids)
        kept = self._sound(self.path(len(ids)).with_suffix(".json"))
        if kept is not None:  # a memory map instead of what fills the memory now
            return kept
        return np.concatenate(parts), {"ids": ids}

    def _write(self, parts: Sequence[np.ndarray], ids: list[int]) -> None:
        """The .npy and then the .json, each whole or not at all; shorter files of the same settings go."""
        target = self.path(len(ids))
        shape = (len(ids), *parts[0].shape[1:])
        with atomic.writing(target) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for part in parts:
                np.ascontiguousarray(part, dtype="<f4").tofile(file)
        about = {"settings": self.settings(), "ids": ids, "crc32": checksum(parts)}
        atomic.write_json(target.with_suffix(".json"), about)
        for other in self._home.glob(f"{target.name.rpartition('-')[0]}-*"):
            size = other.stem.rpartition("-")[2]
            if size.isdigit() and int(size) < len(ids):
                with suppress(OSError):  # open elsewhere on a system that locks open files
                    other.unlink()

    # -- the equation

    def _drawn(self, numbers: Tensor) -> dict[str, Tensor]:
        return {name: low + (high - low) * uniform(self.split_seed, numbers, f"trajectories.{name}")[:, 0]
                for name, (low, high) in sorted(self.vary.items())}

    def solver(self, numbers: Tensor) -> tuple[SpectralSolver, Any]:
        """The solver of these candidates, and their equation."""
        from scidiff.domains.pde.equations import SpectralSolver

        drawn = self._drawn(numbers)
        own = {n: v.tolist() for n, v in drawn.items() if n not in CARRIED}
        law = self.equation if not own else type(self.equation).from_config(self.equation.to_config() | own)
        extent = drawn.get("extent", self.extent)
        dt = drawn["interval"] / self.every if "interval" in drawn else self.interval / self.every
        return SpectralSolver(law, self.grid, extent, dt, dtype=self.dtype, device=self.device), law

    def solve(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(float32 frames [B, F, C, *space], not laminar [B]) of the candidates with these numbers."""
        from scidiff.domains.pde.equations import laminar

        solver, law = self.solver(numbers)
        state = law.initial(numbers, self.split_seed, self.grid, solver.extent, self.dtype).to(self.device)
        if self.waiting:
            steps = self.waiting * self.every
            state = solver.rollout(state, steps, steps)[:, -1]
        sound = torch.ones(len(numbers), dtype=torch.bool)
        if self.reject_laminar:
            sound = ~laminar(solver, state).cpu()
        out = torch.empty(len(numbers), self.num_frames, *state.shape[1:-len(self.shape)], *self.shape)
        out[:, 0] = resample(state, self.shape).cpu()
        piece = max(_PIECE // state.numel(), 1)
        for first in range(1, self.num_frames, piece):
            few = min(piece, self.num_frames - first)
            part = solver.rollout(state, few * self.every, self.every)
            out[:, first : first + few] = resample(part, self.shape).cpu()
            state = part[:, -1]
        return out, sound


def checksum(parts: Sequence[np.ndarray]) -> int:
    """CRC-32 of the values of arrays, one after the other."""
    crc = 0
    for part in parts:
        for one in part:
            crc = zlib.crc32(np.ascontiguousarray(one, dtype="<f4").data, crc)
    return crc


_OPTIONS = ("equation", "shape", "extent", "interval", "frames", "count", "burn_in", "seed", "solver_dt", "solve_shape",
            "reject_laminar", "vary", "dtype", "device", *SPLITS)


def from_options(options: Mapping[str, Any], split: str = "train", limit: int | None = None) -> TrajectoryBank:
    """The bank of a data card's options.

    equation: a name, or {name, parameters}; shape, extent, interval, burn_in, seed, solve_shape, reject_laminar, vary,
    dtype, device; and {train, valid, test}: {count, frames, solver_dt}, each of which a value beside them overrides.
    """
    from scidiff.domains.pde.equations import EQUATIONS

    for name in options:
        if name not in _OPTIONS:
            raise UsageError(f"Trajectories of an equation have no option {name!r}.", nearest(name, _OPTIONS))
    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r} of trajectories.", nearest(split, SPLITS))
    given = {**(options.get(split) or {}), **{k: v for k, v in options.items() if v is not None and k not in SPLITS}}
    for name in ("equation", "interval", "frames", "count"):
        if name not in given:
            raise UsageError(f"Trajectories of an equation need {name}.", f"Say it with data.options.{name}=...")
    about = given["equation"] if isinstance(given["equation"], Mapping) else {"name": given["equation"]}
    if "name" not in about:
        raise UsageError("The equation has parameters, but no name.",
                         "Give them together: data.options.equation={name: ks, viscosity: 1.0}.")
    kind = EQUATIONS.get(str(about["name"]))
    if kind is None:
        raise UsageError(f"There is no equation {about['name']!r}.", nearest(str(about["name"]), EQUATIONS))
    law = kind.from_config(dict(about))
    shape = tuple(int(n) for n in _several(given.get("shape", law.shape)))
    extent = tuple(float(x) for x in _several(given.get("extent", law.extent)))
    dtype = {"float32": torch.float32, "float64": torch.float64}.get(str(given.get("dtype", "float64")))
    if dtype is None:
        raise UsageError(f"The solver works in float32 or float64, not in {given['dtype']!r}.")
    count = int(given["count"])
    return TrajectoryBank(
        law, shape, extent * len(shape) if len(extent) == 1 else extent, float(given["interval"]), int(given["frames"]),
        min(count, limit) if limit else count, None if given.get("burn_in") is None else float(given["burn_in"]),
        int(given.get("seed", 0)), split, None if given.get("solver_dt") is None else float(given["solver_dt"]),
        tuple(int(n) for n in _several(given["solve_shape"])) if given.get("solve_shape") else None, dtype,
        bool(given.get("reject_laminar", False)),
        {k: (float(v[0]), float(v[1])) for k, v in (given.get("vary") or {}).items()}, str(given.get("device", "cpu")),
    )


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
