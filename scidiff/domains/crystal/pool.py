"""Calls that may hang, in processes of their own, each with a time limit.

A worker (worker.py) is a fresh Python that reads one JSON line a call and answers with one line. It counts its own
processor time and gives up at `limit` seconds, so that the verdict does not depend on how busy the machine is; one that
does not answer within `PATIENCE * limit` seconds of the clock is killed and replaced. Nothing is forked and nothing is
unpickled, so callers need no main guard and may hold threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from scidiff.core.errors import ScidiffError

LIMIT = 10.0
PATIENCE = 30.0
_START = 600.0  # seconds that a worker may take to import its libraries on a busy machine
_MOST = 16
_FEW = 16  # calls that are not worth a further worker

Progress = Callable[[int, int], None]


class Answer(NamedTuple):
    """The value of a call, or why there is none: "time" (limit reached) or the sentence of an error."""

    value: Any
    problem: str = ""


class Pool:
    """Worker processes for `calls`; a context manager. `limit` [s of processor time] holds for each call."""

    def __init__(self, limit: float = LIMIT, workers: int | None = None) -> None:
        self.limit = float(limit)
        self.most = min(_cores(), _MOST) if workers is None else max(int(workers), 1)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends every idle worker."""
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.end()

    def run(self, calls: Sequence[tuple[str, tuple[Any, ...]]], progress: Progress | None = None) -> list[Answer]:
        """Answers of (name in worker.CALLS, JSON-able arguments), in their order."""
        answers: list[Answer | None] = [None] * len(calls)
        queue = iter(range(len(calls)))
        failures: list[BaseException] = []
        done = [0]

        def work() -> None:
            worker = None
            try:
                while not failures:
                    with self._lock:
                        place = next(queue, None)
                    if place is None:
                        break
                    if worker is None or not worker.alive:
                        worker = self._worker()
                    name, arguments = calls[place]
                    answers[place] = worker.ask(name, arguments, self.limit)
                    with self._lock:
                        done[0] += 1
                        if progress is not None:
                            progress(done[0], len(calls))
            except BaseException as error:  # handed to the caller's thread below
                failures.append(error)
            finally:
                if worker is not None and worker.alive:
                    with self._lock:
                        self._idle.append(worker)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.most, 1 + len(calls) // _FEW))]
        for thread in threads if calls else ():
            thread.start()
        try:
            for thread in threads if calls else ():
                thread.join()
        except BaseException as error:  # an interrupt: let the threads stop at their next call
            failures.append(error)
            raise
        if failures:
            raise failures[0]
        return [answer for answer in answers if answer is not None]

    def _worker(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Worker()


class _Worker:
    """One child process; `ask` blocks the calling thread."""

    def __init__(self) -> None:
        package = str(Path(__file__).resolve().parents[3])
        paths = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
        # one thread each: the workers themselves fill the cores
        variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scidiff.domains.crystal.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", env=variables)
        if self._line(_START) is None:
            raise ScidiffError("The process that compares crystals could not start.",
                               "`python -m scidiff.domains.crystal.worker` shows why.")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, name: str, arguments: tuple[Any, ...], limit: float) -> Answer:
        """One call; a worker that stays silent is killed."""
        stdin = self.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps([name, arguments, limit]) + "\n")
            stdin.flush()
        except OSError:
            self.end()
            return Answer(None, "the process that compares crystals ended")
        began = time.monotonic()
        line = self._line(PATIENCE * limit)
        if line is None:
            self.end()
            late = time.monotonic() - began >= PATIENCE * limit
            return Answer(None, "time" if late else "the process that compares crystals ended")
        value, problem = json.loads(line)
        return Answer(value, problem)

    def _line(self, seconds: float) -> str | None:
        stdout = self.process.stdout
        assert stdout is not None
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            return stdout.readline() or None
        finally:
            watchdog.cancel()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):  # the rest of a message that a dead process did not take
                    stream.close()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
