from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from harness.capture.readings import Counter, Reading, Source, SourceGroup, rates

S = 1_000_000_000


class FakeClock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_rate_is_growth_divided_by_the_seconds_between_two_readings() -> None:
    found = rates(
        {"disk_read_bytes_per_s": Counter(1_000_000, 5 * S), "process_cpu_pct": Counter(120.0, 5 * S)},
        {
            "disk_read_bytes_per_s": Counter(1_001_024, 5 * S + S // 4),
            "process_cpu_pct": Counter(132.5, 5 * S + S // 4),
        },
    )
    assert found.values == {"disk_read_bytes_per_s": 4096.0, "process_cpu_pct": 50.0}
    assert found.num_resets == 0


def test_counter_that_stands_still_has_rate_zero() -> None:
    assert rates({"a": Counter(7, 0)}, {"a": Counter(7, S)}).values == {"a": 0.0}


def test_counter_seen_for_the_first_time_has_no_rate() -> None:
    assert rates({}, {"a": Counter(5, S)}) == ({}, 0)


def test_counter_that_went_backwards_has_no_rate_and_is_counted() -> None:
    before = {"wrapped": Counter(2**32 - 1, 0), "fine": Counter(1, 0)}
    assert rates(before, {"wrapped": Counter(10, S), "fine": Counter(3, S)}) == ({"fine": 2.0}, 1)


def test_two_readings_at_the_same_instant_have_no_rate() -> None:
    assert rates({"a": Counter(1, S)}, {"a": Counter(5, S)}) == ({}, 0)


counters = st.dictionaries(st.sampled_from("abcd"), st.builds(Counter, st.integers(0, 2**64), st.integers(0, 2**63)))


@given(previous=counters, current=counters)
def test_no_rate_is_ever_negative(previous: dict[str, Counter], current: dict[str, Counter]) -> None:
    found = rates(previous, current)
    assert all(value >= 0 for value in found.values.values())
    assert found.num_resets == sum(
        name in previous and now.total < previous[name].total for name, now in current.items()
    )


def test_group_puts_the_values_of_all_sources_together_with_the_time_each_was_read() -> None:
    clock = FakeClock()

    def slow_first(now_ns: int) -> Reading:
        clock.now_ns += 40
        return Reading(gauges={"g": 1.0}, counters={"c": Counter(1, now_ns)})

    group = SourceGroup(
        [
            Source(name="first", read=slow_first),
            Source(name="second", read=lambda now_ns: Reading(counters={"d": Counter(2, now_ns)})),
        ],
        monotonic_ns=clock,
    )
    assert group.read() == Reading(gauges={"g": 1.0}, counters={"c": Counter(1, 0), "d": Counter(2, 40)})


def test_source_that_raises_loses_only_its_own_values_and_is_reported_once(caplog) -> None:
    calls = 0

    def broken(now_ns: int) -> Reading:
        nonlocal calls
        calls += 1
        raise OSError("no such device")

    group = SourceGroup(
        [
            Source(name="disks", read=broken),
            Source(name="load", read=lambda _: Reading(gauges={"load_1min": 0.5})),
        ]
    )
    with caplog.at_level(logging.WARNING):
        readings = [group.read() for _ in range(3)]
    assert calls == 3
    assert [reading.gauges for reading in readings] == [{"load_1min": 0.5}] * 3
    assert [reading.errors for reading in readings] == [("disks: OSError: no such device",)] * 3
    assert [record.getMessage().count("disks: OSError: no such device") for record in caplog.records] == [1]


def test_slow_source_is_read_at_most_once_in_its_interval() -> None:
    clock = FakeClock()
    read_at: list[int] = []

    def slow(now_ns: int) -> Reading:
        read_at.append(now_ns)
        return Reading()

    group = SourceGroup([Source(name="slow", read=slow, min_interval_s=1.0)], monotonic_ns=clock)
    for tick in range(60):
        clock.now_ns = tick * 50_000_000
        group.read()
    # 18 ticks of 50 ms are the first 0.9 s, the slack for ticks that come early
    assert read_at == [0, 900_000_000, 1_800_000_000, 2_700_000_000]


def test_slow_source_is_read_in_every_tick_of_its_own_interval_although_ticks_jitter() -> None:
    clock = FakeClock()
    read_at: list[int] = []

    def slow(now_ns: int) -> Reading:
        read_at.append(now_ns)
        return Reading()

    group = SourceGroup([Source(name="slow", read=slow, min_interval_s=1.0)], monotonic_ns=clock)
    ticks = [0, 1_004_000_000, 2_000_100_000, 3_000_000_000]
    for clock.now_ns in ticks:
        group.read()
    assert read_at == ticks
