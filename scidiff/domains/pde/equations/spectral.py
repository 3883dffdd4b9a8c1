"""Pseudo-spectral ETDRK integration of an `Equation` on a periodic box, batched, on any device.

The state at the edges is real, [B, C, *shape]; inside it stays a spectrum from one step to the next: the half spectrum
(rfftn, norm="forward") in `step_hat`, which is out of place and differentiable; pairs of samples as one complex field
in `rollout`, which works in place, block by block of the batch. With `dealias` the state lives on |k| < N / (p + 1) in
each direction, p the degree of the products (p = 2: the 2/3 rule), so that products carry no aliases into it; the
Nyquist mode is left out always, because the derivative of a real field has none. Wavenumbers and coefficients are made
in float64 and cast last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scidiff.core.errors import NonFinite, UsageError
from scidiff.domains.pde.equations.equation import Equation, Extent
from scidiff.domains.pde.equations.grid import Symbols, lengths, wavenumbers
from scidiff.domains.pde.equations.march import March

REACH = {1: 0.5, 2: 1.0, 4: 2.8}  # longest explicit step, in units of 1 / (rate - damping)
BLOCK = 1 << 17  # grid values of one block on a CPU: the work space stays in the cache
EXCESS = 50.0  # a state this many times larger than what is typical has blown up
LOOK = 64  # frames between two looks at the numbers
ALIKE = 1e3  # samples of more different sizes do not share a transform: the faint one would meet the other's rounding


class BlowUp(NonFinite):
    """A rollout left the finite or physical range: at which step, in which samples; `frames` are the good ones."""

    def __init__(self, name: str, step: int, time: float, samples: list[int], frames: Tensor) -> None:
        others = f" and {len(samples) - 1} more" if len(samples) > 1 else ""
        super().__init__(f"The run of {name!r} blew up at step {step} (time {time:.4g}) in sample {samples[0]}"
                         f"{others}.", "Take a smaller dt or a finer grid.")
        self.step, self.time, self.samples, self.frames = step, time, samples, frames


class SpectralSolver:
    """Steps one equation on one grid with one step size, or one per sample.

    `extent` is the length of the box: a float, one an axis, or a tensor [B]; `dt` is a float or a tensor [B]; with a
    tensor there, or as a parameter of the equation, every state must have that batch size. `order` is 1, 2 or 4.
    A step that is too large for the explicit term at the equation's typical size is refused: see `limits`.
    """

    def __init__(self, equation: Equation, shape: tuple[int, ...], extent: Extent, dt: float | Tensor, order: int = 4,
                 dealias: bool = True, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu") -> None:
        self.equation, self.shape, self.extent, self.order = equation, tuple(shape), extent, order
        self.dt = float(dt) if isinstance(dt, Tensor) and not dt.dim() else dt
        self.dealias, self.dtype, self.device = dealias, dtype, torch.device(device)
        self._validate()
        self.rows = self._rows()  # batch size where coefficients differ from sample to sample
        dims = len(self.shape)
        self.half = (*self.shape[:-1], self.shape[-1] // 2 + 1)
        self._axes = tuple(range(-dims, 0))
        self._complex = torch.complex64 if dtype == torch.float32 else torch.complex128
        self._symbols = symbols = Symbols.of(equation, self.shape, extent, dealias, self.device)
        self._refuse(equation.typical.fastest, "")
        weights, force = symbols.weights(self.dt, order)
        self._weights, self._force = self._cast(weights), self._cast(force)
        self._nonlinear = None if symbols.nonlinear is None else symbols.nonlinear.to(self._complex)
        self._lift = None if symbols.lift is None else symbols.lift.to(self._complex)
        self._marches: dict[tuple[int, int, bool], March] = {}

    def _validate(self) -> None:
        equation = self.equation
        if len(self.shape) != equation.dims:
            raise UsageError(f"The equation {equation.name!r} lives in {equation.dims} dimension(s), the grid "
                             f"{list(self.shape)} in {len(self.shape)}.")
        if any(n < 8 for n in self.shape):
            raise UsageError(f"The grid {list(self.shape)} is too coarse.", "Take at least 8 points a direction.")
        if self.order not in REACH:
            raise UsageError(f"There is no scheme of order {self.order}.", "Take 1, 2 or 4.")
        if self.dtype not in (torch.float32, torch.float64):
            raise UsageError(f"The solver works in float32 or float64, not in {self.dtype}.")
        sizes = [("length of the box", length) for length in lengths(self.extent, equation.dims)]
        for name, value in [("step dt", self.dt), *sizes]:
            least = float(value.min()) if isinstance(value, Tensor) else float(value)
            if not (math.isfinite(least) and least > 0.0):
                raise UsageError(f"The {name} is {least:g}; it must be positive.")

    def _rows(self) -> int | None:
        """The one batch size of all tensors among extent, dt and the equation's parameters; None without any."""
        given = [self.extent, self.dt, *vars(self.equation).values()]
        sizes = {len(x) for x in given if isinstance(x, Tensor) and x.dim()}
        if len(sizes) > 1:
            raise UsageError(f"The parameters come for batches of different sizes: {sorted(sizes)}.")
        return sizes.pop() if sizes else None

    def _cast(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: v.to(self._complex if v.is_complex() else self.dtype) for n, v in values.items()}

    # -- limits

    def limits(self, fastest: float | None = None) -> dict[str, float]:
        """Largest steps, by what sets them, where the multiplied fields reach `fastest` (default: what is typical).

        The explicit term is safe while dt (rate - damping) stays below a constant of the scheme at every kept wave:
        what the exact linear part damps faster than the explicit term moves cannot grow.
        """
        symbols, out = self._symbols, {}
        growth = float(symbols.linear.real.amax())
        if growth > 0.0 and symbols.nonlinear is not None:
            out["the growth rate of the linear term"] = REACH[self.order] / growth
        rate = self.equation.rate(wavenumbers(self.shape, self.extent, self.device),
                                  self.equation.typical.fastest if fastest is None else fastest)
        if rate is not None:
            damping = (-symbols.linear.real).clamp(min=0.0)
            excess = float(torch.where(symbols.mask, rate - damping, 0.0).amax())
            if excess > 0.0:
                out["the explicit term at its fastest kept wave"] = REACH[self.order] / excess
        return out

    def _refuse(self, fastest: float, where: str) -> None:
        dt = float(self.dt.max()) if isinstance(self.dt, Tensor) else self.dt
        for what, limit in self.limits(fastest).items():
            if dt > limit:
                raise UsageError(f"dt = {dt:g} is too large for {self.equation.name!r} on the grid {list(self.shape)}: "
                                 f"{what}{where} allows at most {limit:.3g}.",
                                 f"Typical states are resolved with dt = {self.equation.typical.dt:g}.")

    # -- edges

    def _check(self, u: Tensor) -> Tensor:
        expected = (self.equation.channels, *self.shape)
        if tuple(u.shape[1:]) != expected:
            raise UsageError(f"A state of {self.equation.name!r} is [batch, {', '.join(map(str, expected))}], not "
                             f"{list(u.shape)}.")
        if self.rows is not None and u.shape[0] != self.rows:
            raise UsageError(f"The parameters are those of {self.rows} samples, the state has {u.shape[0]}.")
        return u.to(self.device, self.dtype)

    def to_hat(self, u: Tensor) -> Tensor:
        """[B, C, *shape] -> half spectrum [B, C, *half], without the modes that are not kept."""
        return torch.fft.rfftn(self._check(u), dim=self._axes, norm="forward") * self._symbols.mask

    def to_real(self, v: Tensor) -> Tensor:
        """[B, C, *half] -> [B, C, *shape]."""
        return torch.fft.irfftn(v, s=self.shape, dim=self._axes, norm="forward")

    # -- one step

    def _term(self, v: Tensor) -> Tensor:
        """N(v) without the constant force, [B, C, *half]."""
        u = self.to_real(v if self._lift is None else v * self._lift)
        products = torch.fft.rfftn(self.equation.products(u), dim=self._axes, norm="forward")
        return (products.unsqueeze(1) * self._nonlinear).sum(2)

    def step_hat(self, v: Tensor) -> Tensor:
        """One step of [B, C, *half], out of place and differentiable."""
        w, n, f = self._weights, self._term, self._force
        whole = w["whole"] * v
        if f:
            whole = whole + f["last"]
        if self._nonlinear is None:
            return whole
        n0 = n(v)
        if self.order == 1:
            return whole + w["n0"] * n0
        if self.order == 2:
            a = whole + w["n0"] * n0
            return a + w["n1"] * (n(a) - n0)
        half = w["half"] * v
        if f:
            half = half + f["stage"]
        a = half + w["stage"] * n0
        na = n(a)
        nb = n(half + w["stage"] * na)
        c = w["half"] * a + w["stage"] * (2.0 * nb - n0)
        if f:
            c = c + f["stage"]
        return whole + w["n0"] * n0 + w["n1"] * (na + nb) + w["n3"] * n(c)

    # -- many steps

    def rollout(self, u0: Tensor, steps: int, every: int = 1, out: Tensor | None = None,
                progress: Callable[[int, int], None] | None = None) -> Tensor:
        """[B, C, *shape] -> [B, frames, C, *shape]: the state after each `every` of `steps` steps, u0 excluded.

        `out` takes the frames (any floating dtype, a memory map too); `progress(done, total)` hears of frames, summed
        over the blocks of the batch. Rounding, and nothing else, depends on a sample's neighbour in its pair. A state
        that leaves the finite or the physical range raises `BlowUp`, whose `frames` hold all that were good.
        """
        u0 = self._check(u0)
        if steps < 1 or every < 1 or steps % every:
            raise UsageError(f"{steps} steps cannot be kept every {every}.", "Take a positive multiple of `every`.")
        batch, frames = u0.shape[0], steps // every
        if out is None:
            out = torch.empty(batch, frames, *u0.shape[1:], dtype=self.dtype, device=self.device)
        elif tuple(out.shape) != (batch, frames, *u0.shape[1:]):
            raise UsageError(f"`out` is {list(out.shape)}; the rollout needs {[batch, frames, *u0.shape[1:]]}.")
        with torch.inference_mode():
            bound, alike = self._bound(u0)
            blocks = self._blocks(batch)
            good = frames
            failed: tuple[int, list[int]] | None = None
            for number, (first, last) in enumerate(blocks):
                def tell(frame: int, base: int = number * frames) -> None:
                    if progress is not None:
                        progress(base + frame, len(blocks) * frames)

                step = self._march_block(u0[first:last], first, alike, good, every, out[first:last], bound, tell)
                if step is not None:
                    good, failed = (step[0] - 1) // every, (step[0], [first + i for i in step[1]])
            if failed is not None:
                dt = float(self.dt[failed[1][0]] if isinstance(self.dt, Tensor) else self.dt)
                raise BlowUp(self.equation.name, failed[0], failed[0] * dt, failed[1], out[:, :good])
        return out

    def _bound(self, u0: Tensor) -> tuple[float, bool]:
        """The largest |u| that is still believed, and whether the samples are alike in size.

        Refuses initial states that are not finite or too fast for dt.
        """
        bad = (~torch.isfinite(u0)).flatten(1).any(1).nonzero()
        if len(bad):
            raise UsageError(f"The initial state of sample {int(bad[0])} holds NaN or infinity.")
        fields = u0 if self._lift is None else self.to_real(self.to_hat(u0) * self._lift)
        typical, fastest, sizes = self.equation.typical, float(fields.abs().amax()), u0.flatten(1).abs().amax(1)
        if fastest > typical.fastest:
            self._refuse(fastest, f" (the initial state reaches {fastest:.3g})")
        return EXCESS * max(typical.largest, float(sizes.max())), bool(sizes.max() <= ALIKE * sizes.min())

    def _blocks(self, batch: int) -> list[tuple[int, int]]:
        values = self.equation.channels * math.prod(self.shape)
        rows = batch if self.device.type != "cpu" else max(2, BLOCK // values)
        count = -(-batch // rows)
        rows = 2 * -(-batch // (2 * count))  # even, and of equal size as far as that goes
        return [(i, min(i + rows, batch)) for i in range(0, batch, rows)]

    def _march(self, first: int, rows: int, alike: bool) -> tuple[March, int]:
        """The stepper of `rows` samples from `first` on, and how many it really carries: pairs where it can."""
        packed = self.rows is None and rows > 1 and alike
        carried = rows + rows % 2 if packed else rows
        key = (carried, 0 if self.rows is None else first, packed)
        if key not in self._marches:
            symbols, dt = self._symbols, self.dt
            if packed:
                symbols = Symbols.of(self.equation, self.shape, self.extent, self.dealias, self.device, whole=True)
            elif self.rows is not None:
                part = slice(first, first + rows)
                symbols = symbols.rows(part)
                dt = dt[part] if isinstance(dt, Tensor) else dt
            self._marches[key] = March(self.equation, symbols, self.shape, dt, self.order, carried, packed, self.dtype)
        return self._marches[key], carried

    def _march_block(self, u0: Tensor, first: int, alike: bool, frames: int, every: int, out: Tensor, bound: float,
                     tell: Callable[[int], None]) -> tuple[int, list[int]] | None:
        """Fills out[:, :frames]; None, or the first bad step and the samples that are bad there."""
        rows = u0.shape[0]
        march, carried = self._march(first, rows, alike)
        march.load(u0 if carried == rows else torch.cat([u0, u0[-1:]]))
        seen = 0
        for frame in range(frames):
            for _ in range(every):
                march.step()
            out[:, frame] = march.read()[:rows]
            if (frame + 1) % LOOK == 0 or frame + 1 == frames:
                new = out[:, seen : frame + 1].flatten(2).abs().amax(2)
                bad = (~(new <= bound)).any(0).nonzero()
                if len(bad):
                    return self._first_bad(u0 if seen + int(bad[0]) == 0 else out[:, seen + int(bad[0]) - 1], first,
                                           (seen + int(bad[0])) * every, every, bound)
                seen = frame + 1
            tell(frame + 1)
        return None

    def _first_bad(self, u: Tensor, first: int, step: int, every: int, bound: float) -> tuple[int, list[int]]:
        """Repeats the steps after the last good state one by one and without pairs; (step, samples of the block)."""
        mine = slice(0, u.shape[0]) if self.rows is None else slice(first, first + u.shape[0])
        whole = torch.zeros(self.rows or u.shape[0], *u.shape[1:], dtype=self.dtype, device=self.device)
        whole[mine] = u
        v, size = self.to_hat(whole), torch.zeros(u.shape[0])
        for number in range(1, every + 1):
            v = self.step_hat(v)
            size = self.to_real(v)[mine].flatten(1).abs().amax(1)
            bad = (~(size <= bound)).nonzero().flatten().tolist()
            if bad:
                return step + number, bad
        return step + every, [int(size.argmax())]
