from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from harness.loggers.base import Progress, RunInfo
from harness.loggers.progress import ProgressLogger

MakeRun = Callable[..., RunInfo]


def at(step: int, fraction: float | None = None, **metrics: float) -> Progress:
    return Progress(
        step=step,
        epoch=1,
        fraction=fraction,
        steps_per_s=123.4,
        metrics=metrics,
        total="2ep" if fraction else None,
    )


class Terminal:
    """A pseudo terminal whose output is collected."""

    def __init__(self) -> None:
        self._leader, follower = pty.openpty()
        self.stream: TextIO = os.fdopen(follower, "w")
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._leader, 4096):
                self._parts.append(part)
        except OSError:  # the other end was closed
            pass

    def output(self) -> str:
        if not self.stream.closed:
            self.stream.close()
            self._reader.join()
            os.close(self._leader)
        return b"".join(self._parts).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    yield made
    made.output()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_without_a_terminal_there_is_a_plain_line_now_and_then(run_info: MakeRun) -> None:
    stream = io.StringIO()
    logger = ProgressLogger(stream, line_interval_s=3600)
    logger.open(run_info())
    logger.on_progress(at(1, 0.1, loss=0.51234567, acc=1.0))
    logger.on_progress(at(2, 0.2, loss=0.4))
    logger.on_progress(at(3, 0.3, loss=0.3))
    logger.log_text("trace written", time_ns=0)
    logger.close()
    first, text, last = stream.getvalue().splitlines()
    assert first == "10% · step 1 · epoch 1 of 2ep · loss 0.5123 · acc 1 · 123 steps/s"
    assert text == "trace written"
    assert last.startswith("30% · step 3 · epoch 1 of 2ep · loss 0.3 · 123 steps/s · ")
    assert last.endswith(" left")
    assert "\x1b" not in stream.getvalue()


def test_lines_come_each_interval(run_info: MakeRun) -> None:
    stream = io.StringIO()
    logger = ProgressLogger(stream, line_interval_s=0)
    logger.open(run_info())
    for step in range(1, 4):
        logger.on_progress(at(step))
    logger.close()
    assert stream.getvalue().splitlines() == [f"step {step} · epoch 1 · 123 steps/s" for step in range(1, 4)]


def test_a_loss_is_shown_before_other_metrics(run_info: MakeRun) -> None:
    stream = io.StringIO()
    logger = ProgressLogger(stream)
    logger.open(run_info())
    logger.on_progress(at(1, a=1.0, b=2.0, c=3.0, train_loss=4.0))
    logger.close()
    assert stream.getvalue().startswith("step 1 · epoch 1 · train_loss 4 · a 1 · b 2 · 123")


def test_the_time_left_comes_from_the_speed_of_this_attempt(run_info: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now_ns = 10**12

    monkeypatch.setattr("harness.loggers.progress.time.monotonic_ns", lambda: Clock.now_ns)
    stream = io.StringIO()
    logger = ProgressLogger(stream, line_interval_s=0)
    logger.open(run_info(attempt=2, resumed_step=50))
    logger.on_progress(at(50, 0.5))
    Clock.now_ns += 10 * 10**9  # a tenth of the run took 10 s, four tenths are left
    logger.on_progress(at(60, 0.6))
    Clock.now_ns += 40 * 10**9
    logger.on_progress(at(100, 1.0))
    logger.close()
    first, second, last = stream.getvalue().splitlines()
    assert "left" not in first
    assert second.endswith("40 s left")
    assert "left" not in last


def test_on_a_terminal_there_is_a_bar_that_leaves_the_terminal_as_it_was(run_info: MakeRun, terminal: Terminal) -> None:
    stdout, stderr = sys.stdout, sys.stderr
    logger = ProgressLogger(terminal.stream)
    logger.open(run_info())
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    assert not [thread for thread in threading.enumerate() if "rich" in type(thread).__module__]
    logger.on_progress(at(10, 0.25, loss=0.5))
    logger.log_text("trace [red]written[/red] to [/x]\x1b[2J", time_ns=0)
    logger.on_progress(at(20, 0.5, loss=0.25))
    logger.close()
    logger.close()
    output = terminal.output()
    assert "━" in output
    text = plain(output)
    assert "foo" in text
    assert "step 20 · epoch 1 of 2ep · loss 0.25" in text
    assert "trace [red]written[/red] to [/x]\\x1b[2J" in text
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l"), "the cursor must be visible"
    assert output.endswith("\n") or "\n" in output[output.rfind("step 20") :]


def test_a_bar_of_unknown_length_is_drawn_too(run_info: MakeRun, terminal: Terminal) -> None:
    logger = ProgressLogger(terminal.stream)
    logger.open(run_info())
    logger.on_progress(at(10, None, loss=0.5))
    logger.close()
    assert "step 10 · epoch 1 · loss 0.5" in plain(terminal.output())


def test_the_cursor_stays_visible_while_the_bar_is_drawn(run_info: MakeRun, terminal: Terminal) -> None:
    logger = ProgressLogger(terminal.stream)
    logger.open(run_info())
    logger.on_progress(at(10, 0.25))
    output = terminal.output()  # as if killed here
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")


def test_other_ranks_show_nothing(run_info: MakeRun) -> None:
    stream = io.StringIO()
    logger = ProgressLogger(stream)
    logger.open(run_info(rank=1, world_size=2))
    logger.on_progress(at(1, 0.1))
    logger.log_text("hello", time_ns=0)
    logger.close()
    assert stream.getvalue() == ""
