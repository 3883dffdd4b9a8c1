"""Files of a data card, wherever they are: the user's folder, an installed package, the cache, or the
network.

`provide(card)` looks, in this order, in the folder given as `data.root=` (`root`), in the folder
SCIDIFF_DATA, in an installed package (`package://`), in the cache, and downloads last. The cache is
`SCIDIFF_HOME` where set, else the user's cache folder. A download continues where an earlier one stopped,
appears under its name only when it is complete and its sha256 is right; a file whose card states no hash is
pinned to the one of its first download, with a warning.
"""

from __future__ import annotations

import email.message
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError
from scidiff.store import atomic
from scidiff.store.cards import Card, Layout, Source

Progress = Callable[[str, int, int | None], None]
"""Called as progress(file name, bytes so far, bytes in all or None)."""

_BLOCK = 1 << 18
_ATTEMPTS = 4


@dataclass(frozen=True)
class Provided:
    """Files of a data set, for `reader` with `options`; origin is folder, package, cache or generated."""

    files: dict[str, Path]
    reader: str
    options: dict[str, Any] = field(default_factory=dict)
    origin: str = "cache"


def cache_folder() -> Path:
    """Where downloads live; `SCIDIFF_HOME` moves it."""
    home = os.environ.get("SCIDIFF_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("scidiff"))


def provide(
    card: Card,
    root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    *,
    download_missing: bool = True,
) -> Provided:
    """Files for the first layout of the card that can be satisfied, fetched if need be."""
    if root is not None:
        found = _in_folder(card, Path(root).expanduser())
        if found is None:
            raise UsageError(
                f"The folder {root} does not hold the files of {card.name}.",
                "It needs "
                + " or ".join(" and ".join(layout.files) for layout in card.layouts if layout.files)
                + ".",
            )
        return found
    shared = os.environ.get("SCIDIFF_DATA")
    if shared and (found := _in_folder(card, Path(shared).expanduser())) is not None:
        return found
    generators = [source for source in card.sources if source.scheme == "generate"]
    if generators:
        layout = card.layouts[0]
        return Provided({}, layout.reader, {**layout.options, **generators[0].options}, "generated")
    layout = _downloadable(card)
    files, origin = {}, "cache"
    for source in card.sources:
        if source.name not in layout.files:
            continue
        if source.scheme == "package":
            files[source.name], origin = _in_package(source, card), "package"
        else:
            files[source.name] = _in_cache(source, card, progress, download_missing)
    return Provided(files, layout.reader, layout.options, origin)


def download(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> str:
    """Downloads `url` to `path` and returns its sha256; continues `<path>.partial` of an earlier attempt.

    Raises `ScidiffError`: unreachable, refused (404 ...), broken off (the part is kept), wrong hash (the
    part is removed).
    """
    target = Path(path)
    atomic.ensure_folder(target.parent)
    partial = target.with_name(target.name + ".partial")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            total = _continue(url, partial, progress, timeout)
        except urllib.error.HTTPError as error:
            raise ScidiffError(f"The server answered {error.code} ({error.reason}) for {url}.") from error
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            if attempt < _ATTEMPTS and partial.is_file() and not isinstance(error, urllib.error.URLError):
                continue  # broken off in the middle: ask for the rest
            reason = getattr(error, "reason", None) or error
            raise ScidiffError(
                f"Downloading {url} failed: {reason}.",
                "Try again (it continues), or name a folder with data.root=.",
            ) from error
        have = partial.stat().st_size
        if total is None or have == total:
            break
        if attempt == _ATTEMPTS:
            raise ScidiffError(
                f"Downloading {url} stopped at {have} of {total} bytes.", "Try again; it continues."
            )
    digest = sha256_of(partial)
    if sha256 and digest != sha256.lower():
        _forget(partial)
        raise ScidiffError(
            f"{url} gave the sha256 {digest[:16]}... where {sha256[:16]}... was expected; it was removed.",
            "Try again; if it stays so, the source has changed.",
        )
    os.replace(partial, target)
    _forget(partial)
    return digest


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hash of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _continue(url: str, partial: Path, progress: Progress | None, timeout: float) -> int | None:
    """One request, appended to `partial` where the server agrees; returns the full size if it is known."""
    marker = partial.with_name(partial.name + ".json")
    known = _read_mapping(marker)
    have = partial.stat().st_size if partial.is_file() else 0
    validator = known.get("validator") if known.get("url") == url else None
    request = urllib.request.Request(url, headers={"User-Agent": "scidiff", "Accept-Encoding": "identity"})
    if have and validator:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part is as long as the file, or longer
            total = _after_slash(error.headers)
            if total == have:
                return total
            _forget(partial)
            return _continue(url, partial, progress, timeout)
        raise
    with answer:
        if urlsplit(url).scheme == "https" and urlsplit(answer.geturl()).scheme != "https":
            raise ScidiffError(
                f"The server of {url} points to an address without encryption; nothing was downloaded."
            )
        resumed = answer.status == 206 and _first_byte(answer.headers) == have
        length = answer.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length is not None else None
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):
            atomic.write_json(marker, {"url": url, "validator": validator})
        else:
            marker.unlink(missing_ok=True)
        done = have if resumed else 0
        with open(partial, "ab" if resumed else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(partial.name.removesuffix(".partial"), done, total)
            file.flush()
            os.fsync(file.fileno())
    return total


def _first_byte(headers: email.message.Message) -> int | None:
    text = headers.get("Content-Range", "").removeprefix("bytes").strip()
    first = text.split("-")[0]
    return int(first) if first.isdigit() else None


def _after_slash(headers: email.message.Message) -> int | None:
    text = headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    partial.with_name(partial.name + ".json").unlink(missing_ok=True)


def _in_folder(card: Card, root: Path) -> Provided | None:
    """The first layout whose files lie in `root`, `root/<name>` or one folder below; .gz may come or go."""
    if not root.is_dir():
        raise UsageError(f"The data folder {root} does not exist.")
    places = [root, root / card.name, *sorted(entry for entry in root.iterdir() if entry.is_dir())]
    for layout in card.layouts:
        for place in places:
            found = {name: file for name in layout.files if (file := _either(place, name)) is not None}
            if found and len(found) == len(layout.files):
                return Provided(found, layout.reader, layout.options, "folder")
    return None


def _either(place: Path, name: str) -> Path | None:
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    return next((place / option for option in (name, other) if (place / option).is_file()), None)


def _downloadable(card: Card) -> Layout:
    offered = {source.name for source in card.sources}
    for layout in card.layouts:
        if layout.files and offered.issuperset(layout.files):
            return layout
    raise ScidiffError(
        f"The data set {card.name} has no public download.",
        f"Name a folder that holds {' or '.join(card.files)} with data.root=.",
    )


def _in_package(source: Source, card: Card) -> Path:
    parts = urlsplit(source.url)
    spec = find_spec(parts.netloc)
    if spec is None or not spec.submodule_search_locations:
        raise MissingLibrary(parts.netloc, f"The data set {card.name}", f"pip install {parts.netloc}")
    for place in spec.submodule_search_locations:
        file = Path(place, *parts.path.strip("/").split("/"))
        if file.is_file():
            if source.sha256 and sha256_of(file) != source.sha256:
                warnings.warn(
                    f"{file} differs from the version in the card of {card.name}; results may differ too.",
                    stacklevel=3,
                )
            return file
    raise ScidiffError(f"The installed package {parts.netloc} does not carry {parts.path.strip('/')}.")


def _in_cache(source: Source, card: Card, progress: Progress | None, download_missing: bool) -> Path:
    folder = cache_folder() / "data" / card.name
    file, pins = folder / source.name, folder / "pins.json"
    pinned = _read_mapping(pins)
    expected = source.sha256 or pinned.get(source.url)
    if file.is_file() and expected:
        if sha256_of(file) == expected:
            return file
        file.unlink()
        warnings.warn(f"{file} was damaged and is downloaded again.", stacklevel=3)
    if not download_missing:
        raise ScidiffError(
            f"The data set {card.name} is not on this machine.", f"Run: scidiff fetch {card.name}"
        )
    digest = download(source.url, file, sha256=expected, progress=progress)
    if expected is None:
        atomic.write_json(pins, {**pinned, source.url: digest})
        warnings.warn(
            f"The card of {card.name} states no hash for {source.name}; pinned from now on: sha256 {digest}.",
            stacklevel=3,
        )
    return file


def _read_mapping(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or cut off by a power failure: as good as absent
        return {}
    return value if isinstance(value, dict) else {}
