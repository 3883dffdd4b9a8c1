"""What given states cost under a denoiser: its training loss at a row of times, sample by sample.

    cost_b = mean over times t of  sum_k n_k L_k(prediction at x_t, x0, t),     n_k: independent entries of component k

With losses in nats (weight "bayes" of beliefs) this is the variational bound on -log p(x0), less what does not depend
on the sample; with other weights it is a figure for ranking alone. Every sample meets the same noise, so that
differences come from the samples. Components that are known are left out: the cost is that of the others given them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser
from scidiff.core.run import Run
from scidiff.core.spec import Context, State, StateSpec


def times_of(spec: StateSpec, count: int) -> list[float]:
    """The middles of `count` equal parts of the time that all paths share; the levels of a path that has them."""
    levels = next((c.path.levels for c in spec.values() if c.path.levels is not None), None)
    low, high = max(c.path.bounds[0] for c in spec.values()), min(c.path.bounds[1] for c in spec.values())
    wanted = [low + (high - low) * (k + 0.5) / count for k in range(count)]
    return wanted if levels is None else [min(levels, key=lambda t: abs(t - w)) for w in wanted]


def cost(spec: StateSpec, denoiser: Denoiser, state: State, ctx: Context, seed: int = 0, count: int = 16) -> Tensor:
    """The cost of each sample of a clean state, float64 [B]; one network call for each of `count` times."""
    alike = ctx.take(torch.arange(ctx.batch, device=ctx.device))
    alike.ids = torch.zeros_like(ctx.ids)
    sites = {name: alike.at(name, c) for name, c in spec.items()}

    def at(number: int, t: float) -> Tensor:
        run = Run(seed)
        run.step = number
        noised = {n: c.path.corrupt(state[n], t, sites[n], run.handle(sites[n])) for n, c in spec.items()}
        found = denoiser({n: z.z for n, z in noised.items()}, t, alike, run)
        total = torch.zeros(ctx.batch, dtype=torch.float64, device=ctx.device)
        for name, c in spec.items():
            if name not in ctx.known:
                pred = found[name].bind(c.path, noised[name].z, t, sites[name])
                loss = c.path.loss(pred, state[name], noised[name], t, sites[name])
                total = total + (loss * sites[name].count()).to(torch.float64)
        return total

    with torch.inference_mode(not denoiser.needs_grad):
        return torch.stack([at(number, t) for number, t in enumerate(times_of(spec, count))]).mean(0)
