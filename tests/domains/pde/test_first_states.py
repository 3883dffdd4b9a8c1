"""First states of a rollout from a file: the right frames on the right grid, or one sentence."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.domains.pde import data
from scidiff.domains.pde.readers import init_state

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")

made = runpy.run_path(str(Path(__file__).with_name("user_fields.py")))
L, wave, plane, plain, save = (made[name] for name in ("L", "wave", "plane", "plain", "save"))


def twisted(step):
    x = np.arange(16) * L / 16
    x[5] += step * L / 16
    return x


def repeated(u):
    return np.concatenate([u, u[:, :1]], 1)


NAN = wave(6, 16)
NAN[3, 4] = math.nan
RAMP = np.linspace(0, 1, 16, dtype=np.float32)[None] + np.zeros((6, 1), np.float32)


def test_first_states_are_the_last_frames_of_a_file(tmp_path):
    u = wave(9, 16)
    file = save(plain(u), tmp_path / "s.nc")
    state = init_state(file, ("u",), (16,), (L,), 2)
    assert state.shape == (1, 2, 1, 16) and state.dtype == torch.float32
    np.testing.assert_array_equal(state[0, :, 0], u[-2:])
    np.testing.assert_array_equal(init_state(file, ("u",), (16,), (L,), 3, interval=1.0)[0, :, 0], u[[4, 6, 8]])
    np.testing.assert_array_equal(init_state(file, ("u",), (16,), (L,), at=3)[0, :, 0], u[3:4])
    snapshot = save(plain(u[4], dims=("x",)), tmp_path / "one.nc")
    np.testing.assert_array_equal(init_state(snapshot, ("u",), (16,), (L,))[0, :, 0], u[4:5])


def test_every_trajectory_and_member_is_a_first_state(tmp_path):
    u = np.stack([wave(5, 16, s, 3) for s in range(2)])  # [trajectory, member, time, x]
    ds = plain(u, dims=("trajectory", "member", "time", "x"))
    state = init_state(save(ds, tmp_path / "s.nc"), ("u",), (16,), (L,))
    np.testing.assert_array_equal(state[:, 0, 0], u.reshape(6, 5, 16)[:, -1])


def test_first_states_on_another_grid_are_resampled_when_asked(tmp_path):
    u = wave(3, 16)
    file = save(plain(u), tmp_path / "s.nc")
    with pytest.raises(UsageError, match=r"s.nc has 16 points, the model 32. Resample it .* with resample=true"):
        init_state(file, ("u",), (32,), (L,))
    fine = init_state(file, ("u",), (32,), (L,), resample=True)
    np.testing.assert_allclose(fine[0, 0, 0, ::2], u[-1], atol=2e-6)
    torch.testing.assert_close(fine[0], data.resample(torch.from_numpy(u)[-1:, None], (32,)))


@pytest.mark.parametrize(("ds", "options", "words"), [
    (plain(NAN[3:4]), {}, "s.nc: u holds 1 values that are not finite"),
    (plain(wave(6, 16), x=twisted(0.1)), {}, "s.nc: the grid is not uniform: .* Interpolate to equal steps first"),
    (plain(repeated(wave(6, 15)), x=np.linspace(0, L, 16)), {},
     "the last point of x repeats the first: both ends of the period are stored. Leave it out with drop_endpoint=true"),
    (plain(RAMP), {}, "does not look periodic in x.* If it is, say boundary=periodic"),
    (plain(wave(6, 16)), {"extent": (64.0,)}, "covers a length of 22 in x, but the model was trained on a box of 64"),
    (plain(wave(6, 16), name="velocity"), {}, "has no variable 'u'. Available: velocity"),
    (plain(wave(2, 16)), {"history": 3}, "needs a history of 3 frames, 3 in the file .* has 2"),
    (plain(wave(5, 16)), {"history": 3, "interval": 1.5}, "needs a history of 3 frames, 7 in the file"),
    (plain(wave(5, 16)), {"history": 2, "interval": 0.7}, "lie 0.5 apart, and the model's step of 0.7 is no multiple"),
    (plain(plane(4, 8, 16), dims=("time", "y", "x")).assign_coords(y=np.arange(8.0)), {},
     "has 2 axes of space, the model has 1"),
    (plain(wave(5, 16)), {"at": 5}, "has no frame 5: it holds 5"),
    (plain(wave(5, 16)), {"windows": 5}, "no option 'windows'"),
], ids=lambda v: v[:20] if isinstance(v, str) else "")
def test_unusable_first_states_are_one_sentence(tmp_path, ds, options, words):
    settings = {"fields": ("u",), "shape": (16,), "extent": (L,), **options}
    with pytest.raises(UsageError, match=words):
        init_state(save(ds, tmp_path / "s.nc"), **settings)
