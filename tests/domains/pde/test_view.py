"""Pictures: what is drawn of which trajectories, from which numbers, and that everything can be drawn at all."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

pytest.importorskip("xarray", reason="the pde domain needs xarray")
pytest.importorskip("matplotlib", reason="pictures need matplotlib")

from scidiff.domains.base import Verdict, sample_id
from scidiff.domains.pde import skill
from scidiff.domains.pde.data import to_dataset
from scidiff.domains.pde.shown import ERROR, FIELD, SPREAD, Axis, Forecasts, exponent_of, lost_at, rows_of
from scidiff.domains.pde.view import pictures

FRAMES, INTERVAL = 13, 0.8


def waves(*lead, shape=(32,), seed=0):
    """Smooth periodic fields [*lead, *shape]."""
    g = torch.Generator().manual_seed(seed)
    hat = torch.zeros(*lead, *shape, dtype=torch.complex64)
    corner = (..., *(slice(0, 4),) * len(shape))
    hat[corner] = torch.randn(hat[corner].shape, generator=g, dtype=torch.complex64)
    out = torch.fft.ifftn(hat, dim=tuple(range(-len(shape), 0)), norm="forward").real
    return out - out.mean(tuple(range(-len(shape), 0)), keepdim=True)


def rollouts(count=5, members=4, shape=(32,), truth=True, fields=("u",), **attrs):
    """Forecasts whose error grows from nothing to everything."""
    growth = torch.linspace(0.0, 1.5, FRAMES).view(1, 1, FRAMES, *[1] * (1 + len(shape)))
    true = waves(count, FRAMES, len(fields), shape=shape)
    noise = waves(count, members or 1, FRAMES, len(fields), shape=shape, seed=1)
    frames = true.unsqueeze(1) + growth * noise
    frames = frames if members else frames[:, 0]
    about = {"equation": {"name": "ks", "viscosity": 1.0}, **attrs}
    return [to_dataset(frames[i], interval=INTERVAL, extent=(22.0,) * len(shape), fields=fields, attrs=about,
                       truth=true[i] if truth else None) for i in range(count)]


def draw(objects):
    names = [sample_id(i) for i in range(len(objects))]
    return pictures(objects, [Verdict(True)] * len(objects), names)


def check(out):
    """PNG of a readable width or SVG, small enough for a report."""
    for caption, content in out.items():
        assert caption and not caption.endswith(".")
        if isinstance(content, bytes):
            assert content.startswith(b"\x89PNG")
            width, height = struct.unpack(">II", content[16:24])
            assert 400 <= width <= 1400 and 200 <= height <= 2200, (width, height)
        else:
            assert content.startswith("<svg") and content.rstrip().endswith("</svg>")
    assert sum(len(c) for c in out.values()) < 2_000_000


def test_forecasts_with_a_reference_get_every_picture():
    out = draw(rollouts())
    check(out)
    first, second, correlation, spectra, calibration = out
    assert first == "s0000: reference solution, one of 4 members, their mean and spread, error of that member"
    assert second.startswith("s0001: ")
    assert correlation.startswith("Correlation with the reference solution over time, mean over 5 trajectories; band")
    assert spectra.startswith("Energy spectra after 1 and 12 steps")
    assert calibration.startswith("Calibration of 4 members over 5 trajectories: spread beside skill; ranks of the "
                                  "reference among the members up to 9.6 time units")
    assert [isinstance(c, bytes) for c in out.values()] == [True, True, False, False, False]


def test_the_same_numbers_give_the_same_bytes():
    assert draw(rollouts(count=1, members=1)) == draw(rollouts(count=1, members=1))


@pytest.mark.parametrize("more, kinds", [
    ({"members": 1, "count": 1}, ["png", "svg", "svg"]),
    ({"members": None, "count": 2}, ["png", "png", "svg", "svg"]),
    ({"truth": False, "count": 1}, ["png", "svg"]),
    ({"truth": False, "members": 1, "count": 1}, ["png"]),
    ({"truth": False, "members": None}, ["png"] * 4),
    ({"shape": (12, 16), "fields": ("vorticity",), "count": 1}, ["png", "svg", "svg", "svg"]),
    ({"shape": (12, 16), "truth": False, "members": None, "fields": ("u", "v"), "count": 1}, ["png"]),
    ({"shape": (6, 8, 8), "count": 1, "members": 1}, ["png", "svg", "svg"]),
])
def test_everything_can_be_drawn(more, kinds):
    out = draw(rollouts(**more))
    check(out)
    assert ["png" if isinstance(c, bytes) else "svg" for c in out.values()] == kinds


def test_members_that_blew_up_are_grey_and_the_others_are_drawn():
    objects = rollouts(count=3)
    objects[0]["u"].values[1, 5:] = np.nan
    objects[2]["u"].values[:, 3:] = np.nan
    out = draw(objects)
    check(out)
    assert "(grey: blown up)" in next(iter(out)) and "Calibration of 4 members" in list(out)[-1]
    objects[0]["u"].values[:, 1:] = np.nan
    out = draw(objects[:1])
    check(out)
    assert len(out) == 2, "nothing stayed finite: no spectra, no calibration"


def test_nothing_to_draw():
    assert draw([]) == {}
    single = to_dataset(waves(1, 1), interval=INTERVAL, extent=(22.0,))
    check(draw([single]))


def test_long_rollouts_stay_small():
    frames = waves(1, 1).expand(4001, 1, 32)
    out = draw([to_dataset(frames.unsqueeze(0), interval=INTERVAL, extent=(22.0,), truth=frames)])
    check(out)


# -- the numbers behind


def test_the_rows_of_a_picture_are_moments_of_the_members():
    ds = rollouts(count=1)[0]
    u, true = ds["u"].values, ds["u_true"].values
    rows = {row.title: row for row in rows_of(ds, "u")}
    assert [row.kind for row in rows.values()] == [FIELD, FIELD, FIELD, SPREAD, ERROR]
    np.testing.assert_array_equal(rows["reference solution"].values, true)
    np.testing.assert_array_equal(rows["error: one member minus reference"].values, u[0] - true)
    np.testing.assert_allclose(rows["mean of 4 members"].values, u.mean(0), atol=1e-6)
    np.testing.assert_allclose(rows["spread (standard deviation)"].values, u.std(0, ddof=1), atol=1e-6)


def test_means_are_taken_over_the_members_that_are_left():
    ds = rollouts(count=1)[0]
    u = ds["u"].values
    u[1, 5:], u[2, 8:], u[3, 10:] = np.nan, np.nan, np.nan
    rows = {row.title: row.values for row in rows_of(ds, "u")}
    mean, spread = rows["mean of 4 members"], rows["spread (standard deviation)"]
    np.testing.assert_allclose(mean[6], u[[0, 2, 3], 6].mean(0), atol=1e-6)
    np.testing.assert_allclose(spread[9], u[[0, 3], 9].std(0, ddof=1), atol=1e-6)
    assert np.isnan(mean[10:]).all() and np.isnan(spread[10:]).all(), "one member has no mean and no spread"


def test_the_mark_stands_where_the_member_loses_the_truth():
    ds = rollouts(count=1)[0]
    corr = [np.corrcoef(a, b)[0, 1] for a, b in zip(ds["u"].values[0], ds["u_true"].values, strict=True)]
    first = next(n for n, c in enumerate(corr) if c <= 0.8)
    assert 2 < first < FRAMES and lost_at(ds, "u") == pytest.approx(INTERVAL * (first - 1))
    ds["u"].values[0] = ds["u_true"].values
    assert lost_at(ds, "u") is None and lost_at(rollouts(truth=False)[0], "u") is None


def test_forecasts_leave_out_the_first_state_and_other_shapes():
    objects = [*rollouts(count=3), *rollouts(count=1, members=2)]
    f = Forecasts.of(objects)
    assert f.predicted.shape == (3, 4, FRAMES - 1, 1, 32) and f.truth.shape == (3, FRAMES - 1, 1, 32)
    np.testing.assert_array_equal(f.initial[1, 0].numpy(), objects[1]["u"].values[0, 0])
    assert f.interval == pytest.approx(INTERVAL) and f.members == 4 and f.lead == FRAMES - 1
    assert f.times.tolist() == pytest.approx([INTERVAL * n for n in range(1, FRAMES)])
    corr = skill.correlations(f.predicted, f.truth).mean((0, 1))
    assert float(corr[0]) > 0.95 > float(corr[-1])


def test_clocks_and_axes():
    ds = rollouts(count=1)[0]
    assert Axis.of(ds, "time").label == "time (time units)" and Axis.of(ds, "x").label == "x"
    assert exponent_of(ds) == pytest.approx(0.048)
    assert exponent_of(rollouts(count=1, equation={"name": "burgers"})[0]) is None
    assert exponent_of(rollouts(count=1, equation="unreadable")[0]) is None
    timed = to_dataset(waves(3, 1), interval=0.5, extent=(2.0,), fields=("T",), units=("K",), time_unit="s",
                       space_unit="m")
    assert [Axis.of(timed, n).label for n in ("time", "x", "T")] == ["time (s)", "x (m)", "T (K)"]
