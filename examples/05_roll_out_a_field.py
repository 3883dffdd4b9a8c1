"""A forecast of a chaotic field as an ensemble, held against the equation itself, in Python.

The native object is an `xarray.Dataset` with dimensions (member, time, x): what is known of xarray applies at once.
Printed is how long members and truth stay correlated, and whether the spread of the members is as large as their error.

    python examples/05_roll_out_a_field.py [model=ks] [fast=true] [out=runs/field]
"""

from __future__ import annotations

import sys

import scidiff


def main(model: str = "ks", fast: bool = False, out: str = "runs/field") -> None:
    trajectories, members, steps = (2, 4, 30) if fast else (8, 16, 160)
    made = scidiff.rollout([f"from={model}", f"sampling.trajectories={trajectories}", f"sampling.num={members}",
                            f"sampling.length={steps}", f"out={out}"])
    first = made.samples[0]
    print(f"{len(made.samples)} forecasts, each {dict(first.sizes)}")

    error = first["u"] - first["u_true"]
    print("time   spread of the members   error of their mean")
    for place in range(0, steps + 1, max(steps // 8, 1)):
        now = first["u"].isel(time=place)
        spread = float((now.var("member", ddof=1).mean() * (1 + 1 / members)) ** 0.5)
        wrong = float((error.isel(time=place).mean("member") ** 2).mean() ** 0.5)
        print(f"{float(first.time[place]):5.1f}  {spread:10.4f}              {wrong:10.4f}")

    for metric in made.metrics:
        if metric.value is not None and metric.name.startswith(("correlation time", "CRPS", "spread")):
            print(f"{metric.name:36s} {metric.value:.4g} {metric.unit}")
    print(f"Report: {made.folder / 'report.html'}; data: {made.folder / 'rollout.nc'}")


if __name__ == "__main__":
    main(**{key: value == "true" if key == "fast" else value
            for key, _, value in (word.partition("=") for word in sys.argv[1:])})
