"""Which refinement levels are visited: closed-form errors of every level, and choices among chains of known quality."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.path import VP, LevelPath
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, StateSpec
from scidiff.domains.pde.codec import PREVIOUS, Transition
from scidiff.domains.pde.levels import by_level, noise_gain, one_step_error, select_levels

F64 = torch.float64
REFINER = LevelPath.geometric(math.sqrt(4e-7), 3)
N = 64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -- the table of levels


class Gaussian(Denoiser):
    """E[y | z] for white y ~ N(0, q^2), whatever the history."""

    def __init__(self, spec, q, kind):
        super().__init__()
        self.spec, self.q, self.kind = spec, q, kind

    def forward(self, state, t, ctx, run=None):
        c, z = self.spec["u"], state["u"]
        assert PREVIOUS in ctx.cond
        k = c.path.coefficients(t)
        clean = k.alpha * self.q**2 / (k.alpha**2 * self.q**2 + k.sigma**2) * z
        site = ctx.at("u", c)
        if self.kind == "data":
            return {"u": c.path.read(clean, z, t, site, "data")}
        return {"u": c.path.read((k.alpha * z - clean) / k.sigma, z, t, site, "angular")}


@pytest.mark.parametrize("kind", ["data", "angular"])
@pytest.mark.parametrize("q", [0.3, 1.0])
@pytest.mark.parametrize("history", [1, 2])
def test_the_table_of_a_gaussian_is_the_posterior_deviation(kind, q, history):
    """e_k = q sigma / sqrt(alpha^2 q^2 + sigma^2) and rms(v_hat - v) = e_k / sigma, to 1 % over 100,000 values."""
    spec = StateSpec({"u": Component(Euclidean(), REFINER, (1, N))})
    previous = normal(1600, history, 1, N)
    following = previous[:, -1] + 0.4 * q * normal(1600, 1, N, seed=1)
    rows = by_level(spec, Gaussian(spec, q, kind), Transition(history, scale=0.4), previous, following)
    assert [r.level for r in rows] == [0, 1, 2, 3] and [r.sigma for r in rows] == list(REFINER.stds)
    for row in rows:
        k = REFINER.coefficients(REFINER.levels[row.level])
        exact = q * k.sigma / math.sqrt(k.alpha**2 * q**2 + k.sigma**2)
        assert row.error == pytest.approx(exact, rel=0.01)
        assert row.rms_v == pytest.approx(exact / k.sigma, rel=0.01)


def test_other_paths_have_no_table():
    spec = StateSpec({"u": Component(Euclidean(), VP(), (1, N))})
    assert by_level(spec, Gaussian(spec, 1.0, "data"), Transition(), normal(2, 1, 1, N), normal(2, 1, N)) == []


# -- chains of known quality


class Chain:
    """Steps of a travelling wave, w -> w shifted by one point, with white error and a growth of what is off the wave.

    `error`: rms of the white error. `growth`: factor a step of every deviation from unit energy.
    """

    def __init__(self, error, growth=1.0, history=1):
        self.error, self.growth, self.transition, self.steps = error, growth, Transition(history), []

    def __call__(self, previous, ids, seed, step, cond=None):
        self.steps.append(step)
        after = previous[:, -1].roll(1, -1)
        size = after.square().mean((1, 2), keepdim=True).sqrt()
        after = after * (1.0 + (self.growth - 1.0) * (size - 1.0)) if self.growth != 1.0 else after
        noise = torch.stack([normal(*after.shape[1:], seed=97 * step + i) for i in ids.tolist()])
        return after + self.error * noise.to(after.dtype)

    def sound(self, frame):
        return torch.isfinite(frame).flatten(1).all(1) & (frame.abs().flatten(1).amax(1) < 50.0)


def wave(frames, count=4, history=1):
    """Trajectories [count, frames, 1, N] of unit energy, shifted by one point a frame."""
    x = 2 * math.pi * torch.arange(N, dtype=F64) / N
    base = torch.stack([math.sqrt(2.0) * torch.sin((1 + i) * x + i) for i in range(count)]).unsqueeze(1)
    return torch.stack([base.roll(f, -1) for f in range(frames)], 1)


def made(table, **more):
    """A maker of chains from {levels: rms error or (rms error, growth)}; it counts what was asked for."""
    asked = []

    def make(levels):
        asked.append(tuple(levels))
        found = table[tuple(levels)]
        return Chain(*found, **more) if isinstance(found, tuple) else Chain(found, **more)

    return make, asked


@pytest.mark.parametrize("history", [1, 3])
def test_one_step_errors_start_from_the_truth(history):
    frames = wave(8 + history)
    chain = Chain(0.1, history=history)
    found = one_step_error(chain, frames)
    by_hand = torch.stack([0.1 * torch.stack([normal(1, N, seed=97 * step + i) for i in range(4)])
                           for step in chain.steps]).square().mean()
    assert len(chain.steps) == len(set(chain.steps)) == 8
    assert found == pytest.approx(float(by_hand), rel=1e-9)
    assert one_step_error(Chain(0.0), frames) == 0.0
    spread = Chain(0.1, history=history)
    one_step_error(spread, wave(15 + history))
    assert spread.steps == [1, 3, 5, 7, 9, 11, 13, 15]  # no more than eight moments, over the whole length


def test_a_harmful_middle_level_is_left_out_and_helpful_ones_are_kept():
    make, asked = made({(3,): 0.02, (2, 3): 0.05, (1, 3): 0.005, (0, 1, 3): 0.001})
    found = select_levels(make, 4, wave(30), 0.8)
    assert found.levels == (0, 1, 3)
    assert set(found.errors) == {(3,), (2, 3), (1, 3), (0, 1, 3)} == set(asked)
    assert found.errors[2, 3] == pytest.approx(0.05**2, rel=0.1)
    assert found.errors[0, 1, 3] == pytest.approx(0.001**2, rel=0.1)
    assert set(found.times) == {(3,), (0, 1, 3)}


def test_all_levels_are_kept_where_each_helps_and_none_where_none_does():
    make, _ = made({(3,): 0.08, (2, 3): 0.04, (1, 2, 3): 0.02, (0, 1, 2, 3): 0.01})
    found = select_levels(make, 4, wave(40), 0.8)
    assert found.levels == (0, 1, 2, 3) and found.times[0, 1, 2, 3] >= found.times[3,]
    make, _ = made({(3,): 0.01, (2, 3): 0.02, (1, 3): 0.02, (0, 3): 0.01})  # a level that changes nothing is left out
    found = select_levels(make, 4, wave(12), 0.8)
    assert found.levels == (3,) and set(found.times) == {(3,)}


def test_a_chain_that_follows_the_truth_for_a_shorter_time_is_never_chosen():
    """Ten times the accuracy in one step, but its deviations grow by half in every one: it is lost after a few."""
    make, _ = made({(1,): 0.02, (0, 1): (0.002, 1.5)})
    found = select_levels(make, 2, wave(60), 0.5)
    assert found.errors[0, 1] < found.errors[1,]
    assert found.times[1,] == pytest.approx(0.5 * 59) and found.times[0, 1] < 20.0
    assert found.levels == (1,)


def test_times_are_those_of_the_trajectories_on_their_own():
    """White steps of rms e: the correlation after n of them is 1 / sqrt(1 + n e^2), above 0.8 for n < 0.5625 / e^2."""
    make, _ = made({(0,): 0.2})
    found = select_levels(make, 1, wave(41, 16), 0.4)
    assert found.times[0,] / 0.4 == pytest.approx(0.5625 / 0.2**2, abs=2.0)
    assert found.levels == (0,)


def test_a_choice_repeats():
    table = {(2,): 0.02, (1, 2): 0.01, (0, 1, 2): 0.03}
    one, two = (select_levels(made(table)[0], 3, wave(20), 0.8) for _ in range(2))
    assert one == two and one.levels == (1, 2)


# -- the gain of the noise


class Ensemble:
    """Frame n of a wave plus an error that all members share and one of their own: rms `bias` and gain x `spread`."""

    def __init__(self, gain, bias, spread, breaks=math.inf):
        self.gain, self.bias, self.spread, self.breaks, self.transition = gain, bias, spread, breaks, Transition()

    def __call__(self, previous, ids, seed, step, cond=None):
        truth, trajectory = wave(step + 1, 64)[:, step], ids & 0xFFFFFFFF
        shared = torch.stack([normal(1, N, seed=1000 + 64 * step + int(i)) for i in trajectory])
        own = normal(len(ids), 1, N, seed=step)
        out = truth[trajectory] + self.bias * shared + self.gain * self.spread * own
        return out * (math.nan if self.gain >= self.breaks else 1.0)

    def sound(self, frame):
        return torch.isfinite(frame).flatten(1).all(1)


def test_the_gain_makes_the_spread_equal_to_the_error():
    """(M + 1)/M g^2 S^2 = E^2 + g^2 S^2 / M at g = E / S; the ratios by gain in closed form, to 5 %."""
    gain, ratios = noise_gain(lambda g: Ensemble(g, 0.3, 0.1), wave(9, 64), 0.5, lead=4.0)
    assert list(ratios) == [1.0, 2.0, 4.0]
    for g, ratio in ratios.items():
        assert ratio == pytest.approx(math.sqrt(9 / 8 * (0.1 * g)**2 / (0.09 + (0.1 * g)**2 / 8)), rel=0.05)
    assert gain == pytest.approx(3.0, rel=0.06)
    (x0, y0), (x1, y1) = ((math.log(g), math.log(ratios[g])) for g in (2.0, 4.0))
    assert y0 + (math.log(gain) - x0) * (y1 - y0) / (x1 - x0) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("bias, spread, breaks, gain, tried", [
    (0.3, 0.6, math.inf, 1.0, 1),     # too much spread at once: the noise is left as it is
    (0.3, 0.001, math.inf, 16.0, 5),  # never enough: the largest gain
    (0.3, 0.001, 4.0, 2.0, 2),        # larger gains break the rollout
    (0.3, 0.001, 1.0, 1.0, 0),
])
def test_gains_end_where_the_rollouts_do(bias, spread, breaks, gain, tried):
    found, ratios = noise_gain(lambda g: Ensemble(g, bias, spread, breaks), wave(9, 16), 0.5, lead=2.0)
    assert found == pytest.approx(gain) and len(ratios) == tried


def test_the_spread_is_taken_at_its_lead_time():
    """Rollouts are as long as the lead; a longer one than there are frames is cut."""
    steps = []

    class Counting(Ensemble):
        def __call__(self, previous, ids, seed, step, cond=None):
            steps.append(step)
            return super().__call__(previous, ids, seed, step, cond)

    for lead, last in ((2.0, 4), (0.1, 1), (50.0, 8)):
        steps.clear()
        noise_gain(lambda g: Counting(g, 0.3, 0.6), wave(9, 16), 0.5, lead=lead)
        assert steps == list(range(1, last + 1))


def test_levels_are_shown_the_truth_under_their_own_noise():
    """Each level meets alpha y + sigma eps with noise of its own, the same at every call."""
    spec = StateSpec({"u": Component(Euclidean(), REFINER, (1, N))})
    seen = []

    class Listening(Gaussian):
        def forward(self, state, t, ctx, run=None):
            k = REFINER.coefficients(t)
            seen.append((state["u"] - k.alpha * y) / k.sigma)
            return super().forward(state, t, ctx, run)

    previous, y = torch.zeros(3, 1, 1, N, dtype=F64), normal(3, 1, N)
    for _ in range(2):
        by_level(spec, Listening(spec, 1.0, "data"), Transition(), previous, y, seed=5)
    for level in range(4):
        torch.testing.assert_close(seen[level], seen[4 + level], atol=0, rtol=0)
        assert float(seen[level].std()) == pytest.approx(1.0, abs=0.2)
        assert all(float((seen[level] - seen[other]).abs().max()) > 0.5 for other in range(level))
