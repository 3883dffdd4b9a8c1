"""The refiner's solver over a path of levels: which levels are visited, and what one step does, in closed form."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import yaml

from scidiff.core.denoiser import Denoiser
from scidiff.core.errors import UsageError
from scidiff.core.path import VP, LevelPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.ancestral import Ancestral
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.store.targets import build

F64 = torch.float64
CONF = Path(__file__).resolve().parents[3] / "conf" / "solver" / "refiner.yaml"
PATH = LevelPath.geometric(math.sqrt(4e-7), 3)
CHOICES = [(*c, 3) for size in range(4) for c in itertools.combinations(range(3), size)]


def driver(levels=None):
    """The shipped solver, at some levels."""
    return build({**yaml.safe_load(CONF.read_text()), "levels": levels})


def spec_of(path, dim):
    return StateSpec({"x": Component(Euclidean(), path, (dim,))})


class Known(Denoiser):
    """Predicts `clean(t)` as the path's own kind; remembers the times at which it was called."""

    def __init__(self, spec, clean, kind="angular"):
        super().__init__()
        self.spec, self.clean, self.kind, self.times = spec, clean, kind, []

    def forward(self, state, t, ctx, run=None):
        self.times.append(t)
        path, site, z = self.spec["x"].path, ctx.at("x", self.spec["x"]), state["x"]
        clean = self.clean(t).to(z.dtype).expand_as(z)
        if self.kind == "angular":
            k = path.coefficients(t)
            return {"x": path.read((k.alpha * z - clean) / k.sigma, z, t, site, "angular")}
        return {"x": path.read(clean, z, t, site, self.kind)}


def drawn(denoiser, solver, batch=1, seed=0, dtype=F64, **more):
    """The state after each step, the start first."""
    sampler = Sampler(denoiser.spec, denoiser, solver, dtype=dtype)
    seen = []
    result = sampler.run(Context.of(batch), seed, on_step=lambda loop: seen.append(loop.state["x"].clone()), **more)
    return seen, result


def test_all_levels_are_visited_unless_some_are_named():
    spec = spec_of(PATH, 2)
    for asked, times in ((None, [1.0, 0.75, 0.5, 0.25]), ([0, 3], [1.0, 0.25]), ([3, 0, 3], [1.0, 0.25]), ([3], [1.0]),
                         ([1, 2, 3], [1.0, 0.75, 0.5])):
        denoiser = Known(spec, lambda t: torch.zeros(1))
        seen, result = drawn(denoiser, driver(asked))
        assert denoiser.times == times and result.nfe == len(times) == len(seen)
        assert driver(asked).total(spec, 1.0) == len(times)


@pytest.mark.parametrize("levels", [[4], [-1], [0, 1, 2, 3, 7], []])
def test_levels_that_the_path_does_not_have_are_refused(levels):
    with pytest.raises(UsageError, match=r"levels 0 to 3; the solver asks for \["):
        driver(levels).plan(spec_of(PATH, 2))


def test_levels_of_a_continuous_path_are_refused():
    """Nothing is ignored silently: a path without levels has none to visit."""
    with pytest.raises(UsageError, match=r"solver\.levels"):
        Fixed(Ancestral(), 3, levels=[0]).plan(spec_of(VP(), 2))


def test_one_level_returns_the_first_prediction_itself():
    clean = torch.linspace(-2.0, 2.0, 6, dtype=F64)
    _, result = drawn(Known(spec_of(PATH, 6), lambda t: clean, "data"), driver([3]))
    assert torch.equal(result.state["x"][0], clean) and result.nfe == 1


def test_the_first_step_re_noises_the_prediction():
    """alpha D + sigma xi to the last digit: nothing of the noise that the chain began with is left."""
    clean = torch.linspace(-2.0, 2.0, 6, dtype=F64)
    spec = spec_of(PATH, 6)
    for levels in CHOICES[1:]:
        seen, _ = drawn(Known(spec, lambda t: clean, "data"), driver(list(levels)), batch=3, seed=4)
        k = PATH.coefficients(PATH.levels[levels[-2]])
        site = Context.of(3).at("x", spec["x"])
        xi = Run(4).handle(site, F64).normal("step")
        torch.testing.assert_close(seen[0], k.alpha * clean + k.sigma * xi, atol=1e-15, rtol=0)
    other = Run(4).handle(site, F64).normal("source")
    assert not torch.equal(xi, other)


@pytest.mark.parametrize("now, then", [(2, 1), (1, 0), (2, 0)])
def test_later_steps_have_the_small_posterior_variance(now, then):
    """From the letters of DDPM: abar_t, abar_{t-1}, and beta = 1 - abar_t / abar_{t-1}; 400,000 draws, 1 %."""
    n, clean, start = 400_000, 0.7, -0.4
    before, after = (1.0 - PATH.stds[i] ** 2 for i in (now, then))
    beta = 1.0 - before / after
    mean = (math.sqrt(after) * beta * clean + math.sqrt(1.0 - beta) * (1.0 - after) * start) / (1.0 - before)
    variance = beta * (1.0 - after) / (1.0 - before)
    denoiser = Known(spec_of(PATH, n), lambda t: torch.full((1,), clean), "data")
    seen, _ = drawn(denoiser, driver([then, now, 3]), start={"x": torch.full((1, n), start, dtype=F64)},
                    t_start=PATH.levels[now])
    assert denoiser.times == [PATH.levels[now], PATH.levels[then]]
    assert float(seen[0].mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(seen[0].mean()) == pytest.approx(mean, rel=0.01)
    assert float(seen[0].var()) == pytest.approx(variance, rel=0.01)


@pytest.mark.parametrize("levels", CHOICES, ids=str)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_oracle_recovers_its_target_whatever_levels_are_visited(levels, eta):
    clean = torch.randn(5, 16, generator=torch.Generator().manual_seed(2), dtype=F64)
    denoiser = Known(spec_of(PATH, 16), lambda t: clean)
    _, result = drawn(denoiser, Fixed(Ancestral(eta=eta), levels=list(levels)), batch=5)
    torch.testing.assert_close(result.state["x"], clean, atol=1e-6, rtol=0)


def test_an_oracle_passes_through_the_law_of_every_level():
    """x_j ~ N(alpha_j x0, sigma_j^2) after each step, to 1 % in the standard deviation."""
    n = 400_000
    seen, _ = drawn(Known(spec_of(PATH, n), lambda t: torch.full((1,), 1.3)), driver())
    for x, level in zip(seen[:-1], (2, 1, 0), strict=True):
        k = PATH.coefficients(PATH.levels[level])
        assert float(x.mean()) == pytest.approx(k.alpha * 1.3, abs=5 * k.sigma / math.sqrt(n))
        assert float(x.std()) == pytest.approx(k.sigma, rel=0.01)
    torch.testing.assert_close(seen[-1], torch.full_like(seen[-1], 1.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_a_gain_multiplies_the_fresh_noise_alone(eta):
    """The mean of every step stays what it is, and what is drawn around it grows by the gain."""
    clean, start = torch.linspace(-2.0, 2.0, 6, dtype=F64), torch.full((1, 6), 0.3, dtype=F64)
    spec = spec_of(PATH, 6)

    def first_step(gain, now):
        solver = Fixed(Ancestral(eta=eta, gain=gain))
        return drawn(Known(spec, lambda t: clean, "data"), solver, start={"x": start}, t_start=PATH.levels[now])[0][0]

    for now in (1, 2, 3):
        still, plain, more = (first_step(gain, now) for gain in (0.0, 1.0, 2.5))
        torch.testing.assert_close(more - still, 2.5 * (plain - still), atol=1e-14, rtol=0)
        assert float((plain - still).abs().min()) > 0.0
        k = PATH.coefficients(PATH.levels[now - 1])
        fresh = eta * PATH.fresh_noise(PATH.levels[now], PATH.levels[now - 1])
        keep, before = math.sqrt(k.sigma**2 - fresh**2), PATH.coefficients(PATH.levels[now])
        mean = k.alpha * clean + keep * (start[0] - before.alpha * clean) / before.sigma
        torch.testing.assert_close(still[0], mean, atol=1e-14, rtol=0)
    for gain in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="gain"):
            Ancestral(gain=gain)


def test_the_last_prediction_is_what_the_chain_returns():
    """Each call says something else; the result is the last one, not a mixture."""
    denoiser = Known(spec_of(PATH, 3), lambda t: torch.full((1,), 10.0 * t), "data")
    _, result = drawn(denoiser, driver())
    assert result.state["x"].tolist() == [[2.5] * 3] and result.nfe == 4


def test_a_plan_is_made_once_for_all_steps_of_a_rollout():
    spec = spec_of(PATH, 3)
    solver = driver([0, 3])
    first = solver.plan(spec)
    drawn(Known(spec, lambda t: torch.zeros(1)), solver)
    assert solver.plan(spec) is first and first.nfe == 2
