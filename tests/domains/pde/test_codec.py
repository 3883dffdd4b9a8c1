"""Scaling, transitions, windows and shifts: exact round trips, unit variance, and what naive loops say."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.pde.codec import Scaling, Transition, window
from scidiff.domains.pde.objectives import rolled

F64 = torch.float64
SPACES = [(16,), (6, 8)]


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_field_is_scaled_by_its_own_mean_and_spread(space):
    frames = torch.stack([5.0 + 3.0 * normal(4, 7, *space), -1e-3 + 1e-4 * normal(4, 7, *space, seed=1)], 2)
    scaling = Scaling.fit(frames)
    each = scaling.apply(frames).movedim(2, 0).flatten(1)
    torch.testing.assert_close(each.mean(1), torch.zeros(2, dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(each.std(1), torch.ones(2, dtype=F64), atol=1e-12, rtol=0)
    assert scaling.mean == pytest.approx([5.0, -1e-3], rel=0.1) and scaling.std == pytest.approx([3.0, 1e-4], rel=0.1)
    torch.testing.assert_close(scaling.undo(scaling.apply(frames)), frames, atol=1e-14, rtol=1e-14)
    one = frames[:, 3]
    assert torch.equal(scaling.apply(one, 1), scaling.apply(frames)[:, 3])
    assert torch.equal(scaling.undo(one, 1), scaling.undo(frames)[:, 3])
    single = frames.float()
    assert scaling.apply(single).dtype == torch.float32
    torch.testing.assert_close(scaling.undo(scaling.apply(single)), single, atol=1e-6, rtol=1e-6)


def test_a_field_at_rest_is_scaled_without_dividing_by_nothing():
    frames = torch.cat([normal(2, 3, 1, 8), torch.full((2, 3, 1, 8), 4.0, dtype=F64)], 2)
    scaling = Scaling.fit(frames)
    scaled = scaling.apply(frames)
    assert bool(torch.isfinite(scaled).all()) and not scaled[:, :, 1].any()


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("target", ["residual", "direct"])
def test_a_transition_is_undone_by_its_decoding(target, history, space):
    step = Transition(history, target, 0.3)
    frames = normal(5, history + 1, 2, *space)
    previous, following = frames[:, :history], frames[:, -1]
    y = step.encode(previous, following)
    by_hand = (following - frames[:, -2]) / 0.3 if target == "residual" else following / 0.3
    assert torch.equal(y, by_hand) and y.shape == (5, 2, *space)
    torch.testing.assert_close(step.decode(previous, y), following, atol=1e-14, rtol=0)
    torch.testing.assert_close(step.encode(previous, step.decode(previous, y)), y, atol=1e-13, rtol=0)
    later = step.advance(previous, following)
    assert later.shape == previous.shape and torch.equal(later, frames[:, 1:])


def test_the_history_becomes_channels_oldest_first():
    step, previous = Transition(3), normal(2, 3, 2, 4, 5)
    seen = step.seen(previous)
    assert seen.shape == (2, 6, 4, 5)
    for h in range(3):
        for c in range(2):
            assert torch.equal(seen[:, 2 * h + c], previous[:, h, c])
    assert torch.equal(step.unseen(seen, 2), previous)


@pytest.mark.parametrize("target", ["residual", "direct"])
@pytest.mark.parametrize("stride", [1, 3])
def test_the_fitted_scale_gives_targets_of_unit_variance(target, stride):
    frames = normal(6, 20, 2, 8).cumsum(1)
    frames = Scaling.fit(frames).apply(frames)
    step = Transition(2, target).fit(frames, stride)
    assert (step.history, step.target) == (2, target)
    first = 0 if target == "direct" else stride  # a direct target needs no frame before it
    y = torch.stack([step.encode(frames[:, i - first:i - first + 1], frames[:, i]) for i in range(first, 20)])
    assert float(y.square().mean()) == pytest.approx(1.0, abs=1e-12)
    if target == "direct":  # every frame of a fitted scaling has unit spread already
        assert step.scale == pytest.approx(1.0, abs=1e-3)
    assert Transition(**step.to_options()) == step


def test_what_does_not_move_still_has_a_scale():
    assert Transition().fit(torch.ones(3, 5, 1, 8)).scale > 0.0


def test_impossible_transitions_are_refused():
    with pytest.raises(UsageError, match="'residual' or 'direct', not 'increment'"):
        Transition(target="increment")
    with pytest.raises(UsageError, match="at least one earlier frame, not 0"):
        Transition(history=0)
    with pytest.raises(UsageError, match="4 frames hold no step of 4 frames"):
        Transition().fit(normal(2, 4, 1, 8), 4)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("count, stride", [(1, 1), (2, 1), (2, 4), (4, 3)])
def test_windows_are_what_a_loop_takes(count, stride, space):
    frames = normal(5, 14, 2, *space)
    start = torch.tensor([0, 1, 14 - stride * (count - 1) - 1, 2, 0])
    out = window(frames, start, count, stride)
    assert out.shape == (5, count, 2, *space)
    for b in range(5):
        for i in range(count):
            assert torch.equal(out[b, i], frames[b, int(start[b]) + i * stride])


@pytest.mark.parametrize("space, axis", [((16,), -1), ((6, 8), -1), ((6, 8), -2)])
def test_every_sample_is_shifted_by_its_own_amount(space, axis):
    frames, n = normal(5, 3, 2, *space), space[axis]
    amount = torch.tensor([0, 1, n - 1, n // 2, n])
    out = rolled(frames, amount, axis)
    for b in range(5):
        for i in range(n):
            assert torch.equal(out[b].select(axis, i), frames[b].select(axis, (i + int(amount[b])) % n))
        assert torch.equal(out[b], frames[b].roll(-int(amount[b]), axis))


def test_shifts_commute_with_what_is_the_same_everywhere():
    """A periodic convolution with a cubic term, sample by sample shifted before or after: bit for bit."""
    frames, amount = normal(4, 2, 1, 12), torch.tensor([3, 0, 11, 5])

    def law(u):
        return 0.5 * u.roll(1, -1) - 2.0 * u + u**3 - 0.25 * u.roll(-2, -1)

    assert torch.equal(law(rolled(frames, amount, -1)), rolled(law(frames), amount, -1))
