"""Ctrl-C and SIGTERM end a run cleanly: the step in progress is finished, everything is flushed, then the process goes.

The handler only sets a flag, which the loop looks at between steps. The same signal a second time ends the process at
once. Handlers are set in the main thread only, and put back afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from harness.loop.streams import say

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a request to stop."""

    def __init__(self, *, on_stop: Callable[[signal.Signals], None]) -> None:
        self.received: signal.Signals | None = None
        self._on_stop = on_stop
        self._owner_pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take over both signals, unless this is not the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _HANDLED:
            self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        while self._previous:
            number, handler = self._previous.popitem()
            # None: the handler was not set from Python and cannot be set back by it.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner_pid:
            self._handle_in_worker(number)
            return
        if self.received is not None:
            # Not SystemExit: the user wants out now, and what was logged up to the last second is on disk.
            say("\nharness: stopped at once\n")
            os._exit(128 + number)
        self.received = signal.Signals(number)
        self._on_stop(self.received)

    @staticmethod
    def _handle_in_worker(number: int) -> None:
        """A forked DataLoader worker inherits the handler: the terminal's Ctrl-C is for the trainer to answer."""
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def raise_again(self) -> None:
        """After everything is closed: what Python would have raised for the signal."""
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)


@contextmanager
def undisturbed_by_children() -> Iterator[None]:
    """Keep torch's SIGCHLD handler quiet while a run is closed.

    When a DataLoader worker has died it raises from between any two bytecodes of the main thread, and again for each
    child that ends: also in the middle of the last checkpoint, which the failed run needs most.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main_thread else None
    if not callable(handler):
        yield
        return
    # A function and not SIG_DFL: Python complains on stderr about a signal that came in just before.
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
