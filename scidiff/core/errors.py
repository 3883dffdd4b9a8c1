"""Errors that a person reads: one sentence, and a remedy where there is one.

`ScidiffError` ends a command with exit code 1, `UsageError` with exit code 2. Whatever else is raised is a defect of
the program, not of its use.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScidiffError(Exception):
    """A failure that can be explained in one sentence; `remedy` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message if not remedy else f"{message} {remedy}")
        self.message = message
        self.remedy = remedy


class UsageError(ScidiffError):
    """The request itself is wrong: unknown name, impossible number, contradicting options."""

    exit_code = 2


class MissingLibrary(ScidiffError):
    """An optional library is absent; the remedy is the exact command that installs it."""

    def __init__(self, library: str, purpose: str, install: str) -> None:
        super().__init__(f"{purpose} needs {library}, which is not installed.", f"Install it with: {install}")
        self.library = library
        self.install = install


class NonFinite(ScidiffError):
    """A network or solver produced NaN or infinity; names the step and the component."""


def nearest(name: str, options: Iterable[str], count: int = 3) -> str:
    """The `did you mean` half of an error sentence, or the list of options where nothing is close."""
    known = sorted(set(options))
    if not known:
        return "Nothing is available."
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"Available: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}."
