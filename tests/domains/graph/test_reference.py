"""Reference sets: what ships, what is built on the spot, what survives the disk, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

networkx = pytest.importorskip("networkx", reason="networkx is not installed")

from scidiff.core.errors import ScidiffError, UsageError  # noqa: E402
from scidiff.domains.graph import distances, isomorphism, topology  # noqa: E402
from scidiff.domains.graph import reference as references  # noqa: E402
from scidiff.domains.graph.data import read  # noqa: E402
from scidiff.store import cards  # noqa: E402

TRAIN = [networkx.gnp_random_graph(n, 0.3, seed=n) for n in range(5, 15)]
TEST = [networkx.gnp_random_graph(n, 0.3, seed=50 + n) for n in range(5, 11)]
SIZES = {"comm20": (20, 64), "planar": (40, 128), "sbm": (40, 128), "tree": (40, 128), "enzymes": (117, 470),
         "ego_small": (40, 160), "community_small": (20, 80), "grid": (20, 80)}


def test_floors_are_means_over_draws_of_training_graphs():
    found = references.build("toy", TEST, TRAIN, protocol="gdss")
    kernels = distances.PROTOCOLS["gdss"]
    test = topology.features(*topology.padded(TEST))
    assert set(found.floors) == set(kernels)
    for name, kernel in kernels.items():
        whole = distances.grams({name: kernel}, topology.features(*topology.padded(TRAIN)), test)[name].mmd2()
        left_out = []
        for k in range(len(TRAIN)):
            rest = topology.features(*topology.padded(TRAIN[:k] + TRAIN[k + 1:]))
            left_out.append(distances.grams({name: kernel}, rest, test)[name].mmd2())
        assert found.floors[name]["whole"] == pytest.approx(whole, abs=1e-12)
        assert found.floor(name, 10) == pytest.approx(whole, abs=1e-12)
        assert found.floor(name, 9) == pytest.approx(np.mean(left_out), abs=1e-12)
        assert found.floors[name]["draws"] == pytest.approx(found.floor(name, 6), abs=0.6 * found.floor(name, 6))
        assert found.floors[name]["draws_size"] == 6


def test_reference_survives_the_disk(tmp_path):
    made = references.build("toy", TEST, TRAIN, kind="planar", meta={"part": "test"})
    back = references.find(str(references.save(made, tmp_path / "kept.npz")))
    assert (back.name, back.protocol, back.kind, back.title) == ("toy", "spectre", "planar", "toy test (6)")
    assert np.array_equal(back.hashes, made.hashes) and np.array_equal(back.nodes, made.nodes)
    for name, rows in made.features.items():
        assert np.allclose(back.features[name], rows, atol=1e-12)
    assert back.floors == made.floors and back.shares == made.shares
    hashes = isomorphism.hashes(*topology.padded([TRAIN[4], networkx.path_graph(30)]))
    assert back.known(hashes).tolist() == [True, False]
    assert back.degrees.sum() == pytest.approx(1.0)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "kept.npz").read_bytes()[:2000])
    with pytest.raises(ScidiffError, match="damaged"):
        references.load(tmp_path / "cut.npz")


def test_reference_from_a_file_of_graphs(tmp_path):
    for k, graph in enumerate(TEST):
        networkx.write_graphml(graph, tmp_path / f"{k}.graphml")
    found = references.find(str(tmp_path))
    assert found.count == len(TEST) and not found.floors and found.floor("degree", 3) is None
    assert found.meta["part"] == "all" and found.training() is None
    expected = references.build("x", TEST).features
    order = np.argsort(found.nodes)
    for name, rows in expected.items():
        assert np.allclose(found.features[name][order], rows)


def test_unknown_names_and_empty_sets():
    with pytest.raises(UsageError, match="'planar'"):
        references.find("plannar")
    with pytest.raises(UsageError, match="at least one graph"):
        references.build("empty", [networkx.empty_graph(0)])


@pytest.mark.parametrize("name", sorted(references.PUBLISHED))
def test_shipped_references(name, root):
    found = references.find(name)
    assert (found.count, found.meta["train_count"]) == SIZES[name]
    assert (found.protocol, found.kind) == references.PUBLISHED[name]
    assert set(found.floors) == set(found.kernels) and set(found.features) >= set(found.kernels)
    assert len(found.hashes) <= SIZES[name][1] and (np.diff(found.hashes.astype(object)) > 0).all()
    for rows in (found.features["degree"], found.features["clustering"], found.features["spectrum"]):
        assert np.array_equal(rows.sum(1), found.nodes)
    for metric, floor in found.floors.items():
        assert found.floor(metric, found.meta["train_count"]) == pytest.approx(floor["whole"], abs=1e-12)
        assert abs(floor["draws"] - found.floor(metric, found.count)) <= floor["draws_std"] + 1e-9


def test_all_shipped_references_are_small(root):
    assert sum((root / "datasets" / name / "reference.npz").stat().st_size for name in references.PUBLISHED) < 600_000


@pytest.mark.parametrize("name", ["community_small", "ego_small", "tree"])
def test_shipped_references_are_made_again_from_the_staged_sets(name, data, tmp_path, capsys):
    references.main([name, str(data / "graph" / f"{name}.npz"), str(tmp_path / "again.npz")])
    assert "training graphs" in capsys.readouterr().out
    again, shipped = references.load(tmp_path / "again.npz"), references.find(name)
    assert np.array_equal(again.hashes, shipped.hashes) and again.meta == shipped.meta
    for metric, rows in shipped.features.items():
        # rounding of another machine may move a value to the next bin
        assert np.abs(again.features[metric] - rows).sum() <= 2
    for metric, floor in shipped.floors.items():
        assert again.floors[metric] == pytest.approx(floor, rel=1e-6, abs=1e-6)
    assert again.shares == shipped.shares


@pytest.mark.parametrize(
    ("name", "degree", "clustering"),
    [("ego_small", (0.020, 0.006), (0.048, 0.020)), ("enzymes", (0.010, 0.002), (0.108, 0.012)),
     ("community_small", (0.046, 0.047), (0.027, 0.018)), ("grid", (0.0002, 0.0001), (0.0, 0.0))],
)
def test_floors_agree_with_an_independent_measurement(name, degree, clustering):
    """Five draws of another implementation, mean and spread: ours lie within three standard errors of such a mean."""
    found = references.find(name)
    for metric, (mean, spread) in (("degree", degree), ("clustering", clustering)):
        error = max(spread, found.floors[metric]["draws_std"]) / 5**0.5
        assert found.floor(metric, found.count) == pytest.approx(mean, abs=3 * error + 5e-5)


def test_known_overlap_of_the_small_sets():
    assert references.find("ego_small").shares["novel"] == 12 / 40  # 28 test graphs are training graphs
    assert references.find("community_small").shares["novel"] == 0.5


def test_training_graphs_are_found_where_training_finds_them(data, monkeypatch):
    if "tree" not in cards.names():
        pytest.skip("the data set has no card yet")
    monkeypatch.setenv("SCIDIFF_DATA", str(data))
    found = references.find("tree")
    graphs = found.training()
    assert graphs is not None and len(graphs) == 128
    assert np.isin(isomorphism.hashes(*topology.padded(graphs)), found.hashes).all()
    other = references.Reference("tree", "spectre", "tree", found.nodes, found.features, found.hashes[:-1])
    assert other.training() is None  # another set of the same name
    test = read(data / "graph" / "tree.npz", "test").objects
    assert references.build("tree", test).features["degree"].tolist() == found.features["degree"].tolist()
