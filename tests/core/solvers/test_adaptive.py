"""Adaptive Runge-Kutta: error follows tolerance, one step size for the batch, resume, rules."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.errors import NonFinite, ScidiffError, UsageError
from scidiff.core.path import Prediction, UniformPath
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.adaptive import PAIRS, Adaptive
from scidiff.core.space import Categorical
from scidiff.core.spec import Component, StateSpec


def run(ring, driver, rules=(), **more):
    sampler = Sampler(ring.spec, ring.denoiser, driver, rules, dtype=torch.float64)
    return sampler.run(ring.context, 0, start={"x": ring.start}, **more)


@pytest.mark.parametrize("scheme", sorted(PAIRS))
def test_pairs_are_consistent(scheme):
    pair = PAIRS[scheme]
    for row, c in zip(pair.a, pair.c[1:], strict=True):
        assert sum(row) == pytest.approx(c, abs=1e-14)
    assert sum(pair.e) == pytest.approx(0.0, abs=1e-14)
    b, c = (*pair.a[-1], 0.0), pair.c
    for k in range(pair.order):
        assert sum(w * v**k for w, v in zip(b, c, strict=True)) == pytest.approx(1.0 / (k + 1), abs=1e-14)


@pytest.mark.parametrize("scheme, tolerances", [("bosh3", (1e-3, 1e-5)), ("dopri5", (1e-3, 1e-5, 1e-7))])
def test_error_follows_the_tolerance(ring, scheme, tolerances):
    calls = []
    for tol in tolerances:
        result = run(ring, Adaptive(scheme, rtol=tol, atol=tol))
        assert float((result.state["x"] - ring.truth).abs().max()) < 20 * tol
        calls.append(result.nfe)
    assert calls == sorted(calls) and calls[-1] > calls[0]


def test_a_stored_velocity_is_used_again(ring):
    result = run(ring, Adaptive(rtol=1e-4, atol=1e-4))
    steps = []
    again = run(ring, Adaptive(rtol=1e-4, atol=1e-4), on_step=lambda loop: steps.append(loop.t))
    assert again.nfe == result.nfe and (result.nfe - 1) % 6 == 0
    assert steps == sorted(steps, reverse=True) and steps[-1] == pytest.approx(1e-3)


def test_resume_continues_exactly(ring):
    saved = []
    whole = run(ring, Adaptive(rtol=1e-4, atol=1e-4), on_step=lambda loop: saved.append(loop.state_dict()))
    sampler = Sampler(ring.spec, ring.denoiser, Adaptive(rtol=1e-4, atol=1e-4), dtype=torch.float64)
    for checkpoint in (saved[0], saved[len(saved) // 2], saved[-1]):
        rest = sampler.run(ring.context, 0, resume=checkpoint)
        assert torch.equal(rest.state["x"], whole.state["x"]) and rest.nfe == whole.nfe


def test_a_rule_that_moves_the_state_costs_a_call_a_step(ring):
    moved = run(ring, Adaptive(rtol=1e-3, atol=1e-3), [lambda z, z_t, pred, t, s, ctx, r: {"x": z["x"] + 0.0}])
    assert moved.nfe > run(ring, Adaptive(rtol=1e-3, atol=1e-3)).nfe
    assert float((moved.state["x"] - ring.truth).abs().max()) < 2e-2


def test_data_at_the_end(ring):
    result = run(ring, Adaptive(rtol=1e-5, atol=1e-5, last="data"))
    clean = ring.denoiser.mixture.posterior_mean(
        ring.truth, ring.path.coefficients(1e-3).alpha, ring.path.coefficients(1e-3).sigma
    )
    assert torch.allclose(result.state["x"], clean, atol=1e-3)


def test_refusals(ring):
    with pytest.raises(ScidiffError, match="did not reach the data in 3 steps"):
        run(ring, Adaptive(rtol=1e-9, atol=1e-9, steps=3))
    with pytest.raises(UsageError, match="dopri5"):
        Adaptive("dopri")
    with pytest.raises(UsageError, match="CUDA graph"):
        Adaptive(cuda_graph=True)
    with pytest.raises(UsageError, match="velocity"):
        Adaptive().history(StateSpec({"c": Component(Categorical(3), UniformPath(), (4,))}))


def test_nan_is_named(ring):
    class Broken(type(ring.denoiser)):
        def forward(self, state, t, ctx, run=None):
            return {"x": Prediction("noise", state["x"] * float("nan"))}

    broken = Broken(ring.denoiser.mixture, ring.path, kind="noise")
    with pytest.raises(NonFinite, match="'x'"):
        Sampler(ring.spec, broken, Adaptive(), dtype=torch.float64).run(ring.context, 0, start={"x": ring.start})
