"""Data cards: where a data set comes from, under which licence, how it is split, and who reads it.

`datasets/<name>/card.yaml` holds

    name, title, task, domain     what it is and which domain reads it
    source                        list of {url, name, sha256, size}, or one url; schemes below
    sha256, size                  of the file where `source` is one url; null sha256 = pinned on first use
    licence, citation             licence text; keys of scidiff/store/references.yaml
    splits, units, notes          counts and rule of the split; unit of each quantity; what one should know
    layouts                       list of {reader, files, options}: sets of files that suffice, best first;
                                  also what a folder given by `data.root=` or SCIDIFF_DATA may hold

Schemes: `https://...` (plain `http://` on this machine only, for tests), `package://<import name>/<path
inside it>` for files that a dependency carries, `generate://<name>?<options>` for data made by an equation
or a generator.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.store.atomic import read_yaml
from scidiff.store.locate import shared_folder
from scidiff.store.targets import plugin_packages

_REQUIRED = ("name", "title", "task", "domain", "source", "licence", "layouts")
_OPTIONAL = ("sha256", "size", "citation", "splits", "units", "normalisation", "notes")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Source:
    """One file (or generator) and what is known about it; `size` in bytes."""

    url: str
    name: str
    sha256: str | None = None
    size: int | None = None

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def options(self) -> dict[str, str]:
        """The options of a generate:// address."""
        return dict(parse_qsl(urlsplit(self.url).query))


@dataclass(frozen=True)
class Layout:
    """Files that together suffice, and the reader (a name that the domain knows) with its options."""

    reader: str
    files: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """One data set."""

    name: str
    title: str
    task: str
    domain: str
    sources: tuple[Source, ...]
    licence: str
    layouts: tuple[Layout, ...]
    citation: tuple[str, ...] = ()
    splits: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    normalisation: str = ""
    notes: str = ""
    folder: Path | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file name that some layout accepts."""
        return tuple(dict.fromkeys(name for layout in self.layouts for name in layout.files))

    @property
    def needs_network(self) -> bool:
        return any(source.scheme in ("http", "https") for source in self.sources)


def names() -> list[str]:
    """Every data set that has a card."""
    return sorted(_folders())


def find(name: str) -> Card:
    """The card of that name; nearest names where there is none."""
    folders = _folders()
    if name not in folders:
        raise UsageError(f"There is no data set named {name!r}.", nearest(name, folders))
    return read(folders[name] / "card.yaml")


def read(path: str | os.PathLike[str]) -> Card:
    """Reads and checks one card.yaml."""
    file = Path(path)
    content = read_yaml(file, "data card")
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise ScidiffError(f"The data card {file} lacks {', '.join(missing)}.")
    for key in content:
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise ScidiffError(
                f"The data card {file} has the unknown key {key!r}.", nearest(key, (*_REQUIRED, *_OPTIONAL))
            )
    citation = content.get("citation") or ()
    return Card(
        name=str(content["name"]),
        title=str(content["title"]),
        task=str(content["task"]),
        domain=str(content["domain"]),
        sources=_sources(content, file),
        licence=str(content["licence"]),
        layouts=_layouts(content["layouts"], file),
        citation=(citation,) if isinstance(citation, str) else tuple(citation),
        splits=dict(content.get("splits") or {}),
        units=dict(content.get("units") or {}),
        normalisation=str(content.get("normalisation") or ""),
        notes=str(content.get("notes") or "").strip(),
        folder=file.parent,
    )


def _sources(content: Mapping[str, Any], file: Path) -> tuple[Source, ...]:
    given = content["source"]
    entries = [{"url": given, "sha256": content.get("sha256"), "size": content.get("size")}]
    if not isinstance(given, str):
        entries = given if isinstance(given, list) else [given]
    found = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("url"), str):
            raise ScidiffError(f"A source in the data card {file} has no url.")
        url, parts = entry["url"], urlsplit(entry["url"])
        local = parts.scheme == "http" and parts.hostname in _LOOPBACK
        if not local and (parts.scheme not in ("https", "package", "generate") or not parts.netloc):
            raise ScidiffError(
                f"The data card {file} names the source {url!r}.",
                "Sources begin with https://, package:// or generate://.",
            )
        name = str(entry.get("name") or Path(parts.path).name or parts.netloc)
        if name in (".", "..") or "/" in name or "\\" in name:
            raise ScidiffError(
                f"The data card {file} names the file {name!r}, which is not a plain file name."
            )
        found.append(Source(url, name, entry.get("sha256") or None, entry.get("size")))
    return tuple(found)


def _layouts(given: Any, file: Path) -> tuple[Layout, ...]:
    if not isinstance(given, list) or not all(
        isinstance(entry, Mapping) and "reader" in entry for entry in given
    ):
        raise ScidiffError(
            f"The layouts of the data card {file} must be a list of {{reader, files, options}}."
        )
    return tuple(
        Layout(str(entry["reader"]), tuple(entry.get("files") or ()), dict(entry.get("options") or {}))
        for entry in given
    )


def _folders() -> dict[str, Path]:
    """Data set name -> folder; those of scidiff win over a plug-in's `<package>/datasets`."""
    roots = []
    for package in plugin_packages():
        spec = find_spec(package)
        roots += (
            [Path(place) / "datasets" for place in (spec.submodule_search_locations or ())] if spec else []
        )
    roots.append(shared_folder("datasets"))
    return {card.parent.name: card.parent for root in roots for card in sorted(root.glob("*/card.yaml"))}
