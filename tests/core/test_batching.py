"""Batches by length: every sample as often as promised, similar lengths together, nothing left to chance."""

from __future__ import annotations

import itertools

import pytest
import torch

from scidiff.core.batching import batches_by_length, chunks_by_length, length_buckets


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
    loose = sum(float(sizes[b].max() - sizes[b].min()) for b in batches_by_length(None, 1003, 20, 4)) / 50
    assert spread < 0.2 * loose
    again, other = batches_by_length(sizes, 1003, 20, seed=4), batches_by_length(sizes, 1003, 20, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(torch.cat(batches), torch.cat(other))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_buckets_pad_at_the_least_cost(count):
    sizes = torch.randint(2, 12, (300,), generator=torch.Generator().manual_seed(count))
    lengths = torch.unique(sizes).tolist()

    def cost(ends):
        ends = torch.tensor(sorted(ends))
        return int((ends[torch.bucketize(sizes, ends)] ** 2).sum())

    ends = length_buckets(sizes, count)
    inner = [set(c) for k in range(min(count, len(lengths))) for c in itertools.combinations(lengths[:-1], k)]
    assert cost(ends.tolist()) == min(cost(c | {lengths[-1]}) for c in inner) and len(ends) <= count
    assert bool((ends.diff() > 0).all())


def test_a_pass_by_buckets_pads_few_batches_beyond_their_own():
    sizes = torch.randint(2, 30, (1003,), generator=torch.Generator().manual_seed(1))
    ends = length_buckets(sizes, 4)
    batches = batches_by_length(sizes, 1003, 20, 4, ends)
    of = torch.bucketize(sizes, ends)
    assert len(set(torch.cat(batches).tolist())) == 1000 and [len(b) for b in batches] == [20] * 50
    assert sum(len(set(of[b].tolist())) > 1 for b in batches) <= 3
    # Lengths within a bucket are left as they fall, unlike in sorted windows.
    assert any(len(set(sizes[b].tolist())) > 4 for b in batches)
