"""Noise drawn several steps ahead.

Counter-based noise costs some thirty small tensor operations a draw, whatever the size. For a small state most of that
is overhead, so the normals of consecutive steps of a plan are drawn in one go and handed out one by one. They are the
same numbers as `Noise.normal` gives at each step, since a number depends on its step alone; blocks are cut at fixed
places of the plan, so that a resumed run meets the same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.run import Run, mix, to_normal
from scidiff.core.run import _index as index_of
from scidiff.core.run import _signed as signed

if TYPE_CHECKING:
    from scidiff.core.sampler import Loop

BUDGET = 1 << 15  # numbers a block; larger states are drawn step by step
LONGEST = 64


def normals(run: Run, site: Any, tag: str, steps: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Noise.normal of one component for each of `steps`, before projection: [len(steps), B, *dims]."""
    ids, here, salts = site.ctx.ids, run.step, []
    for step in steps:
        run.step = step
        salts.append(signed(run.salt(tag, site.name)))
    run.step = here
    index = index_of(site.dims, site.padded, site.space.symmetric, ids.device)
    if ids.device.type == "cpu":
        salt = torch.tensor(salts, dtype=torch.int64)
    else:
        # Filled on the device: a copy from the host would wait for it, and could not be captured in a graph.
        salt = torch.stack([torch.full((), v, dtype=torch.int64, device=ids.device) for v in salts])
    key = mix(run.keys(ids) ^ salt[:, None])
    return to_normal(mix(key.view(*key.shape, *[1] * index.dim()) + index)).to(dtype)


class NoiseAhead:
    """The noise of the affine rows of one run; `steps` are all unpacked stages of its plan, or nothing."""

    __slots__ = ("_blocks", "_loop", "_places")

    def __init__(self, loop: Loop, steps: Sequence[tuple[Any, ...]]) -> None:
        self._loop = loop
        self._blocks: dict[tuple[str, str], dict[int, Tensor]] = {}
        self._places: dict[tuple[str, str], list[int]] = {}
        if loop.context.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return  # a graph must not read a block's salts, which lie in memory of the host
        for number, (_, _, _, _, rows, _) in enumerate(steps):
            for row in rows:
                if row[1] and row[7] != 0.0:
                    self._places.setdefault((row[0], row[8]), []).append(number)

    def normal(self, name: str, tag: str, number: int) -> Tensor:
        """Standard normal noise of the component's space at stage `number`."""
        key = (name, tag)
        block = self._blocks.get(key)
        if block is not None:
            found = block.get(number)
            if found is not None:
                return found
        site = self._loop.sites[name]
        length = min(LONGEST, BUDGET // max(site.batch * torch.Size(site.dims).numel(), 1))
        handle = self._loop.noises[name]
        if length < 2 or key not in self._places:
            return handle.normal(tag)
        first = number // length * length
        steps = [n for n in self._places[key] if first <= n < first + length]
        drawn = normals(self._loop.run, site, tag, steps, handle.dtype).unbind(0)
        block = {n: site.space.project(z, site.mask) for n, z in zip(steps, drawn, strict=True)}
        self._blocks[key] = block
        return block[number]
