"""Ctrl-C, SIGTERM and dead DataLoader workers end a run cleanly: the step in progress is finished, everything is
flushed, then the process goes.

The handlers only set a flag, which the loop looks at between steps. Ctrl-C or SIGTERM a second time ends the process
at once. Handlers are set in the main thread only, and put back afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from harness.loop.streams import say
from harness.units import NS_PER_S

_HANDLED = (signal.SIGINT, signal.SIGTERM)
_MAX_WAIT_NS = NS_PER_S


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


class DeadWorkers:
    """Lets torch raise for a dead DataLoader worker only where no step is torn by it.

    torch does so in a SIGCHLD handler, from between any two bytecodes of the main thread: also in the middle of
    `optimizer.step()`. Here the error is kept until the step is done, unless the loop is waiting for the worker.

    Args:
        may_raise: Whether the loop waits for a batch now.
        on_death: Called for the first error that is kept.
    """

    def __init__(self, *, may_raise: Callable[[], bool], on_death: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._may_raise = may_raise
        self._on_death = on_death
        self._torchs: Callable[[int, FrameType | None], Any] | None = None

    def take_over(self) -> None:
        """Stand in front of the handler that torch sets with the first worker; to be called whenever it may have."""
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._handle:
            self._torchs = handler
            signal.signal(signal.SIGCHLD, self._handle)

    def cause_of(self, error: BaseException) -> BaseException | None:
        """What torch says of the worker whose death broke a connection; None where that is not why.

        The kernel closes a dead process's sockets before it tells its parent, so this may wait for the signal.
        """
        if self._torchs is None or not isinstance(error, (OSError, EOFError)):
            return None
        deadline_ns = time.monotonic_ns() + _MAX_WAIT_NS
        while self.error is None and time.monotonic_ns() < deadline_ns:
            time.sleep(0.01)
        return self.error

    def restore(self) -> None:
        """Give the signal back, unless somebody has taken it since."""
        if self._torchs is not None and signal.getsignal(signal.SIGCHLD) == self._handle:
            signal.signal(signal.SIGCHLD, self._torchs)
        self._torchs = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._torchs is None:
            return
        try:
            self._torchs(number, frame)
        except Exception as error:
            if self._may_raise():
                raise
            if self.error is None:
                self.error = error
                self._on_death()


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
