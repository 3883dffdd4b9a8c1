"""Where `conf/` and `datasets/` live: inside an installed wheel, or at the root of the source tree.

A wheel carries them as `scidiff/conf` and `scidiff/_datasets`; an editable install and a bare checkout have
them beside the package. Nothing is read from environment variables.
"""

from __future__ import annotations

from pathlib import Path

from scidiff.core.errors import ScidiffError

PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = {"conf": "conf", "datasets": "_datasets"}


def shared_folder(name: str) -> Path:
    """The folder `conf` or `datasets`, from a wheel, an editable install or a bare checkout."""
    for place in (PACKAGE / _IN_WHEEL[name], PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise ScidiffError(
        f"The folder {name!r} of scidiff was found neither in {PACKAGE} nor in {PACKAGE.parent}.",
        "Install scidiff again.",
    )
