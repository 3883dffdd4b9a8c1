"""The states on the way from the source to the data, kept where a run asks for them (sampling.trajectory=true).

    trajectory/<chunk>.safetensors      <component> [steps, B, ...] after each step, t [steps] (0 data, 1 source)

Rows of a chunk are the sample numbers that chunks.json lists for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.store import atomic

if TYPE_CHECKING:
    from torch import Tensor


class Trajectory:
    """Call it with the Loop after each step; `write(name)` stores what was seen, and starts anew."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / "trajectory"
        self._states: list[dict[str, Tensor]] = []
        self._times: list[float] = []

    def __call__(self, loop: Any) -> None:
        self._states.append({name: x.detach().cpu().clone() for name, x in loop.state.items()})
        self._times.append(loop.s if isinstance(loop.s, float) else float("nan"))

    def write(self, name: str) -> Path:
        import torch
        from safetensors.torch import save

        whole = {k: torch.stack([s[k] for s in self._states]) for k in self._states[0]}
        whole["t"] = torch.tensor(self._times, dtype=torch.float64)
        self._states, self._times = [], []
        return atomic.write_bytes(self.folder / f"{name}.safetensors", save(whole))
