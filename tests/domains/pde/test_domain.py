"""The domain object: what it learns from data, round trips of every variant, and from a config to a forecast."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.path import VP, LevelPath
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.domains.base import Request, Verdict
from scidiff.domains.pde import LIMIT, PdeDomain
from scidiff.domains.pde.codec import FRAMES, PREVIOUS
from scidiff.domains.pde.data import dataset, from_dataset, stacked, to_dataset
from scidiff.domains.pde.reference import developed, future, solver

pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")

F64 = torch.float64
KS = {"equation": {"name": "ks"}, "shape": [32], "extent": [22.0], "interval": 0.2, "frames": 13, "count": 6,
      "burn_in": 40.0, "solver_dt": 0.1}
FLOW = {"equation": {"name": "kolmogorov", "viscosity": 0.02}, "shape": [16, 16], "interval": 0.1, "frames": 5,
        "extent": [2 * math.pi, 2 * math.pi], "count": 4, "burn_in": 2.0, "solver_dt": 0.05}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCIDIFF_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def made(**changes):
    return dataset({}, "equation", {**KS, **changes}, "train").objects


@pytest.fixture(scope="module")
def trajectories(cache):
    return made()


@pytest.fixture(scope="module")
def flow(cache):
    return dataset({}, "equation", FLOW, "train").objects


def test_import_needs_neither_xarray_nor_h5py():
    code = (
        "import sys\n"
        "for name in ('xarray', 'h5py', 'h5netcdf', 'matplotlib', 'scipy', 'lightning'): sys.modules[name] = None\n"
        "import scidiff.domains.pde as pde\n"
        "from scidiff.domains.pde import bank, calibration, codec, data, ensemble, forecast, levels, metrics\n"
        "from scidiff.domains.pde import objectives, readers, reference, rollout, skill, spectra, view\n"
        "pde.PdeDomain(shape=(8,)).components()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_conformance_kit_accepts_the_domain():
    from scidiff.testing import check_domain

    fitted = check_domain(PdeDomain())
    assert fitted.fields == ("u",) and fitted.shape == (32,) and fitted.equation["name"] == "ks"


# -- what is learned


@pytest.mark.parametrize("target", ["residual", "direct"])
@pytest.mark.parametrize("interval, stride", [(None, 1), (0.2, 1), (0.8, 4)])
def test_fitting_measures_scales_on_the_steps_of_the_model(trajectories, interval, stride, target):
    fitted, statistics = PdeDomain(interval=interval, target=target, history=2).fit(trajectories)
    frames = stacked(trajectories, ("u",)).double()
    assert (fitted.stride, fitted.history, fitted.target, statistics) == (stride, 2, target, {})
    assert fitted.interval == pytest.approx(0.2 * stride) and fitted.extent == (22.0,) and fitted.shape == (32,)
    assert fitted.mean == pytest.approx([float(frames.mean())], abs=1e-6)
    assert fitted.std == pytest.approx([float(frames.std())], rel=1e-6)
    assert fitted.largest == pytest.approx([float(frames.abs().max())], rel=1e-6)
    scaled = (frames - frames.mean()) / frames.std()
    steps = scaled[:, stride:] - scaled[:, :-stride] if target == "residual" else scaled
    assert fitted.scale == pytest.approx(float(steps.square().mean().sqrt()), rel=1e-5)
    assert fitted.law.to_config()["name"] == "ks" and fitted.burn_in == 40.0
    mirrored, _ = PdeDomain().fit([o.assign(u=-o["u"]) for o in trajectories])
    assert mirrored.largest == fitted.largest


def test_options_rebuild_the_domain(trajectories, flow):
    for objects, asked in ((trajectories, {"interval": 0.4, "history": 2, "target": "direct"}), (flow, {"joint": True}),
                           ([o.assign_attrs(equation=None) for o in trajectories], {})):
        fitted, _ = PdeDomain(**asked).fit(objects)
        options = json.loads(json.dumps(fitted.options()))
        again = PdeDomain(**options)
        assert json.loads(json.dumps(again.options())) == options and all(options[k] == v for k, v in asked.items()
                                                                          if k != "interval")
        one, two = (d.encode(objects)[0]["u"] for d in (fitted, again))
        assert torch.equal(one, two)
    assert json.loads(json.dumps(PdeDomain().options())) == json.loads(json.dumps(
        PdeDomain(**json.loads(json.dumps(PdeDomain().options()))).options()))


def test_what_cannot_be_learned_from_is_refused(trajectories):
    with pytest.raises(UsageError, match=r"lie 0.2 apart, so a step of 0.5 is no multiple") as caught:
        PdeDomain(interval=0.5).fit(trajectories)
    assert "domain.options.interval=0.4" in caught.value.remedy
    with pytest.raises(UsageError, match="no trajectories"):
        PdeDomain().fit([])
    with pytest.raises(UsageError, match="13 frames hold no step of 13 frames"):
        PdeDomain(interval=2.6).fit(trajectories)
    with pytest.raises(UsageError, match="knows no field yet"):
        PdeDomain().encode(trajectories)
    with pytest.raises(UsageError, match="'residual' or 'direct'"):
        PdeDomain(target="both").fit(trajectories)


# -- states


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("target", ["residual", "direct"])
@pytest.mark.parametrize("stride", [1, 4])
def test_the_last_step_is_encoded_and_decoded(trajectories, stride, target, history, joint):
    domain, _ = PdeDomain(interval=0.2 * stride, target=target, history=history, joint=joint).fit(trajectories)
    (_, shape), = domain.components().values()
    state, ctx = domain.encode(trajectories)
    frames = stacked(trajectories, ("u",)).double()
    scaled = (frames - domain.mean[0]) / domain.std[0]
    places = [-1 - stride * h for h in range(history, 0, -1)]
    past = torch.stack([scaled[:, p, 0] for p in places], 1)
    y = ((scaled[:, -1, 0] - past[:, -1]) if target == "residual" else scaled[:, -1, 0]) / domain.scale
    expected = torch.cat([past, y[:, None]], 1) if joint else y[:, None]
    assert state["u"].shape == (6, *shape) and state["u"].dtype == torch.float32
    torch.testing.assert_close(state["u"].double(), expected, atol=3e-5, rtol=0)
    torch.testing.assert_close(ctx.cond[PREVIOUS][0].double(), past, atol=1e-5, rtol=0)
    assert ctx.cond[FRAMES][0].shape == (6, 13, 1, 32) and ctx.ids.tolist() == list(range(6))
    for back, given in zip(domain.decode(state, ctx), trajectories, strict=True):
        one, times, extent, attrs = from_dataset(back)
        torch.testing.assert_close(one, from_dataset(given)[0], atol=1e-5, rtol=0)
        assert extent == (22.0,) and times.tolist() == pytest.approx([0.2 * i for i in range(13)])
        assert json.loads(attrs["equation"])["name"] == "ks" and attrs["dt"] == pytest.approx(0.2)
    del ctx.cond[FRAMES]
    for back, given in zip(domain.decode(state, ctx), trajectories, strict=True):
        one, times, _, _ = from_dataset(back)
        torch.testing.assert_close(one, from_dataset(given)[0][[*places, -1]], atol=1e-5, rtol=0)
        assert times.tolist() == pytest.approx([0.2 * stride * i for i in range(history + 1)])
    changed = {"u": state["u"].clone()}
    changed["u"][:, -1] += 1.0  # one unit of the target is one spread of the steps
    moved = from_dataset(domain.decode(changed, ctx)[0])[0][-1] - from_dataset(trajectories[0])[0][-1]
    torch.testing.assert_close(moved, torch.full_like(moved, domain.scale * domain.std[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("history, target, joint", [(1, "residual", False), (2, "direct", True)])
def test_two_dimensions(flow, history, target, joint):
    domain, _ = PdeDomain(history=history, target=target, joint=joint).fit(flow)
    assert domain.fields == ("vorticity",) and domain.shape == (16, 16) and len(domain.extent) == 2
    state, ctx = domain.encode(flow)
    assert state["u"].shape == (4, history + 1 if joint else 1, 16, 16)
    for back, given in zip(domain.decode(state, ctx), flow, strict=True):
        assert back["vorticity"].dims == ("time", "y", "x")
        torch.testing.assert_close(from_dataset(back)[0], from_dataset(given)[0], atol=1e-4, rtol=0)
    assert domain.backbone_options(None) == {"channels_in": history + 1, "channels_out": history + 1 if joint else 1,
                                             "dims": 2}
    assert domain.objective_options() == {"history": history, "target": target, "scale": domain.scale, "stride": 1,
                                          "joint": joint}


def test_several_fields_have_their_own_units_and_channels():
    g = torch.Generator().manual_seed(0)
    frames = torch.stack([300.0 + 5.0 * torch.randn(4, 6, 16, generator=g), 1e-3 * torch.randn(4, 6, 16, generator=g)],
                         2)
    objects = [to_dataset(f, interval=0.5, extent=(2.0,), fields=("T", "q"), units=("K", "1"), time_unit="s")
               for f in frames]
    domain, _ = PdeDomain(history=2).fit(objects)
    assert domain.fields == ("T", "q") and domain.units == ("K", "1") and domain.time_unit == "s"
    assert domain.equation is None and domain.std == pytest.approx([5.0, 1e-3], rel=0.1)
    state, ctx = domain.encode(objects)
    assert state["u"].shape == (4, 2, 16) and ctx.cond[PREVIOUS][0].shape == (4, 4, 16)
    for back, given in zip(domain.decode(state, ctx), frames, strict=True):
        torch.testing.assert_close(from_dataset(back)[0], given, atol=1e-3, rtol=1e-5)
        assert back["T"].attrs["units"] == "K" and back["time"].attrs["units"] == "s"
    with pytest.raises(UsageError, match="no known equation") as caught:
        domain.template(Request(torch.arange(2), 0))
    assert "--init" in caught.value.remedy


def test_what_cannot_be_encoded_is_refused(trajectories):
    domain, _ = PdeDomain(interval=0.8, history=2).fit(trajectories)
    short = [o.isel(time=slice(0, 8)) for o in trajectories]
    with pytest.raises(UsageError, match="needs 9 frames; these trajectories have 8"):
        domain.encode(short)
    assert domain.encode([o.isel(time=slice(0, 9)) for o in trajectories])[0]["u"].shape == (6, 1, 32)
    ensemble = to_dataset(torch.zeros(3, 13, 1, 32), interval=0.2, extent=(22.0,))
    with pytest.raises(UsageError, match="members"):
        domain.encode([ensemble, *trajectories])


# -- templates and references


def test_a_template_is_a_developed_state_of_the_equation_by_seed_and_id(trajectories):
    domain, _ = PdeDomain(interval=0.8, history=3).fit(trajectories)
    ctx = domain.template(Request(torch.tensor([0, 5, 9]), 7))
    assert ctx.ids.tolist() == [0, 5, 9] and set(ctx.cond) == {PREVIOUS}
    seen, present = ctx.cond[PREVIOUS]
    assert seen.shape == (3, 3, 32) and seen.dtype == torch.float32 and bool(present.all())
    alone = domain.template(Request(torch.tensor([9]), 7)).cond[PREVIOUS][0]
    torch.testing.assert_close(alone, seen[2:], atol=1e-5, rtol=0)
    assert not torch.allclose(domain.template(Request(torch.tensor([9]), 8)).cond[PREVIOUS][0], alone, atol=0.1)
    frames = developed(domain, torch.tensor([0, 5, 9]), 7)
    torch.testing.assert_close(domain.scaling.apply(frames)[:, :, 0].float(), seen, atol=1e-5, rtol=0)
    assert 0.7 < float(frames.std()) < 1.7  # rms 1.185 on the attractor
    step, every = solver(domain)
    assert every * step.dt == pytest.approx(0.8) and step.dt <= 0.05 and step.dtype == F64
    for i in range(2):
        torch.testing.assert_close(step.rollout(frames[:, i], every, every)[:, 0], frames[:, i + 1], atol=1e-9, rtol=0)


def test_burn_in_is_that_of_the_data_and_may_be_chosen(trajectories):
    domain, _ = PdeDomain(interval=0.8).fit(trajectories)
    ids = torch.arange(3)
    start = domain.law.initial(ids, 1, (32,), domain.extent, F64)
    assert torch.equal(developed(domain, ids, 1, burn_in=0.0)[:, 0], start)
    step, every = solver(domain)
    by_hand = step.rollout(start, 50 * every, 50 * every)[:, -1]  # 40 time units
    torch.testing.assert_close(developed(domain, ids, 1)[:, 0], by_hand, atol=1e-12, rtol=0)


def test_the_future_is_the_solvers(trajectories):
    domain, _ = PdeDomain(interval=0.4).fit(trajectories)
    state = stacked(trajectories, ("u",))[:, 0]
    told = []
    out = future(domain, state, 5, lambda label, done, total: told.append((done, total)))
    assert out.shape == (6, 5, 1, 32) and out.dtype == F64 and told == [(6, 6)]
    dense = stacked(trajectories, ("u",)).double()  # made with steps of 0.1, every 0.2
    torch.testing.assert_close(out, dense[:, [2, 4, 6, 8, 10]], atol=2e-4, rtol=0)


# -- properties, verdicts, figures, pictures


def test_properties_are_attributes_that_are_numbers():
    objects = made(vary={"viscosity": [0.8, 1.2]})
    found = PdeDomain().properties(objects, ["viscosity", "dt", "dx"])
    laws = [json.loads(o.attrs["equation"])["viscosity"] for o in objects]
    assert found["viscosity"].tolist() == pytest.approx(laws) and len(set(laws)) == 6
    assert all(0.8 <= v <= 1.2 for v in laws)
    assert found["dt"].tolist() == pytest.approx([0.2] * 6) and found["dx"].tolist() == pytest.approx([22 / 32] * 6)
    for name in ("drag", "source"):
        with pytest.raises(UsageError, match=f"'{name}'") as caught:
            PdeDomain().properties(objects, [name])
        assert "viscosity" in caught.value.remedy and "dt" in caught.value.remedy


def test_a_trajectory_is_judged_by_the_training_data(trajectories):
    domain, _ = PdeDomain().fit(trajectories)
    wild, lost = trajectories[0].copy(deep=True), trajectories[1].copy(deep=True)
    wild["u"][5:, 3] = 1.01 * LIMIT * domain.largest[0]
    lost["u"][7:, 0] = math.nan
    near = wild.copy(deep=True)
    near["u"][5:, 3] *= 0.98
    assert domain.check([near])[0].valid
    verdicts = domain.check([trajectories[2], wild, lost])
    assert [v.valid for v in verdicts] == [True, False, False]
    assert "at time 1;" in verdicts[1].reason and "not finite from time 1.4" in verdicts[2].reason
    found = domain.metrics([trajectories[2], wild, lost], verdicts, seed=3)
    assert [m.name for m in found] == ["stable"] and found[0].value == pytest.approx(1 / 3)
    assert found[0].interval[0] < 1 / 3 < found[0].interval[1] and found[0].count == 3
    rows = domain.table(trajectories, domain.check(trajectories))
    assert len(rows) == 6 and rows[0]["frames"] == 13


def test_a_forecast_with_its_reference_is_measured(trajectories):
    domain, _ = PdeDomain().fit(trajectories)
    frames = stacked(trajectories, ("u",))
    objects = [to_dataset(f.unsqueeze(0), interval=0.2, truth=f, domain=domain) for f in frames]
    found = {m.name: m for m in domain.metrics(objects, domain.check(objects))}
    assert found["correlation time 0.8"].value == pytest.approx(2.4) and found["one-step MSE"].value == 0.0
    assert found["stable"].value == 1.0
    pictures = domain.view(objects, [Verdict(True)] * 6, [f"s{i:04d}" for i in range(6)])
    assert pictures and all(isinstance(p, str) or p[:4] == b"\x89PNG" for p in pictures.values())


@pytest.mark.parametrize("options, spec, known", [
    ({"joint": True}, LevelPath((0.1, 1.0)), {}), ({}, LevelPath((0.1, 1.0)), {"viscosity": {"mean": 1.0, "std": 0.1}}),
    ({}, LevelPath(), {}), ({}, VP(), {}), ({"equation": None}, LevelPath((0.1, 1.0)), {}),
])
def test_nothing_is_settled_where_there_is_nothing_to_choose(trajectories, options, spec, known):
    fitted, _ = PdeDomain(joint=options.get("joint", False)).fit(trajectories)
    domain = PdeDomain(**{**fitted.options(), **options})
    (space, shape), = domain.components().values()
    model = SimpleNamespace(spec=StateSpec({"u": Component(space, spec, shape)}), conditions=known,
                            config={"solver": {"_target_": "scidiff.core.solvers.fixed.Fixed"}})
    assert domain.settle(model) == ({}, "")


def test_a_joint_model_without_its_equation_can_still_be_built():
    """Nothing of a joint spec needs data: shapes follow from the options alone."""
    domain = PdeDomain(shape=(16,), extent=(1.0,), fields=("u", "v"), history=2, joint=True)
    (space, shape), = domain.components().values()
    assert shape == (6, 16)
    StateSpec({"u": Component(space, VP(), shape)})
    with pytest.raises(ScidiffError):
        domain.decode({"u": torch.zeros(1, 6, 16)}, Context.of(1, cond={PREVIOUS: (torch.zeros(1, 4, 16),
                                                                                   torch.ones(1, dtype=torch.bool))}))
