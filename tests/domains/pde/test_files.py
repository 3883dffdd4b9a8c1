"""Trajectories as Datasets and files: exact round trips, spectral resampling, what viewers of NetCDF meet, verdicts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError
from scidiff.domains.base import Samples, Verdict, sample_id
from scidiff.domains.pde import data
from scidiff.domains.pde.readers import read

xarray = pytest.importorskip("xarray")
h5py = pytest.importorskip("h5py")


def frames(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def samples(objects, valid=None):
    verdicts = [Verdict(True)] * len(objects) if valid is None else valid
    return Samples(objects, [sample_id(i) for i in range(len(objects))], 7, verdicts, domain=None)  # type: ignore[arg-type]


def band_limited(shape, modes, seed=0, dtype=torch.float64):
    """A random field and the same field on any grid, by its Fourier sum."""
    g = torch.Generator().manual_seed(seed)
    terms = [(torch.randint(-m, m + 1, (len(shape),), generator=g).tolist() if len(shape) > 1 else
              [int(torch.randint(0, m + 1, (1,), generator=g))],
              *torch.rand(2, generator=g, dtype=torch.float64).tolist()) for m in [modes] * 12]

    def on(grid):
        axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) / n for n in grid], indexing="ij")
        total = torch.zeros(grid, dtype=torch.float64)
        for k, a, b in terms:
            total += a * torch.cos(2 * math.pi * (sum(ki * x for ki, x in zip(k, axes)) + b))
        return total.to(dtype)

    return on


@pytest.mark.parametrize("fine", [16, 17, 24, 31, 64])
@pytest.mark.parametrize("coarse", [13, 16])
def test_resampling_is_exact_on_fields_that_both_grids_resolve(coarse, fine):
    on = band_limited((coarse,), 6)
    torch.testing.assert_close(data.resample(on((coarse,)), (fine,)), on((fine,)), atol=1e-13, rtol=0)
    torch.testing.assert_close(data.resample(on((fine,)), (coarse,)), on((coarse,)), atol=1e-13, rtol=0)


def test_resampling_in_two_dimensions_and_in_float32():
    on = band_limited((16, 12), 5, dtype=torch.float32)
    out = data.resample(on((16, 12)).expand(2, 3, 16, 12), (32, 20))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, on((32, 20)).expand(2, 3, 32, 20), atol=2e-6, rtol=0)


@pytest.mark.parametrize("n", [8, 9])
def test_a_finer_grid_and_back_is_the_identity_even_for_white_noise(n):
    white = frames(4, n).double()
    torch.testing.assert_close(data.resample(data.resample(white, (3 * n,)), (n,)), white, atol=1e-14, rtol=0)


def test_cutting_off_modes_keeps_the_others():
    """cos(3x) + cos(11x) on 32 points: 16 points carry the first alone, without an alias of the second."""
    def on(n, *waves):
        return sum(torch.cos(2 * math.pi * k * torch.arange(n, dtype=torch.float64) / n) for k in waves)

    torch.testing.assert_close(data.resample(on(32, 3, 11), (16,)), on(16, 3), atol=1e-14, rtol=0)
    assert not torch.allclose(on(32, 3, 11)[::2], on(16, 3), atol=1e-3)


def test_datasets_carry_frames_grid_clock_and_units_and_give_them_back_bit_for_bit():
    u = frames(5, 2, 8, 12)
    ds = data.to_dataset(u, interval=0.25, extent=(4.0, 6.0), fields=("u", "p"), units=("m s-1", "Pa"),
                         attrs={"equation": {"name": "ks", "viscosity": 0.5}}, time_unit="s", space_unit="m")
    assert dict(ds.sizes) == {"time": 5, "y": 8, "x": 12} and ds["p"].dims == ("time", "y", "x")
    assert ds["u"].attrs["units"] == "m s-1" and ds["x"].attrs["units"] == "m" and ds["time"].attrs["units"] == "s"
    assert float(ds["x"][1]) == 0.5 and float(ds["y"][1]) == 0.5 and float(ds["time"][-1]) == 1.0
    back, times, extent, attrs = data.from_dataset(ds)
    assert torch.equal(back, u) and extent == (4.0, 6.0) and attrs["dt"] == 0.25 and attrs["dx"] == 0.5
    assert torch.equal(times, 0.25 * torch.arange(5, dtype=torch.float64))
    assert torch.equal(data.from_dataset(ds, ("p",))[0], u[:, 1:])
    about = data.describe(ds)
    assert about == data.About({"name": "ks", "viscosity": 0.5}, ("u", "p"), ("m s-1", "Pa"), (8, 12), (4.0, 6.0), 0.25,
                               "s", "m")


def test_ensembles_have_members_first_and_a_reference_without_them():
    u, truth = frames(3, 5, 1, 8), frames(5, 1, 8, seed=1)
    ds = data.to_dataset(u, interval=0.8, extent=(22.0,), truth=truth)
    assert ds["u"].dims == ("member", "time", "x") and ds["u_true"].dims == ("time", "x")
    assert torch.equal(data.from_dataset(ds)[0], u) and data.field_names(ds) == ("u",)
    assert torch.equal(data.from_dataset(ds, ["u_true"])[0], truth)
    assert data.stacked([ds, ds], ("u",)).shape == (6, 5, 1, 8)


def test_stacking_wants_one_grid_and_one_length():
    long, short = (data.to_dataset(frames(n, 1, 8), interval=1.0, extent=(1.0,)) for n in (5, 4))
    with pytest.raises(UsageError, match="number of frames: 5 and 4"):
        data.stacked([long, short], ("u",))
    with pytest.raises(UsageError, match="number of points"):
        data.stacked([long, data.to_dataset(frames(5, 1, 9), interval=1.0, extent=(1.0,))], ("u",))
    with pytest.raises(UsageError, match="no variable 'v'"):
        data.stacked([long], ("v",))


def test_what_cannot_be_a_trajectory_is_refused():
    with pytest.raises(UsageError, match="lengths of its box"):
        data.to_dataset(frames(5, 1, 8), interval=1.0)
    with pytest.raises(UsageError, match="not \\[frames, 2 fields, x\\]"):
        data.to_dataset(frames(5, 1, 8), interval=1.0, extent=(1.0,), fields=("u", "v"))
    with pytest.raises(UsageError, match="single frame"):
        data.describe(data.to_dataset(frames(1, 1, 8), extent=(1.0,)))
    with pytest.raises(UsageError, match="holds no field"):
        data.describe(xarray.Dataset({"a": ("time", np.arange(3.0))}))


def test_verdicts_say_when_and_what():
    u = frames(3, 6, 1, 8).clamp(-1, 1)
    assert data.verdict(data.to_dataset(u, interval=0.5, extent=(1.0,)), ("u",), [1.0]).valid
    u[1, 4, 0, 2] = 5.0
    blown = data.verdict(data.to_dataset(u, interval=0.5, extent=(1.0,)), ("u",), [3.0])
    assert not blown.valid and blown.reason == "|u| reaches 5 at time 2; the limit is 3"
    assert data.verdict(data.to_dataset(u, interval=0.5, extent=(1.0,)), ("u",)).valid
    u[2, 3:] = math.nan
    broken = data.verdict(data.to_dataset(u, interval=0.5, extent=(1.0,)), ("u",), [3.0])
    assert not broken.valid and broken.reason == "u is not finite from time 1.5 on"
    assert not data.verdict(data.to_dataset(u, interval=0.5, extent=(1.0,)), ("w",)).valid


def test_rows_measure_the_field_with_units_in_their_names():
    x = torch.arange(16) / 16
    u = (2.0 * torch.sin(2 * math.pi * x)).expand(3, 1, 16)
    row = data.row(data.to_dataset(u, interval=0.5, extent=(1.0,), units=("m s-1",)), ("u",))
    assert row == {"frames": 3, "members": 1, "time_end": 1.0, "u_rms_m_s-1": 1.414, "u_largest_m_s-1": 2.0}


# -- files


def test_one_file_holds_all_trajectories_with_units_and_comes_back_bit_for_bit(tmp_path):
    us, truths = frames(3, 2, 5, 1, 8), frames(3, 5, 1, 8, seed=1)
    objects = [data.to_dataset(u, interval=0.8, extent=(22.0,), truth=t, units=("m s-1",), time_unit="s",
                               attrs={"equation": {"name": "ks", "viscosity": 1.0}, "viscosity": 1.0 + i, "ok": True})
               for i, (u, t) in enumerate(zip(us, truths))]
    (file,) = data.write_netcdf(samples(objects, [Verdict(True), Verdict(False, "u is not finite"), Verdict(True)]),
                                tmp_path)
    assert file == tmp_path / "rollout.nc" and list(tmp_path.iterdir()) == [file]
    with xarray.open_dataset(file, engine="h5netcdf", decode_timedelta=False) as ds:
        assert ds["u"].dims == ("trajectory", "member", "time", "x") and ds["u"].dtype == np.float32
        assert ds["u_true"].dims == ("trajectory", "time", "x")
        assert ds["u"].attrs == {"units": "m s-1", "long_name": "u"} and ds["time"].attrs["units"] == "s"
        assert ds["time"].attrs["axis"] == "T" and ds["x"].attrs["axis"] == "X"
        assert ds.attrs["Conventions"].startswith("CF-1.") and ds.attrs["seed"] == 7 and ds.attrs["ok"] == 1
        assert json.loads(ds.attrs["equation"]) == {"name": "ks", "viscosity": 1.0}
        assert ds["viscosity"].values.tolist() == [1.0, 2.0, 3.0] and ds["valid"].values.tolist() == [1, 0, 1]
        assert [str(i) for i in ds["id"].values] == ["s0000", "s0001", "s0002"]
        np.testing.assert_array_equal(ds["u"].values, us[:, :, :, 0].numpy())
    records = read(tmp_path)
    assert records.names == ["s0000", "s0001", "s0002"] and not records.rejected
    for i, back in enumerate(records.objects):
        assert torch.equal(data.from_dataset(back)[0], us[i])
        assert torch.equal(data.from_dataset(back, ["u_true"])[0], truths[i])
        assert back.attrs["viscosity"] == 1.0 + i and back.attrs["extent"] == [22.0]
        assert data.describe(back).equation == {"name": "ks", "viscosity": 1.0}
        assert data.describe(back).time_unit == "s" and data.describe(back).units == ("m s-1",)


def test_numbers_lie_compressed_in_blocks_and_strings_as_characters(tmp_path):
    smooth = torch.zeros(1, 40, 1, 64, 64)
    objects = [data.to_dataset(u, interval=1.0, extent=(1.0, 1.0)) for u in smooth]
    (file,) = data.write_netcdf(samples(objects), tmp_path)
    assert file.stat().st_size < 0.1 * smooth.numel() * 4
    with h5py.File(file) as raw:
        assert raw["u"].compression == "gzip" and raw["u"].chunks == (1, 40, 64, 64)
        assert raw["id"].dtype == "S1" and raw["x"].dtype == np.float64


def test_trajectories_of_different_boxes_have_a_file_each(tmp_path):
    objects = [data.to_dataset(frames(5, 1, 8), interval=0.5, extent=(20.0 + i,)) for i in range(2)]
    files = data.write_netcdf(samples(objects), tmp_path)
    assert [f.name for f in files] == ["s0000.nc", "s0001.nc"]
    assert [r.attrs["extent"] for r in read(tmp_path).objects] == [[20.0], [21.0]]
    assert [f.name for f in data.write_netcdf(samples(objects[:1]), tmp_path / "one", single=True)] == ["s0000.nc"]
    assert data.write_netcdf(samples([]), tmp_path / "none") == []


def test_blown_up_members_keep_their_good_frames_in_the_file(tmp_path):
    u = frames(2, 6, 1, 8)
    u[1, 3:] = math.nan
    data.write_netcdf(samples([data.to_dataset(u, interval=0.8, extent=(22.0,))], [Verdict(False, "u")]), tmp_path)
    (back,) = read(tmp_path).objects
    torch.testing.assert_close(data.from_dataset(back)[0], u, equal_nan=True, atol=0, rtol=0)
    assert read(tmp_path, invalid="reject").rejected[0].reason == "u holds 24 values that are not finite"


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    objects = [data.to_dataset(frames(5, 1, 8), interval=0.5, extent=(20.0,))]
    data.write_netcdf(samples(objects), tmp_path)
    before = (tmp_path / "rollout.nc").read_bytes()

    def breaks(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xarray.Dataset, "to_netcdf", breaks)
    with pytest.raises(ScidiffError, match="no space left"):
        data.write_netcdf(samples(objects), tmp_path)
    assert (tmp_path / "rollout.nc").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("absent", ["xarray", "h5netcdf"])
def test_missing_libraries_are_named_with_their_remedy(absent, tmp_path, monkeypatch):
    ds = data.to_dataset(frames(5, 1, 8), interval=0.5, extent=(20.0,))
    monkeypatch.setitem(__import__("sys").modules, absent, None)
    if absent == "xarray":
        with pytest.raises(MissingLibrary, match="pip install xarray"):
            data.to_dataset(frames(5, 1, 8), interval=0.5, extent=(20.0,))
    else:
        with pytest.raises(MissingLibrary, match="pip install h5netcdf"):
            data.save(ds, tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


def test_unknown_readers_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no reader 'equatoin'. Did you mean 'equation'"):
        data.dataset({}, "equatoin", {})
