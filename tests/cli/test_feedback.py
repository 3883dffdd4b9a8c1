"""Errors in one sentence, progress on a terminal and elsewhere."""

from __future__ import annotations

import pytest

from scidiff.cli import feedback
from scidiff.core.errors import ScidiffError, UsageError


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by `clock.step` seconds whenever it is read."""
    class Clock:
        step, now = 1.0, 0.0

        def monotonic(self):
            self.now += self.step
            return self.now

    clock = Clock()
    monkeypatch.setattr(feedback, "time", clock)
    return clock


def test_plain_progress_prints_one_line_for_every_five_percent(capsys, clock):
    with feedback.Progress(bar=False) as progress:
        for done in range(0, 1001):
            progress("Sampling", done, 1000)
            progress("Sampling", done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("Sampling: 5 % (50/1000)") and lines[-1].startswith("Sampling: 100 % (1000/1000)")


def test_plain_progress_keeps_quiet_for_three_seconds(capsys, clock):
    clock.step = 1 / 64
    with feedback.Progress(bar=False) as progress:
        for done in range(0, 1001):
            progress("Sampling", done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6, "15.6 seconds: five pauses of three, and the end"
    assert lines[0].startswith("Sampling: 19 % (192/1000), 3 s") and lines[-1] == "Sampling: 100 % (1000/1000), 16 s"


def test_the_time_left_of_a_resumed_run_counts_new_work_alone(capsys, clock):
    with feedback.Progress(bar=False) as progress:
        for done in range(900, 1000):
            progress("Sampling", done, 1000)
    assert capsys.readouterr().err.splitlines()[1] == "Sampling: 95 % (950/1000), 50 s, 50 s left"


def test_a_single_piece_of_work_is_announced_once(capsys):
    with feedback.Progress(bar=False) as progress:
        progress("Measuring", 0, 1)
        progress("Measuring", 1, 1)
    assert capsys.readouterr().err == "Measuring\n"


def test_plain_progress_of_unknown_length_is_announced_once(capsys):
    progress = feedback.Progress(bar=False)
    for done in range(5):
        progress("Reading", done, None)
    assert capsys.readouterr().err == "Reading\n"


def test_a_bar_on_a_terminal_can_be_drawn_and_closed(capsys):
    with feedback.Progress(bar=True) as progress:
        progress("Sampling", 1, 4)
        progress("Decoding", 1, None)
        progress("Sampling", 4, 4)
    assert "Sampling" in capsys.readouterr().err


@pytest.mark.parametrize("error, code, text", [
    (ScidiffError("It broke.", "Mend it."), 1, "Error: It broke. Mend it.\n"),
    (UsageError("Wrong."), 2, "Error: Wrong.\n"),
    (feedback.Interrupted("Stopped."), 130, "Error: Stopped.\n"),
    (MemoryError(), 1, "Error: The memory is too small for this batch. Try a smaller one with --batch"),
    (ValueError("bad\n  value"), 1, "Error: ValueError: bad value. Run again with --debug for the traceback.\n"),
    (KeyError(), 1, "Error: KeyError: no message. Run again"),
])
def test_every_error_is_one_line_with_its_exit_code(error, code, text, capsys):
    assert feedback.fail(error, debug=False) == code
    printed = capsys.readouterr().err
    assert printed.startswith(text) and printed.count("\n") == 1


def test_the_traceback_appears_on_demand(capsys):
    try:
        raise ValueError("inside")
    except ValueError as error:
        feedback.fail(error, debug=True)
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "Run again" not in printed


def test_the_summary_ends_with_the_place_and_the_next_command(capsys, tmp_path):
    feedback.summary("scidiff generate", {"valid": 0.98765, "samples": 10}, tmp_path, "scidiff evaluate x")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["valid", "0.9877"]
    assert lines[-2:] == [f"Results: {tmp_path}", "Next:    scidiff evaluate x"]
