"""What a logger is: the protocol users plug their own destination into, and what it is told about the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.naming.template import Template


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """The run a logger is opened for."""

    run_name: str
    """Names the run everywhere, in other services too."""
    root: Path
    """The folder that holds all runs."""
    directory: Path
    """This run's folder, `{root}/{run_name}`."""
    rank: int
    """This process, 0 to world_size - 1."""
    world_size: int
    """Number of processes."""
    attempt: int
    """Which process launch of this run, counted from 1."""
    started: str
    """When the first attempt began, ISO-8601 UTC. Tells the run from an earlier one that had its name."""
    resumed_step: int | None
    """The step the run goes on after; None for a fresh run. Files are cut back to it."""
    max_duration: str | None
    """How long the run lasts (`2ep`); None when it is open."""
    path: Callable[[str], Path]
    """Makes a relative path (a formatted template) an absolute one under `root`, parents made."""
    format: Callable[[Template], str]
    """Formats a file template with this run's values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the run is, for people to look at."""

    step: int
    """The last finished step, of the whole run."""
    epoch: int
    """Epochs completed."""
    fraction: float | None
    """0 to 1 of `max_duration`; None when that is open."""
    steps_per_s: float | None
    """Recent speed; None before it is known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each metric logged."""
    total: str | None = None
    """`max_duration` as text."""


class Logger(Protocol):
    """A destination for metrics, parameters and text.

    `open` is called once on the training thread, before the first step. Everything else is called by one
    writer thread, never two calls at once, so a logger needs no lock. An exception costs this logger the
    records it was given with that call; it is reported once and stops neither training nor the other loggers.

    Two more methods are called if they are there: `log_system(step, metrics, *, time_ns)` takes system
    samples, `on_progress(progress: Progress)` is told a few times a second how far the run is. With a true attribute
    `required` the run ends when the logger fails or hangs. `RuledLogger` gives these rules to any logger, and takes
    care of which metrics it is given and how often.
    """

    name: str
    """Names the logger in messages and in `run.json`."""

    def open(self, run: RunInfo) -> None:
        """Get ready. May raise: a bad setting is found before the first step."""

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Take the numbers of one `log` call. `time_ns` is Unix time. The mapping must not be changed."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Take the run's settings: flat, of bool, int, float and str."""

    def log_text(self, line: str, *, time_ns: int) -> None:
        """Take a line for people. `time_ns` is Unix time."""

    def flush(self) -> None:
        """Make what was logged durable against a kill of the process. Called after each batch, about 4/s."""

    def close(self) -> None:
        """Flush and let go. Called once; bounded to 10 s by the caller."""


class BaseLogger:
    """A logger that ignores everything: subclass it and write only the methods you need.

    Example:
        >>> class Console(BaseLogger):
        ...     name = "console"
        ...
        ...     def log_metrics(self, step, metrics, *, time_ns):
        ...         print(step, dict(metrics))
        >>> Console().log_metrics(1, {"loss": 0.5}, time_ns=0)
        1 {'loss': 0.5}
    """

    name = "logger"

    def open(self, run: RunInfo) -> None:
        """Nothing to get ready."""

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Metrics are ignored."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters are ignored."""

    def log_text(self, line: str, *, time_ns: int) -> None:
        """Text is ignored."""

    def flush(self) -> None:
        """Nothing to flush."""

    def close(self) -> None:
        """Nothing to close."""
