"""Fields as users write them to files: smooth, periodic, repeatable. Run by the tests that read them."""

from __future__ import annotations

import numpy as np
import xarray

L = 22.0


def wave(frames, n, seed=0, count=None):
    """Smooth periodic trajectories [frames, n] or [count, frames, n], float32."""
    rng = np.random.default_rng(seed)
    lead = (count,) if count else ()
    a, b = rng.normal(size=(2, 3, *lead, 1, 1))
    t, x = np.arange(frames)[:, None], 2 * np.pi * np.arange(n) / n
    return sum(a[k] * np.sin((k + 1) * x + b[k] * t + b[k]) for k in range(3)).astype(np.float32)


def plane(frames, ny, nx, seed=0, count=None):
    """Smooth periodic trajectories [..., frames, ny, nx]."""
    one, two = wave(frames, nx, seed, count), wave(frames, ny, seed + 1, count)
    return (one[..., None, :] * two[..., :, None]).astype(np.float32)


def plain(u, x=None, t=None, name="u", dims=("time", "x")):
    """A Dataset as a user writes one."""
    n = u.shape[-1]
    coords = {"x": np.arange(n) * (L / n) if x is None else x}
    if "time" in dims:
        coords["time"] = 0.5 * np.arange(u.shape[dims.index("time")]) if t is None else t
    return xarray.Dataset({name: (dims, u)}, {k: v for k, v in coords.items() if k in dims and v is not False})


def save(ds, path, **more):
    ds.to_netcdf(path, **{"engine": "h5netcdf", **more})
    return path
