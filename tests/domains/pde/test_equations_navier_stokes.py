"""Two-dimensional Navier-Stokes: three forms of the transport term, exact solutions, conservation, the forced flow."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.domains.pde.equations import NavierStokes2d, SpectralSolver
from scidiff.domains.pde.equations.equation import joined, squared

F64 = torch.float64
TURN = 2.0 * math.pi


class Conservative(NavierStokes2d):
    """-(u w)_x - (v w)_y."""

    def lift(self, k):
        u, v = super().lift(k)
        return torch.stack([u, v, torch.ones_like(u)])

    def rate(self, k, fastest):  # its third field is no velocity
        return None

    def products(self, u, out=None):
        return u[:, :2] * u[:, 2:]

    def symbols(self, k):
        ky, kx = k
        return -1j * joined((kx, ky), 2).unsqueeze(-4)


class Advective(NavierStokes2d):
    """-(u w_x + v w_y)."""

    def lift(self, k):
        (u, v), (ky, kx) = super().lift(k), k
        return torch.stack([u, v, (1j * kx).expand_as(u), (1j * ky).expand_as(u)])

    def rate(self, k, fastest):
        return None

    def products(self, u, out=None):
        return (u[:, :2] * u[:, 2:]).sum(1, keepdim=True)

    def symbols(self, k):
        return -joined((torch.ones_like(squared(k)),), 2).unsqueeze(-4)


def run(kind, dtype, steps=20, **parameters):
    equation = kind(**parameters)
    u0 = equation.initial(torch.arange(4), 5, (64, 48), TURN, F64)
    return SpectralSolver(equation, (64, 48), TURN, 0.01, dtype=dtype).rollout(u0, steps, steps)[:, 0].to(F64)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (F64, 1e-13)], ids=["single", "double"])
def test_three_forms_of_transport_agree(dtype, tolerance):
    basdevant = run(NavierStokes2d, dtype)
    for kind in (Conservative, Advective):
        assert (run(kind, dtype) - basdevant).norm() <= tolerance * basdevant.norm()
    assert (run(NavierStokes2d, dtype, steps=1) - basdevant).norm() > 0.01 * basdevant.norm()  # it moved


@pytest.mark.parametrize("waves, tilted", [((2, 2), False), ((1, 3), False), ((3, 4), True)])
def test_taylor_green_vortices_only_decay(waves, tilted):
    """Any w with lap w = -k^2 w is carried along itself: w = w_0 exp(-(nu k^2 + d) t)."""
    n, nu, drag, time = 48, 0.01, 0.05, 2.0
    x = TURN * torch.arange(n, dtype=F64) / n
    p, q = waves
    w0 = torch.sin(p * x)[:, None] * torch.cos(q * x)[None]
    if tilted:  # sums of waves with one |k| as well: (3, 4), (5, 0), (0, 5)
        w0 = w0 + torch.cos(5 * x)[:, None] + 0.5 * torch.sin(5 * x)[None]
    w0 = w0[None, None].repeat(2, 1, 1, 1)
    equation = NavierStokes2d(viscosity=nu, drag=drag, forcing_amplitude=0.0)
    w = SpectralSolver(equation, (n, n), TURN, 0.02, dtype=F64).rollout(w0, 100, 100)[:, 0]
    assert (w - math.exp(-(nu * (p**2 + q**2) + drag) * time) * w0).abs().max() <= 1e-11


def test_the_laminar_kolmogorov_flow_is_a_fixed_point():
    """w = -A k_f cos(k_f y) / (nu k_f^2 + d) balances the force; from rest it is reached like 1 - exp(-rate t)."""
    equation = NavierStokes2d(viscosity=0.1, drag=0.1, forcing_wavenumber=3, forcing_amplitude=0.5)
    y = 5.0 * torch.arange(24, dtype=F64) / 24
    k = 3 * TURN / 5.0
    rate = 0.1 * k**2 + 0.1
    rest = torch.zeros(2, 1, 24, 24, dtype=F64)
    frames = SpectralSolver(equation, (24, 24), 5.0, 0.05, dtype=F64).rollout(rest, 100, 50)
    for frame, time in enumerate((2.5, 5.0)):
        exact = -0.5 * k * torch.cos(k * y)[:, None] * (1.0 - math.exp(-rate * time)) / rate
        assert (frames[:, frame, 0] - exact).abs().max() <= 1e-12


def test_without_viscosity_energy_and_enstrophy_stay():
    equation = NavierStokes2d(viscosity=0.0, drag=0.0, forcing_amplitude=0.0)
    n = 48
    w0 = equation.initial(torch.arange(2), 0, (n, n), TURN, F64)
    w = SpectralSolver(equation, (n, n), TURN, 0.002, dtype=F64).rollout(w0, 250, 250)[:, 0]
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=F64)
    square = k[:, None] ** 2 + k**2
    square[0, 0] = 1.0

    def enstrophy_and_energy(w):
        power = torch.fft.fft2(w[:, 0], norm="forward").abs() ** 2
        return torch.stack([power.sum((-2, -1)), (power / square).sum((-2, -1))])

    before, after = enstrophy_and_energy(w0), enstrophy_and_energy(w)
    assert ((after - before) / before).abs().max() <= 1e-6
    assert (w - w0).norm() > 0.1 * w0.norm()


@pytest.mark.slow
def test_the_forced_flow_reaches_its_vorticity():
    equation = NavierStokes2d()
    w0 = equation.initial(torch.arange(4), 0, (128, 128), TURN)
    frames = SpectralSolver(equation, (128, 128), TURN, 0.01).rollout(w0, 4000, 100)
    assert abs(float(frames[:, 25:].square().mean().sqrt()) - 4.7) <= 0.3
