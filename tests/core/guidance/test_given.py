"""Given components: the network meets them clean, at time 0, and what it says of them is what is known."""

import math

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import ScidiffError
from scidiff.core.guidance import Given
from scidiff.core.guidance.given import known_whole
from scidiff.core.path import VP, AbsorbingPath, Linear, MarginalPath
from scidiff.core.path.base import Prediction
from scidiff.core.path.categorical_belief import CategoricalBelief
from scidiff.core.path.circular import PlanarBelief
from scidiff.core.path.torus_flow import TorusFlow
from scidiff.core.path.von_mises_belief import VonMisesBelief
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.bayes import Bayes
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec

SPEC = StateSpec({"k": Component(Categorical(3), CategoricalBelief(), ("N",)),
                  "x": Component(Euclidean(), Linear(), ("N", 2))})


class Watching(Denoiser):
    """Remembers what it was shown."""

    def forward(self, state, t, ctx, run=None):
        self.state, self.t = dict(state), t
        out = {"k": Prediction("logits", torch.zeros(ctx.batch, ctx.n_max, 3))}
        if "x" in state:
            out["x"] = Prediction("data", torch.zeros_like(state["x"]))
        return out


def known(where):
    return Context(torch.arange(3), torch.tensor([2, 3, 1]), 3,
                   known={"k": (torch.tensor([[0, 1, 0], [2, 1, 0], [1, 0, 0]]), where)})


def test_what_is_wholly_known_is_shown_clean_and_the_rest_as_it_is():
    where = torch.tensor([[True, True, False], [True, False, True], [True, False, False]])
    ctx, inner = known(where), Watching()  # the second crystal is known in part, the others in all their real entries
    assert known_whole(ctx.at("k", SPEC["k"])).tolist() == [True, False, True]
    state = {"k": torch.randn(3, 3, 3), "x": torch.randn(3, 3, 2)}
    found = Given(inner, SPEC, ["k"])(state, 0.7, ctx, Run(0))
    assert torch.allclose(inner.t["k"], torch.tensor([0.0, 0.7, 0.0])) and inner.t["x"] == 0.7
    shown = SPEC["k"].path.features(inner.state["k"], inner.t["k"], ctx.at("k", SPEC["k"]))
    assert shown[0, :2].tolist() == [[1, 0, 0], [0, 1, 0]] and shown[2, 0].tolist() == [0, 1, 0]
    assert torch.equal(inner.state["k"][1], state["k"][1]) and torch.equal(inner.state["x"], state["x"])
    assert found["k"].probs[0, 1].tolist() == [0, 1, 0]
    assert torch.allclose(found["k"].probs[1], torch.full((3, 3), 1 / 3))


def test_without_anything_known_the_denoiser_is_left_alone():
    inner, state = Watching(), {"k": torch.randn(3, 3, 3), "x": torch.randn(3, 3, 2)}
    Given(inner, SPEC, ["k"])(state, 0.7, Context(torch.arange(3), torch.tensor([2, 3, 1]), 3), None)
    assert inner.t == 0.7 and inner.state["k"] is state["k"]
    with pytest.raises(ScidiffError, match="no component 'typs'"):
        Given(inner, SPEC, ["typs"])


def test_known_numbers_replace_the_data_prediction():
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,)), "k": SPEC["k"]})
    x0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ctx = Context(torch.arange(2), torch.tensor([3, 3]), 3, known={"x": (x0, torch.ones(2, 2, dtype=torch.bool))})
    found = Given(Watching(), spec, ["x"])({"x": torch.randn(2, 2), "k": torch.randn(2, 3, 3)}, 0.4, ctx, None)
    assert torch.equal(found["x"].data, x0)


def test_a_run_ends_on_what_is_given():
    ctx = known(torch.ones(3, 3, dtype=torch.bool))
    spec = StateSpec({"k": SPEC["k"]})
    state = Sampler(spec, Given(Watching(), spec, ["k"]), Fixed(Bayes(), steps=4)).run(ctx, 0).state["k"]
    real = ctx.mask(("N",))
    assert torch.equal(state[real], ctx.known["k"][0][real])


@pytest.mark.parametrize("path, space", [
    (PlanarBelief(), Torus(1.0)), (VonMisesBelief(steps=10), Torus(1.0)), (TorusFlow(), Torus(1.0)),
    (CategoricalBelief(), Categorical(4)), (MarginalPath(marginal=(0.1, 0.2, 0.3, 0.4)), Categorical(4)),
    (AbsorbingPath(), Categorical(4)), (Linear(), Euclidean()),
], ids=lambda v: type(v).__name__)
def test_clean_states_are_what_corruption_gives_at_time_zero(path, space):
    ctx = Context.of(5, sizes=torch.tensor([3, 2, 3, 1, 3]))
    site = ctx.at("x", Component(space, path, ("N", 3)))
    u = torch.rand(5, 3, 3, generator=torch.Generator().manual_seed(0))
    x0 = (4 * u).long() if space.categorical else u
    x0 = x0 * site.mask.to(x0.dtype)
    run = Run(0)
    z = path.corrupt(x0, torch.zeros(5, dtype=torch.float64), site, run.handle(site, torch.float64)).z
    clean = path.clean(x0, site)
    real = site.mask.expand(5, 3, 3)
    assert clean.shape == z.shape
    assert torch.allclose(clean[real].double(), z[real].double(), atol=1e-6)
    assert math.isfinite(float(path.features(clean, torch.zeros(5, dtype=torch.float64), site).double().sum()))
