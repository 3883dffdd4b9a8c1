"""Exact recursions of mean and covariance: what samplers with linear rules are checked against."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from scidiff.core.path import VP, Linear
from scidiff.core.path.edm import VE
from scidiff.core.posterior.toy import GaussianToy

PATHS = {"vp": VP(t_min=1e-3), "linear": Linear(), "ve": VE(0.01, 50.0)}


class Moments:
    """A Gaussian law that affine maps x -> M x + b + N xi move; A, y, sigma are those of the toy at norm 1."""

    def __init__(self, toy):
        self.toy, self.path, n = toy, toy.path, len(toy.cov)
        norm = float(torch.linalg.matrix_norm(toy.matrix, 2))
        self.a, self.y, self.sigma = toy.matrix / norm, toy.y / norm, toy.sigma / norm
        self.eye = torch.eye(n, dtype=torch.float64)
        k = self.path.coefficients(self.path.bounds[1])
        self.set(torch.zeros(n, dtype=torch.float64), k.sigma**2 * self.eye)

    def set(self, mean, cov):
        self.mean, self.cov = mean, cov

    def move(self, m, b=0.0, *noises):
        self.mean = m @ self.mean + b
        self.cov = m @ self.cov @ m.T + sum(n @ n.T for n in noises)

    def pinv(self):
        return torch.linalg.pinv(self.a)

    def gain(self, t):
        """D = G x_t, from the formula itself."""
        k = self.path.coefficients(t)
        return k.alpha * torch.linalg.solve(k.alpha**2 * self.toy.cov + k.sigma**2 * self.eye, self.toy.cov)

    def mix(self, times, pull, eta, keep=True, final=None):
        """x_s = alpha_s D' + sigma_s (sqrt(1 - eta^2) E + eta xi) along a grid that ends with D' at times[-2].

        pull(t) -> (P, q) of D' = P D + q; eta(s); E of the network (keep) or of D'.
        """
        for t, s in pairwise(times[:-1]):
            now, then = self.path.coefficients(t), self.path.coefficients(s)
            g, (p, q), e = self.gain(t), pull(t), eta(s)
            old = (1.0 - e * e) ** 0.5 * then.sigma / now.sigma
            inside = g if keep else p @ g
            m = then.alpha * p @ g + old * (self.eye - now.alpha * inside)
            b = then.alpha * q - (0.0 if keep else old * now.alpha * q)
            self.move(m, b, then.sigma * e * self.eye)
        p, q = (final or pull)(times[-2])
        self.move(p @ self.gain(times[-2]), q)
        return self

    def ancestral(self, times, eta, pull=None):
        """DDIM (eta = 0) to the path's own posterior (1), with D' = P D + q."""
        for t, s in pairwise(times[:-1]):
            now, then = self.path.coefficients(t), self.path.coefficients(s)
            inside, q = self.gain(t), torch.zeros_like(self.mean)
            if pull is not None:
                inside, q = pull(t)
            fresh = eta * self.path.fresh_noise(t, s)
            keep = (then.sigma**2 - fresh**2) ** 0.5 / now.sigma
            self.move(then.alpha * inside + keep * (self.eye - now.alpha * inside),
                      (then.alpha - keep * now.alpha) * q, fresh * self.eye)
        inside, q = (self.gain(times[-2]), 0.0) if pull is None else pull(times[-2])
        self.move(inside, q)
        return self

    def local(self, width):
        """A draw of exp(-|y - A z|^2 / 2 sigma^2 - |z - x|^2 / 2 width^2)."""
        cov = torch.linalg.inv(self.a.T @ self.a / self.sigma**2 + self.eye / width**2)
        self.move(cov / width**2, cov @ self.a.T @ self.y / self.sigma**2, torch.linalg.cholesky(cov))
        return self

    def agrees(self, method, tolerance=1e-8, **more):
        """Whether the exact moments of the implementation are these ones."""
        mean, cov = self.toy.moments(method, **more)
        torch.testing.assert_close(mean, self.mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(cov, self.cov, rtol=tolerance, atol=tolerance)
        return True


@pytest.fixture(params=sorted(PATHS))
def small(request):
    """A toy in 10 dimensions with 5 rows, on a diffusion, a flow and an exploding path."""
    return GaussianToy(PATHS[request.param], n=10, rows=5)


@pytest.fixture
def law(small):
    return Moments(small)


@pytest.fixture
def moments():
    """The recursion, for toys of one's own."""
    return Moments
