"""The linear part of the symmetric splitting: the analytic process, both variants, and its end beyond t = 0."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.path import VE, VP, Prediction
from scidiff.core.path.vp import SubVP
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.splitting import Splitting, linear
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec


class NoScore(Denoiser):
    """Says that the density is flat."""

    def forward(self, state, t, ctx, run=None):
        return {name: Prediction("score", torch.zeros_like(x)) for name, x in state.items()}


def by_simulation(law, t, r, steps=500):
    """Mean factor and variance of dx = -f x dtau + g dw (tau = -t) from t to r, by small steps of the moments."""
    h, mean, var = (t - r) / steps, 1.0, 0.0
    for i in range(steps):
        k = law.coefficients(t - (i + 0.5) * h)
        grow = math.exp(-0.5 * h * k.drift)
        mean *= grow**2
        var = (var * grow**2 + h * k.g2) * grow**2
    return mean, var


@pytest.mark.parametrize("law", [VP(0.1, 1.0), VE(0.2, 1.0), SubVP(0.1, 20.0)], ids=lambda p: type(p).__name__)
def test_the_linear_part_is_the_reverse_process_without_a_score(law):
    factor, std = linear(law, 0.8, 0.3, exact=True)
    mean, var = by_simulation(law, 0.8, 0.3)
    assert factor == pytest.approx(mean, rel=1e-3)
    assert std**2 == pytest.approx(var, rel=1e-3)


@pytest.mark.parametrize("law", [VP(0.1, 1.0), VE(0.2, 1.0)], ids=lambda p: type(p).__name__)
def test_halves_compose(law):
    whole, halves = linear(law, 0.7, 0.5, True), [linear(law, 0.7, 0.6, True), linear(law, 0.6, 0.5, True)]
    assert halves[0][0] * halves[1][0] == pytest.approx(whole[0], rel=1e-13)
    assert (halves[1][0] * halves[0][1]) ** 2 + halves[1][1] ** 2 == pytest.approx(whole[1] ** 2, rel=1e-12)


def test_the_two_variants_in_the_words_of_the_publication():
    low, high, t, dt = 0.1, 1.0, 0.6, -5e-4
    c = 0.25 * dt * (2 * low + (2 * t + dt) * (high - low))
    for exact, v in ((False, 1.0 - math.exp(2 * c)), (True, math.exp(-2 * c) - 1.0)):
        factor, std = linear(VP(low, high), t, t + dt, exact)
        assert factor == pytest.approx(math.exp(-c), rel=1e-13)
        assert std**2 == pytest.approx(v, rel=1e-9)
    sigma = lambda t: 0.2 * 5.0**t  # noqa: E731
    for exact in (False, True):
        factor, std = linear(VE(0.2, 1.0), t, t + dt, exact)
        assert factor == 1.0 and std**2 == pytest.approx(sigma(t) ** 2 - sigma(t + dt) ** 2, rel=1e-9)


def test_beyond_the_data_schedules_go_on_or_stop():
    for law in (VP(0.1, 1.0), VE(0.2, 1.0)):
        inside, outside = linear(law, 1e-3, 5e-4, False), linear(law, 1e-4, -4e-4, False)
        assert outside[1] == pytest.approx(inside[1], rel=1e-2)
    _, std = linear(SubVP(), 1e-4, -4e-4, True)
    assert math.isfinite(std) and std == pytest.approx(SubVP().coefficients(1e-4).rho, rel=1e-3)


@pytest.mark.parametrize("law", [VP(0.1, 1.0), VE(0.2, 1.0)], ids=lambda p: type(p).__name__)
def test_without_a_score_a_run_is_the_analytic_process(law):
    """Published times lie 1 / (n - 1) apart and steps are 1 / n long: one n-th is not gone; all the rest is exact."""
    spec = StateSpec({"x": Component(Euclidean(), law, (4,))})
    method = Splitting(snr=0.0, exact=True)
    plan = Fixed(method, 200, t_end=1e-4).plan(spec)
    factor, var = 1.0, 0.0
    for stage in plan.stages[:-1]:
        for row in stage.rows:
            factor, var = factor * row.a, row.a**2 * var + row.c**2
    mean, std = linear(law, 1.0, 1.0 / 200, True)
    assert factor == pytest.approx(mean, rel=2.0 / 200)
    assert var == pytest.approx(std**2, rel=2.0 / 200)
    # And the sampler draws from such a plan, up to the noise of its last half step.
    mean, std = linear(law, 1.0, 0.0, True)
    start = {"x": torch.full((4000, 4), 2.0, dtype=torch.float64)}
    sampler = Sampler(spec, NoScore(), Fixed(method, 100, t_end=1e-4), dtype=torch.float64)
    x = sampler.run(Context.of(4000), 0, start=start).state["x"]
    assert float(x.mean()) == pytest.approx(2.0 * mean, abs=0.06)
    assert float(x.var()) == pytest.approx(std**2, rel=0.05)


def test_correction_can_be_left_out():
    spec = StateSpec({"x": Component(Euclidean(), VP(0.1, 1.0), (4,))})
    for snr, kernels in ((0.0, ["affine", "affine"]), (0.1, ["langevin", "affine", "affine"])):
        stage = Fixed(Splitting(snr=snr), 5, t_end=1e-4).plan(spec).stages[0]
        assert [row.kernel for row in stage.rows] == kernels
    assert Fixed(Splitting(), 5, t_end=1e-4).plan(spec).stages[-1].rows[-1].c == 0.0
