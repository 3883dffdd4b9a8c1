"""Batches by length: every sample as often as promised, similar lengths together, nothing left to chance."""

from __future__ import annotations

import torch

from scidiff.core.batching import batches_by_length, chunks_by_length


def test_chunks_hold_every_row_once_longest_first():
    sizes = torch.randint(2, 30, (101,), generator=torch.Generator().manual_seed(0))
    chunks = chunks_by_length(sizes, 101, 16)
    assert max(map(len, chunks)) == 16 and sorted(torch.cat(chunks).tolist()) == list(range(101))
    assert bool((sizes[torch.cat(chunks)].diff() <= 0).all())
    assert [c.tolist() for c in chunks_by_length(None, 5, 2)] == [[0, 1], [2, 3], [4]]


def test_a_pass_uses_full_batches_of_similar_length_and_repeats_by_its_seed():
    sizes = torch.randint(2, 30, (1003,), generator=torch.Generator().manual_seed(1))
    batches = batches_by_length(sizes, 1003, 20, seed=4)
    assert [len(b) for b in batches] == [20] * 50
    assert len(set(torch.cat(batches).tolist())) == 1000
    spread = sum(float(sizes[b].max() - sizes[b].min()) for b in batches) / 50
    loose = sum(float(sizes[b].max() - sizes[b].min()) for b in batches_by_length(sizes, 1003, 20, 4, mixed=True)) / 50
    assert spread < 0.2 * loose
    again, other = batches_by_length(sizes, 1003, 20, seed=4), batches_by_length(sizes, 1003, 20, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(torch.cat(batches), torch.cat(other))
