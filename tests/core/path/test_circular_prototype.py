"""A circular Bayesian path, written as a Path: the protocol holds a belief that is neither the data nor of its shape.

The state of a component of angles [B, ...] is its belief [B, ..., 2] = (m, c): x given what was seen is von Mises with
mean direction m and concentration c. n noisy sightings y_j ~ vM(x, alpha_j) add up as vectors,

    c e^{i m} <- c e^{i m} + alpha_j e^{i y_j},     t = 1 - sightings / n: t = 1 is the flat prior

The accuracies alpha_j follow crystal.md 2.3: the expected entropy falls linearly; quadrature instead of Monte Carlo.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import pytest
import torch
from torch import nn

from scidiff.core.denoiser import Denoiser, NetworkDenoiser
from scidiff.core.objective import StandardObjective
from scidiff.core.path.base import Corrupted, Path, Prediction
from scidiff.core.plan import Row, SolverPlan, Stage
from scidiff.core.run import Run
from scidiff.core.sampler import Sampler
from scidiff.core.solvers.fixed import Stored
from scidiff.core.space import Torus
from scidiff.core.spec import Component, Context, StateSpec

F64 = torch.float64
TURN = 2 * math.pi


def resultant(c):
    """A(c) = I1(c) / I0(c)."""
    return torch.special.i1e(c) / torch.special.i0e(c)


def entropy(c):
    return math.log(TURN) + torch.special.i0e(c).log() + c - c * resultant(c)


def bisect(f, low, high):
    """Root of an increasing f on tensors."""
    for _ in range(80):
        mid = 0.5 * (low + high)
        low, high = torch.where(f(mid) < 0, mid, low), torch.where(f(mid) < 0, high, mid)
    return 0.5 * (low + high)


def von_mises_grid(alpha, points=4001):
    """Angles and their normalised weights under vM(0, alpha)."""
    half = min(math.pi, 12 / math.sqrt(alpha))
    phi = torch.linspace(-half, half, points, dtype=F64)
    w = (alpha * (phi.cos() - 1)).exp()
    return phi, w / w.sum()


@lru_cache(maxsize=8)
def accuracies(n, final):
    """alpha_1 .. alpha_n."""
    steps = torch.arange(1, n + 1, dtype=F64) / n
    zero, last = torch.zeros(n, dtype=F64), torch.full((n,), float(final), dtype=F64)
    goal = math.log(TURN) + steps * (float(entropy(last[:1])) - math.log(TURN))
    beta = bisect(lambda c: goal - entropy(c), zero, last)
    out = [float(beta[0])]
    for before, now in zip(beta.tolist(), beta.tolist()[1:], strict=False):
        low, high = now - before, now
        for _ in range(60):
            mid = 0.5 * (low + high)
            phi, w = von_mises_grid(mid)
            mean = float((w * (before**2 + mid**2 + 2 * before * mid * phi.cos()).sqrt()).sum())
            low, high = (mid, high) if mean < now else (low, mid)
        out.append(0.5 * (low + high))
    return tuple(out)


@dataclass(frozen=True)
class CircularPath(Path):
    """`steps` sightings up to concentration `final`; kernel "bayes" with row.a = 1 redraws the belief (end-back)."""

    kernels: ClassVar[frozenset[str]] = frozenset({"bayes"})
    kinds: ClassVar[frozenset[str]] = frozenset({"data", "turn"})
    default_kind: ClassVar[str] = "turn"

    steps: int = 10
    final: float = 1e3

    @property
    def levels(self):
        return tuple(k / self.steps for k in range(1, self.steps + 1))

    def seen(self, t):
        """How many sightings the belief at t holds."""
        return torch.as_tensor(self.steps * (1 - torch.as_tensor(t, dtype=F64))).round().long()

    def source(self, ctx, noise):
        m = noise.uniform("source") * ctx.space.period
        return torch.stack([m, torch.zeros_like(m)], -1).to(noise.dtype)

    def sighting(self, alpha, noise, tag):
        """vM(0, alpha) by inverse CDF."""
        phi, w = von_mises_grid(alpha)
        cdf = w.cumsum(0)
        return phi[torch.searchsorted(cdf, noise.uniform(tag)).clamp(max=len(phi) - 1)]

    def belief(self, x, count, ctx, noise, tag):
        """The belief after `count` sightings of x, [B, ..., 2]."""
        total = torch.zeros(x.shape, dtype=torch.complex128)
        count = count.expand(x.shape[0]).view(-1, *[1] * (x.dim() - 1))
        for j, alpha in enumerate(accuracies(self.steps, self.final)):
            y = x.to(F64) + self.sighting(alpha, noise, f"{tag}/{j}")
            total = total + torch.where(j < count, alpha * torch.polar(torch.ones_like(y), y), 0.0)
        m = torch.where(count > 0, total.angle(), noise.uniform(f"{tag}/prior") * TURN)
        return torch.stack([ctx.space.wrap(m), total.abs()], -1).to(x.dtype)

    def corrupt(self, x0, t, ctx, noise, x1=None):
        return Corrupted(self.belief(x0, self.seen(t), ctx, noise, "corrupt"))

    def features(self, z, t, ctx):
        """cos m, sin m and the normalised log concentration: [B, ..., 3]. The time does not determine the noise."""
        level = (z[..., 1].clamp(min=1e-7).log() - math.log(1e-7)) / (math.log(self.final) - math.log(1e-7))
        return torch.stack([z[..., 0].cos(), z[..., 0].sin(), level], -1)

    def read(self, raw, z, t, ctx, kind):
        self.accept(kind)
        value = ctx.space.wrap(z[..., 0] + raw) if kind == "turn" else raw
        return Prediction("data", value, self, z, t, ctx)

    def loss(self, pred, x0, noised, t, ctx):
        """n alpha_i A(alpha_i) (1 - cos(x - x_hat)), the exact Kullback-Leibler divergence of the next sighting."""
        alpha = torch.tensor(accuracies(self.steps, self.final), dtype=F64)[self.seen(t).clamp(max=self.steps - 1)]
        weight = (self.steps * alpha * resultant(alpha)).expand(x0.shape[0]).to(x0.dtype)
        entries = ctx.entries()
        each = ((1 - (pred.data - x0).cos()) * entries).flatten(1).sum(1) / entries.flatten(1).sum(1).clamp(min=1)
        return weight * each

    def apply(self, row, base, pred, ctx, noise):
        clean, count = pred.data, int(self.seen(row.s))
        if row.s <= 0:
            return torch.stack([clean, torch.full_like(clean, self.final)], -1)
        if row.a == 1.0:
            return self.belief(clean, torch.tensor(count), ctx, noise, row.tag)
        alpha = accuracies(self.steps, self.final)[count - 1]
        y = clean.to(F64) + self.sighting(alpha, noise, row.tag)
        old = torch.polar(base[..., 1].to(F64), base[..., 0].to(F64))
        new = old + alpha * torch.polar(torch.ones_like(y), y)
        return torch.stack([ctx.space.wrap(new.angle()), new.abs()], -1).to(base.dtype)


def spec(path, shape=("N", 3)):
    return StateSpec({"f": Component(Torus(TURN), path, shape)})


class Oracle(Denoiser):
    """Knows where the angles are."""

    def __init__(self, where):
        super().__init__()
        self.where, self.calls = where, 0

    def forward(self, state, t, ctx, run=None):
        self.calls += 1
        return {"f": Prediction("data", self.where)}


def test_schedule_has_the_published_values():
    assert accuracies(10, 1e3)[:3] == pytest.approx((1.478, 1.587, 2.628), rel=2e-3)
    assert accuracies(10, 1e3)[-3:] == pytest.approx((114.70, 248.58, 539.03), rel=1e-2)


def test_belief_is_calibrated():
    """For x uniform, x - m given c is von Mises: E cos(x - m) = E A(c) at every level."""
    path, n = CircularPath(10), 20000
    site = Context.of(n).at("f", Component(Torus(TURN), path, (1,)))
    noise = Run(0).handle(site, F64)
    x = noise.uniform("x") * TURN
    for t in (0.9, 0.7, 0.4, 0.1):
        z = path.corrupt(x, t, site, noise).z
        gap = (x - z[..., 0]).cos()
        assert abs(float(gap.mean() - resultant(z[..., 1]).mean())) < 4.5 * float(gap.std()) / n**0.5
        for part in (z[..., 1] < z[..., 1].median(), z[..., 1] >= z[..., 1].median()):
            inside = gap[part]
            assert abs(float(inside.mean() - resultant(z[..., 1][part]).mean())) < 4.5 * float(inside.std()) / 100


def test_sequential_updates_have_the_law_of_the_flow():
    path, n = CircularPath(10), 8000
    ctx = Context.of(n)
    site = ctx.at("f", Component(Torus(TURN), path, (1,)))
    run = Run(1)
    noise = run.handle(site, F64)
    x = torch.full((n, 1), 1.0, dtype=F64)
    z = path.source(site, noise)
    for k in range(6):
        t, s = 1 - k / 10, 1 - (k + 1) / 10
        run.step = k
        z = path.apply(Row("f", "bayes", a=0.0, t=t, s=s), z, Prediction("data", x, path, z, t, site), site, noise)
    direct = path.corrupt(x, 0.4, site, noise).z
    for a, b in ((z[..., 1], direct[..., 1]), ((z[..., 0] - 1).cos(), (direct[..., 0] - 1).cos())):
        assert abs(float(a.mean() - b.mean())) < 4.5 * float(a.std()) * (2 / n) ** 0.5
        assert abs(float(a.std() / b.std()) - 1) < 0.1


def test_shift_equivariance():
    path = CircularPath(10)
    site = Context.of(50).at("f", Component(Torus(TURN), path, (4,)))
    noise = Run(0).handle(site, F64)
    x = noise.uniform("x") * TURN
    a = path.corrupt(x, 0.5, site, noise).z
    b = path.corrupt(site.space.wrap(x + 2.0), 0.5, site, noise).z
    assert torch.allclose(site.space.log(a[..., 0] + 2.0, b[..., 0]), torch.zeros_like(x), atol=1e-9)
    assert torch.allclose(a[..., 1], b[..., 1], atol=1e-9)


@pytest.mark.parametrize("mode", [0.0, 1.0])
def test_the_sampler_carries_a_belief(mode):
    path = CircularPath(10)
    where = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0)) * TURN
    stages = [Stage(1 - k / 10, round(1 - (k + 1) / 10, 12), (Row("f", "bayes", a=mode, t=1 - k / 10,
                                                                  s=round(1 - (k + 1) / 10, 12)),)) for k in range(10)]
    plan = SolverPlan.from_json(SolverPlan(tuple(stages)).to_json())
    oracle = Oracle(where)
    seen = []
    result = Sampler(spec(path), oracle, Stored(plan)).run(
        Context.of(5, sizes=torch.tensor([4, 4, 2, 3, 4])), seed=3, on_step=lambda loop: seen.append(loop.state["f"]))
    assert oracle.calls == result.nfe == 10
    assert torch.allclose(result.state["f"][..., 0], where)
    gap = torch.stack([(z[..., 0] - where).cos().mean() for z in seen])
    assert float(gap[8]) > 0.98 and float(gap[0]) < float(gap[8])


def test_it_trains_and_is_stored_as_json():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, features, time, ctx, previous):
            return {"f": self.layer(features["f"]).squeeze(-1)}

    path = CircularPath(10)
    layout = spec(path)
    again = StateSpec.from_config(json.loads(json.dumps(layout.to_config())), lambda c: {
        "Torus": Torus, "CircularPath": CircularPath}[c["_target_"].rsplit(".", 1)[1]](
            **{k: v for k, v in c.items() if k != "_target_"}))
    assert again["f"] == layout["f"]
    ctx = Context.of(6, sizes=torch.tensor([3, 4, 2, 4, 1, 4]))
    x0 = torch.rand(6, 4, 3) * TURN
    denoiser = NetworkDenoiser(layout, Net())
    loss, metrics = StandardObjective(layout).loss(denoiser, ({"f": x0}, ctx), Run(0))
    loss.backward()
    assert math.isfinite(float(metrics["f"])) and denoiser.backbone.layer.weight.grad.abs().sum() > 0
    exact = path.loss(Prediction("data", x0), x0, Corrupted(x0), 0.5, ctx.at("f", layout["f"]))
    assert float(exact.abs().max()) < 1e-5
