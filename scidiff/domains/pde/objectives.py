"""What a model of time steps minimises: windows of trajectories, symmetric copies, one step or several.

A batch brings whole trajectories (`Context.cond["frames"]`, [B, F, C, *space], scaled). Every step of training draws a
random window of them, a random copy under the symmetries of the equation, and minimises the standard objective of the
target y given the frames before it. Random numbers are counted, so an interrupted training repeats exactly.

Unrolling (`unroll` = m > 1): the window is m steps long; the model's own one-call prediction (its data estimate at the
source, t = 1) becomes the history of the next step, and the losses of all steps are averaged. With `detach` no gradient
flows through the history (the pushforward trick: Brandstetter et al. 2022, arXiv 2202.03376); without, it does.

A joint state (`joint`) is the history and the target together, both noised (ACDM: Kohl et al. 2023, arXiv 2309.01745).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.objective import Batch, LevelTime, StandardObjective
from scidiff.core.path import LevelPath
from scidiff.core.path.base import Prediction
from scidiff.core.run import Run
from scidiff.core.spec import Context, State, StateSpec
from scidiff.domains.pde.codec import FRAMES, PREVIOUS, Transition, window

FIRST_CALL = 0.4
"""Share of a refiner's training that goes to the first call, the one that all later ones build on."""


class Transitions(StandardObjective):
    """The standard objective over random windows of trajectories.

    history, target, scale: the Transition; stride: frames between two steps of the model (both are the domain's).
    unroll, detach, joint: see above. shift: axes of space along which the equation is invariant, counted from the end
    (-1 is x). reflect: u(x) -> -u(-x) is a symmetry as well. jitter: standard deviation of white noise on the history,
    in scaled units (rollouts see their own errors). time: a path of several levels trains its first call in
    `FIRST_CALL` of the samples and the others alike, unless told otherwise. All other settings are those of
    StandardObjective.
    """

    def __init__(self, spec: StateSpec, history: int = 1, target: str = "residual", scale: float = 1.0, stride: int = 1,
                 unroll: int = 1, detach: bool = True, joint: bool = False, shift: Sequence[int] = (-1,),
                 reflect: bool = False, jitter: float = 0.0, time: object | None = None,
                 weights: Mapping[str, float] | None = None, drop_condition: float = 0.0, self_condition: float = 0.5,
                 stratified: bool = True) -> None:
        if len(spec) != 1:
            raise UsageError("A model of time steps moves one component, the next frame.")
        count = len(next(iter(spec.values())).path.levels or ())
        if time is None and count > 1:
            time = LevelTime((*[(1.0 - FIRST_CALL) / (count - 1)] * (count - 1), FIRST_CALL))
        super().__init__(spec, time, weights, None, drop_condition, self_condition, stratified)
        if unroll < 1 or (unroll > 1 and joint):
            raise UsageError("Unrolled training takes one step or more, of a state that is not joint.")
        self.name = next(iter(spec))
        self.transition, self.stride = Transition(int(history), target, float(scale)), int(stride)
        self.unroll, self.detach, self.joint = int(unroll), bool(detach), bool(joint)
        self.shift, self.reflect, self.jitter = tuple(shift), bool(reflect), float(jitter)

    def loss(self, denoiser: Denoiser, batch: Batch, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        ctx = batch[1]
        if FRAMES not in ctx.cond:  # one transition a sample, already encoded
            return super().loss(denoiser, batch, run)
        frames = self.draw(ctx, run)
        steps = self.transition.history
        previous = frames[:, :steps]
        if self.jitter:
            shape = tuple(previous.shape[1:])
            previous = previous + self.jitter * run.noise(self.name, "jitter", shape, ctx).to(previous.dtype)
        total, metrics = torch.zeros((), device=frames.device), {}
        stream = run.stream
        for j in range(self.unroll):
            run.stream = stream + j  # every step in time has noise of its own
            y = self.transition.encode(previous, frames[:, steps + j])
            here = self.seeing(ctx, previous)
            loss, found = super().loss(denoiser, ({self.name: self.joined(previous, y)}, here), run)
            total = total + loss / self.unroll
            metrics = found if j == 0 else {**metrics, f"step_{j}": found["loss"]}
            if j < self.unroll - 1:
                guess = self.transition.decode(previous, self.one_call(denoiser, here, y, run))
                previous = self.transition.advance(previous, guess)
        run.stream = stream
        return total, {**metrics, "loss": total.detach()}

    def draw(self, ctx: Context, run: Run) -> Tensor:
        """A window [B, H + unroll, C, *space] of each trajectory, shifted and reflected at random."""
        frames = ctx.cond[FRAMES][0]
        count = self.transition.history + self.unroll
        places = frames.shape[1] - self.stride * (count - 1)
        if places < 1:
            raise UsageError(f"Trajectories of {frames.shape[1]} frames are too short for {count} steps of "
                             f"{self.stride} frames.")
        u = run.noise("", "window", (2 + len(self.shift),), ctx, "uniform")
        out = window(frames, (u[:, 0] * places).long(), count, self.stride)
        for k, axis in enumerate(self.shift):
            out = rolled(out, (u[:, 2 + k] * out.shape[axis]).long(), axis)
        if self.reflect:
            axis = out.dim() - 1
            mirrored = -out.flip(axis)
            flip = (u[:, 1] < 0.5).view(-1, *[1] * axis)
            out = torch.where(flip, mirrored, out)
        return out

    def seeing(self, ctx: Context, previous: Tensor) -> Context:
        """The context with a history in place of the trajectory (and of the history of another window)."""
        cond = {k: v for k, v in ctx.cond.items() if k not in (FRAMES, PREVIOUS)}
        if not self.joint:
            cond[PREVIOUS] = (self.transition.seen(previous), torch.ones_like(ctx.ids, dtype=torch.bool))
        return replace(ctx, cond=cond)

    def joined(self, previous: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self.transition.seen(previous), y], 1) if self.joint else y

    def one_call(self, denoiser: Denoiser, ctx: Context, like: Tensor, run: Run) -> Tensor:
        """The model's data estimate at the source; with `detach` no gradient belongs to it."""
        component = self.spec[self.name]
        site = ctx.at(self.name, component)
        source = component.path.source(site, run.handle(site)).to(like.dtype)
        high = component.path.bounds[1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            preds = denoiser({self.name: source}, torch.full((ctx.batch,), high, dtype=torch.float64,
                                                             device=ctx.device), ctx, run)
        return preds[self.name].data

    def report(self, preds: dict[str, Prediction], state: State, t: Tensor, ctx: Context) -> dict[str, Tensor]:
        """The root mean square error e_k of the data estimate at every level, in units of the target."""
        path = self.spec[self.name].path
        if not isinstance(path, LevelPath):
            return {}
        error = (preds[self.name].data - state[self.name]).pow(2).flatten(1).mean(1)
        level = path.level(t)
        return {f"e{k}": error[level == k].mean().sqrt() for k in range(len(path.stds)) if bool((level == k).any())}


def rolled(x: Tensor, amount: Tensor, axis: int) -> Tensor:
    """Each sample of x [B, ...] shifted cyclically by its own number of points [B] along a negative axis."""
    n, dim = x.shape[axis], x.dim() + axis
    place = (torch.arange(n, device=x.device)[None, :] + amount[:, None]) % n
    view = [x.shape[0]] + [1] * (x.dim() - 1)
    view[dim] = n
    return x.gather(dim, place.view(view).expand(x.shape))
