"""What a source of system metrics gives, and how counters become rates.

The system counts things (bytes, processor time, faults) since some start; people want them per second. Each
counter carries the moment it was read, and one function turns two readings into values.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from harness.units import NS_PER_S

logger = logging.getLogger(__name__)

# A source that is due every second must not be skipped because a tick came a millisecond early.
_EARLY = 0.9


class Counter(NamedTuple):
    """A quantity counted since some start; its value is the growth of `total` per second."""

    total: float
    """Counted so far, in the unit of the value times seconds: bytes for `_bytes_per_s`, 100 x busy seconds
    for `_pct`."""
    at_ns: int
    """When it was read, on the monotonic clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the system says at one moment."""

    gauges: Mapping[str, float] = field(default_factory=dict)
    """Values that hold as they are, by their final name."""
    counters: Mapping[str, Counter] = field(default_factory=dict)
    """Counters, by the name of the value they become."""
    errors: tuple[str, ...] = ()
    """One text for each source that failed; what the others gave is above."""


class SystemSource(Protocol):
    """Something that can be asked for the state of the system."""

    def read(self) -> Reading:
        """Read now."""


class Rates(NamedTuple):
    """What two readings of the same counters say."""

    values: dict[str, float]
    """Growth per second, by name."""
    num_resets: int
    """Counters that went backwards (a wrap, a device that left): they have no value this time."""


def rates(previous: Mapping[str, Counter], current: Mapping[str, Counter]) -> Rates:
    """Turn counters into values per second.

    A counter that is new, or whose clock has not moved, has no value. One that went backwards has no value
    either and is counted: a guess at how far it had come would be a number nobody measured.

    Example:
        >>> rates({"read_bytes_per_s": Counter(1000, 0)}, {"read_bytes_per_s": Counter(4000, 2_000_000_000)})
        Rates(values={'read_bytes_per_s': 1500.0}, num_resets=0)
    """
    values: dict[str, float] = {}
    num_resets = 0
    for name, now in current.items():
        before = previous.get(name)
        if before is None:
            continue
        grown, passed_ns = now.total - before.total, now.at_ns - before.at_ns
        if grown < 0:
            num_resets += 1
        elif passed_ns > 0:
            values[name] = grown * NS_PER_S / passed_ns
    return Rates(values, num_resets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One part of the system, read by one function that may fail without hurting the others."""

    name: str
    """For error texts."""
    read: Callable[[int], Reading]
    """Takes the monotonic time in ns at which it is called."""
    min_interval_s: float = 0.0
    """Read at most this often, for what is dear or moves slowly; zero reads it in every sample."""


class SourceGroup:
    """Reads several sources as one; one that raises is named in the reading and read again the next time.

    Args:
        sources: What to read, in this order.
        monotonic_ns: The clock that counters are divided by.
    """

    def __init__(self, sources: Sequence[Source], *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._sources = tuple(sources)
        self._monotonic_ns = monotonic_ns
        self._read_at_ns: dict[str, int] = {}
        self._warned: set[str] = set()

    def read(self) -> Reading:
        """Ask every source that is due and put what they give together."""
        gauges: dict[str, float] = {}
        counters: dict[str, Counter] = {}
        errors: list[str] = []
        for source in self._sources:
            now_ns = self._monotonic_ns()
            if not self._due(source, now_ns):
                continue
            try:
                reading = source.read(now_ns)
            except Exception as error:
                errors.append(self._failed(source, error))
            else:
                gauges.update(reading.gauges)
                counters.update(reading.counters)
                errors.extend(reading.errors)
        return Reading(gauges=gauges, counters=counters, errors=tuple(errors))

    def _due(self, source: Source, now_ns: int) -> bool:
        if not source.min_interval_s:
            return True
        last_ns = self._read_at_ns.get(source.name)
        if last_ns is not None and now_ns - last_ns < _EARLY * source.min_interval_s * NS_PER_S:
            return False
        self._read_at_ns[source.name] = now_ns
        return True

    def _failed(self, source: Source, error: Exception) -> str:
        text = f"{source.name}: {type(error).__name__}: {error}"
        if source.name not in self._warned:
            self._warned.add(source.name)
            logger.warning("system metrics: %s (reported once; its values are missing while it fails)", text)
        return text
