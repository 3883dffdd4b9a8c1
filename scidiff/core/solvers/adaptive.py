"""Adaptive Runge-Kutta: an embedded pair in velocity form, one step size for the batch.

    error = (s - t) sum_j e_j v_j,    accepted if max over samples of rms(error / (atol + rtol max(|x_t|, |x_s|))) <= 1

The next step is 0.9 norm^{-1/order} times the last, between a fifth and five times. The last velocity of an accepted
step is the first of the next (6 network calls a step for dopri5, 3 for bosh3). Deciding whether a step holds waits for
the device; no other solver does. Pairs: Dormand & Prince 1980, Bogacki & Shampine 1989.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scidiff.core.errors import NonFinite, ScidiffError, UsageError, nearest
from scidiff.core.plan import Stage
from scidiff.core.solvers.fixed import clean_row, ends
from scidiff.core.solvers.runge_kutta import tangent_row, velocity_only

if TYPE_CHECKING:
    from scidiff.core.sampler import Loop
    from scidiff.core.spec import StateSpec


class Pair(NamedTuple):
    """Rows of a (the last one is the solution), nodes c, error weights e, order of the solution."""

    a: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    e: tuple[float, ...]
    order: int


PAIRS = {
    "bosh3": Pair(
        ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (0.0, 1 / 2, 3 / 4, 1.0),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        3,
    ),
    "dopri5": Pair(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            35 / 384 - 5179 / 57600,
            0.0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
        5,
    ),
}
MEMORY = "adaptive"


class Adaptive:
    """A driver that chooses its steps. `steps` bounds the attempted steps; `first` is the first step's length in t."""

    def __init__(self, scheme: str = "dopri5", rtol: float = 1e-4, atol: float = 1e-4, first: float = 0.02,
                 steps: int = 1000, t_end: float | None = None, last: str = "stop", compile: bool = False,
                 cuda_graph: bool = False) -> None:
        ends(last)
        if scheme not in PAIRS:
            raise UsageError(f"There is no adaptive scheme {scheme!r}.", nearest(scheme, PAIRS))
        if min(rtol, atol) < 0.0 or rtol + atol <= 0.0 or first <= 0.0 or int(steps) < 1:
            raise UsageError("An adaptive solver needs tolerances, a first step and a number of steps above 0.")
        if cuda_graph:
            raise UsageError("An adaptive solver decides as it goes and cannot be captured as a CUDA graph.")
        self.pair, self.rtol, self.atol, self.first = PAIRS[scheme], float(rtol), float(atol), float(first)
        self.steps, self.t_end, self.last, self.compile, self.cuda_graph = int(steps), t_end, last, compile, cuda_graph

    def history(self, spec: StateSpec) -> dict[str, dict[str, int]]:
        for component in spec.values():
            velocity_only(component, "An adaptive solver")
        forms = {"velocity": len(self.pair.c), **({"data": 1} if self.last == "data" else {})}
        return {name: dict(forms) for name in spec}

    def total(self, spec: StateSpec, t_start: float) -> int:
        return self.steps * (len(self.pair.c) + 1)

    def stages(self, loop: Loop, t_start: float) -> Iterator[Stage]:
        spec, memory = loop.spec, loop.run.memory
        low = max(c.path.bounds[0] for c in spec.values()) if self.t_end is None else self.t_end
        high = min(t_start, min(c.path.bounds[1] for c in spec.values()))
        t, length = memory.get(MEMORY, (high, self.first)) if loop.stage else (high, self.first)
        past = {name: loop.history[name]["velocity"] for name in spec}
        attempts, same = 0, loop.stage > 0 and t > low
        while t > low:
            if attempts == self.steps:
                raise ScidiffError(f"The adaptive solver did not reach the data in {self.steps} steps (t = {t:.4g}).",
                                   "Raise the tolerances or solver.steps.")
            attempts += 1
            s = t - length if t - length > low + 1e-9 else low
            width = s - t
            for j, row in enumerate(self.pair.a):
                rows = tuple(tangent_row(n, [width * v for v in row], t, s) for n in spec)
                yield Stage(t + self.pair.c[j] * width, s, rows, evaluate=j > 0 or not same, last=False)
            yield Stage(s, s, (), evaluate=True, last=False)
            norm = self._norm(loop, width)
            length = abs(width) * min(5.0, max(0.2, 0.9 * max(norm, 1e-10) ** (-1.0 / self.pair.order)))
            if norm <= 1.0:
                t = s
                for kept in past.values():
                    del kept[1:]
                memory[MEMORY] = (t, length)
                reached = dict(loop.state)
                yield Stage(s, s, (), evaluate=False)
                # A rule that moved the state has made the stored velocity wrong.
                same = all(loop.state[n] is x for n, x in reached.items())
            else:
                loop.state.update(loop.start)
                for kept in past.values():
                    kept[:] = kept[-1:]
                same = True
            if not same:
                for kept in past.values():
                    kept.clear()
        if self.last == "data":
            yield Stage(low, 0.0, tuple(clean_row(n, low, 0.0) for n in spec))

    def _norm(self, loop: Loop, width: float) -> float:
        """The largest error of a sample in units of the tolerance; raises NonFinite."""
        total: Tensor | None = None
        count: Tensor | None = None
        for name, site in loop.sites.items():
            velocities = loop.history[name]["velocity"][::-1]
            error = torch.zeros_like(loop.state[name])
            for e, v in zip(self.pair.e, velocities, strict=True):
                error.add_(v, alpha=width * e)
            scale = self.atol + self.rtol * torch.maximum(loop.start[name].abs(), loop.state[name].abs())
            ratio = site.space.project(error / scale, site.mask)
            square = site.space.inner(ratio, ratio).to(torch.float64)
            if not bool(torch.isfinite(square).all()):
                raise NonFinite(
                    f"Component {name!r} stopped being finite at stage {loop.stage} (t = {loop.t:.4g}) of the "
                    "adaptive solver.",
                    "Check the network's output there.",
                )
            size = site.space.ndim(site.dims, site.mask, site.batch).to(square.device)
            total = square if total is None else total + square
            count = size if count is None else count + size
        assert total is not None and count is not None
        return math.sqrt(float((total / count.clamp(min=1.0)).max()))
