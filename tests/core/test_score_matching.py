"""The summed loss of denoising score matching, written out by hand."""

from __future__ import annotations

import pytest
import torch

from scidiff.core.denoiser import NetworkDenoiser
from scidiff.core.objective import UniformTime
from scidiff.core.path import VE, VP
from scidiff.core.path.vp import SubVP
from scidiff.core.run import Run
from scidiff.core.score_matching import ScoreMatching
from scidiff.core.space import Euclidean, Symmetric
from scidiff.core.spec import Component, Context, StateSpec


class Raw(torch.nn.Module):
    """Some function of the noisy graph, kept for a look from outside."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def forward(self, features, t, ctx, previous=None):
        x, a = features["nodes"], features["edges"]
        real = ctx.mask(("N",)).to(x.dtype).unsqueeze(-1)
        off = real @ real.transpose(1, 2) * (1 - torch.eye(a.shape[-1]))
        self.seen = dict(features)
        self.out = {"nodes": torch.cos(a @ x) * real, "edges": torch.sin(x @ x.transpose(1, 2)) * off}
        return self.out


@pytest.mark.parametrize("law, kind", [(VP(0.1, 1.0, t_min=1e-5, weight="noise"), "noise"),
                                       (SubVP(0.1, 1.0, t_min=1e-5, weight="noise"), "noise"),
                                       (VE(0.2, 1.0, t_min=1e-5, weight="noise"), "score")], ids=str)
def test_half_the_sum_over_the_whole_matrix(law, kind):
    spec = StateSpec({"nodes": Component(Euclidean(), law, ("N", 2)), "edges": Component(Symmetric(), law, ("N", "N"))})
    ctx = Context(torch.arange(3), torch.tensor([4, 3, 1]), 4)
    g = torch.Generator().manual_seed(1)
    real = ctx.mask(("N",)).double()
    x0 = torch.randn(3, 4, 2, generator=g, dtype=torch.float64) * real.unsqueeze(-1)
    a0 = torch.randn(3, 4, 4, generator=g, dtype=torch.float64).triu(1)
    a0 = (a0 + a0.transpose(1, 2)) * real.unsqueeze(1) * real.unsqueeze(2)
    network = Raw()
    objective = ScoreMatching(spec, UniformTime(1e-5, 1.0), self_condition=0.0, stratified=False)
    run = Run(7)
    t = objective.times(ctx, run)
    total, parts = objective.loss(NetworkDenoiser(spec, network, {"default": kind}),
                                  ({"nodes": x0, "edges": a0}, ctx), run)
    k = law.coefficients(t)
    for name, clean in (("nodes", x0), ("edges", a0)):
        std = k.sigma.view(3, 1, 1)
        z = (network.seen[name] - k.alpha.view(3, 1, 1) * clean) / std
        score = network.out[name] if kind == "score" else -network.out[name] / std
        by_hand = (0.5 * ((score * std + z) ** 2).sum((1, 2))).mean()
        assert float(parts[name]) == pytest.approx(float(by_hand), rel=1e-6)
    assert float(total) == pytest.approx(float(parts["nodes"] + parts["edges"]), rel=1e-12)


def test_times_are_uniform_from_the_smallest_one_on():
    law = VP(0.1, 1.0, t_min=1e-5)
    spec = StateSpec({"x": Component(Euclidean(), law, (1,))})
    t = ScoreMatching(spec, UniformTime(1e-5, 1.0), stratified=False).times(Context.of(4000), Run(0))
    assert 1e-5 <= float(t.min()) < 2e-3 and float(t.max()) > 0.998
    for q in (0.1, 0.5, 0.9):
        assert float(t.quantile(q)) == pytest.approx(q, abs=0.02)
