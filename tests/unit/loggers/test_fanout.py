from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import ConfigError
from harness.loggers.base import BaseLogger, Progress, RunInfo
from harness.loggers.fanout import LogFanout
from harness.loggers.writer import WriterThread

MakeRun = Callable[..., RunInfo]


class Memory(BaseLogger):
    """Keeps what it is told."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.times_ns: list[int] = []
        self.params: list[dict[str, object]] = []
        self.texts: list[str] = []
        self.flushes = 0
        self.closes = 0

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        self.metrics.append((step, dict(metrics)))
        self.times_ns.append(time_ns)

    def log_params(self, params: Mapping[str, object]) -> None:
        self.params.append(dict(params))

    def log_text(self, line: str, *, time_ns: int) -> None:
        self.texts.append(line)

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None:
        self.closes += 1


class SystemMemory(Memory):
    """Wants system samples and progress too."""

    def __init__(self) -> None:
        super().__init__()
        self.system: list[tuple[int, dict[str, float], int]] = []
        self.progress: list[Progress] = []

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        self.system.append((step, dict(metrics), time_ns))

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)


class Failing(Memory):
    """Raises for some steps."""

    def __init__(self, bad_steps: Sequence[int]) -> None:
        super().__init__("failing")
        self.bad_steps = set(bad_steps)

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        if step in self.bad_steps:
            raise OSError(f"no route to host at step {step}")
        super().log_metrics(step, metrics, time_ns=time_ns)


class Hanging(Memory):
    """Hangs in the first record until released."""

    def __init__(self) -> None:
        super().__init__("hanging")
        self.hangs = threading.Event()
        self.release = threading.Event()

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        self.hangs.set()
        self.release.wait(30)
        super().log_metrics(step, metrics, time_ns=time_ns)


@pytest.fixture
def writers() -> Iterator[list[WriterThread]]:
    made: list[WriterThread] = []
    yield made
    for writer in made:
        writer.close(timeout_s=0.2)


@pytest.fixture
def fanout(run_info: MakeRun, writers: list[WriterThread]) -> Callable[..., LogFanout]:
    """Makes an opened fan-out whose writer runs."""

    def make(*loggers: Any, interval_s: float = 0.005, hang_timeout_s: float = 10, **options: Any) -> LogFanout:
        writer = WriterThread(interval_s=interval_s, hang_timeout_s=hang_timeout_s)
        made = LogFanout(loggers, writer, **options)
        made.open(run_info())
        writer.start()
        writers.append(writer)
        return made

    return make


def test_what_is_logged_reaches_every_logger_in_order(fanout: Callable[..., LogFanout]) -> None:
    first, second = Memory("first"), Memory("second")
    fan = fanout(first, second)
    before_ns = time.time_ns()
    for step in range(1, 2001):
        fan.log(step, {"loss": step / 2})
    fan.log_params({"lr": 0.1, "model": {"width": 64}})
    fan.log_text("half way")
    fan.close()
    for logger in (first, second):
        assert logger.metrics == [(step, {"loss": step / 2}) for step in range(1, 2001)]
        assert logger.params == [{"lr": 0.1, "model.width": 64}]
        assert logger.texts == ["half way"]
        assert logger.closes == 1
        assert logger.flushes >= 1
        assert before_ns <= logger.times_ns[0] <= logger.times_ns[-1] <= time.time_ns()
    assert fan.health()["first"].records == 2002


def test_a_dictionary_changed_after_logging_changes_nothing(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory, interval_s=3600)
    metrics: dict[str, Any] = {"loss": 1.0}
    for step in (1, 2):
        fan.log(step, metrics)
        metrics["loss"] += 1
    metrics.clear()
    fan.close()
    assert memory.metrics == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]


def test_numbers_of_all_kinds_arrive_as_plain_ones(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory)
    fan.log(1, {"t": torch.tensor(0.5), "b": True, "n": np.float32(0.25), "i": 3, "f": 1.5})
    fan.close()
    [(_, values)] = memory.metrics
    assert values == {"t": 0.5, "b": 1, "n": 0.25, "i": 3, "f": 1.5}
    assert [type(value) for value in values.values()] == [float, int, float, int, float]


def test_empty_metrics_make_no_record(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory)
    fan.log(1, {})
    fan.close()
    assert memory.metrics == []


@pytest.mark.parametrize(
    "metrics", [{"loss": "high"}, {"loss": None}, {"": 1.0}, {"step": 1.0}, {3: 1.0}, [("loss", 1.0)], None]
)
def test_what_cannot_be_logged_is_refused_in_the_step_that_logs_it(
    fanout: Callable[..., LogFanout], metrics: Any
) -> None:
    memory = Memory()
    fan = fanout(memory)
    with pytest.raises(ConfigError):
        fan.log(1, metrics)
    with pytest.raises(ConfigError):
        fan.stage(metrics)
    fan.log(2, {"loss": 1.0})
    fan.close()
    assert memory.metrics[-1] == (2, {"loss": 1.0})


def test_a_bad_name_stays_refused_when_logged_again(fanout: Callable[..., LogFanout]) -> None:
    fan = fanout(Memory())
    for _ in range(2):
        with pytest.raises(ConfigError):
            fan.log(1, {"bad\nname": 1.0})
    fan.close()


def test_device_tensors_are_read_by_the_writer_with_the_value_they_had(
    fanout: Callable[..., LogFanout],
) -> None:
    memory = Memory()
    # There is no device here: CPU tensors are sent down the same path.
    fan = fanout(memory, interval_s=3600, defer=lambda _: True)
    running = torch.tensor(0.0)
    for step in range(1, 601):
        running += 1
        fan.log(step, {"loss": running, "count": torch.tensor(step), "plain": 0.5})
    fan.close()
    assert memory.metrics == [(step, {"loss": float(step), "count": step, "plain": 0.5}) for step in range(1, 601)]
    assert list(memory.metrics[0][1]) == ["loss", "count", "plain"]
    assert fan.last_metrics == {"loss": 600.0, "count": 600, "plain": 0.5}


class Broken:
    """A number whose device is lost by the time it is read."""

    def value(self) -> float:
        raise RuntimeError("device lost")


def test_tensors_that_cannot_be_read_cost_only_themselves(
    fanout: Callable[..., LogFanout], caplog: pytest.LogCaptureFixture, writers: list[WriterThread]
) -> None:
    memory = Memory()
    fan = fanout(memory, interval_s=3600, defer=lambda _: True)
    fan.log(1, {"gone": torch.tensor(1.0), "kept": 2.0})
    record = fan._queue[-1]
    record[4][0] = record[4][0]._replace(number=Broken())
    with caplog.at_level(logging.WARNING):
        fan.close()
    assert memory.metrics == [(1, {"kept": 2.0})]
    assert writers[0].health()["log queue"].errors == 1


def test_staged_metrics_of_a_step_become_one_record(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory, interval_s=3600, defer=lambda _: True)
    fan.stage({"loss": torch.tensor(9.0), "lr": 0.1})
    fan.stage({"loss": 0.5, "acc": torch.tensor(0.75)})
    fan.commit(1)
    fan.commit(1)
    fan.stage({"loss": 1.0})
    fan.drop_staged()
    fan.stage({"loss": 2.0})
    fan.commit(3)
    fan.close()
    assert memory.metrics == [(1, {"loss": 0.5, "lr": 0.1, "acc": 0.75}), (3, {"loss": 2.0})]


def test_system_samples_go_only_to_those_who_want_them(fanout: Callable[..., LogFanout]) -> None:
    plain, system = Memory("plain"), SystemMemory()
    fan = fanout(plain, system)
    fan.log_system(7, {"cpu_pct": 50.0}, time_ns=123)
    fan.close()
    assert system.system == [(7, {"cpu_pct": 50.0}, 123)]
    assert plain.metrics == []


def test_progress_is_shown_with_the_last_metrics_and_at_the_end(fanout: Callable[..., LogFanout]) -> None:
    shown = SystemMemory()
    fan = fanout(
        shown,
        progress=lambda metrics: Progress(step=5, epoch=0, fraction=None, steps_per_s=None, metrics=dict(metrics)),
    )
    fan.log(5, {"loss": 0.5})
    fan.log(5, {"acc": 0.9})
    fan.close()
    assert shown.progress[-1].metrics == {"loss": 0.5, "acc": 0.9}


def test_progress_is_drawn_at_most_five_times_a_second(fanout: Callable[..., LogFanout]) -> None:
    shown = SystemMemory()
    fan = fanout(
        shown,
        interval_s=0.001,
        progress=lambda _: Progress(step=1, epoch=0, fraction=None, steps_per_s=None),
    )
    time.sleep(0.5)
    drawn = len(shown.progress)
    fan.close()
    assert 1 <= drawn <= 4


def test_a_failing_logger_loses_its_batch_and_hurts_no_other(
    fanout: Callable[..., LogFanout], caplog: pytest.LogCaptureFixture
) -> None:
    failing, memory = Failing([3]), Memory()
    fan = fanout(failing, memory, interval_s=3600)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 601):
            fan.log(step, {"loss": 0.5})
        fan.close()
    assert [step for step, _ in memory.metrics] == list(range(1, 601))
    assert [step for step, _ in failing.metrics] == [1, 2, *range(513, 601)]
    health = fan.health()
    assert health["failing"].errors == 1
    assert health["failing"].dropped_records == 510
    assert health["failing"].last_error == "OSError: no route to host at step 3"
    assert health["memory"].errors == health["memory"].dropped_records == 0


def test_a_logger_that_always_fails_is_reported_once_and_told_to_the_others(
    fanout: Callable[..., LogFanout], caplog: pytest.LogCaptureFixture
) -> None:
    failing, memory = Failing(range(10_000)), Memory()
    fan = fanout(failing, memory, interval_s=0.001)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 51):
            fan.log(step, {"loss": 0.5})
            time.sleep(0.001)
        fan.close()
    assert fan.health()["failing"].errors > 1
    assert fan.health()["failing"].dropped_records == 50
    assert sum("logger failing failed" in record.getMessage() for record in caplog.records) == 1
    assert sum("logger failing failed" in text for text in memory.texts) == 1


def test_a_hanging_logger_loses_only_its_own_records(fanout: Callable[..., LogFanout]) -> None:
    hanging, memory = Hanging(), Memory()
    fan = fanout(hanging, memory, hang_timeout_s=0.05, capacity=64)
    fan.log(1, {"loss": 0.5})
    assert hanging.hangs.wait(5)
    # The queue fills up behind the hang; the step waits only until the logger is left behind.
    for step in range(2, 1001):
        fan.log(step, {"loss": 0.5})
    started = time.monotonic()
    fan.close(timeout_s=0.5)
    assert time.monotonic() - started < 5
    assert [step for step, _ in memory.metrics] == list(range(1, 1001))
    health = fan.health()
    assert health["hanging"].hung
    assert health["hanging"].dropped_records >= 1000 - 64 - 64
    assert health["memory"].dropped_records == 0
    assert memory.closes == 1
    hanging.release.set()


def test_a_logger_that_hangs_in_close_holds_the_end_up_for_no_longer_than_allowed(
    fanout: Callable[..., LogFanout],
) -> None:
    release = threading.Event()

    class HangsInClose(Memory):
        def close(self) -> None:
            release.wait(30)

    memory = Memory()
    fan = fanout(HangsInClose("stuck"), memory)
    fan.log(1, {"loss": 0.5})
    started = time.monotonic()
    fan.close(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - started < 2
    assert memory.closes == 1
    assert memory.metrics == [(1, {"loss": 0.5})]
    release.set()


def test_a_full_queue_makes_the_step_wait_and_drops_nothing(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory, capacity=100, interval_s=3600)
    for step in range(1, 5001):
        fan.log(step, {"loss": 0.5})
        assert len(fan._queue) <= 100
    fan.close()
    assert [step for step, _ in memory.metrics] == list(range(1, 5001))
    assert fan.health()["memory"].dropped_records == 0


def test_a_logger_that_logs_into_a_full_queue_does_not_deadlock(fanout: Callable[..., LogFanout]) -> None:
    class Echo(Memory):
        fan: LogFanout

        def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
            super().log_metrics(step, metrics, time_ns=time_ns)
            if step > 0:
                for _ in range(50):
                    self.fan.log(-step, {"echo": 1.0})

    echo = Echo()
    fan = fanout(echo, capacity=10)
    echo.fan = fan
    fan.log(1, {"loss": 0.5})
    deadline = time.monotonic() + 5
    while len(echo.metrics) < 11 and time.monotonic() < deadline:
        time.sleep(0.001)
    fan.close()
    assert len(echo.metrics) == 11
    assert fan.health()["memory"].dropped_records == 40


def test_many_threads_may_log_at_once(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory, capacity=256)

    def work(thread: int) -> None:
        for step in range(500):
            fan.log(step, {f"thread{thread}": 1.0})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fan.close()
    for number in range(4):
        steps = [step for step, metrics in memory.metrics if f"thread{number}" in metrics]
        assert steps == list(range(500))


def test_open_closes_what_was_opened_when_a_later_logger_refuses(run_info: MakeRun) -> None:
    class Refusing(Memory):
        def open(self, run: RunInfo) -> None:
            raise ConfigError("no token", hint="log in")

    first = Memory("first")
    fan = LogFanout([first, Refusing("second"), Memory("third")], WriterThread())
    with pytest.raises(ConfigError, match="no token"):
        fan.open(run_info())
    assert first.closes == 1
    fan.log(1, {"loss": 0.5})
    fan.close()
    assert first.closes == 1


def test_close_hands_over_what_was_logged_when_the_writer_never_ran(run_info: MakeRun) -> None:
    memory = Memory()
    fan = LogFanout([memory], WriterThread())
    fan.open(run_info())
    fan.log_text("could not start")
    fan.close()
    assert memory.texts == ["could not start"]
    assert memory.closes == 1


def test_logging_after_close_does_nothing(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory)
    fan.close()
    fan.close()
    fan.log(1, {"loss": 0.5})
    fan.stage({"loss": 0.5})
    fan.commit(1)
    fan.log_text("late")
    assert memory.metrics == []
    assert memory.closes == 1


def test_two_loggers_of_one_name_are_told_apart(fanout: Callable[..., LogFanout]) -> None:
    fan = fanout(Memory(), Memory())
    fan.close()
    assert list(fan.health()) == ["memory", "memory#2"]


def test_forked_children_log_nothing_and_block_nowhere(fanout: Callable[..., LogFanout]) -> None:
    memory = Memory()
    fan = fanout(memory, interval_s=0.0005, capacity=50)
    stop = threading.Event()

    def hammer() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            fan.log(step, {"loss": 0.5})
            time.sleep(0)

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for _ in range(40):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for step in range(200):  # more than the queue holds
                        fan.log(step, {"child": 1.0})
                        fan.stage({"child": 1.0})
                        fan.log_text("child")
                        fan.log_system(step, {"child": 1.0})
                    fan.commit(1)
                    fan.close()
                    code = 0
                finally:
                    os._exit(code)
            assert _exit_code(child) == 0
    finally:
        stop.set()
        thread.join()
    fan.close()
    assert memory.texts == []
    assert all("child" not in metrics for _, metrics in memory.metrics)


def _exit_code(pid: int, timeout_s: float = 5.0) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the forked child hangs")
