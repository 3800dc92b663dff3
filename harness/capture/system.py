"""A thread that samples the system while training runs, and accounts for itself.

Slow steps have reasons outside the process as often as inside: a full disk cache, a neighbour on the
processors, workers that starve. The sampler takes them down with a time on the clock the traces use, once a
second, faster inside a capture window. It must never hurt training, nor die without anybody knowing.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from harness.capture.host import default_source
from harness.capture.readings import Counter, Reading, SystemSource, rates
from harness.errors import ConfigError
from harness.units import NS_PER_S

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class SystemSample:
    """The state of the system at one moment."""

    time_ns: int
    """Unix time, as `time.time_ns` gives it: the clock of a trace with `baseTimeNanoseconds`."""
    values: dict[str, float]
    """By name, the unit in the name. What is read less often is not in every sample; the first has no
    rates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerHealth:
    """What became of the samples."""

    taken: int = 0
    """Samples taken."""
    missed: int = 0
    """Samples that were due and not taken, because the one before ran late."""
    errors: int = 0
    """Failures of sources and of the receiver; the thread goes on after each."""
    resets: int = 0
    """Counters that went backwards; each is a value left out of a sample."""
    last_error: str | None = None
    """The latest failure."""
    died: bool = False
    """The thread ended before anybody closed it."""


class Ticks:
    """When samples are due: a fixed beat, in which late ones are counted and not caught up on.

    Args:
        interval_ns: Length of the beat.
        now_ns: The first tick, taken as done; any clock that never goes back.
    """

    def __init__(self, interval_ns: int, now_ns: int) -> None:
        self._interval_ns = interval_ns
        self._last_ns = now_ns

    @property
    def next_ns(self) -> int:
        """When the next tick is due."""
        return self._last_ns + self._interval_ns

    def take(self, now_ns: int) -> int:
        """Take the tick that is due; returns how many more have gone by since."""
        missed = max(0, (now_ns - self.next_ns) // self._interval_ns)
        self._last_ns = self.next_ns + missed * self._interval_ns
        return missed

    def change(self, interval_ns: int, now_ns: int) -> None:
        """Go on with another beat; a tick that would have been due by now is due at once, none is missed."""
        self._interval_ns = interval_ns
        self._last_ns = max(self._last_ns, now_ns - interval_ns)


class SystemSampler:
    """Samples the system on a thread of its own, from `start` to `close`.

    In a forked child there is no thread and every call does nothing.

    Example:
        >>> sampler = SystemSampler(on_sample=lambda sample: None)
        >>> sampler.start()
        >>> sampler.close()
        >>> sampler.health.taken  # one at the start, one at the end
        2

    Args:
        interval_s: Seconds between samples.
        on_sample: Receives each sample, on the sampler's thread. What it raises is counted.
        source: What to sample; default everything this machine can say.
        keep: How many samples `samples` can look back on: at 50 ms 3.4 minutes, in about 8 MB.
        unix_ns: The clock of the samples.

    Raises:
        ConfigError: The interval is not a positive number.
    """

    def __init__(
        self,
        *,
        interval_s: float = 1.0,
        on_sample: Callable[[SystemSample], None],
        source: SystemSource | None = None,
        keep: int = 4096,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._interval_ns = _interval_ns(interval_s)
        self._on_sample = on_sample
        self._source = source if source is not None else default_source()
        self._unix_ns = unix_ns
        self._recent: deque[SystemSample] = deque(maxlen=keep)
        self._recent_lock = threading.Lock()
        self._previous: dict[str, Counter] = {}
        self._taken = self._missed = self._errors = self._resets = 0
        self._last_error: str | None = None
        self._died = False
        self._cpu_ns = 0
        self._closing = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Start the thread; it takes a first sample at once."""
        assert self._thread is None, "the sampler was started before"
        self._thread = threading.Thread(target=self._run, name="harness-system", daemon=True)
        self._thread.start()

    def set_interval(self, interval_s: float) -> None:
        """Sample at another interval from now on.

        Raises:
            ConfigError: The interval is not a positive number.
        """
        self._interval_ns = _interval_ns(interval_s)
        if self._is_owner:
            self._wake.set()

    def close(self) -> None:
        """Take a last sample, so that even a short run has rates, and end the thread."""
        if self._thread is None or not self._is_owner:
            return
        self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._count_error(f"the sampler did not end within {_CLOSE_TIMEOUT_S:g} s")

    def samples(self, from_ns: int, to_ns: int) -> list[SystemSample]:
        """The recent samples with `from_ns <= time_ns <= to_ns` (Unix time), oldest first."""
        if not self._is_owner:
            return []
        with self._recent_lock:
            recent = list(self._recent)
        return [sample for sample in recent if from_ns <= sample.time_ns <= to_ns]

    @property
    def health(self) -> SamplerHealth:
        """Counts up to now."""
        return SamplerHealth(
            taken=self._taken,
            missed=self._missed,
            errors=self._errors,
            resets=self._resets,
            last_error=self._last_error,
            died=self._died,
        )

    @property
    def cpu_ns(self) -> int:
        """CPU time of the thread, up to its latest sample."""
        return self._cpu_ns

    def sample(self) -> SystemSample | None:
        """Take one sample now, on the calling thread; None if the source failed as a whole.

        The thread's own work. Call it only on a sampler that was not started.
        """
        time_ns = self._unix_ns()
        try:
            reading = self._source.read()
        except Exception as error:
            self._count_error(f"{type(error).__name__}: {error}")
            return None
        sample = SystemSample(time_ns, self._values(reading))
        self._taken += 1
        with self._recent_lock:
            self._recent.append(sample)
        try:
            self._on_sample(sample)
        except Exception as error:
            self._count_error(f"receiver of samples: {type(error).__name__}: {error}")
        return sample

    def _values(self, reading: Reading) -> dict[str, float]:
        for error in reading.errors:
            self._count_error(error)
        found = rates(self._previous, reading.counters)
        self._resets += found.num_resets
        # Updated, not replaced: a source that is read less often meets its own last reading again.
        self._previous.update(reading.counters)
        return {**reading.gauges, **found.values}

    def _count_error(self, text: str) -> None:
        self._errors += 1
        self._last_error = text

    @property
    def _is_owner(self) -> bool:
        # A fork may have copied the Event's and our own lock in the locked state.
        return os.getpid() == self._pid

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            self._died = True
            self._count_error(f"sampler thread: {type(error).__name__}: {error}")
            logger.exception("the system sampler died; training goes on without system metrics")

    def _loop(self) -> None:
        ticks = Ticks(self._interval_ns, time.monotonic_ns())
        self.sample()
        while not self._closing:
            self._cpu_ns = time.thread_time_ns()
            delay_s = (ticks.next_ns - time.monotonic_ns()) / NS_PER_S
            if self._wake.wait(max(0.0, delay_s)):
                self._wake.clear()
                ticks.change(self._interval_ns, time.monotonic_ns())
                continue
            self._missed += ticks.take(time.monotonic_ns())
            self.sample()
        self.sample()
        self._cpu_ns = time.thread_time_ns()


def _interval_ns(interval_s: float) -> int:
    if not (math.isfinite(interval_s) and interval_s > 0):
        raise ConfigError(
            f"system interval_s={interval_s!r} is not a positive number of seconds", hint="give 1.0 or 0.05"
        )
    return max(1, round(interval_s * NS_PER_S))
