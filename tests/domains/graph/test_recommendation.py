"""DiffGraph: dense formulas, the published chain, the loss by hand, a planted set that is learned, exact repeats."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from scidiff.core.errors import UsageError
from scidiff.core.run import Run
from scidiff.core.spec import Context
from scidiff.domains.graph.interactions import Interactions, ranking
from scidiff.domains.graph.recommendation import (
    DiffGraph,
    PairwiseObjective,
    Training,
    fit,
    latent_path,
    other_items,
    step_weights,
)
from scidiff.nn.sparse import light_convolution, normalised_adjacency
from scidiff.store import targets
from scidiff.store.atomic import read_yaml

CONF = Path(__file__).resolve().parents[3] / "conf" / "recommendation.yaml"
PUBLISHED = (200, 1e-4, 1e-4, 1e-3, 1e-4)  # steps, scale, low, high, first beta


def small(users=12, items=9, seed=0):
    g = torch.Generator().manual_seed(seed)

    def pairs(count):
        return torch.stack([torch.randint(users, (count,), generator=g),
                            torch.randint(items, (count,), generator=g)], 1).unique(dim=0)

    return Interactions(users, items, {"buy": pairs(20), "cart": pairs(30), "view": pairs(60)}, pairs(3))


def dense_adjacency(data, name):
    n = data.users + data.items
    a = torch.zeros(n, n)
    for u, i in data.relation(name).tolist():
        a[u, data.users + i] = a[data.users + i, u] = 1.0
    d = a.sum(1).clamp(min=1).rsqrt()
    return d[:, None] * a * d[None, :]


def dense_view(s, x, layers):
    total, h = x.clone(), x
    for _ in range(layers):
        h = s @ h
        h = torch.where(h > 0, h, 0.5 * h)
        total = total + h / h.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return total


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_propagation_and_its_gradient_equal_the_dense_matrices(layers):
    data = small()
    g = torch.Generator().manual_seed(1)
    x = torch.randn(21, 5, generator=g, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    probe = torch.randn(21, 5, generator=g)
    sparse = light_convolution(normalised_adjacency(data.edges("buy"), 21), x, layers)
    dense = dense_view(dense_adjacency(data, "buy"), y, layers)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-6)
    (sparse * probe).sum().backward()
    (dense * probe).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)


def test_repeated_and_reversed_edges_count_once():
    edges = torch.tensor([[0, 0, 1, 2], [1, 1, 0, 3]])
    once = normalised_adjacency(torch.tensor([[0, 2], [1, 3]]), 5).to_dense()
    torch.testing.assert_close(normalised_adjacency(edges, 5).to_dense(), once, rtol=0, atol=0)
    assert float(once[4].abs().sum()) == 0.0


def test_the_propagation_of_torch_geometric_is_the_same():
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    from torch_geometric.nn import LGConv

    data = small()
    edges = data.edges("view")
    x = torch.randn(21, 4, generator=torch.Generator().manual_seed(2))
    other = LGConv()(x, torch.cat([edges, edges.flip(0)], 1))
    torch.testing.assert_close(torch.sparse.mm(normalised_adjacency(edges, 21), x), other, rtol=1e-5, atol=1e-6)


def test_the_views_are_those_of_the_relations():
    data = small()
    net = DiffGraph(data, dim=6, layers=2)
    seen, source = net.views()
    x = net.embedding.detach()
    torch.testing.assert_close(seen, dense_view(dense_adjacency(data, "buy"), x, 2), rtol=1e-5, atol=1e-6)
    both = dense_view(dense_adjacency(data, "cart"), x, 2) + dense_view(dense_adjacency(data, "view"), x, 2)
    torch.testing.assert_close(source, both, rtol=1e-5, atol=1e-6)


def published(steps, scale, low, high, first):
    """Betas and kept signal by the recursion of the publication, in plain Python."""
    variance = [scale * (low + (high - low) * i / (steps - 1)) for i in range(steps)]
    betas = [variance[0]] + [1 - (1 - variance[i]) / (1 - variance[i - 1]) for i in range(1, steps)]
    betas[0] = first
    kept, out = 1.0, []
    for b in betas:
        kept *= 1 - b
        out.append(kept)
    return betas, out


@pytest.mark.parametrize("numbers", [PUBLISHED, (12, 1.0, 1e-3, 0.4, 1e-4), (5, 3.0, 0.05, 0.3, 0.2)])
def test_the_path_has_the_published_levels(numbers):
    path = latent_path(*numbers)
    kept = torch.tensor(published(*numbers)[1], dtype=torch.float64)
    t = torch.arange(1, numbers[0] + 1, dtype=torch.float64) / numbers[0]
    k = path.coefficients(t)
    torch.testing.assert_close(k.alpha**2, kept, rtol=1e-12, atol=0)
    torch.testing.assert_close(k.sigma**2, 1 - kept, rtol=1e-9, atol=1e-15)
    snr = kept / (1 - kept)
    torch.testing.assert_close(step_weights(path), torch.cat([torch.ones(1).double(), snr[:-1] - snr[1:]]),
                               rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("numbers", [PUBLISHED, (12, 1.0, 1e-3, 0.4, 1e-4)])
def test_the_chain_takes_the_published_posterior_means(numbers):
    """x <- beta sqrt(abar') / (1 - abar) D + (1 - abar') sqrt(1 - beta) / (1 - abar) x, from E_s down to step 0."""
    steps, scale, low, high, first = numbers
    net = DiffGraph(small(), dim=6, steps=steps, noise_scale=scale, noise_low=low, noise_high=high,
                    first_beta=first).eval()
    betas, kept = published(*numbers)
    source = net.views()[1].detach()
    calls = []
    net.register_forward_pre_hook(lambda _, args: calls.append(float(args[1])))
    x = source.double()
    with torch.no_grad():
        for i in reversed(range(steps)):
            before = kept[i - 1] if i else 1.0
            step = torch.full((21,), float(i))
            d = torch.cat([net.of_users(x[:12].float(), step[:12]), net.of_items(x[12:].float(), step[12:])]).double()
            one = betas[i] * math.sqrt(before) / (1 - kept[i])
            two = (1 - before) * math.sqrt(1 - betas[i]) / (1 - kept[i])
            x = one * d + two * x
        got = net.denoised(source)
    assert len(calls) == steps
    torch.testing.assert_close(got, x.float(), rtol=1e-4, atol=1e-5)


def test_with_the_published_scale_two_calls_are_as_good_as_two_hundred():
    net = DiffGraph(small(), dim=16).eval()
    with torch.no_grad():
        source = net.views()[1]
        full, short = net.denoised(source), net.denoised(source, 2)
    assert float((full - short).norm() / full.norm()) < 1e-3


def test_the_denoiser_knows_its_step_and_its_kind_of_node():
    net = DiffGraph(small(), dim=6, dropout=0.0).eval()
    x = torch.randn(21, 6, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(21)

    def out(state, t, nodes):
        return net({"latent": state}, t, Context(nodes))["latent"].value.detach()

    torch.testing.assert_close(out(x, 0.5, ids), net.of_users(x, torch.full((21,), 99.0)).where(
        (ids < 12)[:, None], net.of_items(x, torch.full((21,), 99.0))))
    torch.testing.assert_close(out(3.0 * x, 0.5, ids), out(x, 0.5, ids), rtol=1e-5, atol=1e-6)  # of unit length
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(out(x[order], 0.5, order), out(x, 0.5, ids)[order])
    assert float((out(x, 0.005, ids) - out(x, 1.0, ids)).abs().max()) > 1e-4


def test_the_loss_is_the_published_one():
    data = small()
    net = DiffGraph(data, dim=6, dropout=0.0)
    triples = {"user": torch.tensor([0, 3, 3]), "liked": torch.tensor([1, 2, 5]), "other": torch.tensor([4, 1, 8])}
    run = Run(4)
    run.step = 7
    total, parts = PairwiseObjective(penalty=0.03).loss(net, (triples, Context.of(3)), run)
    nodes = Context(torch.arange(21))  # every node noised: a batch must agree on those that it meets
    seen, source = net.views()
    k = (run.noise("", "time", (1,), nodes, "uniform")[:, 0] * 200).floor()
    kept = torch.tensor(published(*PUBLISHED)[1], dtype=torch.float64)
    eps = run.noise("latent", "corrupt", (6,), nodes)
    x = (kept[k.long()].sqrt()[:, None] * source + (1 - kept[k.long()]).sqrt()[:, None] * eps).float()
    d = torch.cat([net.of_users(x[:12], k[:12]), net.of_items(x[12:], k[12:])])
    snr = kept / (1 - kept)
    weight = torch.where(k == 0, 1.0, snr[(k.long() - 1).clamp(min=0)] - snr[k.long()])
    each = weight * (seen - d).square().mean(1)
    final = seen + d
    u, p, o = final[triples["user"]], final[12 + triples["liked"]], final[12 + triples["other"]]
    bpr = -F.logsigmoid((u * p).sum(1) - (u * o).sum(1)).mean()
    length = (u.square().sum() + p.square().sum() + o.square().sum()) / 3
    noise = each[triples["user"]].mean() + each[12 + triples["liked"]].mean()
    assert float(total.detach()) == pytest.approx(float((bpr + 0.03 * length + noise).detach()), rel=1e-5)
    assert float(parts["diffusion"]) == pytest.approx(float(noise.detach()), rel=1e-4)
    total.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())


@pytest.mark.parametrize("bridge, wanted", [("sum", lambda seen, other: seen + other), ("none", lambda seen, _: seen)])
def test_without_diffusion_the_final_embedding_is_a_sum_or_the_target_view(bridge, wanted):
    net = DiffGraph(small(), dim=6, bridge=bridge)
    torch.testing.assert_close(torch.cat(net.embeddings()), wanted(*net.views()).detach())
    assert [name for name, _ in net.named_parameters()] == ["embedding"]
    full = DiffGraph(small(), dim=6)
    if bridge == "none":
        assert float(net.views()[1].detach().abs().max()) == 0.0 < float(full.views()[1].detach().abs().max())


def planted(groups=4, size=12, seed=0):
    """Users of a group view the group's items; each bought a few of them, and one more waits to be recommended."""
    g = torch.Generator().manual_seed(seed)
    buy, view, test = [], [], []
    for user in range(groups * size):
        order = torch.randperm(size, generator=g) + (user // size) * size
        buy += [[user, int(i)] for i in order[:3]]
        view += [[user, int(i)] for i in order[:8]]
        test.append([user, int(order[9])])
    return Interactions(groups * size, groups * size, {"buy": torch.tensor(buy), "view": torch.tensor(view)},
                        torch.tensor(test))


def test_a_planted_set_is_learned_and_a_seed_repeats_every_bit():
    data = planted()
    part, valid = data.hold_out("buy", 0)
    training = Training(epochs=30, batch=64, lr=2e-2, decay=0.97, patience=10, every=2, top=9)

    def fitted(seed, epochs=30):
        return fit(lambda: DiffGraph(part, auxiliary=("view",), dim=16, steps=20), part, valid, PairwiseObjective(),
                   replace(training, epochs=epochs), seed)

    state = torch.get_rng_state()
    first, again, other = fitted(0), fitted(0), fitted(1, 1)
    assert torch.equal(torch.get_rng_state(), state)
    found = ranking(*first.model.embeddings(), part.relation("buy"), data.test, 9)
    assert float(found["Recall@9"].mean()) > 0.6  # 9 in 45 by luck, with a deviation of 0.06
    assert first.history == again.history and first.epochs == again.epochs
    for a, b in zip(first.model.embeddings(), again.model.embeddings(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.model.embedding, other.model.embedding)
    judged = {line["epoch"]: line["Recall@9"] for line in first.history if "Recall@9" in line}
    assert judged[first.epochs] == max(judged.values()) > 0.8
    assert first.history[-1]["epoch"] <= first.epochs + training.patience
    assert not first.model.training


def test_without_validation_the_last_epoch_is_kept():
    data = planted()
    out = fit(lambda: DiffGraph(data, auxiliary=("view",), dim=8, steps=5), data, None, PairwiseObjective(),
              Training(epochs=3, batch=64), 0)
    assert out.epochs == 3 and len(out.history) == 3


def test_other_items_are_never_bought_ones_and_uniform_among_the_rest():
    data = small()
    g = torch.Generator().manual_seed(0)
    users = torch.full((20_000,), int(data.relation("buy")[0, 0]))
    drawn = other_items(data, "buy", users, g)
    bought = data.relation("buy")[data.relation("buy")[:, 0] == users[0], 1]
    counts = torch.bincount(drawn, minlength=9)
    assert int(counts[bought].sum()) == 0
    share = 1 / (9 - len(bought))
    rest = counts[[i for i in range(9) if i not in bought.tolist()]]
    assert float((rest / 20_000 - share).abs().max()) < 5 * math.sqrt(share / 20_000)


def test_impossible_settings_are_sentences():
    data = small()
    with pytest.raises(UsageError, match="no bridge 'diffuse'"):
        DiffGraph(data, bridge="diffuse")
    with pytest.raises(UsageError, match="needs an auxiliary relation"):
        DiffGraph(data, auxiliary=())
    with pytest.raises(UsageError, match="no relation 'carts'"):
        DiffGraph(data, auxiliary=("carts",))
    for wrong in ({"noise_scale": 0.0}, {"noise_high": 1e-5}, {"steps": 1}, {"noise_scale": 2e3}):
        with pytest.raises(UsageError, match="noise of the latent path"):
            latent_path(**wrong)
    every = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    full = Interactions(2, 3, {"buy": every}, every[:0])
    with pytest.raises(UsageError, match="with every item"):
        other_items(full, "buy", torch.tensor([0]), torch.Generator())


def test_the_config_says_what_the_classes_default_to():
    config = read_yaml(CONF, "config")
    net = targets.build(config["model"], interactions=small())
    same = DiffGraph(small())
    assert net.spec.to_config() == same.spec.to_config()
    for name in ("target", "auxiliary", "layers", "bridge"):
        assert getattr(net, name) == getattr(same, name)
    assert targets.build(config["objective"]) == PairwiseObjective()
    assert targets.build(config["training"]) == Training(every=2)
