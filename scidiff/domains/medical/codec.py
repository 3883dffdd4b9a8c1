"""Slices (or blocks of slices) as states of the core, and back.

    state "x"    [1, S, S] of a slice, [1, D, S, S] of a block of D slices, in the range of the prior
    CT           x = (v - low) / (high - low) of the prior's range in HU (`intensity.SCALES`), values beyond cut
    MR           x = v, where v is the magnitude divided by the 99.9th percentile of the foreground of its volume:
                 scanner units do not compare, so a slice of MR is kept on that scale

The native object of the domain is a `Volume` of one slice (of D slices), `nifti.to_image` makes its nibabel image.
`cut` makes slices of whole volumes: squares of S x S pixels, averaged over equal areas, at one or several fields of
view. A field of 0.8 keeps four fifths of the side of the plane about the middle of the body: the same subject as a
scanner with a narrower field sees it, with its detail, which no later magnification brings back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest
from scidiff.core.spec import Context, State
from scidiff.domains.medical.intensity import SCALES, Scale, scale_for
from scidiff.domains.medical.volume import Volume, at_size

X, AFFINE = "x", "affine"
LEAST = 0.05  # of the range: what lies below is air
UNIT = Scale(0.0, 1.0, "of the 99.9th percentile")


def own_scale(modality: str, name: str = "ct") -> Scale:
    """The scale of native slices: that range of CT values, or magnitudes as they are."""
    if modality != "CT":
        return UNIT
    if name not in SCALES:
        raise UsageError(f"There is no range {name!r} of CT values.", nearest(name, SCALES))
    return SCALES[name]


def narrowed(volume: Volume, field: float) -> Volume:
    """The middle of every slice: a square of `field` times the longer side about the centre of what is not air."""
    if not 0.0 < field <= 1.0:
        raise UsageError(f"A field of view keeps a share of the plane from 0 to 1, not {field:g}.")
    if field == 1.0:
        return volume
    rows, columns = volume.size
    side = round(field * max(rows, columns))
    air = float(volume.data.amin()) + LEAST * float(volume.data.amax() - volume.data.amin())
    body = (volume.data > air).double().mean((0, 1))
    starts, ends = [], []
    for weight, n in ((body.sum(1), rows), (body.sum(0), columns)):
        middle = float((weight * torch.arange(n, dtype=torch.float64)).sum() / weight.sum().clamp(min=1e-12))
        start = min(max(round(middle - (side - 1) / 2), 0), max(n - side, 0))
        starts.append(start)
        ends.append(min(start + side, n))
    index = np.eye(4)
    index[0, 3], index[1, 3] = starts[1], starts[0]
    data = volume.data[..., starts[0] : ends[0], starts[1] : ends[1]].contiguous()
    return replace(volume, data=data, affine=volume.affine @ index, source=None)


def cut(found: Iterable[Volume], size: int = 128, scale: str = "ct", depth: int | None = None,
        fields: Sequence[float] = (1.0,), least: float = LEAST) -> list[Volume]:
    """Native slices of volumes, each volume on its own scale; those that hold air only are left out.

    depth: blocks of so many neighbouring slices instead, every block overlapping the next by half. Slices are named
    volume:place, with the field of view behind it where that is not the whole plane.
    """
    out: list[Volume] = []
    for one in found:
        if one.data.is_complex() or one.data.shape[1] != 1:
            raise UsageError(f"{one.name} is complex or has several channels; a prior learns from magnitudes.")
        own, to_native = _scales(one, size, scale)
        for field in fields:
            small = at_size(narrowed(one, float(field)), size, fill=own.low)
            x = to_native.decode(own.encode(small.data))
            mark = "" if field == 1.0 else f"@{field:g}"
            for start in _starts(own.encode(small.data), depth, least):
                block = small.cut(start, start + (depth or 1))
                out.append(replace(block, data=x[start : start + (depth or 1)].clone(),
                                   name=f"{one.name}:{start}{mark}", source=None))
    return out


def _scales(volume: Volume, size: int, name: str) -> tuple[Scale, Scale]:
    """The scale of a volume's values, and that of its native slices."""
    own = own_scale(volume.modality, name)
    if own is not UNIT:
        return own, own
    return scale_for(at_size(volume, size).data, volume.modality), UNIT


def _starts(x: Tensor, depth: int | None, least: float) -> list[int]:
    """The first slice of every sample of a volume [Z, 1, S, S] in the range of the prior."""
    filled = x.abs().flatten(1).amax(1) > least
    if depth is None:
        return filled.nonzero().flatten().tolist()
    if len(x) < depth:
        return []
    places = [*range(0, len(x) - depth, max(depth // 2, 1)), len(x) - depth]
    return [start for start in places if bool(filled[start : start + depth].any())]


def subject(name: str) -> str:
    """Whose slice it is: names are subject/file:place."""
    return name.split("/")[0].split(":")[0]


def encode(objects: Sequence[Volume], size: int, depth: int | None, scale: Scale) -> tuple[State, Context]:
    """States of native slices (blocks) of one size; their affines [B, 4, 4] stand in `ctx.meta`."""
    wanted = (depth or 1, 1, size, size)
    for one in objects:
        if tuple(one.data.shape) != wanted:
            raise UsageError(f"{one.name} is {_told(one.data.shape)}; the prior takes {_told(wanted)}.",
                             "Slices of whole volumes are cut to size by `read` and by the data sets.")
    data = scale.encode(torch.stack([one.data for one in objects]).to(torch.float32))  # [B, Z, 1, Y, X]
    state = data[:, 0] if depth is None else data.movedim(2, 1)
    affines = torch.from_numpy(np.stack([one.affine for one in objects]))
    return {X: state.contiguous()}, Context(torch.arange(len(objects)), meta={AFFINE: affines})


def decode(state: State, ctx: Context, depth: int | None, scale: Scale, modality: str,
           affine: np.ndarray) -> list[Volume]:
    """Native slices (blocks) of a state; `affine` where the context has none."""
    x = state[X].detach().to(torch.float32).cpu()
    data = scale.decode(x[:, None] if depth is None else x.movedim(1, 2))
    places = ctx.meta[AFFINE].cpu().numpy() if AFFINE in ctx.meta else np.broadcast_to(affine, (len(x), 4, 4))
    contrasts = ctx.meta.get("contrast", "")
    return [Volume(data[i], places[i], modality, f"sample {int(ctx.ids[i])}", contrast=contrasts)
            for i in range(len(x))]


def _told(shape: Sequence[int]) -> str:
    depth, _, rows, columns = shape
    return f"{depth} slice{'s' * (depth > 1)} of {rows} x {columns} pixels"
