"""What looks alike and is not, and settings that cannot do what they say: each is refused with its reason."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("xarray", reason="the pde domain needs xarray")

from scidiff.core.errors import UsageError
from scidiff.domains.model import Model
from scidiff.domains.pde import PdeDomain
from scidiff.domains.pde.bank import from_options
from scidiff.domains.pde.data import save, to_dataset
from scidiff.domains.pde.forecast import forecast
from scidiff.domains.pde.readers import read

save_model = runpy.run_path(str(Path(__file__).with_name("small_model.py")))["save_model"]


def waves(frames=6, n=16, seed=0):
    """Smooth periodic frames [frames, 1, n], float32."""
    a, b = np.random.default_rng(seed).normal(size=(2, 3, frames, 1))
    x = 2 * np.pi * np.arange(n) / n
    return sum(a[k] * np.sin((k + 1) * x + b[k]) for k in range(3)).astype(np.float32)[:, None]


def one(seed=0, **settings):
    return to_dataset(waves(seed=seed), **{"interval": 0.2, "extent": (10.0,), **settings})


# -- fitting


def test_trajectories_of_one_kind_are_fitted():
    domain, _ = PdeDomain(interval=0.4).fit([one(i) for i in range(4)])
    assert (domain.interval, domain.stride, domain.extent) == (0.4, 2, (10.0,))


@pytest.mark.parametrize(("other", "words"), [
    ({"interval": 0.4}, "time between two frames: 0.2 and 0.4"),
    ({"extent": (20.0,)}, "lengths of the box: 10 and 20"),
    ({"units": ("m/s",)}, "units of the fields: 1 and m/s"),
    ({"time_unit": "s"}, "units of time: 1 and s"),
    ({"space_unit": "m"}, "units of space: 1 and m"),
])
def test_trajectories_of_two_kinds_are_no_set(other, words):
    """One step of the model would mean two different things."""
    with pytest.raises(UsageError, match=words):
        PdeDomain().fit([one(0), one(1), one(2, **other)])


def test_a_set_that_varies_on_purpose_names_what_stands_for_it():
    nominal = {"nominal_dt": 0.2, "nominal_extent": [10.0]}
    mixed = [one(i, interval=dt, extent=(size,), attrs=nominal) for i, (dt, size) in
             enumerate(((0.18, 9.0), (0.22, 11.0), (0.2, 10.5)))]
    domain, _ = PdeDomain().fit(mixed)
    assert (domain.interval, domain.extent) == (0.2, (10.0,))


# -- reading


@pytest.mark.parametrize("mode", [1, 2, 5])
def test_a_repeated_end_point_is_seen_where_the_middle_equals_the_ends(mode, tmp_path):
    """Odd numbers of points: the middle of a sine is zero as well, and only the points between tell."""
    x = np.linspace(0.0, 22.0, 65)
    frames = np.sin(2 * np.pi * mode * x / 22.0) * np.array([1.0, 0.7, 0.4])[:, None]
    save(to_dataset(frames[:, None].astype(np.float32), interval=0.5, coords={"x": x}), tmp_path / "sine.nc")
    found = read(tmp_path / "sine.nc")
    assert not found.objects
    assert "both ends of the period are stored" in found.rejected[0].reason
    assert read(tmp_path / "sine.nc", drop_endpoint=True).objects[0].attrs["extent"] == pytest.approx([22.0])


def test_a_long_clock_in_float32_is_even(tmp_path):
    """At t = 400 float32 knows times to 3e-5 only, and these steps differ by 3e-3 of their mean."""
    times = (395.0 + 0.01 * np.arange(500)).astype(np.float32).astype(np.float64)
    assert np.abs(np.diff(times) - 0.01).max() > 1.5e-3 * 0.01
    save(to_dataset(waves(500), times, extent=(10.0,)), tmp_path / "long.nc")
    assert read(tmp_path / "long.nc").objects
    times[250:] += 1e-3
    save(to_dataset(waves(500), times, extent=(10.0,)), tmp_path / "gap.nc")
    assert "the time steps differ" in read(tmp_path / "gap.nc").rejected[0].reason


# -- asking


def test_parameters_without_the_name_of_an_equation():
    """data.options.equation.viscosity=2 replaces the whole entry of the card."""
    options = {"shape": [32], "interval": 0.5, "frames": 3, "count": 2}
    with pytest.raises(UsageError, match="parameters, but no name"):
        from_options({**options, "equation": {"viscosity": 2.0}})
    assert from_options({**options, "equation": {"name": "ks", "viscosity": 2.0}}).equation.viscosity == 2.0


def test_a_number_of_calls_that_the_levels_do_not_give(tmp_path):
    model = Model.load(save_model(tmp_path / "model"))  # two levels
    ask = {"members": 1, "steps": 1, "trajectories": 1, "truth": False}
    with pytest.raises(UsageError, match=r"visits 2 levels.*7 calls"):
        forecast(model.domain, model, {**ask, "calls": 7})
    assert forecast(model.domain, model, {**ask, "calls": 2}).meta["steps"] == 2
    one_level = {**ask, "calls": 1, "solver": {"levels": [1]}}
    assert forecast(model.domain, model, one_level).meta["steps"] == 1


@pytest.mark.parametrize(("std", "value"), [(0.3, 9.0), (1e-6, 1.01)])
def test_a_condition_far_from_the_training_data(std, value, tmp_path):
    """1e-6 is the spread that a condition gets which never varied."""
    model = Model.load(save_model(tmp_path / "model", conditions={"viscosity": (1.0, std)}))
    ask = {"members": 1, "steps": 1, "trajectories": 1, "truth": False}
    with pytest.raises(UsageError, match=f"viscosity = {value:g} is far"):
        forecast(model.domain, model, {**ask, "condition": {"viscosity": value}})
    assert forecast(model.domain, model, {**ask, "condition": {"viscosity": 1.0 + std}}).verdicts[0].valid
