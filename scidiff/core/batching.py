"""Which samples share a batch: buckets by length for training, chunks for sampling.

Dense batches cost the square of their longest sample, so samples of similar length go together. All plans are pure
functions of their arguments; results do not depend on them (noise is keyed by sample), only rounding does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def batches_by_length(sizes: Tensor | None, count: int, batch: int, seed: int, mixed: bool = False,
                      window: int = 50) -> list[Tensor]:
    """A shuffled pass over `count` samples as full batches of row numbers; the remainder is dropped.

    Within windows of `window` batches samples are sorted by length (`mixed` leaves them as they fall).
    """
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    order = torch.randperm(count, generator=generator)
    full = max(count // batch, 1) * min(batch, count)
    order = order[:full]
    if sizes is None or mixed:
        return list(order.split(batch))
    out: list[Tensor] = []
    for part in order.split(window * batch):
        out += part[torch.argsort(sizes[part], stable=True)].split(batch)
    return [out[i] for i in torch.randperm(len(out), generator=generator).tolist()]


def chunks_by_length(sizes: Tensor | None, count: int, chunk: int) -> list[Tensor]:
    """All row numbers once, in chunks of at most `chunk` samples of similar length, longest first."""
    order = torch.arange(count) if sizes is None else torch.argsort(sizes, descending=True, stable=True)
    return list(order.split(max(chunk, 1)))
