"""The solvers of GDSS: equal to the published updates step by step, right on Gaussian data, right at their ends."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import gdss_plain as plain
from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.path import VE, VP
from scidiff.core.path.vp import Cosine, SubVP
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed, LambdaGrid
from scidiff.core.solvers.predictor_corrector import PredictorCorrector
from scidiff.core.solvers.reverse import Reverse, corrector_factors, levels
from scidiff.core.solvers.splitting import Splitting
from scidiff.core.solvers.variance import endpoint_variance
from scidiff.core.space import Euclidean, Symmetric
from scidiff.core.spec import Component, Context, StateSpec

F = 3
LAWS = {"VP VP": (("VP", 0.1, 1.0), ("VP", 0.2, 0.8)), "VE VE": (("VE", 0.1, 1.0), ("VE", 0.2, 1.0)),
        "VP VE": (("VP", 0.1, 1.0), ("VE", 0.2, 1.0))}


def path(kind, low, high):
    make = {"VP": VP, "VE": VE}[kind]
    return make(low, high, t_min=1e-5, source_std=1.0, weight="noise")


def graph_spec(laws):
    return StateSpec({"nodes": Component(Euclidean(), path(*laws[0]), ("N", F)),
                      "edges": Component(Symmetric(), path(*laws[1]), ("N", "N"))})


class Coupled(torch.nn.Module):
    """Raw outputs that need both parts of the state."""

    def forward(self, features, t, ctx, previous=None):
        x, a = features["nodes"], features["edges"]
        real = ctx.mask(("N",)).to(x.dtype)
        return {"nodes": torch.sin(a @ x) * real.unsqueeze(-1) + 0.5 * x,
                "edges": plain.masked(torch.tanh(x @ x.transpose(1, 2) + a), real) * (1 - torch.eye(a.shape[-1]))}


def graph_denoiser(laws):
    return NetworkDenoiser(graph_spec(laws), Coupled(),
                           kinds={n: "score" if law[0] == "VE" else "noise"
                                  for n, law in zip(("nodes", "edges"), laws, strict=True)})


def context(batch=6, n=5):
    return Context(torch.arange(batch), torch.tensor([5, 4, 4, 3, 2, 5]), n)


def ours(laws, method, steps, seed=4):
    spec, ctx = graph_spec(laws), context()
    state = Sampler(spec, graph_denoiser(laws), Fixed(method, steps, t_end=1e-4), dtype=torch.float64)
    return state.run(ctx, seed)


def injected(laws, ctx, seed, stage):
    """The noise of our run, named as the plain loop asks for it; `stage(role, step)` counts our stages."""
    spec, run = graph_spec(laws), Run(seed)

    def draw(name, role, step):
        run.step = stage(role, step)
        return run.handle(ctx.at(name, spec[name]), torch.float64).normal(role)

    start = tuple(draw(name, "source", 0) for name in spec)
    return draw, start


def scores(laws, ctx):
    network, processes = Coupled(), [plain.Process(*law) for law in laws]

    def call(x, a, t):
        raw = network({"nodes": x, "edges": a}, t, ctx)
        return tuple(p.score(r, t) for p, r in zip(processes, raw.values(), strict=True))

    return call, processes


@pytest.mark.parametrize("laws", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("rule", ["reverse", "euler"])
@pytest.mark.parametrize("snr", [None, 0.2])
@pytest.mark.parametrize("steps", [2, 40])
def test_a_run_is_the_published_loop(laws, rule, snr, steps):
    corrected = snr is not None
    method = PredictorCorrector(Reverse(rule), n_corr=int(corrected), snr=snr or 1.0, scale=0.7, batch_norms=True,
                                before=True)
    result, ctx = ours(laws, method, steps), context()
    draw, start = injected(laws, ctx, 4, lambda role, k: 0 if role == "source" else (1 + corrected) * k + (
        corrected and role == "step"))
    call, processes = scores(laws, ctx)
    expected = plain.predictor_corrector(call, start, processes, draw, steps, rule, snr, 0.7)
    assert result.nfe == steps * (1 + corrected)
    for name, x in zip(("nodes", "edges"), expected, strict=True):
        torch.testing.assert_close(result.state[name], x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("laws", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("steps", [8, 40])
def test_a_splitting_run_is_the_published_loop(laws, exact, steps):
    result, ctx = ours(laws, Splitting(0.15, 0.7, batch_norms=True, exact=exact), steps), context()
    draw, start = injected(laws, ctx, 4, lambda role, k: k)
    call, processes = scores(laws, ctx)
    expected = plain.splitting(call, start, processes, draw, steps, 0.15, 0.7, exact)
    assert result.nfe == steps
    for name, x in zip(("nodes", "edges"), expected, strict=True):
        torch.testing.assert_close(result.state[name], x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("method", [PredictorCorrector(Reverse(), snr=0.2, before=True), Splitting(snr=0.2)], ids=str)
def test_masks_and_symmetry_survive_every_step(method):
    laws, ctx = LAWS["VP VE"], context()
    real = ctx.mask(("N",)).to(torch.float64)

    def look(loop):
        x, a = loop.state["nodes"], loop.state["edges"]
        assert torch.equal(x, x * real.unsqueeze(-1)) and torch.equal(a, plain.masked(a, real))
        assert torch.equal(a, a.transpose(1, 2)) and not a.diagonal(dim1=1, dim2=2).any()

    sampler = Sampler(graph_spec(laws), graph_denoiser(laws), Fixed(method, 10, t_end=1e-4), dtype=torch.float64)
    sampler.run(ctx, 0, on_step=look)


def test_times_and_calls_are_the_published_ones():
    spec = graph_spec(LAWS["VP VE"])
    method = PredictorCorrector(Reverse(), before=True)
    expected = torch.linspace(1.0, 1e-4, 200, dtype=torch.float64)
    plan = Fixed(method, 200, t_end=1e-4).plan(spec)
    assert plan.nfe == 400
    for half in (0, 1):
        times = torch.tensor([stage.t for stage in plan.stages[half::2]], dtype=torch.float64)
        torch.testing.assert_close(times, expected, rtol=0, atol=1e-12)
    splitting = Fixed(Splitting(), 200, t_end=1e-4).plan(spec)
    assert splitting.nfe == 200 and [s.t for s in splitting.stages] == [s.t for s in plan.stages[::2]]


def test_levels_and_corrector_factors():
    law = VP(0.1, 1.0)
    times = [*torch.linspace(1.0, 1e-4, 1000, dtype=torch.float64).tolist(), 0.0]
    h, tau = levels(times)
    betas = torch.linspace(0.1 / 1000, 1.0 / 1000, 1000, dtype=torch.float64)
    assert h == 1e-3 and tau[0] == 1.0 and tau[-1] == 0.0
    for sde in (law, SubVP(0.1, 1.0)):
        torch.testing.assert_close(torch.tensor(corrector_factors(sde, times), dtype=torch.float64), 1 - betas.flip(0),
                                   rtol=0, atol=1e-15)
    assert set(corrector_factors(VE(0.1, 1.0), times)) == {1.0}


def variance(law, method, steps, std):
    spec = StateSpec({"x": Component(Euclidean(), law, (1,))})
    return endpoint_variance(Fixed(method, steps, t_end=1e-4).plan(spec), law, std)[0]


@pytest.mark.parametrize("law", [VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.005, 10.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("method", [Reverse(), Reverse("euler"), Splitting(snr=0.0), Splitting(snr=0.0, exact=True)],
                         ids=str)
def test_gaussian_data_come_out_with_their_variance(law, method):
    """Exact scores, the exact law at t = 1, no sampling error: the rest is the step size, and falls with it."""
    std = 0.5
    errors = [abs(variance(law, method, n, std) / std**2 - 1.0) for n in (50, 200)]
    assert errors[1] < 0.04
    assert 0.2 < errors[1] / errors[0] < 0.32  # first order: a quarter


def test_the_corrector_comes_first_where_it_is_told_to():
    spec = StateSpec({"x": Component(Euclidean(), VP(0.1, 1.0), (4,))})
    first = Fixed(PredictorCorrector(Reverse(), before=True, n_corr=2), 5, t_end=1e-4).plan(spec)
    kinds = [[row.kernel for row in stage.rows] for stage in first.stages]
    assert kinds == [["langevin"], ["langevin"], ["affine"]] * 5
    assert [stage.last for stage in first.stages] == [False, False, True] * 5
    assert all(a.t == b.t == c.t for a, b, c in zip(*[iter(first.stages)] * 3, strict=True))
    after = Fixed(PredictorCorrector(Reverse()), 5, t_end=1e-4).plan(spec)
    assert [[row.kernel for row in stage.rows] for stage in after.stages] == [["affine"], ["langevin"]] * 4 + [
        ["affine"]]
    assert first.stages[-1].rows[0].c == 0.0


def test_the_source_of_a_short_schedule_is_not_its_last_marginal():
    short = VP(0.1, 1.0)
    assert short.coefficients(1.0).sigma == pytest.approx(math.sqrt(1 - math.exp(-0.55)))
    for law, std in ((short, short.coefficients(1.0).sigma), (VP(0.1, 1.0, source_std=1.0), 1.0)):
        component = Component(Euclidean(), law, (2000,))
        ctx = Context.of(20)
        site, run = ctx.at("x", component), Run(0)
        draw = law.source(site, run.handle(site, torch.float64))
        assert float(draw.std()) == pytest.approx(std, rel=0.02)
        # A source that is given for the corruption stands for unit noise.
        noised = law.corrupt(torch.zeros_like(draw), 0.5, site, run.handle(site, torch.float64), draw)
        assert float(noised.eps.std()) == pytest.approx(1.0, rel=0.02)
    with pytest.raises(ScidiffError, match="positive"):
        VP(source_std=0.0)


def test_what_these_solvers_refuse():
    def plan(method, law=None, grid=None):
        spec = StateSpec({"x": Component(Euclidean(), law or VP(), (4,))})
        return Fixed(method, 10, grid=grid, t_end=1e-4).plan(spec)

    for method in (Reverse(), Splitting()):
        with pytest.raises(UsageError, match="one length"):
            plan(method, grid=LambdaGrid())
        with pytest.raises(UsageError, match="centre"):
            plan(method, VP(centred=True))
    with pytest.raises(UsageError, match="10 steps are too few"):
        plan(Splitting(), Cosine())
    with pytest.raises(UsageError, match="10 steps are too few"):
        plan(Reverse(), VP(0.1, 21.0))
    with pytest.raises(UsageError, match="'reverse' or 'euler'"):
        Reverse("ancestral")
    with pytest.raises(UsageError, match="negative"):
        Splitting(snr=-0.1)
    with pytest.raises(UsageError, match="positive snr"):
        PredictorCorrector(n_corr=1, snr=0.0)
