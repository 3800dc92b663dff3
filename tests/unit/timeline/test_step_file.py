"""Marks in, lines out: checked against times computed by hand."""

from __future__ import annotations

import json
import threading

import pytest

from harness.errors import ConfigError
from harness.timeline import phases as ph
from harness.timeline import recorder as recorder_module
from harness.timeline.recorder import BLOCK_MARKS, MAX_BLOCKS, Phase, Recorder
from harness.timeline.step_file import StepFile


class Clock:
    """Moves on by what the test says before each reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 1_000_000
        monkeypatch.setattr(recorder_module, "perf_counter_ns", lambda: self.now_ns)

    def after_us(self, us: float) -> None:
        self.now_ns += round(us * 1000)


class Written:
    """The recorder, its file, and the lines written so far."""

    def __init__(self, first_step: int = 1) -> None:
        self.data = b""
        self.recorder = Recorder(ph.PhaseTable())
        self.file = StepFile(self.recorder, self._write, first_step=first_step)
        self.recorder.on_overflow = self.file.drain

    def _write(self, data: bytes) -> None:
        self.data += data

    def lines(self) -> list[dict[str, object]]:
        self.file.drain(final=True)
        return [json.loads(line) for line in self.data.splitlines()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _step(recorder: Recorder, clock: Clock) -> None:
    """data 10, forward 20, backward 30, optimizer 5, other 2, loop 1, checkpoint 4 µs."""
    recorder.mark(ph.STEP_BEGIN)
    for phase, us in (
        (ph.FORWARD, 10),
        (ph.BACKWARD, 20),
        (ph.OPTIMIZER, 30),
        (ph.OTHER, 5),
        (ph.LOOP, 2),
        (ph.CHECKPOINT, 1),
    ):
        clock.after_us(us)
        recorder.mark(phase)
    clock.after_us(4)
    recorder.mark(ph.STEP_END)


def test_each_phase_gets_the_time_until_the_next_mark(clock: Clock) -> None:
    written = Written()
    _step(written.recorder, clock)
    (line,) = written.lines()
    assert line["step"] == 1
    expected = {"data": 10, "forward": 20, "backward": 30, "optimizer": 5, "other": 2, "harness": 5, "step": 72}
    assert {name: line[f"{name}_us"] for name in expected} == expected
    assert line["capture"] == "off"


def test_steps_drained_one_by_one_equal_steps_drained_together(clock: Clock) -> None:
    one_by_one, together = Written(), Written()
    for written, drains in ((one_by_one, True), (together, False)):
        for _ in range(5):
            _step(written.recorder, clock)
            clock.after_us(7)
            if drains:
                written.file.drain()
        written.lines()
    without_time = [[{**line, "time": 0} for line in written.lines()] for written in (one_by_one, together)]
    assert without_time[0] == without_time[1]
    assert one_by_one.file.totals.step_ns == together.file.totals.step_ns == 5 * 72_000


def test_an_aborted_step_is_not_written_and_not_counted(clock: Clock) -> None:
    written = Written()
    _step(written.recorder, clock)
    written.recorder.mark(ph.STEP_BEGIN)
    clock.after_us(50)
    written.recorder.abort_step()
    _step(written.recorder, clock)
    assert [line["step"] for line in written.lines()] == [1, 2]
    assert written.file.totals.step_ns == 2 * 72_000


def test_a_step_left_by_break_ends_where_it_was_left(clock: Clock) -> None:
    written = Written()
    written.recorder.mark(ph.STEP_BEGIN)
    clock.after_us(10)
    written.recorder.suspend_step()
    clock.after_us(1_000_000)
    written.recorder.end_suspended_step()
    _step(written.recorder, clock)
    assert [line["step_us"] for line in written.lines()] == [10, 72]


def test_a_step_left_by_an_exception_is_given_up(clock: Clock) -> None:
    written = Written()
    written.recorder.mark(ph.STEP_BEGIN)
    written.recorder.suspend_step()
    written.recorder.abort_step()
    _step(written.recorder, clock)
    assert [line["step"] for line in written.lines()] == [1]


def test_evaluation_is_beside_the_step_and_time_between_steps_is_in_none(clock: Clock) -> None:
    written = Written()
    written.recorder.mark(ph.STEP_BEGIN)
    clock.after_us(10)
    written.recorder.enter(ph.EVAL)
    clock.after_us(500)
    written.recorder.leave()
    written.recorder.mark(ph.STEP_END)
    written.recorder.mark(ph.CHECKPOINT)
    clock.after_us(30)
    written.recorder.mark(ph.BETWEEN)
    clock.after_us(90)
    _step(written.recorder, clock)
    first, second = written.lines()
    assert (first["step_us"], first["eval_us"]) == (10, 500)
    assert second["step_us"] == 72
    assert written.file.totals.between_ns[ph.CHECKPOINT] == 30_000


def test_what_the_loop_does_between_two_steps_is_its_own(clock: Clock) -> None:
    written = Written()
    _step(written.recorder, clock)
    clock.after_us(3)  # no mark: from the end of a step to the beginning of the next
    _step(written.recorder, clock)
    assert [line["step_us"] for line in written.lines()] == [72, 72]
    assert written.file.totals.between_ns[ph.LOOP] == 3_000
    assert written.file.totals.in_steps_ns[ph.LOOP] == 2 * 1_000


def test_what_follows_a_step_that_was_left_by_break_is_the_users(clock: Clock) -> None:
    written = Written()
    recorder = written.recorder
    recorder.mark(ph.STEP_BEGIN)
    clock.after_us(5)
    recorder.suspend_step()
    clock.after_us(100)
    recorder.end_suspended_step()
    clock.after_us(40)
    recorder.mark(ph.LOOP)
    clock.after_us(2)
    recorder.mark(ph.BETWEEN)
    assert [line["step_us"] for line in written.lines()] == [5]
    assert written.file.totals.between_ns[ph.LOOP] == 2_000
    assert written.file.totals.between_ns[ph.BETWEEN] == 140_000


def test_phases_nest_and_each_nanosecond_belongs_to_the_innermost(clock: Clock) -> None:
    written = Written()
    recorder = written.recorder
    outer, inner = (Phase(recorder, recorder.phases.id_of(name)) for name in ("forward", "my.attention"))
    recorder.mark(ph.STEP_BEGIN)
    recorder.mark(ph.OTHER)
    with outer:
        clock.after_us(3)
        with inner:
            clock.after_us(40)
        clock.after_us(5)
    clock.after_us(2)
    recorder.mark(ph.STEP_END)
    (line,) = written.lines()
    assert (line["forward_us"], line["my.attention_us"], line["other_us"], line["step_us"]) == (8, 40, 2, 50)


def test_captured_steps_and_epochs_are_marked(clock: Clock) -> None:
    written = Written(first_step=11)
    written.file.note_epoch(11, 3)
    written.file.note_epoch(13, 4)
    written.file.note_capture(12, "active")
    for _ in range(3):
        _step(written.recorder, clock)
    lines = written.lines()
    assert [(line["step"], line["epoch"], line["capture"]) for line in lines] == [
        (11, 3, "off"),
        (12, 3, "active"),
        (13, 4, "off"),
    ]


def test_nothing_is_lost_when_nobody_drains_and_memory_stays_bounded() -> None:
    written = Written()
    num_steps = MAX_BLOCKS * BLOCK_MARKS // 8
    for _ in range(num_steps):
        written.recorder.mark(ph.STEP_BEGIN)
        written.recorder.mark(ph.FORWARD)
        written.recorder.mark(ph.OTHER)
        written.recorder.mark(ph.STEP_END)
        written.recorder.roll()
        assert len(written.recorder.blocks) <= MAX_BLOCKS + 1
    assert [line["step"] for line in written.lines()] == list(range(1, num_steps + 1))


def test_draining_in_another_thread_loses_and_reorders_nothing() -> None:
    written = Written()
    done = threading.Event()

    def drain() -> None:
        while not done.is_set():
            written.file.drain()

    thread = threading.Thread(target=drain)
    thread.start()
    for _ in range(5000):
        written.recorder.mark(ph.STEP_BEGIN)
        written.recorder.mark(ph.FORWARD)
        written.recorder.mark(ph.STEP_END)
        written.recorder.roll()
    done.set()
    thread.join()
    assert [line["step"] for line in written.lines()] == list(range(1, 5001))


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a/b", "é", "x" * 49, "harness", "loop", "between", "step", 3])
def test_phase_names_that_a_trace_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="phase name"):
        ph.PhaseTable().id_of(name)


def test_too_many_phases_are_refused() -> None:
    table = ph.PhaseTable()
    for number in range(ph.MAX_PHASES - len(table.names)):
        table.id_of(f"p{number}")
    with pytest.raises(ConfigError, match="at most 64"):
        table.id_of("one-more")


class Annotations:
    """Takes down what the recorder tells a profiler."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def switch(self, *phase_names: str) -> None:
        self.seen.append("/".join(phase_names))

    def close(self) -> None:
        self.seen.append("")


def test_a_profiler_sees_the_phases_with_our_own_parts_as_harness(clock: Clock) -> None:
    written = Written()
    annotations = Annotations()
    written.recorder.annotator = annotations
    _step(written.recorder, clock)
    assert annotations.seen == ["data", "forward", "backward", "optimizer", "", "harness", "harness", ""]


def test_a_profiler_sees_an_interrupted_phase_around_the_one_inside(clock: Clock) -> None:
    recorder = Written().recorder
    recorder.annotator = annotations = Annotations()
    recorder.mark(ph.STEP_BEGIN)
    recorder.mark(ph.OTHER)
    recorder.enter(ph.FORWARD)
    recorder.enter(recorder.phases.id_of("attention"))
    recorder.enter(ph.LOGGERS)
    recorder.leave()
    recorder.leave()
    recorder.leave()
    assert annotations.seen == [
        "data",
        "",
        "forward",
        "forward/attention",
        "forward/attention/harness",
        "forward/attention",
        "forward",
        "",
    ]


def test_the_length_of_the_last_step_is_known_while_it_runs_and_after_it(clock: Clock) -> None:
    recorder = Written().recorder
    assert recorder.last_step_ns() == 0
    _step(recorder, clock)
    clock.after_us(1000)
    assert recorder.last_step_ns() == 72_000
    recorder.mark(ph.STEP_BEGIN)
    clock.after_us(5)
    assert recorder.last_step_ns() == 5_000
