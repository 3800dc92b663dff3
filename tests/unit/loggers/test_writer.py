from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import pytest

from harness.loggers.writer import WriterThread


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def move(queue: list[int], written: list[int]) -> None:
    written.extend(queue)
    queue.clear()


def test_jobs_run_in_the_order_they_were_added() -> None:
    ran: list[str] = []
    writer = WriterThread(interval_s=60)
    for name in "abc":
        writer.add(name, lambda name=name: ran.append(name))
    writer.start()
    writer.close()
    assert ran == ["a", "b", "c"] * (len(ran) // 3)
    assert ran


def test_jobs_run_each_interval_without_being_woken() -> None:
    ran: list[int] = []
    writer = WriterThread(interval_s=0.01)
    writer.add("a", lambda: ran.append(1))
    writer.start()
    wait_for(lambda: len(ran) >= 3)
    writer.close()


def test_wake_brings_a_tick_forward() -> None:
    ran: list[int] = []
    writer = WriterThread(interval_s=3600)
    writer.add("a", lambda: ran.append(1))
    writer.start()
    wait_for(lambda: len(ran) == 1)
    writer.wake()
    wait_for(lambda: len(ran) == 2)
    writer.close()


def test_close_runs_every_job_after_all_that_was_handed_over() -> None:
    queue: list[int] = []
    written: list[int] = []
    writer = WriterThread(interval_s=3600)
    writer.add("drain", lambda: move(queue, written))
    writer.start()
    wait_for(lambda: writer.health()["drain"].runs == 1)
    queue.append(7)
    writer.close()
    assert written == [7]
    assert not [thread for thread in threading.enumerate() if thread.name == "harness-writer"]


def test_a_job_that_raises_is_reported_once_and_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []

    def fail() -> None:
        raise ValueError("disk on fire")

    writer = WriterThread(interval_s=0.005)
    writer.add("bad", fail)
    writer.add("good", lambda: ran.append(1))
    with caplog.at_level(logging.WARNING):
        writer.start()
        wait_for(lambda: len(ran) >= 3)
        writer.close()
    health = writer.health()
    assert health["bad"].errors == health["bad"].runs >= 3
    assert health["bad"].last_error == "ValueError: disk on fire"
    assert health["good"].errors == 0
    assert sum("bad failed" in record.getMessage() for record in caplog.records) == 1


def test_a_job_that_exits_does_not_end_the_writing() -> None:
    ran: list[int] = []

    def leave() -> None:
        raise SystemExit(1)

    writer = WriterThread(interval_s=0.005)
    writer.add("leaver", leave)
    writer.add("good", lambda: ran.append(1))
    writer.start()
    wait_for(lambda: len(ran) >= 2)
    writer.close()
    assert writer.health()["leaver"].last_error == "SystemExit: 1"


def test_a_hanging_job_is_left_behind_and_taken_up_again_when_it_comes_back() -> None:
    release = threading.Event()
    calls: list[int] = []
    ran: list[int] = []

    def hang_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            release.wait(30)

    writer = WriterThread(interval_s=0.005, hang_timeout_s=0.05)
    writer.add("stuck", hang_once)
    writer.add("good", lambda: ran.append(1))
    writer.start()
    wait_for(lambda: calls == [1])
    time.sleep(0.06)
    assert not ran
    writer.watch()
    wait_for(lambda: len(ran) >= 3)
    assert writer.health()["stuck"].hung
    assert calls == [1], "the stuck job must not be run by two threads"
    release.set()
    wait_for(lambda: len(calls) >= 3)
    assert not writer.health()["stuck"].hung
    assert writer.health()["stuck"].hangs == 1
    writer.close()


def test_watch_leaves_a_job_alone_that_is_only_slow() -> None:
    writer = WriterThread(interval_s=0.005, hang_timeout_s=5)
    writer.add("slow", lambda: time.sleep(0.02))
    writer.start()
    for _ in range(20):
        writer.watch()
        time.sleep(0.002)
    writer.close()
    assert writer.health()["slow"].hangs == 0


def test_close_with_a_hanging_job_returns_in_time_and_runs_the_others_once_more() -> None:
    release = threading.Event()
    queue: list[int] = []
    written: list[int] = []
    hanging = threading.Event()

    def hang() -> None:
        hanging.set()
        release.wait(30)

    writer = WriterThread(interval_s=0.005)
    writer.add("stuck", hang)
    writer.add("good", lambda: move(queue, written))
    writer.start()
    assert hanging.wait(5)
    queue.append(1)
    started = time.monotonic()
    writer.close(timeout_s=0.2)
    assert time.monotonic() - started < 2
    assert written == [1]
    assert writer.health()["stuck"].hung
    release.set()


def test_wait_until_gives_up_when_there_is_no_thread_to_wait_for() -> None:
    assert WriterThread().wait_until(lambda: False) is False


def test_a_job_may_wait_for_its_own_writer_without_a_deadlock() -> None:
    answers: list[bool] = []
    writer = WriterThread(interval_s=0.005)
    writer.add("self", lambda: answers.append(writer.wait_until(lambda: False)))
    writer.start()
    wait_for(lambda: len(answers) >= 1)
    writer.close()
    assert answers[0] is False


def test_cpu_time_is_counted_over_replaced_threads() -> None:
    release = threading.Event()
    turns: list[int] = []

    def work() -> None:
        turns.append(1)
        if len(turns) == 2:
            release.wait(30)
            return
        end_ns = time.thread_time_ns() + 20_000_000
        while time.thread_time_ns() < end_ns:
            pass

    writer = WriterThread(interval_s=0.005, hang_timeout_s=0.05)
    writer.add("work", work)
    writer.start()
    wait_for(lambda: len(turns) == 2)
    first_ns = writer.cpu_ns
    assert 20_000_000 <= first_ns < 200_000_000
    time.sleep(0.06)
    writer.watch()
    release.set()
    wait_for(lambda: len(turns) >= 4)
    writer.close()
    assert writer.cpu_ns >= first_ns + 20_000_000


def test_a_forked_child_has_an_inactive_writer_that_blocks_nowhere() -> None:
    writer = WriterThread(interval_s=0.0005)
    writer.add("busy", lambda: None)
    writer.start()
    for _ in range(50):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                writer.wake()
                writer.watch()
                waited = writer.wait_until(lambda: False)
                writer.close()
                code = 0 if writer.inactive and not waited else 2
            finally:
                os._exit(code)
        assert exit_code(child) == 0
    assert not writer.inactive
    writer.close()


def exit_code(pid: int, timeout_s: float = 5.0) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the forked child hangs")
