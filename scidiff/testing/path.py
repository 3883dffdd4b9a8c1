"""Conformance of a path: identities, and moments within five standard errors."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scidiff.core.path import GaussianPath, Path
from scidiff.core.path.base import Prediction
from scidiff.core.path.categorical import CategoricalPath
from scidiff.core.path.conversion import KINDS
from scidiff.core.run import Run
from scidiff.core.space import Space
from scidiff.core.spec import Component, Context, Shape, Site
from scidiff.testing.require import require


def _site(path: Path, space: Space, shape: Shape, batch: int, ctx: Context | None) -> Site:
    return (ctx or Context.of(batch)).at("x", Component(space, path, shape))


def check_path(path: Path, space: Space, shape: Shape = (4,), ctx: Context | None = None, batch: int = 4096,
               seed: int = 0) -> None:
    """Checks a path by identities and moments (five standard errors).

    Every path: JSON form, bounds, kinds, finite features and loss. Gaussian: derivatives against autograd, the inverse
    of lambda, all conversions there and back, mean and variance of corrupt(), and that a posterior step with the true
    x0 lands on the marginal of the earlier time. Wrapped: the circular moment of corrupt(). Categorical: shares of
    corrupt(), and Bayes' rule of the transition.
    """
    path.validate(space)
    fields = {k: v for k, v in json.loads(json.dumps(path.to_config())).items() if k != "_target_"}
    require(type(path)(**fields) == path, "The path is not what its JSON form describes.")
    require(path.default_kind in path.kinds, f"The default kind {path.default_kind!r} is not among {set(path.kinds)}.")
    low, high = path.bounds
    require(0.0 <= low < high <= 1.0, f"The bounds {path.bounds} do not lie in [0, 1].")
    site = _site(path, space, shape, batch, ctx)
    inside = [t for t in (path.levels or [low + (high - low) * u for u in (0.05, 0.3, 0.6, 0.95)]) if low <= t <= high]
    if isinstance(path, GaussianPath):
        _check_scales(path, torch.tensor(inside, dtype=torch.float64))
        for earlier, level in pairwise(inside):
            if space.wraps:
                _check_wrapped(path, site, level, seed)
            else:
                _check_gaussian(path, site, earlier, level, seed)
    elif isinstance(path, CategoricalPath):
        for earlier, level in pairwise(inside):
            _check_categorical(path, site, earlier, level, seed)
    for level in inside:
        _check_loss(path, site, level, seed)


def _handle(site: Site, seed: int) -> Any:
    return Run(seed).handle(site, torch.float64)


def _data(site: Site) -> Tensor:
    """Some clean values: classes, or draws of N(0.5, 1) in the space."""
    if site.space.categorical:
        count = site.space.classes  # type: ignore[attr-defined]
        u = Run(99).noise("x", "data", site.dims, site.ctx, "uniform", site.padded, site.space.symmetric)
        x = (u * count).long()
        return x * site.mask.long() if site.mask is not None else x
    return site.space.wrap(_handle(site, 99).normal("data") + site.space.project(
        torch.full((site.batch, *site.dims), 0.5, dtype=torch.float64), site.mask))


def _check_scales(path: GaussianPath, t: Tensor) -> None:
    t = t.clone().requires_grad_()
    for name in ("alpha", "sigma", "c"):
        value = getattr(path, name)(t)
        slope = torch.autograd.grad(value.sum(), t, allow_unused=True)[0] if value.requires_grad else None
        slope = torch.zeros_like(t) if slope is None else slope
        require(torch.allclose(getattr(path, f"d{name}")(t), slope, rtol=1e-8, atol=1e-8),
                 f"d{name} is not the derivative of {name}.")
    with torch.no_grad():
        lam = path.lam(t)
        require((lam[1:] < lam[:-1]).all(), "lambda does not fall with time.")
        require(torch.allclose(path.alpha(t).log() - path.sigma(t).log(), lam, rtol=1e-9, atol=1e-9),
                 "lambda is not log(alpha / sigma).")
        require(torch.allclose(path.t_of_lambda(lam), t, rtol=1e-7, atol=1e-9), "t_of_lambda is not the inverse.")


def _moments(x: Tensor, site: Site, mean: Tensor, std: float, what: str) -> None:
    """Mean and variance of (x - mean) over the independent entries, within five standard errors."""
    weight = site.entries().expand_as(x).double()
    n = float(weight.sum())
    z = (x.double() - mean.double()) * weight / max(std, 1e-12)
    lost = float(site.space.ndim(site.dims, site.mask, site.batch).sum()) / n  # share of free directions
    require(abs(float(z.sum()) / n) < 5 / n**0.5, f"{what} has another mean than the path says.")
    require(abs(float((z * z).sum()) / n - lost) < 5 * (2 / n) ** 0.5, f"{what} has another variance.")


def _check_gaussian(path: GaussianPath, site: Site, s: float, t: float, seed: int) -> None:
    x0 = _data(site)
    noised = path.corrupt(x0, t, site, _handle(site, seed))
    k, then = path.coefficients(t), path.coefficients(s)
    _moments(noised.z, site, path.shifted(k.alpha * x0, k.c, site), k.sigma, f"x_t at t = {t:.3g}")
    truth = Prediction("data", x0, path, noised.z, t, site)
    for have in KINDS:
        for want in KINDS:
            there = path.convert(truth.to(have), have, want, noised.z, t, site)
            back = path.convert(there, want, have, noised.z, t, site)
            scale = truth.to(have).abs().mean().clamp(min=1.0)
            exact = ((back - truth.to(have)).abs() / scale).max() < 1e-6
            require(exact, f"{have} -> {want} -> {have} is not the identity.")
    if "posterior" in path.kernels:
        run = Run(seed)
        run.step = 1
        z = path.posterior(noised.z, truth, t, s, site, run.handle(site, torch.float64))
        _moments(z, site, path.shifted(then.alpha * x0, then.c, site), then.sigma, f"The posterior step to s = {s:.3g}")


def _check_wrapped(path: GaussianPath, site: Site, t: float, seed: int) -> None:
    """The first circular moment: E cos(2 pi (x_t - x0) / P) = exp(-2 pi^2 sigma^2 / P^2)."""
    x0, turn = _data(site), 2 * math.pi / site.space.period  # type: ignore[attr-defined]
    z = path.corrupt(x0, t, site, _handle(site, seed)).z
    require(torch.equal(site.space.wrap(z), z), f"x_t at t = {t:.3g} lies outside of the torus.")
    found = torch.cos(turn * (z - x0))[site.entries().bool().expand_as(z)].mean()
    expected = math.exp(-0.5 * (turn * path.coefficients(t).sigma) ** 2)
    require(abs(float(found) - expected) < 5 * (0.5 / z.numel()) ** 0.5, f"x_t at t = {t:.3g} has another law.")


def _check_categorical(path: CategoricalPath, site: Site, s: float, t: float, seed: int) -> None:
    x0 = _data(site)
    q, real = path.law(site), site.entries().bool()
    z = path.corrupt(x0, t, site, _handle(site, seed)).z
    hot = nn.functional.one_hot(x0, q.shape[0]).double()
    marginal = {r: (1 - path.mass(r)) * hot + path.mass(r) * q for r in (s, t)}
    for k in range(q.shape[0]):
        p = marginal[t][..., k][real]
        error = float((z[real] == k).double().mean() - p.mean())
        allowed = 5 * float((p * (1 - p)).mean() / len(p)) ** 0.5 + 1e-12
        require(abs(error) < allowed, f"x_t at t = {t:.3g} has another law.")
    total = torch.zeros_like(hot)
    for k in range(q.shape[0]):
        step = path.transition(torch.full_like(x0, k), hot, t, s, site)
        require((step.sum(-1) - 1).abs().max() < 1e-9, "A transition does not sum to one.")
        total = total + marginal[t][..., k : k + 1] * step
    require(torch.allclose(total, marginal[s], atol=1e-9), f"The transition {t:.3g} -> {s:.3g} breaks Bayes' rule.")


def _check_loss(path: Path, site: Site, t: float, seed: int) -> None:
    noise = _handle(site, seed)
    x0 = _data(site)
    noised = path.corrupt(x0, t, site, noise)
    features = path.features(noised.z, t, site)
    require(torch.isfinite(features).all(), f"The features at t = {t:.3g} are not finite.")
    # Networks predict data, whatever represents them on the way.
    shape = (*x0.shape, site.space.classes) if site.space.categorical else x0.shape  # type: ignore[attr-defined]
    raw = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    loss = path.loss(path.read(raw, noised.z, t, site, path.default_kind), x0, noised, t, site)
    require(loss.shape == (site.batch,) and torch.isfinite(loss).all(), f"The loss at t = {t:.3g} is not finite [B].")
