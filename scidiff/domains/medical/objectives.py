"""Objectives of the domain: training on random patches of randomly moved slices.

The cache holds whole slices x [B, C, S, S]. Every step of training moves each slice by a random rotation,
magnification, shift and mirror image, and takes one patch of P x P pixels out of it with its place (start, step) in the
plane, which the network sees (`nn.patch`). A pixel i of the patch is the value of the slice at

    c + R (p_i - c - shift) / zoom,    p_i = corner + i,    c the middle of the plane; mirrored left-right first

so places are those of the moved slice, as a whole slice has them at inference. Values between pixels are bicubic
(trilinear in blocks); a patch that is neither rotated nor magnified keeps its pixels. Beyond the plane is air (0). Then
values are changed, x <- top (x / top)^g (1 + a) + b n, n normal noise of the same picture: scanners and kernels differ.

In a share `large` of the steps patches have twice the side and are a quarter (in blocks an eighth) as many, at about
the same cost: what lies far apart is learned from these.

Random numbers are counted, so an interrupted training repeats exactly. Without gradients (validation) slices are whole
and as they are, and the error of the data estimate is reported by noise level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions
from scidiff.core.errors import UsageError
from scidiff.core.objective import Batch, StandardObjective
from scidiff.core.path.gaussian import GaussianPath
from scidiff.core.run import Run, hash_text, mix_int
from scidiff.core.spec import Context, State, StateSpec

POSITION = "position"  # of nn.patch
BINS = (0.01, 0.04, 0.1, 0.3, 1.0, 4.0)
"""Edges of the noise levels sigma / alpha by which validation reports."""


class Patches(StandardObjective):
    """The standard objective on random patches.

    patch: pixels along each axis, None for whole planes; large: share of the steps with twice as many. flip: chance of
    a mirror image along the last axis. warp: chance of a rotation by up to `rotate` degrees and a magnification from
    1 / (1 + zoom) to 1 + zoom (slices only). shift: pixels in the plane, at most. gain, gamma: values times 1 +- gain,
    to the power 1 +- gamma relative to `top`. noise: standard deviation of noise that belongs to the picture, at most.
    All others as StandardObjective.
    """

    def __init__(self, spec: StateSpec, patch: int | None = 64, large: float = 0.0, flip: float = 0.5,
                 warp: float = 0.5, rotate: float = 15.0, zoom: float = 0.1, shift: int = 8, gain: float = 0.05,
                 gamma: float = 0.0, noise: float = 0.0, top: float = 1.0, time: object | None = None,
                 weights: Mapping[str, float] | None = None, drop_condition: float = 0.0, self_condition: float = 0.5,
                 stratified: bool = True) -> None:
        if len(spec) != 1:
            raise UsageError("A prior of slices moves one component, the slice.")
        super().__init__(spec, time, weights, None, drop_condition, self_condition, stratified)
        self.name, component = next(iter(spec.items()))
        self.space = tuple(int(n) for n in component.shape[1:])
        side = max(self.space) if patch is None else int(patch)
        self.small, self.big = (tuple(min(k * side, n) for n in self.space) for k in (1, 2))
        self.large = float(large)
        amounts = (flip, warp, large, shift, gain, gamma, noise, zoom)
        if side < 1 or min(amounts) < 0 or max(flip, warp, large) > 1 or gamma >= 1 or not top > 0:
            raise UsageError("Chances of moving slices lie from 0 to 1, amounts are not negative and gamma is below 1.")
        self.flip, self.warp, self.rotate, self.zoom = float(flip), float(warp), math.radians(rotate), float(zoom)
        self.shift, self.gain, self.gamma, self.noise, self.top = int(shift), gain, gamma, noise, float(top)

    def loss(self, denoiser: Denoiser, batch: Batch, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        if not torch.is_grad_enabled():
            return super().loss(denoiser, batch, run)
        state, ctx = batch
        sides = self.sides(run)
        if (fewer := math.prod(sides) // math.prod(self.small)) > 1:
            rows = torch.arange(max(ctx.batch // fewer, 1), device=ctx.device)
            state, ctx = {self.name: state[self.name][rows]}, ctx.take(rows)
        x, place = self.draw(state[self.name], ctx, run, sides)
        yes = torch.ones_like(ctx.ids, dtype=torch.bool)
        here = replace(ctx, cond={**ctx.cond, POSITION: (place, yes)})
        planes = self.spec
        component = replace(planes[self.name], shape=tuple(x.shape[1:]))
        try:
            self.spec = StateSpec({self.name: component})
            return super().loss(denoiser, ({self.name: x}, here), run)
        finally:
            self.spec = planes

    def sides(self, run: Run) -> tuple[int, ...]:
        """Pixels along each axis of the patches of this step."""
        coin = mix_int(hash_text("large") ^ mix_int(run.seed) ^ run.step) / 2.0**64
        return self.big if coin < self.large else self.small

    def draw(self, x: Tensor, ctx: Context, run: Run, sides: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Patches [B, C, *sides] of moved slices and their places [B, d, 2]."""
        d, sides = len(self.space), tuple(sides or self.small)
        u = run.noise("", "patch", (8 + d,), ctx, "uniform").to(torch.float32)
        corner = torch.stack([(u[:, 8 + k] * (n - p + 1)).floor().clamp(max=n - p)
                              for k, (n, p) in enumerate(zip(self.space, sides, strict=True))], 1)
        out = self.moved(x, corner, sides, u)
        n = torch.tensor(self.space, dtype=torch.float32, device=x.device)
        place = torch.stack([(2.0 * corner + 1.0) / n - 1.0, (2.0 / n).expand_as(corner)], -1)
        return self.altered(out, u, ctx, run), place

    def moved(self, x: Tensor, corner: Tensor, sides: Sequence[int], u: Tensor) -> Tensor:
        """The values of x at the pixels of each patch, where the slice has been moved."""
        batch, d = len(x), len(self.space)
        shift = (u[:, :2] * (2 * self.shift + 1)).floor() - self.shift  # rows, columns: whole pixels
        warped = (u[:, 2] < self.warp).to(x.dtype) if d == 2 else torch.zeros(batch, device=x.device)
        angle = (2.0 * u[:, 3] - 1.0) * self.rotate * warped
        zoom = torch.exp((2.0 * u[:, 4] - 1.0) * math.log1p(self.zoom) * warped)
        middle = [(n - 1) / 2 for n in self.space]
        axes = [corner[:, k, None] + torch.arange(p, device=x.device) - middle[k] for k, p in enumerate(sides)]
        rows, columns = axes[-2] - shift[:, :1], axes[-1] - shift[:, 1:]
        cos, sin = (angle.cos() / zoom)[:, None, None], (angle.sin() / zoom)[:, None, None]
        row = cos * rows[:, :, None] - sin * columns[:, None, :]
        column = sin * rows[:, :, None] + cos * columns[:, None, :]
        mirrored = torch.where(u[:, 5] < self.flip, -1.0, 1.0)[:, None, None]
        scaled = [column * mirrored / (self.space[-1] / 2), row / (self.space[-2] / 2)]  # grid_sample: x first
        if d == 3:
            depth = (axes[0] / (self.space[0] / 2))[:, :, None, None].expand(-1, -1, *sides[1:])
            scaled = [s[:, None].expand_as(depth) for s in scaled] + [depth]
        return F.grid_sample(x, torch.stack(scaled, -1).to(x.dtype), mode="bicubic" if d == 2 else "bilinear",
                             padding_mode="zeros", align_corners=False)

    def altered(self, x: Tensor, u: Tensor, ctx: Context, run: Run) -> Tensor:
        """Other scanners: gain, gamma, noise of the picture itself."""
        view = (-1, *[1] * (x.dim() - 1))
        if self.gamma:
            power = 1.0 + self.gamma * (2.0 * u[:, 6] - 1.0)
            x = self.top * (x / self.top).clamp(min=0.0).pow(power.view(view))
        if self.gain:
            x = x * (1.0 + self.gain * (2.0 * u[:, 7] - 1.0)).view(view)
        if self.noise:
            spread = (self.noise * run.noise("", "spread", (1,), ctx, "uniform")).to(x.dtype)
            x = x + spread.view(view) * run.noise(self.name, "texture", tuple(x.shape[1:]), ctx).to(x.dtype)
        return x

    def report(self, preds: Predictions, state: State, t: Tensor, ctx: Context) -> dict[str, Tensor]:
        """The root mean square error of the data estimate in each bin of noise levels that occurs."""
        path = self.spec[self.name].path
        if not isinstance(path, GaussianPath):
            return {}
        error = (preds[self.name].data - state[self.name]).square().flatten(1).mean(1)
        rho = path.coefficients(t).rho
        out = {}
        for low, high in zip(BINS, BINS[1:], strict=False):
            here = (rho >= low) & (rho < high)
            if bool(here.any()):
                out[f"rmse_{low:g}"] = error[here].mean().sqrt()
        return out
