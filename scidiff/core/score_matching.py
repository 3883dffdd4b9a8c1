"""Denoising score matching as a sum over entries: the loss of score-based models of graphs.

    L = sum_k mean_b 1/2 sum_entries (sigma score_k + eps_k)^2

summed over all entries of a component, so that an unordered pair counts twice and large samples weigh more. Components
whose networks share no parameters are trained as by themselves, whatever the other's loss. Jo, Lee & Hwang 2022, arXiv
2202.02514. Components that predict a score need a path of weight "noise".
"""

from __future__ import annotations

from torch import Tensor

from scidiff.core.denoiser import Predictions, Times, time_of
from scidiff.core.objective import StandardObjective
from scidiff.core.path.base import Corrupted
from scidiff.core.spec import Context, State


class ScoreMatching(StandardObjective):
    """StandardObjective with half the summed squared error of a sample instead of its mean."""

    def _losses(self, preds: Predictions, state: State, noised: dict[str, Corrupted], t: Times,
                ctx: Context) -> dict[str, Tensor]:
        out = {}
        for name, c in self.spec.items():
            site = ctx.at(name, c)
            each = c.path.loss(preds[name], state[name], noised[name], time_of(t, name), site)
            out[name] = ((1.0 if c.space.symmetric else 0.5) * site.count() * each).mean()
        return out
