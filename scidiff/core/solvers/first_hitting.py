"""First-hitting sampling of masked categories: exact event times, one network call an event.

With n masked entries at mass m (the share of masked entries at time t), the next event happens at m' = m u^{1/n}, u
uniform; then one masked entry, chosen uniformly, takes a draw from the prediction at that time. After L events nothing
is masked: NFE <= L whatever the accuracy. Times differ among samples: t is a float64 tensor [B].
Source: Zheng et al. 2024, arXiv 2409.02908.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.path.categorical import AbsorbingPath
from scidiff.core.plan import Row, Stage

if TYPE_CHECKING:
    from scidiff.core.sampler import Loop
    from scidiff.core.spec import Context, StateSpec

MEMORY = "first-hitting"


def time_of_mass(path: AbsorbingPath, mass: Tensor) -> Tensor:
    """The time at which the share `mass` of the entries is masked, float64."""
    return mass if path.schedule == "linear" else mass.clamp(0.0, 1.0).sqrt().asin() * (2.0 / math.pi)


class FirstHitting:
    """A driver for a state of one masked component.

    steps: None for one event a call (exact); fewer steps than entries let several entries share a call, an
    approximation like that of any solver with finite steps.
    """

    def __init__(self, steps: int | None = None, compile: bool = False, cuda_graph: bool = False) -> None:
        if steps is not None and int(steps) < 1:
            raise UsageError(f"A solver needs at least one step, not {steps}.")
        if cuda_graph:
            raise UsageError("First-hitting times are drawn as it goes: cuda_graph=true does not apply.")
        self.steps, self.compile, self.cuda_graph = None if steps is None else int(steps), compile, cuda_graph

    def history(self, spec: StateSpec) -> dict[str, dict[str, int]]:
        if len(spec) != 1 or not isinstance(next(iter(spec.values())).path, AbsorbingPath):
            raise UsageError("First-hitting sampling needs a state of one masked (absorbing) component.",
                             "Use solver=posterior or solver=mixture.")
        return {}

    def total(self, spec: StateSpec, t_start: float) -> int:
        return self.steps or 0

    def entries(self, spec: StateSpec, ctx: Context) -> int:
        """The most entries a sample can have: unordered pairs count once."""
        component = next(iter(spec.values()))
        dims = ctx.dims(component.shape)
        if component.space.symmetric:
            return dims[0] * (dims[0] - 1) // 2 * math.prod(dims[2:])
        return math.prod(dims)

    def stages(self, loop: Loop, t_start: float) -> Iterator[Stage]:
        (name, site), = loop.sites.items()
        path: AbsorbingPath = site.component.path  # type: ignore[assignment]
        most = self.entries(loop.spec, loop.context)
        calls = min(self.steps or most, most)
        loop.total = calls
        start = torch.full((site.batch,), path.mass(t_start), dtype=torch.float64, device=loop.context.device)
        mass: Tensor = loop.run.memory.get(MEMORY, start) if loop.stage else start
        left = path.masked(loop.state[name], site).flatten(1).sum(1).to(torch.float64)
        for call in range(loop.stage, calls):
            # The run's step is set by the loop after this point; the times belong to the stage to come.
            loop.run.step = call
            events = most // calls + (1 if call < most % calls else 0)
            rows, t = [], mass
            for event in range(events):
                u = loop.noises[name].per_sample(f"hit{event}")
                mass = torch.where(left > 0, mass * u ** (1.0 / left.clamp(min=1.0)), mass)
                left = (left - 1.0).clamp(min=0.0)
                if event == 0:
                    t = time_of_mass(path, mass)
                rows.append(Row(name, "unmask", "logits", t=t, s=t, tag=f"unmask{event}"))
            loop.run.memory[MEMORY] = mass
            yield Stage(t, t, tuple(rows))
