"""Three solvers on a density whose score is known: eight narrow Gaussians on a circle.

The denoiser is exact, so whatever is wrong with a sample is the solver's doing. Printed is the spread of the samples
around the nearest of the eight centres at 8, 16 and 64 network calls, beside that of exact draws; the picture shows 16.

    python examples/01_sample_a_mixture.py [fast=true] [out=mixture.png]
"""

from __future__ import annotations

import sys

import torch
from matplotlib.figure import Figure
from torch import Tensor

from scidiff.core.analytic import AnalyticMixture, GaussianMixture, ring8
from scidiff.core.path import VP
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.spec import Context

SOLVERS = {"DDPM": Ancestral(eta=1.0), "DDIM": Ancestral(eta=0.0), "multistep": Exponential()}
CALLS, SHOWN = (8, 16, 64), 16


def spread(mixture: GaussianMixture, x: Tensor) -> float:
    """Root mean square distance per coordinate from the nearest centre."""
    nearest = torch.cdist(x.double(), mixture.means).amin(-1)
    return (nearest.square().mean() / 2).sqrt().item()


def main(fast: bool = False, out: str = "mixture.png") -> None:
    mixture = ring8()
    denoiser = AnalyticMixture(mixture, VP())
    count = 500 if fast else 5000
    exact = mixture.sample(count)
    drawn = {}
    print(f"{'solver':12s}" + "".join(f"{n:>8d}" for n in CALLS) + "   network calls; spread")
    for name, method in SOLVERS.items():
        line = f"{name:12s}"
        for calls in CALLS:
            sampler = Sampler(denoiser.spec(), denoiser, Fixed(method, steps=calls))
            x = sampler.run(Context.of(count), seed=0).state["x"]
            line += f"{spread(mixture, x):8.3f}"
            if calls == SHOWN:
                drawn[name] = x
        print(line)
    print(f"{'exact draws':12s}{spread(mixture, exact):8.3f}")

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    pictures = {"exact draws": exact, **{f"{name}, {SHOWN} calls": x for name, x in drawn.items()}}
    for axes, (title, x) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.scatter(x[:, 0], x[:, 1], s=2)
        axes.set(title=title, aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    figure.savefig(out, dpi=120)
    print(f"Picture: {out}")


if __name__ == "__main__":
    main(**{key: value == "true" if key == "fast" else value
            for key, _, value in (word.partition("=") for word in sys.argv[1:])})
