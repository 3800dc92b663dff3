"""The run's log for people: a file of timestamped lines that one can follow with `tail -f`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from harness.loggers.base import BaseLogger, RunInfo
from harness.naming.fields import START_FIELDS
from harness.naming.template import Template
from harness.run.append_file import AppendFile, FileHealth
from harness.run.placement import check_placement
from harness.units import NS_PER_MS, NS_PER_S

TEXT_TEMPLATE = "{run_name}/logs-rank{rank}.txt"
METRICS_INTERVAL_S = 10.0
_MAX_LINE_LENGTH = 10_000


class TextLogger(BaseLogger):
    """Writes `logs-rank{rank}.txt`, on every rank: texts, parameters, and now and then the metrics.

    Earlier attempts' lines are kept; each attempt begins with a line of its own. Times are UTC.

    Args:
        path: Template of the file.
        metrics_interval_s: A line of metrics at most this often; the last ones are written at the end.

    Raises:
        TemplateError: The template breaks the rules.
    """

    name = "text"

    def __init__(self, path: str = TEXT_TEMPLATE, *, metrics_interval_s: float = METRICS_INTERVAL_S) -> None:
        template = Template.compile(path, option="text path", fields=START_FIELDS)
        self._template = check_placement(template, option="text path", is_log=True)
        self._interval_ns = round(metrics_interval_s * NS_PER_S)
        self._file: AppendFile | None = None
        self._lines: list[str] = []
        self._shown_ns = 0
        self._latest: tuple[int, Mapping[str, float], int] | None = None

    def open(self, run: RunInfo) -> None:
        """Open the file and write the attempt's first line.

        Raises:
            RunDirError: The file cannot be opened.
        """
        self._file = AppendFile(run.path(run.format(self._template)))
        start = "" if run.attempt == 1 else f", resumed at step {run.resumed_step or 0}"
        self._add(f"attempt {run.attempt} of {run.run_name}{start}", time.time_ns())
        self.flush()

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Write a line like `step 100 loss 0.123`, or keep the metrics if there was one just now."""
        if 0 <= time_ns - self._shown_ns < self._interval_ns:  # a clock set back shows a line
            self._latest = (step, metrics, time_ns)
            return
        self._shown_ns = time_ns
        self._latest = None
        self._add(format_metrics(step, metrics), time_ns)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Write the parameters as one line."""
        self._add("params " + " ".join(f"{name}={value}" for name, value in params.items()), time.time_ns())

    def log_text(self, line: str, *, time_ns: int) -> None:
        """Write the text, each line of it with its time."""
        for part in line.splitlines():
            self._add(part, time_ns)

    def flush(self) -> None:
        """Write what was added in one `write`."""
        if self._lines and self._file is not None:
            lines, self._lines = self._lines, []
            self._file.write("".join(lines).encode(errors="backslashreplace"))

    def close(self) -> None:
        """Write the rest and close the file."""
        if self._file is None:
            return
        if self._latest is not None:
            step, metrics, time_ns = self._latest
            self._add(format_metrics(step, metrics), time_ns)
        self.flush()
        self._file.close()

    def file_health(self) -> list[FileHealth]:
        """How the file fared."""
        return [] if self._file is None else [self._file.health]

    def _add(self, line: str, time_ns: int) -> None:
        self._lines.append(f"{_timestamp(time_ns)} {printable(line)[:_MAX_LINE_LENGTH]}\n")


def format_metrics(step: int, metrics: Mapping[str, float]) -> str:
    """Metrics for people: `step 100 loss 0.1235`."""
    return " ".join([f"step {step}", *(f"{name} {format_value(value)}" for name, value in metrics.items())])


def format_value(value: float) -> str:
    """A number in four significant digits; integers in full."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def printable(line: str) -> str:
    """The line with its control characters escaped: it must not steer a terminal or forge another line."""
    if line.isprintable():
        return line
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode() for char in line
    )


def _timestamp(time_ns: int) -> str:
    """UTC with milliseconds: `2026-01-02T03:04:05.123Z`."""
    seconds, rest_ns = divmod(time_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns // NS_PER_MS:03d}Z"
