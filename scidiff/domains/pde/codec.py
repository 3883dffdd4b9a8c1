"""From physical frames to what a network learns, and back.

    w = (u - mean) / std                      Scaling: a field in units of its own spread, channel by channel
    y = (w_next - w_last) / scale             Transition, target "residual"
    y = w_next / scale                        Transition, target "direct"

    P w: Fourier coefficients with |k_a| > K_a of any axis a set to zero       band_limited, periodic fields

`scale` is the standard deviation of the target, so that y has unit variance: the state of the core is y, and the frames
before it are its context. Frames are [B, F, C, *space] with time on axis 1 and fields (channels) on axis 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scidiff.core.errors import UsageError

TARGETS = ("residual", "direct")
PREVIOUS, FRAMES = "previous", "frames"
"""Names in `Context.cond`: the frames before the next one, [B, H C, *space]; whole trajectories, [B, F, C, *space]."""


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of every field, in the field's own units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, frames: Tensor) -> Scaling:
        """The scaling of frames [B, F, C, *space]."""
        each = frames.to(torch.float64).movedim(2, 0).flatten(1)
        return cls(tuple(each.mean(1).tolist()), tuple(each.std(1).clamp(min=1e-12).tolist()))

    def apply(self, frames: Tensor, axis: int = 2) -> Tensor:
        mean, std = self._along(frames, axis)
        return (frames - mean) / std

    def undo(self, scaled: Tensor, axis: int = 2) -> Tensor:
        mean, std = self._along(scaled, axis)
        return scaled * std + mean

    def _along(self, like: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        shape = [1] * like.dim()
        shape[axis] = len(self.mean)
        return (torch.tensor(self.mean, dtype=like.dtype, device=like.device).view(shape),
                torch.tensor(self.std, dtype=like.dtype, device=like.device).view(shape))


@dataclass(frozen=True)
class Transition:
    """One step in time: `history` scaled frames [B, H, C, *space] and the target y [B, C, *space] of the next one."""

    history: int = 1
    target: str = "residual"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UsageError(f"The target of a step is 'residual' or 'direct', not {self.target!r}.")
        if self.history < 1:
            raise UsageError(f"A step needs at least one earlier frame, not {self.history}.")

    def encode(self, previous: Tensor, following: Tensor) -> Tensor:
        """y of the next frame [B, C, *space]."""
        return ((following - previous[:, -1]) if self.target == "residual" else following) / self.scale

    def decode(self, previous: Tensor, y: Tensor) -> Tensor:
        """The next frame [B, C, *space] of a target y."""
        return previous[:, -1] + self.scale * y if self.target == "residual" else self.scale * y

    def advance(self, previous: Tensor, following: Tensor) -> Tensor:
        """The history of the step after: the oldest frame leaves, `following` enters."""
        return torch.cat([previous[:, 1:], following.unsqueeze(1)], 1)

    def seen(self, previous: Tensor) -> Tensor:
        """The history as channels [B, H C, *space], oldest first: what a network sees."""
        return previous.flatten(1, 2)

    @staticmethod
    def unseen(channels: Tensor, fields: int) -> Tensor:
        """[B, H C, *space] as frames [B, H, C, *space]."""
        return channels.unflatten(1, (-1, fields))

    def fit(self, frames: Tensor, stride: int = 1) -> Transition:
        """With the standard deviation of the target over scaled frames [B, F, C, *space], `stride` frames apart."""
        if frames.shape[1] <= stride:
            raise UsageError(f"Trajectories of {frames.shape[1]} frames hold no step of {stride} frames.")
        change = frames[:, stride:] - frames[:, :-stride] if self.target == "residual" else frames
        scale = float(change.to(torch.float64).pow(2).mean().sqrt())
        return Transition(self.history, self.target, max(scale, 1e-12))

    def to_options(self) -> dict[str, Any]:
        return {"history": self.history, "target": self.target, "scale": self.scale}


def band(frames: Tensor, dims: int, share: float = 1e-6) -> tuple[int, ...]:
    """The largest wavenumber index on every axis of space beyond which frames [..., *space] hold at most `share` of
    their variance."""
    limits = []
    for axis in range(-dims, 0):
        power = torch.fft.rfft(frames.to(torch.float64), dim=axis).abs().pow(2).movedim(axis, -1).flatten(0, -2).mean(0)
        power[0] = 0.0
        beyond = power.flip(0).cumsum(0).flip(0) - power
        limits.append(int((beyond > share * power.sum()).sum()))
    return tuple(limits)


def band_limited(frame: Tensor, limits: Sequence[int]) -> Tensor:
    """Frames [..., *space] without their Fourier coefficients beyond `limits`, one wavenumber index for every axis."""
    dims = tuple(range(-len(limits), 0))
    z = torch.fft.fftn(frame, dim=dims)
    for axis, limit in zip(dims, limits, strict=True):
        n = frame.shape[axis]
        index = torch.fft.fftfreq(n, 1.0 / n, device=frame.device).abs()
        z = z * (index <= limit + 0.5).to(frame.dtype).view(-1, *[1] * (-axis - 1))
    return torch.fft.ifftn(z, dim=dims).real


def conserves_mean(frames: Tensor, dims: int, share: float = 1e-8) -> bool:
    """Whether the mean over space of frames [B, F, C, *space] stays the same in time, in every field: its variance in
    time is at most `share` of the field's own."""
    mean = frames.to(torch.float64).flatten(-dims).mean(-1)
    whole = frames.to(torch.float64).var((0, 1, *range(-dims, 0)))
    return bool((mean.var(1, correction=0).amax(0) <= share * whole).all())


def window(frames: Tensor, start: Tensor, count: int, stride: int) -> Tensor:
    """Frames start, start + stride, ... (`count` of them) of each trajectory: [B, count, C, *space]; start is [B]."""
    index = start[:, None] + stride * torch.arange(count, device=start.device)
    return frames[torch.arange(frames.shape[0], device=frames.device)[:, None], index]
