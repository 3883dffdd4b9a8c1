"""Priors of perpendicular slices, against closed forms of Gaussian volumes."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, GaussianMixture
from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path import VP
from scidiff.core.path.base import Prediction
from scidiff.core.posterior.chunked import Chunked
from scidiff.core.posterior.perpendicular import Perpendicular
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec

PATH = VP(t_min=1e-3)
Z, Y, X = 3, 4, 5
NAME = "x"


def smooth(n, length):
    where = torch.arange(n, dtype=torch.float64)
    return torch.exp(-(where[:, None] - where).abs() / length)


def gaussian(cov, name=NAME):
    """The exact denoiser of N(0, cov), a state of any shape with that many entries."""
    values, vectors = torch.linalg.eigh(cov)
    return Linear(values.clamp(min=0), vectors, name)


class Linear(Denoiser):
    """D = alpha C (alpha^2 C + sigma^2)^-1 x of flattened samples."""

    def __init__(self, values, vectors, name):
        super().__init__()
        self.values, self.vectors, self.name = values, vectors, name

    def gain(self, t):
        k = PATH.coefficients(t)
        return (self.vectors * (k.alpha * self.values / (k.alpha**2 * self.values + k.sigma**2))) @ self.vectors.T

    def forward(self, state, t, ctx, run=None):
        x = state[self.name]
        clean = (x.flatten(1) @ self.gain(t)).view(x.shape)
        site = ctx.at(self.name, Component(Euclidean(), PATH, tuple(x.shape[1:])))
        return {self.name: Prediction("data", clean, PATH, x, t, site)}


AXIAL, CORONAL = torch.kron(smooth(Y, 2.0), smooth(X, 3.0)), torch.kron(smooth(Z, 1.5), smooth(X, 3.0))
SPEC = StateSpec({NAME: Component(Euclidean(), PATH, (1, Y, X))})


def whole(which, t):
    """The matrix of D on a volume [Z, 1, Y, X], flattened: slices across z (0) or across y (1), each by itself."""
    if which == 0:
        return torch.kron(torch.eye(Z, dtype=torch.float64), gaussian(AXIAL).gain(t))
    gain = gaussian(CORONAL).gain(t).view(Z, X, Z, X)
    return torch.einsum("zxwv,yu->zyxwuv", gain, torch.eye(Y, dtype=torch.float64)).reshape(Z * Y * X, -1)


def pair(every=2.0, chunk=2):
    other = Chunked(gaussian(CORONAL, "v"), chunk)
    return Perpendicular(Chunked(gaussian(AXIAL), chunk), other, NAME, PATH, Z, "v", every=every)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("volumes", [1, 2])
def test_the_two_priors_take_turns_as_their_matrices_say(step, volumes):
    x = torch.randn(volumes * Z, 1, Y, X, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = Run(0)
    run.step = step
    found = pair()({NAME: x}, 0.4, Context.of(len(x)), run)[NAME].data
    expected = x.view(volumes, -1) @ whole(step, 0.4).T
    torch.testing.assert_close(found.view(volumes, -1), expected)


def test_samples_follow_the_product_of_the_matrices():
    """The map of a deterministic sampler is that of its linear steps, one prior after the other."""
    driver = Fixed(Ancestral(0.0, last="data"), 6)
    sampler = Sampler(SPEC, pair(), driver, dtype=torch.float64)
    stages = driver.plan(SPEC, 1.0).stages
    start = PATH.coefficients(1.0).sigma * torch.eye(Z * Y * X, dtype=torch.float64)
    m = start
    for number, stage in enumerate(stages):
        d, now, then = whole(number % 2, stage.t), PATH.coefficients(stage.t), PATH.coefficients(stage.s)
        last = number == len(stages) - 1
        m = (d if last else then.alpha * d + then.sigma / now.sigma * (torch.eye(len(d)) - now.alpha * d)) @ m
    found = torch.stack([
        sampler.run(Context.of(Z), 0, start={NAME: column.view(Z, 1, Y, X)}).state[NAME].flatten()
        for column in start.T])
    torch.testing.assert_close(found.T, m, rtol=1e-7, atol=1e-9)


def test_the_score_of_many_steps_is_that_of_the_mean_of_both():
    """The gap to a sampler that averages the two estimates falls with the number of steps, at first order."""

    class Mean(Denoiser):
        def forward(self, state, t, ctx, run=None):
            x = state[NAME]
            gain = 0.5 * (whole(0, t) + whole(1, t))
            site = ctx.at(NAME, SPEC[NAME])
            return {NAME: Prediction("data", (gain @ x.flatten()).view(x.shape), PATH, x, t, site)}

    start = torch.randn(Z, 1, Y, X, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gaps = []
    for steps in (40, 80, 160):
        ends = [Sampler(SPEC, d, Fixed(Ancestral(0.0, last="data"), steps), dtype=torch.float64)
                .run(Context.of(Z), 0, start={NAME: start}).state[NAME] for d in (pair(), Mean())]
        gaps.append(float((ends[0] - ends[1]).norm()))
    assert gaps[1] < 0.7 * gaps[0] and gaps[2] < 0.7 * gaps[1]


def test_white_volumes_look_alike_from_both_sides():
    """Where both priors are the same white noise, taking turns changes nothing, sampler noise included."""
    spec = StateSpec({NAME: Component(Euclidean(), PATH, (1, Y, X))})
    def white(n):
        return AnalyticMixture(GaussianMixture(torch.zeros(1, n), torch.full((1, n), 0.4)), PATH, NAME)

    both = Perpendicular(white(Y * X), white(Z * X), NAME, PATH, Z)
    driver = Fixed(Ancestral(1.0, last="data"), 8)
    a, b = (Sampler(spec, d, driver, dtype=torch.float64).run(Context.of(Z), 3).state[NAME]
            for d in (both, white(Y * X)))
    torch.testing.assert_close(a, b)


def test_a_fraction_takes_turns_at_random_so_often():
    d, run = pair(every=2.7), Run(5)
    taken = []
    for step in range(3000):
        run.step = step
        taken.append(d.turn(Context.of(Z), run))
    assert abs(sum(taken) / 3000 - 1 / 2.7) < 4 * (1 / 2.7 * (1 - 1 / 2.7) / 3000) ** 0.5
    again = []
    for step in range(50):
        run.step = step
        again.append(d.turn(Context.of(Z), run))
    assert again == taken[:50], "a draw depends on seed, sample and step alone"


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="a turn every 1 step or more"):
        pair(every=0.5)
    run = Run(0)
    run.step = 1
    with pytest.raises(UsageError, match="no volumes of 3"):
        pair()({NAME: torch.zeros(4, 1, Y, X, dtype=torch.float64)}, 0.4, Context.of(4), run)
