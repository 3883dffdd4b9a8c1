"""Where a reference set is looked for, alike in all domains that judge samples against one.

In this order: the file of statistics that is shipped with a data set (`datasets/<name>/reference.npz`), a file of
statistics, a file or folder of samples, and a data set that is described but has no shipped file. A file of statistics
belongs to a domain when it holds the arrays that this domain stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from scidiff.core.errors import UsageError, nearest
from scidiff.store import arrays, cards
from scidiff.store.locate import shared_folder

R = TypeVar("R")


class Search(Generic[R]):
    """domain, plural: "graph", "graphs". marks: arrays that tell its files of statistics from those of others.

    load reads a file of statistics; of_samples makes a reference of a file or folder; of_set of a described data set
    (None: only data sets with a shipped file can be named).
    """

    def __init__(self, domain: str, plural: str, marks: Sequence[str], load: Callable[[Path], R],
                 of_samples: Callable[[Path], R], of_set: Callable[[str], R] | None = None) -> None:
        self.domain, self.plural, self.marks = domain, plural, tuple(marks)
        self.load, self.of_samples, self.of_set = load, of_samples, of_set

    def __call__(self, name: str) -> R:
        """UsageError with the nearest known name where there is none of this name."""
        files = shared_folder("datasets").glob("*/reference.npz")
        shipped = {file.parent.name: file for file in files if arrays.holds(file, *self.marks)}
        if name in shipped:
            return self.load(shipped[name])
        path = Path(name)
        if path.suffix == ".npz" and path.is_file() and arrays.holds(path, *self.marks):
            return self.load(path)
        if path.exists():
            return self.of_samples(path)
        described = [n for n in cards.names() if cards.find(n).domain == self.domain] if self.of_set else []
        if name not in described or self.of_set is None:
            raise UsageError(f"There is no reference set of {self.plural} {name!r}.",
                             nearest(name, {*shipped, *described}))
        return self.of_set(name)
