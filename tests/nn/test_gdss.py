"""GDSS networks: published sizes, equality with the plain form, equivariance, padding, slices of the batch."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gdss_plain as plain
from scidiff import config
from scidiff.core.spec import Context
from scidiff.nn import gdss, gdss_attention
from scidiff.nn.gdss import GDSS
from scidiff.store.targets import build
from scidiff.testing import assert_equivariant

SHAPES = {"nodes": ("N",), "edges": ("N", "N")}
PUBLISHED = {"ego_small": (44_093, 135_713), "community_small": (72_434, 134_369), "enzymes": (182_066, 204_113),
             "grid": (170_081, 203_153), "qm9": (8_564, 23_825), "zinc250k": (11_429, 62_873),
             "zinc250k_v2": (22_721, 62_873)}
SMALL = {"gcn": {}, "attention": {"node_attention": True, "node_depth": 3},
         "three powers": {"c_initial": 3, "mlp_depth": 3, "heads": 2, "d_attention": 4}, "one layer": {"edge_depth": 1}}


def network(dtype=torch.float64, **more) -> GDSS:
    """A small network whose biases have been moved, so that every path matters."""
    torch.manual_seed(0)
    net = GDSS(**{"features": 3, "width": 8, "node_depth": 2, "edge_depth": 3, "c_hidden": 5, **more})
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.to(dtype)


def graphs(batch=7, n=6, features=3, seed=0, dtype=torch.float64, sizes=None):
    """Noisy graphs, real matrices with zero diagonal, of mixed sizes."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, n + 1, (batch,), generator=g) if sizes is None else torch.tensor(sizes)
    ctx = Context(torch.arange(batch), sizes, n)
    real = ctx.mask(("N",)).to(dtype)
    x = torch.randn(batch, n, features, generator=g, dtype=dtype) * real.unsqueeze(-1)
    a = torch.randn(batch, n, n, generator=g, dtype=dtype).triu(1)
    return {"nodes": x, "edges": plain.masked(a + a.transpose(1, 2), real)}, ctx, real


def compared(net, features, ctx, real):
    """Largest difference from the plain form."""
    out, by_hand = net(features, torch.zeros(ctx.batch), ctx), plain.PlainGDSS(net)
    x, a = features["nodes"], features["edges"]
    return max(float((out["nodes"] - by_hand.nodes(x, a, real)).detach().abs().max()),
               float((out["edges"] - by_hand.edges(x, a, real)).detach().abs().max()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_their_published_sizes(name):
    settings = config.read_option("backbone", f"gdss_{name}")
    settings.pop("domain")
    net = build(settings)
    count = [sum(p.numel() for p in part.parameters()) for part in (net.node_score, net.edge_score)]
    assert tuple(count) == PUBLISHED[name]


@pytest.mark.parametrize("more", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("grad", [False, True])
def test_equal_to_the_plain_form(more, grad):
    net = network(**more)
    with torch.set_grad_enabled(grad):
        assert compared(net, *graphs()) < 1e-13
        assert compared(net, *graphs(sizes=[6] * 7)) < 1e-13


@pytest.mark.parametrize("name", ["qm9", "zinc250k_v2"])
def test_equal_to_the_plain_form_in_single_precision(name):
    settings = {**config.read_option("backbone", f"gdss_{name}"), "nodes": "nodes", "edges": "edges"}
    settings.pop("domain")
    torch.manual_seed(0)
    net = build(settings)
    with torch.inference_mode():
        features, ctx, real = graphs(40, 12, settings["features"], dtype=torch.float32)
        assert compared(net, features, ctx, real) < 1e-6


@pytest.mark.parametrize("more", SMALL.values(), ids=SMALL)
def test_permuting_the_nodes_permutes_the_outputs(more):
    features, ctx, _ = graphs()
    net = network(**more)

    def with_an_axis(f, *rest):
        out = net({"nodes": f["nodes"], "edges": f["edges"][..., 0]}, *rest)
        return {**out, "edges": out["edges"].unsqueeze(-1)}

    features["edges"] = features["edges"].unsqueeze(-1)
    assert_equivariant(with_an_axis, features, torch.zeros(7), ctx, SHAPES, tolerance=1e-12)


@pytest.mark.parametrize("more", [{}, {"node_attention": True}], ids=str)
def test_padding_is_never_read_and_stays_zero(more):
    net = network(**more).requires_grad_(False)
    features, ctx, real = graphs(sizes=[6, 5, 3, 3, 2, 1, 1])
    out = net(features, torch.zeros(7), ctx)
    assert float((out["nodes"] * (1 - real).unsqueeze(-1)).abs().max()) == 0.0
    assert torch.equal(out["edges"], plain.masked(out["edges"], real))
    assert torch.equal(out["edges"], out["edges"].transpose(1, 2))
    assert float(out["edges"].diagonal(dim1=1, dim2=2).abs().max()) == 0.0
    for row, size in ((2, 3), (5, 1)):
        alone = Context(torch.tensor([0]), torch.tensor([size]))
        short = {"nodes": features["nodes"][row:row + 1, :size], "edges": features["edges"][row:row + 1, :size, :size]}
        single = net(short, torch.zeros(1), alone)
        torch.testing.assert_close(out["nodes"][row:row + 1, :size], single["nodes"], rtol=0, atol=1e-13)
        torch.testing.assert_close(out["edges"][row:row + 1, :size, :size], single["edges"], rtol=0, atol=1e-13)


def test_slices_of_the_batch_change_nothing(monkeypatch):
    net = network()
    features, ctx, _ = graphs(40, 6)
    whole = net(features, torch.zeros(40), ctx)
    seen = []
    inner = GDSS._slices
    monkeypatch.setattr(GDSS, "_slices", lambda *a: (seen.append(p[0].stop - p[0].start) or p for p in inner(*a)))
    for budget, fewest in ((net._largest * 36 * 16, 16), (net._largest * 36 * 3, 1), (1, 16)):
        monkeypatch.setattr(gdss, "CACHED", budget)
        monkeypatch.setattr(gdss, "FEWEST", fewest)
        seen.clear()
        cut = net(features, torch.zeros(40), ctx)
        assert sum(seen) == 40 and len(seen) > 1
        for name, x in whole.items():
            torch.testing.assert_close(cut[name], x, rtol=0, atol=1e-13)


def test_the_whole_batch_at_once_is_the_same(monkeypatch):
    """What runs on a GPU and in compiled programs."""
    net = network(node_attention=True)
    features, ctx, _ = graphs()
    cut = net(features, torch.zeros(7), ctx)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    whole = net(features, torch.zeros(7), ctx)
    for name, x in whole.items():
        torch.testing.assert_close(cut[name], x, rtol=0, atol=1e-13)


def test_the_time_is_not_an_input():
    net = network()
    features, ctx, _ = graphs()
    early, late = net(features, torch.zeros(7), ctx), net(features, torch.ones(7), ctx)
    assert all(torch.equal(early[k], late[k]) for k in early)


@pytest.mark.parametrize("more", [{}, {"node_attention": True, "edge_depth": 2}], ids=str)
def test_gradients_are_those_of_the_function(more):
    """Directional derivatives by differences, for the weights of both networks."""
    net = network(**more)
    features, ctx, _ = graphs()

    def loss():
        return sum(v.sin().sum() for v in net(features, torch.zeros(7), ctx).values())

    loss().backward()
    unused = {n for n, p in net.named_parameters() if p.grad is None}
    last = len(net.edge_score.layers) - 1
    assert all(n.startswith((f"edge_score.layers.{last}.value", f"edge_score.layers.{last}.node_mlp",
                             f"node_score.layers.{len(net.node_score.layers) - 1}.")) for n in unused)
    assert len(unused) == (6 if not more else 6 + 4 + 4)
    g = torch.Generator().manual_seed(3)
    for part in (net.node_score, net.edge_score):
        used = [p for p in part.parameters() if p.grad is not None]
        along = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in used]
        expected = sum(float((p.grad * d).sum()) for p, d in zip(used, along, strict=True))
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, d in zip(used, along, strict=True):
                    p.add_(sign * 1e-6 * d)
                ends.append(float(loss()))
        with torch.no_grad():
            for p, d in zip(used, along, strict=True):
                p.add_(1e-6 * d)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-6)


def test_tables_in_inference_mode_serve_training_later():
    gdss_attention.tables.cache_clear()
    net = network()
    features, ctx, _ = graphs()
    with torch.inference_mode():
        net(features, torch.zeros(7), ctx)
    net(features, torch.zeros(7), ctx)["edges"].sum().backward()
    assert net.edge_score.layers[0].query.grad is not None
