"""Rollouts: the Sampler once a physical step, with its plan compiled once.

    y ~ p(y | frames before),    w_{n+1} = w_n + scale y   (target "residual"),     stream n + 1 in the noise key

The noise of a step depends on (seed, trajectory, member, step) alone: more members, more trajectories or another chunk
change nothing of those that are there, and a run continues from any stored frame. A row whose state leaves the physical
range has blown up: it stops there, its later frames are NaN, and the others go on.

A network never trained on them does not damp errors at wavenumbers where its data held nothing; over thousands of steps
they gather and spoil the rest. With a band, every frame is projected onto the wavenumbers that the data occupy. Nor
does anything bring back a mean that drifts: where the equation conserves it, a rollout can be told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.errors import NonFinite
from scidiff.core.run import Run
from scidiff.core.spec import Context
from scidiff.domains.pde.codec import PREVIOUS, band_limited

if TYPE_CHECKING:
    from scidiff.core.sampler import Sampler
    from scidiff.domains.pde.codec import Transition

MEMBERS = 32
"""Bits by which the number of a member is shifted in a sample id."""
Conditions = dict[str, tuple[Tensor, Tensor]]


def row_ids(trajectories: Tensor, members: int) -> Tensor:
    """Sample ids [T M] of all members of trajectories [T], members of one trajectory next to each other."""
    member = torch.arange(members, dtype=torch.int64, device=trajectories.device)
    return (trajectories[:, None].to(torch.int64) + (member[None, :] << MEMBERS)).reshape(-1)


class Stepper:
    """One step of a model for rows of histories, in scaled units. `limit`: largest |w| of every field, [C]; `band`:
    the largest wavenumber index kept on every axis of space. `conserve`: every field keeps its mean over space."""

    def __init__(self, sampler: Sampler, transition: Transition, fields: int, joint: bool = False,
                 limit: Tensor | None = None, band: Sequence[int] | None = None, conserve: bool = False) -> None:
        self.sampler, self.transition, self.fields, self.joint, self.limit = sampler, transition, fields, joint, limit
        self.band, self.conserve = tuple(band) if band else None, conserve
        self.name = next(iter(sampler.spec))
        self.nfe = 0

    def __call__(self, previous: Tensor, ids: Tensor, seed: int, step: int, cond: Conditions | None = None) -> Tensor:
        """The next frame [B, C, *space] after histories [B, H, C, *space]; step n has stream n in the noise key."""
        seen = self.transition.seen(previous)
        ctx = Context(ids, cond=dict(cond or {}))
        if not self.joint:
            ctx.cond[PREVIOUS] = (seen, torch.ones_like(ids, dtype=torch.bool))
        else:
            target = seen.new_zeros(seen.shape[0], self.fields, *seen.shape[2:])
            where = torch.ones_like(seen, dtype=torch.bool)
            ctx.known[self.name] = (torch.cat([seen, target], 1), torch.cat([where, target.bool()], 1))
        result = self.sampler.run(ctx, Run(seed, stream=step))
        self.nfe = result.nfe
        frame = self.transition.decode(previous, result.state[self.name][:, -self.fields:])
        frame = frame if self.band is None else band_limited(frame, self.band)
        if self.conserve:
            space = tuple(range(2, frame.dim()))
            frame = frame + (previous[:, -1] - frame).mean(space, keepdim=True)
        return frame

    def sound(self, frame: Tensor) -> Tensor:
        """Which rows [B] of a frame are finite and within the limit."""
        good = torch.isfinite(frame).flatten(1).all(1)
        if self.limit is not None:
            size = frame.abs().flatten(2).amax(2)
            good &= (size <= self.limit.to(size)).all(1)
        return good


def march(stepper: Stepper, previous: Tensor, ids: Tensor, seed: int, steps: int, first: int = 0, chunk: int = 512,
          cond: Conditions | None = None, alive: Tensor | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (step, frame [B, C, *space], alive [B]) for steps first + 1 ... steps of rows [B, H, C, *space].

    Rows that are no longer alive have NaN frames. `chunk` rows are computed together.
    """
    previous = previous.clone()
    rows = torch.arange(len(ids), device=ids.device)
    alive = torch.ones_like(ids, dtype=torch.bool) if alive is None else alive.clone()
    for step in range(first + 1, steps + 1):
        if not bool(alive.any()):
            return
        frame = torch.full_like(previous[:, -1], torch.nan)
        for part in rows[alive].split(chunk):
            frame[part] = _advance(stepper, previous[part], ids[part], seed, step, _rows(cond, part))
        alive = alive & stepper.sound(frame)
        frame[~alive] = torch.nan
        previous = stepper.transition.advance(previous, frame)
        yield step, frame, alive


def _advance(stepper: Stepper, previous: Tensor, ids: Tensor, seed: int, step: int, cond: Conditions | None) -> Tensor:
    """One step; where the network fails for some rows, the others are computed without them."""
    try:
        return stepper(previous, ids, seed, step, cond)
    except NonFinite:
        if len(ids) == 1:
            return torch.full_like(previous[:, -1], torch.nan)
        half = len(ids) // 2
        parts = (slice(None, half), slice(half, None))
        return torch.cat([_advance(stepper, previous[p], ids[p], seed, step, _rows(cond, p)) for p in parts])


def _rows(cond: Conditions | None, part: Any) -> Conditions | None:
    return None if cond is None else {k: (v[part], p[part]) for k, (v, p) in cond.items()}


def rolled_out(stepper: Stepper, initial: Tensor, steps: int, seed: int = 0, members: int = 1,
               trajectories: Tensor | None = None, chunk: int = 512,
               progress: Callable[[str, int, int | None], None] | None = None) -> tuple[Tensor, Tensor]:
    """Scaled frames [T, M, S, C, *space] after histories [T, H, C, *space], and every row's last good step [T, M]."""
    number = torch.arange(len(initial), device=initial.device) if trajectories is None else trajectories
    ids = row_ids(number, members)
    out = initial.new_full((len(ids), steps, *initial.shape[2:]), torch.nan)
    last = torch.zeros_like(ids)
    for step, frame, alive in march(stepper, initial.repeat_interleave(members, 0), ids, seed, steps, chunk=chunk):
        out[:, step - 1] = frame
        last[alive] = step
        if progress is not None:
            progress("Rolling out", step, steps)
    return out.unflatten(0, (-1, members)), last.unflatten(0, (-1, members))
