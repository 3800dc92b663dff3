"""How far the run is, on stderr: a bar on a terminal, a line now and then where there is none.

Everything is drawn from the writer's tick. The bar has no thread of its own, takes over neither stdout nor
stderr (a forked DataLoader worker could then hang on its lock), and does not hide the cursor: a killed run
leaves the terminal usable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from harness.loggers.base import BaseLogger, Progress, RunInfo
from harness.loggers.text import format_value, printable
from harness.units import NS_PER_S, format_duration_ns

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_INTERVAL_S = 10.0
_MAX_METRICS = 3


class ProgressLogger(BaseLogger):
    """Shows step, epoch, loss, speed and time left on stderr, on rank 0.

    On a terminal it is a bar, and texts that are logged are printed above it. Elsewhere it is a plain line
    every `line_interval_s`, and the texts are lines too.

    Args:
        stream: Where to draw; stderr when left out.
        line_interval_s: Between plain lines.
    """

    name = "progress"

    def __init__(self, stream: TextIO | None = None, *, line_interval_s: float = LINE_INTERVAL_S) -> None:
        self._stream = stream
        self._line_interval_ns = round(line_interval_s * NS_PER_S)
        self._out: TextIO | None = None
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._shown_ns: int | None = None
        self._first: tuple[float, int] | None = None
        self._waiting: Progress | None = None

    def open(self, run: RunInfo) -> None:
        """Start the bar on a terminal; nothing on ranks other than 0."""
        if run.rank != 0:
            return
        self._out = self._stream or sys.stderr
        if self._out is not None and self._out.isatty():
            self._start_bar(run.run_name, self._out)

    def on_progress(self, progress: Progress) -> None:
        """Draw."""
        if self._out is None:
            return
        now_ns = time.monotonic_ns()
        if progress.fraction is not None and self._first is None:
            self._first = (progress.fraction, now_ns)
        if self._bar is not None and self._task is not None:
            done = None if progress.fraction is None else min(progress.fraction, 1.0)
            self._bar.update(
                self._task,
                total=None if done is None else 1.0,
                completed=done or 0.0,
                details=self._describe(progress, now_ns),
            )
            self._bar.refresh()
        elif self._shown_ns is None or now_ns - self._shown_ns >= self._line_interval_ns:
            self._shown_ns, self._waiting = now_ns, None
            self._write_line(self._describe(progress, now_ns))
        else:
            self._waiting = progress

    def log_text(self, line: str, *, time_ns: int) -> None:  # noqa: ARG002  people see it when it happens
        """Print the text, above the bar if there is one."""
        text = "\n".join(printable(part) for part in line.splitlines())
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write_line(text)

    def close(self) -> None:
        """Draw the last state and leave the terminal as it was."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.stop()
        elif self._waiting is not None:
            self._write_line(self._describe(self._waiting, time.monotonic_ns()))
        self._out = None

    def _start_bar(self, run_name: str, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        console = Console(file=out)
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[details]}", markup=False),
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(run_name, total=None, details="starting")
        self._bar.start()
        console.show_cursor(True)

    def _describe(self, progress: Progress, now_ns: int) -> str:
        epoch = f"epoch {progress.epoch}" + (f" of {progress.total}" if progress.total else "")
        parts = [f"step {progress.step}", epoch]
        if progress.fraction is not None:
            parts.insert(0, f"{progress.fraction:.0%}")
        parts += [f"{name} {format_value(value)}" for name, value in _main_metrics(progress.metrics)]
        if progress.steps_per_s is not None:
            parts.append(f"{progress.steps_per_s:.3g} steps/s")
        left_ns = self._left_ns(progress.fraction, now_ns)
        if left_ns is not None:
            parts.append(f"{format_duration_ns(left_ns)} left")
        return " · ".join(parts)

    def _left_ns(self, fraction: float | None, now_ns: int) -> float | None:
        """Time left at the average speed of this attempt; a resumed one starts in the middle."""
        if fraction is None or self._first is None or fraction >= 1.0:
            return None
        start, start_ns = self._first
        if fraction <= start:
            return None
        # Whole seconds: the digits below would only flicker.
        left_s = (now_ns - start_ns) * (1.0 - fraction) / (fraction - start) / NS_PER_S
        return max(1, round(left_s)) * NS_PER_S

    def _write_line(self, line: str) -> None:
        if self._out is not None:
            self._out.write(line + "\n")
            self._out.flush()


def _main_metrics(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """The few metrics there is room for, those called a loss first."""
    return sorted(metrics.items(), key=lambda item: "loss" not in item[0].lower())[:_MAX_METRICS]
