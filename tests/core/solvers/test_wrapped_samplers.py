"""The wrapped-normal SDE under the solvers of the core: predictor-corrector, multistep in noise form, orders."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path import VP, Prediction, UniformPath, WrappedPath
from scidiff.core.path.wrapped import wrapped_log_density, wrapped_score
from scidiff.core.plan import SolverPlan
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.adams import Adams
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.euler_maruyama import EulerMaruyama
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed, Stored
from scidiff.core.solvers.heun import Heun
from scidiff.core.solvers.jump import Posterior
from scidiff.core.solvers.predictor_corrector import PredictorCorrector
from scidiff.core.solvers.step_corrector import StepCorrector
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec

F64 = torch.float64
PLACES, SHARES, WIDTH = torch.tensor([0.1, 0.6], dtype=F64), torch.tensor([0.65, 0.35], dtype=F64), 0.06
PATH = WrappedPath(0.005, 0.7)
SPEC = StateSpec({"f": Component(Torus(1.0), PATH, (16,))})


class Mixture(Denoiser):
    """The exact noise of 16 independent draws of a mixture of wrapped normals: at time t its widths are
    sqrt(width^2 + sigma^2)."""

    def forward(self, state, t, ctx, run=None):
        off = torch.remainder(state["f"].to(F64).unsqueeze(-1) - PLACES + 0.5, 1) - 0.5
        sigma = PATH.coefficients(t).sigma
        width = torch.tensor(math.sqrt(WIDTH**2 + sigma**2), dtype=F64)
        share = torch.softmax(wrapped_log_density(off, width, count=5) + SHARES.log(), -1)
        score = (share * wrapped_score(off, width, count=5)).sum(-1)
        return {"f": Prediction("noise", (-sigma * score).to(state["f"].dtype))}


def ends(method, steps, count=160, seed=0, dtype=F64):
    return Sampler(SPEC, Mixture(), Fixed(method, steps), dtype=dtype).run(Context.of(count), seed).state["f"].flatten()


@lru_cache(maxsize=1)
def fine():
    return ends(Exponential(), 512, count=3)


ALL = {"predictor-corrector": (PredictorCorrector(Ancestral(eta=1.0), snr=0.05), 50),
       "predictor-corrector, Euler-Maruyama": (PredictorCorrector(EulerMaruyama(), snr=0.05), 80),
       "given steps": (StepCorrector(Ancestral(eta=1.0), step=1e-6), 50),
       "ancestral": (Ancestral(eta=1.0), 60), "ddim": (Ancestral(), 60),
       "exponential 2": (Exponential(order=2, corrector=0), 24), "exponential 4 + 2": (Exponential(), 24),
       "adams": (Adams(3), 30), "heun": (Heun(), 20)}


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_sampler_draws_the_wrapped_mixture(name):
    method, steps = ALL[name]
    x = ends(method, steps)
    off = torch.remainder(x[:, None] - PLACES + 0.5, 1) - 0.5
    first = off.abs().argmin(1) == 0
    assert bool(((x >= 0) & (x < 1)).all())
    assert float(first.double().mean()) == pytest.approx(0.65, abs=0.043)
    wanted = math.hypot(WIDTH, 0.005)
    for k, part in ((0, first), (1, ~first)):
        assert float(off[part, k].mean()) == pytest.approx(0, abs=0.01)
        assert float(off[part, k].std()) == pytest.approx(wanted, rel=0.13)


@pytest.mark.parametrize("method, order", [
    (Exponential(order=1, corrector=0), 1), (Exponential(order=2, corrector=0), 2),
    (Exponential(order=3, corrector=0), 3), (Adams(2), 2)], ids=["E1", "E2", "E3", "AB2"])
def test_multistep_solvers_keep_their_order_on_the_torus(method, order):
    truth = fine()
    errors = []
    for steps in (32, 64, 128):
        gap = torch.remainder(ends(method, steps, count=3) - truth + 0.5, 1) - 0.5
        errors.append(float(gap.abs().median()))
    slope = math.log2(errors[0] / errors[2]) / 2
    assert slope > order - 0.35 and errors[2] < 4e-3


def test_a_corrector_of_given_steps_follows_its_formula():
    plan = Fixed(StepCorrector(step=2e-6), 5).plan(SPEC)
    first = [s for s in plan.stages if not s.last]
    assert plan.nfe == 10 and len(first) == 5
    for stage in first:
        row = stage.rows[0]
        e = 2e-6 * (PATH.coefficients(stage.t).sigma / 0.005) ** 2
        assert row.form == "score" and row.b == pytest.approx((e,)) and row.c == pytest.approx(math.sqrt(2 * e))
    for wrong in (lambda: StepCorrector(step=-1.0), lambda: StepCorrector(n_corr=-1),
                  lambda: StepCorrector(step=math.nan)):
        with pytest.raises(UsageError):
            wrong()


def test_a_corrector_leaves_the_law_as_it_is():
    """Many corrections at one noise level, starting from that level's law, end in that law."""
    plan = Fixed(StepCorrector(step=4e-6, n_corr=30), 2).plan(SPEC)
    stages = tuple(s for s in plan.stages if not s.last and s.t == plan.stages[-1].t)
    t, count = stages[0].t, 250
    site = Context.of(count).at("f", SPEC["f"])
    g = torch.Generator().manual_seed(0)
    sigma = math.hypot(WIDTH, PATH.coefficients(t).sigma)
    k = torch.multinomial(SHARES, 16 * count, replacement=True, generator=g)
    start = site.space.wrap(PLACES[k] + sigma * torch.randn(16 * count, dtype=F64, generator=g)).view(count, 16)
    x = Sampler(SPEC, Mixture(), Stored(SolverPlan(stages)), dtype=F64).run(
        Context.of(count), 0, start={"f": start}, t_start=t).state["f"]
    assert float((x - start).abs().mean()) > 0.02
    for n in (1, 2, 3):
        a, b = (torch.polar(torch.ones_like(v), 2 * math.pi * n * v).mean() for v in (x, start))
        exact = (SHARES * torch.polar(torch.ones(2, dtype=F64), 2 * math.pi * n * PLACES)).sum()
        exact = exact * math.exp(-2 * (math.pi * n * sigma) ** 2)
        assert abs(a - exact) < 4.5 / (16 * count) ** 0.5 and abs(b - exact) < 4.5 / (16 * count) ** 0.5


def test_components_without_corrections_share_the_stages():
    spec = StateSpec({"f": SPEC["f"], "cell": Component(Euclidean(), VP(), (2,)),
                      "types": Component(Categorical(3), UniformPath(), (4,))})

    class Flat(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"f": Prediction("noise", 0 * state["f"]), "cell": Prediction("noise", 0.5 * state["cell"]),
                    "types": Prediction("logits", torch.zeros(*state["types"].shape, 3))}

    driver = Fixed(StepCorrector(step=0.0), 6, methods={
        "f": StepCorrector(step=1e-5), "types": StepCorrector(Posterior(last="mode"), step=0.0)})
    result = Sampler(spec, Flat(), driver).run(Context.of(3), 0)
    assert result.nfe == 12
    moved = [{r.name for r in s.rows} for s in driver.plan(spec).stages]
    assert moved == [{"f"}, {"f", "cell", "types"}] * 6
