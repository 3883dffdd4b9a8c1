"""Files of other people: every layout gives back the arrays that were put in, and every defect has its own sentence."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.domains.pde import data
from scidiff.domains.pde.readers import read, side

xarray = pytest.importorskip("xarray")
h5py = pytest.importorskip("h5py")

made = runpy.run_path(str(Path(__file__).with_name("user_fields.py")))
L, wave, plane, plain, save = (made[name] for name in ("L", "wave", "plane", "plain", "save"))


def frames_of(ds):
    return data.from_dataset(ds)[0].numpy()


# -- NetCDF


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_plain_netcdf_3_and_4(tmp_path, engine):
    u = wave(6, 16)
    records = read(save(plain(u), tmp_path / "run.nc", engine=engine))
    (ds,) = records.objects
    np.testing.assert_array_equal(frames_of(ds)[:, 0], u)
    about = data.describe(ds)
    assert records.names == ["run"] and about.extent == (L,) and about.interval == 0.5 and about.equation is None
    assert ds.attrs["boundary"] == "periodic" and ds.attrs["source"] == "run.nc"


def test_axes_in_any_order_and_under_other_names(tmp_path):
    u = plane(5, 6, 8, count=3)  # [batch, t, y, x]
    ds = xarray.Dataset({"w": (("X", "t", "run", "Y"), u.transpose(3, 1, 0, 2), {"units": "s-1"}),
                         "mask": (("X", "Y"), np.ones((8, 6))), "n": ("run", np.arange(3.0))},
                        {"X": np.arange(8) * 0.5, "Y": np.arange(6) * 0.25, "t": np.arange(5) * 2.0})
    ds = ds.drop_vars("mask")
    records = read(save(ds, tmp_path / "flow.nc"))
    for i, one in enumerate(records.objects):
        assert one["w"].dims == ("time", "y", "x") and one.attrs["n"] == float(i)
        np.testing.assert_array_equal(one["w"].values, u[i])
        assert data.describe(one).extent == (1.5, 4.0) and data.describe(one).units == ("s-1",)
    assert records.names == ["flow-00000", "flow-00001", "flow-00002"]
    assert len(read(tmp_path / "flow.nc", limit=2)) == 2


def test_named_axes_and_chosen_fields(tmp_path):
    u, v = wave(5, 8, 1), wave(5, 8, 2)
    ds = xarray.Dataset({"u": (("stage", "x"), u), "v": (("stage", "x"), v)},
                        {"x": np.arange(8.0), "stage": np.arange(5.0)})
    file = save(ds, tmp_path / "a.nc")
    (one,) = read(file, time="stage", fields=["v"]).objects
    assert data.field_names(one) == ("v",)
    np.testing.assert_array_equal(one["v"].values, v)
    np.testing.assert_array_equal(frames_of(read(file, time="stage").objects[0]), np.stack([u, v], 1))
    with pytest.raises(UsageError, match=r"no variable 'velocity'. Available: u, v"):
        read(file, time="stage", fields=["velocity"])
    with pytest.raises(UsageError, match=r"no axis 'stege'. Did you mean 'stage'"):
        read(file, time="stege")


def test_units_of_time_are_left_as_numbers(tmp_path):
    ds = plain(wave(5, 8))
    ds["time"].attrs["units"] = "days"
    (one,) = read(save(ds, tmp_path / "a.nc")).objects
    assert one["time"].values.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0] and data.describe(one).time_unit == "days"


# -- HDF5


def well(path, u, velocity, periodic=True, const=None):
    """[n, t, x, y] and [n, t, x, y, 2] as The Well lays them out."""
    n, frames, nx, ny = u.shape
    with h5py.File(path, "w") as f:
        f.attrs.update({"dataset_name": "toy", "grid_type": "cartesian", "n_spatial_dims": 2, "n_trajectories": n,
                        "simulation_parameters": ["Re"], "Re": 1000.0})
        d = f.create_group("dimensions")
        d.attrs["spatial_dims"] = ["x", "y"]
        d["time"] = (0.1 * np.arange(frames)).astype(np.float32)
        d["x"], d["y"] = np.linspace(0, 4, nx, endpoint=False), np.linspace(0, 2, ny, endpoint=False)
        for name in ("time", "x", "y"):
            d[name].attrs["sample_varying"] = False
        for axis, kind in (("x", "PERIODIC"), ("y", "PERIODIC" if periodic else "WALL")):
            b = f.create_group(f"boundary_conditions/{axis}_edge")
            b.attrs.update({"associated_dims": [axis], "associated_fields": [], "bc_type": kind})
        s = f.create_group("scalars")
        s["Re"] = 1000.0
        s["Re"].attrs.update({"sample_varying": False, "time_varying": False})
        s["angle"] = np.arange(n) * 0.5
        s["angle"].attrs.update({"sample_varying": True, "time_varying": False})
        for group, name, values in (("t0_fields", "tracer", u), ("t1_fields", "velocity", velocity)):
            f.create_dataset(f"{group}/{name}", data=values)
            f[group][name].attrs.update({"dim_varying": [True, True], "sample_varying": True, "time_varying": True})
        if const is not None:
            f["t0_fields/height"] = const
            f["t0_fields/height"].attrs.update({"dim_varying": [True, False], "sample_varying": False,
                                                "time_varying": False})
    return path


def test_the_well(tmp_path):
    u = plane(4, 8, 6, count=2)  # axes (x, y) there
    velocity = np.stack([plane(4, 8, 6, 3, 2), plane(4, 8, 6, 5, 2)], -1)
    height = np.arange(8.0, dtype=np.float32) % 4
    file = well(tmp_path / "toy.hdf5", u, velocity, const=height)
    records = read(file)
    assert not records.rejected
    for i, one in enumerate(records.objects):
        assert set(data.field_names(one)) == {"tracer", "velocity_x", "velocity_y"}
        np.testing.assert_array_equal(one["tracer"].values, u[i].transpose(0, 2, 1))
        np.testing.assert_array_equal(one["velocity_y"].values, velocity[i, ..., 1].transpose(0, 2, 1))
        assert one.attrs["Re"] == 1000.0 and one.attrs["angle"] == 0.5 * i
        about = data.describe(one)
        assert about.shape == (6, 8) and about.extent == pytest.approx((2.0, 4.0))
        assert about.interval == pytest.approx(0.1)
    (first, _) = read(file, fields=["velocity_x", "height"]).objects
    np.testing.assert_array_equal(first["height"].values, np.broadcast_to(height[None, None, :], (4, 6, 8)))
    with pytest.raises(UsageError, match=r"no field 'velocity_z'. Did you mean 'velocity"):
        read(file, fields=["velocity_z"])


def test_walls_are_refused_unless_the_user_knows_better(tmp_path):
    u = plane(4, 8, 6, count=2)
    file = well(tmp_path / "toy.hdf5", u, np.stack([u, u], -1), periodic=False)
    records = read(file)
    assert not records.objects and [r.where for r in records.rejected] == ["toy-00000", "toy-00001"]
    assert "boundary is not periodic (wall in y)" in records.rejected[0].reason
    with pytest.raises(UsageError, match="2 rejected, the first: the boundary is not periodic"):
        records.require(file)
    assert len(read(file, boundary="periodic")) == 2


def test_pdebench_tensors(tmp_path):
    u = wave(5, 16, count=3)
    with h5py.File(tmp_path / "a.hdf5", "w") as f:
        f["tensor"], f["x-coordinate"] = u, ((np.arange(16) + 0.5) / 16).astype(np.float32)
        f["t-coordinate"] = np.arange(6) * 0.05  # one more than frames, as published
    records = read(tmp_path / "a.hdf5")
    assert len(records) == 3 and not records.rejected
    np.testing.assert_array_equal(np.stack([frames_of(o)[:, 0] for o in records.objects]), u)
    about = data.describe(records.objects[0])
    assert about.fields == ("u",) and about.extent == pytest.approx((1.0,)) and about.interval == pytest.approx(0.05)
    assert data.field_names(read(tmp_path / "a.hdf5", fields=["c"]).objects[0]) == ("c",)


def test_pdebench_named_arrays_and_numbered_groups(tmp_path):
    parts = {name: plane(4, 6, 8, seed, 2) for seed, name in enumerate(("density", "Vx", "Vy"))}
    with h5py.File(tmp_path / "cfd.h5", "w") as f:
        for name, values in parts.items():
            f[name] = values.transpose(0, 1, 3, 2)  # [n, t, x, y]
        f["x-coordinate"], f["y-coordinate"], f["t-coordinate"] = np.arange(8.0), np.arange(6.0), np.arange(4.0)
    (first, _) = read(tmp_path / "cfd.h5", fields=["Vx", "density"]).objects
    for name in ("Vx", "density"):
        np.testing.assert_array_equal(first[name].values, parts[name][0])
    with pytest.raises(UsageError, match="no field 'Vz'"):
        read(tmp_path / "cfd.h5", fields=["Vz"])

    pair = np.stack([plane(4, 6, 8, 7, 2), plane(4, 6, 8, 9, 2)], -1)
    with h5py.File(tmp_path / "dr.h5", "w") as f:
        for i in range(2):
            f[f"{i:04d}/data"] = pair[i].transpose(0, 2, 1, 3)
            for axis, n in (("x", 8), ("y", 6), ("t", 4)):
                f[f"{i:04d}/grid/{axis}"] = np.arange(float(n))
    records = read(tmp_path / "dr.h5", fields=["activator", "inhibitor"])
    for i, one in enumerate(records.objects):
        np.testing.assert_array_equal(frames_of(one), pair[i].transpose(0, 3, 1, 2))
    assert data.field_names(read(tmp_path / "dr.h5").objects[0]) == ("u", "v")


def pdearena(path, **splits):
    with h5py.File(path, "w") as f:
        for name, u in splits.items():
            g = f.create_group(name)
            n, frames, points = u.shape
            g[f"pde_{frames}-{points}"] = u.astype(np.float64)
            g["dx"], g["dt"], g["v"] = 0.25 + 0.01 * np.arange(n), 0.2 + 0.01 * np.arange(n), 1.0 + np.arange(n)
            g["x"] = np.arange(points)[None] * g["dx"][...][:, None]
            g["t"] = np.arange(frames)[None] * g["dt"][...][:, None]
    return path


def test_pdearena_splits_and_scalars(tmp_path):
    train, test = wave(5, 16, 0, 3), wave(7, 16, 1, 2)
    file = pdearena(tmp_path / "KS.h5", train=train, test=test)
    records = read(file, split="train", equation={"name": "ks"})
    assert records.names == ["train-00000", "train-00001", "train-00002"]
    for i, one in enumerate(records.objects):
        np.testing.assert_array_equal(frames_of(one)[:, 0], train[i])
        assert one.attrs["viscosity"] == 1.0 + i and one.attrs["dt"] == pytest.approx(0.2 + 0.01 * i)
        assert one.attrs["extent"] == pytest.approx([16 * (0.25 + 0.01 * i)])
        assert data.describe(one).equation == {"name": "ks", "viscosity": 1.0 + i}
    assert len(read(file, split="test")) == 2 and len(read(file)) == 5
    with pytest.raises(UsageError, match=r"no split 'valid'. Available: test, train"):
        read(file, split="valid")
    same = data.dataset({"a.h5": file}, "field_file", {"split_files": {"test": "a.h5"}, "nominal": {
        "extent": [4.0], "interval": 0.2}}, "test")
    assert same.names == ["test-00000", "test-00001"]
    assert [(data.describe(o).extent, data.describe(o).interval) for o in same.objects] == [((4.0,), 0.2)] * 2


# -- what is refused, trajectory by trajectory


def twisted(step):
    x = np.arange(16) * L / 16
    x[5] += step * L / 16
    return x


def repeated(u):
    return np.concatenate([u, u[:, :1]], 1)


NAN = wave(6, 16)
NAN[3, 4] = math.nan
RAMP = np.linspace(0, 1, 16, dtype=np.float32)[None] + np.zeros((6, 1), np.float32)

REFUSED = [
    (plain(wave(6, 16), x=twisted(0.1)), {}, "the grid is not uniform: steps in x between 1.2375 and 1.5125"),
    (plain(wave(6, 16), x=-np.arange(16.0)), {}, "the coordinates of x do not increase"),
    (plain(wave(6, 16), x=False), {}, "x has no coordinates"),
    (plain(repeated(wave(6, 16)), x=np.linspace(0, L, 17)), {}, "the last point of x repeats the first"),
    (plain(NAN), {}, "u holds 1 values that are not finite"),
    (plain(RAMP), {}, "does not look periodic in x: it jumps by 1 across"),
    (plain(wave(1, 16)), {}, "1 frame, fewer than 2"),
    (plain(wave(6, 16)[0], dims=("x",)), {}, "there is no time axis among"),
    (plain(wave(6, 16), t=np.array([0, 1, 2, 3, 5, 6.0])), {}, "the time steps differ: between 1 and 2"),
    (plain(wave(6, 16), t=np.zeros(6)), {}, "the times do not increase"),
    (plain(wave(6, 16), t=False), {}, "the frames have no times"),
    (plain(wave(6, 16)), {"multiple_of": 12}, "16 points in x are no multiple of 12 (resample with shape=[24])"),
    (plain(wave(6, 16)), {"extent": [64.0]}, "x covers a length of 22, not the given 64"),
    (plain(wave(6, 16)), {"extent": [22.0, 22.0]}, "extent has 2 numbers, the fields have 1 axes"),
    (plain(wave(6, 16)), {"interval": 0.2}, "the frames lie 0.5 apart, not the given 0.2"),
    (plain(wave(6, 16)), {"shape": [8, 8]}, "shape has 2 numbers"),
    (plain(wave(6, 1)), {}, "a single point in x"),
]


@pytest.mark.parametrize(("ds", "options", "reason"), REFUSED, ids=[r[2][:24] for r in REFUSED])
def test_what_breaks_a_rule_is_rejected_with_its_reason(tmp_path, ds, options, reason):
    records = read(save(ds, tmp_path / "a.nc"), **options)
    assert not records.objects and len(records.rejected) == 1
    assert reason in records.rejected[0].reason and records.rejected[0].where == "a"


def test_remedies_work(tmp_path):
    u = wave(6, 16)
    twice = save(plain(repeated(u), x=np.linspace(0, L, 17)), tmp_path / "twice.nc")
    (one,) = read(twice, drop_endpoint=True).objects
    np.testing.assert_array_equal(frames_of(one)[:, 0], u)
    assert data.describe(one).extent == pytest.approx((L,))
    bare = save(plain(u, x=False, t=False), tmp_path / "bare.nc")
    (one,) = read(bare, extent=L, interval=0.5).objects
    assert data.describe(one).extent == pytest.approx((L,)) and data.describe(one).interval == 0.5
    assert len(read(save(plain(RAMP), tmp_path / "ramp.nc"), boundary="periodic")) == 1
    nan = save(plain(NAN), tmp_path / "nan.nc")
    assert len(read(nan, invalid="keep")) == 1 and not data.verdict(read(nan, invalid="keep").objects[0], ("u",)).valid
    (one,) = read(save(plain(u), tmp_path / "a.nc"), shape=[32]).objects
    torch.testing.assert_close(data.from_dataset(one)[0], data.resample(torch.from_numpy(u)[:, None], (32,)))
    assert data.describe(one).extent == pytest.approx((L,))


def test_steep_but_resolved_periodic_fields_pass(tmp_path):
    """A shock that sits right at the end of the box is as steep as it would be inside."""
    x = np.arange(64) / 64
    shock = np.tanh(np.sin(2 * np.pi * x) / 0.3)[None].repeat(4, 0)
    for turn in range(0, 64, 7):
        ds = plain(np.roll(shock, turn, 1).astype(np.float32))
        assert len(read(save(ds, tmp_path / f"{turn}.nc"))) == 1


# -- what is refused as a whole


def test_unusable_files_are_one_sentence(tmp_path):
    whole = save(plain(wave(6, 16)), tmp_path / "whole.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nc").write_text("time,x,u\n")
    with h5py.File(tmp_path / "odd.h5", "w") as f:
        f["weights"] = np.zeros(3)
    save(xarray.Dataset({"a": ("time", np.arange(3.0))}), tmp_path / "flat.nc")
    save(xarray.Dataset({"a": (tuple("pqrs"), np.zeros((2, 2, 2, 2)))}), tmp_path / "deep.nc")
    (tmp_path / "empty").mkdir()
    for name, words in (("cut.nc", "damaged or incomplete"), ("text.nc", "neither NetCDF nor HDF5"),
                        ("odd.h5", "layout of odd.h5 is not known .its top level holds weights"),
                        ("flat.nc", "holds no field"), ("deep.nc", "trajectory="), ("nowhere.nc", "does not exist"),
                        ("empty", "holds no file of fields")):
        with pytest.raises(UsageError, match=words):
            read(tmp_path / name)
    with pytest.raises(UsageError, match=r"no option 'windw'. Did you mean 'window'"):
        read(tmp_path / "whole.nc", windw=3)
    records = read(tmp_path)
    assert records.names == ["whole"] and {r.where for r in records.rejected} >= {"cut.nc", "text.nc", "odd.h5"}


@pytest.mark.parametrize(("absent", "file"), [("h5py", "a.h5"), ("h5netcdf", "a.nc"), ("xarray", "a.nc")])
def test_missing_libraries_are_named(tmp_path, monkeypatch, absent, file):
    save(plain(wave(6, 16)), tmp_path / file)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingLibrary, match="pip install"):
        read(tmp_path / file)


# -- splits and pieces


def test_the_side_of_a_trajectory_depends_on_its_values_alone(tmp_path):
    u = wave(4, 16, count=200)
    sides = [side(one[:, None]) for one in u]
    assert 8 <= sides.count("test") <= 34  # 20 +- 3.3 standard deviations
    ds = plain(u, dims=("trajectory", "time", "x"), t=np.arange(4.0))
    train, test = (read(save(ds, tmp_path / "a.nc"), split=s) for s in ("train", "test"))
    assert len(train) + len(test) == 200 and not set(train.names) & set(test.names)
    back = plain(u[::-1].copy(), dims=("trajectory", "time", "x"), t=np.arange(4.0))
    again = read(save(back, tmp_path / "b.nc"), split="test")
    np.testing.assert_array_equal(np.stack([frames_of(o) for o in again.objects])[::-1],
                                  np.stack([frames_of(o) for o in test.objects]))
    with pytest.raises(UsageError, match="no split 'valid'"):
        read(tmp_path / "a.nc", split="valid")
    with pytest.raises(UsageError, match=r"no split 'tset' of trajectories. Did you mean 'test'"):
        read(tmp_path / "a.nc", split="tset")


def test_windows_cut_a_long_run_and_keep_its_end_for_testing(tmp_path):
    u = wave(47, 16)
    file = save(plain(u), tmp_path / "long.nc")
    train, test, both = (read(file, split=s, window=4) for s in ("train", "test", None))
    assert (len(train), len(test), len(both)) == (10, 1, 11) and test.names == ["long.0010"]
    np.testing.assert_array_equal(np.concatenate([frames_of(o)[:, 0] for o in both.objects]), u[:44])
    assert float(both.objects[3]["time"][0]) == 6.0
    with pytest.raises(UsageError, match="window=1"):
        read(file, window=1)
