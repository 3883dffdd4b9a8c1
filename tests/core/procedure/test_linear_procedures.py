"""DAPS, PnP-DM and PnP-Flow are linear with exact local steps: their exact moments beside recursions, turn by turn."""

from __future__ import annotations

import math

import pytest
import torch

from scidiff.core.path import VP, Linear
from scidiff.core.posterior.toy import Dense, GaussianToy, moments
from scidiff.core.procedure import DAPS, Local, PnPDM, PnPFlow
from scidiff.core.procedure.base import Inner, time_of_ratio
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.spec import Context

PATHS = [VP(), Linear()]


class Law:
    """A Gaussian law that affine maps move; A, y, sigma at norm 1."""

    def __init__(self, toy):
        norm = float(torch.linalg.matrix_norm(toy.matrix, 2))
        self.toy, self.path = toy, toy.path
        self.a, self.y, self.sigma = toy.matrix / norm, toy.y / norm, toy.sigma / norm
        self.eye = torch.eye(len(toy.cov), dtype=torch.float64)
        self.mean, self.cov = torch.linalg.pinv(self.a) @ self.y, 0.0 * self.eye

    def move(self, m, b, *noises):
        self.mean = m @ self.mean + b
        self.cov = m @ self.cov @ m.T + sum(n @ n.T for n in noises)

    def gain(self, t):
        k = self.path.coefficients(t)
        return k.alpha * torch.linalg.solve(k.alpha**2 * self.toy.cov + k.sigma**2 * self.eye, self.toy.cov)

    def local(self, width):
        cov = torch.linalg.inv(self.a.T @ self.a / self.sigma**2 + self.eye / width**2)
        self.move(cov / width**2, cov @ self.a.T @ self.y / self.sigma**2, torch.linalg.cholesky(cov))

    def inner(self, t, steps, eta):
        times = Fixed(Ancestral(eta, last="data"), steps).times(self.toy.spec, t)
        for i in range(steps - 1):
            now, then = self.path.coefficients(times[i]), self.path.coefficients(times[i + 1])
            g, fresh = self.gain(times[i]), eta * self.path.fresh_noise(times[i], times[i + 1])
            keep = math.sqrt(then.sigma**2 - fresh**2) / now.sigma
            self.move(then.alpha * g + keep * (self.eye - now.alpha * g), 0.0, fresh * self.eye)
        self.move(self.gain(times[-2]), 0.0)

    def agrees(self, method, tolerance=1e-6):
        mean, cov = self.toy.moments(method)
        torch.testing.assert_close(mean, self.mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(cov, self.cov, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=PATHS, ids=["vp", "linear"])
def law(request):
    return Law(GaussianToy(request.param, n=10, rows=5))


def test_pnp_dm_alternates_between_both_laws(law):
    method = PnPDM(rounds=4, sde=3, r_max=2.0, r_min=0.5, decay=0.6)
    for r in (2.0, 1.2, 0.72, 0.5):
        law.local(r)
        t = float(law.path.t_of_lambda(-math.log(r)))
        assert law.path.coefficients(t).rho == pytest.approx(r)
        law.move(law.path.coefficients(t).alpha * law.eye, 0.0)
        law.inner(t, 3, 1.0)
    law.agrees(method)


def test_daps_draws_around_the_end_of_each_ode(law):
    method = DAPS(levels=4, ode=3, rho_max=20.0, rho_min=0.2)
    levels = [(20 ** (1 / 7) + (0.2 ** (1 / 7) - 20 ** (1 / 7)) * i / 3) ** 7 for i in range(4)]
    k = law.path.coefficients(float(law.path.t_of_lambda(-math.log(levels[0]))))
    law.mean, law.cov = 0.0 * law.mean, k.sigma**2 * law.eye
    for i, rho in enumerate(levels):
        law.inner(float(law.path.t_of_lambda(-math.log(rho))), 3, 0.0)
        law.local(rho)
        if i < 3:
            k = law.path.coefficients(float(law.path.t_of_lambda(-math.log(levels[i + 1]))))
            law.move(k.alpha * law.eye, 0.0, k.sigma * law.eye)
    law.agrees(method)


def test_pnp_flow_takes_a_gradient_step_and_a_mean_of_denoised_draws(law):
    method = PnPFlow(steps=6, draws=2, power=0.5, step=0.8)
    noise = torch.cat([torch.eye(10, dtype=torch.float64)] * 2, 1) / 2
    law.mean = law.toy.operator.unit_norm().pinv(law.y[None], iterations=50, noise=law.sigma)[0]
    for i in range(6):
        u = 1.0 - i / 6
        t = law.path.bounds[1] if i == 0 else float(law.path.t_of_lambda(-math.log(u / (1.0 - u))))
        k, g = law.path.coefficients(t), law.gain(t)
        back = 0.8 * u**0.5 * law.a.T
        law.move(law.eye - back @ law.a, back @ law.y)
        law.move(k.alpha * g, 0.0, k.sigma * g @ noise)
    law.agrees(method)


@pytest.mark.parametrize("known", [True, False])
def test_the_exact_local_step_has_the_moments_of_its_law(known):
    toy = GaussianToy(VP(), n=10, rows=5)
    toy.operator = Dense(toy.matrix, known)
    law = Law(toy)
    law.local(0.3)
    start = torch.linalg.pinv(law.a) @ law.y

    def step(ctx, run):
        return Local()(start.expand(ctx.batch, -1), 0.3, toy.problem(ctx.batch), ctx, run)

    mean, cov = moments(step)
    torch.testing.assert_close(mean, law.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cov, law.cov, rtol=1e-4, atol=1e-5)


def test_langevin_steps_reach_the_same_law_up_to_their_length():
    """The unadjusted chain has the covariance C (1 - h C^-1 / 2)^-1 in the end: a little wider, and no more."""
    toy = GaussianToy(VP(), n=6, rows=6, sigma=0.5)
    law = Law(toy)
    law.local(0.5)
    h = 0.1 / ((1.0 / law.sigma) ** 2 + 1.0 / 0.5**2)
    precision = torch.linalg.inv(law.cov)
    wider = torch.linalg.inv(precision @ (law.eye - 0.5 * h * precision))
    start = torch.linalg.pinv(law.a) @ law.y

    def step(ctx, run):
        local = Local("langevin", count=150, rate=0.1)
        return local(start.expand(ctx.batch, -1), 0.5, toy.problem(ctx.batch), ctx, run)

    mean, cov = moments(step)
    torch.testing.assert_close(mean, law.mean, rtol=0.0, atol=2e-3 * float(law.mean.norm()))
    torch.testing.assert_close(cov, wider, rtol=0.0, atol=5e-3 * float(wider.norm()))
    assert float((cov - law.cov).norm()) > 2e-2 * float(law.cov.norm())


def test_an_inner_sampler_leaves_the_run_as_it_was_and_draws_noise_of_its_turn():
    from scidiff.core.run import Run

    toy, ctx = GaussianToy(VP(), n=6, rows=3), Context.of(3)
    problem, run = toy.problem(3), Run(5, stream=2)
    run.step, run.memory = 7, {"kept": torch.ones(1)}
    inner, t = Inner.of(problem, 3, 1.0), time_of_ratio(problem, 1.0)
    x = torch.ones(3, 6, dtype=torch.float64)
    ends = [inner(x, t, k, ctx, run) for k in (0, 1, 0)]
    assert (run.step, run.stream, list(run.memory)) == (7, 2, ["kept"])
    assert torch.equal(ends[0], ends[2]) and float((ends[0] - ends[1]).abs().min()) > 0.0
    assert Inner.of(problem, 3, 1.0) is inner
