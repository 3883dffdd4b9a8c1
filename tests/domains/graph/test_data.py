"""Readers: every format gives the same graphs, splits are kept apart, cards name what the readers know."""

from __future__ import annotations

import gzip
import json
import zipfile

import networkx as nx
import numpy as np
import pytest
from networkx.readwrite.graphml import generate_graphml

from scidiff.domains.graph.archive import packed
from scidiff.domains.graph.data import dataset, hashed_side, read
from scidiff.domains.graph.families import make
from scidiff.store import cards
from scidiff.store.fetch import provide

SETS = {"comm20": (64, 16, 20), "planar": (128, 32, 40), "sbm": (128, 32, 40), "tree": (128, 32, 40),
        "enzymes": (470, 0, 117), "ego_small": (160, 0, 40), "community_small": (80, 0, 20), "grid": (80, 0, 20)}


def edges(graph):
    return sorted(map(tuple, map(sorted, graph.edges())))


def equal(a, b):
    return len(a) == len(b) and edges(a) == edges(b) and nx.get_node_attributes(a, "label") == nx.get_node_attributes(
        b, "label")


@pytest.fixture
def graphs():
    found = make("community", 3, nodes=(6, 10))
    for k, graph in enumerate(found):
        nx.set_node_attributes(graph, {u: "xyz"[(u + k) % 3] for u in graph}, "label")
    return found


def document(graphs):
    """Several <graph> elements in one GraphML document."""
    parts = ["\n".join(generate_graphml(graph)) for graph in graphs]
    head, tail = parts[0].split("<graph ")[0], "</graphml>"
    inner = ["<graph " + text.split("<graph ", 1)[1].replace(tail, "") for text in parts]
    return head + "".join(inner) + tail


def test_every_format_gives_the_same_graphs(graphs, tmp_path):
    (tmp_path / "all.npz").write_bytes(packed(graphs, ["a", "b", "c"]))
    (tmp_path / "all.graphml").write_text(document(graphs))
    with gzip.open(tmp_path / "all2.graphml.gz", "wt") as stream:
        stream.write(document(graphs))
    (tmp_path / "all.json").write_text(json.dumps([nx.node_link_data(g, edges="links") for g in graphs]))
    (tmp_path / "one.json").write_text(json.dumps(nx.node_link_data(graphs[0], edges="edges")))
    for name in ("all.npz", "all.graphml", "all2.graphml.gz", "all.json"):
        found = read(tmp_path / name)
        assert not found.rejected and len(found) == 3, name
        assert all(equal(a, b) for a, b in zip(graphs, found.objects, strict=True)), name
    assert equal(read(tmp_path / "one.json").objects[0], graphs[0])
    assert read(tmp_path / "all.npz").names == ["a", "b", "c"]
    assert read(tmp_path / "all.graphml").names == ["all_0", "all_1", "all_2"]
    bare = read(tmp_path / "all.graphml", label=None).objects
    assert not any(nx.get_node_attributes(g, "label") for g in bare)


def test_networkx_reads_the_first_graph_of_a_file_and_we_read_all(graphs, tmp_path):
    place = tmp_path / "several.graphml"
    place.write_text(document(graphs))
    assert nx.read_graphml(place).number_of_nodes() == len(graphs[0])
    assert [len(g) for g in read(place).objects] == [len(g) for g in graphs]


def test_graphml_ids_attributes_and_namespaces(tmp_path):
    text = """<?xml version="1.0"?>
<graphml>
  <key id="k" for="node" attr.name="kind" attr.type="string"/>
  <graph id="first" edgedefault="directed">
    <desc>made by hand</desc>
    <node id="b"><data key="k"> two
    </data></node>
    <node id="a"><data key="k">one</data></node>
    <edge source="a" target="b" directed="false"><data key="k">ignored</data></edge>
  </graph>
</graphml>"""
    (tmp_path / "g.graphml").write_text(text)
    found = read(tmp_path / "g.graphml", label="kind")
    assert found.names == ["first"] and edges(found.objects[0]) == [(0, 1)]
    assert nx.get_node_attributes(found.objects[0], "label") == {0: "two", 1: "one"}


def test_edge_lists(tmp_path):
    lines = ["# a comment", "source,target", "10,2", "2;30;0.5", "7", "", "a b {}", "% another", "b c", "", "", "1 2"]
    (tmp_path / "g.edges").write_text("\n".join(lines[1:]))
    found = read(tmp_path / "g.edges")
    assert [edges(g) for g in found.objects] == [[(0, 2), (0, 3)], [(0, 1), (1, 2)], [(0, 1)]]
    assert [len(g) for g in found.objects] == [4, 3, 2]  # 2, 7, 10, 30 by their size
    (tmp_path / "both.txt").write_text("1 2\n2 1\n1 1\n")
    assert edges(read(tmp_path / "both.txt", simplify=True).objects[0]) == [(0, 1)]


def test_a_folder_is_read_file_by_file_and_a_run_by_its_archive(graphs, tmp_path):
    for name, graph in zip("ab", graphs, strict=False):
        nx.write_graphml(graph, tmp_path / f"{name}.graphml")
    (tmp_path / "notes.md").write_text("no graph")
    found = read(tmp_path)
    assert found.names == ["a", "b"] and [len(g) for g in found.objects] == [len(g) for g in graphs[:2]]
    (tmp_path / "graphs.npz").write_bytes(packed(graphs, ["s0000", "s0001", "s0002"]))
    assert read(tmp_path).names == ["s0000", "s0001", "s0002"]


def test_a_text_collection_merges_directions_and_drops_lonely_nodes(tmp_path):
    with zipfile.ZipFile(tmp_path / "TOY.zip", "w") as archive:
        archive.writestr("TOY/TOY_A.txt", "1, 2\n2, 1\n2, 3\n3, 2\n3, 3\n5, 6\n6, 5\n")
        archive.writestr("TOY/TOY_graph_indicator.txt", "1\n1\n1\n1\n2\n2\n")
        archive.writestr("TOY/TOY_node_labels.txt", "1\n2\n1\n3\n1\n1\n")
    found = read(tmp_path / "TOY.zip")
    assert [edges(g) for g in found.objects] == [[(0, 1), (1, 2)], [(0, 1)]]
    assert nx.get_node_attributes(found.objects[0], "label") == {0: "1", 1: "2", 2: "1"}
    assert len(read(tmp_path / "TOY.zip", min_nodes=3)) == 1
    assert [len(read(tmp_path / "TOY.zip", part, first_test=0.5)) for part in ("test", "train")] == [1, 1]


def test_the_split_of_an_archive_and_by_hash(tmp_path):
    graphs = make("community", 60, nodes=(8, 14))
    (tmp_path / "g.npz").write_bytes(packed(graphs, [str(i) for i in range(60)]))
    sides = [set(read(tmp_path / "g.npz", part).names) for part in ("train", "test")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 60 and 0 < len(sides[1]) < 20
    shuffled = [nx.relabel_nodes(g, dict(zip(g, reversed(list(g)), strict=True))) for g in graphs]
    assert [hashed_side(g) for g in graphs] == [hashed_side(g) for g in shuffled]
    arrays = dict(np.load(tmp_path / "g.npz"))
    np.savez(tmp_path / "h.npz", **arrays, split=np.arange(60) % 3)
    assert [len(read(tmp_path / "h.npz", part)) for part in ("train", "valid", "test", None)] == [20, 20, 20, 60]
    assert read(tmp_path / "h.npz", "test", limit=4).names == ["2", "5", "8", "11"]


def test_archives_repeat_to_the_byte(graphs):
    assert packed(graphs, ["a", "b", "c"]) == packed([g.copy() for g in graphs], ["a", "b", "c"])


@pytest.mark.parametrize("name", SETS)
def test_the_published_sets_have_the_counts_of_their_cards(name, data):
    card = cards.find(name)
    found = provide(card, data)
    parts = {part: dataset(found.files, found.reader, found.options, part) for part in ("train", "valid", "test")}
    assert tuple(len(r) for r in parts.values()) == SETS[name]
    assert not any(r.rejected for r in parts.values())
    assert {k: v for k, v in card.splits.items() if k != "rule"} == {
        k: len(r) for k, r in parts.items() if len(r)}


@pytest.mark.parametrize("name", ["tree_family", "planar_family", "sbm_family", "community_family"])
def test_families_need_no_files(name):
    card = cards.find(name)
    found = provide(card)
    assert found.origin == "generated" and not card.needs_network
    records = dataset(found.files, found.reader, found.options, "test", limit=3)
    assert len(records) == 3 and all(nx.number_of_nodes(g) for g in records.objects)


def test_published_sets_without_a_safe_file_say_where_to_name_a_folder(monkeypatch, tmp_path):
    from scidiff.core.errors import ScidiffError

    monkeypatch.delenv("SCIDIFF_DATA", raising=False)
    monkeypatch.setenv("SCIDIFF_HOME", str(tmp_path))
    with pytest.raises(ScidiffError, match=r"planar has no public download.*holds planar\.npz with data\.root="):
        provide(cards.find("planar"))
