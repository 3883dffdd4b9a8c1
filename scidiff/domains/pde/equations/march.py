"""The in-place integrator behind `SpectralSolver.rollout`: many steps of one block of the batch.

Two layouts of the same step. *Packed*: two neighbouring samples a, b travel as one complex field u_a + i u_b, so
that every transform is a complex one of half the batch; these are faster than real ones of the whole batch, and all
symbols apply to the full spectrum as they are, because a pair of real fields is linear in both. *Half*: one sample, or
coefficients of its own for every sample, on the half spectrum.

Order 4 is written in its stages (with Q the stage weight, e = exp(hL/2), n0, n1, n3 the weights of Cox and Matthews):

    t = e v,   a = t + Q N(v),   b = t + Q N(a),   c = (e - 1) a + t + 2 Q N(b),
    v' = alpha v + beta a + gamma b + delta c + n3 N(c),
    beta = (n0 - n1 (e - 1)/2)/Q,  gamma = n1/Q,  delta = n1/(2Q),  alpha = e^2 - e (n0/Q + gamma + delta),

which is the usual scheme with N(v), N(a), N(b) replaced by the stages they made. N meets four weights instead of seven,
so the factor -ik/2 of a transport term can live in them (complex), and all other weights stay real. This is for real L,
where Q > 0; a turning L has zeros of Q (z = 4 pi i n) and takes the scheme as Cox and Matthews wrote it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scidiff.domains.pde.equations.equation import Equation
from scidiff.domains.pde.equations.grid import Symbols

Views = tuple[Tensor, Tensor]  # one buffer seen as complex [b, C, *modes] and as real [b, C, *modes, 2]
NONLINEAR = ("q", "-q", "2q", "n0", "n1", "-n1", "n3")  # the weights that multiply N
Weight = tuple[Tensor, bool]  # a complex weight and False, or a real one, every value twice, and True


def stage_weights(etd: dict[str, Tensor], idle: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Weights of the stage form of order 4; where the nonlinear term is `idle` the step is v' = e^2 v exactly."""
    e, n0, n1 = etd["half"], etd["n0"], etd["n1"]
    zero = torch.zeros_like(e)
    q = torch.where(mask, etd["stage"], torch.ones_like(e))
    beta, gamma, delta = (n0 - 0.5 * n1 * (e - 1.0)) / q, n1 / q, 0.5 * n1 / q
    alpha = etd["whole"] - e * (n0 / q + gamma + delta)
    return {"t": e, "am": torch.where(mask, e - 1.0, zero), "q": etd["stage"], "2q": 2.0 * etd["stage"],
            "n3": etd["n3"], "alpha": torch.where(idle, etd["whole"], alpha),
            **{n: torch.where(idle, zero, x) for n, x in (("beta", beta), ("gamma", gamma), ("delta", delta))}}


def stage_force(etd: dict[str, Tensor], force: dict[str, Tensor], idle: Tensor,
                f: Tensor | None) -> dict[str, Tensor]:
    """A constant force in the stage form: Q f in the stages; at the end n3 f alone, for the stages carry the rest."""
    return {} if f is None else {"stage": force["stage"], "last": torch.where(idle, force["last"], etd["n3"] * f)}


class March:
    """Steps `rows` samples on `symbols` (of the whole spectrum if `packed`; then `rows` is even)."""

    def __init__(self, equation: Equation, symbols: Symbols, shape: tuple[int, ...], dt: float | Tensor, order: int,
                 rows: int, packed: bool, dtype: torch.dtype) -> None:
        self.shape, self.rows, self.packed, self.dims = shape, rows, packed, len(shape)
        self.products, self.real, self.device = equation.products, dtype, symbols.mask.device
        self.complex = torch.complex64 if dtype == torch.float32 else torch.complex128
        self.modes = shape if packed else (*shape[:-1], shape[-1] // 2 + 1)
        self.lines = rows // 2 if packed else rows
        self._back, self._forth = self._transforms()
        self.mask = symbols.mask
        g = symbols.nonlinear
        self.folds = g is not None and g.shape[-self.dims - 1] == 1
        steps = {0: self._step_0, 1: self._step_1, 2: self._step_2, 4: self._step_4}
        number = order if g is not None else 0
        self.step: Callable[[], None] = steps[number]
        held = {0: 1, 1: 1, 2: 2, 4: 4}[number] + (g is not None and not self.folds)
        self.buffers = [self._buffer(equation.channels) for _ in range(held)]
        weights, force = symbols.weights(dt, order)
        if number == 4 and symbols.linear.is_complex():
            self.step = self._step_4_turning
            weights |= {"q": weights["stage"], "-q": -weights["stage"], "2q": 2.0 * weights["stage"]}
        elif number == 4 and g is not None:
            idle = (g.abs().sum(-self.dims - 1) == 0.0) & symbols.mask
            force = stage_force(weights, force, idle, symbols.force)
            weights = stage_weights(weights, idle, symbols.mask)
        if number == 2:
            weights["-n1"] = -weights["n1"]
        self.weights = {name: self._weight(w) for name, w in self._folded(weights, g).items()}
        self.symbols = [] if self.folds or g is None else [self._weight(g.select(-self.dims - 1, p))
                                                           for p in range(g.shape[-self.dims - 1])]
        # Does anything real multiply the transformed products? If not, their real view is never looked at.
        self._as_real = any(real for _, real in self.symbols) or any(self.weights[n][1] for n in NONLINEAR
                                                                     if n in self.weights)
        self.lift = None if symbols.lift is None else symbols.lift.to(self.complex)
        self.force = {name: self._kicks(f, equation.channels) for name, f in force.items()}

    def _buffer(self, channels: int) -> Views:
        whole = torch.zeros(self.lines, channels, *self.modes, dtype=self.complex, device=self.device)
        return whole, torch.view_as_real(whole)

    def _folded(self, weights: dict[str, Tensor], symbols: Tensor | None) -> dict[str, Tensor]:
        """Weights of N times the one symbol, where there is one product."""
        if not self.folds or symbols is None:
            return weights
        symbol = symbols.squeeze(-self.dims - 1)
        return {n: w * symbol if n in NONLINEAR else w for n, w in weights.items()}

    def _weight(self, w: Tensor) -> Weight:
        if w.is_complex() and float(w.imag.abs().max()) > 0.0:
            return w.to(self.complex).contiguous(), False
        w = w.real if w.is_complex() else w
        return w.unsqueeze(-1).repeat_interleave(2, -1).to(self.real).contiguous(), True

    def _kicks(self, force: Tensor, channels: int) -> list[tuple[tuple[int, ...], Tensor]]:
        """(place in the state, value [] or [rows]) of a constant force; both samples of a pair feel it."""
        values = force.expand(*force.shape[: -self.dims - 1], channels, *self.modes)
        values = (values * (1.0 + 1.0j if self.packed else 1.0)).to(self.complex)
        anywhere = (values != 0.0).flatten(0, -self.dims - 2).any(0) if values.dim() > self.dims + 1 else values != 0.0
        places = [tuple(int(i) for i in place) for place in anywhere.nonzero()]
        return [(place, values[..., *place].clone()) for place in places]

    # -- state

    def load(self, u: Tensor) -> None:
        """Takes real states [rows, C, *shape]."""
        z = torch.complex(u[0::2], u[1::2]) if self.packed else u
        self.buffers[0][0].copy_(self._forth(z) * self.mask)

    def read(self) -> Tensor:
        """The real states [rows, C, *shape]."""
        z = self._back(self.buffers[0][0])
        return torch.view_as_real(z).movedim(-1, 1).flatten(0, 1) if self.packed else z

    def _transforms(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Spectrum -> grid and grid -> spectrum; spelt out by dimension, since the general calls cost twice as much."""
        f, n, s = torch.fft, "forward", self.shape
        if self.dims == 1:
            if self.packed:
                return (lambda v: f.ifft(v, norm=n)), (lambda z: f.fft(z, norm=n))
            return (lambda v: f.irfft(v, s[0], norm=n)), (lambda u: f.rfft(u, norm=n))
        if self.packed:
            return (lambda v: f.ifft2(v, norm=n)), (lambda z: f.fft2(z, norm=n))
        return (lambda v: f.irfft2(v, s, norm=n)), (lambda u: f.rfft2(u, norm=n))

    # -- pieces of a step

    def _term(self, v: Tensor) -> Views:
        """What the weights of N multiply: the transformed product, or the sum of symbols times products."""
        z = self._back(v if self.lift is None else v * self.lift)
        u = torch.view_as_real(z) if self.packed else z
        product = self.products(u, u)
        p = self._forth((z if product is u else torch.view_as_complex(product)) if self.packed else product)
        views = p, torch.view_as_real(p) if self._as_real else p
        if self.folds:
            return views
        out = self.buffers[-1]
        for number, (symbol, real) in enumerate(self.symbols):
            mine, target = views[real][:, number : number + 1], out[real]
            if number == 0:
                torch.mul(mine, symbol, out=target)
            else:
                target.addcmul_(mine, symbol)
        return out

    def _scale(self, x: Views, name: str, out: Views) -> None:
        w, real = self.weights[name]
        torch.mul(x[real], w, out=out[real])

    def _add(self, base: Views, x: Views, name: str, out: Views) -> None:
        w, real = self.weights[name]
        torch.addcmul(base[real], x[real], w, out=out[real])

    def _kick(self, name: str, out: Views) -> None:
        for place, value in self.force.get(name, ()):
            out[0][:, *place] += value

    # -- steps

    def _step_0(self) -> None:
        (v, *_) = self.buffers
        self._scale(v, "whole", v)
        self._kick("last", v)

    def _step_1(self) -> None:
        (v, *_) = self.buffers
        n = self._term(v[0])
        self._scale(v, "whole", v)
        self._add(v, n, "n0", v)
        self._kick("last", v)

    def _step_2(self) -> None:
        v, a, *_ = self.buffers
        n = self._term(v[0])
        self._scale(v, "whole", v)
        self._add(v, n, "n0", v)
        self._kick("last", v)
        a[0].copy_(v[0])
        self._add(v, n, "-n1", v)
        self._add(v, self._term(a[0]), "n1", v)

    def _step_4(self) -> None:  # the stage form
        v, t, a, b, *_ = self.buffers
        self._scale(v, "t", t)
        self._kick("stage", t)
        self._add(t, self._term(v[0]), "q", a)
        self._add(t, self._term(a[0]), "q", b)
        self._scale(v, "alpha", v)
        self._add(v, a, "beta", v)
        self._add(v, b, "gamma", v)
        self._add(t, a, "am", t)
        self._kick("stage", t)
        self._add(t, self._term(b[0]), "2q", t)
        self._add(v, t, "delta", v)
        self._add(v, self._term(t[0]), "n3", v)
        self._kick("last", v)

    def _step_4_turning(self) -> None:  # as written by Cox and Matthews
        v, t, a, b, *_ = self.buffers
        n = self._term(v[0])
        self._scale(v, "half", t)
        self._kick("stage", t)
        self._add(t, n, "q", a)
        self._scale(a, "half", b)
        self._add(b, n, "-q", b)
        self._kick("stage", b)
        self._scale(v, "whole", v)
        self._add(v, n, "n0", v)
        self._kick("last", v)
        n = self._term(a[0])
        self._add(v, n, "n1", v)
        self._add(t, n, "q", a)
        n = self._term(a[0])
        self._add(v, n, "n1", v)
        self._add(b, n, "2q", b)
        self._add(v, self._term(b[0]), "n3", v)
