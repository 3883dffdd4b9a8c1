"""The entry: what a sample depends on, volumes, limits, configs, refusals, continuation."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from scidiff.core.errors import NonFinite, UsageError
from scidiff.core.operator import LinearOperator
from scidiff.core.path import VP, AbsorbingPath, DiscreteDDPM, Linear
from scidiff.core.path.edm import VE
from scidiff.core.posterior import DDNM, DDRM, DDS, DPS, MBIR, DiffPIR, FlowChef, FlowDPS, PiGDM, draw, stream
from scidiff.core.posterior.toy import Dense, GaussianToy
from scidiff.core.procedure import DAPS, Local, PnPDM, PnPFlow, REDDiff
from scidiff.core.space import Categorical
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

FOLDER = Path(__file__).resolve().parents[3] / "conf" / "posterior"
TOY = GaussianToy(VP(), n=8, rows=4)
SHORT = {
    "pigdm": PiGDM(4), "exact": PiGDM(4, "exact", cg=16, tolerance=1e-13), "dps": DPS(4), "ddnm": DDNM(4),
    "ddrm": DDRM(4), "diffpir": DiffPIR(4), "dds": DDS(4), "dds_weight": DDS(4, weight=2.0), "flowdps": FlowDPS(4),
    "flowchef": FlowChef(4), "mbir": MBIR(4, cg=10), "red_diff": REDDiff(4), "daps": DAPS(4, 2), "pnp_dm": PnPDM(4, 2),
    "langevin": DAPS(3, 2, local=Local("langevin", count=5)), "pnp_flow": PnPFlow(4, 2),
}


def measured(count, toy=TOY):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(count, len(toy.cov), dtype=torch.float64, generator=g)
    return x @ toy.matrix.T + toy.sigma * torch.randn(count, len(toy.matrix), dtype=torch.float64, generator=g)


def drawn(posterior, y, toy=TOY, sigma=None, **more):
    more = {"samples": 3, "seed": 1, "dtype": torch.float64, **more}
    return draw(toy.operator, y, toy.denoiser, toy.spec, posterior, toy.sigma if sigma is None else sigma, **more)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_a_sample_depends_on_seed_and_ids_alone(name):
    """Neither on how many are drawn, nor on how many together, nor on what the network sees at once."""
    posterior, y = SHORT[name], measured(4)
    whole = drawn(posterior, y).samples
    assert whole.shape == (3, 4, 8) and bool(torch.isfinite(whole).all())
    for more in ({"together": 1}, {"together": 2, "chunk": 3}, {"samples": 2}, {"chunk": 1}):
        other = drawn(posterior, y, **more).samples
        torch.testing.assert_close(other, whole[: len(other)], rtol=1e-9, atol=1e-10)
    if not posterior.couples:  # items: the last three alone, under their own ids
        part = drawn(posterior, y[1:], context=Context(torch.arange(1, 4))).samples
        torch.testing.assert_close(part, whole[:, 1:], rtol=1e-9, atol=1e-10)
    assert float((drawn(posterior, y, seed=2).samples - whole).abs().max()) > 1e-3


@pytest.mark.parametrize("name", sorted(SHORT))
def test_the_scale_of_the_measurement_changes_nothing(name):
    y = measured(2)
    plain = drawn(SHORT[name], y)
    scaled = draw(TOY.operator * 10.0, 10.0 * y, TOY.denoiser, TOY.spec, SHORT[name], 10.0 * TOY.sigma, 3, 1,
                  dtype=torch.float64)
    torch.testing.assert_close(scaled.samples, plain.samples, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("path", [Linear(), VE(0.01, 50.0), DiscreteDDPM(), VP()], ids=lambda p: type(p).__name__)
def test_every_solver_runs_on_every_path_without_noise_and_with_a_single_step(path):
    """sigma_y = 0 and eta = 0 are limits; methods that impose the measurement then end on it."""
    toy = GaussianToy(path, n=6, rows=3)
    y = measured(2, toy)
    for name, posterior in SHORT.items():
        if name == "langevin":
            with pytest.raises(UsageError, match="Langevin"):
                drawn(posterior, y, toy, sigma=0.0)
            continue
        exact = drawn(posterior, y, toy, sigma=0.0).samples
        assert bool(torch.isfinite(exact).all()), name
        gap = float((exact @ toy.matrix.T - y).abs().max())
        if name in ("ddnm", "diffpir", "dds", "ddrm", "mbir", "daps"):
            assert gap < 1e-3, name
        least = {"levels": 2} if name == "mbir" else {"levels": 1} if name == "daps" else (
            {"rounds": 1} if name == "pnp_dm" else {"steps": 1})
        still = {"eta": 0.0} if hasattr(posterior, "eta") else {}
        single = drawn(replace(posterior, **least, **still), y, toy, dtype=torch.float32).samples
        assert single.dtype == torch.float32 and bool(torch.isfinite(single).all()), name


class Pooled(LinearOperator):
    """Means of neighbouring slices of a volume [Z, n]: measures volumes, not slices."""

    def __init__(self, slices, n):
        super().__init__((slices, n), (slices // 2, n))
        self.slice_separable = False

    def _forward(self, x):
        return 0.5 * (x[:, ::2] + x[:, 1::2])

    def _adjoint(self, y):
        return 0.5 * y.repeat_interleave(2, 1)


@pytest.mark.parametrize("name", sorted(set(SHORT) - {"ddrm"}))
def test_an_operator_of_volumes_meets_slices_as_a_batch(name):
    """Two volumes of four slices under a prior of single slices: volumes do not meet, and each follows its own y."""
    toy, g = GaussianToy(VP(), n=3, rows=2), torch.Generator().manual_seed(0)
    y = torch.randn(2, 2, 3, dtype=torch.float64, generator=g)
    found = draw(Pooled(4, 3), y, toy.denoiser, toy.spec, SHORT[name], 0.1, 2, dtype=torch.float64).samples
    assert found.shape == (2, 8, 3)
    alone = draw(Pooled(4, 3), y[:1], toy.denoiser, toy.spec, SHORT[name], 0.1, 2, dtype=torch.float64).samples
    if not SHORT[name].couples:
        torch.testing.assert_close(found[:, :4], alone, rtol=1e-9, atol=1e-10)
    other = y[:1].clone()
    other[:, 0] += 1.0  # what the first two slices show
    moved = draw(Pooled(4, 3), other, toy.denoiser, toy.spec, SHORT[name], 0.1, 2, dtype=torch.float64).samples - alone
    assert float(moved[:, :2].abs().max()) > 1e-3


def test_slices_of_a_volume_share_their_krylov_space():
    """Conjugate gradients on a volume: one step length a volume, as in the dense problem."""
    from scidiff.core.posterior import Measurement

    g = torch.Generator().manual_seed(0)
    y, x = (torch.randn(*shape, dtype=torch.float64, generator=g) for shape in ((2, 2, 3), (8, 3)))
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)[:, None]

    class Weighted(Pooled):
        def _forward(self, x):
            return super()._forward(x * weight)

        def _adjoint(self, y):
            return super()._adjoint(y) * weight

    op = Weighted(4, 3)
    m = Measurement(op, y, 0.0, (3,))
    dense = Measurement(Dense(op.dense(), False), y.flatten(1), 0.0)
    assert (m.count, m.numbers) == (8, 6)
    torch.testing.assert_close(m.fitted(x, 1).view(2, 12), dense.fitted(x.view(2, 12), 1))
    torch.testing.assert_close(m.prox(x, 2.0, 2).view(2, 12), dense.prox(x.view(2, 12), 2.0, 2))
    torch.testing.assert_close(m.slope(x, True).view(2, 12), dense.slope(x.view(2, 12), True))
    torch.testing.assert_close(m.length(m.residual(x)), dense.length(dense.residual(x.view(2, 12))))


def test_coupled_solvers_see_one_volume_at_a_time():
    seen = []

    def step(x, y, operator, memory):
        memory["n"] = memory.get("n", 0) + 1
        seen.append((len(x), len(y), memory["n"]))
        return x

    drawn(MBIR(3, step=step), measured(5), samples=2, together=2)
    assert seen == [(5, 5, n) for n in (1, 2, 3)] * 2
    numbers = [r for r, _ in stream(TOY.problem(5), MBIR(3, step=step), samples=2)]
    assert numbers == [range(0, 1), range(1, 2)]


@pytest.mark.parametrize("name", ["dps", "dds", "mbir", "red_diff", "pnp_dm"])
def test_an_interrupted_run_continues_to_the_same_samples(name):
    problem, ctx, kept = TOY.problem(3), Context.of(3), []
    whole = SHORT[name].run(problem, ctx, 4, on_step=lambda loop: kept.append((loop.stage, loop.state_dict())))
    assert len(kept) >= 4 and set(kept[0][1]["run"]) == {"seed", "stream", "step", "memory"}
    again = SHORT[name].run(problem, ctx, 99, resume=kept[1][1])
    assert torch.equal(again.state["x"], whole.state["x"])


SOLVERS = sorted(f.stem for f in FOLDER.glob("*.yaml") if "_target_: scidiff.core." in f.read_text())


@pytest.mark.parametrize("file", SOLVERS)
def test_a_config_builds_the_solver_it_describes(file):
    config = yaml.safe_load((FOLDER / f"{file}.yaml").read_text())
    solver = build(config)
    assert {k for k in config if k != "_target_"} >= {f.name for f in fields(solver)} - {"grid"}
    cost = solver.cost(TOY.problem(1))
    assert cost.evaluations >= 20 and "evaluations" in str(cost)
    if file == "mbir":
        assert cost.evaluations == 3999


@pytest.mark.parametrize("act, sentence", [
    (lambda: drawn(DDNM(2), measured(2)[:, :3]), "gives measurements of shape"),
    (lambda: drawn(DDNM(2), measured(2) * torch.nan), "not finite"),
    (lambda: drawn(DDNM(2), measured(2), sigma=-1.0), "standard deviation"),
    (lambda: drawn(DDNM(2), measured(2), samples=0), "At least one sample"),
    (lambda: drawn(DDNM(2), measured(2), context=Context.of(3)), "describes 3 samples and the measurement 2"),
    (lambda: drawn(DDNM(2), measured(2), component="z"), "no component 'z'"),
    (lambda: drawn(DDNM(2), measured(2), chunk=0), "at least one sample"),
    (lambda: draw(Dense(torch.ones(2, 5)), torch.ones(1, 2), TOY.denoiser, TOY.spec, DDNM(2)), "prior makes"),
    (lambda: draw(TOY.operator, measured(1), TOY.denoiser,
                  StateSpec({"x": Component(Categorical(3), AbsorbingPath(), (8,))}), DDNM(2)), "Gaussian path"),
    (lambda: DDRM(2).run(replace(TOY.problem(1), measurement=GaussianToy(VP(), 8, 4, known=False).problem(1)
                                 .measurement), Context.of(1), 0), "singular values"),
    (lambda: drawn(PnPDM(2), measured(1), solver=DDNM(2).driver(TOY.problem(1))), "no integrator"),
    (lambda: drawn(DAPS(4, rho_min=1e-9), measured(1)), "lies below"),
    (lambda: PiGDM(2, "diagonal"), "isotropic"), (lambda: DDS(cg=0), "iteration of CG"),
    (lambda: FlowChef(step=2.5), "between 0 and 2"), (lambda: DiffPIR(xi=2.0), "xi in"),
    (lambda: REDDiff(weight="cubic"), "no weight 'cubic'"), (lambda: Local("both"), "'exact' or 'langevin'"),
    (lambda: MBIR(1), "two levels"), (lambda: PnPDM(r_min=20.0), "r_min"),
])
def test_what_cannot_be_done_is_said_in_a_sentence(act, sentence):
    with pytest.raises(UsageError, match=sentence):
        act()


def test_values_that_run_away_are_named():
    with pytest.raises(NonFinite, match="REDDiff"):
        drawn(REDDiff(3, rate=float("inf")), measured(1))
