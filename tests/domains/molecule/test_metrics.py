"""Figures of a set: intervals, identities, floors, and what is said where something cannot be computed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from scidiff.core.errors import ScidiffError, UsageError

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")

from scidiff.domains.molecule import MoleculeDomain, chemistry, chemnet  # noqa: E402
from scidiff.domains.molecule import reference as references  # noqa: E402
from scidiff.domains.molecule.data import read_table  # noqa: E402
from scidiff.domains.molecule.metrics import metrics, unique_interval, wilson  # noqa: E402

TRAIN = ["CCO", "CCN", "CCC", "CC=O", "C1CC1", "CCF", "COC", "CNC", "C#N", "CC#N", "c1ccoc1", "OCCO"]
TEST = ["CCCO", "CCCN", "CC(C)O", "C1CCC1", "CCC=O", "COCC", "c1ccncc1", "CC(N)=O"]


def _molecules(smiles):
    return [Chem.MolFromSmiles(s) for s in smiles]


def _raw(smiles):
    return [chemistry.finished(Chem.MolFromSmiles(s, sanitize=False)) for s in smiles]


@pytest.fixture(scope="module")
def reference():
    return references.build("toy", _molecules(TEST), _molecules(TRAIN), {"part": "test"})


def _by_name(molecules, reference=None):
    verdicts = MoleculeDomain().check(molecules)
    return {m.name: m for m in metrics(molecules, verdicts, reference)}


def test_wilson_solves_its_equation():
    for k, n in ((0, 10), (3, 10), (10, 10), (997, 1000)):
        for bound in wilson(k, n):
            if 0.0 < bound < 1.0:  # (p - k/n)^2 = z^2 p (1 - p) / n
                assert (bound - k / n) ** 2 == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / n)
    assert wilson(0, 0) == (0.0, 1.0)


def test_unique_interval_is_the_jackknife():
    counts = Counter({"a": 3, "b": 1, "c": 1, "d": 2})
    n, theta = 7, 4 / 7
    left_out = [(4 - (counts[s] == 1)) / (n - 1) for s in counts.elements()]
    error = np.sqrt((n - 1) / n * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    low, high = unique_interval(counts)
    assert high - theta == pytest.approx(1.959963984540054 * error)
    assert theta - low == pytest.approx(1.959963984540054 * error)


def test_shares_of_a_known_set(reference):
    smiles = ["CCO", "OCC", "CCCC", "C.C", "C[N](C)(C)C", "CCF", "C(C)(C)(C)(C)C", "CCCCO"]
    found = _by_name(_raw(smiles), reference)
    assert found["valid"].value == 6 / 8
    assert found["connected"].value == 5 / 8
    assert (found["unique"].value, found["unique"].count) == (5 / 6, 6)
    assert (found["novel"].value, found["novel"].count) == (3 / 5, 5)  # CCO and CCF are training molecules
    for metric in found.values():
        if metric.interval and metric.value is not None:
            assert metric.interval[0] <= metric.value <= metric.interval[1]


def test_the_test_set_scores_zero_and_floors_are_theirs(reference):
    found = _by_name(_molecules(TEST), reference)
    assert found["NSPDK MMD"].value == pytest.approx(0.0, abs=1e-12)
    for name in chemistry.PROPERTIES:
        assert found[f"{name} W1"].value == pytest.approx(0.0, abs=1e-12)
    trained = _by_name(_molecules(TRAIN), reference)
    assert trained["novel"].value == 0.0
    assert trained["Morgan-count MMD^2"].value == pytest.approx(reference.floors["morgan"])
    # all training molecules: their own distance, without the term of a finite draw
    assert trained["NSPDK MMD"].value == pytest.approx(reference.floors["nspdk"]["distance"])


def test_biased_floor_is_the_expectation_over_draws(reference):
    chance = np.random.default_rng(0)
    draws = [[TRAIN[i] for i in chance.integers(0, len(TRAIN), 5)] for _ in range(300)]
    from scidiff.domains.molecule.fingerprints import mmd_biased
    from scidiff.domains.molecule.nspdk import nspdk_rows

    rows = nspdk_rows(_molecules(TRAIN))
    each = rows.mean()
    values = [mmd_biased(nspdk_rows(_molecules(d)), reference.nspdk) for d in draws]
    # draws with replacement: |mu|^2 is the plain mean, while the stored self term leaves out equal pairs
    gap = each - reference.nspdk.mean
    expected = float(gap @ gap) + (1 - float(each @ each)) / 5
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / 300**0.5)
    stored = reference.floors["nspdk"]
    assert stored["distance"] == pytest.approx(float(gap @ gap))
    n = len(TRAIN)
    assert stored["self"] == pytest.approx((n * float(each @ each) - 1) / (n - 1))


def test_reference_survives_the_disk(reference, tmp_path):
    back = references.load(references.save(reference, tmp_path / "reference.npz"))
    assert np.array_equal(back.hashes, reference.hashes)
    assert back.morgan.mean == pytest.approx(reference.morgan.mean, abs=1e-7)
    assert back.floor("nspdk", 100) == reference.floor("nspdk", 100)
    assert back.known(chemistry.stable_hash(["CCO", "CCCCCC"])).tolist() == [True, False]
    whole = (tmp_path / "reference.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:1000])
    with pytest.raises(ScidiffError, match="damaged"):
        references.load(tmp_path / "cut.npz")


def test_reference_from_a_file_and_unknown_names(tmp_path):
    (tmp_path / "mine.smi").write_text("\n".join(TEST), encoding="utf-8")
    found = references.find(str(tmp_path / "mine.smi"))
    assert found.morgan.count == len(TEST) and found.floor("morgan", 10) is None
    with pytest.raises(UsageError, match="qm9"):
        references.find("qm8")


def test_shipped_reference_agrees_with_real_molecules(data):
    found = references.find("qm9")
    assert len(found.hashes) == 120732
    train = read_table(data / "graph" / "qm9_smiles.csv.gz", "train", limit=300).objects
    assert found.known(chemistry.stable_hash(chemistry.canonical(m) for m in train)).all()
    assert 0 < found.floor("nspdk", 10000) < found.floor("nspdk", 1000) < 1.1e-3
    assert abs(found.floor("morgan", 10000)) < 1e-4


def test_wasserstein_of_a_shift():
    values = np.random.default_rng(0).normal(size=5000)
    assert references.wasserstein(values + 0.7, references.quantiles(values)) == pytest.approx(0.7)


def test_empty_set_and_all_invalid():
    with pytest.raises(UsageError, match="no molecules"):
        _by_name([])
    found = _by_name(_raw(["C[N](C)(C)C"]))
    assert found["valid"].value == 0.0 and set(found) == {"valid", "connected"}


def test_fcd_says_why_it_is_absent(reference, monkeypatch):
    monkeypatch.setattr(chemnet, "find_spec", lambda name: None)
    row = _by_name(_molecules(TEST), reference)["FCD"]
    assert row.value is None and "pip install fcd" in row.note


def test_frechet_of_gaussians_that_commute():
    chance = np.random.default_rng(0)
    basis = np.linalg.qr(chance.normal(size=(5, 5)))[0]
    a, b, gap = chance.random(5) + 0.1, chance.random(5) + 0.1, chance.normal(size=5)
    left = chemnet.Activations(gap, basis @ np.diag(a) @ basis.T, 10)
    right = chemnet.Activations(np.zeros(5), basis @ np.diag(b) @ basis.T, 10)
    assert chemnet.frechet(left, right) == pytest.approx(gap @ gap + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_frechet_error_matches_simulation():
    chance = np.random.default_rng(1)
    reference = chemnet.Activations(np.full(4, 0.5), np.diag([1.0, 2.0, 0.5, 1.0]), 10**6)
    draws = [chance.normal(size=(400, 4)) for _ in range(200)]
    spread = np.std([chemnet.frechet(chemnet.Activations.of(d), reference) for d in draws])
    told = np.mean([chemnet.frechet_error(d, reference) for d in draws[:50]])
    assert told == pytest.approx(spread, rel=0.2)
