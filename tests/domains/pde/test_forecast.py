"""Forecasts: closed forms of trivial networks, independence of rows, exact continuation, and what is refused."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("xarray", reason="the pde domain needs xarray")

from scidiff.core.errors import UsageError
from scidiff.domains.model import Model
from scidiff.domains.pde import LIMIT
from scidiff.domains.pde.data import save, to_dataset
from scidiff.domains.pde.equations import EQUATIONS, SpectralSolver
from scidiff.domains.pde.forecast import PART, Ask, forecast

made = runpy.run_path(str(Path(__file__).with_name("small_model.py")))
save_model, LARGEST = made["save_model"], made["LARGEST"]
SMALL = {"members": 3, "steps": 8, "trajectories": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(save_model(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture
def load(tmp_path):
    """A model with other options."""
    return lambda **options: Model.load(save_model(tmp_path / "model", **options))


def roll(model, **ask):
    return forecast(model.domain, model, {**SMALL, **ask})


def values(samples, name="u"):
    return np.stack([ds[name].values for ds in samples])


class Shelf(dict):
    """A store of parts in memory; `most` parts, then the power fails."""

    most = 10**6

    def has_part(self, name):
        return name in self

    def read_part(self, name):
        return self[name]

    def write_part(self, name, tensors, notes=None):
        if len(self) == self.most:
            raise KeyboardInterrupt
        self[name] = ({k: v.clone() for k, v in tensors.items()}, dict(notes or {}))


def test_a_network_that_predicts_no_change_keeps_the_first_state(load):
    samples = roll(load(stds=(1.0,), scatter=0.0))
    u = values(samples)
    assert u.shape == (2, 3, 9, 32) and u.dtype == np.float32
    assert samples.ids == ["s0000", "s0001"] and all(v.valid for v in samples.verdicts)
    np.testing.assert_allclose(u, np.broadcast_to(u[:, :, :1], u.shape), atol=2e-6)
    for ds in samples:
        assert ds["u"].dims == ("member", "time", "x") and ds["u_true"].dims == ("time", "x")
        np.testing.assert_array_equal(ds["u"].values[:, 0], np.broadcast_to(ds["u_true"].values[0], (3, 32)))
        np.testing.assert_allclose(ds["time"].values, 0.8 * np.arange(9))
        assert ds.attrs["model"] == "small" and ds["x"].attrs["units"] == "1"
    assert not np.allclose(u[0, 0, 0], u[1, 0, 0]), "every trajectory starts from a state of its own"
    about = samples.meta
    assert (about["steps"], about["members"], about["time steps"], about["interval"]) == (1, 3, 8, 0.8)
    assert about["ms per step"] > 0


def test_the_reference_is_the_solution_of_the_equation(model):
    """Against half the step: fourth order, so the difference is that of the reference itself."""
    samples = roll(model, members=1)
    solver = SpectralSolver(EQUATIONS["ks"](), (32,), 22.0, 0.025, dtype=torch.float64)
    for ds in samples:
        true = torch.from_numpy(ds["u_true"].values).double()
        again = solver.rollout(true[None, :1], 8 * 32, 32)[0, :, 0]
        assert float((again - true[1:]).abs().max()) < 1e-5
        assert 0.5 < float(true.std()) < 2.0, "developed: the rms of the attractor is 1.19"
    assert "u_true" not in roll(model, truth=False)[0]


def test_a_row_stays_the_same_when_others_join(model):
    few = values(roll(model, members=1, steps=30))
    more = values(roll(model, members=5, steps=30, trajectories=9))
    np.testing.assert_array_equal(few, more[:2, :1])
    assert np.abs(more[0, 0, -1] - more[0, 1, -1]).max() > 1e-4, "members meet noise of their own"
    true = [values(roll(model, members=1, trajectories=n), "u_true") for n in (3, 9)]
    np.testing.assert_array_equal(true[0], true[1][:3])


def test_the_seed_decides(model):
    one, two, other = (values(roll(model, seed=s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other)[:, :, 0].max() > 0.1 and np.abs(one - other)[:, :, -1].max() > 0.1


@pytest.mark.parametrize("kept, options", [
    (1, {}), (2, {}), (3, {"history": 2}), (2, {"history": 3, "joint": True, "target": "direct"}),
])
def test_an_interrupted_forecast_continues_to_the_last_bit(kept, options, load):
    one = load(**options)
    ask = {**SMALL, "steps": 2 * PART + 4}
    shelf = Shelf()
    shelf.most = kept
    with pytest.raises(KeyboardInterrupt):
        forecast(one.domain, one, ask, shelf)
    assert len(shelf) == kept
    shelf.most, told = 10**6, []
    samples = forecast(one.domain, one, ask, shelf, lambda *what: told.append(what))
    begun = min(done for label, done, _ in told if label == "Rolling out")
    assert begun == 1 + PART * (kept - 1), "what is finished is not computed again"
    assert not any(label.startswith("Solving") for label, *_ in told)
    whole = forecast(one.domain, one, ask)
    np.testing.assert_array_equal(values(samples), values(whole))
    np.testing.assert_array_equal(values(samples, "u_true"), values(whole, "u_true"))
    assert samples.meta["seconds"] == (None if kept > 1 else samples.meta["seconds"])


def test_a_row_that_grows_too_large_stops_there_and_keeps_its_past(load):
    """A network that returns the constant -c moves every value by c times the scale of a step: the step is known."""
    one = load(stds=(1.0,), scatter=0.0, shift=-1.0)
    samples = roll(one, steps=60, trajectories=3)
    rise = one.domain.scale * one.domain.std[0]
    for ds, verdict in zip(samples, samples.verdicts, strict=True):
        start = ds["u"].values[0, 0]
        step = int(np.floor((LIMIT * LARGEST - start.max()) / rise)) + 1
        assert 20 < step < 50
        u = ds["u"].values
        np.testing.assert_allclose(u[:, :step], start + rise * np.arange(step)[None, :, None] * np.ones((3, 1, 1)),
                                   atol=1e-4)
        assert np.isnan(u[:, step:]).all() and np.isfinite(ds["u_true"].values).all()
        assert not verdict.valid
        assert verdict.reason == (f"all 3 members blew up, the first at step {step} of 60 "
                                  f"({step * 0.8:g} time units)")
    assert not any(v.valid for v in one.domain.check(samples.objects)), "the file tells the same"
    alone = roll(one, steps=60, members=1)
    assert alone.verdicts[0].reason.startswith("blew up at step ")


def test_others_go_on_where_some_blow_up(load):
    """A file with a small and a large first state: the large one leaves the range first."""
    one = load(stds=(1.0,), scatter=0.0, shift=-1.0)
    state = torch.from_numpy(values(roll(one, members=1, steps=1))[:, 0, :1]).unsqueeze(2)
    large = state[:1] / state[:1].abs().max() * LARGEST
    file = Path("both.nc")
    place = one.folder.parent / file
    save(to_dataset(torch.stack([0.1 * state[0], large[0]]), interval=0.8, domain=one.domain), place)
    both = roll(one, init=place, trajectories=None, steps=30)
    alone = roll(one, init=place, trajectories=1, steps=30)
    first, second = (ds["u"].values for ds in both)
    assert both.verdicts[0].valid and not both.verdicts[1].valid
    np.testing.assert_array_equal(first, alone[0]["u"].values)
    assert np.isnan(second[:, -1]).all() and np.isfinite(second[:, 20]).all()


def test_a_network_that_fails_is_a_blow_up_at_the_first_step(load):
    samples = roll(load(stds=(1.0,), scatter=0.0, shift=float("nan")), members=1)
    assert [v.reason for v in samples.verdicts] == ["blew up at step 1 of 8 (0.8 time units)"] * 2
    assert np.isfinite(values(samples)[:, :, 0]).all() and np.isnan(values(samples)[:, :, 1:]).all()


def test_the_condition_is_the_parameter_of_the_reference(load):
    """What is not asked for is the mean of the training data, in the network and in the equation."""
    one = load(conditions={"viscosity": (1.0, 0.25)})
    plain, mean, thin = (roll(one, members=1, condition=c) for c in ({}, {"viscosity": 1.0}, {"viscosity": 0.7}))
    np.testing.assert_array_equal(values(plain), values(mean))
    np.testing.assert_array_equal(values(plain, "u_true"), values(mean, "u_true"))
    solver = SpectralSolver(EQUATIONS["ks"](0.7), (32,), 22.0, 0.0125, dtype=torch.float64)
    true = torch.from_numpy(thin[0]["u_true"].values).double()
    assert float((solver.rollout(true[None, :1], 64, 64)[0, 0, 0] - true[1]).abs().max()) < 1e-4
    assert thin[0].attrs["viscosity"] == 0.7
    with pytest.raises(UsageError, match=r"viscosity is -1; it must lie between 0"):
        roll(one, condition={"viscosity": -1.0})
    with pytest.raises(UsageError, match=r"knows no condition 'visc'. Did you mean 'viscosity'"):
        roll(one, condition={"visc": 1.0})
    with pytest.raises(UsageError, match=r"must be a number, not 'high'. In the training data it was 1 \+- 0.25"):
        roll(one, condition={"viscosity": "high"})


def test_both_precisions_agree_over_a_few_steps(model):
    single, double = (values(roll(model, precision=p, steps=3)) for p in (32, 64))
    assert double.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=2e-5)
    assert not np.array_equal(single, double)


# -- first states from files


@pytest.fixture
def states(model, tmp_path):
    """Writes first states [n, F, *space] of a box to a file and returns its path."""
    def write(frames, interval=0.8, extent=(22.0,), **more):
        frames = torch.as_tensor(frames, dtype=torch.float32)
        return save(to_dataset(frames.unsqueeze(2), interval=interval, extent=extent, fields=("u",), **more),
                    tmp_path / "state.nc")
    return write


def waves(*shape, size=1.0):
    """[n, ..., N]: one wave, of another phase for every n."""
    phase = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) / 7
    return size * torch.sin(2 * torch.pi * (torch.arange(shape[-1]) / shape[-1] + phase)).expand(shape)


def test_a_forecast_starts_from_the_last_frame_of_a_file(model, states):
    frames = waves(3, 5, 32) * torch.linspace(1.0, 2.0, 5).view(1, 5, 1)
    file = states(frames)
    samples = roll(model, init=file, trajectories=None)
    assert len(samples) == 3 and all("u_true" in ds for ds in samples) and samples[0].attrs["init"] == "state.nc"
    np.testing.assert_array_equal(values(samples)[:, 0, 0], frames[:, -1].numpy())
    second = roll(model, init=file, trajectories=2, options={"at": 1})
    np.testing.assert_array_equal(values(second)[:, 0, 0], frames[:2, 1].numpy())


def test_a_history_is_taken_from_the_file(load, states):
    one = load(history=2)
    frames = waves(1, 9, 32) * torch.linspace(1.0, 2.0, 9).view(1, 9, 1)
    samples = roll(one, init=states(frames, interval=0.4), trajectories=None)
    np.testing.assert_array_equal(samples[0]["u"].values[0, 0], frames[0, -1].numpy())
    changed = frames.clone()
    changed[0, -3] *= 1.5  # the frame 0.8 time units before the last one
    other = roll(one, init=states(changed, interval=0.4), trajectories=None)
    assert np.abs(other[0]["u"].values[:, 1] - samples[0]["u"].values[:, 1]).max() > 1e-4


def test_another_grid_is_resampled_on_demand(model, states):
    file = states(waves(1, 1, 48))
    with pytest.raises(UsageError, match=r"48 points, the model 32. .* with domain.options.resample=true"):
        roll(model, init=file)
    start = roll(model, init=file, trajectories=None, options={"resample": True})[0]["u"].values[0, 0]
    np.testing.assert_allclose(start, waves(1, 32)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("frames, more, sentence", [
    (waves(1, 1, 32), {"extent": (30.0,)}, "covers a length of 30 in x, but the model was trained on a box of 22"),
    (waves(1, 1, 32) * float("nan"), {}, "values that are not finite"),
    (waves(1, 1, 32, size=50.0), {}, r"\|u\| reaches 50 in state.nc, but 2.9 in the training data"),
    (waves(2, 1, 32), {"ask": {"trajectories": 3}}, "holds 2 first states, fewer than the 3 trajectories asked for"),
    (waves(1, 1, 32), {"ask": {"options": {"at": 4}}}, "has no frame 4: it holds 1"),
    (waves(1, 1, 32), {"ask": {"options": {"att": 4}}}, "A rollout has no option 'att'. Did you mean 'at'"),
])
def test_first_states_that_cannot_be_used(model, states, frames, more, sentence):
    ask = more.pop("ask", {})
    with pytest.raises(UsageError, match=sentence):
        roll(model, init=states(frames, **more), **{"trajectories": None, **ask})


# -- requests


@pytest.mark.parametrize("ask, sentence", [
    ({"members": 0}, "number of members must be a whole number above 0, not 0"),
    ({"steps": -3}, "number of time steps must be a whole number above 0, not -3"),
    ({"steps": 2.5}, "number of time steps must be a whole number above 0, not 2.5"),
    ({"trajectories": True}, "number of trajectories must be a whole number above 0, not True"),
    ({"chunk": 0}, "number of rows computed together must be a whole number above 0"),
    ({"options": {"resample": True}}, "'resample' says how a file of first states is read, and no file is named"),
    ({"equation": "kss"}, "There is no equation named 'kss'. Did you mean 'ks'"),
    ({"equation": "burgers"}, "The model 'small' was trained on 'ks', not on 'burgers'"),
    ({"condition": {"viscosity": 2.0}}, "knows no condition 'viscosity'. It was trained without conditions"),
    ({"guidance": {"_target_": "x"}}, "trained without conditions, so it cannot be guided"),
    ({"steps": 10**7, "members": 64}, r"take 1\d\d GB of memory; at most 8 GB are allowed"),
    ({"init": "nowhere.nc"}, "nowhere.nc does not exist"),
    ({"device": "gpu"}, "no device 'gpu'"),
    ({"precision": 16}, "precision is 32, 64 or bf16"),
])
def test_impossible_requests_are_one_sentence_and_store_nothing(model, ask, sentence):
    shelf = Shelf()
    with pytest.raises(UsageError, match=sentence):
        forecast(model.domain, model, {**SMALL, **ask}, shelf)
    assert not shelf


def test_fields_without_an_equation_need_a_first_state(load, states):
    one = load(equation=None)
    with pytest.raises(UsageError, match=r"come from no known equation.*Give the first state with --init"):
        roll(one)
    with pytest.raises(UsageError, match="was trained on fields without a known equation, not on 'ks'"):
        roll(one, equation="ks")
    samples = roll(one, init=states(waves(1, 1, 32)), trajectories=None)
    assert "u_true" not in samples[0] and samples[0].sizes["member"] == 3


def test_a_model_that_nobody_named(model):
    with pytest.raises(UsageError, match=r"There is no equation or model named 'kz'. Did you mean 'ks'"):
        forecast(model.domain, None, {"equation": "kz"})
    with pytest.raises(UsageError, match="No shipped model knows the equation 'kdv'"):
        forecast(model.domain, None, {"equation": "kdv"})
    with pytest.raises(UsageError, match="Say which model to roll out"):
        forecast(model.domain, None, Ask())
