"""Rollouts: the solver as a model, persistence, noise that belongs to a row, continuation, blow-ups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.guidance import Clamp
from scidiff.core.path import VP, LevelPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, StateSpec
from scidiff.domains.pde.codec import PREVIOUS, Scaling, Transition
from scidiff.domains.pde.equations import EQUATIONS, SpectralSolver
from scidiff.domains.pde.rollout import MEMBERS, Stepper, march, rolled_out, row_ids
from scidiff.domains.pde.skill import correlations, high_correlation_time

F64 = torch.float64
REFINER = LevelPath.geometric(math.sqrt(4e-7), 3)
N = 32


def spec_of(path, channels=1, space=(N,)):
    return StateSpec({"u": Component(Euclidean(), path, (channels, *space))})


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


class Says(Denoiser):
    """Predicts the clean state `of(history [B, H C, *space], ids, t)`."""

    def __init__(self, spec, of):
        super().__init__()
        self.spec, self.of = spec, of

    def forward(self, state, t, ctx, run=None):
        z = state["u"]
        past = ctx.cond[PREVIOUS][0] if PREVIOUS in ctx.cond else None
        clean = self.of(past, ctx.ids, t).to(z.dtype)
        return {"u": self.spec["u"].path.read(clean, z, t, ctx.at("u", self.spec["u"]), "data")}


def stepper_of(of, transition=None, path=None, fields=1, space=(N,), dtype=torch.float32, limit=None, levels=None):
    spec = spec_of(path or LevelPath(), fields, space)
    sampler = Sampler(spec, Says(spec, of), Fixed(Ancestral(eta=1.0), levels=levels), dtype=dtype)
    return Stepper(sampler, transition or Transition(), fields, limit=limit)


class Tiny(nn.Module):
    """A smooth random network: what it says depends on the noised target, the history and the time."""

    def __init__(self, channels=2, out=1):
        super().__init__()
        torch.manual_seed(0)
        ring = {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}
        self.enter, self.leave = nn.Conv1d(channels, 8, **ring), nn.Conv1d(8, out, **ring)

    def forward(self, features, time, ctx, previous):
        x = features["u"]
        x = torch.cat([x, ctx.cond[PREVIOUS][0]], 1) if PREVIOUS in ctx.cond else x
        return {"u": self.leave(torch.tanh(self.enter(x) + time.view(-1, 1, 1)))}


def tiny(path=REFINER, dtype=torch.float32, history=1, **more):
    spec = spec_of(path)
    denoiser = NetworkDenoiser(spec, Tiny(history + 1)).to(dtype)
    return Stepper(Sampler(spec, denoiser, Fixed(Ancestral(eta=1.0), 6), dtype=dtype), Transition(history, scale=0.3),
                   1, **more)


# -- the solver as a model


@pytest.fixture(scope="module")
def ks():
    """(frames [6, 26, 1, 32] float64 on the attractor, 0.8 apart; the solver; its steps in one interval)."""
    law = EQUATIONS["ks"]()
    solver = SpectralSolver(law, (N,), 22.0, 0.1, dtype=F64)
    start = solver.rollout(law.initial(torch.arange(6), 0, (N,), 22.0, F64), 600, 600)[:, -1]
    return torch.cat([start.unsqueeze(1), solver.rollout(start, 25 * 8, 8)], 1), solver, 8


@pytest.mark.parametrize("target, history, path", [("residual", 1, LevelPath()), ("direct", 1, LevelPath()),
                                                   ("residual", 2, REFINER), ("direct", 3, VP())])
def test_the_solver_as_a_model_gives_the_solvers_trajectory(ks, target, history, path):
    frames, solver, every = ks
    scaling = Scaling.fit(frames)
    transition = Transition(history, target).fit(scaling.apply(frames))

    def exact(past, ids, t):
        now = scaling.undo(past[:, -1:], 1)
        after = scaling.apply(solver.rollout(now, every, every), 2)[:, 0]
        return transition.encode(past.unsqueeze(2), after)

    driver = Fixed(Ancestral(eta=1.0, last="data"), 2) if path.levels is None else Fixed(Ancestral(eta=1.0))
    spec = spec_of(path)
    stepper = Stepper(Sampler(spec, Says(spec, exact), driver, dtype=F64), transition, 1)
    steps = 26 - history
    out, last = rolled_out(stepper, scaling.apply(frames[:, :history]), steps, members=2)
    predicted = scaling.undo(out, 3)
    truth = frames[:, history:]
    assert out.shape == (6, 2, steps, 1, N) and out.dtype == F64 and bool((last == steps).all())
    torch.testing.assert_close(predicted, truth.unsqueeze(1).expand_as(predicted), atol=1e-6, rtol=0)
    found = high_correlation_time(correlations(predicted, truth), 0.8, 0.95)
    assert found.first.value == pytest.approx(0.8 * steps) and found.censored
    assert stepper.nfe == (4 if path is REFINER else 2 if path.levels is None else 1)


def test_a_model_that_sees_no_change_is_persistence(ks):
    first = Scaling.fit(ks[0]).apply(ks[0])[:, :2].float()
    out, _ = rolled_out(stepper_of(lambda past, ids, t: torch.zeros_like(past[:, :1]), Transition(2, scale=0.3)), first,
                        5)
    assert torch.equal(out, first[:, -1][:, None, None].expand(-1, 1, 5, -1, -1))
    out, _ = rolled_out(stepper_of(lambda past, ids, t: torch.zeros_like(past), Transition(1, "direct")), first[:, 1:],
                        5)
    assert not out.any()


def test_a_history_moves_on_by_one_frame_a_step():
    """w_{n+1} = w_n + w_{n-1} by a residual model that returns the oldest frame: Fibonacci numbers."""
    one = torch.ones(1, 2, 1, N)
    out, _ = rolled_out(stepper_of(lambda past, ids, t: past[:, :1], Transition(2)), one, 8)
    assert out[0, 0, :, 0, 0].tolist() == [2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0]


# -- noise belongs to a row


def test_rows_are_members_of_trajectories():
    ids = row_ids(torch.tensor([0, 7]), 3)
    assert ids.tolist() == [0, 1 << MEMBERS, 2 << MEMBERS, 7, 7 + (1 << MEMBERS), 7 + (2 << MEMBERS)]
    assert len(set(row_ids(torch.arange(1000), 64).tolist())) == 64_000


def test_a_member_stays_itself_whatever_stands_beside_it():
    """More members, more trajectories, another chunk: rounding alone, <= 1e-6."""
    first = normal(5, 1, 1, N)
    base, _ = rolled_out(tiny(), first[:3], 6, seed=3, members=2)
    assert bool(torch.isfinite(base).all()) and float(base.std()) < 10.0
    more, _ = rolled_out(tiny(), first[:3], 6, seed=3, members=4)
    wider, _ = rolled_out(tiny(), first, 6, seed=3, members=2)
    torch.testing.assert_close(more[:, :2], base, atol=1e-6, rtol=0)
    torch.testing.assert_close(wider[:3], base, atol=1e-6, rtol=0)
    for chunk in (1, 4):
        parts, _ = rolled_out(tiny(), first[:3], 6, seed=3, members=2, chunk=chunk)
        torch.testing.assert_close(parts, base, atol=1e-6, rtol=0)
    picked, _ = rolled_out(tiny(), first[[2]], 6, seed=3, members=2, trajectories=torch.tensor([2]))
    torch.testing.assert_close(picked, base[[2]], atol=1e-6, rtol=0)
    assert all(float(torch.pdist(trajectory.flatten(1)).min()) > 1e-3 for trajectory in more)  # members differ


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first = normal(3, 1, 1, N)
    one, two, other = (rolled_out(tiny(), first, 5, seed=seed, members=2)[0] for seed in (8, 8, 9))
    assert torch.equal(one, two) and not torch.equal(one[:, :, 0], other[:, :, 0])


def test_every_step_meets_its_own_noise():
    """From the same history, steps 1 and 2 draw different things, and step n is the stream n of the key."""
    first, ids = normal(3, 1, 1, N), row_ids(torch.arange(3), 1)
    one, two = (tiny()(first, ids, 0, step) for step in (1, 2))
    assert not torch.allclose(one, two, atol=1e-4)
    spec = spec_of(LevelPath((0.5,), blank=False))
    noise = []

    class Listening(Says):
        def forward(self, state, t, ctx, run=None):
            noise.append(state["u"] - Run(5, stream=4).handle(ctx.at("u", self.spec["u"])).normal("source") * 0.5)
            return super().forward(state, t, ctx, run)

    stepper = Stepper(Sampler(spec, Listening(spec, lambda p, i, t: p), Fixed(Ancestral(eta=1.0))), Transition(), 1)
    stepper(first, ids, 5, 4)
    assert not noise[0].any()


@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("at", [1, 4])
def test_a_rollout_continues_from_any_stored_frame_bit_for_bit(at, history):
    first, ids = normal(4, history, 1, N), row_ids(torch.arange(2), 2)
    whole = {step: frame for step, frame, _ in march(tiny(history=history), first, ids, 2, 7)}
    assert sorted(whole) == [1, 2, 3, 4, 5, 6, 7]
    held = torch.cat([first, *(whole[s].unsqueeze(1) for s in range(1, at + 1))], 1)[:, -history:]
    again = {step: frame for step, frame, _ in march(tiny(history=history), held, ids, 2, 7, first=at)}
    assert sorted(again) == list(range(at + 1, 8))
    assert all(torch.equal(again[s], whole[s]) for s in again)
    assert [*march(tiny(history=history), held, ids, 2, at, first=at)] == []


def test_conditions_go_with_their_rows():
    """A condition that is the size of the step, one a row, in chunks and after losses."""
    spec = spec_of(LevelPath())

    class Told(Denoiser):
        def forward(self, state, t, ctx, run=None):
            value, present = ctx.cond["pace"]
            assert bool(present.all())
            clean = value.view(-1, 1, 1).expand_as(state["u"])
            return {"u": spec["u"].path.read(clean, state["u"], t, ctx.at("u", spec["u"]), "data")}

    stepper = Stepper(Sampler(spec, Told(), Fixed(Ancestral())), Transition(), 1, limit=torch.tensor([9.5]))
    pace = torch.tensor([1.0, 5.0, 2.0, 3.0])
    cond = {"pace": (pace, torch.ones(4, dtype=torch.bool))}
    frames = [f for _, f, _ in march(stepper, torch.zeros(4, 1, 1, N), torch.arange(4), 0, 3, chunk=3, cond=cond)]
    expected = torch.stack([pace, 2 * pace, 3 * pace])
    expected[1:, 1] = torch.nan
    torch.testing.assert_close(torch.stack(frames)[:, :, 0, 0], expected, equal_nan=True)


# -- blow-ups


def doubling(limit, fields=1, **more):
    """w -> 2 w in every row that is not zero."""
    return stepper_of(lambda past, ids, t: past, limit=limit, fields=fields, **more)


def test_a_row_beyond_the_limit_is_nan_from_there_on_and_the_others_go_on():
    start = torch.tensor([1.0, 0.25, -3.0]).view(3, 1, 1, 1).expand(3, 1, 1, N).clone()
    out, last = rolled_out(doubling(torch.tensor([10.0])), start, 6)
    assert last[:, 0].tolist() == [3, 5, 1]
    for row, good in zip(out[:, 0], last[:, 0].tolist(), strict=True):
        assert bool(torch.isfinite(row[:good]).all()) and bool(torch.isnan(row[good:]).all())
        assert row[:good, 0, 0].tolist() == [float(row[0, 0, 0]) * 2**i for i in range(good)]
    free, last = rolled_out(doubling(None), start, 6)
    assert bool(torch.isfinite(free).all()) and last[:, 0].tolist() == [6, 6, 6]
    kept = torch.isfinite(out)
    assert torch.equal(out[kept], free[kept])


def test_every_field_has_its_own_limit():
    start = torch.ones(2, 1, 2, N)
    start[1, :, 1] = 0.1
    _, last = rolled_out(doubling(torch.tensor([100.0, 5.0]), fields=2), start, 8)
    assert last[:, 0].tolist() == [2, 5]


def test_a_rollout_ends_when_no_row_is_left():
    start = torch.ones(2, 1, 1, N)
    steps = [(step, alive.tolist()) for step, _, alive in march(doubling(torch.tensor([3.0])), start, torch.arange(2),
                                                               0, 50)]
    assert steps == [(1, [True, True]), (2, [False, False])]
    nobody = torch.zeros(2, dtype=torch.bool)
    assert [*march(doubling(None), start, torch.arange(2), 0, 50, first=2, alive=nobody)] == []
    one = torch.tensor([False, True])
    frame = next(march(doubling(None), start, torch.arange(2), 0, 50, first=2, alive=one))[1]
    assert bool(torch.isnan(frame[0]).all()) and frame[1].unique().tolist() == [2.0]


@pytest.mark.parametrize("bad", [(0,), (6,), (2, 3), (0, 1, 2, 3, 4, 5, 6)])
def test_rows_for_which_the_network_fails_leave_the_others_alone(bad):
    start = normal(7, 1, 1, N)

    def fails(past, ids, t):
        lost = torch.isin(ids, torch.tensor(bad)).view(-1, 1, 1)
        return torch.where(lost, torch.nan, 0.1 * past.sin())

    out, last = rolled_out(stepper_of(fails), start, 3)
    free, _ = rolled_out(stepper_of(lambda past, ids, t: 0.1 * past.sin()), start, 3)
    for row in range(7):
        if row in bad:
            assert bool(torch.isnan(out[row]).all()) and int(last[row]) == 0
        else:
            torch.testing.assert_close(out[row], free[row], atol=1e-6, rtol=0)
            assert int(last[row]) == 3


# -- joint states


class Watched:
    """A sampler whose last result can be looked at."""

    def __init__(self, sampler):
        self.sampler, self.spec, self.result = sampler, sampler.spec, None

    def run(self, ctx, run):
        self.result = self.sampler.run(ctx, run)
        return self.result


@pytest.mark.parametrize("history", [1, 2])
def test_a_joint_state_ends_with_its_clean_history_and_a_drawn_target(history):
    path = VP()
    spec = spec_of(path, history + 1)
    denoiser = NetworkDenoiser(spec, Tiny(history + 1, history + 1))
    sampler = Watched(Sampler(spec, denoiser, Fixed(Ancestral(eta=1.0), 8), (Clamp(spec),)))
    previous, ids = normal(3, history, 1, N), torch.arange(3)
    stepper = Stepper(sampler, Transition(history, scale=0.3), 1, joint=True)
    following = stepper(previous, ids, 0, 1)
    end = sampler.result.state["u"]
    assert torch.equal(end[:, :history], previous[:, :, 0])
    torch.testing.assert_close(following, previous[:, -1] + 0.3 * end[:, history:], atol=1e-6, rtol=0)
    assert not torch.equal(stepper(previous, ids, 0, 2), following)


def test_a_joint_oracle_gives_the_exact_next_frame():
    """It is told the history by the clamped part of the state alone: no condition carries it."""
    path = VP()
    spec = spec_of(path, 2)
    previous = normal(3, 1, 1, N, dtype=F64)
    target = 0.5 * previous[:, 0].roll(1, -1)

    def joint(past, ids, t):
        assert past is None
        return torch.cat([previous[:, 0], target], 1)

    sampler = Sampler(spec, Says(spec, joint), Fixed(Ancestral(eta=1.0, last="data"), 5), (Clamp(spec),), dtype=F64)
    out = Stepper(sampler, Transition(scale=0.3), 1, joint=True)(previous, torch.arange(3), 0, 1)
    torch.testing.assert_close(out, previous[:, 0] + 0.3 * target, atol=1e-12, rtol=0)
