"""When something is due: every so many steps, epochs, samples, tokens, seconds, or fractions of the run."""

from __future__ import annotations

import math

from harness.errors import ConfigError
from harness.loop.timestamp import Timestamp
from harness.units import Duration, DurationUnit


def _amount(duration: Duration) -> int | float:
    return duration.value_ns if duration.unit is DurationUnit.SECOND else duration.value


class Limit:
    """The end of training: reached once the count is there."""

    def __init__(self, max_duration: Duration) -> None:
        self.duration = max_duration
        self._unit = max_duration.unit
        self._amount = _amount(max_duration)

    def reached(self, timestamp: Timestamp) -> bool:
        """Whether training is over."""
        return timestamp.value(self._unit) >= self._amount

    def fraction(self, timestamp: Timestamp, batches_per_epoch: int | None = None) -> float:
        """How much of the run is done, 0 to 1."""
        value: float = timestamp.value(self._unit)
        if self._unit is DurationUnit.EPOCH and batches_per_epoch:
            value += timestamp.batch_in_epoch / batches_per_epoch
        return min(1.0, value / self._amount)

    def total_steps(self, batches_per_epoch: int | None) -> int | None:
        """How many steps the whole run has, where that can be known before it starts."""
        if self._unit is DurationUnit.BATCH:
            return int(self._amount)
        if self._unit is DurationUnit.EPOCH and batches_per_epoch:
            return int(self._amount) * batches_per_epoch
        return None


class Interval:
    """Due whenever the count crosses a multiple of the interval.

    Crossing-based: a step of 64 samples crosses `1000sp` although it never stands on a multiple. After a resume the
    crossings are those of the uninterrupted run.

    Args:
        every: The interval; a fraction (`0.25dur`) is of `max_duration`.
        max_duration: The whole run.
        option: Where the interval came from, for the error.
        batches_per_epoch: Where it is known: a fraction that is no whole number of epochs is counted in steps then,
            else it is due at the first end of an epoch behind it.
    """

    def __init__(
        self, every: Duration, max_duration: Duration, *, option: str, batches_per_epoch: int | None = None
    ) -> None:
        if every.unit is DurationUnit.FRACTION:
            self.unit = max_duration.unit
            self._size = _amount(max_duration) * every.value
            if self.unit is DurationUnit.EPOCH and batches_per_epoch and self._size % 1:
                self.unit = DurationUnit.BATCH
                self._size *= batches_per_epoch
        else:
            self.unit = every.unit
            self._size = _amount(every)
        if self._size <= 0:
            raise ConfigError(f"{option}={every} is nothing of {max_duration}", hint="give a longer interval")
        self._next: float = self._size

    def start(self, timestamp: Timestamp) -> None:
        """Count on from here: what was crossed before is past."""
        self._next = (math.floor(timestamp.value(self.unit) / self._size + 1e-9) + 1) * self._size

    def due(self, timestamp: Timestamp) -> bool:
        """Whether a multiple has been crossed since the last time this was true."""
        if timestamp.value(self.unit) < self._next - 1e-9:
            return False
        self.start(timestamp)
        return True
