"""The toy itself, and the reference sampler: PiGDM with the exact covariance reaches the posterior."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.path import VP, Linear
from scidiff.core.posterior import PiGDM
from scidiff.core.posterior.toy import GaussianToy
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.spec import Context

# Ends so near to data and source that what is left of them lies below the errors looked at.
PATHS = {"vp": VP(beta_max=40.0, t_min=1e-6), "linear": Linear(t_min=1e-4, t_max=1.0 - 1e-5)}


def distance(toy, found):
    """Relative errors of mean and covariance."""
    mean, cov = toy.posterior
    return float((found[0] - mean).norm() / mean.norm()), float((found[1] - cov).norm() / cov.norm())


def test_the_posterior_is_that_of_the_joint_law():
    """Precision form: S^-1 = C^-1 + A^T A / sigma^2, S^-1 m = A^T y / sigma^2; and the figures of the posterior."""
    toy = GaussianToy(VP(), n=12, rows=6)
    mean, cov = toy.posterior
    a, s2 = toy.matrix, toy.sigma**2
    precision = torch.linalg.inv(toy.cov) + a.T @ a / s2
    torch.testing.assert_close(cov @ precision, torch.eye(12, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(precision @ mean, a.T @ toy.y / s2)
    figures = toy.figures(mean, cov)
    assert figures["bias"] == 0.0 and figures["spread"] == pytest.approx(1.0)
    draws = mean + torch.randn(40_000, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) \
        @ torch.linalg.cholesky(cov).T
    measured = ((toy.y - draws @ a.T) / toy.sigma).square().mean().sqrt()
    assert figures["residual"] == pytest.approx(float(measured), rel=0.01)


@pytest.mark.parametrize("kind", ["data", "noise", "velocity"])
def test_the_denoiser_is_the_conditional_mean(kind):
    """Cov(x0, x_t) Cov(x_t)^-1 x_t, whatever kind the network answers in."""
    toy = GaussianToy(Linear(), n=8, rows=4, kind=kind)
    x, ctx = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), Context.of(5)
    for t in (0.05, 0.5, 0.95):
        k = toy.path.coefficients(t)
        wanted = x @ torch.linalg.solve(k.alpha**2 * toy.cov + k.sigma**2 * torch.eye(8).double(), k.alpha * toy.cov)
        pred = toy.denoiser({"x": x}, t, ctx)["x"]
        assert pred.kind == kind
        torch.testing.assert_close(pred.data, wanted)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_exact_covariance_reaches_the_posterior_as_the_grid_is_refined(path):
    toy = GaussianToy(PATHS[path], n=12, rows=6)
    method = PiGDM(1, "exact", cg=12, tolerance=1e-12)
    errors = [distance(toy, toy.moments(PiGDM(n, "exact", cg=12, tolerance=1e-12)))[1] for n in (20, 40, 80)]
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2] > 0.0  # DDIM: first order
    mean, cov = distance(toy, toy.moments(method, solver=Fixed(Exponential(last="data"), 60)))
    assert mean < 2e-3 and cov < 5e-3
    assert cov < 0.2 * errors[2]


def test_an_isotropic_covariance_does_not():
    """The published rule on the same problem: as the grid is refined its mean stays off and its spread too wide."""
    toy = GaussianToy(PATHS["vp"], n=12, rows=6)
    solver = Fixed(Exponential(last="data"), 60)
    found = toy.figures(*toy.moments(PiGDM(1), solver=solver))
    assert found["bias"] > 0.03 and found["spread"] > 1.1
    assert distance(toy, toy.moments(PiGDM(1), solver=solver))[1] > 0.2


def test_a_prior_like_the_identity_makes_both_covariances_one():
    """C = I: C_t = r^2 I, so the two rules are the same."""
    toy = GaussianToy(VP(), n=8, rows=4, length=1e-3)
    ctx = Context.of(4)
    one, other = (m.run(toy.problem(4), ctx, 3).state["x"] for m in (PiGDM(6), PiGDM(6, "exact", tolerance=1e-12)))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
