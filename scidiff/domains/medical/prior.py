"""A trained model as the prior of a reconstruction: what it knows of intensities, and its denoiser on a given grid.

What the domain object of a model may tell, all of it optional:

    modality, scale     "CT" or "MR", and the name of the range of CT values (`intensity.scale_for`)
    known               `intensity.Known` or {low, high}: the quantiles of its training volumes
    shift, gain         values x in the range of `scale` are gain s + shift of states s (0 and 1)
    conformal           {task: factor} of the half widths of 90 % intervals, fitted on a validation subject; tasks are
                        named by `task_of` (ct_20, ct_limited, mri_4, ...)

A prior knows slices [1, S, T], triplets of slices [3, S, T], or blocks [1, Z, S, T]. A smaller scan stands in the
middle of a prior's slice, whose margin nobody measures. A larger one is refused, since nothing is resampled unasked,
but by a convolutional network (which says a `multiple`, the stride of its sides): that one takes a larger square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.operator import LinearOperator
from scidiff.core.posterior.chunked import Chunked
from scidiff.core.posterior.perpendicular import Perpendicular
from scidiff.core.posterior.triplets import Triplets, of_slices
from scidiff.core.spec import Context, StateSpec
from scidiff.domains.medical.intensity import Known
from scidiff.domains.medical.operators.cone import ConeCT
from scidiff.domains.medical.operators.ct import LimitedAngle, ViewTable
from scidiff.domains.medical.operators.grids import Cropped, Whole
from scidiff.domains.medical.operators.mri import MRI
from scidiff.domains.medical.patchwork import Patchwork
from scidiff.domains.medical.streaming import CHUNK
from scidiff.domains.model import Model, pick_device
from scidiff.store import checkpoint

if TYPE_CHECKING:
    from scidiff.domains.medical.ask import Ask
    from scidiff.domains.medical.volume import Volume


@dataclass(frozen=True)
class Facts:
    """What a prior knows of intensities; the empty one stands for reconstructions without a prior."""

    modality: str = ""
    scale: str = "ct"
    known: Known | None = None
    shift: float = 0.0
    gain: float = 1.0

    @classmethod
    def of(cls, model: Model | None) -> Facts:
        domain: Any = None if model is None else model.domain
        known = getattr(domain, "known", None)
        if isinstance(known, Mapping):
            known = Known.from_json(known)
        return cls(str(getattr(domain, "modality", None) or ""), str(getattr(domain, "scale", None) or "ct"), known,
                   float(getattr(domain, "shift", 0.0)), float(getattr(domain, "gain", 1.0)))


def task_of(operator: LinearOperator) -> str:
    """A name for what is measured: ct_20 (views), ct_limited, cone_60, mri_4 (acceleration), else the class."""
    if isinstance(operator, LimitedAngle):
        return "ct_limited"
    if isinstance(operator, (ViewTable, ConeCT)):
        return f"{'ct' if isinstance(operator, ViewTable) else 'cone'}_{len(operator.angles)}"
    if isinstance(operator, MRI):
        return f"mri_{round(operator.acceleration)}"
    return type(operator).__name__.lower()


def conformal_of(model: Model | None, operator: LinearOperator) -> tuple[float, str]:
    """(factor, the task that it was fitted on): the task itself, else the nearest number of its family; (1, "")."""
    stored = getattr(None if model is None else model.domain, "conformal", None) or {}
    task = task_of(operator)
    if task in stored:
        return float(stored[task]), task
    family, _, number = task.rpartition("_")
    others = [k for k in stored if k.rpartition("_")[0] == family and k.rpartition("_")[2].isdigit()]
    if not others or not number.isdigit():
        return 1.0, ""
    nearby = min(others, key=lambda k: abs(math.log(int(k.rpartition("_")[2]) / int(number))))
    return float(stored[nearby]), nearby


@dataclass(frozen=True, eq=False)
class Prior:
    """A denoiser of a whole volume as the posterior solvers take it, and the operator as it measures its images."""

    denoiser: Denoiser
    spec: StateSpec
    name: str
    operator: LinearOperator

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.spec[self.name].shape)


def prior_for(ask: Ask, domain_name: str = "medical") -> str | None:
    """The shipped prior of the modality that an operator measures: CT for tomographs, MR for coils, else CT."""
    wanted = "MR" if ask.kspace or any(w in ask.measured_by for w in (".mri.", ".nufft.")) else "CT"
    for model in checkpoint.shipped():
        if model.domain != domain_name:
            continue
        try:
            about = checkpoint.read_config(model.folder).get("domain") or {}
        except ScidiffError:  # a damaged model is no candidate
            continue
        if str((about.get("options") or {}).get("modality", "")) == wanted:
            return model.experiment
    return None


def sized(model: Model, size: tuple[int, int]) -> tuple[Denoiser, StateSpec, str]:
    """(denoiser, spec, component) of a model for slices of `size`: a larger square where its network takes any."""
    name = next(iter(model.spec))
    own = model.spec[name]
    *lead, height, width = (int(n) for n in own.shape)
    multiple = getattr(getattr(model.denoiser, "backbone", None), "multiple", None)
    if multiple is None or (size[0] <= height and size[1] <= width):
        return model.denoiser, model.spec, name
    side = -(-max(*size, height, width) // int(multiple)) * int(multiple)
    return model.denoiser, StateSpec({**model.spec, name: replace(own, shape=(*lead, side, side))}), name


def context_of(model: Model, ask: Ask, volume: Volume, count: int) -> Context:
    """What the prior is told of the `count` samples of a volume: what was asked, its contrast, the edge of a pixel."""
    told = dict(ask.condition)
    contrasts = getattr(model.domain, "contrasts", ()) if volume.contrast else ()
    known = {"pixel_mm": volume.spacing[2], **{c: float(c == volume.contrast) for c in contrasts}}
    for key, value in known.items():
        if key in model.conditions:
            told.setdefault(key, value)
    return model.template(torch.arange(count), ask.seed, told)


def prior_of(model: Model, ask: Ask, operator: LinearOperator, depth: int, chunk: int | None = None) -> Prior:
    """The prior of a scan of `depth` slices that the operator measures; UsageError where it does not fit."""
    place, dtype = pick_device(ask.device), torch.float64 if ask.precision == 64 else torch.float32
    rows, columns = (int(n) for n in operator.in_shape[-2:])
    inner, spec, name = sized(model, (rows, columns))
    inner.to(place, dtype).eval()
    shape = tuple(int(n) for n in spec[name].shape)
    height, width = shape[-2:]
    if rows > height or columns > width:
        raise UsageError(f"The slices have {rows} x {columns} pixels, those of the prior {model.name} {height} x "
                         f"{width}.", f"--size {min(height, width)} averages the scan to the size of the prior.")
    if len(shape) == 4:
        if shape[1] != depth:
            raise UsageError(f"The prior {model.name} makes volumes of {shape[1]} slices, and this one has {depth}.",
                             "Choose the slices with reading.cut=[first,last].")
        whole = Whole(operator, depth)
        return Prior(inner, spec, name, whole if shape[-2:] == (rows, columns) else Cropped(whole, shape))
    if ask.volume.get("patch"):
        inner = Patchwork(inner, spec, int(ask.volume["patch"]))
    seen: Denoiser = Chunked(inner, chunk or CHUNK)
    if shape[0] == 3 or ask.kind == "triplets":
        if shape[0] != 3:
            raise UsageError(f"The prior {model.name} knows single slices, not triplets of them.",
                             "Leave volume=triplets out.")
        seen, spec = Triplets(seen, spec, depth, int(ask.volume.get("jump") or 3)), of_slices(spec, name)
        shape = (1, height, width)
    if ask.kind == "perpendicular":
        seen = _perpendicular(model, ask, seen, spec, name, depth, chunk)
    if shape[-2:] == (rows, columns):
        return Prior(seen, spec, name, operator)
    return Prior(seen, spec, name, Cropped(operator, (*operator.in_shape[:-2], height, width)))


def _perpendicular(model: Model, ask: Ask, primary: Denoiser, spec: StateSpec, name: str, depth: int,
                   chunk: int | None) -> Denoiser:
    """The primary prior in turn with one of the coronal slices [1, Z, X]."""
    named = ask.volume.get("model")
    other = model if named is None else Model.load(named, ask.device)
    _, columns = (int(n) for n in spec[name].shape[-2:])
    name_of, own = next(iter(other.spec.items()))
    height, width = (int(n) for n in own.shape[-2:])
    their = other.spec
    if (height, width) != (depth, columns) and getattr(getattr(other.denoiser, "backbone", None), "multiple", None):
        their = StateSpec({**their, name_of: replace(own, shape=(*own.shape[:-2], depth, columns))})
    inner, theirs = other.denoiser, name_of
    if tuple(their[theirs].shape[-2:]) != (depth, columns):
        raise UsageError(f"Coronal slices of this volume have {depth} x {columns} pixels, those of the prior "
                         f"{other.name} {' x '.join(map(str, their[theirs].shape[-2:]))}.",
                         "Name a prior of that size with volume.model=NAME.")
    inner.to(pick_device(ask.device), torch.float64 if ask.precision == 64 else torch.float32).eval()
    path: Any = spec[name].path
    return Perpendicular(primary, Chunked(inner, chunk or CHUNK), name, path, depth, theirs,
                         every=float(ask.volume.get("every") or 2))
