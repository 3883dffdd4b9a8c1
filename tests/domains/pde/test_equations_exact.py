"""Equations with closed forms: advection-diffusion, Burgers, Korteweg-de Vries, Allen-Cahn, Gray-Scott."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.domains.pde.equations import (
    AdvectionDiffusion,
    AllenCahn,
    Burgers,
    GrayScott,
    KortewegDeVries,
    SpectralSolver,
)

F64 = torch.float64
TURN = 2.0 * math.pi


def line(n, length=TURN):
    return length * torch.arange(n, dtype=F64) / n


def relative(a, b):
    return float((a - b).norm() / b.norm())


def end(equation, u0, extent, dt, time, order=4):
    steps = round(time / dt)
    solver = SpectralSolver(equation, tuple(u0.shape[2:]), extent, time / steps, order=order, dtype=u0.dtype)
    return solver.rollout(u0, steps, steps)[:, 0]


# -- advection and diffusion


def test_advection_and_diffusion_is_exact_after_a_thousand_steps():
    x, time, c, nu = line(64, 3.0), 12.5, 0.7, 2e-3
    waves = torch.tensor([1.0, 4.0, 9.0, 20.0], dtype=F64)[:, None]
    k = TURN * waves / 3.0
    u0 = torch.cos(k * x + waves)[:, None]
    exact = (torch.exp(-nu * k**2 * time) * torch.cos(k * (x - c * time) + waves))[:, None]
    assert (end(AdvectionDiffusion(c, nu), u0, 3.0, time / 1000, time) - exact).abs().max() <= 1e-12


def test_advection_and_diffusion_in_two_dimensions():
    y, x, time, c, nu = line(24, 2.0)[:, None], line(32, 3.0)[None], 2.0, 0.7, 1e-2
    ky, kx = TURN * 2 / 2.0, TURN * 3 / 3.0
    u0 = torch.sin(ky * y + kx * x)[None, None].repeat(2, 1, 1, 1)
    exact = math.exp(-nu * (ky**2 + kx**2) * time) * torch.sin(ky * (y - c * time) + kx * (x - c * time))
    assert (end(AdvectionDiffusion(c, nu, dims=2), u0, (2.0, 3.0), 0.05, time) - exact).abs().max() <= 1e-12


# -- Burgers


def cole_hopf(x, nu, time):
    """u from u_0 = sin x: phi_0 = exp((cos x - 1)/(2 nu)) diffuses, u = -2 nu phi_x / phi."""
    phi = torch.fft.rfft(torch.exp((torch.cos(x) - 1.0) / (2.0 * nu)))
    k = torch.arange(len(phi), dtype=F64)
    phi = phi * torch.exp(-nu * k**2 * time)
    return -2.0 * nu * torch.fft.irfft(1j * k * phi, n=len(x)) / torch.fft.irfft(phi, n=len(x))


def test_burgers_is_of_fourth_order_against_cole_hopf():
    x = line(256)
    exact = cole_hopf(x, 0.05, 1.0)
    error = {dt: relative(end(Burgers(0.05), torch.sin(x)[None, None], TURN, dt, 1.0)[0, 0], exact)
             for dt in (0.05, 0.025)}
    assert 12.0 <= error[0.05] / error[0.025] <= 18.0
    assert error[0.025] <= 3e-7


@pytest.mark.parametrize("order", [1, 2])
def test_burgers_in_the_lower_orders(order):
    x = line(128)
    exact = cole_hopf(x, 0.05, 1.0)
    coarse, fine = (relative(end(Burgers(0.05), torch.sin(x)[None, None], TURN, dt, 1.0, order)[0, 0], exact)
                    for dt in (0.01, 0.005))
    assert abs(math.log2(coarse / fine) - order) <= 0.15


def test_burgers_loses_energy_and_keeps_its_mean():
    equation = Burgers(0.05)
    u0 = equation.initial(torch.arange(6), 0, (128,), TURN, F64) + 0.3
    frames = SpectralSolver(equation, (128,), TURN, 0.02, dtype=F64).rollout(u0, 100, 10)
    energy = torch.cat([u0[:, None], frames], 1).square().mean((2, 3))
    assert (energy.diff(dim=1) < 0.0).all()
    assert (frames.mean((2, 3)) - 0.3).abs().max() <= 1e-13


# -- Korteweg-de Vries


def test_solitons_travel_at_their_speed_and_keep_their_shape():
    speed, time, length, n = 2.0, 6.0, 40.0, 160
    x = line(n, length)
    u0 = KortewegDeVries.soliton(x - 12.0, speed)[None, None]
    exact = KortewegDeVries.soliton(x - 12.0 - speed * time, speed)[None, None]
    coarse, fine = (relative(end(KortewegDeVries(), u0, length, dt, time), exact) for dt in (0.02, 0.005))
    assert fine <= 3e-7 and abs(0.5 * math.log2(coarse / fine) - 4.0) <= 0.2


def test_two_solitons_pass_through_each_other():
    """Conserved: u, u^2 and u^3 - u_x^2 / 2 in the mean; both come out with their own height."""
    x, (fast, slow) = line(256, 60.0), (3.0, 1.0)
    u0 = (KortewegDeVries.soliton(x - 12.0, fast) + KortewegDeVries.soliton(x - 27.0, slow))[None, None]
    u = end(KortewegDeVries(), u0, 60.0, 0.005, 14.0)[0, 0]
    k = torch.arange(129, dtype=F64) * TURN / 60.0

    def invariants(w):
        slope = torch.fft.irfft(1j * k * torch.fft.rfft(w), n=256)
        return torch.stack([w.mean(), w.square().mean(), (w**3 - 0.5 * slope**2).mean()])

    assert ((invariants(u) - invariants(u0[0, 0])) / invariants(u0[0, 0])).abs().max() <= 3e-6
    fine = torch.fft.irfft(torch.fft.rfft(u), n=4096) * 16.0
    peaks = fine[(fine > fine.roll(1)) & (fine > fine.roll(-1)) & (fine > 0.1)].sort().values
    assert (peaks - torch.tensor([slow / 2, fast / 2], dtype=F64)).abs().max() <= 2e-3


# -- Allen-Cahn


def test_allen_cahn_without_walls_is_an_ordinary_differential_equation():
    """u' = u - u^3: u^2 = 1 / (1 + (1/u_0^2 - 1) exp(-2 t)), to fourth order."""
    start = torch.tensor([0.1, -0.5, 1.05], dtype=F64).view(3, 1, 1)
    exact = start.sign() / torch.sqrt(1.0 + (1.0 / start**2 - 1.0) * math.exp(-2.0 * 3.0))
    errors = [float((end(AllenCahn(), start.expand(3, 1, 16), TURN, dt, 3.0) - exact).abs().max())
              for dt in (0.1, 0.05)]
    assert errors[1] <= 1e-6 and 12.0 <= errors[0] / errors[1] <= 20.0


def test_walls_of_allen_cahn_are_at_rest():
    width = 0.1
    x = line(384)
    u0 = (torch.tanh((x - 0.5 * math.pi) / (math.sqrt(2.0) * width))
          - torch.tanh((x - 1.5 * math.pi) / (math.sqrt(2.0) * width)) - 1.0)[None, None]
    assert (end(AllenCahn(width), u0, TURN, 0.05, 5.0) - u0).abs().max() <= 1e-7


def test_a_faint_wave_of_allen_cahn_grows_at_its_own_rate():
    x = line(64)
    u0 = 1e-6 * torch.cos(3 * x)[None, None]
    exact = math.exp((1.0 - 0.15**2 * 9) * 2.0) * u0
    assert relative(end(AllenCahn(0.15), u0, TURN, 0.05, 2.0), exact) <= 1e-9


def test_allen_cahn_runs_down_its_energy_in_two_dimensions():
    equation, n = AllenCahn(0.2, dims=2), 48
    u0 = equation.initial(torch.arange(3), 0, (n, n), TURN, F64)
    solver = SpectralSolver(equation, (n, n), TURN, 0.05, dtype=F64)
    u0 = solver.to_real(solver.to_hat(u0))
    frames = torch.cat([u0[:, None], solver.rollout(u0, 100, 5)], 1)[:, :, 0]
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=F64)
    square = k[:, None] ** 2 + k**2
    gradient = (torch.fft.fft2(frames, norm="forward").abs() ** 2 * square).sum((-2, -1))
    energy = 0.5 * 0.2**2 * gradient + 0.25 * ((frames**2 - 1.0) ** 2).mean((-2, -1))
    assert (energy.diff(dim=1) < 0.0).all()


def test_a_disc_of_allen_cahn_shrinks_by_its_curvature():
    """d(R^2)/dt = -2 eps^2, up to terms of order (eps/R)^2."""
    eps, n, radius = 0.1, 128, 1.6
    x = line(n) - math.pi
    away = torch.sqrt(x[:, None] ** 2 + x**2)
    u0 = torch.tanh((radius - away) / (math.sqrt(2.0) * eps))[None, None].repeat(2, 1, 1, 1)
    solver = SpectralSolver(AllenCahn(eps, dims=2), (n, n), TURN, 0.25, dtype=F64)
    area = 0.5 * (solver.rollout(u0, 160, 40)[0, :, 0] + 1.0).mean((-2, -1)) * TURN**2
    rate = float((area.diff() / 10.0).mean()) / math.pi
    assert abs(rate / (-2.0 * eps**2) - 1.0) <= 0.03


# -- Gray-Scott


def test_gray_scott_without_its_second_species_is_linear():
    """b = 0: every mode of a - 1 decays like exp(-(D k^2 + F) t)."""
    y, x, time = line(24, 2.5)[:, None], line(32, 2.5)[None], 100.0
    k2 = (TURN / 2.5) ** 2 * (4 + 9)
    wave = torch.cos(TURN / 2.5 * (2 * y + 3 * x))
    a0 = 0.8 + 0.1 * wave
    u0 = torch.stack([a0, torch.zeros_like(a0)])[None].repeat(2, 1, 1, 1)
    exact = 1.0 + math.exp(-0.03 * time) * (-0.2 + 0.1 * wave * math.exp(-2e-5 * k2 * time))
    u = end(GrayScott(), u0, 2.5, 1.0, time)
    assert (u[:, 0] - exact).abs().max() <= 1e-12 and u[:, 1].abs().max() == 0.0


def test_gray_scott_reacts_as_its_closed_form_says():
    """F = K = 0, no gradients: a + b = s stays, and ln(b/a)/s^2 - 1/(s b) = t + const."""
    u0 = torch.tensor([0.7, 0.3], dtype=F64).view(1, 2, 1, 1).repeat(2, 1, 16, 16)
    u0[1, :, :, :] = torch.tensor([0.9, 0.2], dtype=F64).view(2, 1, 1)
    total, time = u0.sum(1, keepdim=True), 4.0

    def clock(u):
        a, b = u[:, :1], u[:, 1:]
        return torch.log(b / a) / total**2 - 1.0 / (total * b)

    errors = []
    for dt in (0.5, 0.25):
        u = end(GrayScott(feed=0.0, kill=0.0), u0, 2.5, dt, time)
        assert (u.sum(1, keepdim=True) - total).abs().max() <= 1e-13
        errors.append(float((clock(u) - clock(u0) - time).abs().max()))
    assert errors[1] <= 1e-5 and 11.0 <= errors[0] / errors[1] <= 22.0
