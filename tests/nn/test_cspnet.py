"""CSPNetDense: symmetries, masks, the published function and its parameter count, number formats, what it is told."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.core.spec import Context
from scidiff.nn.cspnet import CSPNetDense, EdgeLinear, StepEmbedding, neighbours, pair_fourier
from scidiff.testing import assert_equivariant

K, EXTRA, SIZES = 5, 2, (6, 1, 4)
SHAPES = {"types": ("N",), "frac": ("N",), "lattice": ()}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
CONF = Path(__file__).resolve().parents[2] / "conf" / "backbone"
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def network(dtype=torch.float64, **more) -> CSPNetDense:
    torch.manual_seed(0)
    options = {"lattice_size": 9, "extra": EXTRA, "width": 16, "depth": 2, "frequencies": 6, "clock": 8, **more}
    return CSPNetDense(K, **options).to(dtype).eval()


def crystals(dtype=torch.float64, sizes=SIZES, lattice_size=9, extra=EXTRA, seed=0):
    g = torch.Generator().manual_seed(seed)
    b, n = len(sizes), max(sizes)
    ctx = Context(torch.arange(b), sizes=torch.tensor(sizes), n_max=n)
    real = ctx.mask(("N",)).unsqueeze(-1)
    features = {"types": F.one_hot(torch.randint(K, (b, n), generator=g), K) * real,
                "frac": torch.rand(b, n, 3, 1 + extra, generator=g, dtype=torch.float64) * real.unsqueeze(-1),
                "lattice": torch.randn(b, lattice_size, generator=g, dtype=torch.float64)}
    return {k: v.to(dtype) for k, v in features.items()}, torch.linspace(0.1, 0.9, b, dtype=dtype), ctx


def estimates(features, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.rand(x.shape[:3] if name == "frac" else x.shape, generator=g).to(x.dtype)
            for name, x in features.items()}


def moved(values, by):
    """All atoms of every crystal moved by [B, 3], wrapped into the cell."""
    frac = values["frac"].clone()
    place = frac[..., 0] if frac.dim() == 4 else frac
    place.copy_(torch.remainder(place + by[:, None], 1.0))
    return {**values, "frac": frac}


def largest(a, b, ctx):
    real = ctx.mask(("N",))
    return max(float((a[n] - b[n]).detach()[real if n != "lattice" else slice(None)].abs().max()) for n in a)


@PRECISIONS
@pytest.mark.parametrize("past", [False, True])
def test_permuting_the_atoms_permutes_the_outputs(dtype, past):
    features, t, ctx = crystals(dtype)
    net = network(dtype, self_conditioning=past)
    assert_equivariant(net, features, t, ctx, SHAPES, estimates(features) if past else None, TOLERANCE[dtype])


@PRECISIONS
@pytest.mark.parametrize("past", [False, True])
def test_a_common_shift_of_all_atoms_changes_nothing(dtype, past):
    features, t, ctx = crystals(dtype)
    net, previous = network(dtype, self_conditioning=past), estimates(features) if past else None
    by = torch.tensor([[0.31, 0.72, 0.05], [0.9, 0.5, 0.1], [0.25, 0.66, 0.48]], dtype=dtype)
    shifted = net(moved(features, by), t, ctx, moved(previous, by) if past else None)
    out = net(features, t, ctx, previous)
    assert largest(shifted, out, ctx) < TOLERANCE[dtype]
    one = moved(features, by)  # one atom alone is no symmetry
    one["frac"][:, 1:] = features["frac"][:, 1:]
    assert largest(net(one, t, ctx, previous), out, ctx) > 1e-4


def test_the_highest_published_frequency_is_invariant_too():
    net = network(torch.float32, frequencies=128, lowest=0)
    features, t, ctx = crystals(torch.float32)
    features["frac"] = (features["frac"] * 1024).round() / 1024  # shifts of these are exact
    by = torch.tensor([[37, 512, 1000], [1, 2, 3], [900, 5, 511]]) / 1024
    assert largest(net(moved(features, by), t, ctx), net(features, t, ctx), ctx) < 1e-5


@PRECISIONS
@pytest.mark.parametrize("mirror", [False, True])
def test_turning_the_lattice_turns_its_output_alone(dtype, mirror):
    features, t, ctx = crystals(dtype)
    q = torch.linalg.qr(torch.randn(3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    q[:, 0] *= (torch.linalg.det(q) * (-1 if mirror else 1))[:, None]

    def turned(x):
        return (x.view(-1, 3, 3) @ q.to(dtype)).flatten(1)

    net, previous = network(dtype, self_conditioning=True), estimates(features)
    out = net(features, t, ctx, previous)
    new = net({**features, "lattice": turned(features["lattice"])}, t, ctx,
              {**previous, "lattice": turned(previous["lattice"])})
    assert largest(new, {**out, "lattice": turned(out["lattice"])}, ctx) < TOLERANCE[dtype]
    assert (out["lattice"] - turned(out["lattice"])).abs().max() > 1e-3


@pytest.mark.parametrize("self_pairs", [False, True])
def test_a_padded_crystal_is_the_crystal_alone_and_padding_is_never_read(self_pairs):
    features, t, ctx = crystals()
    net = network(self_pairs=self_pairs)
    dirty = {**features, "frac": torch.where(ctx.mask(("N",))[..., None, None], features["frac"], 0.4),
             "types": torch.where(ctx.mask(("N",))[..., None], features["types"], 3.0)}
    out = net(dirty, t, ctx)
    for row, n in enumerate(SIZES):
        short = {k: v[row : row + 1] if k == "lattice" else v[row : row + 1, :n] for k, v in features.items()}
        for alone in (Context(torch.tensor([row]), sizes=torch.tensor([n])), Context(torch.tensor([row]))):
            single = net(short, t[row : row + 1], alone)
            for name, x in single.items():
                whole = out[name][row : row + 1] if name == "lattice" else out[name][row : row + 1, :n]
                torch.testing.assert_close(whole, x, rtol=0, atol=1e-12)


def test_sines_and_cosines_of_pairs_are_those_of_the_differences():
    frac, k = torch.rand(2, 5, 3, dtype=torch.float64), torch.arange(7)
    turn = 2 * math.pi * (frac[:, None] - frac[:, :, None]).unsqueeze(-1) * k  # [b, i, j] holds f_j - f_i
    expected = torch.cat([turn.sin().flatten(3), turn.cos().flatten(3)], -1)
    torch.testing.assert_close(pair_fourier(frac, k), expected, rtol=0, atol=1e-12)


def test_the_factorised_first_linear_map_is_the_concatenated_one():
    torch.manual_seed(0)
    first = EdgeLinear(8, 6, 12).double()
    u, cell, pair = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 8), (2, 6), (2, 4, 4, 12)))
    whole = torch.cat([u[:, :, None].expand(2, 4, 4, 8), u[:, None].expand(2, 4, 4, 8),
                       cell[:, None, None].expand(2, 4, 4, 6), pair], -1)
    torch.testing.assert_close(first(u, cell, pair), F.linear(whole, first.weight, first.bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("more", [{"lattice_size": 6, "separate_times": True},
                                  {"self_pairs": True, "lowest": 0, "steps": 50, "size_input": False}])
def test_the_published_edge_list_form_is_the_same_function(more):
    pytest.importorskip("torch_geometric", reason="the edge-list form needs torch_geometric")
    from benchmarks.cspnet_edges import CSPNetEdges, graphs

    net = network(torch.float32, **more)
    features, t, ctx = crystals(torch.float32, (5, 1, 7, 2), more.get("lattice_size", 9))
    out, edges = net(features, t, ctx), CSPNetEdges(net)(graphs(features, (5, 1, 7, 2), net.self_pairs), t)
    real = ctx.mask(("N",))
    for name, x in edges.items():
        torch.testing.assert_close(out[name] if name == "lattice" else out[name][real], x, rtol=0, atol=1e-5)


def test_the_mean_runs_over_the_others_or_over_oneself_where_alone():
    real = torch.tensor([[True, True, True], [True, False, False]])
    seen, count = neighbours(real, self_pairs=False)
    assert count.flatten().tolist() == [2, 1]
    assert seen[0].tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert seen[1, 0].tolist() == [True, False, False]
    seen, count = neighbours(real, self_pairs=True)
    assert count.flatten().tolist() == [3, 1] and seen[0].all() and seen[1, 0].tolist() == [True, False, False]


def configured(name, **more) -> CSPNetDense:
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    options = {k: v for k, v in options.items() if k not in ("_target_", "domain") and not str(v).startswith("$")}
    with torch.device("meta"):
        return CSPNetDense(89, **{**options, **more})


def test_the_large_form_has_the_published_number_of_parameters():
    h, g, k = 512, 6 * 128, 89
    layer = (2 * h + 9 + g) * h + h + (h * h + h) + (2 * h * h + h) + (h * h + h) + 2 * h
    around = (k * h + h) + ((h + 128 + 3) * h + h) + 2 * h + h * (3 + 9 + k)
    count = sum(p.numel() for p in configured("cspnet512", lattice_size=9, extra=1).parameters())
    assert count == 6 * layer + around
    assert round(count / 1e6, 1) == 12.3


@pytest.mark.parametrize("name", ["cspnet_xs", "cspnet_s", "cspnet_m", "cspnet_l", "cspnet512"])
def test_configured_networks_have_the_size_of_their_description(name):
    said = float((CONF / f"{name}.yaml").read_text().split(" M parameters")[0].split()[-1])
    count = sum(p.numel() for p in configured(name, extra=1).parameters()) / 1e6
    assert abs(count - said) < 0.06


def test_each_component_may_have_a_time_of_its_own():
    net = network(separate_times=True)
    features, t, ctx = crystals()
    same = net(features, t[:, None].expand(-1, 3), ctx)
    assert largest(net(features, t, ctx), same, ctx) == 0
    for column in range(3):
        when = t[:, None].repeat(1, 3)
        when[:, column] = 0
        assert largest(net(features, when, ctx), same, ctx) > 1e-6


def test_steps_are_embedded_as_published():
    e = StepEmbedding(8, 10).double()(torch.tensor([[1.0, 0.7]], dtype=torch.float64)).view(2, 8)
    for row, step in zip(e, (1, 4), strict=True):
        angle = step * torch.tensor([10_000 ** (-k / 3) for k in range(4)], dtype=torch.float64)
        torch.testing.assert_close(row, torch.cat([angle.sin(), angle.cos()]), rtol=0, atol=1e-6)


def test_further_channels_sizes_and_conditions_reach_the_output():
    net = network(conditions={"energy": 1})
    features, t, ctx = crystals()
    out = net(features, t, ctx)
    told = features["frac"].clone()
    told[..., 1] += 0.3
    assert largest(net({**features, "frac": told}, t, ctx), out, ctx) > 1e-6
    ctx.cond = {"energy": (torch.ones(3, 1), torch.tensor([True, False, True]))}
    changed = [(net(features, t, ctx)["frac"] - out["frac"])[row, : SIZES[row]].abs().max() > 1e-9 for row in range(3)]
    assert changed == [True, False, True]
    # Two copies of one atom are the atom itself but for the count.
    twice = {k: v[:1] if k == "lattice" else v[:1, :1].repeat(1, 2, *[1] * (v.dim() - 2)) for k, v in features.items()}
    once = {k: v if k == "lattice" else v[:, :1] for k, v in twice.items()}
    ctx = Context(torch.tensor([0]))
    for size_input in (True, False):
        net = network(size_input=size_input)
        same = (net(twice, t[:1], ctx)["lattice"] - net(once, t[:1], ctx)["lattice"]).abs().max() < 1e-12
        assert same != size_input


@pytest.mark.parametrize("past", [False, True])
def test_gradients_reach_every_parameter(past):
    net = network(torch.float32, lattice_size=6, self_conditioning=past, separate_times=True, conditions={"energy": 1})
    features, t, ctx = crystals(torch.float32, lattice_size=6)
    ctx.cond = {"energy": (torch.ones(3, 1), torch.tensor([True, False, True]))}
    out = net(features, t, ctx, estimates(features) if past else None)
    sum((v - 1).square().mean() for v in out.values()).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_lower_precision_keeps_the_angles_exact():
    net = network(torch.float32, frequencies=128, lowest=0)
    features, t, ctx = crystals(torch.float32)
    seen = []
    net.layers[0].first.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    out = net(features, t, ctx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(features, t, ctx)
    assert low["types"].dtype == seen[1].dtype == torch.bfloat16
    # What is lost is the last rounding of each sine; angles of bfloat16 would be off by a radian and more.
    assert (seen[1] - pair_fourier(features["frac"][..., 0].double(), net.frequencies)).abs().max() < 2**-8
    for name in out:
        assert (low[name] - out[name]).abs().max() < 0.02 * out[name].abs().max()


def test_it_compiles_to_one_program():
    net = network(torch.float32, lattice_size=6, self_conditioning=True)
    features, t, ctx = crystals(torch.float32, lattice_size=6)
    previous = estimates(features)
    ctx.mask(("N",))
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert largest(compiled(features, t, ctx, previous), net(features, t, ctx, previous), ctx) < 1e-6


def test_what_does_not_fit_is_refused_in_a_sentence():
    features, t, ctx = crystals(extra=1)
    with pytest.raises(ScidiffError, match=r"for 5 types and 2 further channels .*, not for 5 and 1.*backbone\.extra"):
        network()(features, t, ctx)
    with pytest.raises(UsageError, match="nine numbers, not 6"):
        CSPNetDense(K, lattice_size=6, lattice="matrix")
    with pytest.raises(UsageError, match="Did you mean 'matrix'"):
        CSPNetDense(K, lattice="matrx")
