"""One daemon thread does the run's writing, so that no step waits for a disk, a terminal or a network.

Jobs run in turn, each tick. A job that raises is counted and hurts no other. A job that hangs is left behind:
the thread it holds is given up and a new one goes on with the other jobs. Nobody sits and watches for that;
whoever waits for the writer, or has time to spare, calls `watch`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from harness.units import NS_PER_S

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
"""Between ticks: what a kill -9 may lose at most, and how often the terminal is drawn. A tick's code and data are cold:
it takes half a millisecond however little there is to write, so that half the ticks cost half of that."""
HANG_TIMEOUT_S = 10.0
_POLL_S = 0.0005


@dataclass(frozen=True, kw_only=True, slots=True)
class JobHealth:
    """How one job of the writer thread fared."""

    runs: int
    """Ticks it was run in."""
    errors: int
    """Ticks it raised in."""
    last_error: str | None
    """The last exception, type and text."""
    hung: bool
    """Whether it is hanging now and is left out."""
    hangs: int
    """How often it was left behind."""


class _Job:
    """A job and its counts."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.name = name
        self.run = run
        self.runs = 0
        self.errors = 0
        self.last_error: str | None = None
        self.hung = False
        self.hangs = 0


class WriterThread:
    """Runs jobs in the background, a few times a second.

    After a fork the child's copy is `inactive`: it has no thread, and every method returns at once.

    Args:
        interval_s: Time between ticks.
        hang_timeout_s: A job that runs longer is left behind, the next time somebody watches.
    """

    def __init__(self, *, interval_s: float = INTERVAL_S, hang_timeout_s: float = HANG_TIMEOUT_S) -> None:
        self.inactive = False
        """True in a forked child. A plain attribute, read on the hot path."""
        self._interval_s = interval_s
        self._hang_timeout_s = hang_timeout_s
        self._jobs: list[_Job] = []
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._generation = 0
        self._running: tuple[_Job, int] | None = None
        self._stopping = False
        self._finished = False
        self._cpu_ns: dict[int, int] = {}

    def add(self, name: str, job: Callable[[], None]) -> None:
        """Add a job, run after those added before. Only before `start`."""
        assert self._thread is None, f"job {name} added to a writer thread that runs"
        self._jobs.append(_Job(name, job))

    def start(self) -> None:
        """Start the thread."""
        assert self._thread is None, "started twice"
        _watch_forks(self)
        self._start_thread()

    def wake(self) -> None:
        """Ask for a tick now."""
        if not self.inactive:
            self._wake.set()

    @property
    def cpu_ns(self) -> int:
        """CPU time of the thread, and of those given up, up to the last finished tick."""
        return sum(self._cpu_ns.copy().values())

    def health(self) -> dict[str, JobHealth]:
        """The jobs by name."""
        return {
            job.name: JobHealth(
                runs=job.runs, errors=job.errors, last_error=job.last_error, hung=job.hung, hangs=job.hangs
            )
            for job in self._jobs
        }

    def is_hung(self, name: str) -> bool:
        """Whether that job hangs now."""
        return any(job.hung for job in self._jobs if job.name == name)

    def watch(self, hang_timeout_s: float | None = None) -> None:
        """Leave a job behind that runs for too long. Cheap; call it from any other thread now and then."""
        running = self._running
        if running is None or self.inactive:
            return
        job, since_ns = running
        limit_s = self._hang_timeout_s if hang_timeout_s is None else hang_timeout_s
        if time.monotonic_ns() - since_ns < limit_s * NS_PER_S:
            return
        with self._lock:
            if self._running is not running:
                return
            job.hung = True
            job.hangs += 1
            self._running = None
            self._generation += 1
            self._start_thread()
        logger.warning("%s hangs for more than %g s: going on without it", job.name, limit_s)

    def wait_until(self, done: Callable[[], bool], *, hang_timeout_s: float | None = None) -> bool:
        """Wait for the writer to reach a state; jobs that hang are left behind meanwhile.

        Returns:
            Whether it was reached. False when there is no thread to reach it: not started, forked, ended, or
            the caller is the writer thread itself.
        """
        while not done():
            thread = self._thread
            if self.inactive or thread is None or thread is threading.current_thread() or not thread.is_alive():
                return done()
            self._wake.set()
            self.watch(hang_timeout_s)
            time.sleep(_POLL_S)
        return True

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every job has run once more from its beginning. One that hangs costs up to `timeout_s`."""
        # Twice: a job that is running now may be past what the caller means.
        expected = [(job, job.runs + 2) for job in self._jobs]
        self.wait_until(lambda: all(job.hung or job.runs >= runs for job, runs in expected), hang_timeout_s=timeout_s)

    def close(self, timeout_s: float = HANG_TIMEOUT_S) -> None:
        """Run every job a last time and end the thread. Each job that hangs costs up to `timeout_s`."""
        if self.inactive or self._stopping:
            return
        self._stopping = True
        if self.wait_until(lambda: self._finished, hang_timeout_s=timeout_s) and self._thread is not None:
            self._thread.join(timeout_s)

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._loop, args=(self._generation,), name="harness-writer", daemon=True)
        self._thread.start()

    def _loop(self, generation: int) -> None:
        while True:
            # Read before the tick: who asks to stop during it gets one more whole tick.
            last = self._stopping
            for job in self._jobs:
                if not job.hung and not self._run(job, generation):
                    return
            self._cpu_ns[generation] = time.thread_time_ns()
            if last:
                break
            self._wake.wait(self._interval_s)
            self._wake.clear()
        self._finished = True

    def _run(self, job: _Job, generation: int) -> bool:
        """Run one job; False when this thread was given up meanwhile."""
        self._running = (job, time.monotonic_ns())
        try:
            job.run()
        except BaseException as error:  # a job that calls sys.exit must not end the writing of the others
            self._count_error(job, error)
        job.runs += 1
        with self._lock:
            if self._generation != generation:
                # It came back after all, and nobody else runs it: let the new thread take it up again.
                job.hung = False
                return False
            self._running = None
        return True

    def _count_error(self, job: _Job, error: BaseException) -> None:
        job.errors += 1
        job.last_error = f"{type(error).__name__}: {error}"
        if job.errors == 1:
            logger.warning("%s failed, training goes on: %s", job.name, job.last_error, exc_info=error)


_live: weakref.WeakSet[WriterThread] = weakref.WeakSet()
_hooked = False


def _watch_forks(writer: WriterThread) -> None:
    """Make the writer inactive in forked children: its thread is gone, its locks may be held for ever."""
    global _hooked
    _live.add(writer)
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_disable_all)


def _disable_all() -> None:
    for writer in list(_live):
        writer.inactive = True
    _live.clear()
