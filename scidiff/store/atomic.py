"""Writing that leaves either the old file, or the whole new one, and never a part of it.

Every writer makes a temporary name in the folder of its target (`.tmp-<token>-<name>`, so that suffixes
such as `.nii.gz` stay at the end), flushes it to the disk and renames it. A failure removes the temporary
file and raises one `ScidiffError` sentence where the cause is the disk; leftovers of a killed process are
removed by `sweep`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from scidiff.core.errors import ScidiffError

_MARK = ".tmp-"


def ensure_folder(path: str | os.PathLike[str]) -> Path:
    """Creates the folder (and its parents) and returns it; one sentence where that is impossible."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused("create the folder", folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ScidiffError(f"The folder {folder} cannot be written to.", "Name another one with --out.")
    return folder


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path with the same suffixes; it becomes `path` when the block ends well."""
    target = Path(path).expanduser()
    ensure_folder(target.parent)
    temporary = target.parent / f"{_MARK}{secrets.token_hex(4)}-{target.name}"
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        raise _refused("write", target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty temporary folder that replaces `path` as a whole when the block ends well."""
    target = Path(path).expanduser()
    ensure_folder(target.parent)
    token = secrets.token_hex(4)
    temporary = target.parent / f"{_MARK}{token}-{target.name}"
    previous = target.parent / f"{_MARK}{token}-old-{target.name}"
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        if target.exists():
            os.replace(target, previous)
        try:
            os.replace(temporary, target)
        except OSError:
            if previous.exists():
                os.replace(previous, target)
            raise
        _flush(target.parent)
    except OSError as error:
        raise _refused("write the folder", target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes `data` atomically."""
    with writing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path).expanduser()


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes UTF-8 text with Unix line ends atomically."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes JSON atomically; NaN and infinities, which JSON does not know, become null."""
    return write_text(path, json.dumps(plain(value, finite=True), indent=2, ensure_ascii=False) + "\n")


def write_table(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as CSV atomically, the columns as in the first of them; no rows make an empty file."""
    text = io.StringIO()
    if rows:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return write_text(path, text.getvalue())


def write_yaml(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes YAML of plain values atomically, keys in the order given."""
    return write_text(path, dump_yaml(value))


def dump_yaml(value: Any) -> str:
    """YAML text of plain values; no anchors, no Python tags."""

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(
        plain(value), Dumper=Plain, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
    )


def read_yaml(path: str | os.PathLike[str], what: str = "file") -> dict[str, Any]:
    """The mapping in a YAML file; one sentence where it is missing, unreadable, or not a mapping."""
    file = Path(path)
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ScidiffError(f"The {what} {file} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ScidiffError(f"The {what} {file} cannot be read: {_reason(error)}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else "broken syntax"
        raise ScidiffError(f"The {what} {file} is not valid YAML ({first}).") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ScidiffError(f"The {what} {file} must hold a YAML mapping of names to values.")
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; ScidiffError where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScidiffError(f"{path} is damaged: {error}.") from error


def plain(value: Any, finite: bool = False) -> Any:
    """Mappings, sequences, numbers, text and None only; paths become text, arrays numbers; else an error."""
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, finite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, finite) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item, finite) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), finite)
    raise ScidiffError(f"A value of type {type(value).__name__} cannot be stored in a text file.")


def sweep(folder: str | os.PathLike[str]) -> None:
    """Removes what a killed process left half-written below `folder`."""
    for leftover in Path(folder).rglob(f"{_MARK}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _refused(action: str, path: Path, error: OSError) -> ScidiffError:
    return ScidiffError(f"Cannot {action} {path}: {_reason(error)}.", "Name another place with --out.")
