"""Interactions of users and items by relation (bought, put in the cart, viewed), and the figures of a ranking.

A relation is a list of distinct (user, item) pairs, int64 [n, 2]. A data set is an `.npz` archive with one integer
array [n, 2] per relation, `test` [m, 2] and `shape` = (users, items).

Recall@k and NDCG@k rank every item that the user has no training pair with in the target relation:

    recall = |top k and held| / |held|,   NDCG = sum_(hits at rank r = 0, 1, ...) 1 / log2(r + 2) / ideal

per user with at least one held pair; no item is left out and none is sampled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from scidiff.core.errors import UsageError, nearest
from scidiff.core.run import uniform
from scidiff.store import cards, fetch


@dataclass(frozen=True)
class Interactions:
    """Numbers of users and items, the pairs of each relation and the pairs of the test."""

    users: int
    items: int
    relations: Mapping[str, Tensor]
    test: Tensor

    def relation(self, name: str) -> Tensor:
        """The pairs of one relation; UsageError with the nearest names where there is none."""
        if name not in self.relations:
            raise UsageError(f"The interactions have no relation {name!r}.", nearest(name, self.relations))
        return self.relations[name]

    def edges(self, name: str) -> Tensor:
        """The relation as undirected edges [2, n] of one graph: users are nodes 0 .. users - 1, items follow."""
        user, item = self.relation(name).unbind(1)
        return torch.stack([user, item + self.users])

    def without(self, pairs: Tensor) -> Interactions:
        """The interactions less these pairs, in every relation."""
        gone = self.key(pairs)
        kept = {name: known[~torch.isin(self.key(known), gone)] for name, known in self.relations.items()}
        return replace(self, relations=kept)

    def key(self, pairs: Tensor) -> Tensor:
        """One number per pair, int64 [n]."""
        return pairs[:, 0] * self.items + pairs[:, 1]

    def hold_out(self, target: str, seed: int) -> tuple[Interactions, Tensor]:
        """(training part, validation pairs): one pair of `target` from each user who has at least two.

        A validation pair leaves the other relations too, as test pairs stand in none of them. Which one it is depends
        on (seed, user) alone.
        """
        pairs = self.relation(target)
        pairs = pairs[self.key(pairs).argsort()]
        count = torch.bincount(pairs[:, 0], minlength=self.users)
        first = count.cumsum(0) - count
        users = (count >= 2).nonzero()[:, 0]
        share = uniform(seed, users, "interactions.valid")[:, 0]
        valid = pairs[first[users] + (share * count[users]).long()]
        return self.without(valid), valid


def read(path: str | Path) -> Interactions:
    """The interactions of an `.npz` archive (never unpickled); a defect is one UsageError sentence."""
    import numpy as np

    file = Path(path)
    if not file.is_file():
        raise UsageError(f"The file of interactions {file} does not exist.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is no archive of plain numbers ({str(error).splitlines()[0]}).",
                         "Write it with numpy.savez.") from error
    for name in ("shape", "test"):
        if name not in found:
            raise UsageError(f"{file} holds no array {name!r}.", f"It holds {', '.join(sorted(found)) or 'nothing'}.")
    shape = found.pop("shape")
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or int(shape.min()) < 1:
        raise UsageError(f"The array 'shape' of {file} must hold the numbers of users and items.")
    users, items = (int(n) for n in shape)
    pairs = {}
    for name, value in found.items():
        if value.ndim != 2 or value.shape[1] != 2 or value.dtype.kind not in "iu":
            raise UsageError(f"The array {name!r} of {file} must hold pairs of whole numbers (user, item).")
        known = torch.from_numpy(value.astype(np.int64))
        if len(known) and (int(known.min()) < 0 or int(known[:, 0].max()) >= users or int(known[:, 1].max()) >= items):
            raise UsageError(f"The array {name!r} of {file} names users or items beyond its shape {users} x {items}.")
        pairs[name] = known.unique(dim=0)
    test = pairs.pop("test")
    if not pairs:
        raise UsageError(f"{file} holds no relation besides its test pairs.")
    return Interactions(users, items, pairs, test)


def load(name: str = "retail_rocket", root: str | Path | None = None) -> Interactions:
    """The interactions of a data card, found in `root`, SCIDIFF_DATA or the cache."""
    provided = fetch.provide(cards.find(name), root)
    if provided.reader != "interactions":
        raise UsageError(f"The data set {name!r} holds no interactions.")
    return read(next(iter(provided.files.values())))


def ranking(users: Tensor, items: Tensor, known: Tensor, held: Tensor, top: int = 20,
            chunk: int = 256) -> dict[str, Tensor]:
    """Recall and NDCG of each user with held pairs, float64 [users with held pairs] in the order of the users.

    users [U, d] and items [I, d] score a pair by their inner product; `known` pairs are left out of the ranking.
    """
    count = torch.bincount(held[:, 0], minlength=len(users))
    asked = count.nonzero()[:, 0]
    wanted = held[:, 0] * len(items) + held[:, 1]
    discount = 1.0 / (torch.arange(top, dtype=torch.float64) + 2.0).log2()
    ideal = torch.cat([torch.zeros(1, dtype=torch.float64), discount.cumsum(0)])
    place = torch.full((len(users),), -1).scatter(0, asked, torch.arange(len(asked)))
    recall, gain = [], []
    for start in range(0, len(asked), chunk):
        some = asked[start:start + chunk]
        score = users[some] @ items.T
        row = place[known[:, 0]] - start
        inside = (row >= 0) & (row < len(some))
        score[row[inside], known[inside, 1]] = -torch.inf
        best = score.topk(min(top, len(items)), 1).indices
        hit = torch.isin(some[:, None] * len(items) + best, wanted).to(torch.float64)
        recall.append(hit.sum(1) / count[some])
        gain.append((hit * discount[: hit.shape[1]]).sum(1) / ideal[count[some].clamp(max=top)])
    empty = torch.zeros(0, dtype=torch.float64)
    return {f"Recall@{top}": torch.cat([empty, *recall]), f"NDCG@{top}": torch.cat([empty, *gain])}


def popularity(data: Interactions, names: Sequence[str]) -> Tensor:
    """Scores [items, 1] that rank items by how many users they have over some relations: the floor of any method."""
    pairs = torch.cat([data.relation(name) for name in names]).unique(dim=0)
    return torch.bincount(pairs[:, 1], minlength=data.items).to(torch.float32)[:, None]
