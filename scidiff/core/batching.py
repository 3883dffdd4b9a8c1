"""Which samples share a batch: buckets by length for training, chunks for sampling.

Dense batches cost the square of their longest sample, so samples of similar length go together. All plans are pure
functions of their arguments; results do not depend on them (noise is keyed by sample), only rounding does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def batches_by_length(sizes: Tensor | None, count: int, batch: int, seed: int, ends: Tensor | None = None,
                      window: int = 50) -> list[Tensor]:
    """A shuffled pass over `count` samples as full batches of row numbers; the remainder is dropped.

    Within windows of `window` batches samples are sorted by length; with `ends`, those of `length_buckets`, the whole
    pass is sorted by bucket, so that few batches mix two.
    """
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    order = torch.randperm(count, generator=generator)
    full = max(count // batch, 1) * min(batch, count)
    order = order[:full]
    if sizes is None:
        return list(order.split(batch))
    keys, window = (sizes, window) if ends is None else (torch.bucketize(sizes, ends), full)
    out: list[Tensor] = []
    for part in order.split(window * batch):
        out += part[torch.argsort(keys[part], stable=True)].split(batch)
    return [out[i] for i in torch.randperm(len(out), generator=generator).tolist()]


def length_buckets(sizes: Tensor, count: int) -> Tensor:
    """The lengths, int64 [<= count] ascending, to which samples are padded at the least cost in pairs, sum of length^2.

    A compiled network is built once for each length. Exact, by dynamic programming over the lengths that occur.
    """
    lengths, many = torch.unique(sizes, return_counts=True)
    total = torch.cat([torch.zeros(1), many.double().cumsum(0)])
    # part[i, j]: the cost of lengths i .. j - 1 in one bucket
    part = (total[None, :] - total[:, None])[:-1, 1:] * lengths.double()[None, :] ** 2
    part.masked_fill_(torch.ones_like(part, dtype=torch.bool).tril(-1), torch.inf)
    best, chosen = part[0], [torch.zeros(len(lengths), dtype=torch.long)]
    for _ in range(min(count, len(lengths)) - 1):
        before = torch.cat([torch.zeros(1).double(), best[:-1]])
        best, start = (before[:, None] + part).min(0)
        chosen.append(start)
    ends, last = [], len(lengths) - 1
    for start in reversed(chosen):
        ends.append(int(lengths[last]))
        last = int(start[last]) - 1
        if last < 0:
            break
    return torch.tensor(ends[::-1])


def chunks_by_length(sizes: Tensor | None, count: int, chunk: int) -> list[Tensor]:
    """All row numbers once, in chunks of at most `chunk` samples of similar length, longest first."""
    order = torch.arange(count) if sizes is None else torch.argsort(sizes, descending=True, stable=True)
    return list(order.split(max(chunk, 1)))
