"""Quantities and their spelling: durations of training, nanoseconds, bytes.

The only module that converts between units. Time is an integer number of nanoseconds inside the package;
every public name that carries a quantity ends in its unit.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from harness.errors import ConfigError

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
NS_PER_US = 1_000


def format_duration_ns(ns: float) -> str:
    """A time for people: three significant digits and the unit that fits (`512 µs`, `1.25 s`, `2 min 5 s`)."""
    if ns >= 60 * NS_PER_S:
        minutes, seconds = divmod(round(ns / NS_PER_S), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    for size, unit in ((NS_PER_S, "s"), (NS_PER_MS, "ms"), (NS_PER_US, "µs")):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns / size < 999.5 else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"


def format_bytes(size_bytes: float) -> str:
    """A size for people, in powers of 1000 (`1.5 MB`)."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


class DurationUnit(enum.StrEnum):
    """What a training duration is counted in."""

    EPOCH = "ep"
    BATCH = "ba"
    SAMPLE = "sp"
    TOKEN = "tok"  # noqa: S105 - a unit of text, no password
    SECOND = "sec"
    FRACTION = "dur"
    """A fraction of `max_duration`; for intervals only."""


_COUNT = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>ep|ba|sp|tok|dur)")
_CLOCK = re.compile(r"(?:(?P<h>[0-9]+)(?:h|hr))?(?:(?P<m>[0-9]+)(?:min|m))?(?:(?P<s>[0-9]+(?:\.[0-9]+)?)(?:sec|s))?")
_MAX_DIGITS = 15
"""Of a number: more than any training has, and what a float holds exactly."""
_TOO_LONG = re.compile(rf"(?<![.0-9])0*[1-9][0-9]{{{_MAX_DIGITS},}}")
_EXPECTED = (
    "a number and one of ep (epochs), ba (steps), sp (samples), tok (tokens), or a time such as 90sec, 50min, 1h30m"
)


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training: how long a run lasts, or how often something happens.

    Example:
        >>> Duration.parse("2ep")
        Duration(value=2, unit=<DurationUnit.EPOCH: 'ep'>)
        >>> str(Duration.parse("1h30m"))
        '5400sec'
    """

    value: int | float
    """In `unit`; nanoseconds are in `value_ns` for times. An int except for `dur` and fractions of a second."""
    unit: DurationUnit

    @classmethod
    def parse(cls, text: str | int | Duration, *, option: str = "duration", fraction: bool = False) -> Duration:
        """Read `2ep`, `100ba`, `5000sp`, `1000000tok`, `90sec`, `50min`, `1h30m`, and `0.25dur` if `fraction`.

        A bare int means epochs, as in Composer.

        Args:
            text: The spelling, or a Duration, which is checked and returned.
            option: The option the text came from, for the error.
            fraction: Whether `dur`, a fraction of `max_duration`, makes sense here.

        Raises:
            ConfigError: The text is no duration, is not positive, or is a fraction where none is allowed.
        """
        if isinstance(text, Duration):
            duration = text
        elif isinstance(text, int) and not isinstance(text, bool):
            duration = cls(text, DurationUnit.EPOCH)
        elif isinstance(text, str):
            duration = cls._parse_text(text.strip(), option)
        else:
            raise ConfigError(f"{option}={text!r} is no duration", hint=f"give {_EXPECTED}")
        duration._check(option, fraction)
        return duration

    @classmethod
    def _parse_text(cls, text: str, option: str) -> Duration:
        if _TOO_LONG.search(text):
            raise _too_long(f"{option}={text[:40]!r}")
        count = _COUNT.fullmatch(text)
        if count:
            unit = DurationUnit(count["unit"])
            if unit is DurationUnit.FRACTION:
                return cls(float(count["number"]), unit)
            if "." in count["number"]:
                raise ConfigError(f"{option}={text!r} is not a whole number of {unit}", hint=f"give {_EXPECTED}")
            return cls(int(count["number"]), unit)
        clock = _CLOCK.fullmatch(text)
        if clock and text:
            seconds = int(clock["h"] or 0) * 3600 + int(clock["m"] or 0) * 60 + float(clock["s"] or 0)
            return cls(int(seconds) if seconds == int(seconds) else seconds, DurationUnit.SECOND)
        raise ConfigError(f"{option}={text!r} is no duration", hint=f"give {_EXPECTED}")

    def _check(self, option: str, fraction: bool) -> None:
        if self.value <= 0:
            raise ConfigError(f"{option}={self} must be greater than zero", hint=f"give {_EXPECTED}")
        if self.value >= 10**_MAX_DIGITS * 3600:  # 15 digits of hours are more seconds
            raise _too_long(option)
        if self.unit is DurationUnit.FRACTION:
            if not fraction:
                raise ConfigError(
                    f"{option}={self} is a fraction of max_duration, which {option} cannot be",
                    hint=f"give {_EXPECTED}",
                )
            if self.value > 1:
                raise ConfigError(f"{option}={self} is more than the whole run", hint="give 0.25dur or 1dur")

    @property
    def value_ns(self) -> int:
        """A time in integer nanoseconds.

        Raises:
            ValueError: The duration is not a time.
        """
        if self.unit is not DurationUnit.SECOND:
            raise ValueError(f"{self} is not a time")
        return round(self.value * NS_PER_S)

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}" if isinstance(self.value, float) else f"{self.value}{self.unit}"


def _too_long(shown: str) -> ConfigError:
    return ConfigError(f"{shown} is too long a duration", hint=f"give a number of at most {_MAX_DIGITS} digits")
