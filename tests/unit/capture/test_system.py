from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from harness.capture.readings import Counter, Reading
from harness.capture.system import SystemSample, SystemSampler, Ticks
from harness.errors import ConfigError

S = 1_000_000_000
MS = 1_000_000


class FakeSource:
    """Gives the readings it is told to give; an exception among them is raised. Repeats the last."""

    def __init__(self, *readings: Reading | BaseException) -> None:
        self.readings = list(readings)

    def read(self) -> Reading:
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, BaseException):
            raise reading
        return reading


def sampler_of(source: FakeSource, **options: object) -> tuple[SystemSampler, list[SystemSample]]:
    samples: list[SystemSample] = []
    ticking = iter(range(0, 10**6 * S, S))
    return (
        SystemSampler(source=source, on_sample=samples.append, unix_ns=lambda: next(ticking), **options),
        samples,
    )


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "harness-system"]


def test_first_sample_has_gauges_and_no_rates_the_second_has_both() -> None:
    sampler, samples = sampler_of(
        FakeSource(
            Reading(gauges={"num_workers": 2.0}, counters={"net_sent_bytes_per_s": Counter(1000, 0)}),
            Reading(gauges={"num_workers": 3.0}, counters={"net_sent_bytes_per_s": Counter(1512, 2 * S)}),
        )
    )
    sampler.sample()
    sampler.sample()
    assert samples == [
        SystemSample(0, {"num_workers": 2.0}),
        SystemSample(S, {"num_workers": 3.0, "net_sent_bytes_per_s": 256.0}),
    ]


def test_counter_that_is_read_less_often_is_divided_by_its_own_time() -> None:
    sampler, samples = sampler_of(
        FakeSource(
            Reading(counters={"fast": Counter(0, 0), "slow": Counter(0, 0)}),
            Reading(counters={"fast": Counter(1, S)}),
            Reading(counters={"fast": Counter(3, 2 * S), "slow": Counter(10, 2 * S)}),
        )
    )
    for _ in range(3):
        sampler.sample()
    assert [sample.values for sample in samples] == [{}, {"fast": 1.0}, {"fast": 2.0, "slow": 5.0}]


def test_counter_that_wraps_loses_one_sample_and_is_counted_in_the_health() -> None:
    totals = [100, 200, 50, 80]
    sampler, samples = sampler_of(
        FakeSource(*(Reading(counters={"disk_read_bytes_per_s": Counter(n, i * S)}) for i, n in enumerate(totals)))
    )
    for _ in totals:
        sampler.sample()
    assert [sample.values.get("disk_read_bytes_per_s") for sample in samples] == [None, 100.0, None, 30.0]
    assert sampler.health.resets == 1
    assert sampler.health.errors == 0


def test_failing_part_of_a_reading_is_counted_and_the_rest_is_kept() -> None:
    sampler, samples = sampler_of(FakeSource(Reading(gauges={"load_1min": 0.5}, errors=("disks: OSError: gone",))))
    sampler.sample()
    assert samples[0].values == {"load_1min": 0.5}
    assert (sampler.health.taken, sampler.health.errors) == (1, 1)
    assert sampler.health.last_error == "disks: OSError: gone"


def test_samples_of_a_span_are_found_with_both_ends_included() -> None:
    sampler, samples = sampler_of(FakeSource(Reading(gauges={"a": 1.0})))
    for _ in range(10):
        sampler.sample()
    assert sampler.samples(3 * S, 5 * S) == samples[3:6]
    assert sampler.samples(20 * S, 30 * S) == []


def test_recent_samples_are_bounded_and_the_oldest_go_first() -> None:
    sampler, samples = sampler_of(FakeSource(Reading()), keep=4)
    for _ in range(100):
        sampler.sample()
    assert sampler.samples(0, 1000 * S) == samples[-4:]
    assert sampler.health.taken == 100


def test_tick_that_is_taken_in_time_misses_none() -> None:
    ticks = Ticks(50 * MS, 0)
    assert ticks.next_ns == 50 * MS
    assert ticks.take(50 * MS + 3) == 0
    assert ticks.next_ns == 100 * MS


@pytest.mark.parametrize(("late_ms", "missed", "next_ms"), [(99, 0, 100), (100, 1, 150), (149, 1, 150), (520, 9, 550)])
def test_late_tick_counts_those_that_went_by_and_keeps_the_beat(late_ms: int, missed: int, next_ms: int) -> None:
    ticks = Ticks(50 * MS, 0)
    assert ticks.take(late_ms * MS) == missed
    assert ticks.next_ns == next_ms * MS


def test_faster_beat_makes_an_overdue_tick_due_now_and_misses_none() -> None:
    ticks = Ticks(1000 * MS, 0)
    ticks.change(50 * MS, 600 * MS)
    assert ticks.next_ns == 600 * MS
    assert ticks.take(600 * MS) == 0
    assert ticks.next_ns == 650 * MS


def test_slower_beat_counts_from_the_last_tick() -> None:
    ticks = Ticks(50 * MS, 0)
    ticks.take(50 * MS)
    ticks.change(1000 * MS, 60 * MS)
    assert ticks.next_ns == 1050 * MS


def test_thread_samples_at_its_interval_and_takes_a_last_one_when_closed() -> None:
    sampler, samples = sampler_of(FakeSource(Reading()), interval_s=0.02)
    sampler.start()
    wait_for(lambda: len(samples) >= 5)
    sampler.close()
    taken = len(samples)
    time.sleep(0.06)
    assert len(samples) == taken == sampler.health.taken
    assert not sampler.health.died
    assert 0 < sampler.cpu_ns < S


def test_short_run_gets_a_first_and_a_last_sample() -> None:
    sampler, samples = sampler_of(FakeSource(Reading()), interval_s=60)
    sampler.start()
    sampler.close()
    assert len(samples) == 2


def test_new_interval_takes_effect_without_waiting_for_the_old_one() -> None:
    sampler, samples = sampler_of(FakeSource(Reading()), interval_s=3600)
    sampler.start()
    wait_for(lambda: len(samples) == 1)
    sampler.set_interval(0.01)
    wait_for(lambda: len(samples) >= 4, timeout_s=2)
    sampler.set_interval(3600)
    time.sleep(0.05)
    settled = len(samples)
    time.sleep(0.1)
    assert len(samples) == settled
    assert sampler.health.missed < 20, "the change of interval must not count as missed samples"
    sampler.close()


def test_source_slower_than_the_interval_is_seen_as_missed_samples() -> None:
    class Slow:
        def read(self) -> Reading:
            time.sleep(0.05)
            return Reading()

    samples: list[SystemSample] = []
    sampler = SystemSampler(source=Slow(), on_sample=samples.append, interval_s=0.01)
    sampler.start()
    wait_for(lambda: len(samples) >= 4)
    sampler.close()
    # three samples of 50 ms each hold at least four ticks of 10 ms that nobody took
    assert sampler.health.missed >= 12


def test_source_that_raises_once_is_counted_and_the_thread_goes_on() -> None:
    sampler, samples = sampler_of(FakeSource(Reading(), RuntimeError("psutil changed"), Reading()), interval_s=0.005)
    sampler.start()
    wait_for(lambda: len(samples) >= 4)
    sampler.close()
    assert sampler.health.errors == 1
    assert sampler.health.last_error == "RuntimeError: psutil changed"
    assert not sampler.health.died


def test_receiver_that_raises_is_counted_and_the_samples_are_kept() -> None:
    def full(sample: SystemSample) -> None:
        raise OSError("no space left")

    sampler = SystemSampler(source=FakeSource(Reading()), on_sample=full)
    sampler.sample()
    sampler.sample()
    assert (sampler.health.taken, sampler.health.errors) == (2, 2)
    assert sampler.health.last_error == "receiver of samples: OSError: no space left"
    assert len(sampler.samples(0, time.time_ns())) == 2


def test_thread_that_dies_says_so_in_the_health_and_in_the_log(caplog) -> None:
    sampler, _ = sampler_of(FakeSource(Reading(), SystemExit(3)), interval_s=0.005)
    with caplog.at_level(logging.ERROR):
        sampler.start()
        wait_for(lambda: sampler.health.died)
        sampler.close()
    assert sampler.health.last_error == "sampler thread: SystemExit: 3"
    assert "the system sampler died" in caplog.text


def test_closing_twice_or_before_starting_does_nothing() -> None:
    sampler, samples = sampler_of(FakeSource(Reading()))
    sampler.close()
    assert samples == []
    sampler.start()
    sampler.close()
    sampler.close()
    assert len(samples) == 2


@pytest.mark.parametrize("interval_s", [0, -1.0, float("nan"), float("inf")])
def test_interval_that_is_no_positive_number_is_refused(interval_s: float) -> None:
    with pytest.raises(ConfigError, match="interval_s"):
        SystemSampler(interval_s=interval_s, on_sample=lambda sample: None, source=FakeSource(Reading()))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child_can_close_and_ask_while_the_parent_goes_on_sampling() -> None:
    sampler, samples = sampler_of(FakeSource(Reading()), interval_s=0.001)
    sampler.start()
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            try:
                sampler.set_interval(1.0)
                sampler.close()
                os._exit(0 if sampler.samples(0, 10**6 * S) == [] else 1)
            finally:
                os._exit(2)
        end = time.monotonic() + 5
        done, status = 0, 0
        while not done and time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)
        if not done:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        assert done, "the child hung"
        assert os.waitstatus_to_exitcode(status) == 0
    before = len(samples)
    wait_for(lambda: len(samples) > before)
    sampler.close()


def test_real_system_gives_values_with_their_units_in_the_name() -> None:
    samples: list[SystemSample] = []
    sampler = SystemSampler(interval_s=0.05, on_sample=samples.append)
    sampler.start()
    wait_for(lambda: len(samples) >= 4)
    sampler.close()
    assert sampler.health.errors == 0, sampler.health.last_error
    expected = {
        "process_cpu_pct",
        "process_rss_bytes",
        "system_cpu_pct",
        "page_faults_major_per_s",
        "page_faults_minor_per_s",
        "context_switches_voluntary_per_s",
        "context_switches_involuntary_per_s",
    }
    assert expected <= samples[-1].values.keys()
    everything = {name for sample in samples for name in sample.values}
    assert {"memory_available_bytes", "memory_used_pct", "load_1min"} <= everything
    assert all(value >= 0 for sample in samples for value in sample.values.values())
    assert abs(samples[-1].time_ns - time.time_ns()) < 60 * S
