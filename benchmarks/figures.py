"""Figures for people. The name of a figure ends in its unit, as `total_us` or `cpu_s_per_mb`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.intervals import Interval

_TIME = ((1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s"))
_SIZE = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"))
_LADDERS = {
    "ns": (_TIME, 1.0),
    "us": (_TIME, 1e3),
    "ms": (_TIME, 1e6),
    "s": (_TIME, 1e9),
    "bytes": (_SIZE, 1.0),
    "pct": (((1.0, "%"),), 1.0),
}
"""By the last part of the name: the units to choose from, and what one of the figure's own is in the first of them."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A unit in which a figure is shown."""

    factor: float
    """A value times this is in `unit`."""
    unit: str
    """With the space before it; empty for a plain number."""

    @classmethod
    def of(cls, figure: str, size: float) -> Scale:
        """The unit that fits values of about this size."""
        head, _, per = figure.partition("_per_")
        suffix = f" per {per.upper() if per == 'mb' else per}" if per else ""
        ladder, own = _LADDERS.get(head.rpartition("_")[2], (((1.0, ""),), 1.0))
        fitting = [step for step in ladder if step[0] <= (abs(size) or 1.0) * own] or [ladder[0]]
        step, unit = fitting[-1]
        return cls(own / step, (f" {unit}" if unit else "") + suffix)

    def number(self, value: float, *, like: float | None = None) -> str:
        """A value without its unit: three digits, or as many behind the point as `like` has with three."""
        if math.isinf(value):
            return "-∞" if value < 0 else "∞"
        size = abs((value if like is None else like) * self.factor)
        digits = 2 if size == 0 else min(max(2 - math.floor(math.log10(size)), 0), 3)
        text = f"{value * self.factor:,.{digits}f}"
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def is_counted(figure: str) -> bool:
    """Whether it is a number of things, the same on every machine, and no time."""
    return figure.endswith("_operators")


def show_value(figure: str, value: float) -> str:
    """`8.31 µs`."""
    scale = Scale.of(figure, value)
    return scale.number(value) + scale.unit


def show_limit(figure: str, value: float) -> str:
    """`10 µs`: a number that somebody chose, with the digits it has."""
    scale = Scale.of(figure, value)
    return f"{value * scale.factor:.12g}{scale.unit}"


def show_bounds(figure: str, interval: Interval, *, scale: Scale | None = None) -> str:
    """`8.31 µs [7.90, 8.77]`; one value has no bounds. In the unit that fits, unless a scale is given."""
    scale = scale or Scale.of(figure, interval.mid)
    shown = scale.number(interval.mid) + scale.unit
    if math.isinf(interval.low) or math.isinf(interval.high):
        return f"{shown} [one value]"
    low, high = (scale.number(bound, like=interval.mid) for bound in (interval.low, interval.high))
    return f"{shown} [{low}, {high}]"
