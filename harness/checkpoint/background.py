"""One save at a time in a thread of its own, beside the training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class BackgroundSave:
    """Runs one job after the other, each in a new thread: between saves there is none.

    The thread is a daemon: a process that ends without waiting has lost the save, and nothing that was saved before.

    Args:
        on_error: Called from the thread with what a job raised.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self.cpu_ns = 0
        """CPU time of the threads that have ended."""
        self._on_error = on_error
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], object]) -> None:
        """Run a job; the one before must have ended."""
        assert not self.is_running, "one save at a time"
        self._thread = threading.Thread(target=self._run, args=(job,), name="harness-checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether a job is being done."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the job is done, if there is one."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as error:
            self._on_error(error)
        finally:
            self.cpu_ns += time.thread_time_ns()
