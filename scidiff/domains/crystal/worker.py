"""The child process of pool.py: reads [name, arguments, limit] a line, answers [value, problem] a line.

The limit is in seconds of processor time and is enforced from within where the system has interval timers; elsewhere
the parent's clock alone holds. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """Not an Exception, so that no library swallows it."""


def rms(first: list[Any], second: list[Any], tolerances: tuple[float, float, float]) -> float | None:
    """Normalised root mean square displacement of two crystals (matching.py), None where they do not match."""
    from scidiff.domains.crystal.matching import Tolerances, compare, unpacked

    return compare(unpacked(first), unpacked(second), Tolerances(*tolerances))


def same(first: list[Any], second: list[Any], tolerances: tuple[float, float, float]) -> bool:
    """Whether two crystals match at all."""
    from scidiff.domains.crystal.matching import Tolerances, matcher, unpacked

    return bool(matcher(Tolerances(*tolerances)).fit(unpacked(first), unpacked(second)))


def composition(formula: str) -> bool:
    """Compositional validity (charges.py)."""
    from scidiff.domains.crystal.charges import smact_verdict

    return smact_verdict(formula)


def fingerprint(crystal: list[Any]) -> list[float]:
    """Mean fingerprint over the sites (coverage.py)."""
    from scidiff.domains.crystal.coverage import site_fingerprint
    from scidiff.domains.crystal.matching import unpacked

    return site_fingerprint(unpacked(crystal))


def wait(seconds: float) -> float:
    """Uses that much processor time: what tests call."""
    import time

    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds


def sleep(seconds: float) -> float:
    """Uses none, as a call that is stuck: what tests call."""
    import time

    time.sleep(seconds)
    return seconds


CALLS: dict[str, Callable[..., Any]] = {"rms": rms, "same": same, "composition": composition,
                                        "fingerprint": fingerprint, "wait": wait, "sleep": sleep}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the body after that much processor time."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def answer(name: str, arguments: list[Any], limit: float) -> tuple[Any, str]:
    """Value and problem of one call; a crystal that a library refuses is a problem, not the end of the process."""
    try:
        with limited(limit):
            return CALLS[name](*arguments), ""
    except OutOfTime:
        return None, "time"
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    import warnings

    replies, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    import pymatgen.analysis.structure_matcher  # noqa: F401  before the first limit runs

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
