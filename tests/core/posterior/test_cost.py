"""What is said before a run against what the run did: evaluations, backprops, projections, memory."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import profile

from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.operator import LinearOperator
from scidiff.core.path import VP
from scidiff.core.posterior import (
    DDNM,
    DDRM,
    DDS,
    DPS,
    MBIR,
    DiffPIR,
    FlowChef,
    FlowDPS,
    PiGDM,
    Problem,
    network_bytes,
)
from scidiff.core.posterior.base import Linearised
from scidiff.core.posterior.cost import Effort, memory
from scidiff.core.posterior.toy import Dense, GaussianToy
from scidiff.core.procedure import DAPS, Local, PnPDM, PnPFlow, REDDiff
from scidiff.core.space import Euclidean
from scidiff.core.spec import Component, Context, StateSpec


class Counted(LinearOperator):
    """An operator that counts how often it is applied."""

    def __init__(self, inner):
        super().__init__(inner.in_shape, inner.out_shape)
        self.inner, self.calls, self._norm = inner, 0, inner.norm()

    def _forward(self, x):
        self.calls += 1
        return self.inner._forward(x)

    def _adjoint(self, y):
        self.calls += 1
        return self.inner._adjoint(y)


# A problem whose conjugate gradients cannot stop early: 40 rows, singular values over five decades.
EXACT = [PiGDM(3, "exact", cg=4), PiGDM(3, cg=4), DPS(3), DDNM(3, iterations=4, stop=False), DiffPIR(3, iterations=4),
         DDS(3, cg=4, stop=False), DDS(3, cg=4, weight=1.0, stop=False), FlowDPS(3), FlowDPS(3, image=False),
         FlowChef(3), FlowChef(3, image=False), MBIR(3, cg=2), MBIR(3, cg=2, snr=0.0, final=False)]
AT_MOST = [DDNM(3), DDS(3, weight=1.0), REDDiff(3), PnPFlow(3, 2), DAPS(3, 2), PnPDM(3, 2),
           DAPS(2, 2, local=Local("langevin", count=7))]


def hard(monkeypatch):
    toy = GaussianToy(VP(), n=48, rows=40, sigma=1e-4)
    u, _, vt = torch.linalg.svd(toy.matrix, full_matrices=False)
    toy.matrix = u @ torch.diag(torch.logspace(0, -5, 40, dtype=torch.float64)) @ vt
    toy.y = toy.matrix @ toy.truth
    toy.operator, pulls = Counted(Dense(toy.matrix, known=False)), []
    pull = Linearised.pull
    monkeypatch.setattr(Linearised, "pull", lambda self, v: pulls.append(1) or pull(self, v))
    return toy, pulls


@pytest.mark.parametrize("method", [*EXACT, *AT_MOST], ids=lambda m: type(m).__name__)
def test_evaluations_backprops_and_projections_are_foretold(method, monkeypatch):
    toy, pulls = hard(monkeypatch)
    problem = toy.problem(2, unit_norm=False)
    cost = method.cost(problem, 2)
    toy.operator.calls = toy.denoiser.calls = 0
    result = method.run(problem, Context.of(2), 0)
    assert result.nfe == toy.denoiser.calls == cost.evaluations
    assert len(pulls) == cost.backprops
    if method in EXACT:
        assert toy.operator.calls == cost.projections
    else:
        assert 0 < toy.operator.calls <= cost.projections


def test_a_spectral_rule_counts_its_basis_changes():
    """DDRM applies U^T once, V^T three times and V once a step; the last step of a noisy problem none."""
    toy = GaussianToy(VP(), n=6, rows=3)
    assert DDRM(4).cost(toy.problem(1)).projections == 4 * 5
    assert DDRM(4).cost(toy.problem(1)).evaluations == 4


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("method", [PiGDM(3), PiGDM(3, "exact", cg=4), DPS(3), DDNM(3), DiffPIR(3), DDS(3), DDRM(3),
                                    FlowDPS(3), FlowChef(3), MBIR(3), REDDiff(3), DAPS(3, 2), PnPDM(3, 2),
                                    PnPFlow(3, 2)], ids=lambda m: type(m).__name__)
def test_the_peak_of_the_memory_is_foretold(method, known):
    """Within a third, arrays counted by the allocator; a network that takes nothing itself."""
    if isinstance(method, DDRM) and not known:
        return
    toy, batch = GaussianToy(VP(), kind="data", known=known), 1000
    problem = toy.problem(batch, dtype=torch.float32)
    foretold = method.cost(problem, batch).memory
    with profile(profile_memory=True) as seen:
        method.run(problem, Context.of(batch), 0)
    now = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert 0.75 * peak < foretold < 1.35 * peak


def test_memory_grows_with_the_batch_and_the_network_with_the_chunk():
    problem, effort = GaussianToy(VP()).problem(8), Effort()
    one, eight = (memory(problem, n, effort) for n in (1, 8))
    assert eight == 8 * one
    assert memory(problem, 8, effort, network=1000.0, chunk=2) == eight + 2000
    assert memory(problem, 8, effort, network=1000.0) == eight + 8000
    held = memory(problem, 8, Effort(images=30, data=4))
    assert held == 8 * (30 * 32 + 4 * 16) * 8


def test_the_activations_of_a_network_are_measured():
    """Two layers keep their inputs: 5 and 64 numbers, and the mask or value that the nonlinearity needs."""
    spec = StateSpec({"x": Component(Euclidean(), VP(), (5,))})

    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(5, 64), torch.nn.Linear(64, 5)

        def forward(self, features, t, ctx, previous):
            return {"x": self.second(torch.tanh(self.first(features["x"])))}

    toy = GaussianToy(VP(), n=5, rows=2)
    problem = Problem(NetworkDenoiser(spec, Backbone()), spec, toy.problem(1).measurement)
    found = network_bytes(problem)
    assert (5 + 64) * 4 <= found <= (5 + 64 + 64) * 4 + 64
