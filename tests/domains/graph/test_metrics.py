"""Figures of a set: identities, shares, floors, intervals, repeats; and which graphs count as the same."""

from __future__ import annotations

import numpy as np
import pytest

networkx = pytest.importorskip("networkx", reason="networkx is not installed")

from scidiff.core.errors import UsageError  # noqa: E402
from scidiff.domains.graph import isomorphism, topology  # noqa: E402
from scidiff.domains.graph import metrics as figures  # noqa: E402
from scidiff.domains.graph import reference as references  # noqa: E402
from scidiff.domains.graph.metrics import metrics  # noqa: E402
from scidiff.domains.graph.validity import check  # noqa: E402

TRAIN = [networkx.random_labeled_tree(n, seed=n) for n in range(8, 20)]
TEST = [networkx.random_labeled_tree(n, seed=100 + n) for n in range(8, 16)]
PROTOCOLS = {"gdss": "mean MMD^2", "spectre": "ratio", "spectre_emd": "ratio"}


def _shuffled(graph, seed):
    order = np.random.default_rng(seed).permutation(len(graph)).tolist()
    return networkx.relabel_nodes(graph, dict(enumerate(order)))


def _reference(protocol="spectre", kind="tree"):
    return references.build("toy", TEST, TRAIN, protocol=protocol, kind=kind, meta={"part": "test"})


def _by_name(graphs, reference=None, kind="", seed=0):
    return {m.name: m for m in metrics(graphs, [check(g, kind) for g in graphs], reference, seed)}


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_the_test_set_scores_zero_and_its_shares_are_the_floors(protocol):
    found = _by_name(TEST, _reference(protocol))
    last = PROTOCOLS[protocol]
    distances = [m for m in found.values() if m.name.endswith("MMD^2") or m.name == "ratio"]
    assert len(distances) == (5 if protocol == "gdss" else 6) and last in found
    for row in distances:
        assert row.value == pytest.approx(0.0, abs=1e-12), row.name
        assert row.interval[0] <= row.value <= row.interval[1]
        assert row.floor is not None and row.reference == "toy test (8)" and row.count == 8
    for name in ("valid", "connected", "unique", "novel", "V.U.N."):
        assert found[name].value == found[name].floor
    for name in ("nodes", "edges"):
        assert found[name].value == found[name].floor


def test_training_graphs_score_their_floor_and_are_not_new():
    reference = _reference()
    found = _by_name([_shuffled(g, 0) for g in TRAIN], reference)
    assert found["novel"].value == found["V.U.N."].value == 0.0
    assert "hashes" in found["novel"].note and found["novel"].reference == "toy train (12)"
    for name, floor in reference.floors.items():
        row = found[f"{name} MMD^2"]
        # more graphs than the test set: the mean over all choices of eight, which is what the floor is
        assert row.value == pytest.approx(row.floor, abs=1e-12)
        assert "n = 8 of 12" in row.protocol and f"{floor['draws']:.4f}" in row.note
    assert found["ratio"].value == pytest.approx(found["ratio"].floor)


def test_as_many_graphs_as_the_test_set_score_the_plain_mmd():
    from scidiff.domains.graph import distances

    reference = _reference()
    found = _by_name(TRAIN[:8], reference)
    rows = topology.features(*topology.padded(TRAIN[:8]))
    grams = distances.grams(reference.kernels, rows, reference.features)
    for name, gram in grams.items():
        assert found[f"{name} MMD^2"].value == pytest.approx(gram.mmd2(), abs=1e-14)
    bases = {name: known["whole"] for name, known in reference.floors.items()}
    used = [n for n in bases if round(bases[n], 4) > 0]
    expected = np.mean([grams[n].mmd2() / bases[n] for n in used])
    assert used and found["ratio"].value == pytest.approx(expected)


def test_shares_of_a_known_set():
    path, cycle = networkx.path_graph(9), networkx.cycle_graph(9)
    broken = networkx.disjoint_union(networkx.path_graph(4), networkx.path_graph(5))
    star = networkx.star_graph(9)
    graphs = [path, _shuffled(path, 1), cycle, broken, networkx.empty_graph(0), _shuffled(TRAIN[3], 2), star, TRAIN[3]]
    found = _by_name(graphs, _reference())
    assert found["valid"].value == 5 / 8  # both paths, both training trees, the star
    assert found["connected"].value == 6 / 8
    assert found["unique"].value == 6 / 8
    assert found["novel"].value == 6 / 8
    assert found["V.U.N."].value == 2 / 8  # one path and the star
    assert found["V.U.N."].interval[0] < 0.25 < found["V.U.N."].interval[1]
    assert "8 graphs at once" in found["V.U.N."].note
    assert "without 1 graphs that have no nodes" in found["degree MMD^2"].note
    assert found["degree MMD^2"].count == 7


def test_the_reference_demands_its_kind_and_the_verdicts_are_kept():
    graphs = [networkx.path_graph(8), networkx.cycle_graph(8)]
    assert _by_name(graphs, _reference(kind=""))["valid"].value == 1.0
    assert _by_name(graphs, _reference(kind="tree"))["valid"].value == 0.5
    assert _by_name(graphs, _reference(kind="tree"), kind="planar")["valid"].value == 0.5
    assert _by_name(graphs, kind="tree")["valid"].value == 0.5


def test_without_a_reference():
    found = _by_name([networkx.path_graph(3), networkx.path_graph(5)])
    assert list(found) == ["valid", "connected", "unique", "nodes", "edges"]
    assert found["nodes"].value == 4.0 and found["edges"].value == 3.0 and found["nodes"].floor is None
    assert found["nodes"].better == ""
    assert _by_name([networkx.path_graph(3)])["nodes"].interval is None


def test_nothing_to_measure():
    with pytest.raises(UsageError, match="no graphs"):
        metrics([], [])
    found = _by_name([networkx.empty_graph(0)], _reference())
    assert found["valid"].value == 0.0 and found["V.U.N."].value == 0.0
    assert found["degree MMD^2"].value is None and "no graph has nodes" in found["degree MMD^2"].note


def test_intervals_repeat_with_the_seed():
    reference = _reference()
    one, same, other = (_by_name(TRAIN[:6], reference, seed=s)["spectrum MMD^2"].interval for s in (0, 0, 1))
    assert one == same != other


def test_two_hundred_graphs_are_five_repeats(monkeypatch):
    monkeypatch.setattr(figures, "REPEAT", 3)
    path, star, train = networkx.path_graph(9), networkx.star_graph(9), TRAIN[0]
    graphs = [path, path, star] * 5 + [train] * 4
    found = _by_name(graphs, _reference())
    assert found["unique"].value == 2 / 3 and found["unique"].count == 15  # paths of other repeats do not count
    assert found["V.U.N."].value == 2 / 3 and "5 repeats of 3, 66.7 ± 0.0 %" in found["V.U.N."].note
    assert found["novel"].count == 19


def test_a_reference_without_training_graphs_has_no_floor():
    found = _by_name(TRAIN[:4], references.build("mine", TEST))
    assert "novel" not in found and found["degree MMD^2"].floor is None and "no floor" in found["degree MMD^2"].note
    assert found["ratio"].value is None and "no training graphs" in found["ratio"].note


def test_equal_hashes_are_checked_where_the_training_graphs_are_at_hand(monkeypatch):
    reference = _reference()
    monkeypatch.setattr(references.Reference, "training", lambda self: TRAIN)
    monkeypatch.setattr(isomorphism, "_total", lambda colour: np.uint64(7))  # every hash collides
    everything = references.build("toy", TEST, TRAIN, kind="tree")
    found = _by_name([networkx.path_graph(9), _shuffled(TRAIN[1], 4)], everything)
    assert found["novel"].value == 0.5 and found["novel"].note == ""
    assert found["unique"].value == 1.0
    assert len(reference.hashes) == 12 and len(everything.hashes) == 1


def test_hashes_and_classes_separate_all_graphs_of_up_to_seven_nodes():
    from networkx.generators.atlas import graph_atlas_g

    graphs = graph_atlas_g()[1:]
    found = isomorphism.hashes(*topology.padded(graphs))
    assert len(set(found.tolist())) == len(graphs) == 1252
    some = graphs[::25]
    again = isomorphism.hashes(*topology.padded([_shuffled(g, 1) for g in some]))
    assert again.tolist() == found[::25].tolist()
    both = isomorphism.classes([*some, *(_shuffled(g, 2) for g in some)])
    assert both.labels.tolist() == [*range(len(some))] * 2 and both.undecided == 0


def test_graphs_that_refinement_cannot_tell_apart():
    square = [(i, j) for i in range(4) for j in range(4)]
    rook = networkx.Graph([(a, b) for a in square for b in square if (a[0] == b[0]) != (a[1] == b[1])])
    shrikhande = networkx.Graph()
    for i, j in square:
        for a, b in ((0, 1), (1, 0), (1, 1)):
            shrikhande.add_edge((i, j), ((i + a) % 4, (j + b) % 4))
    rook, shrikhande = (networkx.convert_node_labels_to_integers(g) for g in (rook, shrikhande))
    assert isomorphism.isomorphic(rook, shrikhande) is False
    ring = networkx.circulant_graph(40, [1, 9])
    assert isomorphism.isomorphic(ring, _shuffled(ring, 3)) is True
    assert isomorphism.isomorphic(ring, _shuffled(ring, 3), trials=5) is None
    open_pair = isomorphism.classes([ring, _shuffled(ring, 3)], trials=5)
    assert open_pair.labels.tolist() == [0, 0] and open_pair.undecided == 1
