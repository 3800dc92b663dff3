"""Ctrl-C, SIGTERM, SIGUSR1 and dead DataLoader workers end a run cleanly: the step in progress is finished, everything
is flushed, then the process goes.

The handlers only set a flag, which the loop looks at between steps. Ctrl-C or SIGTERM a second time ends the process
at once. SIGTERM and SIGUSR1 (which Slurm can send ahead of it) come from somebody who kills soon: a thread ends the
process when the grace period is over, whatever it is doing. Handlers are set in the main thread only, and put back
afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from harness.loop.streams import say
from harness.units import NS_PER_S

_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 128 + signal.SIGTERM
"""Exit code of a run that somebody else wanted to end."""
_MAX_WAIT_NS = NS_PER_S
_LAST_WORDS_S = 1.0


class StopSignals:
    """Turns the first SIGINT, SIGTERM or SIGUSR1 into a request to stop.

    Args:
        grace_s: How long after SIGTERM or SIGUSR1 the process may go on.
        on_stop: Called in the handler.
        on_grace_over: Called from a thread before the process is ended; has a second.
    """

    def __init__(
        self,
        *,
        grace_s: float,
        on_stop: Callable[[signal.Signals], None],
        on_grace_over: Callable[[], None],
    ) -> None:
        self.received: signal.Signals | None = None
        self._on_stop = on_stop
        self._grace = GracePeriod(grace_s, on_over=on_grace_over)
        self._owner_pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals, unless this is not the main thread. SIGUSR1 is left to whoever uses it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _HANDLED:
            if number != signal.SIGUSR1 or signal.getsignal(number) == signal.SIG_DFL:
                self._previous[number] = signal.signal(number, self._handle)
        self._grace.prepare()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        while self._previous:
            number, handler = self._previous.popitem()
            # None: the handler was not set from Python and cannot be set back by it.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._grace.cancel()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner_pid:
            self._handle_in_worker(number)
            return
        if number in _PREEMPTIONS:
            self._grace.begin()
        if self.received is None:
            self.received = signal.Signals(number)
            self._on_stop(self.received)
        elif number != signal.SIGUSR1 and self.received is not signal.SIGUSR1:
            # Not SystemExit: the user wants out now, and what was logged up to the last second is on disk.
            say("\nharness: stopped at once\n")
            os._exit(128 + number)
        else:
            self.received = signal.Signals(number)  # SIGTERM behind SIGUSR1 is not the user's second

    @staticmethod
    def _handle_in_worker(number: int) -> None:
        """A forked DataLoader worker inherits the handler: the terminal's Ctrl-C is for the trainer to answer, and so
        is Slurm's SIGUSR1, which all processes of a job step get.
        """
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def raise_again(self) -> None:
        """After everything is closed: what Python would have raised for the signal."""
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(PREEMPTED)


class GracePeriod:
    """Ends the process when its time is over, also one that hangs in a step or on a disk.

    Args:
        length_s: From `begin` to the end.
        on_over: Called before the process is ended; has a second.
    """

    def __init__(self, length_s: float, *, on_over: Callable[[], None]) -> None:
        self._length_s = length_s
        self._on_over = on_over
        # Locks, which are open when something has happened: to open one, a signal handler need not wait.
        self._begun = threading.Lock()
        self._cancelled = threading.Lock()

    def prepare(self) -> None:
        """Start the thread, which sleeps: a signal handler must not start one."""
        self._begun.acquire()
        self._cancelled.acquire()
        threading.Thread(target=self._watch, name="harness-grace", daemon=True).start()

    def begin(self) -> None:
        """The time starts now. A second call changes nothing."""
        with contextlib.suppress(RuntimeError):  # open already
            self._begun.release()

    def cancel(self) -> None:
        """The process has closed everything and goes by itself."""
        with contextlib.suppress(RuntimeError):
            self._cancelled.release()
        self.begin()

    def _watch(self) -> None:
        self._begun.acquire()
        if self._cancelled.acquire(timeout=self._length_s):
            return
        say(f"\nharness: the grace period of {self._length_s:g} s is over: ending without the rest\n")
        last_words = threading.Thread(target=self._on_over, daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_S)
        os._exit(PREEMPTED)


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


@contextlib.contextmanager
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
