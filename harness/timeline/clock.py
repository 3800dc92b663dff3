"""Two clocks on one axis: intervals are measured on the monotonic clock, files carry Unix time.

`time.perf_counter_ns` never steps; `time.time_ns` does, when somebody sets the clock. An anchor is one reading of
both, and is taken anew for each block of steps, so that a clock that is set shifts later blocks and breaks no interval.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """One moment on both clocks."""

    perf_ns: int
    """`time.perf_counter_ns` at the moment."""
    unix_ns: int
    """`time.time_ns` at the moment."""

    @classmethod
    def now(cls) -> ClockAnchor:
        """Read both clocks; the monotonic one before and after, so that the error is half of what lies between."""
        before = time.perf_counter_ns()
        unix_ns = time.time_ns()
        after = time.perf_counter_ns()
        return cls(perf_ns=(before + after) // 2, unix_ns=unix_ns)

    @property
    def offset_ns(self) -> int:
        """What to add to a `perf_counter_ns` reading to get Unix time in ns."""
        return self.unix_ns - self.perf_ns
