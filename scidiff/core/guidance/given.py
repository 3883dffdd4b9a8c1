"""Given components: what is wholly known of a sample is shown to the network as it is, at its own time 0 (a wrapper).

A network that was trained with a component clean in some samples (`StandardObjective.clean`) has learned the law of the
others given that one, which is sampled exactly by showing it clean in every call:

    state of a given component <- its clean value,   time <- 0,   prediction <- the known value

`Context.known[name] = (x0, where)`; a sample's component is given where `where` holds for all of its real entries. What
is known in part is left to the rule `Clamp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.path.base import Prediction
from scidiff.core.spec import Context, Site, State, StateSpec

if TYPE_CHECKING:
    from scidiff.core.run import Run

_CERTAIN = 1e4


class Given(Denoiser):
    """denoiser: what predicts, with a time for each component; components: those that may be given."""

    def __init__(self, denoiser: Denoiser, spec: StateSpec, components: Sequence[str]) -> None:
        super().__init__()
        for name in components:
            if name not in spec:
                raise ScidiffError(f"The state has no component {name!r}.", nearest(name, spec))
        self.denoiser, self.spec, self.components = denoiser, spec, tuple(components)
        self.needs_grad, self.self_conditioning = denoiser.needs_grad, denoiser.self_conditioning

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        given = {name: ctx.at(name, self.spec[name]) for name in self.components if name in ctx.known}
        if not given:
            return self.denoiser(state, t, ctx, run)
        seen, times = dict(state), {name: time_of(t, name) for name in self.spec}
        whole = {name: known_whole(site) for name, site in given.items()}
        for name, site in given.items():
            clean = site.component.path.clean(ctx.known[name][0], site).to(state[name].dtype)
            seen[name] = torch.where(_fit(whole[name], clean), clean, state[name])
            when = ctx.time(times[name]).clone()
            times[name] = torch.where(whole[name], torch.zeros_like(when), when)
        found = dict(self.denoiser(seen, times, ctx, run))
        for name, site in given.items():
            pred = found[name].bind(site.component.path, seen[name], times[name], site)
            found[name] = told(pred, ctx.known[name][0], whole[name], site)
        return found


def known_whole(site: Site) -> Tensor:
    """Of which samples all real entries are known, bool [B]."""
    where = site.ctx.known[site.name][1]
    if site.mask is not None:
        mask = site.mask.expand(site.batch, *site.dims)
        where = where.view(*where.shape, *[1] * (mask.dim() - where.dim())) | ~mask
    return where.flatten(1).all(1)


def told(pred: Prediction, x0: Tensor, whole: Tensor, site: Site) -> Prediction:
    """The prediction with the known value in the samples where it is whole."""
    if not site.space.categorical:
        data = pred.data
        return pred.replace(data=torch.where(_fit(whole, data), x0.to(data.dtype), data))
    logits = pred.logits
    certain = _CERTAIN * torch.nn.functional.one_hot(x0.long(), logits.shape[-1]).to(logits.dtype)
    return Prediction("logits", torch.where(_fit(whole, logits), certain, logits), pred.path, pred.z, pred.t, site)


def _fit(whole: Tensor, like: Tensor) -> Tensor:
    return whole.view(-1, *[1] * (like.dim() - 1))
