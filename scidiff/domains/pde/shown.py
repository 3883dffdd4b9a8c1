"""What pictures of trajectories are drawn from: the tensors of many forecasts, the rows of one, names of axes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.domains.pde import skill
from scidiff.domains.pde.data import TRUTH, axes_of, extent_of, field_names, from_dataset
from scidiff.domains.pde.metrics import LEAD, lyapunov_exponent

if TYPE_CHECKING:
    from xarray import Dataset

FIELD, SPREAD, ERROR = "field", "spread", "error"


@dataclass(frozen=True)
class Axis:
    """A name and its unit."""

    name: str
    unit: str

    @property
    def label(self) -> str:
        return self.name if self.unit in ("", "1") else f"{self.name} ({self.unit})"

    @classmethod
    def of(cls, ds: Dataset, name: str) -> Axis:
        unit = str(ds[name].attrs.get("units", "1")) if name in ds.variables else "1"
        return cls(name, "time units" if name == "time" and unit == "1" else unit)


@dataclass(frozen=True)
class Row:
    """Values [F, *space] of one kind (FIELD, SPREAD or ERROR) under a title."""

    title: str
    values: np.ndarray
    kind: str


@dataclass(frozen=True)
class Forecasts:
    """Rollouts [T, M, S, C, *space] with truth [T, S, C, *space] (None: unknown) and first states [T, C, *space].

    times [S] after the first state, in the unit of `clock`; exponent: the leading Lyapunov exponent, where it is known.
    """

    predicted: Tensor
    truth: Tensor | None
    initial: Tensor
    times: np.ndarray
    extent: tuple[float, ...]
    clock: Axis
    exponent: float | None

    @classmethod
    def of(cls, objects: Sequence[Dataset]) -> Forecasts:
        """All rollouts that have the shape of the first one."""
        first, fields = objects[0], field_names(objects[0])
        alike = [o for o in objects if o.sizes == first.sizes and set(o.data_vars) == set(first.data_vars)]
        frames = torch.stack([from_dataset(o, fields)[0] for o in alike])
        frames = frames if "member" in first.sizes else frames.unsqueeze(1)
        truth = None
        if all(f + TRUTH in first.data_vars for f in fields):
            truth = torch.stack([from_dataset(o, [f + TRUTH for f in fields])[0] for o in alike])[:, 1:]
        times = np.asarray(first["time"].values, dtype=np.float64)
        return cls(frames[:, :, 1:], truth, frames[:, 0, 0], (times - times[0])[1:],
                   extent_of(first, axes_of(first, fields[0])), Axis.of(first, "time"), exponent_of(first))

    @property
    def interval(self) -> float:
        return float(self.times[0])

    @property
    def members(self) -> int:
        return self.predicted.shape[1]

    @property
    def lead(self) -> int:
        """The step at which an ensemble is judged."""
        return max(min(round(LEAD / self.interval), len(self.times)), 1)

    def sound(self) -> tuple[Tensor, Tensor]:
        """Rollouts and truths of the trajectories of which no member blew up."""
        assert self.truth is not None
        kept = torch.isfinite(self.predicted).flatten(1).all(1)
        return self.predicted[kept], self.truth[kept]


def exponent_of(ds: Dataset) -> float | None:
    """The leading Lyapunov exponent, where it is known for the equation of a trajectory."""
    from scidiff.domains.pde.equations import EQUATIONS

    try:
        about = json.loads(ds.attrs["equation"])
        extent = extent_of(ds, axes_of(ds, field_names(ds)[0]))
        return lyapunov_exponent(EQUATIONS[about["name"]].from_config(about), extent)
    except (KeyError, TypeError, ValueError, UsageError):
        return None


def rows_of(ds: Dataset, field: str) -> list[Row]:
    """What is drawn of one trajectory: the truth, a member, the mean and spread of all, the error of the member."""
    axes = axes_of(ds, field)
    values = ds[field].transpose(..., "time", *axes).values
    members = values if values.ndim == len(axes) + 2 else values[None]
    true = ds[field + TRUTH].transpose("time", *axes).values if field + TRUTH in ds.data_vars else None
    name = "one member" if len(members) > 1 else "forecast" if true is not None else field
    rows = [Row("reference solution", true, FIELD)] if true is not None else []
    rows.append(Row(name, members[0], FIELD))
    if len(members) > 1:
        mean, spread = _moments(members)
        rows.append(Row(f"mean of {len(members)} members", mean, FIELD))
        rows.append(Row("spread (standard deviation)", spread, SPREAD))
    if true is not None:
        rows.append(Row(f"error: {name} minus reference", members[0] - true, ERROR))
    return rows


def _moments(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the members that are still finite; NaN for fewer than two."""
    sound = np.isfinite(members)
    count = sound.sum(0)
    few = count < 2
    mean = np.where(sound, members, 0.0).sum(0) / np.maximum(count, 1)
    square = np.where(sound, members - mean, 0.0) ** 2
    spread = np.sqrt(square.sum(0) / np.maximum(count - 1, 1))
    return np.where(few, np.nan, mean), np.where(few, np.nan, spread)


def lost_at(ds: Dataset, field: str) -> float | None:
    """When the member that is drawn loses the truth (its correlation falls to 0.8); None where it does not."""
    if field + TRUTH not in ds.data_vars or ds.sizes["time"] < 2:
        return None
    one = Forecasts.of([ds])
    assert one.truth is not None
    kept = int(skill.crossing(skill.correlations(one.predicted[:, :1], one.truth)[0, 0], 0.8))
    return None if kept == len(one.times) else float(ds["time"].values[kept])


def told(ds: Dataset, field: str) -> str:
    """The rows in words, for a caption."""
    members, true = ds.sizes.get("member", 1), field + TRUTH in ds.data_vars
    parts = ["reference solution"] if true else []
    parts += [f"one of {members} members", "their mean and spread"] if members > 1 else \
        ["forecast" if true else f"{field} in space and time"]
    parts += ["error of that member" if members > 1 else "its error"] if true else []
    lost = "" if np.isfinite(ds[field].values).all() else " (grey: blown up)"
    return ", ".join(parts) + lost
