"""T13: exact marginals, exact Bayes transitions, kernels that keep the path's law, and the float64 tail."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scidiff.core.errors import ScidiffError
from scidiff.core.path import AbsorbingPath, MarginalPath, Prediction, UniformPath
from scidiff.core.path.categorical import draw
from scidiff.core.plan import Row
from scidiff.core.run import Run
from scidiff.core.space import Categorical
from scidiff.core.spec import Component, Context

F64 = torch.float64
K = 3
LAW = torch.tensor([[0.20, 0.02, 0.10], [0.05, 0.25, 0.01], [0.12, 0.05, 0.20]], dtype=F64)  # of two sites, joint
PATHS = [UniformPath(), MarginalPath(marginal=(0.5, 0.2, 0.3)), AbsorbingPath(), UniformPath(schedule="cosine"),
         MarginalPath(schedule="cosine", marginal=(0.5, 0.2, 0.3))]


def name(path):
    return f"{type(path).__name__}-{path.schedule}"


def sites(path, n, length=2):
    ctx = Context.of(n)
    return ctx.at("c", Component(Categorical(K), path, (length,)))


def sample_law(n, seed=0):
    k = torch.multinomial(LAW.flatten(), n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return torch.stack([k // K, k % K], -1)


def emission(path, t, site):
    """p(x_t | x0), [K, S]."""
    q, m = path.law(site), path.mass(t)
    return (1 - m) * F.pad(torch.eye(K, dtype=F64), (0, q.shape[0] - K)) + m * q


def marginal(path, t, site):
    """Exact joint law of both sites at t, [S, S]."""
    e = emission(path, t, site)
    return e.T @ LAW @ e


def oracle(path, z, t, site):
    """Exact p(x0_i | x_t), both sites seen, [B, 2, K]."""
    e = emission(path, t, site)
    joint = LAW[None] * e[:, z[:, 0]].T[:, :, None] * e[:, z[:, 1]].T[:, None, :]
    joint = joint / joint.sum((1, 2), keepdim=True)
    return torch.stack([joint.sum(2), joint.sum(1)], 1)


def prediction(path, z, t, site):
    """The oracle's logits: one row of a table over all pairs of classes for each sample."""
    size = path.law(site).shape[0]
    k = torch.arange(size * size)
    table = oracle(path, torch.stack([k // size, k % size], -1), t, site)
    logits = table.clamp(min=1e-300).log()[z[:, 0] * size + z[:, 1]]
    return Prediction("logits", logits, path, z, t, site)


def histogram(z, states):
    return torch.bincount(z[:, 0] * states + z[:, 1], minlength=states * states).view(states, states).to(F64)


def excess(z, law):
    """Pearson's statistic less its mean, in units of its deviation."""
    n, p = z.shape[0], law.flatten()
    seen = histogram(z, law.shape[0]).flatten()
    assert float(seen[p == 0].sum()) == 0
    p, seen = p[p > 0], seen[p > 0]
    freedom = max(p.numel() - 1, 1)
    return (float(((seen - n * p) ** 2 / (n * p)).sum()) - freedom) / math.sqrt(2 * freedom)


def total_variation(z, law):
    return 0.5 * float((histogram(z, law.shape[0]) / z.shape[0] - law).abs().sum())


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_corruption_has_the_exact_marginal(path):
    n = 40000
    site = sites(path, n)
    x0 = sample_law(n)
    for t in (0.2, 0.6, 0.95):
        z = path.corrupt(x0, t, site, Run(4).handle(site)).z
        assert excess(z, marginal(path, t, site)) < 4.5
    source = path.source(site, Run(4).handle(site))
    assert excess(source, path.law(site)[:, None] * path.law(site)) < 4.5


def test_mass_and_its_rate():
    for path in PATHS:
        t = ((torch.arange(9, dtype=F64) + 1) / 10).requires_grad_()
        slope = torch.autograd.grad(path.mass(t).sum(), t)[0]
        assert torch.allclose(torch.as_tensor(path.mass_rate(t.detach())), slope, atol=1e-12)
        assert path.mass(0.0) == 0.0 and abs(path.mass(1.0) - 1) < 1e-15


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_transition_equals_brute_force_bayes(path):
    """sum_x0 p(x0 | x_t) p(x_t | x_s) p(x_s | x0) / p(x_t | x0), with the forward kernel written out."""
    site = sites(path, 1)
    q = path.law(site)
    size = q.shape[0]
    for t, s in ((0.7, 0.4), (1.0, 0.5), (0.3, 0.0)):
        es, et = emission(path, s, site), emission(path, t, site)
        keep = (1 - path.mass(t)) / (1 - path.mass(s))
        forward = keep * torch.eye(size, dtype=F64) + (1 - keep) * q
        probs = torch.softmax(torch.randn(K, dtype=F64, generator=torch.Generator().manual_seed(1)), -1)
        for c in range(size):
            possible = et[:, c] > 0
            if not bool(possible.any()):
                continue
            p = torch.where(possible, probs, 0.0)
            brute = sum(p[a] * es[a] * forward[:, c] / et[a, c] for a in range(K) if possible[a])
            got = path.transition(torch.tensor([[c]]), probs.view(1, 1, K), t, s, site)[0, 0]
            assert torch.allclose(got, brute / brute.sum(), atol=1e-12)
            assert abs(float(got.sum()) - 1) < 1e-12


def run_kernel(path, kernel, steps, n=20000, eta=0.0, omega=0.0, seed=1, t_end=0.0):
    """A chain with the oracle posterior from the exact source; returns the final classes."""
    site = sites(path, n)
    run = Run(seed)
    noise = run.handle(site, F64)
    z = path.source(site, noise)
    grid = [(1 - t_end) * (1 - i / steps) + t_end for i in range(steps + 1)]
    for i, (t, s) in enumerate(zip(grid, grid[1:], strict=False)):
        run.step = i
        pred = prediction(path, z, t, site)
        if kernel == "posterior":
            row = Row("c", "posterior", t=t, s=s)
        elif kernel == "jump":
            row = Row("c", "jump", a=1 - path.mass(s) / path.mass(t), t=t, s=s)
        elif kernel == "stochastic":
            # the jump goes below m_s by as much as redrawing a share from q raises it again
            share = min(0.5, 2.0 * (t - s))
            wanted = (path.mass(s) - share) / (1 - share)
            if wanted > 0:
                row = Row("c", "jump", a=1 - wanted / path.mass(t), c=share, t=t, s=s)
            else:
                row = Row("c", "jump", a=1 - path.mass(s) / path.mass(t), t=t, s=s)
        else:
            row = Row("c", "rate", a=t - s, b=(eta, omega), t=t, s=s)
        z = path.apply(row, z, pred, site, noise)
    return z


# Each site is drawn from its own posterior, so the dependence of the two sites resolves as the step shrinks.
# With 20,000 chains the histogram itself is off by about 0.007 in total variation.
@pytest.mark.parametrize("path, kernel", [
    (PATHS[0], "posterior"), (PATHS[0], "jump"), (PATHS[1], "stochastic"), (PATHS[2], "posterior"), (PATHS[2], "jump"),
    (PATHS[4], "jump")], ids=str)
def test_kernels_reach_the_data_as_the_step_shrinks(path, kernel):
    size = path.law(sites(path, 1)).shape[0]
    law = F.pad(LAW, (0, size - K, 0, size - K))
    coarse, fine = (total_variation(run_kernel(path, kernel, n), law) for n in (3, 48))
    assert fine < 0.025, (coarse, fine)
    assert fine < 0.5 * coarse


@pytest.mark.parametrize("path, kernel, eta", [
    (PATHS[0], "jump", 0.0), (PATHS[0], "rate", 0.0), (PATHS[0], "rate", 2.0), (PATHS[1], "posterior", 0.0),
    (PATHS[1], "rate", 0.0), (PATHS[2], "rate", 0.0), (PATHS[3], "rate", 0.0)], ids=str)
def test_kernels_keep_the_marginal_midway(path, kernel, eta):
    """Stopped at t = 0.4, every kernel has the law of the path there."""
    law = marginal(path, 0.4, sites(path, 1))
    assert total_variation(run_kernel(path, kernel, 40, eta=eta, t_end=0.4), law) < 0.025


def test_the_closed_form_rate_with_balanced_jumps_and_pull():
    """P(c -> j) = h (relu(dp_j - dp_c) / (Z p_c) + eta p_j + omega [j = x1] / (Z p_c)) for a certain x1 != c."""
    path, n, t, h, eta, omega = UniformPath(schedule="cosine"), 200000, 0.6, 0.05, 0.7, 0.4
    site = sites(path, n, 1)
    here, x1 = 0, 2
    z = torch.full((n, 1), here)
    logits = torch.where(torch.arange(3) == x1, 0.0, -80.0).expand(n, 1, 3)
    row = Row("c", "rate", a=h, b=(eta, omega), t=t, s=t - h)
    out = path.apply(row, z, Prediction("logits", logits, path, z, t, site), site, Run(0).handle(site, F64))
    got = torch.bincount(out.flatten(), minlength=3).to(F64) / n
    m, dm = path.mass(t), path.mass_rate(t)
    p = [m / 3, m / 3, 1 - m + m / 3]
    slope = [-dm / 3, -dm / 3, dm * (1 - 1 / 3)]
    rate = [max(slope[j] - slope[here], 0) / (3 * p[here]) + eta * p[j] + omega * (j == x1) / (3 * p[here])
            for j in range(3)]
    expected = torch.tensor([1 - h * (rate[1] + rate[2]), h * rate[1], h * rate[2]], dtype=F64)
    assert float((got - expected).abs().max()) < 4.5 * (float(expected[2]) / n) ** 0.5


@pytest.mark.parametrize("path", PATHS[:2], ids=name)
def test_step_probabilities_converge_to_each_other(path):
    """One step of size h from one state: mixture velocity, closed-form rate and Bayes differ by O(h) of the move.

    Rates with equal marginals are not equal; what must agree to first order is the change of the law that they cause.
    """
    n, t = 100000, 0.5
    site = sites(path, n)
    noise = Run(3).handle(site, F64)
    z = path.corrupt(sample_law(n), t, site, noise).z
    pred = prediction(path, z, t, site)
    for h in (0.1, 0.02):
        s = t - h
        truth = marginal(path, s, site)
        rows = [Row("c", "posterior", t=t, s=s), Row("c", "jump", a=1 - s / t, t=t, s=s),
                Row("c", "rate", a=h, b=(0.0, 0.0), t=t, s=s)]
        for row in rows:
            out = path.apply(row, z, pred, site, noise)
            # the sampling noise of nine cells stays below 0.006 here
            assert total_variation(out, truth) < 0.006 + 2.0 * h * h


def test_first_hitting_takes_one_entry_a_call_and_is_exact():
    path, n, length = AbsorbingPath(), 40000, 2
    site = sites(path, n)
    run = Run(5)
    noise = run.handle(site, F64)
    z = path.source(site, noise)
    for i in range(length):
        run.step = i
        before = int(path.masked(z, site).sum())
        z = path.apply(Row("c", "unmask", t=0.5, s=0.4), z, prediction(path, z, 0.5, site), site, noise)
        assert before - int(path.masked(z, site).sum()) == n
    assert excess(z, F.pad(LAW, (0, 1, 0, 1))) < 4.5
    again = path.apply(Row("c", "unmask", t=0.5, s=0.4), z, prediction(path, z, 0.5, site), site, noise)
    assert torch.equal(again, z)


def test_first_hitting_agrees_with_a_fine_ancestral_chain():
    path, n = AbsorbingPath(), 20000
    ancestral = run_kernel(path, "posterior", 96, n=n, seed=9)
    site = sites(path, n)
    run = Run(10)
    noise = run.handle(site, F64)
    z = path.source(site, noise)
    for i in range(2):
        run.step = i
        z = path.apply(Row("c", "unmask", t=0.5), z, prediction(path, z, 0.5, site), site, noise)
    a, b = histogram(ancestral, 4), histogram(z, 4)
    both = (a + b) > 0
    chi2 = float(((a - b)[both] ** 2 / (a + b)[both]).sum())
    freedom = int(both.sum()) - 1
    assert chi2 < freedom + 4.5 * math.sqrt(2 * freedom)


def test_rare_classes_keep_their_probability():
    """float32 draws would keep 73 % of an event of probability 1e-7 and 1.5 % of one of 1e-8; float64 keeps all."""
    n = 1 << 21
    for p in (1e-7, 1e-8):
        probs = torch.tensor([1 - p, p], dtype=F64)
        # stratified uniforms on the tail alone: the share that hits is p / width
        width = 1e-5
        u = 1 - width * (torch.arange(n, dtype=F64) + 0.5) / n
        share = float(draw(probs.expand(n, 2), u).to(F64).mean()) * width / p
        assert abs(share - 1) < 2 * width / (n * p)
        narrow = torch.tensor([p, 1 - p], dtype=F64)
        assert abs(float((draw(narrow.expand(n, 2), 1 - u) == 0).to(F64).mean()) * width / p - 1) < 2 * width / (n * p)


def test_the_noise_behind_the_draws_reaches_the_tail():
    """Counts of u < 1e-6 in 8 million counter draws are Poisson: no truncation at 2^-24."""
    ctx = Context.of(8)
    site = ctx.at("c", Component(Categorical(2), UniformPath(), (1 << 20,)))
    u = Run(0).handle(site).uniform("tail")
    for level in (1e-6, 1e-5):
        for count in (int((u < level).sum()), int((u > 1 - level).sum())):
            expected = level * u.numel()
            assert abs(count - expected) < 4.5 * math.sqrt(expected)
    assert float(u.min()) % 2.0**-24 != 0.0


def test_draw_never_takes_an_impossible_class():
    probs = torch.tensor([0.0, 0.4, 0.0, 0.6, 0.0], dtype=F64)
    u = torch.cat([torch.tensor([1e-17, 1 - 1e-16], dtype=F64), torch.rand(1000, dtype=F64)])
    assert set(draw(probs.expand(1002, 5), u).tolist()) == {1, 3}


def test_pairs_stay_symmetric_and_padding_zero():
    path = MarginalPath(marginal=(0.5, 0.2, 0.3))
    ctx = Context(torch.arange(4), torch.tensor([2, 3, 4, 4]), 5)
    site = ctx.at("e", Component(Categorical(K, pairs=True), path, ("N", "N")))
    noise = Run(1).handle(site, F64)
    z = path.source(site, noise)
    logits = torch.randn(4, 5, 5, K, generator=torch.Generator().manual_seed(0))
    pred = path.read(0.5 * (logits + logits.transpose(1, 2)), z, 0.7, site, "logits")
    outs = [z, path.corrupt(z, 0.5, site, noise).z]
    for row in (Row("e", "posterior", t=0.7, s=0.5), Row("e", "jump", a=0.4, c=0.3), Row("e", "renoise", c=0.5),
                Row("e", "rate", a=0.1, b=(1.0, 0.5), t=0.7), Row("e", "mode")):
        outs.append(path.apply(row, z, pred, site, noise))
    for x in outs:
        assert torch.equal(x, x.transpose(1, 2))
        assert int((x * (~site.mask).long()).sum()) == 0
        assert int(x.diagonal(dim1=1, dim2=2).sum()) == 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_loss_and_elbo(schedule):
    """The truth's logits cost nothing; the weighted loss of a perfect model of independent sites averages to -log p."""
    path = AbsorbingPath(schedule, weighted=True)
    n, length = 40000, 3
    site = sites(path, n, length)
    noise = Run(2).handle(site, F64)
    p = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    x0 = draw(p.expand(n, length, K), noise.uniform("x0"))
    t = 1e-3 + (1 - 1e-3) * (torch.arange(n, dtype=F64) + 0.5) / n
    noised = path.corrupt(x0, t, site, noise)
    pred = Prediction("logits", p.log().expand(n, length, K), path, noised.z, t, site)
    elbo = path.loss(pred, x0, noised, t, site)
    entropy = -length * float((p * p.log()).sum())
    assert abs(float(elbo.mean()) - entropy) < 5 * float(elbo.std()) / n**0.5 + 0.01
    sure = Prediction("logits", 60.0 * F.one_hot(x0, K).to(F64), path, noised.z, t, site)
    assert float(path.loss(sure, x0, noised, t, site).abs().max()) < 1e-6


def test_marginal_must_fit():
    with pytest.raises(ScidiffError, match="probability vector"):
        MarginalPath(marginal=(0.5, 0.6))
    with pytest.raises(ScidiffError, match="2 classes but its marginal path has 3"):
        MarginalPath(marginal=(0.5, 0.2, 0.3)).law(Context.of(1).at("c", Component(
            Categorical(2), MarginalPath(marginal=(0.5, 0.2, 0.3)), (1,))))
    assert MarginalPath().fit([1, 3]).marginal == (0.25, 0.75)
