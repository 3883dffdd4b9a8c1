"""Interactions: readers that refuse what is wrong, an honest split, and rankings equal to counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.domains.graph.interactions import Interactions, load, popularity, ranking, read

PAIRS = {"buy": [[0, 1], [0, 2], [2, 0]], "view": [[0, 1], [0, 3], [1, 3], [2, 0]], "test": [[0, 3], [1, 0]]}


def write(path, **changes):
    arrays = {**{k: np.array(v, dtype=np.uint16) for k, v in PAIRS.items()}, "shape": np.array([3, 4])}
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return path


def test_an_archive_comes_back_as_pairs_and_edges(tmp_path):
    data = read(write(tmp_path / "a.npz", buy=np.array([[2, 0], [0, 1], [0, 2], [0, 1]])))
    assert (data.users, data.items) == (3, 4)
    assert data.relation("buy").tolist() == PAIRS["buy"] and data.test.tolist() == PAIRS["test"]
    assert data.edges("buy").tolist() == [[0, 0, 2], [4, 5, 3]]
    with pytest.raises(UsageError, match="no relation 'views'"):
        data.relation("views")


@pytest.mark.parametrize("changes, sentence", [
    ({"test": None}, "holds no array 'test'"),
    ({"shape": None}, "holds no array 'shape'"),
    ({"shape": np.array([3])}, "numbers of users and items"),
    ({"shape": np.array([3, 0])}, "numbers of users and items"),
    ({"buy": np.array([[0.5, 1.0]])}, "'buy' .* pairs of whole numbers"),
    ({"view": np.array([1, 2])}, "'view' .* pairs of whole numbers"),
    ({"buy": np.array([[3, 0]])}, "'buy' .* beyond its shape 3 x 4"),
    ({"test": np.array([[-1, 0]])}, "'test' .* beyond its shape"),
    ({"buy": None, "view": None}, "no relation besides"),
    ({"buy": np.array([{"a": 1}], dtype=object)}, "no archive of plain numbers"),
])
def test_a_wrong_archive_is_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        read(write(tmp_path / "a.npz", **changes))
    assert "\n" not in str(caught.value)


def test_what_is_no_archive(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "c.npz").write_text("user,item\n")
    for name in ("b.npz", "c.npz"):
        with pytest.raises(UsageError, match="no archive of plain numbers"):
            read(tmp_path / name)


def test_the_card_finds_the_file_in_a_folder_and_says_when_there_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv("SCIDIFF_DATA", raising=False)
    monkeypatch.setenv("SCIDIFF_HOME", str(tmp_path / "cache"))
    write(tmp_path / "retail_rocket.npz")
    assert load(root=tmp_path).items == 4
    with pytest.raises(ScidiffError, match="no public download"):
        load()
    with pytest.raises(UsageError, match="holds no interactions"):
        load("ks22")


def test_the_staged_set_has_the_counts_of_its_card(data):
    from scidiff.store import cards

    found, splits = load(root=data / "graph"), cards.find("retail_rocket").splits
    assert {name: len(pairs) for name, pairs in found.relations.items()} == {n: splits[n] for n in found.relations}
    assert len(found.test) == splits["test"] and (found.users, found.items) == (2174, 30113)
    train, valid = found.hold_out("buy", 0)
    assert len(valid) == 885
    for name, pairs in train.relations.items():
        assert not torch.isin(found.key(pairs), found.key(valid)).any()
        assert not torch.isin(found.key(pairs), found.key(found.test)).any(), name
        assert len(found.relation(name)) - len(pairs) <= 885


def random_interactions(users=40, items=25, count=300, seed=0):
    g = torch.Generator().manual_seed(seed)
    pairs = torch.stack([torch.randint(users, (count,), generator=g), torch.randint(items, (count,), generator=g)], 1)
    return Interactions(users, items, {"buy": pairs.unique(dim=0), "view": pairs[::2].unique(dim=0)}, pairs[:0])


def test_one_pair_leaves_each_user_with_two_and_depends_on_seed_and_user_alone():
    data = random_interactions(count=70)
    train, valid = data.hold_out("buy", 3)
    before = torch.bincount(data.relation("buy")[:, 0], minlength=40)
    after = torch.bincount(train.relation("buy")[:, 0], minlength=40)
    assert torch.equal(before - after, (before >= 2).long())
    assert torch.equal(valid[:, 0], (before >= 2).nonzero()[:, 0])
    assert set(data.key(valid).tolist()) <= set(data.key(data.relation("buy")).tolist())
    assert not set(data.key(valid).tolist()) & set(data.key(train.relation("view")).tolist())
    shuffled = Interactions(40, 25, {n: p.flip(0) for n, p in data.relations.items()}, data.test)
    assert torch.equal(shuffled.hold_out("buy", 3)[1], valid)
    assert not torch.equal(data.hold_out("buy", 4)[1], valid)


def test_a_held_pair_is_any_of_the_users_pairs_alike():
    pairs = torch.stack([torch.arange(3000).repeat_interleave(3), torch.tensor([4, 1, 7]).repeat(3000)], 1)
    valid = Interactions(3000, 8, {"buy": pairs}, pairs[:0]).hold_out("buy", 0)[1]
    counts = torch.bincount(valid[:, 1], minlength=8)[[1, 4, 7]]
    assert int(counts.sum()) == 3000
    assert float((counts - 1000).abs().max()) < 4 * math.sqrt(3000 * (1 / 3) * (2 / 3))


@pytest.mark.parametrize("top", [1, 5, 20, 40])
def test_ranking_equals_counting_by_hand(top):
    g = torch.Generator().manual_seed(1)
    data = random_interactions()
    users, items = torch.randn(40, 6, generator=g), torch.randn(25, 6, generator=g)
    _, held = random_interactions(count=180, seed=2).hold_out("buy", 0)
    held = torch.cat([held, random_interactions(count=60, seed=4).relation("buy")]).unique(dim=0)
    held = held[~torch.isin(data.key(held), data.key(data.relation("buy")))]
    found = ranking(users, items, data.relation("buy"), held, top, chunk=7)
    known = {u: set() for u in range(40)}
    wanted = {u: set() for u in range(40)}
    for table, pairs in ((known, data.relation("buy")), (wanted, held)):
        for u, i in pairs.tolist():
            table[u].add(i)
    recall, gain = [], []
    for u in range(40):
        if wanted[u]:
            open_ = [i for i in range(25) if i not in known[u]]
            best = sorted(open_, key=lambda i, u=u: -float(users[u] @ items[i]))[:top]
            hits = [1 / math.log2(r + 2) for r, i in enumerate(best) if i in wanted[u]]
            recall.append(len(hits) / len(wanted[u]))
            gain.append(sum(hits) / sum(1 / math.log2(r + 2) for r in range(min(len(wanted[u]), top))))
    assert len(recall) > 20
    torch.testing.assert_close(found[f"Recall@{top}"], torch.tensor(recall, dtype=torch.float64))
    torch.testing.assert_close(found[f"NDCG@{top}"], torch.tensor(gain, dtype=torch.float64))


def test_a_perfect_ranking_is_one_and_popularity_counts_users():
    data = random_interactions()
    held = torch.tensor([[3, 4], [5, 6]])
    users, items = torch.zeros(40, 2), torch.zeros(25, 2)
    users[3, 0] = users[5, 1] = items[4, 0] = items[6, 1] = 1.0
    found = ranking(users, items, held[:0], held)
    assert found["Recall@20"].tolist() == [1.0, 1.0] and found["NDCG@20"].tolist() == [1.0, 1.0]
    assert ranking(users, items, held, held)["Recall@20"].tolist() == [0.0, 0.0]  # known pairs are not recommended
    liked = popularity(data, ["buy", "view"])[:, 0]
    assert liked.tolist() == [float((data.relation("buy")[:, 1] == i).sum()) for i in range(25)]
