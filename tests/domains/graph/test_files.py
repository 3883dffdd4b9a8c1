"""What a run writes: one id everywhere, readable by other programs and by ourselves, invalid samples included."""

from __future__ import annotations

import csv

import networkx as nx
import pytest

from scidiff.domains.base import Samples
from scidiff.domains.graph import GraphDomain
from scidiff.domains.graph.codec import build
from scidiff.domains.graph.data import read
from scidiff.domains.graph.families import make


@pytest.fixture
def samples():
    graphs = [*make("tree", 3, nodes=7), nx.cycle_graph(5), build(2, []), build(0, [])]
    domain = GraphDomain(kind="tree")
    ids = [f"s{i:04d}" for i in range(len(graphs))]
    return Samples(graphs, ids, 7, domain.check(graphs), domain)


def test_one_row_a_sample_with_its_verdict(samples, tmp_path):
    samples.save(tmp_path)
    rows = list(csv.DictReader((tmp_path / "samples.csv").open()))
    assert [row["id"] for row in rows] == samples.ids
    assert [row["valid"] for row in rows] == ["True"] * 3 + ["False"] * 3
    assert rows[3]["reason"] and rows[3]["nodes"] == rows[3]["edges"] == "5" and float(rows[3]["mean_degree"]) == 2
    assert rows[0]["tree"] == rows[0]["planar"] == rows[0]["connected"] == "True"
    assert rows[4]["connected"] == "False" and rows[5]["nodes"] == "0"


def test_graphml_opens_elsewhere_and_bears_id_seed_and_verdict(samples, tmp_path):
    samples.save(tmp_path)
    assert len(list((tmp_path / "graphml").iterdir())) == 6
    for name, graph, verdict in zip(samples.ids, samples, samples.verdicts, strict=True):
        found = nx.read_graphml(tmp_path / "graphml" / f"{name}.graphml", node_type=int)
        assert nx.utils.graphs_equal(nx.Graph(found.edges()), nx.Graph(graph.edges()))
        assert found.number_of_nodes() == graph.number_of_nodes()
        assert found.graph["seed"] == 7 and found.graph["valid"] is verdict.valid
        assert found.graph.get("reason", "") == verdict.reason


def test_a_run_is_read_back_with_its_ids(samples, tmp_path):
    samples.save(tmp_path)
    found = read(tmp_path)
    assert found.names == samples.ids[:5]  # the graph without nodes is none
    assert [r.reason for r in found.rejected] == ["it has no nodes"]
    assert all(sorted(a.edges()) == sorted(b.edges()) for a, b in zip(found.objects, samples, strict=False))
    assert read(tmp_path / "graphml" / "s0002.graphml").names == ["s0002"]


def test_labels_survive_both_files(tmp_path):
    graph = build(3, [(0, 1)], ["helix", "sheet", "helix"])
    domain = GraphDomain(labels=("helix", "sheet"), n_max=3)
    Samples([graph], ["s0000"], 0, domain.check([graph]), domain).save(tmp_path)
    for place in (tmp_path, tmp_path / "graphml" / "s0000.graphml"):
        assert nx.get_node_attributes(read(place).objects[0], "label") == {0: "helix", 1: "sheet", 2: "helix"}


def test_the_same_samples_give_the_same_bytes(samples, tmp_path):
    first, second = samples.save(tmp_path / "a"), samples.save(tmp_path / "b")
    assert [f.name for f in first] == [f.name for f in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_nothing_is_drawn_of_nothing(tmp_path):
    domain = GraphDomain()
    assert [f.name for f in Samples([], [], 0, [], domain).save(tmp_path)] == ["samples.csv", "graphs.npz"]


def test_pictures_are_made_of_every_kind_of_graph():
    graphs = [make("tree", 1)[0], make("planar", 1, nodes=30)[0], make("sbm", 1, blocks=(2, 2))[0], build(1, []),
              build(0, []), build(3, [(0, 1)], list("aba")), nx.disjoint_union(nx.path_graph(3), nx.path_graph(3))]
    domain = GraphDomain(kind="planar")
    found = domain.view(graphs, domain.check(graphs), [str(i) for i in range(7)])
    kinds = {caption: type(picture) for caption, picture in found.items()}
    assert kinds == {"The first 7 samples, as drawn": bytes, "Degrees of all nodes": str}
    assert domain.view([], [], []) == {}


def test_trees_are_drawn_without_crossings_and_on_circles():
    import numpy as np

    from scidiff.domains.graph.view import places

    tree = make("tree", 1, nodes=40)[0]
    at = places(tree)
    depth = nx.single_source_shortest_path_length(tree, nx.center(tree)[0])
    np.testing.assert_allclose(np.hypot(*at.T), [depth[u] for u in tree], atol=1e-9)
    angle = dict(zip(tree, np.arctan2(at[:, 1], at[:, 0]) % (2 * np.pi), strict=True))
    ring = [u for u in tree if depth[u] == 1]
    assert len({round(angle[u], 9) for u in ring}) == len(ring)
