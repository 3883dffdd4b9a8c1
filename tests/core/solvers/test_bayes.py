"""The plans of Bayesian samplers: rows, levels, JSON, joint states, and what is refused."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path import VP, CategoricalBelief, GaussianBelief, PlanarBelief, Prediction, VonMisesBelief
from scidiff.core.plan import SolverPlan
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.bayes import Bayes
from scidiff.core.solvers.fixed import Fixed, Stored
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec

F64 = torch.float64
CELL, TYPES = torch.tensor([0.4, -1.2]), torch.tensor([2, 0, 1, 1])


def crystal(frac):
    return StateSpec({"types": Component(Categorical(3), CategoricalBelief(3.0), ("N",)),
                      "frac": Component(Torus(1.0), frac, ("N", 3)),
                      "cell": Component(Euclidean(), GaussianBelief(), (2,))})


class Known(Denoiser):
    """Knows the sample whatever it is shown; counts its calls."""

    def __init__(self, where):
        super().__init__()
        self.where, self.calls = where, 0

    def forward(self, state, t, ctx, run=None):
        self.calls += 1
        hot = torch.nn.functional.one_hot(TYPES, 3).float().expand(ctx.batch, 4, 3)
        return {"frac": Prediction("data", self.where), "cell": Prediction("data", CELL.expand(ctx.batch, 2)),
                "types": Prediction("logits", 200.0 * hot)}


@pytest.mark.parametrize("frac", [VonMisesBelief(steps=12), PlanarBelief()], ids=["von Mises", "planar"])
@pytest.mark.parametrize("rule", ["end_back", "vanilla", "mix"])
def test_a_joint_state_of_beliefs_ends_at_the_data(frac, rule):
    spec, where = crystal(frac), torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(0))
    ctx, oracle, seen = Context.of(6, sizes=torch.full((6,), 4)), Known(where), []
    driver = Fixed(Bayes(rule, last="mode"), 12)
    result = Sampler(spec, oracle, driver).run(ctx, 0, on_step=lambda loop: seen.append(dict(loop.state)))
    assert oracle.calls == result.nfe == 12
    assert torch.equal(result.state["frac"], where) and torch.equal(result.state["types"], TYPES.expand(6, 4))
    assert torch.equal(result.state["cell"], CELL.expand(6, 2))
    assert seen[0]["frac"].shape == (6, 4, 3, 2) and seen[0]["types"].shape == (6, 4, 3)
    site = ctx.at("frac", spec["frac"])
    gap = [(6.2832 * (frac.shown(z["frac"], 1 - (k + 1) / 12, site)[0] - where)).cos().mean() for k, z in
           enumerate(seen[:-1])]
    assert float(gap[-1]) > 0.99 and float(gap[0]) < float(gap[-1])


def test_rows_say_what_is_done():
    spec = crystal(PlanarBelief())
    forms = {rule: [s.rows[0].form for s in Fixed(Bayes(rule), 6).plan(spec).stages] for rule in
             ("end_back", "vanilla", "mix")}
    assert forms["end_back"] == ["redraw"] * 5 + ["sample"]
    assert forms["vanilla"] == ["update"] * 5 + ["sample"]
    assert forms["mix"] == ["redraw"] * 4 + ["update", "sample"]
    plan = Fixed(Bayes("mix", classes="draw", last="mode"), 6).plan(spec)
    assert {r.a for s in plan.stages for r in s.rows} == {0.0}
    assert [s.t for s in plan.stages] == pytest.approx([1 - k / 6 for k in range(6)])
    again = SolverPlan.from_json(plan.to_json())
    assert again == plan
    where = torch.full((3, 4, 3), 0.3)
    ctx = Context.of(3, sizes=torch.tensor([4, 2, 3]))
    a, b = (Sampler(spec, Known(where), d).run(ctx, 5).state for d in (Fixed(Bayes("mix", classes="draw",
                                                                                   last="mode"), 6), Stored(again)))
    assert all(torch.equal(a[n], b[n]) for n in spec)


def test_levels_of_a_von_mises_flow_may_be_left_out():
    """Fewer network calls than sightings: the belief still holds all sightings up to the level."""
    spec = StateSpec({"frac": Component(Torus(1.0), VonMisesBelief(steps=12), ("N", 3))})
    where = torch.full((400, 2, 3), 0.3, dtype=F64)
    driver = Fixed(Bayes("vanilla"), levels=(0, 3, 7, 11))
    result = Sampler(spec, Known(where), driver, dtype=F64).run(Context.of(400, sizes=torch.full((400,), 2)), 1)
    assert result.nfe == 4 and torch.equal(result.state["frac"], where)
    assert [s.t for s in driver.plan(spec).stages] == pytest.approx([1.0, 8 / 12, 4 / 12, 1 / 12])
    path, site = spec["frac"].path, Context.of(400, sizes=torch.full((400,), 2)).at("frac", spec["frac"])
    z = path.source(site, Run(3).handle(site, F64))
    pred = Prediction("data", where, path, z, 1.0, site)
    jumped = path.update(z, pred, 1.0, 8 / 12, site, Run(3).handle(site, F64), "step")
    direct = path.corrupt(where, 8 / 12, site, Run(4).handle(site, F64)).z
    assert float(jumped[..., 1].mean()) == pytest.approx(float(direct[..., 1].mean()), rel=0.03)


def test_what_is_refused():
    for wrong in (lambda: Bayes("endback"), lambda: Bayes(redraws=1.5), lambda: Bayes(classes="mode"),
                  lambda: Bayes(last="data")):
        with pytest.raises(UsageError):
            wrong()
    flat = StateSpec({"x": Component(Euclidean(), VP(), (3,))})
    with pytest.raises(UsageError, match="beliefs, not VP"):
        Fixed(Bayes(), 5).plan(flat)
    with pytest.raises(UsageError, match="t = 0"):
        Fixed(Bayes(), 5, t_end=0.1).plan(crystal(PlanarBelief()))
