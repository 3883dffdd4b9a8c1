"""Paths of levels: the refiner's schedule, what a network sees at pure noise, and what such a path cannot do."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import ScidiffError
from scidiff.core.path import LevelPath, Prediction
from scidiff.core.run import Run
from scidiff.core.space import Categorical, Euclidean, Torus
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

F64 = torch.float64
SMALLEST = math.sqrt(4e-7)


def refiner(**more):
    return LevelPath.geometric(SMALLEST, 3, **more)


def site_of(path, batch=3, dim=4):
    return Context.of(batch).at("x", Component(Euclidean(), path, (dim,)))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_the_published_levels():
    path = refiner()
    assert path.stds == pytest.approx((6.3e-4, 7.4e-3, 8.6e-2, 1.0), rel=0.01)
    last = path.coefficients(1.0)
    assert last.alpha == 0.0 and last.sigma == 1.0 and last.lam == -math.inf


@pytest.mark.parametrize("smallest", [1e-2, SMALLEST, 1e-5])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_levels_multiply_up_geometric_betas(smallest, steps):
    """abar_j = prod_{i <= j} (1 - beta_i) with beta_i falling from 1 (pure noise) to smallest^2 by one factor."""
    betas = [smallest ** (2 * (steps - j) / steps) for j in range(steps + 1)]
    assert betas[0] == pytest.approx(smallest**2) and betas[-1] == 1.0
    path = LevelPath.geometric(smallest, steps)
    for j, std in enumerate(path.stds):
        assert std == pytest.approx(math.sqrt(1 - math.prod(1 - b for b in betas[:j + 1])), rel=1e-6)
    assert path.stds[0] == pytest.approx(smallest, rel=1e-6) and path.stds[-1] == 1.0
    assert path.levels == pytest.approx([(j + 1) / (steps + 1) for j in range(steps + 1)])


def test_without_refinement_one_level_is_left():
    assert LevelPath.geometric(SMALLEST, 0) == LevelPath((1.0,)) == LevelPath()
    assert LevelPath().levels == (1.0,) and LevelPath().bounds == (1.0, 1.0)


def test_levels_are_reached_from_time_from_lambda_and_per_sample():
    path = refiner()
    times = torch.tensor(path.levels, dtype=F64)
    k = path.coefficients(times)
    assert torch.equal(k.sigma, torch.tensor(path.stds, dtype=F64))
    torch.testing.assert_close(k.alpha**2 + k.sigma**2, torch.ones(4, dtype=F64), atol=1e-15, rtol=0)
    assert torch.equal(path.t_of_lambda(k.lam), times) and bool((k.lam.diff() < 0).all())
    assert path.level(torch.tensor([0.0, 0.25, 1.0], dtype=F64)).tolist() == [-1, 0, 3]
    clean = path.coefficients(0.0)
    assert clean.alpha == 1.0 and clean.sigma == 0.0
    for wrong in (0.6, torch.tensor([0.25, 0.3], dtype=F64)):
        with pytest.raises(ScidiffError, match="levels only"):
            path.coefficients(wrong)
    with pytest.raises(ScidiffError, match="No level"):
        path.t_of_lambda(0.1234)


def test_pure_noise_holds_nothing_of_the_data_and_its_angle_is_minus_the_data():
    path, x0 = refiner(), normal(3, 4)
    site = site_of(path)
    noise = Run(0).handle(site, F64)
    for t in (1.0, torch.ones(3, dtype=F64)):
        noised = path.corrupt(x0, t, site, noise)
        assert torch.equal(noised.z, noised.eps)
        assert torch.equal(path.target("angular", x0, noised, t, site), -x0)
        v = path.read(-x0, noised.z, t, site, "angular")
        assert torch.equal(v.data, x0)
    with pytest.raises(ScidiffError, match="no signal"):
        _ = Prediction("noise", normal(3, 4), path, normal(3, 4), 1.0, site).data


def test_the_angle_has_unit_variance_and_its_error_is_sigma_times_smaller_in_the_data():
    path, n = refiner(), 200_000
    site = site_of(path, batch=n, dim=1)
    x0 = normal(n, 1)
    for level, t in enumerate(path.levels):
        noised = path.corrupt(x0, t, site, Run(level).handle(site, F64))
        target = path.target("angular", x0, noised, t, site)
        assert float(target.std()) == pytest.approx(1.0, abs=0.01)
        off = Prediction("angular", target + 0.5, path, noised.z, t, site).data - x0
        torch.testing.assert_close(off, torch.full_like(off, -0.5 * path.stds[level]), atol=1e-12, rtol=0)


class Echo(nn.Module):
    """Returns what it sees, plus a condition."""

    def forward(self, features, time, ctx, previous):
        return {"x": features["x"] + ctx.cond["previous"][0]}


def prediction_from(path, t, draw):
    """The raw output for two draws of the source, float64 [3, 4]."""
    spec = StateSpec({"x": Component(Euclidean(), path, (4,))})
    ctx = Context.of(3, cond={"previous": (normal(3, 4, seed=7), torch.ones(3, dtype=torch.bool))})
    return NetworkDenoiser(spec, Echo())({"x": normal(3, 4, seed=draw)}, t, ctx)["x"].value


@pytest.mark.parametrize("times", [lambda t: t, lambda t: torch.full((3,), t, dtype=F64)])
def test_at_pure_noise_a_blank_path_hides_the_noise(times):
    for path in (refiner(), LevelPath()):
        one, two = (prediction_from(path, times(1.0), draw) for draw in (1, 2))
        assert torch.equal(one, two) and torch.equal(one, normal(3, 4, seed=7))
        seen = LevelPath(path.stds, blank=False)
        one, two = (prediction_from(seen, times(1.0), draw) for draw in (1, 2))
        assert torch.equal(one - two, normal(3, 4, seed=1) + normal(3, 4, seed=7) - (
            normal(3, 4, seed=2) + normal(3, 4, seed=7)))
    for t in refiner().levels[:-1]:
        assert torch.equal(prediction_from(refiner(), times(t), 1), normal(3, 4, seed=1) + normal(3, 4, seed=7))


def test_only_the_samples_at_pure_noise_are_blank():
    path, z = refiner(), normal(4, 2, 5)
    site = Context.of(4).at("x", Component(Euclidean(), path, (2, 5)))
    seen = path.features(z, torch.tensor([1.0, 0.75, 0.25, 1.0], dtype=F64), site)
    assert not seen[[0, 3]].any() and torch.equal(seen[[1, 2]], z[[1, 2]])


def test_a_coarsest_level_with_signal_is_never_blank():
    path, z = LevelPath((0.1, 0.9)), normal(3, 4)
    for t in (1.0, torch.ones(3, dtype=F64)):
        assert torch.equal(path.features(z, t, site_of(path)), z)


def test_a_path_of_levels_is_stored_as_json():
    for path in (refiner(), refiner(blank=False), LevelPath((0.2, 0.5), weight="data")):
        again = build(json.loads(json.dumps(path.to_config())))
        assert again == path and again.levels == path.levels and again.blank == path.blank


@pytest.mark.parametrize("stds", [(), (0.0, 1.0), (0.5, 0.5), (0.9, 0.1), (0.5, 1.5), (-0.1, 1.0)])
def test_levels_rise_strictly_up_to_one(stds):
    with pytest.raises(ScidiffError, match="rise strictly"):
        LevelPath(stds)


def test_what_lies_between_levels_does_not_exist():
    for weight in ("velocity", "likelihood"):
        with pytest.raises(ScidiffError, match="nothing lies between"):
            LevelPath((0.1, 1.0), weight=weight)
    path = refiner()
    with pytest.raises(ScidiffError, match="velocity"):
        path.read(normal(3, 4), normal(3, 4), 0.5, site_of(path), "velocity")
    for space in (Categorical(3), Torus(1.0)):
        with pytest.raises(ScidiffError, match="real numbers"):
            Component(space, path, (4,))
