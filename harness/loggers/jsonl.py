"""Metrics and system samples as JSON lines: the record every other destination could be rebuilt from.

What a step logs becomes one line `{"step":12,"time":1763923387.123456,"loss":0.25}`. JSON has no NaN or
infinity: they are written as the strings "NaN", "Infinity" and "-Infinity", as protobuf does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from harness.loggers.base import BaseLogger, RunInfo
from harness.naming.fields import START_FIELDS
from harness.naming.template import Template
from harness.run.append_file import AppendFile, FileHealth, cut_lines_after
from harness.run.placement import check_placement

METRICS_TEMPLATE = "{run_name}/metrics-rank{rank}.jsonl"
SYSTEM_TEMPLATE = "{run_name}/system-rank{rank}.jsonl"
_ROWS_PER_BLOCK = 512
"""Rows that are encoded in one call: it holds the GIL for about 0.2 ms."""
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


class JsonlLogger(BaseLogger):
    """Writes `metrics-rank{rank}.jsonl` and `system-rank{rank}.jsonl`, on every rank.

    A resumed run's files are first cut back to the step it goes on after. One `write` per flush; a full disk
    delays lines and tears none (see AppendFile).

    Args:
        metrics: Template of the metrics file.
        system: Template of the file of system samples.

    Raises:
        TemplateError: A template breaks the rules.
    """

    name = "jsonl"

    def __init__(self, metrics: str = METRICS_TEMPLATE, system: str = SYSTEM_TEMPLATE) -> None:
        self._templates = (
            _compile(metrics, option="jsonl metrics"),
            _compile(system, option="jsonl system"),
        )
        self._files: tuple[_JsonLines, ...] = ()

    def open(self, run: RunInfo) -> None:
        """Cut the files of an earlier attempt back and open them.

        Raises:
            RunDirError: A file cannot be cut or opened.
        """
        files: list[_JsonLines] = []
        for template in self._templates:
            path = run.path(run.format(template))
            if run.attempt > 1:
                cut_lines_after(path, run.resumed_step or 0)
            files.append(_JsonLines(AppendFile(path)))
        self._files = tuple(files)
        self._add_metrics = self._files[0].add

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Add a line to the metrics file."""
        # Microseconds are what a float of Unix seconds can hold.
        self._add_metrics({"step": step, "time": time_ns // 1000 / 1e6, **metrics})

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Add a line to the file of system samples."""
        self._files[1].add({"step": step, "time": time_ns // 1000 / 1e6, **metrics})

    def flush(self) -> None:
        """Write what was added, one `write` per file."""
        for file in self._files:
            file.flush()

    def close(self) -> None:
        """Write the rest and close the files."""
        for file in self._files:
            file.close()

    def file_health(self) -> list[FileHealth]:
        """How the two files fared."""
        return [file.health for file in self._files]


def _compile(text: str, *, option: str) -> Template:
    template = Template.compile(text, option=option, fields=START_FIELDS)
    return check_placement(template, option=option, is_log=True)


class _JsonLines:
    """Rows on their way to one file, encoded a block at a time."""

    def __init__(self, file: AppendFile) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        self._blocks: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode_lines

    def add(self, row: dict[str, Any]) -> None:
        rows = self._rows
        rows.append(row)
        if len(rows) >= _ROWS_PER_BLOCK:
            self._encode_rows()

    def flush(self) -> None:
        if self._rows:
            self._encode_rows()
        if self._blocks:
            blocks, self._blocks = self._blocks, []
            self._file.write(b"".join(blocks))

    def close(self) -> None:
        self.flush()
        self._file.close()

    @property
    def health(self) -> FileHealth:
        return self._file.health

    def _encode_rows(self) -> None:
        rows, self._rows = self._rows, []
        try:
            block = self._encode(rows)
            usable = b":null" not in block  # what the encoder makes of NaN and infinity
        except (OverflowError, ValueError):  # an integer that readers of 64 bits cannot hold
            usable = False
        if not usable:
            block = self._encode([{key: _jsonable(value) for key, value in row.items()} for row in rows])
        self._blocks.append(block)


def _jsonable(value: Any) -> Any:
    """The value as JSON can hold it: text for what is not finite, a float for an integer beyond 64 bits."""
    if isinstance(value, int):
        if _INT64_MIN <= value <= _UINT64_MAX:
            return value
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
