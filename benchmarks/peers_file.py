"""Reads what `make benchmark-peers` measured. `peers/README.md` describes the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from kept_file import read_kept

FORMAT = 1


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """A median over processes and its interval."""

    mid: float
    """The median."""
    low: float | None
    """None where there was one process."""
    high: float | None
    """None where there was one process."""


class Framework(msgspec.Struct, frozen=True, kw_only=True):
    """One of the frameworks, in the order of the table."""

    name: str
    """As rows name it."""
    title: str
    """As people do."""
    version: str | None
    """None where it is missing."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One framework, workload and case."""

    framework: str
    """A `Framework.name`."""
    workload: str
    """`tiny` or `charlm`."""
    case: str
    """Which of its own features were on."""
    status: Literal["measured", "missing", "failed"]
    """Whether there are figures."""
    message: str | None
    """Why not."""
    note: str | None
    """How it was used."""
    num_processes: int
    """Processes that gave figures."""
    weights_equal: bool | None
    """Whether it trained the bare loop's weights, bit for bit."""
    figures: dict[str, Bounds]
    """By name; empty where nothing was measured."""


class Peers(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    format: int
    """Of the file."""
    date: str
    """Day of the measurement."""
    git: dict[str, Any]
    """Commit of this project."""
    machine: dict[str, Any]
    """Where it was measured."""
    versions: dict[str, str]
    """Of every package."""
    processes: int
    """Asked for, for each cell."""
    confidence: float
    """Of the intervals."""
    frameworks: list[Framework]
    """In order."""
    workloads: list[str]
    """In order."""
    cases: list[str]
    """In order."""
    rows: list[Row]
    """The cells."""

    def row(self, framework: str, workload: str, case: str) -> Row | None:
        """One cell; None where it was not asked for."""
        key = (framework, workload, case)
        return next((row for row in self.rows if (row.framework, row.workload, row.case) == key), None)


def read_peers(path: Path) -> Peers:
    """Read a file of `make benchmark-peers`.

    Raises:
        ConfigError: It cannot be read, or has another format.
    """
    return read_kept(path, Peers, option="--peers", target="benchmark-peers", known_format=FORMAT)
