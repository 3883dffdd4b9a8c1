"""Densities whose every quantity is known in closed form: the oracle of the tests and benchmarks.

A mixture p(x0) = sum_k w_k N(m_k, diag s_k^2) carried along a Gaussian path stays a mixture,

    p_t(x) = sum_k w_k N(alpha m_k + c mu, diag v_k),   v_k = alpha^2 s_k^2 + sigma^2,   y = x - c mu
    r_k = softmax_k(log w_k + log N(y; alpha m_k, v_k)),    D = sum_k r_k (m_k + alpha s_k^2 / v_k (y - alpha m_k))

Everything is computed in float64 and returned in the dtype of the state. `AnalyticMixture` and `AnalyticGaussian` are
Denoisers; the second carries one joint Gaussian over several components, each on its own path at its own time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scidiff.core.denoiser import Denoiser, Predictions, Times, time_of
from scidiff.core.errors import ScidiffError, nearest
from scidiff.core.path.base import Prediction
from scidiff.core.path.gaussian import Coefficients, GaussianPath
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, State, StateSpec

if TYPE_CHECKING:
    from scidiff.core.run import Run


def _column(value: Any, like: Tensor) -> Any:
    """A coefficient that broadcasts against [B, K, d]."""
    return value.to(torch.float64).view(-1, 1, 1) if isinstance(value, Tensor) and value.dim() else value


def _row(value: Any) -> Any:
    """A coefficient that broadcasts against [B, d]."""
    return value.to(torch.float64).view(-1, 1) if isinstance(value, Tensor) and value.dim() else value


class GaussianMixture:
    """means [K, d], stds [K] or [K, d], weights [K] (any positive numbers); float64.

    Methods take y = x - c mu as [B, d] and `scale`, `noise` = alpha, sigma of the path (0-d or [B]); the defaults
    1 and 0 are the data themselves.
    """

    def __init__(self, means: Tensor | Sequence, stds: Tensor | Sequence,
                 weights: Tensor | Sequence | None = None) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        s = torch.as_tensor(stds, dtype=torch.float64)
        self.stds = (s[:, None] if s.dim() == 1 else s).expand_as(self.means).contiguous()
        w = torch.ones(len(self.means)) if weights is None else torch.as_tensor(weights)
        self.weights = w.to(torch.float64) / w.to(torch.float64).sum()

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        """E[x0], [d]."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Cov[x0], [d, d]."""
        off = self.means - self.mean
        return torch.diag(self.weights @ self.stds**2) + (self.weights[:, None] * off).T @ off

    def restricted(self, keep: Tensor) -> GaussianMixture:
        """The mixture of the components in `keep` (indices or booleans), weights renormalised."""
        return GaussianMixture(self.means[keep], self.stds[keep], self.weights[keep])

    def sample(self, count: int, generator: torch.Generator | int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draws of x0, [count, d]."""
        return self.sample_labelled(count, generator, dtype)[0]

    def sample_labelled(self, count: int, generator: torch.Generator | int = 0,
                        dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Draws of x0 [count, d] and the components [count] they come from."""
        g = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
        k = torch.multinomial(self.weights, count, replacement=True, generator=g)
        eps = torch.randn(count, self.dim, dtype=torch.float64, generator=g)
        return (self.means[k] + self.stds[k] * eps).to(dtype), k

    def _terms(self, y: Tensor, scale: Any, noise: Any, log_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets y - alpha m_k and variances v_k [B, K, d], log of weight times density [B, K]."""
        y = y.to(torch.float64).flatten(1).unsqueeze(1)
        a, s = _column(scale, y), _column(noise, y)
        v = a * a * self.stds**2 + s * s
        off = y - a * self.means
        log_w = self.weights.log() if log_weights is None else log_weights
        density = -0.5 * (off * off / v + v.log() + math.log(2 * math.pi)).sum(-1)
        return off, v.expand_as(off), log_w + density

    def log_prob(self, y: Tensor, scale: Any = 1.0, noise: Any = 0.0, log_weights: Tensor | None = None) -> Tensor:
        """log p_t(y), [B], nats."""
        return torch.logsumexp(self._terms(y, scale, noise, log_weights)[2], -1)

    def posterior_mean(self, y: Tensor, scale: Any, noise: Any, log_weights: Tensor | None = None) -> Tensor:
        """D = E[x0 | y], [B, d]."""
        off, v, logits = self._terms(y, scale, noise, log_weights)
        each = self.means + _column(scale, off) * self.stds**2 / v * off
        return (torch.softmax(logits, -1).unsqueeze(-1) * each).sum(1)

    def posterior_noise(self, y: Tensor, scale: Any, noise: Any, log_weights: Tensor | None = None) -> Tensor:
        """E = E[eps | y], [B, d], without the cancellation of (y - alpha D) / sigma."""
        return -_row(noise) * self.score(y, scale, noise, log_weights)

    def score(self, y: Tensor, scale: Any = 1.0, noise: Any = 0.0, log_weights: Tensor | None = None) -> Tensor:
        """grad log p_t, [B, d]."""
        off, v, logits = self._terms(y, scale, noise, log_weights)
        return -(torch.softmax(logits, -1).unsqueeze(-1) * off / v).sum(1)

    def hessian_trace(self, y: Tensor, scale: Any = 1.0, noise: Any = 0.0) -> Tensor:
        """Laplacian of log p_t, [B]."""
        off, v, logits = self._terms(y, scale, noise, None)
        r = torch.softmax(logits, -1)
        g = off / v
        mean = (r.unsqueeze(-1) * g).sum(1)
        return (r * ((g * g).sum(-1) - (1.0 / v).sum(-1))).sum(1) - (mean * mean).sum(-1)

    def velocity(self, y: Tensor, k: Coefficients) -> Tensor:
        """dx/dt of the probability flow, less c' mu, [B, d]."""
        d, e = self.posterior_mean(y, k.alpha, k.sigma), self.posterior_noise(y, k.alpha, k.sigma)
        return _row(k.dalpha) * d + _row(k.dsigma) * e

    def divergence(self, y: Tensor, k: Coefficients) -> Tensor:
        """Divergence of the velocity, [B]."""
        return k.drift * self.dim - 0.5 * k.g2 * self.hessian_trace(y, k.alpha, k.sigma)


class AnalyticMixture(Denoiser):
    """The exact denoiser of a mixture on a Gaussian path; state {name: [B, *shape]} with d entries a sample.

    `kind` is what it returns (data | noise | score | velocity | angular). `labels` [K] gives every mixture component
    a class; a condition `condition` (int class [B], present [B]) then restricts each sample to its class.
    """

    def __init__(self, mixture: GaussianMixture, path: GaussianPath, name: str = "x", kind: str = "data",
                 labels: Tensor | Sequence[int] | None = None, condition: str = "label") -> None:
        super().__init__()
        if kind not in path.kinds:
            raise ScidiffError(f"The analytic mixture cannot predict {kind!r}.", nearest(kind, path.kinds))
        self.mixture, self.path, self.name, self.kind, self.condition = mixture, path, name, kind, condition
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.calls = 0

    def spec(self, shape: tuple[int, ...] | None = None) -> StateSpec:
        """A one-component Euclidean state for this mixture."""
        return StateSpec({self.name: Component(Euclidean(), self.path, shape or (self.mixture.dim,))})

    def _log_weights(self, ctx: Context | None) -> Tensor | None:
        if self.labels is None or ctx is None or self.condition not in ctx.cond:
            return None
        value, present = ctx.cond[self.condition]
        allowed = (self.labels[None, :] == value.view(-1, 1)) | ~present.view(-1, 1)
        return torch.where(allowed, self.mixture.weights.log(), -torch.inf)

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        self.calls += 1
        x, when = state[self.name], time_of(t, self.name)
        site = ctx.at(self.name, Component(Euclidean(), self.path, tuple(x.shape[1:])))
        k = self.path.coefficients(when)
        y = self.path.shifted(x, -k.c, site)
        weights = self._log_weights(ctx)
        if self.kind in ("data", "angular", "velocity"):
            have, value = "data", self.mixture.posterior_mean(y, k.alpha, k.sigma, weights)
        else:
            have, value = "noise", self.mixture.posterior_noise(y, k.alpha, k.sigma, weights)
        if self.kind == "velocity":
            value = _row(k.dalpha) * value + _row(k.dsigma) * self.mixture.posterior_noise(y, k.alpha, k.sigma, weights)
            have, value = "velocity", self.path.shifted(value.view(x.shape), k.dc, site)
        value = value.view(x.shape)
        if have != self.kind:
            value = self.path.convert(value, have, self.kind, x.to(torch.float64), when, site)
        return {self.name: Prediction(self.kind, value.to(x.dtype), self.path, x, when, site)}


class AnalyticGaussian(Denoiser):
    """E[x0 | z] of one joint Gaussian N(mean, cov) over several components, each on its own Gaussian path.

    The components are laid end to end in the order of `paths`; `dims` gives their lengths (entries of a sample are
    flattened). z = A x0 + S eps with A, S diagonal: D = m + C A (A C A + S^2)^{-1} (z - A m), so the components are
    coupled as in a real joint state.
    """

    def __init__(self, mean: Tensor | Sequence, cov: Tensor | Sequence, paths: Mapping[str, GaussianPath],
                 dims: Mapping[str, int], kinds: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        c = torch.as_tensor(cov, dtype=torch.float64)
        self.cov = 0.5 * (c + c.T)
        self.paths, self.dims, self.kinds = dict(paths), dict(dims), dict(kinds or {})
        if sum(self.dims[n] for n in self.paths) != self.mean.numel():
            raise ScidiffError("The dimensions of the components do not add up to the length of the mean.")
        self.calls = 0

    def spec(self) -> StateSpec:
        """The Euclidean state of this Gaussian."""
        return StateSpec({n: Component(Euclidean(), p, (self.dims[n],)) for n, p in self.paths.items()})

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """[B, sum of dims] as components."""
        return dict(zip(self.paths, flat.split([self.dims[n] for n in self.paths], -1), strict=True))

    def sample(self, count: int, generator: torch.Generator | int = 0) -> State:
        """Draws of x0 as a state, float64."""
        g = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
        eps = torch.randn(count, self.mean.numel(), dtype=torch.float64, generator=g)
        return self.split(self.mean + eps @ torch.linalg.cholesky(self.cov).T)

    def scales(self, t: Times) -> tuple[Tensor, Tensor]:
        """alpha and sigma of every entry at t: [n], or [B, n] where a time is a tensor."""
        a, s = [], []
        for name, path in self.paths.items():
            k = path.coefficients(time_of(t, name))
            for value, out in ((k.alpha, a), (k.sigma, s)):
                v = torch.as_tensor(value, dtype=torch.float64)
                out.append(v.unsqueeze(-1).expand(*v.shape, self.dims[name]))
        batch = max((v.dim() for v in a), default=1)
        if batch > 1:
            count = max(v.shape[0] for v in a if v.dim() > 1)
            a = [v.expand(count, -1) for v in a]
            s = [v.expand(count, -1) for v in s]
        return torch.cat(a, -1), torch.cat(s, -1)

    def marginal(self, t: Times) -> tuple[Tensor, Tensor]:
        """Mean [..., n] and covariance [..., n, n] of z at t, less the centre."""
        a, s = self.scales(t)
        return a * self.mean, a.unsqueeze(-1) * self.cov * a.unsqueeze(-2) + torch.diag_embed(s * s)

    def _offset(self, state: State, t: Times, ctx: Context) -> Tensor:
        parts = []
        for name, path in self.paths.items():
            x = state[name]
            site = ctx.at(name, Component(Euclidean(), path, tuple(x.shape[1:])))
            shifted = path.shifted(x.to(torch.float64), -path.coefficients(time_of(t, name)).c, site)
            parts.append(shifted.flatten(1))
        return torch.cat(parts, -1) - self.scales(t)[0] * self.mean

    def log_prob(self, state: State, t: Times, ctx: Context) -> Tensor:
        """log p_t of the joint state, [B], nats."""
        _, cov = self.marginal(t)
        off = self._offset(state, t, ctx)
        return torch.distributions.MultivariateNormal(torch.zeros_like(off), cov).log_prob(off)

    def forward(self, state: State, t: Times, ctx: Context, run: Run | None = None) -> Predictions:
        self.calls += 1
        a, _ = self.scales(t)
        off = self._offset(state, t, ctx)
        solved = torch.linalg.solve(self.marginal(t)[1], off.unsqueeze(-1)).squeeze(-1)
        clean = self.mean + (a * solved) @ self.cov
        out = {}
        for name, value in self.split(clean).items():
            x, when, path = state[name], time_of(t, name), self.paths[name]
            site = ctx.at(name, Component(Euclidean(), path, tuple(x.shape[1:])))
            kind, value = self.kinds.get(name, "data"), value.reshape(x.shape)
            if kind != "data":
                value = path.convert(value, "data", kind, x.to(torch.float64), when, site)
            out[name] = Prediction(kind, value.to(x.dtype), path, x, when, site)
        return out


def ring8(radius: float = 1.0, std: float = 0.05) -> GaussianMixture:
    """Eight modes on a circle in two dimensions."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = radius * torch.stack([angle.cos(), angle.sin()], -1)
    return GaussianMixture(means, torch.full((8,), std, dtype=torch.float64))


def mixture32(seed: int = 0) -> GaussianMixture:
    """Five random unit-normal means in 32 dimensions, standard deviation 0.25."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(5, 32, dtype=torch.float64, generator=g)
    return GaussianMixture(means, torch.full((5,), 0.25, dtype=torch.float64))


def random_mixture(seed: int, dim: int = 4, components: int = 6) -> GaussianMixture:
    """Means N(0, 1), stds log-uniform in [0.1, 0.5], weights Dirichlet(1)."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(components, dim, dtype=torch.float64, generator=g)
    low, high = math.log(0.1), math.log(0.5)
    stds = (low + (high - low) * torch.rand(components, dtype=torch.float64, generator=g)).exp()
    weights = -torch.rand(components, dtype=torch.float64, generator=g).clamp(min=1e-12).log()
    return GaussianMixture(means, stds, weights)
