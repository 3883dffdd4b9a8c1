"""Clamped entries: what is known of a sample stays what it is (a rule).

`Context.known[name] = (x0, where)`: entries of component `name` where `where` is true have the clean value x0. After
every step t -> s they are replaced by a draw of the path at time s,

    z_s <- where ? corrupt(x0, s) : z_s,       and by x0 itself at the end of the path

so that the network meets known and unknown entries at the same noise level (the replacement method: Song et al. 2021,
arXiv 2011.13456, appendix I; Lugmayr et al. 2022, arXiv 2201.09865). Scaffolds, fixed sites and measured patches are
clamped this way. The law of the unknown entries is approximate: a step sees the known ones only through x_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Predictions, time_of
from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.run import Run
from scidiff.core.spec import Context, Site, State, StateSpec

if TYPE_CHECKING:
    from scidiff.core.path.base import Time


class Clamp:
    """The rule of a state.

    `fresh` draws new noise for the known entries at every step; otherwise one draw serves the whole run, which keeps
    their trajectory smooth for multistep solvers.
    """

    needs_grad = False

    def __init__(self, spec: StateSpec, fresh: bool = True) -> None:
        self.spec, self.fresh = spec, fresh

    def __call__(self, z_next: State, z_t: State, preds: Predictions, t: Any, s: Any, ctx: Context, run: Run) -> State:
        changed = {}
        noise = run if self.fresh else Run(run.seed, run.stream)
        for name, (x0, where) in ctx.known.items():
            if name not in self.spec:
                raise ScidiffError(f"Known entries belong to no component {name!r}.", nearest(name, self.spec))
            site = ctx.at(name, self.spec[name])
            value = self._at(x0, time_of(s, name), site, noise, z_next[name].dtype)
            changed[name] = torch.where(_fit(where, value), value, z_next[name])
        return changed

    def _at(self, x0: Tensor, s: Time, site: Site, run: Run, dtype: torch.dtype) -> Tensor:
        path = site.component.path
        clean = x0.to(dtype)
        low = path.bounds[0]
        if not isinstance(s, Tensor) and s <= low:
            return clean
        float_type = dtype if dtype.is_floating_point else torch.float32
        z = path.corrupt(clean, s, site, run.handle(site, float_type)).z.to(dtype)
        return torch.where(_fit(s <= low, z), clean, z) if isinstance(s, Tensor) else z


def _fit(where: Tensor, like: Tensor) -> Tensor:
    """A boolean [B, ...] that broadcasts against [B, ..., more axes]."""
    if where.dtype != torch.bool:
        raise ScidiffError("The mask of known entries must be boolean.")
    return where.view(*where.shape, *[1] * (like.dim() - where.dim()))
