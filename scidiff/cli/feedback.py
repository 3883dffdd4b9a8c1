"""What a person sees while a command works: errors, progress and the closing summary.

An error is one sentence on the error stream; the traceback appears only with `--debug`. Progress is a bar on a terminal
and plain lines elsewhere, one for every 5 % but not more than one in three seconds.
Results go to the output stream, everything else to the error stream.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scidiff.core.errors import ScidiffError

EVERY = 5
"""Percent between two plain lines of progress, at least."""

QUIET = 3.0
"""Seconds between two of them, at least; the last line always appears."""

HINT = " Run again with --debug for the traceback."


class Interrupted(ScidiffError):
    """Ctrl-C, after which the run can be continued."""

    exit_code = 130


def fail(error: BaseException, debug: bool) -> int:
    """Prints what went wrong and returns the exit code."""
    if debug:
        traceback.print_exception(error)
    text = sentence(error)
    say(text.replace(HINT, "") if debug else text, mark="Error")
    return int(getattr(error, "exit_code", 1))


def sentence(error: BaseException) -> str:
    """One sentence for any exception: our own errors, the command parser's, and everything unforeseen."""
    if isinstance(error, ScidiffError):
        return str(error)
    parser_message = getattr(error, "format_message", None)
    if parser_message is not None:
        text = re.sub(r"\s*\d+ validation error.*", "", parser_message().split("\n")[0])
        text = re.sub(r"Input should be a valid integer\b.*", "not a whole number", text)
        text = re.sub(r"Input should be a valid number\b.*", "not a number", text)
        return f"{text.rstrip('.')}." if not text.endswith("?") else text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "The memory is too small for this batch. Try a smaller one with --batch (sampling.chunk)."
    what = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {what[:300]}.{HINT}"


def say(text: str, mark: str = "") -> None:
    """One line on the error stream, after an optional mark such as `Error`."""
    if mark and sys.stderr.isatty():
        mark = f"\033[1;31m{mark}\033[0m"
    print(f"{mark}: {text}" if mark else text, file=sys.stderr, flush=True)


def show_log() -> None:
    """Log lines of scidiff (level INFO and above) appear on the error stream, each of them once."""
    logger = logging.getLogger("scidiff")
    if not logger.handlers:
        handler = _Lines()
        seen: set[str] = set()
        handler.addFilter(lambda record: not (record.getMessage() in seen or seen.add(record.getMessage())))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


class Progress:
    """Called as `progress(label, done, total)` by whatever works; total may be None. Use it as a context manager.

    `started(folder)` tells where results go, so that an interrupted command can name the folder.
    """

    def __init__(self, bar: bool | None = None) -> None:
        self.folder: Path | None = None
        self._bar = sys.stderr.isatty() if bar is None else bar
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, int] = {}
        self._since: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, folder: str | Path) -> None:
        """The folder of the run, once it exists."""
        self.folder = Path(folder)

    def __call__(self, label: str, done: int, total: int | None = None) -> None:
        if self._bar:
            self._draw(label, done, total)
        else:
            self._line(label, done, total)

    def _draw(self, label: str, done: int, total: int | None) -> None:
        if self._live is None:
            from rich import progress as p
            from rich.console import Console

            words, counts = p.TextColumn("{task.description}"), p.MofNCompleteColumn()
            columns = (words, p.BarColumn(), counts, p.TimeElapsedColumn(), p.TimeRemainingColumn())
            self._live = p.Progress(*columns, console=Console(stderr=True))
            self._live.start()
        if label not in self._tasks:
            self._tasks[label] = self._live.add_task(label, total=total)
        self._live.update(self._tasks[label], completed=done, total=total)

    def _line(self, label: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if not total or total == 1:
            if label not in self._said:
                self._said[label] = 0
                say(label)
            return
        since, first = self._since.setdefault(label, (now, done))
        percent = 100 * done // total
        step = percent // EVERY * EVERY
        early = now - self._last.setdefault(label, now) < QUIET
        if step <= self._said.get(label, 0) or (early and done < total):
            return
        self._said[label], self._last[label] = step, now
        spent = now - since
        left = f", {spent / (done - first) * (total - done):.0f} s left" if first < done < total else ""
        say(f"{label}: {percent} % ({done}/{total}), {spent:.0f} s{left}")


def summary(title: str, rows: Mapping[str, Any], folder: Path | None, following: str = "") -> None:
    """The closing lines: what came out, where it lies, and the command to try next."""
    width = max((len(name) for name in rows), default=0)
    print(title)
    for name, value in rows.items():
        print(f"  {name:<{width}}  {_short(value)}")
    if folder is not None:
        print(f"Results: {folder}")
    if following:
        print(f"Next:    {following}")


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns, aligned by spaces: readable on a terminal and by other programs."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    for row in [headings, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
