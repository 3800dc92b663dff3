"""How sure a median is: bootstrap intervals, the same for the same values.

The resampling has a random generator of its own with a fixed seed, so that a report made twice from one file says the
same, and nobody's random numbers move. Method: percentile bootstrap (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_SEED = 20_260
_MAX_VALUES_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A median and the bounds it lies between. All in the unit of the values."""

    low: float
    """Minus infinity where one value alone says nothing about its spread."""
    mid: float
    """The median, or the difference of two."""
    high: float
    """Infinity where one value alone says nothing about its spread."""
    confidence: float
    """Of the bounds: 0.95."""


def median_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """The median of some values, with its bootstrap interval.

    Args:
        values: One for each independent measurement, as a rule each process; at least one.
        confidence: Of the bounds, between 0 and 1.

    Raises:
        ValueError: There is no value.
    """
    return _interval(float(np.median(_checked(values))), _medians(values), len(values) > 1, confidence)


def difference_interval(base: Sequence[float], new: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Median of `new` minus median of `base`, with its bootstrap interval; both are resampled on their own.

    Args:
        base: What is subtracted; at least one value.
        new: What it is subtracted from; at least one value.
        confidence: Of the bounds, between 0 and 1.

    Raises:
        ValueError: There is no value in one of them.
    """
    mid = float(np.median(_checked(new)) - np.median(_checked(base)))
    return _interval(
        mid, _medians(new, stream=1) - _medians(base, stream=2), len(base) > 1 and len(new) > 1, confidence
    )


def _interval(mid: float, resampled: npt.NDArray[np.float64], is_known: bool, confidence: float) -> Interval:
    if not is_known:
        return Interval(low=-math.inf, mid=mid, high=math.inf, confidence=confidence)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=float(low), mid=mid, high=float(high), confidence=confidence)


def _medians(values: Sequence[float], *, stream: int = 0) -> npt.NDArray[np.float64]:
    """Medians of as many resamples; in parts, so that many values take no more memory than few."""
    numbers = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng([_SEED, stream])
    at_once = max(_MAX_VALUES_AT_ONCE // len(numbers), 1)
    parts = [
        np.median(
            numbers[random.integers(len(numbers), size=(min(at_once, NUM_RESAMPLES - done), len(numbers)))], axis=1
        )
        for done in range(0, NUM_RESAMPLES, at_once)
    ]
    return np.concatenate(parts)


def _checked(values: Sequence[float]) -> Sequence[float]:
    if not len(values):
        raise ValueError("there is no value to take the median of")
    return values
