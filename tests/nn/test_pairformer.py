"""PairFormer: equivariance, masks, symmetry, size, random walks, conditions, and the valence it sees."""

import pytest
import torch
import torch.nn.functional as F

from scidiff.core.spec import Context
from scidiff.nn.pairformer import PairFormer, random_walks
from scidiff.testing import assert_equivariant

K, E = 5, 4


def network(**more) -> PairFormer:
    """A small network whose zero-initialised layers have been moved, so that every path matters."""
    torch.manual_seed(0)
    valence = [4.0, 2.0, 3.0, 1.0, 4.0]
    net = PairFormer(K, E, normal_valence=valence, dx=16, de=8, dc=16, depth=2, heads=4, walks=4, **more)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.double().eval()


def graphs(batch: int = 3, n: int = 6, sizes=(6, 4, 2), seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    ctx = Context(torch.arange(batch), sizes=torch.tensor(sizes), n_max=n)
    atoms = torch.randint(0, K, (batch, n), generator=g)
    bonds = torch.randint(0, E, (batch, n, n), generator=g).triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    features = {"atoms": F.one_hot(atoms, K).double() * ctx.mask(("N",)).unsqueeze(-1),
                "bonds": F.one_hot(bonds, E).double() * ctx.mask(("N", "N")).unsqueeze(-1)}
    return features, torch.linspace(0.1, 0.9, batch).double(), ctx


@pytest.mark.parametrize("past", [False, True])
def test_permuting_the_nodes_permutes_the_outputs(past):
    features, t, ctx = graphs()
    previous = {n: torch.softmax(torch.randn_like(v), -1) for n, v in features.items()} if past else None
    if previous:
        previous["bonds"] = 0.5 * (previous["bonds"] + previous["bonds"].transpose(1, 2))
    shapes = {"atoms": ("N",), "bonds": ("N", "N")}
    assert_equivariant(network(), features, t, ctx, shapes, previous, tolerance=1e-6)  # walks are float32
    features["atoms"][:, 0] += 0.1
    with pytest.raises(AssertionError, match="Permuting"):
        assert_equivariant(lambda f, *rest: {"atoms": f["atoms"].cumsum(1)}, features, t, ctx, shapes)


def test_padding_is_never_read():
    net = network()
    features, t, ctx = graphs()
    out = net(features, t, ctx)
    dirty = {n: v.clone() for n, v in features.items()}
    node, pair = ctx.mask(("N",)), ctx.mask(("N", "N"))
    short = {"atoms": features["atoms"][1:2, :4], "bonds": features["bonds"][1:2, :4, :4]}
    alone = net(short, t[1:2], Context(torch.tensor([1]), sizes=torch.tensor([4])))
    torch.testing.assert_close(out["atoms"][1:2, :4], alone["atoms"], rtol=0, atol=1e-12)
    torch.testing.assert_close(out["bonds"][1:2, :4, :4], alone["bonds"], rtol=0, atol=1e-12)
    # Class features of padding that are not zero change nothing of the real entries either.
    dirty["atoms"] = torch.where(node.unsqueeze(-1), dirty["atoms"], torch.full_like(dirty["atoms"], 3.0))
    again = net(dirty, t, ctx)
    for name, mask in (("atoms", node), ("bonds", pair)):
        torch.testing.assert_close(again[name][mask], out[name][mask], rtol=0, atol=1e-12)


def test_pair_outputs_are_symmetric():
    features, t, ctx = graphs()
    out = network()(features, t, ctx)["bonds"]
    torch.testing.assert_close(out, out.transpose(1, 2), rtol=0, atol=0)


def test_the_small_one_has_the_size_of_its_description():
    net = PairFormer(8, 4, normal_valence=[4.0] * 8, dx=128, de=32, dc=128, depth=4, heads=8, widen=2, walks=8)
    assert 0.70e6 < sum(p.numel() for p in net.parameters()) < 0.75e6


def test_random_walks_are_stochastic_matrices_and_stay_in_their_component():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 5, 5, generator=g)
    a = a + a.transpose(1, 2)
    walks = random_walks(a, 6)
    torch.testing.assert_close(walks.sum(2), torch.ones(2, 5, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(walks[..., 0], torch.eye(5).expand(2, 5, 5))
    m = (a / a.sum(-1, keepdim=True))[0]
    torch.testing.assert_close(walks[0, ..., 5], torch.linalg.matrix_power(m, 5), rtol=0, atol=1e-6)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3))[None]
    assert random_walks(blocks, 4)[0, :2, 2:].abs().sum() == 0


def test_conditions_matter_where_present_and_only_there():
    net = network(conditions={"qed": 1})
    features, t, ctx = graphs()
    some = torch.tensor([True, False, True])
    out = {}
    for value in (0.2, 0.9):
        ctx.cond = {"qed": (torch.full((3, 1), value), some)}
        out[value] = net(features, t, ctx)["atoms"]
    changed = (out[0.2] - out[0.9]).abs().amax((1, 2)) > 1e-9
    assert changed.tolist() == [True, False, True]
    ctx.cond = {}
    torch.testing.assert_close(net(features, t, ctx)["atoms"][1], out[0.2][1], rtol=0, atol=1e-12)


def test_time_size_and_past_estimates_reach_the_output():
    net = network()
    features, t, ctx = graphs(1, 6, (6,))
    base = net(features, t, ctx)["bonds"]
    assert (net(features, t + 0.1, ctx)["bonds"] - base).abs().max() > 1e-6
    past = {n: torch.softmax(v, -1) for n, v in features.items()}
    assert (net(features, t, ctx, past)["bonds"] - base).abs().max() > 1e-6


def test_gradients_reach_every_parameter_after_one_step():
    net = PairFormer(K, E, dx=16, de=8, dc=16, depth=2, heads=4, walks=4, conditions={"qed": 1})
    features, t, ctx = graphs()
    features = {n: v.float() for n, v in features.items()}
    ctx.cond = {"qed": (torch.ones(3, 1), torch.tensor([True, False, True]))}
    past = {n: torch.softmax(v, -1) for n, v in features.items()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        out = net(features, t.float(), ctx, past)
        sum((v - 1).square().mean() for v in out.values()).backward()
        optimiser.step()
    still = [n for n, p in net.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0]
    # The shift that all logits of a row share drops out of the softmax.
    assert all("absent" not in n for n in still) and len(still) <= 2, still


def bare(**more) -> PairFormer:
    """A network for graphs whose nodes have no classes."""
    torch.manual_seed(0)
    net = PairFormer(0, 3, nodes=None, pairs="edges", pair_logits=2, orders=[0.0, 1.0], dx=16, de=8, dc=16, depth=2,
                     heads=4, walks=4, degree_share=True, **more)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.double().eval()


def unlabelled():
    features, t, ctx = graphs()
    return {"edges": features["bonds"][..., :3]}, t, ctx


@pytest.mark.parametrize("past", [False, True])
def test_without_node_classes_permuting_the_nodes_permutes_the_pairs(past):
    features, t, ctx = unlabelled()
    previous = None
    if past:
        draws = torch.softmax(torch.randn(3, 6, 6, 2, dtype=torch.float64), -1)
        previous = {"edges": 0.5 * (draws + draws.transpose(1, 2))}
    assert_equivariant(bare(), features, t, ctx, {"edges": ("N", "N")}, previous, tolerance=1e-6)
    out = bare()(features, t, ctx, previous)
    assert set(out) == {"edges"} and out["edges"].shape == (3, 6, 6, 2)
    torch.testing.assert_close(out["edges"], out["edges"].transpose(1, 2), rtol=0, atol=0)


def test_without_node_classes_padding_is_never_read_and_degrees_are():
    net = bare()
    features, t, ctx = unlabelled()
    out = net(features, t, ctx)["edges"]
    short = {"edges": features["edges"][1:2, :4, :4]}
    alone = net(short, t[1:2], Context(torch.tensor([1]), sizes=torch.tensor([4])))["edges"]
    torch.testing.assert_close(out[1:2, :4, :4], alone, rtol=0, atol=1e-12)
    column = net.node_in.weight[:, -1].clone()
    with torch.no_grad():
        net.node_in.weight[:, 5] = 0  # degree / n stands behind four walks and the degree
    assert not torch.equal(net(features, t, ctx)["edges"], out) and column.shape == (16,)


def test_what_a_network_with_node_classes_holds_is_as_it_was():
    names = [n for n, _ in network().named_parameters() if "layers" not in n]
    assert names == ["node_in.weight", "node_in.bias", "pair_in.weight", "pair_in.bias", "time.mlp.0.weight",
                     "time.mlp.0.bias", "time.mlp.2.weight", "time.mlp.2.bias", "size.weight", "size.bias",
                     "modulation.weight", "modulation.bias", "node_norm.weight", "node_norm.bias", "pair_norm.weight",
                     "pair_norm.bias", "node_out.weight", "node_out.bias", "pair_out.weight", "pair_out.bias",
                     "pair_from_nodes.weight", "pair_from_nodes.bias"]
    shapes = {n: tuple(p.shape) for n, p in network().named_parameters()}
    assert shapes["node_in.weight"] == (16, 2 * K + 4 + 2) and shapes["node_out.weight"] == (K, 16)
    assert not [n for n, _ in bare().named_parameters() if n.startswith("node_out")]


def test_pairs_held_once_or_twice_give_the_same_numbers_and_gradients(monkeypatch):
    from scidiff.nn import pairformer

    features, t, ctx = graphs()
    past = {n: torch.softmax(v, -1) for n, v in features.items()}
    for net, given, previous in ((network(), features, past), (bare(), unlabelled()[0], None)):
        found = []
        for once in (2, 100):
            monkeypatch.setattr(pairformer, "ONCE", once)
            leaves = {n: v.clone().requires_grad_() for n, v in given.items()}
            out = net(leaves, t, ctx, previous)
            name = net.pairs
            weight = torch.linspace(-1, 1, out[name].numel(), dtype=torch.float64).view(out[name].shape)
            grads = torch.autograd.grad((out[name] * weight).sum(), [*leaves.values(), *net.parameters()],
                                        allow_unused=True)
            found.append((out[name], *(g for g in grads if g is not None)))
        assert len(found[0]) == len(found[1]) > 20
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # walks are float32


@pytest.mark.parametrize("n", [1, 2, 5])
def test_matrices_become_rows_and_matrices_again(n, monkeypatch):
    from scidiff.nn import pairformer

    monkeypatch.setattr(pairformer, "ONCE", 1)
    held = pairformer.Pairs(n, torch.device("cpu"))
    x = torch.randn(2, n, n, 3, dtype=torch.float64)
    x = 0.5 * (x + x.transpose(1, 2))
    rows = held.rows(x)
    assert rows.shape == (2, n * (n + 1) // 2, 3) and torch.equal(held.matrix(rows), x)
    rows = rows.clone().requires_grad_()
    assert torch.autograd.gradcheck(held.matrix, (rows,)) and torch.autograd.gradcheck(
        held.rows, (x.clone().requires_grad_(),))


def test_permuting_the_nodes_of_a_large_graph_permutes_its_pairs():
    from scidiff.nn.pairformer import ONCE

    g = torch.Generator().manual_seed(3)
    edges = torch.randint(0, 2, (2, ONCE + 3, ONCE + 3), generator=g).triu(1)
    ctx = Context(torch.arange(2), sizes=torch.tensor([ONCE + 3, ONCE]), n_max=ONCE + 3)
    hot = F.one_hot(edges + edges.transpose(1, 2), 3).double() * ctx.mask(("N", "N")).unsqueeze(-1)
    assert_equivariant(bare(), {"edges": hot}, torch.tensor([0.2, 0.7]).double(), ctx, {"edges": ("N", "N")}, None,
                       tolerance=1e-6)
