"""Components that are shown clean in training: how often, at which time, and whose loss counts."""

import pytest
import torch

from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.errors import UsageError
from scidiff.core.objective import StandardObjective
from scidiff.core.path import Linear
from scidiff.core.path.base import Prediction
from scidiff.core.path.categorical_belief import CategoricalBelief
from scidiff.core.run import Run
from scidiff.core.space import Categorical, Euclidean
from scidiff.core.spec import Component, Context, StateSpec

SPEC = StateSpec({"k": Component(Categorical(3), CategoricalBelief(), (4,)),
                  "x": Component(Euclidean(), Linear(), (2,))})


class Watching(Denoiser):
    def forward(self, state, t, ctx, run=None):
        self.state, self.t = state, t
        logits = torch.zeros(ctx.batch, 4, 3, requires_grad=True)
        return {"k": Prediction("logits", logits, SPEC["k"].path, state["k"], t["k"], ctx.at("k", SPEC["k"])),
                "x": Prediction("velocity", torch.zeros_like(state["x"]), SPEC["x"].path, state["x"], t["x"],
                                ctx.at("x", SPEC["x"]))}


def batch(n):
    g = torch.Generator().manual_seed(0)
    return {"k": torch.randint(3, (n, 4), generator=g), "x": torch.randn(n, 2, generator=g)}, Context.of(n)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_share_is_shown_clean_at_time_zero_and_the_rest_at_the_common_time(share):
    n, watching = 4000, Watching()
    state, ctx = batch(n)
    loss, told = StandardObjective(SPEC, clean={"k": share}).loss(watching, (state, ctx), Run(3))
    shown = watching.t["k"] == 0
    assert abs(float(shown.double().mean()) - share) < 5 * (share * (1 - share) / n) ** 0.5 + 1e-9
    assert (watching.t["x"] > 0).all() and torch.equal(watching.t["k"][~shown], watching.t["x"][~shown])
    seen = torch.softmax(watching.state["k"], -1)
    assert torch.equal(seen[shown], torch.nn.functional.one_hot(state["k"], 3).float()[shown])
    # Flat predictions cost K beta_1 (1 - t) (1 - 1/3) each; the mean is over those that were hidden.
    hidden = watching.t["k"][~shown]
    expected = float((3 * 0.5 * (1 - hidden) * 2 / 3).mean()) if len(hidden) else 0.0
    assert float(told["k"]) == pytest.approx(expected, rel=1e-5)
    loss.backward()


def test_without_a_share_nothing_changes():
    watching = Watching()
    objective = StandardObjective(SPEC, clean={"k": 0.0})
    t = objective.times(batch(8)[1], Run(1))
    assert torch.equal(objective.own_times(t, batch(8)[1], Run(1)), t)
    assert objective.clean == {} and watching is not None


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="unknown component 'typs' clean"):
        StandardObjective(SPEC, clean={"typs": 0.5})
    with pytest.raises(UsageError, match=r"lies in \[0, 1\], unlike 1.5"):
        StandardObjective(SPEC, clean={"k": 1.5})
    denoiser = NetworkDenoiser(SPEC, torch.nn.Identity())
    with pytest.raises(UsageError, match="separate_times=true"):
        StandardObjective(SPEC, clean={"k": 0.5}).loss(denoiser, batch(4), Run(0))
