"""The clamp: known entries follow the path's own law at every step and end on their clean values."""

from itertools import pairwise

import pytest
import torch

from scidiff.core.analytic import AnalyticGaussian
from scidiff.core.errors import ScidiffError
from scidiff.core.guidance import Clamp
from scidiff.core.path import VP, AbsorbingPath, MarginalPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.jump import Posterior
from scidiff.core.space import Categorical, Euclidean
from scidiff.core.spec import Component, Context, StateSpec


def test_known_entries_have_the_marginal_of_their_path_and_the_rest_is_untouched():
    path, n = VP(), 20000
    spec = StateSpec({"x": Component(Euclidean(), path, (2,))})
    x0 = torch.full((n, 2), 1.5)
    where = torch.tensor([True, False]).expand(n, 2)
    ctx = Context.of(n, known={"x": (x0, where)})
    z = torch.full((n, 2), 7.0)
    for s in (0.2, 0.6):
        k = path.coefficients(s)
        out = Clamp(spec)({"x": z}, {"x": z}, {}, s + 0.1, s, ctx, Run(0))["x"]
        assert (out[:, 1] == 7.0).all()
        assert abs(float(out[:, 0].mean()) - k.alpha * 1.5) < 4 * k.sigma / n**0.5
        assert abs(float(out[:, 0].std()) - k.sigma) < 4 * k.sigma / (2 * n) ** 0.5
    last = Clamp(spec)({"x": z}, {"x": z}, {}, 0.1, path.bounds[0], ctx, Run(0))["x"]
    assert (last[:, 0] == 1.5).all()


def test_categories_keep_their_share_and_a_time_per_sample_works():
    path, n = MarginalPath(marginal=(0.1, 0.2, 0.7)), 4000
    spec = StateSpec({"k": Component(Categorical(3), path, (8,))})
    ctx = Context.of(n, known={"k": (torch.zeros(n, 8, dtype=torch.int64), torch.ones(n, 8, dtype=torch.bool))})
    z = torch.full((n, 8), 2)
    s = torch.cat([torch.full((n // 2,), 0.3), torch.zeros(n // 2)]).double()
    out = Clamp(spec)({"k": z}, {"k": z}, {}, s + 0.1, s, ctx, Run(0))["k"]
    assert out.dtype == torch.int64 and (out[n // 2:] == 0).all()
    assert abs(float((out[: n // 2] == 0).double().mean()) - (0.7 + 0.3 * 0.1)) < 0.01


@pytest.mark.parametrize("fresh", [True, False])
def test_a_run_ends_on_the_known_values_and_pulls_the_rest(fresh):
    """Two correlated Gaussians, one clamped to 2: the mean of the other follows the linear recursion of its steps."""
    path, rho, n = VP(), 0.8, 4000
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    exact = AnalyticGaussian([0.0, 0.0], cov, {"a": path, "b": path}, {"a": 1, "b": 1})
    spec, driver = exact.spec(), Fixed(Posterior(eta=1.0), steps=60)
    ctx = Context.of(n, known={"a": (torch.full((n, 1), 2.0), torch.ones(n, dtype=torch.bool))})
    b = Sampler(spec, exact, driver, rules=[Clamp(spec, fresh)]).run(ctx, seed=0).state
    assert (b["a"] == 2.0).all()
    times, mean, a_mean = driver.times(spec), 0.0, 0.0
    for t, s in pairwise(times):
        now, then = path.coefficients(t), path.coefficients(s)
        here = now.alpha**2 * cov + now.sigma**2 * torch.eye(2, dtype=torch.float64)
        z = torch.tensor([a_mean, mean], dtype=torch.float64)
        clean = float((now.alpha * cov @ torch.linalg.solve(here, z))[1])
        keep = (max(then.sigma**2 - path.fresh_noise(t, s) ** 2, 0.0)) ** 0.5
        mean = then.alpha * clean + keep * (mean - now.alpha * clean) / now.sigma
        a_mean = then.alpha * 2.0
    assert 0.8 < mean < 1.6 == 2.0 * rho  # replacement is biased below the conditional mean
    assert abs(float(b["b"].mean()) - mean) < 4 * float(b["b"].std()) / n**0.5


def test_one_draw_for_the_whole_run_follows_a_smooth_trajectory():
    path = VP()
    spec = StateSpec({"x": Component(Euclidean(), path, (3,))})
    ctx = Context.of(2, known={"x": (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))})
    z = {"x": torch.zeros(2, 3)}
    run, seen = Run(0), {}
    for fresh in (False, True):
        for step, s in ((3, 0.5), (4, 0.4)):
            run.step = step
            seen[fresh, step] = Clamp(spec, fresh)(z, z, {}, 1.0, s, ctx, run)["x"] / path.coefficients(s).sigma
    torch.testing.assert_close(seen[False, 3], seen[False, 4], rtol=1e-5, atol=1e-6)
    assert (seen[True, 3] - seen[True, 4]).abs().max() > 0.1


def test_masked_entries_and_scaffold_masks_by_node():
    spec = StateSpec({"k": Component(Categorical(2), AbsorbingPath(), ("N",))})
    ctx = Context(torch.arange(2), sizes=torch.tensor([3, 2]), known={
        "k": (torch.ones(2, 3, dtype=torch.int64), torch.tensor([[True, False, False], [False, True, False]]))})
    z = {"k": torch.full((2, 3), 2) * torch.tensor([[1, 1, 1], [1, 1, 0]])}
    out = Clamp(spec)(z, z, {}, 0.1, 0.0, ctx, Run(0))["k"]
    assert out.tolist() == [[1, 2, 2], [2, 1, 0]]


def test_wrong_names_and_masks_are_sentences():
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})
    z = {"x": torch.zeros(1, 2)}
    with pytest.raises(ScidiffError, match="no component 'y'"):
        Clamp(spec)(z, z, {}, 1.0, 0.5, Context.of(1, known={"y": (z["x"], z["x"] > 0)}), Run(0))
    with pytest.raises(ScidiffError, match="boolean"):
        Clamp(spec)(z, z, {}, 1.0, 0.5, Context.of(1, known={"x": (z["x"], z["x"])}), Run(0))
