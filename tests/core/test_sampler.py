"""The loop: one call a stage, coupled components, repeatable bits, no waiting, precision, resume, clear failures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from scidiff.core import ahead
from scidiff.core.analytic import AnalyticGaussian, AnalyticMixture, ring8
from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import NonFinite, ScidiffError, UsageError
from scidiff.core.path import EDM, VP, Linear, Prediction, UniformPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.euler_maruyama import EulerMaruyama
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.heun import Heun
from scidiff.core.solvers.jump import Mixture, Posterior
from scidiff.core.solvers.predictor_corrector import PredictorCorrector
from scidiff.core.solvers.runge_kutta import RungeKutta
from scidiff.core.space import Categorical, Euclidean
from scidiff.core.spec import Component, Context, StateSpec

METHODS = [
    Exponential(),
    Exponential(eta=1.0),
    Ancestral(eta=1.0),
    Heun(churn=5.0),
    RungeKutta("rk4"),
    EulerMaruyama(heun=True),
    PredictorCorrector(Ancestral(eta=1.0)),
]


def ring_sampler(method, steps=12, dtype=torch.float32, kind="noise", **more):
    denoiser = AnalyticMixture(ring8(), VP(), kind=kind)
    return Sampler(denoiser.spec(), denoiser, Fixed(method, steps), dtype=dtype, **more)


# --- joint states -------------------------------------------------------------------------------------------------


def joint(paths, seed=0):
    """A joint Gaussian over components of 2, 1 and 3 entries, strongly coupled."""
    dims = dict(zip(paths, (2, 1, 3), strict=False))
    n = sum(dims.values())
    root = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return AnalyticGaussian(torch.linspace(-1, 1, n), root @ root.T / n + 0.02 * torch.eye(n), paths, dims,
                            {name: "noise" for name in paths})


@pytest.mark.parametrize(
    "method, order",
    [
        (Exponential(order=2, corrector=0, reach=math.inf), 2),
        (Exponential(order=1), 2),
        (Heun(), 2),
        (RungeKutta("midpoint"), 2),
    ],
    ids=str,
)
def test_coupled_components_keep_the_order_with_one_call_a_stage(method, order):
    denoiser = joint({"a": VP(), "b": VP(beta_max=12.0), "c": VP()})
    spec, ctx = denoiser.spec(), Context.of(8)
    start = {n: torch.randn(8, d, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
             for i, (n, d) in enumerate(denoiser.dims.items())}

    def end(m, steps):
        driver = Fixed(m, steps)
        denoiser.calls = 0
        result = Sampler(spec, denoiser, driver, dtype=torch.float64).run(ctx, 0, start=start)
        assert denoiser.calls == result.nfe == driver.plan(spec).nfe
        return torch.cat(list(result.state.values()), -1)

    truth = end(RungeKutta("rk4"), 100)
    errors = [float((end(method, n) - truth).pow(2).mean().sqrt()) for n in (24, 48, 96)]
    assert abs(math.log(errors[0] / errors[2]) / math.log(4.0) - order) < 0.3


def test_the_order_of_components_does_not_matter():
    paths = {"a": VP(), "b": VP(), "c": Linear()}
    first = joint(paths)
    ctx, ends = Context.of(8), []
    for names in itertools.permutations(paths):
        spec = StateSpec({n: first.spec()[n] for n in names})
        ends.append(Sampler(spec, first, Fixed(Exponential(), 6), dtype=torch.float64).run(ctx, 1).state)
    for end in ends[1:]:
        assert all(torch.equal(end[n], ends[0][n]) for n in paths)


# --- repeatability ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_same_chunk_gives_the_same_bits_and_other_batches_nearly(method):
    sampler = ring_sampler(method)
    whole = sampler.run(Context.of(48), 5).state["x"]
    assert torch.equal(whole, sampler.run(Context.of(48), 5).state["x"])
    assert not torch.equal(whole, sampler.run(Context.of(48), 6).state["x"])
    for size in (1, 7, 31):
        parts = [sampler.run(Context(ids), 5).state["x"] for ids in torch.arange(48).split(size)]
        assert float((torch.cat(parts) - whole).abs().max()) <= 1e-4 * float(whole.abs().max())
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sampler.run(Context(order), 5).state["x"], whole[order], atol=1e-4)


def test_discrete_samples_hardly_flip_with_the_batch():
    spec = StateSpec({"c": Component(Categorical(5), UniformPath(), (6,))})

    class Network(Denoiser):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(30, 30)
            torch.nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))

        def forward(self, state, t, ctx, run=None):
            hot = torch.nn.functional.one_hot(state["c"], 5).float().flatten(1)
            return {"c": Prediction("logits", self.layer(hot).view(-1, 6, 5))}

    sampler = Sampler(spec, Network(), Fixed(Posterior(), 20))
    whole = sampler.run(Context.of(600), 0).state["c"]
    parts = torch.cat([sampler.run(Context(ids), 0).state["c"] for ids in torch.arange(600).split(37)])
    assert float((whole != parts).any(1).double().mean()) <= 0.005


def test_noise_ahead_is_the_noise_of_each_step(monkeypatch):
    for method in (Exponential(eta=1.0), Heun(churn=5.0)):
        ends = []
        for budget in (1 << 15, 0, 700):
            monkeypatch.setattr(ahead, "BUDGET", budget)
            ends.append(ring_sampler(method, 25, torch.float64).run(Context.of(16), 2).state["x"])
        assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_streams_are_independent():
    sampler = ring_sampler(Ancestral(eta=1.0))
    ends = [sampler.run(Context.of(64), Run(5, stream=s)).state["x"] for s in (0, 1, 0)]
    assert torch.equal(ends[0], ends[2]) and not torch.equal(ends[0], ends[1])


# --- no waiting for the device ------------------------------------------------------------------------------------


class Watched(torch.Tensor):
    """Counts whatever would wait for a device."""

    waits: list[str] = []
    QUESTIONS = (
        "__bool__",
        "item",
        "tolist",
        "__float__",
        "__int__",
        "__index__",
        "is_nonzero",
        "nonzero",
        "cpu",
        "numpy",
    )

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in cls.QUESTIONS:
            cls.waits.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_fixed_plan_asks_the_device_one_question_at_the_end(method):
    sampler = ring_sampler(method, 6)
    ctx = Context.of(8)
    start = {"x": torch.randn(8, 2).as_subclass(Watched)}
    Watched.waits = []
    seen = []
    result = sampler.run(ctx, 0, start=start, on_step=lambda loop: seen.append(len(Watched.waits)))
    assert isinstance(result.state["x"], Watched)
    assert seen == [0] * 6 and Watched.waits == ["__bool__"]


def test_the_loop_of_categories_does_not_wait_either():
    spec = StateSpec({"c": Component(Categorical(3), UniformPath(), (4,))})

    class Logits(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"c": Prediction("logits", torch.nn.functional.one_hot(state["c"], 3).float())}

    Watched.waits = []
    start = {"c": torch.randint(0, 3, (8, 4)).as_subclass(Watched)}
    counts = []
    Sampler(spec, Logits(), Fixed(Mixture(eta=2.0), 5)).run(Context.of(8), 0, start=start,
                                                             on_step=lambda loop: counts.append(len(Watched.waits)))
    assert counts == [0] * 5 and Watched.waits == ["__bool__"]


@pytest.mark.gpu
@pytest.mark.parametrize("method", [Exponential(), Exponential(eta=1.0), Ancestral(eta=1.0), Heun(churn=5.0)], ids=str)
def test_no_synchronisation_on_a_gpu(method):
    class Half(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"x": Prediction("noise", state["x"] * 0.5)}

    spec = StateSpec({"x": Component(Euclidean(), VP(), (8,))})
    sampler, ctx = Sampler(spec, Half(), Fixed(method, 20)), Context.of(64, "cuda")
    sampler.run(ctx, 0)

    def watch(loop):
        torch.cuda.set_sync_debug_mode("error" if loop.stage < loop.total else "default")

    try:
        sampler.run(ctx, 0, on_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "data", "angular"])
@pytest.mark.parametrize(
    "method, steps", [(Exponential(), 30), (Exponential(form="data"), 30), (Ancestral(), 50), (Heun(), 30)], ids=str
)
def test_float32_follows_float64(method, steps, kind):
    """On smooth data; an analytic network in float64, so that only the loop's rounding counts."""
    ctx, ends = Context.of(64), []
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float()
    denoiser = AnalyticMixture(ring8(1.0, 0.5), VP(), kind=kind)
    for dtype in (torch.float32, torch.float64):
        sampler = Sampler(denoiser.spec(), denoiser, Fixed(method, steps), dtype=dtype)
        ends.append(sampler.run(ctx, 0, start={"x": noise.to(dtype)}).state["x"].double())
    assert float((ends[0] - ends[1]).norm() / ends[1].norm()) < 1e-5


@pytest.mark.parametrize("method", [Exponential(), Exponential(eta=1.0), Ancestral(), RungeKutta("euler")], ids=str)
def test_a_thousand_steps_are_stable_in_float32(method):
    x = ring_sampler(method, 1000).run(Context.of(128), 0).state["x"]
    radius = x.norm(dim=1)
    assert float((radius - 1.0).abs().max()) < 0.35 and float(radius.std()) == pytest.approx(0.05, abs=0.02)


# --- resume, rules, callbacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, Exponential(last="data")], ids=str)
def test_resume_in_the_middle_is_bit_identical(method):
    sampler, saved = ring_sampler(method), []
    whole = sampler.run(Context.of(16), 3, on_step=lambda loop: saved.append(loop.state_dict()))
    assert len(saved) == 12
    for k in (0, 5, 10, 11):
        rest = ring_sampler(method).run(Context.of(16), 3, resume=saved[k])
        assert torch.equal(rest.state["x"], whole.state["x"]) and rest.nfe == whole.nfe


def test_a_run_may_start_anywhere_on_the_path():
    sampler = ring_sampler(Exponential(), 6, torch.float64)
    clean = ring8().sample(32, 0)
    k = VP().coefficients(0.3)
    z = k.alpha * clean + k.sigma * torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = sampler.run(Context.of(32), 0, start={"x": z}, t_start=0.3).state["x"]
    assert float((x.norm(dim=1) - 1).abs().max()) < 0.3
    saved = []
    sampler.run(Context.of(32), 0, start={"x": z}, t_start=0.3, on_step=lambda loop: saved.append(loop.state_dict()))
    assert torch.equal(sampler.run(Context.of(32), 0, resume=saved[2]).state["x"], x)
    with pytest.raises(ScidiffError, match="needs a start state"):
        sampler.run(Context.of(4), 0, t_start=0.3)
    with pytest.raises(ScidiffError, match="no component x"):
        sampler.run(Context.of(4), 0, start={})


def test_rules_act_after_steps_and_callbacks_see_them():
    calls, seen = [], []

    def pin(z, z_t, pred, t, s, ctx, run):
        calls.append((t, s, pred["x"].data.shape))
        return {"x": torch.zeros_like(z["x"])}

    denoiser = AnalyticMixture(ring8(), VP(), kind="noise")
    sampler = Sampler(denoiser.spec(), denoiser, Fixed(Heun(), 5), [pin])
    result = sampler.run(Context.of(3), 0, on_step=lambda loop: seen.append(float(loop.state["x"].abs().max())))
    assert len(calls) == 5 and all(t >= s for t, s, _ in calls) and seen == [0.0] * 5
    assert float(result.state["x"].abs().max()) == 0.0 and result.nfe == 10


def test_gradients_exist_only_where_they_are_asked_for():
    flags = []

    class Looking(AnalyticMixture):
        def forward(self, state, t, ctx, run=None):
            flags.append(torch.is_inference_mode_enabled())
            return super().forward(state, t, ctx, run)

    denoiser = Looking(ring8(), VP())
    for needs in (False, True):
        denoiser.needs_grad = needs
        Sampler(denoiser.spec(), denoiser, Fixed(Ancestral(), 2)).run(Context.of(2), 0)
    assert flags == [True, True, False, False]


def test_hooks_of_a_denoiser_are_called():
    calls = []
    sampler = ring_sampler(Ancestral(), 4)
    sampler.denoiser.register_forward_hook(lambda *_: calls.append(1))
    sampler.run(Context.of(2), 0)
    assert len(calls) == 4


# --- failures -----------------------------------------------------------------------------------------------------


class Failing(Denoiser):
    """NaN for one component from call `first` on."""

    def __init__(self, name, first):
        super().__init__()
        self.name, self.first = name, first

    def forward(self, state, t, ctx, run=None):
        out = {n: Prediction("noise", x * (math.nan if n == self.name and run.step >= self.first else 0.5))
               for n, x in state.items() if x.is_floating_point()}
        if "c" in state:
            bad = math.nan if self.name == "c" and run.step >= self.first else 0.0
            out["c"] = Prediction("logits", torch.zeros(*state["c"].shape, 3) + bad)
        return out


@pytest.mark.parametrize("name", ["x", "y", "c"])
def test_nan_names_the_step_and_the_component(name):
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,)), "y": Component(Euclidean(), EDM(), (2,)),
                      "c": Component(Categorical(3), UniformPath(), (2,))})
    driver = Fixed(Exponential(), 9, methods={"c": Mixture()})
    with pytest.raises(NonFinite, match=rf"component '{name}' at step 5 of 9"):
        Sampler(spec, Failing(name, 4), driver).run(Context.of(4), 0)


def test_a_solver_that_diverges_is_told_from_a_broken_network():
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})

    class Growing(Denoiser):
        def forward(self, state, t, ctx, run=None):
            return {"x": Prediction("noise", torch.full_like(state["x"], 3e38))}

    with pytest.raises(NonFinite, match="'x' stopped being finite at step"):
        Sampler(spec, Growing(), Fixed(Ancestral(), 8)).run(Context.of(2), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_cuda_graph_without_a_gpu_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="needs a CUDA GPU"):
        ring_sampler(Ancestral(), cuda_graph=True)
