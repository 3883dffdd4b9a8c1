"""Windows of trajectories, their symmetric copies, and losses against what is computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.errors import UsageError
from scidiff.core.objective import LevelTime, StandardObjective, UniformTime
from scidiff.core.path import VP, LevelPath
from scidiff.core.run import Run
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.domains.pde.codec import FRAMES, PREVIOUS
from scidiff.domains.pde.equations import EQUATIONS, SpectralSolver
from scidiff.domains.pde.objectives import Transitions

F64 = torch.float64
REFINER = LevelPath.geometric(math.sqrt(4e-7), 3)


def spec_of(path, channels=1, space=(32,)):
    return StateSpec({"u": Component(Euclidean(), path, (channels, *space))})


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def batch_of(frames, channels=1, **cond):
    """What a training batch brings: whole trajectories, and the encoded last step that the windows replace."""
    yes = torch.ones(len(frames), dtype=torch.bool)
    more = {name: (value, yes) for name, value in cond.items()}
    state = torch.zeros(len(frames), channels, *frames.shape[3:], dtype=frames.dtype)
    return {"u": state}, Context.of(len(frames), cond={FRAMES: (frames, yes), PREVIOUS: (frames[:, 0], yes), **more})


class Tiny(nn.Module):
    """Two periodic convolutions over the noised target and the history."""

    def __init__(self, fields=1, history=1, width=3, state=None):
        super().__init__()
        torch.manual_seed(0)
        ring = {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}
        self.enter = nn.Conv1d(fields * (history + 1), width, **ring)
        self.leave = nn.Conv1d(width, state or fields, **ring)
        self.seen = []

    def of(self, z, previous, time):
        x = z if previous is None else torch.cat([z, previous], 1)
        return self.leave(torch.tanh(self.enter(x) + time.to(x.dtype).view(-1, 1, 1)))

    def forward(self, features, time, ctx, previous):
        self.seen.append((features["u"], ctx))
        history = ctx.cond[PREVIOUS][0] if PREVIOUS in ctx.cond else None
        return {"u": self.of(features["u"], history, time)}


@pytest.fixture(scope="module")
def ks():
    """(frames [6, 9, 1, 32] float64 on the attractor, 0.2 apart; the solver; its steps in one interval)."""
    law = EQUATIONS["ks"]()
    solver = SpectralSolver(law, (32,), 22.0, 0.1, dtype=F64)
    start = solver.rollout(law.initial(torch.arange(6), 0, (32,), 22.0, F64), 600, 600)[:, -1]
    return solver.rollout(start, 18, 2), solver, 2


# -- windows and their copies


def test_windows_of_solutions_are_solutions_shifted_and_reflected(ks):
    """Consecutive states stay consecutive states: the solver leads from each frame of a window to the next."""
    frames, solver, every = ks
    _, ctx = batch_of(frames)
    for reflect in (False, True):
        objective = Transitions(spec_of(LevelPath()), history=2, stride=2, reflect=reflect)
        moved = 0
        for step in range(8):
            run = Run(3)
            run.step = step
            w = objective.draw(ctx, run)
            assert w.shape == (6, 3, 1, 32)
            for i in range(2):
                torch.testing.assert_close(solver.rollout(w[:, i], 2 * every, 2 * every)[:, 0], w[:, i + 1], atol=1e-5,
                                           rtol=0)
            moved += sum(not any(torch.equal(w[b, 0], f) for f in frames[b]) for b in range(6))
        assert moved > 30  # of 48: nearly all of them are copies that the data do not hold


def test_in_two_dimensions_shifts_run_along_the_axes_that_are_named():
    """Kolmogorov flow is forced along y: windows shifted in x are solutions, windows shifted in y are not."""
    law = EQUATIONS["kolmogorov"](viscosity=5e-2, forcing_amplitude=20.0)
    solver = SpectralSolver(law, (16, 16), law.extent, 0.005, dtype=F64)
    frames = solver.rollout(law.initial(torch.arange(6), 0, (16, 16), law.extent, F64), 80, 20)
    _, ctx = batch_of(frames)
    for axes, solves in (((-1,), True), ((-2,), False), ((-1, -2), False), ((), True)):
        objective = Transitions(spec_of(LevelPath(), 1, (16, 16)), shift=axes)
        w = objective.draw(ctx, Run(0))
        error = float((solver.rollout(w[:, 0], 20, 20)[:, 0] - w[:, 1]).abs().max())
        assert (error < 1e-5) == solves, (axes, error)
        shifted = any(not any(torch.equal(w[b, 0], f) for f in frames[b]) for b in range(6))
        assert shifted == bool(axes)


def labelled(batch, frames, points):
    """Trajectories whose values name their place: frame f, point x holds 1 + x + f N."""
    values = 1.0 + torch.arange(points, dtype=F64) + points * torch.arange(frames, dtype=F64)[:, None]
    return values.view(1, frames, 1, points).repeat(batch, 1, 1, 1)


def test_windows_begin_everywhere_shift_by_everything_and_show_both_signs():
    """All phases of the stride, all shifts and both signs, each as often as the others (five deviations)."""
    batch, count, points, stride = 4000, 12, 8, 4
    _, ctx = batch_of(labelled(batch, count, points))
    w = Transitions(spec_of(LevelPath(), 1, (points,)), stride=stride, reflect=True).draw(ctx, Run(5))
    flipped = w[:, 0, 0, 0] < 0
    first = torch.where(flipped, -w[:, 0, 0, -1], w[:, 0, 0, 0]) - 1
    start, shift = first.long() // points, first.long() % points
    for b in range(0, batch, 97):
        for i in range(2):
            place = (torch.arange(points) + shift[b]) % points
            expected = 1.0 + place + points * (start[b] + stride * i)
            assert torch.equal(w[b, i, 0], -expected.flip(0).double() if flipped[b] else expected.double())
    for values, kinds in ((start, count - stride), (shift, points), (flipped.long(), 2)):
        seen = torch.bincount(values, minlength=kinds).double() / batch
        assert len(seen) == kinds and float((seen - 1 / kinds).abs().max()) < 5 * math.sqrt(1 / kinds / batch)
    assert set((start % stride).tolist()) == {0, 1, 2, 3}
    plain = Transitions(spec_of(LevelPath(), 1, (points,)), stride=stride).draw(ctx, Run(5))
    assert bool((plain > 0).all())


def test_windows_depend_on_seed_step_and_sample_alone():
    _, ctx = batch_of(labelled(32, 40, 8))
    objective = Transitions(spec_of(LevelPath(), 1, (8,)), reflect=True, unroll=2)

    def drawn(seed, step, ctx=ctx):
        run = Run(seed)
        run.step = step
        return objective.draw(ctx, run)

    assert torch.equal(drawn(1, 7), drawn(1, 7))
    for other in (drawn(1, 8), drawn(2, 7)):
        assert float((drawn(1, 7) == other).flatten(1).all(1).double().mean()) < 0.2
    few = torch.tensor([9, 2, 30])
    assert torch.equal(drawn(1, 7, ctx.take(few)), drawn(1, 7)[few])


def test_trajectories_must_be_long_enough():
    objective = Transitions(spec_of(LevelPath(), 1, (8,)), history=2, stride=3, unroll=2)
    exact, short = batch_of(labelled(4, 10, 8)), batch_of(labelled(4, 9, 8))
    assert objective.draw(exact[1], Run(0)).shape == (4, 4, 1, 8)
    with pytest.raises(UsageError, match="9 frames are too short for 4 steps of 3 frames"):
        objective.draw(short[1], Run(0))


# -- losses by hand


def gradients(loss, net):
    net.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in net.parameters()]


def test_one_level_is_plain_regression_bit_for_bit(ks):
    """mean((net(zeros, previous) + y)^2): the angle at pure noise is -y, and the network sees no noise at all."""
    frames = ks[0].float()[:4]
    batch, net = batch_of(frames), Tiny()
    spec = spec_of(LevelPath())
    objective = Transitions(spec, scale=0.25, stride=2, reflect=True)
    run = Run(1)
    w = objective.draw(batch[1], run)
    loss, metrics = objective.loss(NetworkDenoiser(spec, net), batch, run)
    found = gradients(loss, net)
    error = net.of(torch.zeros(4, 1, 32), w[:, 0], torch.ones(4)) + (w[:, 1] - w[:, 0]) / 0.25
    by_hand = error.square().flatten(1).mean(1).mean()
    assert torch.equal(loss, by_hand) and torch.equal(metrics["loss"], loss.detach())
    torch.testing.assert_close(loss, error.square().mean(), atol=0, rtol=2e-7)  # another order of summation
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(error.square().mean(), net), strict=True))
    assert not net.seen[0][0].any()


def test_without_blank_the_network_sees_the_noise(ks):
    batch, net = batch_of(ks[0].float()), Tiny()
    spec = spec_of(LevelPath(blank=False))
    Transitions(spec).loss(NetworkDenoiser(spec, net), batch, Run(1))
    assert abs(float(net.seen[0][0].std()) - 1.0) < 0.2


def test_direct_targets_and_longer_histories(ks):
    frames = ks[0]
    batch, net = batch_of(frames), Tiny(history=3).double()
    spec = spec_of(LevelPath())
    objective = Transitions(spec, history=3, target="direct", scale=2.0)
    w = objective.draw(batch[1], Run(1))
    assert w.shape[1] == 4
    loss, _ = objective.loss(NetworkDenoiser(spec, net), batch, Run(1))
    by_hand = net.of(torch.zeros(6, 1, 32, dtype=F64), w[:, :3, 0], torch.ones(6)) + w[:, 3] / 2.0
    torch.testing.assert_close(loss, by_hand.square().mean(), atol=0, rtol=1e-12)


@pytest.mark.parametrize("detach", [True, False])
def test_two_steps_are_the_mean_of_both(ks, detach):
    frames = ks[0]
    batch, net = batch_of(frames), Tiny().double()
    spec = spec_of(LevelPath())
    objective = Transitions(spec, scale=0.5, stride=2, unroll=2, detach=detach)
    w = objective.draw(batch[1], Run(2))
    loss, metrics = objective.loss(NetworkDenoiser(spec, net), batch, Run(2))
    found = gradients(loss, net)
    nothing, late = torch.zeros(6, 1, 32, dtype=F64), torch.ones(6)
    first = net.of(nothing, w[:, 0], late)
    guess = w[:, 0] + 0.5 * -first
    guess = guess.detach() if detach else guess
    losses = [(first + (w[:, 1] - w[:, 0]) / 0.5).square().mean(),
              (net.of(nothing, guess, late) + (w[:, 2] - guess) / 0.5).square().mean()]
    torch.testing.assert_close(loss, sum(losses) / 2, atol=0, rtol=1e-12)
    assert metrics["step_1"].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-3)
    for a, b in zip(found, gradients(sum(losses) / 2, net), strict=True):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=1e-10)


def test_a_refiner_is_unrolled_through_its_first_call(ks):
    """Both losses are the standard objective's; what is fed on is the estimate of the call at pure noise alone."""
    batch, net = batch_of(ks[0]), Tiny().double()
    spec = spec_of(REFINER)
    objective, denoiser = Transitions(spec, scale=0.5, unroll=2), NetworkDenoiser(spec, net)
    loss, _ = objective.loss(denoiser, batch, Run(2))
    w = objective.draw(batch[1], Run(2))
    guess = w[:, 0] - 0.5 * net.of(torch.zeros(6, 1, 32, dtype=F64), w[:, 0], torch.ones(6)).detach()
    alone = StandardObjective(spec, objective.time)
    yes = torch.ones(6, dtype=torch.bool)
    known = [Context.of(6, cond={PREVIOUS: (h, yes)}) for h in (w[:, 0], guess)]
    parts = [alone.loss(denoiser, ({"u": (w[:, j + 1] - h) / 0.5}, known[j]), Run(2, j))[0]
             for j, h in enumerate((w[:, 0], guess))]
    torch.testing.assert_close(loss, sum(parts) / 2, atol=0, rtol=1e-12)


def test_gradients_flow_through_the_history_only_when_they_are_let(ks):
    """Central differences in float64: the undetached gradient is the derivative of the loss, the detached is not."""
    batch, spec = batch_of(ks[0]), spec_of(LevelPath())
    found = {}
    for detach in (False, True):
        net = Tiny().double()
        denoiser = NetworkDenoiser(spec, net)
        objective = Transitions(spec, scale=0.5, stride=2, unroll=3, detach=detach)
        grads = gradients(objective.loss(denoiser, batch, Run(2))[0], net)
        direction = [normal(*p.shape, seed=i, dtype=F64) for i, p in enumerate(net.parameters())]
        ends = []
        with torch.no_grad():
            for sign in (1.0, -1.0):
                for p, d in zip(net.parameters(), direction, strict=True):
                    p += sign * 1e-5 * d
                ends.append(float(objective.loss(denoiser, batch, Run(2))[0]))
                for p, d in zip(net.parameters(), direction, strict=True):
                    p -= sign * 1e-5 * d
        slope = (ends[0] - ends[1]) / 2e-5
        found[detach] = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True)) / slope
    assert found[False] == pytest.approx(1.0, abs=1e-6)
    assert abs(found[True] - 1.0) > 1e-3


def test_jitter_disturbs_the_history_and_the_target_leads_back(ks):
    frames = ks[0]
    batch, net = batch_of(frames), Tiny(history=2).double()
    spec = spec_of(LevelPath())
    asked = {"history": 2, "scale": 0.5}
    clean = Transitions(spec, **asked).draw(batch[1], Run(2))
    seen = {}

    class Watching(Transitions):
        def joined(self, previous, y):
            seen["end"] = self.transition.decode(previous, y)
            return y

    Watching(spec, **asked, jitter=0.05).loss(NetworkDenoiser(spec, net), batch, Run(2))
    off = net.seen[0][1].cond[PREVIOUS][0] - clean[:, :2, 0]
    assert float(off.std()) == pytest.approx(0.05, rel=0.15) and abs(float(off.mean())) < 0.01
    torch.testing.assert_close(seen["end"], clean[:, 2], atol=1e-12, rtol=0)


# -- joint states, times, fallbacks, figures


def test_a_joint_state_holds_the_history_and_the_target(ks):
    frames = ks[0]
    for history in (1, 2):
        spec = spec_of(VP(), history + 1)
        net = Tiny(history=history, state=history + 1).double()
        batch = batch_of(frames, history + 1)
        objective = Transitions(spec, history=history, scale=0.5, joint=True)
        w = objective.draw(batch[1], Run(2))
        held = {}

        class Watching(Transitions):
            def joined(self, previous, y, held=held):
                held["state"] = super().joined(previous, y)
                return held["state"]

        loss, _ = Watching(spec, history=history, scale=0.5, joint=True).loss(NetworkDenoiser(spec, net), batch, Run(2))
        assert torch.equal(held["state"], torch.cat([w[:, :history, 0], (w[:, -1] - w[:, -2]) / 0.5], 1))
        z, ctx = net.seen[0]
        assert z.shape == (6, history + 1, 32) and PREVIOUS not in ctx.cond and FRAMES not in ctx.cond
        assert bool(torch.isfinite(loss)) and loss.requires_grad
    with pytest.raises(UsageError, match="not joint"):
        Transitions(spec, joint=True, unroll=2)
    with pytest.raises(UsageError, match="one step or more"):
        Transitions(spec, unroll=0)


def test_two_fifths_of_the_training_go_to_the_first_call():
    ctx = Context.of(5000)
    t = Transitions(spec_of(REFINER)).times(ctx, Run(0))
    share = [float((t == level).double().mean()) for level in REFINER.levels]
    assert share == pytest.approx([0.2, 0.2, 0.2, 0.4], abs=2e-3)
    t = Transitions(spec_of(LevelPath((0.1, 1.0)))).times(ctx, Run(0))
    assert float((t == 1.0).double().mean()) == pytest.approx(0.4, abs=2e-3)
    t = Transitions(spec_of(REFINER), time=LevelTime((0.0, 0.5, 0.0, 0.5))).times(ctx, Run(0))
    assert set(t.tolist()) == {0.5, 1.0}
    assert set(Transitions(spec_of(LevelPath())).times(ctx, Run(0)).tolist()) == {1.0}
    assert isinstance(Transitions(spec_of(VP())).time, UniformTime)


def test_encoded_transitions_are_left_to_the_standard_objective(ks):
    spec, net = spec_of(REFINER), Tiny()
    w = ks[0].float()
    batch = ({"u": (w[:, 1] - w[:, 0]) / 0.5},
             Context.of(6, cond={PREVIOUS: (w[:, 0], torch.ones(6, dtype=torch.bool))}))
    objective, denoiser = Transitions(spec, unroll=2, jitter=0.1, reflect=True), NetworkDenoiser(spec, net)
    one, _ = objective.loss(denoiser, batch, Run(4))
    two, _ = StandardObjective(spec, objective.time).loss(denoiser, batch, Run(4))
    assert torch.equal(one, two)


def test_other_conditions_reach_the_network_and_trajectories_do_not(ks):
    spec, net = spec_of(REFINER), Tiny()
    value = torch.linspace(0.5, 1.5, 6)
    batch = batch_of(ks[0].float(), viscosity=value)
    Transitions(spec, unroll=2).loss(NetworkDenoiser(spec, net), batch, Run(0))
    assert len(net.seen) == 3  # two losses and the call between them
    for _, ctx in net.seen:
        assert set(ctx.cond) == {PREVIOUS, "viscosity"} and torch.equal(ctx.cond["viscosity"][0], value)
        assert torch.equal(ctx.ids, torch.arange(6))
    assert FRAMES in batch[1].cond


def test_an_interrupted_training_repeats(ks):
    batch, spec = batch_of(ks[0].float()), spec_of(REFINER)
    denoiser = NetworkDenoiser(spec, Tiny())
    objective = Transitions(spec, unroll=2, reflect=True, jitter=0.01)
    values = []
    for step in (12, 12, 13):
        run = Run(4)
        run.step = step
        values.append(objective.loss(denoiser, batch, run)[0])
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


class Off(Denoiser):
    """The exact angle plus a constant."""

    def __init__(self, spec, clean, by):
        super().__init__()
        self.spec, self.clean, self.by = spec, clean, by

    def forward(self, state, t, ctx, run=None):
        path, z = self.spec["u"].path, state["u"]
        k = path.coefficients(t)
        col = [torch.as_tensor(v).view(-1, 1, 1) for v in (k.alpha, k.sigma)]
        v = (col[0] * z - self.clean) / col[1] + self.by
        return {"u": path.read(v, z, t, ctx.at("u", self.spec["u"]), "angular")}


def test_validation_tells_the_error_of_every_level():
    """e_k = sigma_k |v_hat - v|; only where no gradient is taken."""
    spec, y = spec_of(REFINER), normal(64, 1, 32, dtype=F64)
    batch = ({"u": y}, Context.of(64))
    objective = Transitions(spec)
    with torch.no_grad():
        _, metrics = objective.loss(Off(spec, y, 0.25), batch, Run(0))
    assert [float(metrics[f"e{k}"]) for k in range(4)] == pytest.approx([0.25 * s for s in REFINER.stds], rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(0.25**2, rel=1e-6)
    _, metrics = objective.loss(Off(spec, y, 0.25), batch, Run(0))
    assert set(metrics) == {"loss", "u"}
    vp = spec_of(VP())
    with torch.no_grad():
        _, metrics = Transitions(vp).loss(Off(vp, y, 0.25), batch, Run(0))
    assert set(metrics) == {"loss", "u"}


def test_a_model_of_time_steps_moves_one_component():
    part = Component(Euclidean(), VP(), (1, 8))
    with pytest.raises(UsageError, match="one component"):
        Transitions(StateSpec({"u": part, "v": part}))
