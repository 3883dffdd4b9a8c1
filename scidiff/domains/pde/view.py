"""Pictures of trajectories and forecasts: fields in space and time, correlation, spectra, calibration.

Colours tell the same everywhere: black the truth, blue one member, orange the mean of the members, green their spread.
Fields that change sign are drawn on one diverging scale, which the error shares; others on a sequential one. Grey is
where a member has blown up. Images are PNG, curves SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scidiff.domains.base import Verdict
from scidiff.domains.pde import ensemble, skill, spectra
from scidiff.domains.pde.data import TRUTH, axes_of, extent_of, field_names
from scidiff.domains.pde.shown import ERROR, FIELD, SPREAD, Axis, Forecasts, Row, exponent_of, lost_at, rows_of, told
from scidiff.domains.pictures import png, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from xarray import Dataset

TRUE, MEMBER, MEAN, OTHERS, PALE = "#000000", "#0072b2", "#d55e00", "#009e73", "#8c8c8c"
SIGNED, SIZED, LOST = "RdBu_r", "viridis", "#c4c4c4"
STEPS = (1, 40, 160)
"""After these steps the spectra are drawn."""
_FORECASTS, _PLAIN, _FRAMES, _COLUMNS = 2, 4, 5, 1400
_WIDTH, _LEFT, _RIGHT, _TITLE = 10.5, 0.6, 1.0, 0.28  # inches
_STYLE = {"svg.hashsalt": "scidiff", "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left",
          "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6}


def pictures(objects: Sequence[Dataset], verdicts: Sequence[Verdict], ids: Sequence[str]) -> dict[str, str | bytes]:
    """Caption -> picture: the first trajectories, and the curves over all where they are forecasts."""
    import matplotlib

    if not objects or not field_names(objects[0]):
        return {}
    out: dict[str, str | bytes] = {}
    field = field_names(objects[0])[0]
    forecasts = "member" in objects[0].sizes or field + TRUTH in objects[0].data_vars
    with matplotlib.rc_context(_STYLE):
        for ds, name in list(zip(objects, ids, strict=True))[: _FORECASTS if forecasts else _PLAIN]:
            line = len(axes_of(ds, field)) == 1 and ds.sizes["time"] > 1
            out[f"{name}: {told(ds, field)}"] = _space_time(ds, field) if line else _snapshots(ds, field)
        if forecasts and objects[0].sizes["time"] > 1:
            out.update(_curves(Forecasts.of(objects)))
    return out


# -- fields


def _scales(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """imshow's colour settings for every kind of row; the error shares the field's where that is symmetric."""
    import matplotlib

    signed, sized = (matplotlib.colormaps[n].with_extremes(bad=LOST) for n in (SIGNED, SIZED))
    out: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        first = next(row.values for row in rows if row.kind == kind)  # of fields the truth, which is never wild
        finite = first[np.isfinite(first)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        largest = max(abs(low), abs(high)) or 1.0
        if kind == ERROR and out[FIELD]["vmin"] < 0.0:
            out[kind] = out[FIELD]
        elif kind == ERROR or (kind == FIELD and low < 0.0 < high):
            out[kind] = {"cmap": signed, "vmin": -largest, "vmax": largest}
        else:
            out[kind] = {"cmap": sized, "vmin": 0.0 if kind == SPREAD else low, "vmax": high if high > low else low + 1}
    return out


def _stack(count: int, tall: float, below: float, wide: float = _WIDTH) -> tuple[Figure, list[Axes]]:
    """Panels of `tall` inches above each other, a title's height apart. Placed by hand: that is three times as fast."""
    from matplotlib.figure import Figure

    high = below + count * (tall + _TITLE)
    figure = Figure(figsize=(wide, high))
    width = (wide - _LEFT - _RIGHT) / wide
    panels = [figure.add_axes((_LEFT / wide, (below + (count - 1 - i) * (tall + _TITLE)) / high, width, tall / high))
              for i in range(count)]
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    return figure, panels


def _bars(figure: Figure, images: dict[str, tuple[Any, list[Axes]]], scales: dict[str, Any], unknown: Axis) -> None:
    """One colour bar for every scale, beside the rows that it belongs to."""
    for kind, (image, panels) in images.items():
        if kind == ERROR and scales[ERROR] is scales[FIELD]:
            continue
        top, low = panels[0].get_position(), panels[-1].get_position()
        wide = figure.get_figwidth()
        place = figure.add_axes((top.x1 + 0.12 / wide, low.y0, 0.14 / wide, top.y1 - low.y0))
        figure.colorbar(image, cax=place, label=unknown.label if kind == FIELD else Axis(kind, unknown.unit).label)


def _space_time(ds: Dataset, field: str) -> bytes:
    """Space upwards, time to the right: every row on the same axes."""
    rows, exponent = rows_of(ds, field), exponent_of(ds)
    scales, times, (name,) = _scales(rows), ds["time"].values, axes_of(ds, field)
    every = max(-(-len(times) // _COLUMNS), 1)
    half = 0.5 * float(times[1] - times[0])
    box = (float(times[0]) - half, float(times[-1]) + half, 0.0, extent_of(ds, (name,))[0])
    figure, panels = _stack(len(rows), 1.05, 1.0 if exponent else 0.45)
    images: dict[str, tuple[Any, list[Axes]]] = {}
    for panel, row in zip(panels, rows, strict=True):
        image = panel.imshow(row.values[::every].T, aspect="auto", origin="lower", extent=box, interpolation="nearest",
                             **scales[row.kind])
        panel.set_title(row.title, pad=3)
        panel.set_ylabel(Axis.of(ds, name).label)
        images.setdefault(row.kind, (image, []))[1].append(panel)
    when = lost_at(ds, field)
    if when is not None:
        for panel, row in zip(panels, rows, strict=True):
            if row.kind != SPREAD:
                panel.axvline(when, color="black", linestyle=(0, (4, 3)), linewidth=1.1)
        panels[-1].annotate(f"correlation 0.8 at {when:g}", (when, 0.05), (4, 0), xycoords=("data", "axes fraction"),
                            textcoords="offset points", fontsize=8, annotation_clip=False,
                            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5})
    panels[-1].set_xlabel(Axis.of(ds, "time").label, labelpad=1)
    _lyapunov(panels[-1], exponent, -0.45)
    _bars(figure, images, scales, Axis.of(ds, field))
    return png(figure, 120)


def _lyapunov(panel: Axes, exponent: float | None, place: float) -> None:
    """A second clock below a panel, in Lyapunov times."""
    if exponent:
        below = panel.secondary_xaxis(place, functions=(lambda t: t * exponent, lambda n: n / exponent))
        below.set_xlabel(f"Lyapunov times of {1 / exponent:.3g} units", fontsize=8, labelpad=1)
        below.tick_params(labelsize=8)


def _snapshots(ds: Dataset, field: str) -> bytes:
    """Fields at several times side by side, one row for each kind; of three dimensions the middle plane."""
    axes, times = axes_of(ds, field), ds["time"].values
    if len(axes) == 1:
        return _profile(ds, field)
    rows = [r if len(axes) == 2 else Row(r.title, r.values[:, r.values.shape[1] // 2], r.kind)
            for r in rows_of(ds, field)]
    scales, last = _scales(rows), len(times) - 1
    begin = 1.0 / _FRAMES if len(rows) > 1 else 0.0  # forecasts begin with the truth: there is nothing to compare
    shown = sorted({round(last * share) for share in np.linspace(begin, 1.0, min(_FRAMES, last + 1))})
    height, width = extent_of(ds, axes)[-2:]
    pitch, each = 1.06 * width, (_WIDTH - _LEFT - _RIGHT) / (1.06 * _FRAMES - 0.06)  # inches of one frame
    tall = each * min(height / width, 1.5)
    figure, panels = _stack(len(rows), tall, 0.55, _LEFT + _RIGHT + each * (1.06 * len(shown) - 0.06))
    images: dict[str, tuple[Any, list[Axes]]] = {}
    for panel, row in zip(panels, rows, strict=True):
        for place, step in enumerate(shown):
            image = panel.imshow(row.values[step], origin="lower", interpolation="nearest", aspect="auto",
                                 extent=(place * pitch, place * pitch + width, 0.0, height), **scales[row.kind])
        images.setdefault(row.kind, (image, []))[1].append(panel)
        panel.set(xlim=(0.0, len(shown) * pitch - 0.06 * width), ylim=(0.0, height))
        panel.set_title(row.title, pad=3)
        panel.set_ylabel(Axis.of(ds, axes[-2]).label)
        panel.spines[:].set_visible(False)
        panel.tick_params(axis="x", length=0)
        panel.set_xticks([place * pitch + 0.5 * width for place in range(len(shown))],
                         [f"{times[step]:.4g} {Axis.of(ds, 'time').unit}" for step in shown])
    panels[-1].set_xlabel(f"{Axis.of(ds, axes[-1]).label}, a box of {width:.4g}")
    _bars(figure, images, scales, Axis.of(ds, field))
    return png(figure, 120)


def _profile(ds: Dataset, field: str) -> bytes:
    """A single frame of a field on a line."""
    from matplotlib.figure import Figure

    (name,) = axes_of(ds, field)
    figure = Figure(figsize=(_WIDTH, 2.6))
    panel = figure.add_axes((0.06, 0.2, 0.93, 0.76))
    for row in rows_of(ds, field):
        panel.plot(ds[name].values, row.values[0], label=row.title)
    panel.set(xlabel=Axis.of(ds, name).label, ylabel=Axis.of(ds, field).label)
    panel.legend()
    return png(figure, 120)


# -- curves


def _curves(f: Forecasts) -> dict[str, str | bytes]:
    count, out = len(f.predicted), {}
    over = "one trajectory" if count == 1 else f"{count} trajectories"
    if f.truth is None:
        if f.members > 1:
            out[f"Correlation of the members with each other, mean over {over}"] = _correlation(f)
        return out
    band = "; band: 10 to 90 % of all members and trajectories" if count * f.members > 1 else ""
    out[f"Correlation with the reference solution over time, mean over {over}{band}"] = _correlation(f)
    predicted, truth = f.sound()
    if len(truth):
        steps = sorted({min(s, truth.shape[1]) for s in STEPS})
        said = " and ".join(filter(None, (", ".join(map(str, steps[:-1])), str(steps[-1]))))
        out[f"Energy spectra after {said} step{'s' * (steps[-1] > 1)}, mean over trajectories that stayed finite"] = (
            _spectra(f, predicted, truth, steps))
        if f.members > 1:
            out[f"Calibration of {f.members} members over {over}: spread beside skill; ranks of the reference among "
                f"the members up to {f.lead * f.interval:g} {f.clock.unit} (flat is right); when the members part, "
                "beside when they leave the reference (correlation 0.8)"] = _calibration(f, predicted, truth)
    return out


def _correlation(f: Forecasts) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.1))
    panel = figure.add_axes((0.06, 0.25 if f.exponent else 0.13, 0.925, 0.66 if f.exponent else 0.78))
    times, horizon = np.concatenate([[0.0], f.times]), float(f.times[-1])

    def whole(values: Any) -> np.ndarray:
        return np.concatenate([[1.0], np.asarray(values)])

    if f.truth is not None:
        corr = skill.correlations(f.predicted, f.truth)
        mean = corr.mean((0, 1))
        if len(corr.flatten(0, 1)) > 1:
            low, high = corr.flatten(0, 1).quantile(torch.tensor([0.1, 0.9], dtype=corr.dtype), 0)
            panel.fill_between(times, whole(low), whole(high), color=MEMBER, alpha=0.18, linewidth=0)
        panel.plot(times, whole(mean), color=MEMBER, linewidth=2.2, label="one member" if f.members > 1 else "forecast")
        if f.members > 1:
            panel.plot(times, whole(ensemble.mean_correlation(f.predicted, f.truth).mean(0)), color=MEAN,
                       label=f"mean of {f.members} members")
        still = f.initial[:, None, None].expand(-1, 1, len(f.times), *f.initial.shape[1:])
        panel.plot(times, whole(skill.correlations(still, f.truth).mean((0, 1))), color=PALE, linestyle=":",
                   label="persistence")
        for level in (0.9, 0.8):
            when = f.interval * int(skill.crossing(mean, level))
            if when < horizon * (1.0 - 1e-9):
                panel.plot([when], [level], marker="o", markersize=5, color=MEMBER)
                panel.annotate(f"{when:g}", (when, level), (6, 3), textcoords="offset points", color=MEMBER)
    if f.members > 1:
        panel.plot(times, whole(ensemble.pairwise_correlation(f.predicted).mean(0)), color=OTHERS, linestyle="--",
                   label="members with each other")
    for level in (0.8, 0.9):
        panel.axhline(level, color=PALE, linewidth=0.8, zorder=0)
    panel.set(xlim=(0.0, horizon), ylim=(min(0.0, *panel.get_ylim()), 1.04), xlabel=f.clock.label, ylabel="correlation")
    panel.spines[["right", "top"]].set_visible(False)
    _lyapunov(panel, f.exponent, -0.18)
    figure.legend(*panel.get_legend_handles_labels(), loc="upper center", ncols=4)
    return svg(figure)


def _spectra(f: Forecasts, predicted: Tensor, truth: Tensor, steps: Sequence[int]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 3.2))
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(0.065, 0.15, 0.99, 0.91, 0.06)
    highest = 0.0
    for panel, step in zip(panels, steps, strict=True):
        p, u = predicted[:, :, step - 1], truth[:, step - 1]
        lines = (("reference", u, TRUE, "-"), ("forecast", p, MEMBER, "-"), ("error", p - u.unsqueeze(1), MEAN, "--"))
        for label, values, colour, style in lines:
            k, energy = spectra.mean_spectrum(values, f.extent)
            mean = energy.mean(0).numpy()[1:]
            highest = max(highest, float(mean.max()) if label == "reference" else 0.0)
            panel.plot(k.numpy()[1:], np.where(mean > 0.0, mean, np.nan), color=colour, linestyle=style, label=label)
        panel.set_yscale("log")
        if len(f.extent) > 1:
            panel.set_xscale("log")
        panel.set_title(f"after {step} step{'s' * (step > 1)} ({step * f.interval:g} {f.clock.unit})")
        panel.set_xlabel("wavenumber")
        panel.spines[["top", "right"]].set_visible(False)
    low = panels[0].get_ylim()[0]
    panels[0].set_ylim(max(low, 1e-12 * highest), 5.0 * highest)
    panels[0].set_ylabel("energy")
    panels[0].legend(loc="upper right")
    return svg(figure)


def _calibration(f: Forecasts, predicted: Tensor, truth: Tensor) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 3.4))
    left, middle, right = figure.subplots(1, 3)
    figure.subplots_adjust(0.065, 0.15, 0.99, 0.92, 0.25)
    found = ensemble.spread_skill(predicted, truth)
    left.plot(f.times, found.skill.numpy(), color=MEAN, label="error of the mean")
    left.plot(f.times, found.spread.numpy(), color=OTHERS, linestyle="--", label="spread of the members")
    left.set(yscale="log", xlim=(0.0, f.times[-1]), xlabel=f.clock.label, ylabel="root mean square",
             title="spread and skill")
    left.legend(loc="lower right")

    shares = ensemble.rank_histogram(predicted[:, :, : f.lead], truth[:, : f.lead]).shares * (f.members + 1)
    deviation = shares.std(0).numpy() / math.sqrt(len(shares)) if len(shares) > 1 else None
    middle.bar(range(f.members + 1), shares.mean(0).numpy(), width=0.9, color=MEMBER, alpha=0.75, yerr=deviation,
               error_kw={"elinewidth": 0.8, "ecolor": TRUE})
    middle.axhline(1.0, color=TRUE, linewidth=1.0, linestyle=":")
    middle.set(ylim=(0.0, None), xlabel="rank of the reference", ylabel="share, 1 expected", title="rank histogram")
    _divergence(right, f, predicted, truth)
    for panel in (left, middle, right):
        panel.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _divergence(panel: Axes, f: Forecasts, predicted: Tensor, truth: Tensor) -> None:
    """Predicted against true divergence times; those beyond the horizon are open, at its edge."""
    known = ensemble.divergence(predicted, truth, f.interval, 0.8)
    horizon = float(f.times[-1])
    x, y = known.predicted.numpy(), known.true.numpy()
    both = np.isfinite(x) & np.isfinite(y)
    panel.plot([0.0, horizon], [0.0, horizon], color=PALE, linewidth=0.9)
    size = 14 if len(x) > 64 else 26
    panel.scatter(x[both], y[both], s=size, color=MEMBER, alpha=0.7, linewidths=0, label="both seen")
    if not both.all():
        panel.scatter(np.minimum(x, horizon)[~both], np.minimum(y, horizon)[~both], s=size, facecolors="none",
                      edgecolors=PALE, label="beyond the horizon")
        panel.legend(loc="lower right")
    title = f"R² = {known.r2.value:.2f} ({known.used} of {len(x)})" if known.used >= 3 else \
        f"{known.used} of {len(x)} within the horizon"
    panel.set(xlim=(0.0, 1.05 * horizon), ylim=(0.0, 1.05 * horizon), title=f"divergence: {title}",
              xlabel=f"members part at ({f.clock.unit})", ylabel=f"they leave the reference at ({f.clock.unit})")
