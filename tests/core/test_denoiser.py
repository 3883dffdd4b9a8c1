"""NetworkDenoiser: what stands between a network and the mathematics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.errors import ScidiffError
from scidiff.core.path import EDM, VP, LevelPath, Linear, UniformPath
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.exponential import Exponential
from scidiff.core.solvers.fixed import Fixed
from scidiff.core.solvers.jump import Mixture
from scidiff.core.space import Categorical, Euclidean
from scidiff.core.spec import Component, Context, StateSpec


class Spy(nn.Module):
    """Returns zeros; remembers the times and inputs that it was given."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes, self.times, self.inputs = shapes, [], []

    def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:
        self.times.append(t.clone())
        self.inputs.append({k: v.clone() for k, v in features.items()})
        return {k: torch.zeros(ctx.batch, *s) for k, s in self.shapes.items()}


def mixed() -> StateSpec:
    return StateSpec({"x": Component(Euclidean(), Linear(), (2,)), "k": Component(Categorical(3), UniformPath(), (4,))})


@pytest.mark.parametrize(("separate", "width"), [(False, None), (True, 2)])
def test_components_with_different_ends_give_the_network_one_shape_of_time(separate: bool, width: int | None) -> None:
    spy = Spy({"x": (2,), "k": (4, 3)})
    denoiser = NetworkDenoiser(mixed(), spy, separate_times=separate)
    solver = Fixed(Exponential(), 5, methods={"k": Mixture()})
    Sampler(mixed(), denoiser, solver).run(Context.of(3), seed=0)
    expected = (3,) if width is None else (3, width)
    assert {tuple(t.shape) for t in spy.times} == {expected}
    assert spy.times[0].reshape(3, -1)[0, 0] == pytest.approx(0.999)


def test_the_default_kind_speaks_for_continuous_components() -> None:
    denoiser = NetworkDenoiser(mixed(), nn.Identity(), kinds={"default": "data"})
    assert denoiser.kinds == {"x": "data", "k": "logits"}
    with pytest.raises(ScidiffError, match="no component 'y'"):
        NetworkDenoiser(mixed(), nn.Identity(), kinds={"y": "data"})


def test_preconditioned_input_has_unit_variance_and_zero_network_is_the_linear_estimate() -> None:
    path, sd = EDM(data_std=0.5), 0.5
    spec = StateSpec({"x": Component(Euclidean(), path, (20000,))})
    spy = Spy({"x": (20000,)})
    denoiser = NetworkDenoiser(spec, spy, kinds={"default": "preconditioned"}, data_std=sd)
    ctx = Context.of(1)
    x0 = sd * torch.randn(1, 20000, generator=torch.Generator().manual_seed(0))
    t = 0.01
    noise = Run(0).handle(ctx.at("x", spec["x"]))
    z = path.corrupt(x0, t, ctx.at("x", spec["x"]), noise).z
    pred = denoiser({"x": z}, t, ctx)["x"]
    assert float(spy.inputs[0]["x"].std()) == pytest.approx(1.0, abs=0.02)
    sigma = path.coefficients(t).sigma
    torch.testing.assert_close(pred.data, z * sd**2 / (sd**2 + sigma**2))


def test_a_single_level_is_plain_regression_on_zeros() -> None:
    spec = StateSpec({"x": Component(Euclidean(), LevelPath(), (3,))})
    assert LevelPath().levels == (1.0,)
    ctx = Context.of(4)
    path = spec["x"].path
    site = ctx.at("x", spec["x"])
    out = path.corrupt(torch.ones(4, 3), 1.0, site, Run(0).handle(site))
    torch.testing.assert_close(out.z, out.eps)
    assert path.coefficients(1.0).alpha == 0.0


def test_conversion_uses_the_state_the_network_saw() -> None:
    """A rule that looks at an unbound prediction must get it at z_t, not at the state after the rows."""
    from scidiff.core.denoiser import Denoiser
    from scidiff.core.path.base import Prediction

    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,))})
    seen, told = [], []

    class Plain(Denoiser):
        def forward(self, state, t, ctx, run=None):
            seen.append((state["x"].clone(), t))
            return {"x": Prediction("data", 0.3 * state["x"])}

    def rule(z_next, z_t, pred, t, s, ctx, run):
        told.append(pred["x"].noise.clone())
        return z_next

    Sampler(spec, Plain(), Fixed(Exponential(order=2, form="data"), 6), rules=[rule]).run(Context.of(3), seed=1)
    assert len(told) == 6
    for (z, t), eps in zip(seen, told, strict=True):
        k = spec["x"].path.coefficients(t)
        torch.testing.assert_close(eps, (z - k.alpha * 0.3 * z) / k.sigma)
