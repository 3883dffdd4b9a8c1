"""Kuramoto-Sivashinsky: symmetries to round-off, statistics of the attractor, exponents, laminar states, accuracy."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.domains.pde.equations import KuramotoSivashinsky, SpectralSolver, laminar, lyapunov

F64 = torch.float64
KS = KuramotoSivashinsky()


def solver(n, extent, dt, nu=1.0, **more):
    return SpectralSolver(KuramotoSivashinsky(nu), (n,), extent, dt, dtype=F64, **more)


def developed(count, n, extent, time, dt=0.1):
    u0 = KS.initial(torch.arange(count), 11, (n,), extent, F64)
    steps = round(time / dt)
    return solver(n, extent, dt).rollout(u0, steps, steps)[:, 0]


@pytest.fixture(scope="module")
def attractor():
    """64 states at L = 64 on 128 points, 100 time units after their beginning."""
    return developed(64, 128, 64.0, 100.0)


def one(u, extent, dt, nu=1.0):
    s = solver(u.shape[-1], extent, dt, nu)
    return s.to_real(s.step_hat(s.to_hat(u)))


# -- exact properties of a step


def test_shift_reflection_and_mean_to_round_off(attractor):
    u, after = attractor, one(attractor, 64.0, 0.1)
    assert (one(u.roll(37, -1), 64.0, 0.1) - after.roll(37, -1)).abs().max() <= 1e-12

    def mirror(w):  # x -> -x on the grid x_i = i L / N
        return -w.flip(-1).roll(1, -1)

    assert (one(mirror(u), 64.0, 0.1) - mirror(after)).abs().max() <= 1e-12
    assert (after.mean(-1) - u.mean(-1)).abs().max() <= 1e-12


@pytest.mark.parametrize("nu", [0.5, 1.5])
def test_viscosity_is_a_scale(attractor, nu):
    """(nu, L, dt) -> (1, L / sqrt(nu), dt / nu) with u -> u sqrt(nu)."""
    scaled = one(attractor / math.sqrt(nu), 64.0 * math.sqrt(nu), 0.1 * nu, nu)
    assert (scaled * math.sqrt(nu) - one(attractor, 64.0, 0.1)).abs().max() <= 1e-12


def test_uniform_velocity_is_a_change_of_frame():
    """u(x, t) + c solves the equation if u(x + c t, t) does; here c t is a whole number of grid steps."""
    u0 = developed(4, 96, 48.0, 60.0)
    c, steps = 0.5, 40
    plain = solver(96, 48.0, 0.05).rollout(u0, steps, steps)
    moving = solver(96, 48.0, 0.05).rollout(u0 + c, steps, steps)
    assert (moving - c - plain.roll(round(c * steps * 0.05 / 0.5), -1)).abs().max() <= 2e-5


def test_the_scheme_is_of_fourth_order(attractor):
    u0 = attractor[:8]
    ends = {n: solver(128, 64.0, 4.0 / n).rollout(u0, n, n) for n in (40, 80, 640)}
    coarse, fine = ((ends[n] - ends[640]).norm() / ends[640].norm() for n in (40, 80))
    assert coarse <= 3e-5 and 7.0 <= coarse / fine <= 18.0  # stiff and not yet asymptotic at dt = 0.1: about 10


# -- the attractor at L = 64


def test_statistics_of_the_attractor(attractor):
    """64 trajectories over 100 time units: energy budget, size, spectrum."""
    frames = solver(128, 64.0, 0.1).rollout(attractor, 1000, 20)
    v = torch.fft.rfft(frames, norm="forward")
    k = 2.0 * math.pi / 64.0 * torch.arange(65, dtype=F64)
    power = 2.0 * (v.abs() ** 2).mean((0, 1, 2))
    power[0] *= 0.5
    assert abs(float((k**2 * power).sum() / (k**4 * power).sum()) - 1.0) <= 0.005  # <u_x^2> = <u_xx^2>
    assert abs(float(frames.square().mean().sqrt()) - 1.317) <= 0.02
    assert abs(float((frames**3).mean()) / 1.317**3) <= 0.03
    assert abs(float((frames**4).mean() / frames.square().mean() ** 2) - 2.08) <= 0.1
    smooth = torch.nn.functional.avg_pool1d(power.view(1, 1, -1), 3, 1, 1).flatten()
    assert 0.6 <= float(k[smooth.argmax()]) <= 0.8
    tail = (k >= 2.0) & (k <= 4.0)
    design = torch.stack([k[tail], torch.ones_like(k[tail])], 1)
    slope = torch.linalg.lstsq(design, power[tail].log()[:, None]).solution[0, 0]
    assert abs(float(slope) + 6.4) <= 0.3
    assert float(frames.abs().max()) < KS.typical.largest * 1.1


def test_correlation_time_of_a_coarse_step(attractor):
    """Mean Pearson correlation with dt = 0.025 falls below 0.8 after 104 time units at dt = 0.1."""
    every, frames = 0.8, 170
    runs = []
    for dt in (0.1, 0.025):
        n = round(every / dt)
        runs.append(solver(128, 64.0, dt).rollout(attractor, n * frames, n)[:, :, 0])
    a, b = (r - r.mean(-1, keepdim=True) for r in runs)
    correlation = ((a * b).mean(-1) / (a.square().mean(-1) * b.square().mean(-1)).sqrt()).mean(0)
    first = int((correlation < 0.8).nonzero()[0])
    assert abs((first + 1) * every - 104.0) <= 10.0
    assert float(correlation[:50].min()) > 0.999


# -- chaos


def test_leading_exponent_at_22():
    u0 = developed(48, 64, 22.0, 200.0, dt=0.2)
    exponent = lyapunov(solver(64, 22.0, 0.2), u0, 1000.0, every=10.0, discard=50.0)
    assert abs(float(exponent.mean()) - 0.048) <= 0.004


@pytest.mark.slow
def test_leading_exponent_at_64(attractor):
    exponent = lyapunov(solver(128, 64.0, 0.1), attractor[:32], 1000.0, every=10.0, discard=50.0)
    assert abs(float(exponent.mean()) - 0.0865) <= 0.006


def test_cells_that_do_not_diverge_are_called_laminar(attractor):
    still = developed(6, 64, 32.0, 600.0, dt=0.2)
    assert laminar(solver(64, 32.0, 0.2), still).all()
    assert not laminar(solver(128, 64.0, 0.1), attractor[:6]).any()


def test_laminar_states_are_found_with_a_box_for_each_sample():
    still, wild = developed(3, 64, 32.0, 600.0, dt=0.2), developed(3, 64, 22.0, 300.0, dt=0.2)
    box = torch.tensor([32.0, 32.0, 32.0, 22.0, 22.0, 22.0])
    found = laminar(SpectralSolver(KS, (64,), box, 0.2, dtype=torch.float32), torch.cat([still, wild]),
                    horizon=300.0)
    assert found.tolist() == [True] * 3 + [False] * 3
