"""Keeps the children that finish traces: starts them, two at a time, collects them, waits at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.capture.trace_file import (
    FinishingChild,
    FinishJob,
    FinishResult,
    start_finishing,
    unfinished_jobs,
)
from harness.errors import CaptureError

logger = logging.getLogger(__name__)

MAX_CHILDREN = 2
"""A window every few steps must not start a crowd that takes the processors from training."""

RAW_NAME = "trace.json"
"""What torch writes, in a folder of its own: a constant name, because kineto mishandles some characters."""

_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedTrace:
    """What became of one window's trace."""

    path: Path
    """The finished file; there only if `ok`."""
    ok: bool
    """Whether the file is there and verified."""
    first_step: int
    """First recorded step."""
    last_step: int
    """Last recorded step, inclusive."""
    cut: str | None
    """Why the window ended early; None for a whole one."""
    size_bytes: int
    """Size of the finished file."""
    error: str | None
    """What went wrong; None if ok."""
    result: FinishResult
    """All that the child said: events, repairs, CPU time."""


class TraceFinisher:
    """The finishing children of one rank. Nothing raises: what goes wrong is a FinishedTrace that is not ok.

    `add` and `salvage` belong to the training thread, `poll` and `wait` to any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[FinishJob] = deque()
        self._children: list[FinishingChild] = []
        self._not_started: list[FinishedTrace] = []
        self.traces_written = 0
        self.traces_failed = 0
        self.trace_bytes = 0
        self.child_cpu_ns = 0

    @property
    def num_pending(self) -> int:
        """Traces whose end has not been told by `poll` or `wait`."""
        return len(self._queue) + len(self._children) + len(self._not_started)

    def add(self, job: FinishJob) -> None:
        """Finish this trace, now or when a child is free."""
        with self._lock:
            self._queue.append(job)
            self._start(MAX_CHILDREN)

    def salvage(self, private_dir: Path) -> int:
        """Finish what a killed process of this run left behind, and remove what cannot be finished.

        Returns:
            The number of traces that are now being finished.
        """
        jobs = unfinished_jobs(private_dir)
        wanted = {Path(job.raw_path).parent for job in jobs}
        for folder in private_dir.glob("*/"):
            # An export that was killed leaves a file under a temporary name; a child, its small files. A raw trace
            # without a job is finished, and could only not be removed.
            if folder not in wanted:
                remove_folder(folder)
        for job in jobs:
            self.add(job)
        return len(jobs)

    def poll(self) -> list[FinishedTrace]:
        """Collect the children that have ended and start those that wait; never blocks for long."""
        with self._lock:
            finished, self._not_started = self._not_started, []
            for child in list(self._children):
                result = child.poll()
                if result is not None:
                    self._children.remove(child)
                    finished.append(_finished(child.job, result))
            self._start(MAX_CHILDREN)
            for trace in finished:
                self._count(trace)
        return finished

    def wait(self, on_progress: Callable[[str], None] | None, *, timeout_s: float) -> list[FinishedTrace]:
        """Wait for all children, saying so.

        Args:
            on_progress: Gets a short line at the start and twice a second.
            timeout_s: Longest wait. What is not finished by then goes on by itself.

        Returns:
            Those that have not been told before, in the order of their steps: of two children either may end first.
        """
        begin = time.monotonic()
        finished, said = self.poll(), -1
        while self.num_pending and (waited := time.monotonic() - begin) < timeout_s:
            if on_progress and int(waited * 2) != said:
                said = int(waited * 2)
                on_progress(f"finishing {_traces(self.num_pending)} ({waited:.0f} s)")
            time.sleep(_POLL_S)
            finished += self.poll()
        if self.num_pending:
            self._leave_behind(timeout_s)
        return sorted(finished, key=lambda trace: trace.first_step)

    def _start(self, max_children: int) -> None:
        while self._queue and len(self._children) < max_children:
            job = self._queue.popleft()
            try:
                self._children.append(start_finishing(job))
            except CaptureError as error:
                result = FinishResult(ok=False, error=str(error), kept_raw_path=job.raw_path)
                self._not_started.append(_finished(job, result))

    def _leave_behind(self, timeout_s: float) -> None:
        with self._lock:
            self._start(len(self._children) + len(self._queue))
            pids = ", ".join(str(child.pid) for child in self._children)
        logger.warning(
            "%s not finished after %.0f s; process %s goes on with it",
            _traces(self.num_pending),
            timeout_s,
            pids,
        )

    def _count(self, trace: FinishedTrace) -> None:
        self.child_cpu_ns += trace.result.cpu_ns
        if trace.ok:
            self.traces_written += 1
            self.trace_bytes += trace.size_bytes
        else:
            self.traces_failed += 1


def remove_folder(folder: Path) -> None:
    """Remove a folder of raw traces and the files in it, as far as that is possible."""
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def _finished(job: FinishJob, result: FinishResult) -> FinishedTrace:
    return FinishedTrace(
        path=Path(job.final_path),
        ok=result.ok,
        first_step=job.first_step,
        last_step=job.last_step,
        cut=job.cut,
        size_bytes=result.size_bytes,
        error=result.error,
        result=result,
    )


def _traces(count: int) -> str:
    return "1 trace" if count == 1 else f"{count} traces"
