"""Bad graph files: one clear sentence for each defect, and the graphs beside it are still read."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from scidiff.core.errors import UsageError
from scidiff.domains.graph import GraphDomain
from scidiff.domains.graph.codec import build
from scidiff.domains.graph.data import dataset, read

HEAD = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
GOOD = '<graph id="good" edgedefault="undirected"><node id="a"/><node id="b"/><edge source="a" target="b"/></graph>'
NODES = '<node id="a"/><node id="b"/>'


def graph(inner, default="undirected"):
    return f'<graph id="bad" edgedefault="{default}">{inner}</graph>'


@pytest.mark.parametrize("inner, why", [
    (graph(NODES + '<edge source="a" target="a"/>'), "the node a has an edge to itself"),
    (graph(NODES + '<edge source="a" target="b"/><edge source="b" target="a"/>'), "between a and b occurs more than"),
    (graph(NODES + '<edge source="a" target="b"/>', "directed"), "its edges are directed"),
    (graph(NODES + '<edge source="a" target="b" directed="true"/>'), "its edges are directed"),
    (graph(NODES + '<edge source="a" target="c"/>'), "names the node 'c', which the graph does not have"),
    (graph(NODES + '<edge source="a"/>'), "no source or no target"),
    (graph('<node id="a"/><node id="a"/>'), "two of its nodes are called 'a'"),
    (graph("<node/>"), "has no id"),
    (graph(NODES + '<hyperedge><endpoint node="a"/></hyperedge>'), "hyperedge"),
    (graph(f'<node id="a">{GOOD}</node>'), "graphs inside its nodes"),
    (graph(""), "it has no nodes"),
    (graph("".join(f'<node id="n{i}"/>' for i in range(41))), "41 nodes, more than 40"),
    ('<key id="k" attr.name="label"/>' + graph('<node id="a"><data key="k">x</data></node><node id="b"/>'),
     "1 of its 2 nodes have no label"),
])
def test_a_bad_graph_in_graphml_costs_that_graph_alone(inner, why, tmp_path):
    (tmp_path / "g.graphml").write_text(f"{HEAD}{inner}{GOOD}</graphml>")
    found = read(tmp_path / "g.graphml", max_nodes=40)
    assert found.names == ["good"]
    assert len(found.rejected) == 1 and why in found.rejected[0].reason
    assert found.rejected[0].where == "g.graphml, graph 1" and "\n" not in found.rejected[0].reason


BOMB = ('<?xml version="1.0"?><!DOCTYPE g [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {y} "&{x};&{x};&{x};&{x};&{x};&{x};&{x};&{x};">' for x, y in zip("abcdefgh", "bcdefghi",
                                                                                             strict=True))
        + "]><graphml>&i;</graphml>")


@pytest.mark.parametrize("text, why", [
    (f"{HEAD}{GOOD}<graph>", "not well-formed XML"),
    (f"{HEAD}{GOOD}</wrong>", "line 1"),
    ("", "not well-formed XML (no element found)"),
    ("just words", "not well-formed XML"),
    ('<svg xmlns="x"/>', "its root element is <svg>, not <graphml>"),
    (BOMB, "declares a document type"),
    ('<!DOCTYPE graphml SYSTEM "file:///etc/passwd"><graphml/>', "declares a document type"),
    ('<?xml version="1.0" encoding="no-such-code"?><graphml/>', "not well-formed XML (unknown encoding: no-such-code)"),
])
def test_malformed_graphml_costs_the_rest_of_its_file(text, why, tmp_path):
    (tmp_path / "bad.graphml").write_text(text)
    (tmp_path / "fine.graphml").write_text(f"{HEAD}{GOOD}</graphml>")
    found = read(tmp_path)
    assert found.names[-1] == "good" and len(found.rejected) == 1
    assert why in f"{found.rejected[0].where}: {found.rejected[0].reason}"


def test_a_file_without_any_usable_graph_is_one_sentence(tmp_path):
    (tmp_path / "g.graphml").write_text(f"{HEAD}{graph('')}{graph('<node/>')}</graphml>")
    with pytest.raises(UsageError, match=r"holds nothing that can be read \(2 rejected, the first: it has no nodes\)"):
        read(tmp_path / "g.graphml").require("g.graphml")
    (tmp_path / "none.graphml").write_text(f"{HEAD}</graphml>")
    with pytest.raises(UsageError, match="holds no graph"):
        read(tmp_path / "none.graphml")


ARRAYS = {"n_nodes": [2, 3], "edge_ptr": [0, 1, 3], "edges": [[0, 1], [0, 1], [1, 2]]}


def archive(**changes):
    arrays = {k: np.array(v) for k, v in {**ARRAYS, **changes}.items() if v is not None}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("changes, why", [
    ({"edges": [[0, 1], [0, 1], [2, 2]]}, "node 2 has an edge to itself"),
    ({"edges": [[0, 1], [0, 1], [1, 0]]}, "between 0 and 1 occurs more than once"),
    ({"edges": [[0, 1], [0, 1], [1, 3]]}, "joins 1 and 3, but the nodes are 0 to 2"),
    ({"n_nodes": [2, 0], "edge_ptr": [0, 3, 3], "edges": [[0, 1]] * 3}, "it has no nodes"),
    ({"n_nodes": [2, 5000], "edge_ptr": [0, 1, 3]}, "5000 nodes, more than 2000"),
])
def test_a_bad_graph_in_an_archive_costs_that_graph_alone(changes, why, tmp_path):
    (tmp_path / "g.npz").write_bytes(archive(**changes))
    found = read(tmp_path / "g.npz")
    assert found.rejected and why in found.rejected[-1].reason and "graph 1" in found.rejected[-1].where


@pytest.mark.parametrize("changes, why", [
    ({"edges": None}, "no array 'edges'"),
    ({"edges": [[0.5, 1.0]] * 3}, "does not hold whole numbers"),
    ({"edges": [0, 1, 2]}, "do not fit together"),
    ({"edge_ptr": [0, 2, 1]}, "does not cut the edges into graphs"),
    ({"edge_ptr": [0, 3]}, "do not fit together"),
    ({"n_nodes": [2, -1]}, "does not cut the edges into graphs"),
    ({"split": [0, 7]}, "other numbers than 0"),
    ({"split": [0]}, "one entry a graph"),
    ({"node_label": [1, 2]}, "one whole number a node"),
    ({"node_label": [0, 1, 2, 3, 4], "label_name": ["a", "b"]}, "does not fit its array 'label_name'"),
])
def test_a_damaged_archive_is_one_rejection(changes, why, tmp_path):
    (tmp_path / "g.npz").write_bytes(archive(**changes))
    found = read(tmp_path / "g.npz")
    assert not found.objects and why in found.rejected[0].reason


def test_pickles_and_other_files_behind_the_ending_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    stream = io.BytesIO()
    np.savez(stream, **{k: np.array(v) for k, v in ARRAYS.items() if k != "edges"},
             edges=np.array([Trap()], dtype=object))
    (tmp_path / "a.npz").write_bytes(stream.getvalue())
    (tmp_path / "b.npz").write_bytes(b"no archive")
    (tmp_path / "c.npz").write_bytes(b"")
    (tmp_path / "d.npz").write_bytes(archive()[:150])
    found = read(tmp_path)
    assert not (tmp_path / "sprung").exists()
    assert [r.reason for r in found.rejected] == [
        "it holds Python objects, which scidiff does not unpack", "it is no NumPy archive, or damaged", "it is empty",
        "it is no NumPy archive, or damaged"]


@pytest.mark.parametrize("content, why", [
    ("{", "no valid JSON"),
    ("[" * 100_000, "no valid JSON"),
    ("3", "no list of nodes"),
    ({"nodes": [{"id": 0}]}, "no list of edges or links"),
    ({"nodes": [{"id": 0}, {"id": 0}], "edges": []}, "same id"),
    ({"nodes": [{"name": 0}], "edges": []}, "no id"),
    ({"nodes": [{"id": 0}], "edges": [{"source": 0, "target": 1}]}, "joins 0 and 1, which are not both nodes"),
    ({"nodes": [{"id": 0}], "edges": [[0, 0]]}, "not both nodes"),
    ({"directed": True, "nodes": [{"id": 0}], "edges": []}, "directed"),
    ({"nodes": [{"id": 0, "label": "x"}, {"id": 1}], "edges": []}, "some of its nodes have a label"),
    ({"nodes": [{"id": "a"}], "links": [{"source": "a", "target": "a"}]}, "node a has an edge to itself"),
])
def test_bad_node_link_data(content, why, tmp_path):
    (tmp_path / "g.json").write_text(content if isinstance(content, str) else json.dumps(content))
    found = read(tmp_path / "g.json")
    assert not found.objects and why in found.rejected[0].reason


@pytest.mark.parametrize("text, why", [
    ("1 2\n2 2\n", "node 2 has an edge to itself"),
    ("1 2\n2 1\n", "between 1 and 2 occurs more than once"),
    ("a b\nb c\na b\n", "between a and b occurs more than once"),
])
def test_bad_edge_lists_name_the_nodes_and_the_remedy(text, why, tmp_path):
    (tmp_path / "g.edges").write_text(f"5 6\n\n{text}")
    found = read(tmp_path / "g.edges")
    assert len(found) == 1 and why in found.rejected[0].reason and found.rejected[0].where == "g.edges, line 3"
    assert "data.options.simplify=true" in found.rejected[0].reason
    assert len(read(tmp_path / "g.edges", simplify=True)) == 2


def test_bytes_that_are_no_text_and_half_a_gzip_file(tmp_path):
    (tmp_path / "a.edges").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.edges.gz").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "c.graphml.gz").write_bytes(b"not packed")
    reasons = [r.reason for r in read(tmp_path).rejected]
    assert reasons[0] == "it is not UTF-8 text" and all("no complete gzip file" in r for r in reasons[1:])


@pytest.mark.parametrize("tables, why", [
    ({"A": "1, 2"}, "no file <name>_graph_indicator.txt"),
    ({"A": "1, x", "graph_indicator": "1\n1"}, "no table of whole numbers"),
    ({"A": "1, 9", "graph_indicator": "1\n1"}, "belongs to no graph"),
    ({"A": "1, 2", "graph_indicator": "1\n2"}, "joins nodes of two graphs"),
    ({"A": "1, 2", "graph_indicator": "1\n1", "node_labels": "1"}, "one label a node"),
    ({"A": "1", "graph_indicator": "1\n1"}, "columns of a collection"),
])
def test_bad_collections(tables, why, tmp_path):
    with zipfile.ZipFile(tmp_path / "T.zip", "w") as packed:
        for name, text in tables.items():
            packed.writestr(f"T/T_{name}.txt", text)
    found = read(tmp_path / "T.zip")
    assert not found.objects and why in found.rejected[0].reason
    (tmp_path / "T.zip").write_bytes(b"PK nothing")
    assert "no zip file" in read(tmp_path / "T.zip").rejected[0].reason


@pytest.mark.parametrize("name, why", [
    ("missing.graphml", "does not exist"),
    ("picture.png", "is no graph file"),
    ("empty", "holds no graph file"),
    ("empty.edges", "holds no graph"),
])
def test_places_without_graphs(name, why, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.edges").write_text("# nothing\n")
    with pytest.raises(UsageError, match=why):
        read(tmp_path / name)


def test_unknown_options_splits_and_readers_get_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"no option 'max_node'\. Did you mean 'max_nodes'"):
        GraphDomain().read(tmp_path, max_node=3)
    with pytest.raises(UsageError, match=r"no split 'validation' of graphs\. Did you mean 'valid'"):
        read(tmp_path, "validation")
    with pytest.raises(UsageError, match=r"no reader 'graphfile'\. Did you mean 'graph_file'"):
        dataset({}, "graphfile", {})


@pytest.mark.parametrize("options, why", [
    ({"codec": "class"}, "no graph codec 'class'. Did you mean 'classes'"),
    ({"kind": "trees"}, "no kind of graph 'trees'. Did you mean 'tree'"),
    ({"labels": ["a", "a"]}, "without repetition"),
    ({"n_max": 2, "sizes": [0, 0, 1, 1]}, "4 entries, but the largest size is 2"),
])
def test_wrong_domain_options(options, why):
    with pytest.raises(UsageError) as caught:
        GraphDomain(**options)
    assert why in str(caught.value)


@pytest.mark.parametrize("domain, graphs, why", [
    (GraphDomain(n_max=3), [build(4, [])], "4 nodes, more than 3"),
    (GraphDomain(labels=["a"]), [build(2, [], ["a", "b"])], "label 'b' is not among a"),
    (GraphDomain(), [], "no graphs to learn from"),
    (GraphDomain(), [build(0, [])], "Graph 1 cannot be used: it has no nodes"),
    (GraphDomain(), [build(2, [], ["a", "a"]), build(2, [])], "1 of 2 graphs have no node labels"),
])
def test_a_set_that_does_not_fit_is_refused_before_training(domain, graphs, why):
    with pytest.raises(UsageError) as caught:
        domain.fit(graphs)
    assert why in str(caught.value)


def test_an_empty_reference_set_is_one_sentence(tmp_path):
    (tmp_path / "none.graphml").write_text(f"{HEAD}</graphml>")
    (tmp_path / "bad.graphml").write_text(f"{HEAD}{graph('')}</graphml>")
    for name, why in (("none", "holds no graph"), ("bad", "holds nothing that can be read")):
        with pytest.raises(UsageError, match=why):
            GraphDomain().reference(str(tmp_path / f"{name}.graphml"))
