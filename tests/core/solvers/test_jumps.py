"""Solvers of categories against exact laws: ancestral, mixture, rates, first hitting."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path import AbsorbingPath, Prediction, UniformPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.first_hitting import FirstHitting, time_of_mass
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.jump import Mixture, Posterior, Rate
from scidiff.core.space import Categorical, Euclidean
from scidiff.core.spec import Component, Context, StateSpec

# A law of two coupled sites with three classes, [3, 3].
LAW = torch.tensor([[0.30, 0.02, 0.03], [0.05, 0.20, 0.05], [0.01, 0.09, 0.25]], dtype=torch.float64)


class TwoSites(Denoiser):
    """The exact posterior of each site, p(x0_i | x_t), for LAW under a categorical path."""

    def __init__(self, path):
        super().__init__()
        self.path, self.calls, self.times = path, 0, []

    def forward(self, state, t, ctx, run=None):
        self.calls += 1
        self.times.append(t)
        z, m = state["x"], torch.as_tensor(self.path.mass(t), dtype=torch.float64).view(-1, 1, 1)
        hot = torch.nn.functional.one_hot(z, 4).to(torch.float64)
        if self.path.absorbing:
            seen, rest = hot[..., :3], hot[..., 3:]
            like = torch.where(rest > 0, torch.ones_like(seen), seen)  # a masked site says nothing
        else:
            like = (1 - m) * hot[..., :3] + m / 3
        joint = LAW * like[:, 0, :, None] * like[:, 1, None, :]
        joint = joint / joint.sum((1, 2), keepdim=True)
        return {"x": Prediction("logits", torch.stack([joint.sum(2), joint.sum(1)], 1).clamp(min=1e-300).log())}


def draw(path, driver, count=20_000, seed=0):
    spec = StateSpec({"x": Component(Categorical(3), path, (2,))})
    denoiser = TwoSites(path)
    result = Sampler(spec, denoiser, driver).run(Context.of(count), seed)
    return result, denoiser


def chi_square(x, law=LAW):
    """Statistic over the cells of two sites; 8 degrees of freedom."""
    found = torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=9).to(torch.float64)
    expected = law.flatten() * x.shape[0]
    return float(((found - expected) ** 2 / expected).sum())


LIMIT = 26.1  # 99.9 % of chi-square with 8 degrees of freedom


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_first_hitting_is_exact_in_as_many_calls_as_sites(schedule):
    result, denoiser = draw(AbsorbingPath(schedule=schedule), FirstHitting())
    assert result.nfe == denoiser.calls == 2
    assert chi_square(result.state["x"]) < LIMIT
    first, second = denoiser.times
    assert first.dtype == torch.float64 and bool((second < first).all())


@pytest.mark.parametrize("path, driver", [
    (AbsorbingPath(), Fixed(Posterior(), 100)), (AbsorbingPath(), Fixed(Mixture(last="sample"), 100)),
    (UniformPath(), Fixed(Posterior(), 100)), (UniformPath(), Fixed(Mixture(last="sample"), 100)),
    (UniformPath(), Fixed(Rate(last="sample"), 150)), (UniformPath(schedule="cosine"), Fixed(Posterior(), 100)),
], ids=lambda v: str(getattr(v, "method", v)))
def test_many_steps_reach_the_law(path, driver):
    result, _ = draw(path, driver, count=4000)
    assert chi_square(result.state["x"]) < LIMIT + 12  # a little room for the error of finite steps


@pytest.mark.parametrize("steps", [256, pytest.param(4096, marks=pytest.mark.slow)])
def test_first_hitting_agrees_with_a_fine_ancestral_sampler(steps):
    exact, _ = draw(AbsorbingPath(), FirstHitting(), 4000)
    fine, _ = draw(AbsorbingPath(), Fixed(Posterior(), steps), 4000, seed=1)
    a, b = (torch.bincount(r.state["x"][:, 0] * 3 + r.state["x"][:, 1], minlength=9).double() for r in (exact, fine))
    assert float(((a - b) ** 2 / (a + b)).sum()) < LIMIT


def test_event_times_are_those_of_the_largest_of_uniforms():
    """With n masked sites at m = 1 the next event is at the largest of n uniforms, whose mean is n / (n + 1)."""
    _, denoiser = draw(AbsorbingPath(), FirstHitting())
    for t, mean in zip(denoiser.times, (2 / 3, 1 / 3), strict=True):
        assert float(t.mean()) == pytest.approx(mean, abs=0.01)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert float(
        AbsorbingPath(schedule="cosine").mass(time_of_mass(AbsorbingPath(schedule="cosine"), half))
    ) == pytest.approx(0.5)


def test_several_events_can_share_a_call_and_padding_is_left_alone():
    path = AbsorbingPath()
    spec = StateSpec({"x": Component(Categorical(2), path, ("N",))})

    class Constant(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"x": Prediction("logits", torch.tensor([-30.0, 0.0]).expand(*state["x"].shape, 2))}

    ctx = Context.of(3, sizes=torch.tensor([1, 4, 7]))
    for driver, calls in ((FirstHitting(), 7), (FirstHitting(steps=3), 3)):
        result = Sampler(spec, Constant(), driver).run(ctx, 0)
        assert result.nfe == calls
        assert result.state["x"].sum(1).tolist() == [1, 4, 7]


def test_pairs_are_unmasked_together_and_resume_is_exact():
    path = AbsorbingPath()
    spec = StateSpec({"x": Component(Categorical(3, pairs=True), path, ("N", "N"))})

    class Symmetric(Denoiser):
        def forward(self, state, t, ctx, run=None):
            hot = torch.nn.functional.one_hot(state["x"], 4).to(torch.float64)
            return {"x": Prediction("logits", hot[..., :3].sum((1, 2), keepdim=True).expand(hot[..., :3].shape))}

    ctx = Context.of(4, sizes=torch.tensor([2, 3, 4, 4]))
    saved = []
    sampler = Sampler(spec, Symmetric(), FirstHitting())
    whole = sampler.run(ctx, 3, on_step=lambda loop: saved.append(loop.state_dict()))
    x = whole.state["x"]
    assert whole.nfe == 6 and torch.equal(x, x.transpose(1, 2)) and int(x.max()) < 3
    rest = sampler.run(ctx, 3, resume=saved[2])
    assert torch.equal(rest.state["x"], x) and rest.nfe == 6


def test_refusals():
    with pytest.raises(UsageError, match="one masked"):
        FirstHitting().history(StateSpec({"x": Component(Categorical(3), UniformPath(), (2,))}))
    with pytest.raises(UsageError, match="cuda_graph"):
        FirstHitting(cuda_graph=True)
    with pytest.raises(UsageError):
        Mixture(last="data")


def test_the_last_step_reaches_every_component_own_end():
    """Beside a VP component that stops at its t_min, categories still go to t = 0."""
    from scidiff.core.path import VP
    from scidiff.core.solvers.exponential import Exponential

    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,)), "c": Component(Categorical(2), UniformPath(), (2,))})
    plan = Fixed(Exponential(), 5, methods={"c": Mixture()}).plan(spec)
    assert plan.stages[-1].s == {"x": 1e-3, "c": 0.0} and plan.nfe == 5
    assert [r.kernel for r in plan.stages[-1].rows] == ["affine", "mode"]
    assert math.isfinite(plan.stages[0].t)


@pytest.mark.parametrize("eta", [0.0, 2.0, 10.0, 200.0])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_renoising_leaves_exactly_the_mass_of_the_path(eta: float, schedule: str) -> None:
    """Entries that follow the source law: m(t) before, m(t)(1 - a) after the jump, and m(s) after the redraw."""
    path = UniformPath(schedule=schedule)
    component = Component(Categorical(3), path, (4,))
    times = [(1 - i / 20) ** 2 for i in range(21)]
    for (part,), t, s in zip(Mixture(eta=eta).parts("k", component, times), times, times[1:], strict=False):
        row = part.rows[0]
        if s > 0:
            jumped = path.mass(t) * (1 - row.a)
            assert jumped + (1 - jumped) * row.c == pytest.approx(path.mass(s), abs=1e-14)
            assert 0 <= row.a <= 1 and 0 <= row.c <= 0.5


def test_temperature_flattens_what_the_jump_draws() -> None:
    """One full jump (a = 1) from logits (0, log 3): p(1) = 3^(1/T) / (1 + 3^(1/T))."""
    path, count, temperature = UniformPath(), 40000, 2.0
    spec = StateSpec({"k": Component(Categorical(2), path, (count,))})
    ctx = Context.of(1)
    site = ctx.at("k", spec["k"])
    row = Mixture(temperature=temperature, last="sample").row("k", path, 0.5, 0.25)
    z = torch.zeros(1, count, dtype=torch.int64)
    logits = torch.tensor([0.0, math.log(3.0)]).expand(1, count, 2)
    drawn = path.apply(replace(row, a=1.0), z, Prediction("logits", logits, path, z, 0.5, site), site,
                       Run(0).handle(site))
    share = 3.0 ** (1 / temperature)
    expected = share / (1 + share)
    assert abs(float(drawn.double().mean()) - expected) < 4 * math.sqrt(expected * (1 - expected) / count)
    with pytest.raises(UsageError, match="temperature"):
        Mixture(temperature=0.0)
