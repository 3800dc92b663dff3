"""Metric names as a place can hold them, and values too: one mapping for each place, and no two metrics in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from harness.errors import ConfigError

SYSTEM_PREFIX = "system/"
"""In front of the names of system samples, in places that keep them beside the metrics."""
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class MetricNames:
    """The names of a place.

    Args:
        place: Its name, for the error.
        change: From a metric's name to that of the place.
    """

    def __init__(self, place: str, change: Callable[[str], str]) -> None:
        self._place = place
        self._change = change
        self._names: dict[str, dict[str, str | None]] = {"": {}, SYSTEM_PREFIX: {}}
        self._owners: dict[str, str] = {}

    def row(self, metrics: Mapping[str, float], *, prefix: str = "") -> dict[str, float]:
        """The metrics under the names of the place, their values in 64 bits.

        Args:
            metrics: Numbers by name.
            prefix: Empty, or `SYSTEM_PREFIX` for system samples.

        Raises:
            ConfigError: Two metrics have the same name in this place. Raised when the second is first seen; from
                then on that one is left out.
        """
        row: dict[str, float] = {}
        names = self._names[prefix]
        for name, value in metrics.items():
            known = names[name] if name in names else self._learn(name, prefix)
            if known is not None:
                row[known] = value if type(value) is float else in_64_bits(value)
        return row

    def _learn(self, name: str, prefix: str) -> str | None:
        changed = self._change(prefix + name)
        shown = f"the system sample {name!r}" if prefix else f"the metric {name!r}"
        owner = self._owners.setdefault(changed, shown)
        self._names[prefix][name] = changed if owner == shown else None
        if owner != shown:
            raise ConfigError(
                f"{shown} has the name {changed!r} in {self._place}, which is that of {owner}",
                hint=f"rename the metric; {shown} is left out there from now on",
            )
        return changed


def in_64_bits(value: float) -> float:
    """The number as others can hold it: an integer beyond 64 bits becomes a float, or infinite."""
    if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value
