"""Solver plans are tables of floats: what they hold, what they refuse, and that JSON keeps every bit."""

from __future__ import annotations

import json

import pytest
import torch

from scidiff.core.analytic import AnalyticMixture, ring8
from scidiff.core.errors import ScidiffError
from scidiff.core.path import EDM, VP, UniformPath
from scidiff.core.plan import Row, SolverPlan, Stage
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.euler_maruyama import EulerMaruyama
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed, GivenGrid, KarrasGrid, LambdaGrid, NaturalGrid, PowerGrid, Stored
from scidiff.core.solvers.heun import Heun
from scidiff.core.solvers.jump import Mixture, Rate
from scidiff.core.solvers.predictor_corrector import PredictorCorrector
from scidiff.core.solvers.runge_kutta import RungeKutta
from scidiff.core.space import Categorical, Euclidean
from scidiff.core.spec import Component, Context, StateSpec

SPEC = StateSpec({"x": Component(Euclidean(), VP(), (2,))})


def numbers(value):
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in numbers(v)]
    return numbers(list(value.values())) if isinstance(value, dict) else [value]


@pytest.mark.parametrize(
    "method",
    [
        Exponential(),
        Exponential(eta=1.0, last="data"),
        Exponential(variant="dpmpp"),
        Ancestral(eta=0.5),
        Heun(churn=5.0),
        RungeKutta("rk4"),
        EulerMaruyama(heun=True),
        PredictorCorrector(n_corr=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plan_from_json_samples_the_same_bits(method, dtype):
    plan = Fixed(method, 7).plan(SPEC)
    text = plan.to_json()
    again = SolverPlan.from_json(text)
    assert again == plan and again.to_json() == text
    assert all(isinstance(x, (float, int, str, bool)) for x in numbers(json.loads(text)))
    denoiser = AnalyticMixture(ring8(), VP(), kind="noise")
    ctx = Context.of(16)
    ends = [Sampler(SPEC, denoiser, d, dtype=dtype).run(ctx, 3).state["x"] for d in (Fixed(method, 7), Stored(again))]
    assert torch.equal(*ends) and ends[0].dtype == dtype


def test_a_joint_plan_with_categories_round_trips():
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,)), "c": Component(Categorical(3), UniformPath(), (4,))})
    plan = Fixed(Exponential(), 6, methods={"c": Rate(eta=1.0)}).plan(spec)
    assert SolverPlan.from_json(plan.to_json()) == plan
    assert plan.nfe == plan.steps == 6
    assert list(plan.history()) == ["x"] and plan.history()["x"]["noise"] <= 6


def test_plans_count_calls_and_steps():
    for method, calls, steps in ((Exponential(), 10, 10), (Heun(churn=1.0), 20, 10), (RungeKutta("rk4"), 40, 10),
                                 (PredictorCorrector(n_corr=2), 30, 10), (Heun(last="data"), 19, 10)):
        plan = Fixed(method, 10).plan(SPEC)
        assert (plan.nfe, plan.steps) == (calls, steps)


def test_plans_are_made_once():
    driver = Fixed(Exponential(), 5)
    assert driver.plan(SPEC) is driver.plan(SPEC)
    assert driver.plan(SPEC, 0.5) is not driver.plan(SPEC)
    assert driver.plan(SPEC, 0.5).stages[0].t == 0.5


@pytest.mark.parametrize(
    "text", ["", "[", "{}", '[{"t": 1}]', '[{"t": 1, "s": 0, "rows": [{"x": 1}], "evaluate": true, "last": true}]']
)
def test_texts_that_are_no_plan(text):
    if text == "{}":
        assert SolverPlan.from_json(text).stages == ()
        return
    with pytest.raises(ScidiffError, match="not a solver plan"):
        SolverPlan.from_json(text)


def test_unknown_kernels_and_components_are_refused():
    wrong = SolverPlan((Stage(1.0, 0.5, (Row("x", "teleport"),)),))
    with pytest.raises(ScidiffError, match="unknown kernel"):
        SolverPlan.from_json(wrong.to_json())
    with pytest.raises(ScidiffError, match="unknown component 'y'"):
        SolverPlan((Stage(1.0, 0.5, (Row("y"),)),)).check(SPEC)
    with pytest.raises(ScidiffError, match="VP does not accept the kernel 'jump'"):
        SolverPlan((Stage(1.0, 0.5, (Row("x", "jump"),)),)).check(SPEC)
    with pytest.raises(ScidiffError, match="moves categories, not VP"):
        Fixed(Mixture(), 3).plan(SPEC)


def test_methods_with_different_stages_do_not_mix():
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,)), "y": Component(Euclidean(), VP(), (2,))})
    with pytest.raises(ScidiffError, match="different numbers of stages"):
        Fixed(Exponential(), 4, methods={"y": Heun()}).plan(spec)


@pytest.mark.parametrize(
    "grid",
    [
        LambdaGrid(),
        LambdaGrid(0.5, 0.5),
        LambdaGrid(0.2, 0.2),
        PowerGrid(),
        PowerGrid(2.0),
        KarrasGrid(),
        NaturalGrid(),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_grids_fall_from_start_to_end(grid, steps):
    times = grid(VP(), steps, 1.0, 1e-3)
    assert len(times) == steps + 1 and times[0] == 1.0 and times[-1] == 1e-3
    assert all(a > b for a, b in zip(times, times[1:], strict=False))
    assert all(type(t) is float for t in times)


def test_given_grids_must_fit():
    assert GivenGrid((1.0, 0.5, 0.1))(VP(), 2, 1.0, 0.1) == [1.0, 0.5, 0.1]
    for times in ((1.0, 0.5), (1.0, 0.1, 0.5)):
        with pytest.raises(ScidiffError, match="decreasing"):
            GivenGrid(times)(VP(), 2, 1.0, 0.1)


def test_the_grid_of_karras_is_the_published_one():
    path, n = EDM(), 18
    times = KarrasGrid()(path, n - 1, 1.0, path.t_min)
    high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    assert [80.0 * t for t in times] == pytest.approx([(high + i / (n - 1) * (low - high)) ** 7 for i in range(n)])


def test_uniform_lambda_is_uniform():
    lams = [VP().coefficients(t).lam for t in LambdaGrid()(VP(), 6, 1.0, 1e-3)]
    gaps = [b - a for a, b in zip(lams, lams[1:], strict=False)]
    assert gaps == pytest.approx([gaps[0]] * 6, rel=1e-6)
