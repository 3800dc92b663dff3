from __future__ import annotations

import math
import random

import numpy as np
import pytest

from harness.intervals import difference_interval, median_interval


def test_the_interval_of_five_values_reaches_over_all_of_them() -> None:
    # Three draws of five hit the smallest value with a chance of 0.058, which is more than 0.025.
    found = median_interval([11.0, 12.0, 13.0, 14.0, 15.0])
    assert (found.low, found.mid, found.high, found.confidence) == (11.0, 13.0, 15.0, 0.95)


def test_one_value_has_a_median_and_no_bounds() -> None:
    assert median_interval([3.0]).mid == 3.0
    assert (median_interval([3.0]).low, median_interval([3.0]).high) == (-math.inf, math.inf)
    found = difference_interval([1.0, 2.0, 3.0], [5.0])
    assert (found.low, found.mid, found.high) == (-math.inf, 3.0, math.inf)


def test_a_difference_is_the_new_median_minus_that_of_the_base() -> None:
    found = difference_interval([10.0, 10.1, 10.2, 10.3, 9.9], [12.0, 12.1, 12.2, 12.3, 11.9])
    assert found.mid == pytest.approx(2.0)
    assert 1.5 < found.low < 2.0 < found.high < 2.5


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="no value"):
        median_interval([])
    with pytest.raises(ValueError, match="no value"):
        difference_interval([1.0], [])


def test_the_same_values_give_the_same_interval_and_no_global_generator_moves() -> None:
    values = [float(value) for value in range(40)]
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert median_interval(values) == median_interval(values)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(5)
    found = [median_interval(drawn.exponential(size=15).tolist()) for _ in range(200)]
    share = np.mean([each.low <= math.log(2) <= each.high for each in found])
    assert 0.88 <= share <= 1.0


def test_more_confidence_gives_a_wider_interval() -> None:
    values = [float(value) for value in np.random.default_rng(6).normal(size=30)]
    narrow, wide = (median_interval(values, confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_large_sample_is_resampled_in_parts_of_bounded_size() -> None:
    found = median_interval(list(np.linspace(0, 1, 5001)))
    assert 0.45 < found.low < 0.5 < found.high < 0.55
