from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerAction
from torch.profiler import schedule as torch_schedule

from harness.capture.schedule import Schedule, Window
from harness.errors import RecipeError

schedules = st.builds(
    Schedule,
    skip_first=st.integers(0, 7),
    wait=st.integers(0, 5),
    warmup=st.integers(0, 3),
    active=st.integers(1, 4),
    repeat=st.integers(0, 3),
)


@pytest.mark.filterwarnings("ignore:Profiler won't be using warmup")
@settings(deadline=None)
@given(schedules)
def test_windows_are_where_torchs_own_schedule_puts_them(schedule: Schedule) -> None:
    ask = torch_schedule(
        skip_first=schedule.skip_first,
        wait=schedule.wait,
        warmup=schedule.warmup,
        active=schedule.active,
        repeat=schedule.repeat,
    )
    planned = {}
    for window in islice(schedule.windows(), 80):
        planned |= dict.fromkeys(range(window.first_warmup, window.first_active), ProfilerAction.WARMUP)
        planned |= dict.fromkeys(range(window.first_active, window.last_active), ProfilerAction.RECORD)
        planned[window.last_active] = ProfilerAction.RECORD_AND_SAVE
    for step in range(1, 61):  # torch counts from 0
        assert planned.get(step, ProfilerAction.NONE) == ask(step - 1)


@settings(deadline=None)
@given(schedules, st.integers(1, 60))
def test_a_step_has_the_state_of_the_window_it_is_in_or_next_to(schedule: Schedule, step: int) -> None:
    windows = [window for window in islice(schedule.windows(), 100) if window.first_warmup <= step + 1]
    if any(window.first_active <= step <= window.last_active for window in windows):
        expected = "active"
    elif any(window.first_warmup <= step < window.first_active for window in windows):
        expected = "warmup"
    elif any(step in (window.first_warmup - 1, window.last_active + 1) for window in windows):
        expected = "adjacent"
    else:
        expected = "off"
    assert schedule.state(step) == expected


@settings(deadline=None)
@given(schedules, st.integers(0, 80))
def test_the_next_window_is_the_first_that_begins_later(schedule: Schedule, after_step: int) -> None:
    later = (window for window in islice(schedule.windows(), 100) if window.first_warmup > after_step)
    assert schedule.next_window(after_step) == next(later, None)


def test_a_window_counts_steps_from_one() -> None:
    schedule = Schedule(skip_first=10, wait=20, warmup=2, active=4, repeat=2)
    assert list(schedule.windows()) == [
        Window(first_warmup=31, first_active=33, last_active=36),
        Window(first_warmup=57, first_active=59, last_active=62),
    ]


def test_a_schedule_without_warmup_or_wait_records_from_step_one() -> None:
    window = next(Schedule(warmup=0, active=3).windows())
    assert window == Window(first_warmup=1, first_active=1, last_active=3)


def test_repeat_zero_has_windows_without_end() -> None:
    window = Schedule(wait=90, warmup=5, active=5, repeat=0).next_window(1_000_000)
    assert window == Window(first_warmup=1_000_091, first_active=1_000_096, last_active=1_000_100)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"active": 0}, "schedule.active = 0 records nothing"),
        ({"active": 65}, "more than 64 steps in one window; kineto keeps everything in memory"),
        ({"active": -1}, "schedule.active = -1"),
        ({"active": 4, "wait": -3}, "schedule.wait = -3"),
        ({"active": 4, "warmup": 1.5}, "schedule.warmup = 1.5"),
        ({"active": True}, "schedule.active = True"),
        ({"active": "4"}, "schedule.active = '4'"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_with_its_value(values: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Schedule(**values)
    assert told in caught.value.message
