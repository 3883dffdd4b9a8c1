"""NumPy archives (.npz) from outside: plain numbers and text, never unpickled, bounded in size.

What is wrong with an archive is said as the end of a sentence, so that readers can name the file in their own way.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 2 << 30
"""Bytes that an archive may unpack to."""


class Damaged(Exception):
    """What is wrong with an archive, as the end of a sentence."""


def read(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray]:
    """The arrays of an archive (those of `names`, where given) by name; Damaged where it cannot be used."""
    if path.stat().st_size == 0:
        raise Damaged("it is empty")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > LARGEST:
                raise Damaged("it unpacks to more than 2 GiB")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files if names is None or name in names}
    except ValueError as error:
        why = "it holds Python objects, which scidiff does not unpack" if "pickle" in str(error) else str(error)
        raise Damaged(why) from error
    except (zipfile.BadZipFile, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise Damaged("it is no NumPy archive, or damaged") from error


def holds(path: Path, *names: str) -> bool:
    """Whether a file is an archive that has all of these arrays."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return all(name in archive.files for name in names)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        return False
