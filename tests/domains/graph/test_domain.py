"""The graph domain as a whole: conformance, options, sizes, absorbing and labelled states, training and sampling."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
import torch

from scidiff.core.errors import UsageError
from scidiff.core.path import AbsorbingPath, MarginalPath
from scidiff.core.spec import Component, Context, StateSpec
from scidiff.domains import domain_class
from scidiff.domains.base import Request
from scidiff.domains.graph import SIZES, GraphDomain
from scidiff.domains.graph.codec import build
from scidiff.domains.graph.families import make
from scidiff.nn.pairformer import PairFormer
from scidiff.testing import check_domain


def labelled(graphs):
    for k, graph in enumerate(graphs):
        nx.set_node_attributes(graph, {u: "xyz"[(u * u + k) % 3] for u in graph}, "label")
    return graphs


def test_it_is_known_by_its_name():
    assert domain_class("graph") is GraphDomain


@pytest.mark.parametrize("domain, objects", [
    (GraphDomain(), None),
    (GraphDomain(), labelled(GraphDomain().examples())),
    (GraphDomain(codec="gdss", degrees=5), None),
])
def test_it_conforms(domain, objects):
    fitted = check_domain(domain, objects, configs=False)
    assert fitted.n_max == 10 and sum(fitted.sizes) == 12
    assert fitted.labels == (("x", "y", "z") if objects else ())


def test_its_configs_compose_and_train_one_batch():
    from scidiff.testing import check_configs

    made = GraphDomain()
    fitted, statistics = made.fit(made.examples())
    assert check_configs(fitted, statistics, *fitted.encode(made.examples())) == ["domain=graph"]


def test_options_make_the_domain_again():
    fitted, statistics = GraphDomain(kind="tree").fit(make("tree", 5, nodes=7))
    again = GraphDomain(**json.loads(json.dumps(fitted.options())))
    assert again.options() == fitted.options() and again.kind == "tree"
    assert statistics["sizes"] == [0] * 7 + [5]
    np.testing.assert_allclose(statistics["marginals"]["edges"], [1 - 6 / 21, 6 / 21])
    assert GraphDomain(codec="gdss").fit(make("ego", 8))[0].degrees == 1 + max(
        d for g in make("ego", 8) for _, d in g.degree())


def test_sizes_follow_the_histogram_by_seed_and_id_alone():
    domain = GraphDomain(n_max=20, sizes=[0] * 12 + [3] + [0] * 7 + [1])
    ids = torch.arange(4000)
    sizes = domain.template(Request(ids, 5)).sizes
    assert set(sizes.tolist()) == {12, 20}
    assert abs((sizes == 12).double().mean() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    part = domain.template(Request(torch.tensor([3999, 17]), 5)).sizes
    assert part.tolist() == [int(sizes[3999]), int(sizes[17])]
    assert not torch.equal(sizes, domain.template(Request(ids, 6)).sizes)


def test_a_request_names_a_size_or_a_range():
    domain = GraphDomain(n_max=20, sizes=[0] * 12 + [3] + [0] * 7 + [1])
    ids = torch.arange(200)

    def asked(**options):
        return set(domain.template(Request(ids, 0, options=options)).sizes.tolist())

    assert asked(num_nodes=20) == {20}
    assert asked(sizes=[12, 14]) == {12}
    assert asked(num_nodes="14-16") == {14, 15, 16}  # the histogram has none of these: evenly
    for wrong in (0, 21, "5-3", "many", [1, 30]):
        with pytest.raises(UsageError, match="within 1-20"):
            SIZES.within(wrong, 20)
    with pytest.raises(UsageError, match=r"without an option 'num_node'. Did you mean 'num_nodes'"):
        asked(num_node=3)


def test_kinds_decide_what_is_valid():
    graphs = [nx.path_graph(4), nx.cycle_graph(4), nx.complete_graph(5), build(3, [(0, 1)])]
    found = {kind: [v.valid for v in GraphDomain(kind=kind).check(graphs)] for kind in ("", "tree", "planar", "sbm")}
    assert found == {"": [True] * 4, "tree": [True, False, False, False], "planar": [True, True, False, False],
                     "sbm": [False] * 4}
    table = GraphDomain().table(graphs, [])
    assert [row["clustering"] for row in table] == [0.0, 0.0, 1.0, 0.0]
    assert [row["planar"] for row in table] == [True, True, False, True]
    assert [row["mean_degree"] for row in table] == [1.5, 2.0, 4.0, 0.6667]


def test_properties_for_conditions():
    graphs = [nx.complete_graph(4), nx.path_graph(5)]
    found = GraphDomain().properties(graphs, ["density", "mean_degree", "clustering"])
    torch.testing.assert_close(found["density"], torch.tensor([1.0, 0.4]))
    torch.testing.assert_close(found["mean_degree"], torch.tensor([3.0, 1.6]))
    torch.testing.assert_close(found["clustering"], torch.tensor([1.0, 0.0]))
    with pytest.raises(UsageError, match="Did you mean 'density'"):
        GraphDomain().properties(graphs, ["densty"])


def test_the_share_of_valid_samples_and_the_mean_degree_are_previewed():
    graphs = [nx.path_graph(3), nx.complete_graph(3)]
    domain = GraphDomain(kind="tree")
    assert domain.preview(graphs, domain.check(graphs)) == {"valid": 0.5, "mean_degree": pytest.approx(10 / 6)}


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("path", [MarginalPath(), AbsorbingPath()])
def test_the_network_fits_every_state_of_the_domain(labels, path):
    graphs = GraphDomain().examples()
    fitted, statistics = GraphDomain().fit(labelled(graphs) if labels else graphs)
    spec = StateSpec({name: Component(space, path.fit(statistics["marginals"][name]), shape)
                      for name, (space, shape) in fitted.components().items()})
    options = fitted.backbone_options(spec)
    net = PairFormer(**options, dx=16, de=8, dc=16, depth=1, heads=2, walks=4, self_conditioning=not path.absorbing)
    state, ctx = fitted.encode(graphs)
    features = {n: c.path.features(state[n], 0.5, ctx.at(n, c)) for n, c in spec.items()}
    out = net(features, torch.full((len(graphs),), 0.5), ctx)
    assert out["edges"].shape[-1] == 2 and set(out) == set(spec)
    assert not labels or out["nodes"].shape[-1] == 3


def test_a_small_model_learns_its_edges_and_repeats_its_samples():
    """A hundred steps on pairs of triangles: most samples are such pairs, and the same seed gives the same ones."""
    from scidiff.core.denoiser import NetworkDenoiser
    from scidiff.core.objective import StandardObjective
    from scidiff.core.run import Run
    from scidiff.core.sampler import Sampler
    from scidiff.core.solvers.fixed import Fixed
    from scidiff.core.solvers.jump import Mixture
    from scidiff.core.spec import stack_ids

    graphs = [nx.disjoint_union_all([nx.complete_graph(3)] * 2) for _ in range(32)]
    fitted, statistics = GraphDomain().fit(graphs)
    space, shape = fitted.components()["edges"]
    spec = StateSpec({"edges": Component(space, MarginalPath().fit(statistics["marginals"]["edges"]), shape)})
    torch.manual_seed(0)
    net = PairFormer(**fitted.backbone_options(spec), dx=32, de=16, dc=32, depth=2, heads=4, walks=6)
    denoiser = NetworkDenoiser(spec, net, self_conditioning=True)
    objective, run = StandardObjective(spec), Run(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    state, ctx = fitted.encode(graphs)
    for step in range(121):
        run.step = step
        loss, _ = objective.loss(denoiser, (state, Context(ctx.ids + 32 * step, ctx.sizes, 6)), run)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    sampler = Sampler(spec, denoiser.eval(), Fixed(Mixture(last="sample"), steps=20))
    ids = stack_ids(0, 40)
    first = sampler.run(fitted.template(Request(ids, 1)), seed=1).state["edges"]
    assert torch.equal(first, sampler.run(fitted.template(Request(ids, 1)), seed=1).state["edges"])
    found = fitted.decode({"edges": first}, fitted.template(Request(ids, 1)))
    wanted = sum(nx.is_isomorphic(g, graphs[0]) for g in found)
    assert wanted >= 20, wanted  # of 40; a random graph of this density is one in hundreds


@pytest.mark.parametrize("largest, together", [(20, 256), (64, 256), (187, 29), (361, 8), (2000, 1)])
def test_fewer_large_graphs_are_drawn_together(largest, together):
    from scidiff.domains.model import Model

    domain = GraphDomain(n_max=largest, sizes=[0] * largest + [1])
    space, shape = domain.components()["edges"]
    spec = StateSpec({"edges": Component(space, AbsorbingPath(), shape)})
    model = Model({}, domain, spec, None)
    ctx = domain.template(Request(torch.arange(600), 0))
    chunks = model.chunks(ctx)
    assert max(map(len, chunks)) == together and sorted(i for part in chunks for i in part) == list(range(600))
    assert max(map(len, model.chunks(ctx, 300))) == 300


def test_a_reference_says_what_is_valid_where_the_domain_does_not():
    from types import SimpleNamespace

    planar = SimpleNamespace(kind="planar")
    assert GraphDomain(n_max=9).judging_by(planar).options() == GraphDomain(n_max=9, kind="planar").options()
    assert GraphDomain(kind="tree").judging_by(planar).kind == "tree"


def test_a_file_of_graphs_is_measured_against_a_published_set(elsewhere, data, monkeypatch, capsys):
    from networkx.readwrite.graphml import generate_graphml

    from scidiff.cli.app import run

    monkeypatch.setenv("SCIDIFF_DATA", str(data))
    parts = ["\n".join(generate_graphml(g)) for g in [*make("planar", 3, nodes=20), nx.complete_graph(6)]]
    inner = "".join("<graph " + text.split("<graph ", 1)[1].replace("</graphml>", "") for text in parts)
    (elsewhere / "my_graphs.graphml").write_text(parts[0].split("<graph ")[0] + inner + "</graphml>")
    assert run(["evaluate", "my_graphs.graphml", "--reference", "planar", "--out", "out"]) == 0
    figures = {m["name"]: m for m in json.loads((elsewhere / "out" / "metrics.json").read_text())["metrics"]}
    assert figures["valid"]["value"] == 0.75 and figures["valid"]["count"] == 4
    assert figures["degree MMD^2"]["floor"] > 0 and "planar" in figures["degree MMD^2"]["reference"]
    assert "is not planar" in (elsewhere / "out" / "report.html").read_text()
