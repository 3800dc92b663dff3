"""When things are due."""

from __future__ import annotations

import pytest

from harness.errors import ConfigError
from harness.loop.interval import Interval, Limit
from harness.loop.timestamp import Timestamp
from harness.units import Duration


def _due_steps(every: str, total: str, num_steps: int, *, samples: int = 64, start: int = 0) -> list[int]:
    timestamp = Timestamp()
    for _ in range(start):
        timestamp.end_batch(samples, 10)
    interval = Interval(Duration.parse(every, fraction=True), Duration.parse(total), option="save_interval")
    interval.start(timestamp)
    due = []
    for _ in range(start, num_steps):
        timestamp.end_batch(samples, 10)
        if interval.due(timestamp):
            due.append(timestamp.batch)
    return due


def test_steps_are_due_at_their_multiples() -> None:
    assert _due_steps("3ba", "100ba", 10) == [3, 6, 9]


def test_samples_are_due_when_a_multiple_is_crossed_although_no_step_stands_on_one() -> None:
    assert _due_steps("100sp", "100ba", 6, samples=64) == [2, 4, 5]


def test_a_step_that_crosses_several_multiples_is_due_once() -> None:
    assert _due_steps("10sp", "100ba", 3, samples=64) == [1, 2, 3]


def test_tokens_count_too() -> None:
    assert _due_steps("25tok", "1000tok", 6) == [3, 5]


def test_a_fraction_is_of_the_whole_run() -> None:
    assert _due_steps("0.25dur", "10ba", 10) == [3, 5, 8, 10]


def test_a_resumed_run_is_due_where_the_uninterrupted_one_was() -> None:
    assert _due_steps("3ba", "100ba", 10, start=4) == [6, 9]
    assert _due_steps("3ba", "100ba", 10, start=6) == [9]


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="greater than zero"):
        Duration.parse("0ba", option="save_interval")


def test_a_limit_in_epochs_is_reached_by_epochs_and_known_in_steps_beforehand() -> None:
    limit, timestamp = Limit(Duration.parse("2ep")), Timestamp()
    assert limit.total_steps(57) == 114
    assert limit.total_steps(None) is None
    for _ in range(57):
        timestamp.end_batch(64, 0)
    assert limit.fraction(timestamp, 57) == pytest.approx(0.5)
    timestamp.end_epoch()
    assert not limit.reached(timestamp)
    assert limit.fraction(timestamp, 57) == pytest.approx(0.5)
    timestamp.end_epoch()
    assert limit.reached(timestamp)


def test_a_limit_in_time_is_reached_by_the_clock() -> None:
    timestamp = Timestamp()
    assert not Limit(Duration.parse("1h")).reached(timestamp)
    timestamp.load_state_dict({**timestamp.state_dict(), "total_wct_ns": 3600 * 10**9})
    assert Limit(Duration.parse("1h")).reached(timestamp)
