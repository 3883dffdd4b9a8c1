"""Only the elements that are asked for (a wrapper): the probability of every other type becomes zero.

The law of the clean type of each atom, given what the network saw, is restricted to the allowed classes and normalised:
exact for the last step, and for every step where the network's law is that of the data. `ctx.meta["allowed_types"]`
[B, K] bool says which are allowed (request.py); without it nothing is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scidiff.core.denoiser import Denoiser, Predictions, Times
from scidiff.core.path.base import Prediction
from scidiff.domains.crystal.request import ALLOWED

if TYPE_CHECKING:
    from scidiff.core.run import Run
    from scidiff.core.spec import Context, State

_NEVER = -1e9


class AllowedElements(Denoiser):
    """denoiser: what predicts; component: whose classes are restricted."""

    def __init__(self, denoiser: Denoiser, component: str = "types") -> None:
        super().__init__()
        self.denoiser, self.component = denoiser, component
        self.needs_grad, self.self_conditioning = denoiser.needs_grad, denoiser.self_conditioning

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        found = self.denoiser(state, t, ctx, run)
        allowed = ctx.meta.get(ALLOWED)
        if allowed is None:
            return found
        pred = found[self.component]
        logits = pred.to("logits")
        value = logits.masked_fill(~allowed[:, None, : logits.shape[-1]], _NEVER)
        return {**found, self.component: Prediction("logits", value, pred.path, pred.z, pred.t, pred.site)}
