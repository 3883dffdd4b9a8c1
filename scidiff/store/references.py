"""What to cite: BibTeX entries of the methods, data and tools that a resolved config uses.

`references.yaml` maps a key to `bibtex` and `when`: patterns (shell style, without regard to case) over the
lines `path.to.key=value` of the flattened config. An entry is used where one pattern matches, where the
config names its key in `references: [...]`, where the card of `data.name` cites it, or where it is passed
in `extra`.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scidiff.core.errors import UsageError, nearest
from scidiff.store import cards
from scidiff.store.atomic import read_yaml

_FILE = Path(__file__).with_name("references.yaml")


def collect(config: Mapping[str, Any], extra: Iterable[str] = ()) -> str:
    """BibTeX text of everything that the resolved config uses, in the order of the file."""
    entries = _entries()
    wanted = set(extra) | set(_named(config)) | set(_cited_by_data(config))
    for key in sorted(wanted - entries.keys()):
        raise UsageError(f"There is no reference {key!r}.", nearest(key, entries))
    lines = "\n".join(_flatten(config)).lower().split("\n")
    for key, entry in entries.items():
        if any(fnmatch.filter(lines, pattern.lower()) for pattern in entry.get("when", ())):
            wanted.add(key)
    return "\n\n".join(entry["bibtex"].strip() for key, entry in entries.items() if key in wanted) + "\n"


def keys() -> list[str]:
    """Every key that `references:` and data cards may use."""
    return list(_entries())


@functools.cache
def _entries() -> dict[str, dict[str, Any]]:
    return read_yaml(_FILE, "reference list")


def _named(config: Mapping[str, Any]) -> list[str]:
    given = config.get("references") or []
    return [given] if isinstance(given, str) else list(given)


def _cited_by_data(config: Mapping[str, Any]) -> tuple[str, ...]:
    data = config.get("data")
    name = data.get("name") if isinstance(data, Mapping) else data
    return cards.find(name).citation if isinstance(name, str) and name in cards.names() else ()


def _flatten(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _flatten(value, path)
    elif node is not None and node is not False:
        yield f"{path}={node}".replace("\n", " ")
