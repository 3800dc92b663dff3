"""One logger with its backlog and its counts: what keeps a broken logger from hurting anything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from harness.loggers.base import Logger, Progress
from harness.units import NS_PER_S

PROGRESS_INTERVAL_NS = NS_PER_S // 5
METRICS, SYSTEM, TEXT, PARAMS = range(4)


Record = tuple[int, int, int, Any, Any]
"""One thing that was logged: kind, step, Unix time in ns, a dictionary (for TEXT a string), and the device
tensors still to be read into it, or None. A plain tuple, as one is made in every step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggerHealth:
    """How one logger fared."""

    records: int
    """Taken without an error."""
    errors: int
    """Calls that raised, and failed writes to its files."""
    dropped_records: int
    """Lost to errors or to a hang."""
    last_error: str | None
    """Type and text."""
    hung: bool
    """Whether it hangs now and gets nothing."""


class Outlet:
    """A logger and the batches it has yet to take.

    Args:
        logger: The destination.
        name: Unique among the loggers of the run.
        capacity: Records that are kept while the logger hangs.
        report: Called with the first error, for people to read.
    """

    def __init__(self, logger: Logger, name: str, *, capacity: int, report: Callable[[str], None]) -> None:
        self.logger = logger
        self.name = name
        self.closed = False
        self.failure: str | None = None
        """Why the run has to end; only a logger with a true attribute `required` sets it."""
        self._required = bool(getattr(logger, "required", False))
        self._backlog: deque[list[Record]] = deque()
        self._capacity = capacity
        self._report = report
        self._on_progress: Callable[[Progress], None] | None = getattr(logger, "on_progress", None)
        self._shown_ns = 0
        self._log_system: Callable[..., None] | None = getattr(logger, "log_system", None)
        self._records = 0
        self._errors = 0
        self._dropped_records = 0
        self._last_error: str | None = None

    def offer(self, batch: list[Record], *, hung: bool) -> None:
        """Queue a batch. While the logger hangs the oldest ones go when there are too many."""
        if self.closed:
            return
        backlog = self._backlog
        backlog.append(batch)
        if hung:
            self.note_hang()
            while backlog and sum(map(len, list(backlog))) > self._capacity:
                self._dropped_records += len(backlog.popleft())

    def deliver(self) -> None:
        """Hand over what is queued, then flush. Never raises."""
        taken = False
        while self._backlog:
            taken = True
            self._deliver_batch(self._backlog.popleft())
        if taken:
            self._guard(self.logger.flush)
            self._report_file_errors()

    def note_hang(self) -> None:
        """The logger was left behind."""
        if self._required and self.failure is None:
            self.failure = "it hangs"
            self._report(f"logger {self.name} hangs, and it is required: training ends")

    def wants_progress(self, now_ns: int) -> bool:
        """Whether the logger shows progress and has not done so for a while."""
        return self._on_progress is not None and now_ns - self._shown_ns >= PROGRESS_INTERVAL_NS

    def show(self, progress: Progress, now_ns: int) -> None:
        """Tell the logger how far the run is."""
        if self._on_progress is not None:
            self._shown_ns = now_ns
            self._guard(partial(self._on_progress, progress))

    def close(self) -> None:
        """Hand over the rest and close the logger, once."""
        self.deliver()
        if self.closed:
            return
        try:
            self._guard(self.logger.close)
        finally:
            self.closed = True
        self._report_file_errors()

    def health(self, *, hung: bool, lost_records: int) -> LoggerHealth:
        """The counts, with those of the logger's own files and of records lost before they got here."""
        files = self._file_health()
        last_file_error = next((file.last_error for file in files if file.last_error), None)
        return LoggerHealth(
            records=self._records,
            errors=self._errors + sum(file.errors for file in files),
            dropped_records=lost_records + self._dropped_records + sum(file.dropped_lines for file in files),
            last_error=self._last_error or last_file_error,
            hung=hung,
        )

    def _deliver_batch(self, batch: list[Record]) -> None:
        log_metrics = self.logger.log_metrics
        done = 0
        try:
            for kind, step, time_ns, payload, _ in batch:
                if kind == METRICS:
                    log_metrics(step, payload, time_ns=time_ns)
                else:
                    self._deliver_other(kind, step, time_ns, payload)
                done += 1
        except Exception as error:
            self._dropped_records += len(batch) - done
            self._count_error(error)
        self._records += done

    def _deliver_other(self, kind: int, step: int, time_ns: int, payload: Any) -> None:
        if kind == TEXT:
            self.logger.log_text(payload, time_ns=time_ns)
        elif kind == PARAMS:
            self.logger.log_params(payload)
        elif self._log_system is not None:
            metrics: Mapping[str, float] = payload
            self._log_system(step, metrics, time_ns=time_ns)

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._count_error(error)

    def _count_error(self, error: Exception) -> None:
        self._errors += 1
        first = self._last_error is None
        self._last_error = f"{type(error).__name__}: {error}"
        if first:
            self._tell("failed", self._last_error)

    def _file_health(self) -> list[Any]:
        """FileHealth of the files the logger writes, if it tells."""
        source = getattr(self.logger, "file_health", None)
        return list(source()) if callable(source) else []

    def _report_file_errors(self) -> None:
        """Files hold back what a full disk refuses instead of raising; people should hear of it once."""
        if self._last_error is None:
            for file in self._file_health():
                if file.last_error:
                    self._last_error = file.last_error
                    self._tell("cannot write", file.last_error)
                    return

    def _tell(self, what: str, why: str) -> None:
        if self._required:
            self.failure = self.failure or f"it {what}: {why}"
        then = "and it is required: training ends" if self._required else "training goes on"
        self._report(f"logger {self.name} {what}, {then}: {why}")
