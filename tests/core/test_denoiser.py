"""NetworkDenoiser: what stands between a network and the mathematics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scidiff.core.denoiser import ByComponent, NetworkDenoiser
from scidiff.core.errors import ScidiffError
from scidiff.core.path import EDM, VP, Bridge, LevelPath, Linear, MeanReverting, UniformPath
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


def test_preconditioning_of_a_centred_path_is_that_of_the_path_about_its_centre() -> None:
    path = MeanReverting(stationary=0.3)
    spec = StateSpec({"x": Component(Euclidean(), path, (5,))})
    y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    clean = []
    for mu in (torch.zeros(2, 5), torch.full((2, 5), 7.0)):
        spy = Spy({"x": (5,)})
        denoiser = NetworkDenoiser(spec, spy, kinds={"x": "preconditioned"}, data_std=0.5)
        k = path.coefficients(0.5)
        clean.append(denoiser({"x": y + k.c * mu}, 0.5, Context.of(2, centre={"x": mu}))["x"].data)
        torch.testing.assert_close(spy.inputs[0]["x"], y / (k.alpha**2 * 0.25 + k.sigma**2) ** 0.5)
    torch.testing.assert_close(clean[0], clean[1])


def test_a_clock_of_lambda_leaves_paths_without_one_on_t() -> None:
    spec = StateSpec({"x": Component(Euclidean(), VP(), (2,)), "b": Component(Euclidean(), Bridge(), (2,)),
                      "k": Component(Categorical(3), UniformPath(), (4,))})
    spy = Spy({"x": (2,), "b": (2,), "k": (4, 3)})
    state = {"x": torch.zeros(1, 2), "b": torch.zeros(1, 2), "k": torch.zeros(1, 4, dtype=torch.int64)}
    NetworkDenoiser(spec, spy, {"b": "velocity"}, clock="lambda", separate_times=True)(state, 0.4, Context.of(1))
    torch.testing.assert_close(spy.times[0], torch.tensor([[VP().coefficients(0.4).lam, 0.4, 0.4]]))


def test_separate_denoisers_answer_for_their_own_components_and_see_the_whole_state() -> None:
    """The system of GDSS: one network for the nodes, one for the edges, both reading both."""
    spec = StateSpec({n: Component(Euclidean(), VP(), (2,)) for n in ("a", "b")})

    class Sum(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                    previous: dict[str, Tensor] | None) -> dict[str, Tensor]:
            both = self.factor * (features["a"] + features["b"])
            return {"a": both, "b": -both}

    joined = ByComponent({"a": NetworkDenoiser(spec, Sum(2.0)), "b": NetworkDenoiser(spec, Sum(3.0))})
    state = {"a": torch.randn(3, 2), "b": torch.randn(3, 2)}
    preds = joined(state, 0.5, Context.of(3))
    torch.testing.assert_close(preds["a"].value, 2.0 * (state["a"] + state["b"]))
    torch.testing.assert_close(preds["b"].value, -3.0 * (state["a"] + state["b"]))
    assert Sampler(spec, joined, Fixed(Exponential(), 4)).run(Context.of(3), 0).nfe == 4


def test_each_step_sees_the_clean_estimate_of_the_step_before() -> None:
    spec, fed, told = mixed(), [], []

    class Net(nn.Module):
        def forward(self, features: dict[str, Tensor], t: Tensor, ctx: Context,
                    previous: dict[str, Tensor] | None) -> dict[str, Tensor]:
            fed.append(previous)
            return {"x": 0.5 * features["x"], "k": 2.0 * features["k"] + t[0]}

    denoiser = NetworkDenoiser(spec, Net(), self_conditioning=True)
    Sampler(spec, denoiser, Fixed(Exponential(), 4, methods={"k": Mixture()})).run(
        Context.of(3), 0, on_step=lambda loop: told.append({n: p.data if n == "x" else p.probs
                                                            for n, p in loop.bound().items()}))
    assert fed[0] is None and len(fed) == 4
    for before, seen in zip(told, fed[1:], strict=False):
        assert all(torch.equal(before[n], seen[n]) for n in spec)


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
