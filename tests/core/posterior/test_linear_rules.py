"""Wrappers and rules that are linear: exact moments of the implementation beside recursions from the formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from scidiff.core.path import VP
from scidiff.core.posterior import DDNM, DDRM, DDS, MBIR, DiffPIR, FlowChef, FlowDPS, PiGDM
from scidiff.core.posterior.toy import Dense, GaussianToy
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed

STEPS = 8


def times_of(method, toy):
    return method.driver(toy.problem(1)).times(toy.spec)


@pytest.mark.parametrize("eta", [0.0, 0.85])
def test_ddnm_replaces_what_is_measured(law, small, eta):
    method = DDNM(STEPS, eta, stop=False)
    inverse = law.pinv()
    law.mix(times_of(method, small), lambda t: (law.eye - inverse @ law.a, inverse @ law.y), lambda s: eta)
    assert law.agrees(method)


@pytest.mark.parametrize("xi, known", [(0.3, True), (1.0, False)])
def test_diffpir_solves_its_quadratic_and_renews_the_noise(law, small, xi, known):
    """Once through the singular values and once by conjugate gradients."""
    small.operator = Dense(small.matrix, known)
    method = DiffPIR(STEPS, lam=0.7, xi=xi)

    def pull(t):
        p = 0.7 * law.sigma**2 / small.path.coefficients(t).rho ** 2
        inverse = torch.linalg.inv(law.a.T @ law.a + p * law.eye)
        return p * inverse, inverse @ law.a.T @ law.y

    law.mix(times_of(method, small), pull, lambda s: math.sqrt(xi), keep=False)
    assert law.agrees(method, 1e-6 if known else 1e-3)


@pytest.mark.parametrize("weight", [None, 3.0])
def test_dds_with_all_its_iterations_is_least_squares(law, small, weight):
    method = DDS(STEPS, 0.5, cg=10, weight=weight, stop=False)
    if weight is None:
        inverse = law.pinv()
        p, q = law.eye - inverse @ law.a, inverse @ law.y
    else:
        inverse = torch.linalg.inv(law.eye + weight * law.a.T @ law.a)
        p, q = inverse, weight * inverse @ law.a.T @ law.y
    law.mix(times_of(method, small), lambda t: (p, q), lambda s: 0.5)
    assert law.agrees(method, 1e-3)


def test_a_data_step_from_outside_takes_the_place_of_cg(law, small):
    seen = []

    def halved(x, y, operator, memory):
        memory["calls"] = memory.get("calls", 0) + 1
        seen.append(memory["calls"])
        return 0.5 * x + operator.adjoint(y)

    method = DDS(STEPS, 0.85, step=halved)
    law.mix(times_of(method, small), lambda t: (0.5 * law.eye, law.a.T @ law.y), lambda s: 0.85)
    assert law.agrees(method) and method.couples
    assert seen == [*range(1, STEPS + 1), *range(1, STEPS + 1)]  # memory lives through a run and no longer


@pytest.mark.parametrize("image, final", [(True, False), (False, True)])
def test_flowdps_weighs_gradient_steps_by_the_time(law, small, image, final):
    method = FlowDPS(STEPS, inner=3, step=0.6, image=image, final=final)
    b = 0.6 * (law.a.T @ law.a @ law.a.T if image else law.a.T)
    one, add = law.eye - b @ law.a, b @ law.y
    three, all_ = one @ one @ one, add + one @ add + one @ one @ add

    def pull(t):
        k = small.path.coefficients(t)
        u = k.sigma / (k.alpha + k.sigma)
        return (1 - u) * law.eye + u * three, u * all_

    def eta(s):
        k = small.path.coefficients(s)
        return math.sqrt(k.alpha / (k.alpha + k.sigma))

    law.mix(times_of(method, small), pull, eta, final=(lambda t: (three, all_)) if final else None)
    assert law.agrees(method)


@pytest.mark.parametrize("image", [True, False])
def test_flowchef_moves_the_state_down_the_slope_at_d(law, small, image):
    method = FlowChef(STEPS, step=0.6, image=image)
    b = 0.6 * (law.a.T @ law.a @ law.a.T if image else law.a.T)
    times = times_of(method, small)
    for t, s in pairwise(times[:-1]):
        now, then, g = small.path.coefficients(t), small.path.coefficients(s), law.gain(t)
        euler = then.alpha * g + then.sigma / now.sigma * (law.eye - now.alpha * g)
        law.move(euler - b @ law.a @ g, b @ law.y)
    g = law.gain(times[-2])
    law.move(g - b @ law.a @ g, b @ law.y)
    assert law.agrees(method)


@pytest.mark.parametrize("eta_b", [1.0, 0.4])
def test_ddrm_steps_direction_by_direction(law, small, eta_b):
    method, eta = DDRM(STEPS, 0.85, eta_b), 0.85
    u, s_i, vt = torch.linalg.svd(law.a, full_matrices=True)
    goal = torch.zeros(len(law.eye), dtype=torch.float64)
    goal[:5] = u.T @ law.y / s_i
    width = torch.full_like(goal, math.inf)
    width[:5] = law.sigma / s_i
    times = times_of(method, small)
    for t, s in pairwise(times[:-1]):
        now, then = small.path.coefficients(t), small.path.coefficients(s)
        rho, g = then.sigma / then.alpha, vt @ law.gain(t)
        e = (vt - now.alpha * g) / now.sigma
        blind, fine = torch.isinf(width), width <= rho
        keep = math.sqrt(1 - eta**2)
        safe = torch.where(blind, 1.0, width)
        of_d = torch.where(blind, 1.0, torch.where(fine, 1 - eta_b, 1 - rho * keep / safe))
        of_e = torch.where(blind, rho * keep, 0.0)
        of_y = torch.where(blind, 0.0, torch.where(fine, eta_b, rho * keep / safe))
        noise = torch.where(fine & ~blind, (rho**2 - (eta_b * safe) ** 2).clamp(min=0).sqrt(), eta * rho)
        law.move(then.alpha * vt.T @ (of_d[:, None] * g + of_e[:, None] * e), then.alpha * vt.T @ (of_y * goal),
                 then.alpha * vt.T * noise)
    law.move(law.gain(times[-2]))
    assert law.agrees(method)


@pytest.mark.parametrize("covariance, eta", [("isotropic", 0.0), ("exact", 1.0)])
def test_pigdm_adds_what_the_covariance_says(law, small, covariance, eta):
    method = PiGDM(STEPS, covariance, data_std=1.3, cg=8, tolerance=1e-12, eta=eta)

    def pull(t):
        k, g = small.path.coefficients(t), law.gain(t)
        r2 = k.rho**2 * 1.3**2 / (k.rho**2 + 1.3**2)
        inside = k.sigma**2 / k.alpha * g
        c = inside if covariance == "exact" else r2 * law.eye
        gain = inside @ law.a.T @ torch.linalg.inv(law.a @ c @ law.a.T + law.sigma**2 * torch.eye(5).double())
        return g - gain @ law.a @ g, gain @ law.y

    law.ancestral(times_of(method, small), eta, pull)
    assert law.agrees(method, 1e-6)


def test_a_wrapper_keeps_its_correction_with_any_integrator(law, small):
    """DDIM written in the noise form sees D through E alone, which must then be that of the corrected D."""
    solver = Fixed(Ancestral(0.0, form="noise", last="data"), STEPS)
    inverse = law.pinv()
    p, q = law.eye - inverse @ law.a, inverse @ law.y
    law.ancestral(solver.times(small.spec), 0.0, lambda t: (p @ law.gain(t), q))
    assert law.agrees(DDNM(STEPS, stop=False), 1e-6, solver=solver)


def test_mbir_walks_and_projects_the_volume(law, small):
    """Without its corrector, and with as many iterations as it takes, each level ends on the measurement."""
    method = MBIR(STEPS, snr=0.0, cg=10)
    inverse = law.pinv()
    p, q = law.eye - inverse @ law.a, inverse @ law.y
    weight = (law.a.T @ law.a @ torch.ones(10, dtype=torch.float64))
    seen = weight > 1e-6 * weight.max()
    back = torch.where(seen, 1.0 / torch.where(seen, weight, 1.0), 0.0)[:, None] * law.a.T
    times = times_of(method, small)
    for t, s in pairwise(times):
        now, g = small.path.coefficients(t), law.gain(t)
        last = s == 0.0 and t == times[-2]
        then = small.path.coefficients(s)
        if small.path.coefficients(1.0).alpha == 1.0:  # the published predictor, whose last step returns its mean
            variance = now.sigma**2 - (0.0 if last else then.sigma**2)
            walk, fresh = law.eye + variance * (g - law.eye) / now.sigma**2, 0.0 if last else math.sqrt(variance)
        else:
            fresh = 0.0 if last else small.path.fresh_noise(t, s)
            keep = math.sqrt(then.sigma**2 - fresh**2) / now.sigma
            walk = g if last else then.alpha * g + keep * (law.eye - now.alpha * g)
        law.move(walk, 0.0, fresh * law.eye)
        law.move(p, (1.0 if last else then.alpha) * q)
    law.move(law.eye - back @ law.a, back @ law.y)
    assert law.agrees(method, 1e-3)


def test_real_noise_gives_the_exact_moments():
    """4,000 samples drawn with the counted noise lie around the exact mean as 4,000 normal ones would."""
    toy, count = GaussianToy(VP(), n=10, rows=5), 4000
    for method in (DiffPIR(STEPS, xi=0.5), DDRM(STEPS), FlowDPS(STEPS, image=False)):
        mean, cov = toy.moments(method)
        x = toy.samples(method, count)
        variances, directions = torch.linalg.eigh(cov)
        wide = variances > 1e-6 * variances.max()
        white = ((x - mean) @ directions)[:, wide] / variances[wide].sqrt()
        assert int(wide.sum()) >= 5
        assert float(white.mean(0).square().sum()) * count < 35.6  # chi-squared of at most 10 at 99.99 %
        eye = torch.eye(white.shape[1], dtype=torch.float64)
        second = (white.T @ white / count - eye) * count**0.5 / (1.0 + eye * (2**0.5 - 1.0))
        assert float(second.abs().max()) < 4.8
