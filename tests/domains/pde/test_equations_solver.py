"""The spectral solver itself: coefficients, edges, the two layouts of a step, refusals, gradients, initial states."""

from __future__ import annotations

import inspect
import json
import math

import pytest
import torch

from scidiff.core.errors import NonFinite, UsageError
from scidiff.domains.pde.equations import (
    EQUATIONS,
    AdvectionDiffusion,
    AllenCahn,
    BlowUp,
    Burgers,
    GrayScott,
    KortewegDeVries,
    KuramotoSivashinsky,
    NavierStokes2d,
    SpectralSolver,
)
from scidiff.domains.pde.equations.etd import coefficients
from scidiff.domains.pde.equations.grid import wavenumbers

F64 = torch.float64
ALL = [cls() for cls in EQUATIONS.values()]
ALL += [cls(dims=2) for cls in EQUATIONS.values() if "dims" in inspect.signature(cls).parameters]


def small(equation):
    """A coarse grid for quick steps."""
    return (48,) if equation.dims == 1 else (24, 32)


def name_of(equation):
    return f"{equation.name}-{equation.dims}d"


# -- coefficients


@pytest.mark.parametrize("turn", [1.0, 1j, -0.6 + 0.8j])
def test_weights_agree_with_many_digits(turn):
    mp = pytest.importorskip("mpmath")
    sizes = [0.0, 1e-9, 1e-4, 0.02, 0.5, 0.999, 1.001, 2.0, 7.0, 40.0]
    z = -torch.tensor(sizes, dtype=torch.complex128) * turn
    dt = 0.1
    four, two = coefficients(z / dt, dt, 4), coefficients(z / dt, dt, 2)

    def phi(j, x):
        return mp.nsum(lambda n: x**n / mp.factorial(n + j), [0, mp.inf]) if abs(x) < 8 else (
            mp.exp(x) if j == 0 else (phi(j - 1, x) - 1 / mp.factorial(j - 1)) / x)

    with mp.workdps(60):
        for i, value in enumerate(z.tolist()):
            x = mp.mpc(value)
            p1, p2, p3 = (phi(j, x) for j in (1, 2, 3))
            exact = {"half": mp.exp(x / 2), "whole": mp.exp(x), "stage": dt * phi(1, x / 2) / 2,
                     "n0": dt * (p1 - 3 * p2 + 4 * p3), "n1": dt * (2 * p2 - 4 * p3), "n3": dt * (4 * p3 - p2)}
            for key, true in exact.items():
                assert abs(complex(four[key][i]) - complex(true)) <= 1e-14 * max(abs(complex(true)), 1e-3)
            for key, true in (("n0", dt * p1), ("n1", dt * p2)):
                assert abs(complex(two[key][i]) - complex(true)) <= 1e-14 * max(abs(complex(true)), 1e-3)


def test_wavenumbers_are_exact_in_double_precision():
    (k,) = wavenumbers((240,), 7.0)
    assert k.dtype == F64
    exact = torch.tensor([2.0 * math.pi * n / 7.0 for n in range(121)], dtype=F64)
    assert (k - exact).abs().max() <= 1e-14 * exact.max()


# -- the layouts of a step


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("equation", ALL, ids=name_of)
def test_rollout_in_place_is_the_repeated_step(equation, order):
    shape = small(equation)
    solver = SpectralSolver(equation, shape, equation.extent, 0.5 * equation.typical.dt, order=order, dtype=F64)
    u0 = equation.initial(torch.arange(5), 0, shape, equation.extent, F64)
    frames = solver.rollout(u0, 12, every=4)
    assert frames.shape == (5, 3, equation.channels, *shape)
    v, expected = solver.to_hat(u0), []
    for step in range(12):
        v = solver.step_hat(v)
        if step % 4 == 3:
            expected.append(solver.to_real(v))
    scale = u0.abs().max()
    assert (frames - torch.stack(expected, 1)).abs().max() <= 1e-13 * scale  # five samples: three pairs, one of a twin
    assert (solver.rollout(u0[3:4], 12, 12)[:, 0] - expected[-1][3:4]).abs().max() <= 1e-13 * scale  # alone: no pair


@pytest.mark.parametrize("wave", [30, 40])
def test_a_wave_that_turns_a_whole_circle_in_half_a_step(wave):
    """exp(h L / 2) = 1 for this wave: the weight of a stage vanishes there, and nothing may be divided by it."""
    equation, length, n = KortewegDeVries(), 16.0, 128
    k = 2.0 * math.pi / length * wave
    solver = SpectralSolver(equation, (n,), length, 4.0 * math.pi / k**3, dtype=F64)
    u0 = equation.initial(torch.arange(4), 0, (n,), length, F64)
    v = solver.to_hat(u0)
    for _ in range(20):
        v = solver.step_hat(v)
    assert (solver.rollout(u0, 20, 20)[:, 0] - solver.to_real(v)).abs().max() <= 1e-12


@pytest.mark.parametrize("equation, shape, box", [
    (KuramotoSivashinsky(torch.tensor([0.5, 1.0, 1.5])), (48,), torch.tensor([20.0, 22.0, 24.0])),
    (NavierStokes2d(viscosity=torch.tensor([1e-2, 2e-3, 5e-3]), drag=torch.tensor([0.1, 0.0, 0.2])), (24, 24),
     torch.tensor([6.0, 2 * math.pi, 7.0])),
    (GrayScott(feed=torch.tensor([0.03, 0.04, 0.03]), kill=torch.tensor([0.062, 0.06, 0.0565])), (24, 24),
     torch.tensor([2.5, 2.0, 3.0])),
], ids=["ks", "kolmogorov", "gray_scott"])
def test_parameters_of_each_sample_equal_single_runs(equation, shape, box):
    dt = equation.typical.dt * torch.tensor([0.4, 0.5, 0.6])
    u0 = equation.initial(torch.arange(3), 1, shape, box, F64)
    together = SpectralSolver(equation, shape, box, dt, dtype=F64)
    frames, v = together.rollout(u0, 10, 5), together.to_hat(u0)
    for _ in range(10):
        v = together.step_hat(v)
    assert (together.to_real(v) - frames[:, -1]).abs().max() <= 1e-13 * u0.abs().max()
    for i in range(3):
        own = {n: v[i] if isinstance(v, list) else v for n, v in equation.to_config().items()}
        alone = SpectralSolver(type(equation).from_config(own), shape, float(box[i]), float(dt[i]), dtype=F64)
        assert (alone.rollout(u0[i : i + 1], 10, 5) - frames[i : i + 1]).abs().max() <= 1e-13 * u0.abs().max()


def test_blocks_of_a_large_batch_join_without_a_seam(monkeypatch):
    from scidiff.domains.pde.equations import spectral

    equation = KuramotoSivashinsky()
    u0 = equation.initial(torch.arange(11), 0, (48,), 22.0, F64)
    whole = SpectralSolver(equation, (48,), 22.0, 0.1, dtype=F64).rollout(u0, 20, 10)
    monkeypatch.setattr(spectral, "BLOCK", 4 * 48)
    heard = []
    out = torch.full((11, 2, 1, 48), math.nan, dtype=torch.float32)
    SpectralSolver(equation, (48,), 22.0, 0.1, dtype=F64).rollout(u0, 20, 10, out, lambda *a: heard.append(a))
    assert (out - whole).abs().max() <= 1e-6
    assert heard == [(i, 6) for i in range(1, 7)]


def test_a_faint_sample_keeps_its_digits_beside_a_large_one():
    """In single precision, where a shared transform would leave the rounding of the large one in the faint one."""
    equation = AllenCahn(0.15)
    wave = torch.cos(3 * 2.0 * math.pi * torch.arange(64) / 64)
    u0 = torch.stack([wave, 1e-6 * wave])[:, None]
    faint = SpectralSolver(equation, (64,), equation.extent, 0.05).rollout(u0, 40, 40)[1, 0]
    exact = math.exp((1.0 - 0.15**2 * 9) * 2.0) * u0[1]
    assert (faint - exact).norm() <= 1e-5 * exact.norm()


def test_single_precision_loses_a_rounding_a_step():
    equation = KuramotoSivashinsky()
    u0 = equation.initial(torch.arange(8), 0, (128,), 64.0, F64)
    u0 = SpectralSolver(equation, (128,), 64.0, 0.1, dtype=F64).rollout(u0, 600, 600)[:, 0]
    ends = [SpectralSolver(equation, (128,), 64.0, 0.05, dtype=d).rollout(u0, 1).to(F64) for d in (torch.float32, F64)]
    assert (ends[0] - ends[1]).norm() <= 2e-6 * ends[1].norm()


@pytest.mark.parametrize("equation", [KuramotoSivashinsky(), NavierStokes2d(viscosity=0.01)], ids=name_of)
def test_gradient_of_a_step_by_finite_differences(equation):
    shape = (32,) if equation.dims == 1 else (16, 16)
    solver = SpectralSolver(equation, shape, 12.0, 0.5 * equation.typical.dt, dtype=F64)
    u = equation.initial(torch.arange(2), 3, shape, 12.0, F64).requires_grad_()
    weight, along = torch.cos(torch.arange(u.numel(), dtype=F64)).view_as(u), torch.sin(1.7 * torch.arange(u.numel()))

    def value(x):
        return (weight * solver.to_real(solver.step_hat(solver.step_hat(solver.to_hat(x)))) ** 2).sum()

    (gradient,) = torch.autograd.grad(value(u), u)
    along, eps = along.to(F64).view_as(u), 1e-5
    with torch.no_grad():
        difference = (value(u + eps * along) - value(u - eps * along)) / (2.0 * eps)
    assert abs(float((gradient * along).sum() - difference)) <= 1e-8 * float(gradient.norm() * along.norm())


# -- initial states and configurations


@pytest.mark.parametrize("equation", ALL, ids=name_of)
def test_initial_states_depend_on_seed_and_id_alone(equation):
    shape, box = small(equation), equation.extent
    together = equation.initial(torch.tensor([5, 0, 7, 9]), 3, shape, box, F64)
    assert together.shape == (4, equation.channels, *shape)
    assert torch.equal(together[2:3], equation.initial(torch.tensor([7]), 3, shape, box, F64))
    assert not torch.allclose(together[:1], together[1:2])
    assert not torch.allclose(together, equation.initial(torch.tensor([5, 0, 7, 9]), 4, shape, box, F64))
    finer = equation.initial(torch.tensor([5, 0, 7, 9]), 3, tuple(2 * n for n in shape), box, F64)
    picked = finer[(..., *[slice(None, None, 2)] * equation.dims)]
    assert (picked - together).abs().max() <= 1e-12  # the same field, seen on another grid


@pytest.mark.parametrize("equation", [*ALL, KuramotoSivashinsky(torch.tensor([0.5, 1.5], dtype=F64))], ids=name_of)
def test_equations_survive_json(equation):
    config = equation.to_config()
    again = EQUATIONS[config["name"]].from_config(json.loads(json.dumps(config)))
    assert again.to_config() == config
    solver = SpectralSolver(again, again.shape, again.extent, again.typical.dt)
    assert solver.shape == equation.shape and all(limit > again.typical.dt for limit in solver.limits().values())


# -- refusals


@pytest.mark.parametrize("build, says", [
    (lambda: SpectralSolver(KuramotoSivashinsky(), (128,), 64.0, 0.9), "at most 0.756"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (128,), 64.0, torch.tensor([0.1, 0.9])), "dt = 0.9 is too large"),
    (lambda: SpectralSolver(NavierStokes2d(), (256, 256), 2 * math.pi, 0.05), "fastest kept wave"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (64, 64), 22.0, 0.1), "lives in 1 dimension"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (4,), 22.0, 0.1), "too coarse"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (64,), -22.0, 0.1), "length of the box is -22"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (64,), 22.0, float("nan")), "step dt is nan"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (64,), (22.0, 22.0), 0.1), "2 lengths"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (64,), 22.0, 0.1, order=3), "no scheme of order 3"),
    (lambda: SpectralSolver(KuramotoSivashinsky(), (64,), 22.0, 0.1, dtype=torch.float16), "float32 or float64"),
    (lambda: SpectralSolver(KuramotoSivashinsky(torch.ones(3)), (64,), torch.ones(2) * 22, 0.1), "different sizes"),
    (lambda: KuramotoSivashinsky(viscosity=-1.0), "viscosity is -1"),
    (lambda: KuramotoSivashinsky(viscosity=torch.tensor([1.0, math.nan])), "viscosity is nan"),
    (lambda: NavierStokes2d(forcing_wavenumber=0), "forcing_wavenumber=0"),
    (lambda: AdvectionDiffusion(dims=3), "not in 3"),
    (lambda: Burgers.from_config({"name": "burgers", "nu": 0.1}), "no parameter 'nu'"),
])
def test_impossible_requests_are_refused_in_one_sentence(build, says):
    with pytest.raises(UsageError, match=says):
        build()


def test_states_that_do_not_fit_are_refused():
    solver = SpectralSolver(KuramotoSivashinsky(), (64,), 22.0, 0.1)
    u0 = torch.zeros(2, 1, 64)
    with pytest.raises(UsageError, match=r"\[batch, 1, 64\]"):
        solver.rollout(torch.zeros(2, 64), 1)
    with pytest.raises(UsageError, match="5 steps cannot be kept every 2"):
        solver.rollout(u0, 5, 2)
    with pytest.raises(UsageError, match="`out` is"):
        solver.rollout(u0, 4, 2, out=torch.zeros(2, 3, 1, 64))
    with pytest.raises(UsageError, match="sample 1 holds NaN"):
        solver.rollout(torch.stack([u0[0], u0[1] + math.nan]), 1)
    with pytest.raises(UsageError, match="the initial state reaches 40"):
        solver.rollout(u0 + 40.0, 1)
    with pytest.raises(UsageError, match="3 samples, the state has 2"):
        SpectralSolver(KuramotoSivashinsky(torch.ones(3)), (64,), 22.0, 0.1).rollout(u0, 1)


class Growing(AdvectionDiffusion):
    """Modes of one and two waves grow like exp(nu n^2 t) on purpose, all others fade."""

    def linear(self, k):
        plain = super().linear(k)
        return torch.where(k[0].abs() < 2.5, -plain, torch.full_like(plain, -1.0))


@pytest.mark.parametrize("own", [False, True], ids=["pairs", "own coefficients"])
def test_a_blow_up_names_its_step_and_keeps_the_frames_before(own, monkeypatch):
    from scidiff.domains.pde.equations import spectral

    monkeypatch.setattr(spectral, "BLOCK", 2 * 32)
    x = 2.0 * math.pi * torch.arange(32, dtype=F64) / 32
    u0 = torch.stack([torch.ones_like(x), torch.sin(x), 0.5 * torch.ones_like(x), torch.sin(2 * x)])[:, None]
    viscosity = torch.full((4,), 0.5, dtype=F64) if own else 0.5
    solver = SpectralSolver(Growing(speed=0.0, viscosity=viscosity), (32,), 2 * math.pi, 0.1, dtype=F64)
    bound = spectral.EXCESS * solver.equation.typical.largest
    step = math.ceil(math.log(bound) / (0.5 * 4 * 0.1))  # sample 3, of two waves, is the first to pass the bound
    says = rf"'advection' blew up at step {step} \(time {0.1 * step:.4g}\) in sample 3\."
    with pytest.raises(BlowUp, match=says) as caught:
        solver.rollout(u0, 60, every=4)
    assert isinstance(caught.value, NonFinite)
    assert caught.value.step == step and caught.value.samples == [3]
    good = (step - 1) // 4
    assert caught.value.frames.shape == (4, good, 1, 32)
    times = 0.4 * torch.arange(1, good + 1, dtype=F64)[:, None]
    for sample, waves in ((1, 1), (3, 2)):
        exact = torch.exp(0.5 * waves**2 * times) * torch.sin(waves * x)
        assert (caught.value.frames[sample, :, 0] - exact).abs().max() <= 1e-9 * bound
