"""The cost of given states: closed forms for denoisers that err by a known amount."""

import torch

from scidiff.core.bound import cost, times_of
from scidiff.core.denoiser import Denoiser
from scidiff.core.path.base import Prediction
from scidiff.core.path.belief import GaussianBelief, precision_gain
from scidiff.core.path.von_mises_belief import VonMisesBelief
from scidiff.core.space import Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec

SPEC = StateSpec({"x": Component(Euclidean(), GaussianBelief(), ("N", 2)),
                  "y": Component(Euclidean(), GaussianBelief(), (3,))})
SIZES = torch.tensor([1, 4, 2])


class Erring(Denoiser):
    """Predicts the data, shifted by `by` [B]."""

    def __init__(self, state, by):
        super().__init__()
        self.state, self.by, self.seen = state, by, []

    def forward(self, state, t, ctx, run=None):
        self.seen.append(state["y"])
        return {n: Prediction("data", x + self.by.view(-1, *[1] * (x.dim() - 1))) for n, x in self.state.items()}


def test_the_cost_is_the_precision_gained_times_the_squared_error_of_every_real_entry():
    ctx = Context(torch.arange(3), SIZES, 4)
    state = {"x": torch.randn(3, 4, 2) * ctx.mask(("N", 2)), "y": torch.randn(3, 3)}
    by = torch.tensor([0.0, 0.1, 0.3])
    found = cost(SPEC, Erring(state, by), state, ctx, count=8)
    rate = SPEC["x"].path.rate
    gain = sum(precision_gain(t, rate, 0) for t in times_of(SPEC, 8)) / 8
    assert torch.allclose(found, gain * by.double() ** 2 * (2 * SIZES + 3), rtol=1e-4)


def test_known_components_cost_nothing_and_all_samples_meet_one_noise():
    ctx = Context(torch.tensor([5, 9, 7]), torch.tensor([3, 3, 3]), 3)
    state = {"x": torch.zeros(3, 3, 2), "y": torch.zeros(3, 3)}
    by = torch.full((3,), 0.2)
    denoiser = Erring(state, by)
    whole = cost(SPEC, denoiser, state, ctx, count=4)
    assert all(torch.equal(z[0], z[1]) and torch.equal(z[0], z[2]) for z in denoiser.seen)
    assert not torch.equal(denoiser.seen[0], denoiser.seen[1])
    ctx.known = {"x": (state["x"], torch.ones(3, 3, 2, dtype=torch.bool))}
    assert torch.allclose(cost(SPEC, denoiser, state, ctx, count=4), whole * 3 / 9, rtol=1e-6)


def test_times_are_the_levels_where_there_are_any():
    spec = StateSpec({"f": Component(Torus(1.0), VonMisesBelief(steps=5), ("N", 3))})
    assert set(times_of(spec, 16)) <= set(spec["f"].path.levels)
    assert times_of(SPEC, 4) == [0.125, 0.375, 0.625, 0.875]
