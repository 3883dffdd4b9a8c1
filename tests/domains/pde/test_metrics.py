"""The list of figures: what a perfect, a frozen, an ignorant and a broken forecast score, and what is said of each."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.base import Verdict
from scidiff.domains.pde import PdeDomain, metrics
from scidiff.domains.pde.equations import EQUATIONS, SpectralSolver

F64 = torch.float64
EXTENT, INTERVAL, STEPS = 22.0, 0.8, 40
ENSEMBLE = {"CRPS at 20 time units", "CRPS, all steps", "spread / skill at 20 time units", "spread / skill, all steps",
            "rank flatness", "truth outside the ensemble", "divergence R^2", "divergence slope", "divergence bias",
            "correlation time 0.8, ensemble mean"}


@pytest.fixture(scope="module")
def run():
    """(first states [24, 1, 32], truths [24, 40, 1, 32]) of Kuramoto-Sivashinsky at L = 22."""
    law = EQUATIONS["ks"]()
    solver = SpectralSolver(law, (32,), EXTENT, 0.1, dtype=F64)
    start = solver.rollout(law.initial(torch.arange(24), 0, (32,), EXTENT, F64), 1000, 1000)[:, -1]
    return start.float(), solver.rollout(start, STEPS * 8, 8).float()


def figures(predicted, truth, start, **more):
    found = metrics.rollout_metrics(predicted, truth, start, INTERVAL, (EXTENT,), EQUATIONS["ks"](), **more)
    by_name = {m.name: m for m in found}
    assert len(by_name) == len(found)
    return by_name


def test_a_perfect_forecast(run):
    start, truth = run
    found = figures(truth.unsqueeze(1), truth, start)
    assert not ENSEMBLE & set(found)
    for level in ("0.8", "0.9", "0.95"):
        m = found[f"correlation time {level}"]
        assert m.value == pytest.approx(32.0) and "lower bound" in m.note and m.unit == "time units"
        assert found[f"correlation time {level}, own"].value == pytest.approx(32.0)
        assert found[f"correlation time {level}, published count"].value == pytest.approx(32.0)
    assert "1.54 Lyapunov times" in found["correlation time 0.8"].note  # 32 * 0.048
    for name in ("one-step MSE", "one-step MSE / increment", "nRMSE GMean40", "VRMSE, step 1", "relative L2, step 1",
                 "energy drift", "log-spectral distance", "W1 of u", "W1 of du/dx"):
        assert found[name].value == pytest.approx(0.0, abs=1e-12), name
    assert found["stable"].value == 1.0 and found["stable"].interval[0] > 0.8
    assert found["budget gap"].value == pytest.approx(found["budget gap"].floor, abs=1e-12)
    assert abs(found["budget gap"].value) < 0.2
    assert found["W1 of u"].floor > 0.0 and found["log-spectral distance"].floor > 0.0


def test_every_figure_can_be_read_alone(run):
    start, truth = run
    noise = torch.randn(24, 4, STEPS, 1, 32, generator=torch.Generator().manual_seed(0))
    growth = 0.02 * torch.arange(1, STEPS + 1).view(1, 1, STEPS, 1, 1)
    found = figures(truth.unsqueeze(1) + growth * noise, truth, start)
    assert set(found) >= ENSEMBLE
    for m in found.values():
        assert m.protocol and m.count > 0 and m.better in ("lower", "higher", "zero", "one"), m.name
        if m.interval is not None:
            slack = 1e-12 + (INTERVAL if m.unit == "time units" else 0.0)
            assert m.interval[0] - slack <= m.value <= m.interval[1] + slack, m
    assert found["stable"].count == 24 and found["one-step MSE"].value == pytest.approx(4e-4, rel=0.05)
    again = figures(truth.unsqueeze(1) + growth * noise, truth, start)
    assert found == again  # same seed, same figures


def test_persistence(run):
    """No skill but the slowness of the field: the whole increment is missed, correlation is lost after 2 to 3 units."""
    start, truth = run
    frozen = metrics.persistence(start, STEPS)
    assert frozen.shape == (24, 1, STEPS, 1, 32) and torch.equal(frozen[:, 0, 17], start)
    found = figures(frozen, truth, start)
    assert found["one-step MSE / increment"].value == pytest.approx(1.0)
    moved = (truth[:, 0] - start).double().square().mean()
    assert found["one-step MSE"].value == pytest.approx(float(moved))
    assert 1.6 <= found["correlation time 0.8"].value <= 6.0
    assert abs(found["energy drift"].value) < 0.1


def test_climatology(run):
    start, truth = run
    frames = truth[12:].flatten(0, 1)
    mean = metrics.climatology(frames, 12, STEPS)
    assert mean.shape == (12, 1, STEPS, 1, 32)
    assert torch.allclose(mean[3, 0, 5], frames.double().mean(0).float())
    flat = figures(torch.zeros(12, 1, STEPS, 1, 32), truth[:12], start[:12])  # what the mean is, given enough frames
    assert flat["nRMSE GMean40"].value == pytest.approx(1.0) and flat["correlation time 0.8"].value == 0.0
    assert flat["energy drift"].value == pytest.approx(-1.0)

    drawn = metrics.climatology(frames, 12, STEPS, members=8, seed=1)
    assert drawn.shape == (12, 8, STEPS, 1, 32)
    assert torch.equal(drawn, metrics.climatology(frames, 12, STEPS, members=8, seed=1))
    known = {tuple(f.tolist()) for f in frames[:, 0]}
    assert all(tuple(f.tolist()) in known for f in drawn[2, :, 7, 0])
    found = figures(drawn, truth[:12], start[:12])
    assert found["spread / skill, all steps"].value == pytest.approx(1.0, abs=0.06)  # a calibrated forecast, of no use
    assert found["correlation time 0.8"].value == 0.0
    # Fair CRPS of independent draws of one law: half their mean distance.
    size = frames.double().flatten()
    other = size[torch.randperm(len(size), generator=torch.Generator().manual_seed(2))]
    assert found["CRPS, all steps"].value == pytest.approx(0.5 * float((other - size).abs().mean()), rel=0.05)


def test_a_forecast_that_blows_up_keeps_its_other_figures(run):
    start, truth = run
    predicted = truth.unsqueeze(1) + 0.01
    predicted[3, 0, 25:] = math.nan
    predicted[5, 0, 30] = 1e4
    found = figures(predicted, truth, start, train_max=3.2)
    assert found["stable"].value == pytest.approx(22 / 24) and "step 26 of 40" in found["stable"].note
    assert found["energy drift"].count == 22 and math.isfinite(found["energy drift"].value)
    assert found["nRMSE GMean40"].value is None and "1 of 24 trajectories are not finite" in found["nRMSE GMean40"].note
    assert found["one-step MSE"].value == pytest.approx(1e-4, rel=1e-3)
    lost = found["correlation time 0.8, own"]
    assert lost.value == pytest.approx((22 * 32.0 + 20.0 + 24.0) / 24) and lost.note == "92% reach the horizon"
    none = figures(torch.full_like(predicted, math.nan), truth, start)
    assert none["stable"].value == 0.0 and none["correlation time 0.8"].value == 0.0
    assert none["one-step MSE"].value is None and "energy drift" not in none


def test_the_lead_is_that_of_the_horizon_where_it_is_shorter(run):
    start, truth = run
    found = figures(truth[:, None, :5] + torch.randn(24, 3, 5, 1, 32), truth[:, :5], start)
    assert {"CRPS at 4 time units", "spread / skill at 4 time units"} <= set(found)
    assert found["divergence R^2"].value is None or found["divergence R^2"].count >= 3
    assert "VRMSE, steps 6 to 12" not in found


def test_planes_and_several_fields():
    truth = torch.randn(6, 8, 2, 12, 16, generator=torch.Generator().manual_seed(0))
    predicted = torch.stack([truth * 1.1, truth * 0.9], 1)
    found = metrics.rollout_metrics(predicted, truth, torch.stack([truth[:, 0]] * 3, 1), 0.5, (1.0, 2.0),
                                    fields=("a", "b"), unit="m/s", time_unit="s")
    by_name = {m.name: m for m in found}
    assert by_name["nRMSE GMean8"].value == pytest.approx(0.2)  # 0.1 for each of two fields
    assert by_name["relative L2, step 1"].value == pytest.approx(0.1)
    assert by_name["W1 of b"].unit == "m/s" and "W1 of db/dx" in by_name and "budget gap" not in by_name
    assert by_name["one-step MSE"].unit == "(m/s)^2"
    assert by_name["one-step MSE"].value == pytest.approx(0.01 * 2, rel=0.1)
    assert by_name["correlation time 0.8"].unit == "s"
    with pytest.raises(UsageError, match="lengths"):
        metrics.rollout_metrics(predicted, truth, truth[:, 0], 0.5, (1.0,))


def test_the_budget_knows_a_viscosity_of_each_trajectory(run):
    """The gap of the same fields for nu = 1 and for nu = c: 1 - c (1 - gap)."""
    start, truth = run
    plain = figures(truth.unsqueeze(1), truth, start)["budget gap"].value
    for nu in (0.7, torch.full((24,), 0.7, dtype=F64)):
        law = EQUATIONS["ks"](viscosity=nu)
        found = metrics.rollout_metrics(truth.unsqueeze(1), truth, start, INTERVAL, (EXTENT,), law)
        gap = next(m for m in found if m.name == "budget gap")
        assert gap.value == pytest.approx(1.0 - 0.7 * (1.0 - plain), rel=1e-9)


def test_lyapunov_exponents():
    ks = EQUATIONS["ks"]
    assert metrics.lyapunov_exponent(ks(), (22.0,)) == 0.048
    assert metrics.lyapunov_exponent(ks(viscosity=4.0), (128.0,)) == pytest.approx(0.0865 / 4)
    assert metrics.lyapunov_exponent(ks(), (32.0,)) is None and metrics.lyapunov_exponent(None, (22.0,)) is None


def test_figures_of_datasets(run):
    """What is read from the files' native objects is what the tensors give; without a reference, only stability."""
    pytest.importorskip("xarray")
    from scidiff.domains.pde.data import to_dataset

    start, truth = run
    predicted = truth.unsqueeze(1) + 0.05 * torch.randn(24, 3, STEPS, 1, 32, generator=torch.Generator().manual_seed(4))
    law = EQUATIONS["ks"]()
    domain = PdeDomain(law.to_config(), shape=(32,), extent=(EXTENT,), interval=INTERVAL, mean=(0.0,), std=(1.2,),
                       largest=(3.1,))
    first = start[:, None, None].expand(-1, 3, 1, 1, 32)
    objects = [to_dataset(torch.cat([first[i], predicted[i]], 1), interval=INTERVAL, domain=domain,
                          truth=torch.cat([start[i, None], truth[i]])) for i in range(24)]
    fine = [Verdict(True)] * 24
    found = metrics.of_datasets(objects, fine, domain, seed=3)
    direct = metrics.rollout_metrics(predicted, truth, start, INTERVAL, (EXTENT,), law, (3.1,), 3)
    assert found[:len(direct)] == direct and len(found) == len(direct) + 2  # the solver and white error beside it
    plain = metrics.of_datasets([o.drop_vars("u_true") for o in objects], [Verdict(i > 5) for i in range(24)], domain)
    assert [m.name for m in plain] == ["stable"] and plain[0].value == pytest.approx(0.75)
    with pytest.raises(UsageError, match="no trajectories"):
        metrics.of_datasets([], [], domain)
    with pytest.raises(UsageError, match="differ"):
        metrics.of_datasets([objects[0], objects[1].isel(time=slice(None, 20))], fine[:2], domain)
