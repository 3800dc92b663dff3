"""Capture windows of a real torch.profiler on CPU, with the real child process that finishes their traces."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harness.capture.finisher import MAX_CHILDREN
from harness.capture.options import Budget
from harness.capture.recipe import Recipe, known_recipes
from harness.capture.schedule import CaptureState, Schedule
from harness.capture.system import SystemSample
from harness.capture.window import NEVER, Capture

TWO_WINDOWS = Recipe(name="two", schedule=Schedule(skip_first=1, wait=3, warmup=2, active=2, repeat=2))
"""Warms up in 5-6 and 12-13, records 7-8 and 14-15."""


@dataclass
class TinyRun:
    """A training loop of a few operators with a Capture in it, as a session has it."""

    folder: Path
    recipe: Recipe
    options: dict[str, Any] = field(default_factory=dict)
    samples: list[SystemSample] = field(default_factory=list)
    opened: list[bool] = field(default_factory=list)
    states: dict[int, CaptureState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = torch.nn.Linear(8, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.capture = Capture(
            self.recipe,
            run_name="foo",
            private_dir=self.folder / ".capture",
            trace_path=self.trace_path,
            system_samples=lambda begin, end: [s for s in self.samples if begin <= s.time_ns <= end],
            device_type="cpu",
            on_window=self.opened.append,
            **{"rank": 0, "world_size": 1, **self.options},
        )

    def trace_path(self, step: int) -> Path:
        return self.folder / f"rank0.{step:06d}.pt.trace.json.gz"

    def phase(self, name: str) -> None:
        if self.capture.annotator is not None:
            self.capture.annotator.switch(name)

    def work(self) -> None:
        self.phase("forward")
        loss = self.model(torch.ones(4, 8)).square().mean()
        self.phase("backward")
        loss.backward()
        self.phase("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, last: int, *, first: int = 1, each: Callable[[int], None] = lambda step: None) -> None:
        if first == 1:
            self.capture.start(1)
        for step in range(first, last + 1):
            each(step)
            self.work()
            self.states[step] = "off"
            if step >= self.capture.next_boundary:
                self.states[step] = self.capture.on_step_end(step)

    def read(self, step: int) -> dict[str, Any]:
        with gzip.open(self.trace_path(step)) as file:
            trace: dict[str, Any] = json.load(file)
        return trace

    def traces(self) -> list[int]:
        """First steps of the traces on disk."""
        return sorted(int(path.name.split(".")[1]) for path in self.folder.glob("*.gz"))


def named(trace: dict[str, Any], start: str) -> list[tuple[str, float, float]]:
    """Name, start and end in µs of the annotations whose name starts so, in order of time."""
    return sorted(
        (
            (event["name"], event["ts"], event["ts"] + event["dur"])
            for event in trace["traceEvents"]
            if event.get("cat") == "user_annotation" and event["name"].startswith(start)
        ),
        key=lambda span: span[1],
    )


def profile_objects() -> int:
    """Profile objects of both of torch's layers; the inner one holds the events."""
    kinds = (torch.profiler.profile, torch.autograd.profiler.profile)
    return sum(type(item) in kinds for item in gc.get_objects())


MakeRun = Callable[..., TinyRun]


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """Makes runs in the test's folder; waits for their children at the end."""
    runs: list[TinyRun] = []

    def make(recipe: Recipe, *, folder: Path = tmp_path, **options: Any) -> TinyRun:
        runs.append(TinyRun(folder, recipe, options))
        return runs[-1]

    yield make
    for run in runs:
        run.capture.cut("end of the test")
        run.capture.wait()


def test_each_window_leaves_a_trace_with_exactly_its_global_steps(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(20)
    finished = run.capture.wait()
    assert [(trace.path, trace.ok) for trace in finished] == [
        (run.trace_path(7), True),
        (run.trace_path(14), True),
    ]
    for first in (7, 14):
        names = [name for name, _, _ in named(run.read(first), "ProfilerStep")]
        assert names == [f"ProfilerStep#{first}", f"ProfilerStep#{first + 1}"]


def test_traces_are_told_in_the_order_of_their_steps_whichever_child_ends_first(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(10)
    (slow,) = psutil.Process().children()
    slow.suspend()
    run.train(20, first=11)
    while not run.trace_path(14).exists():
        time.sleep(0.01)
    slow.resume()
    assert [trace.first_step for trace in run.capture.wait()] == [7, 14]


def test_phases_lie_inside_their_step_and_over_their_operators(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(8)
    run.capture.wait()
    trace = run.read(7)
    phases = named(trace, "phase/")
    assert [name for name, _, _ in phases] == ["phase/forward", "phase/backward", "phase/optimizer"] * 2
    for number, (_, begin, end) in enumerate(named(trace, "ProfilerStep")):
        inside = phases[3 * number : 3 * number + 3]
        assert all(begin <= phase_begin < phase_end <= end for _, phase_begin, phase_end in inside)
    linears = [event for event in trace["traceEvents"] if event.get("name") == "aten::linear"]
    forwards = named(trace, "phase/forward")
    assert len(linears) == 2
    for linear, (_, begin, end) in zip(linears, forwards, strict=True):
        assert begin <= linear["ts"] <= linear["ts"] + linear["dur"] <= end


def test_steps_know_what_they_were_to_the_capture(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(20)
    assert TWO_WINDOWS.schedule is not None
    assert run.states == {step: TWO_WINDOWS.schedule.state(step) for step in range(1, 21)}
    assert [step for step, state in run.states.items() if state == "active"] == [7, 8, 14, 15]
    assert [step for step, state in run.states.items() if state == "adjacent"] == [4, 9, 11, 16]


def test_outside_windows_there_is_no_profiler_and_nothing_to_do(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    seen: dict[int, tuple[int, bool]] = {}
    before = profile_objects()  # of a test that failed: its traceback keeps them

    def look(step: int) -> None:
        seen[step] = (profile_objects() - before, run.capture.annotator is not None)

    gc.disable()  # the objects must go by themselves
    try:
        run.train(20, each=look)
    finally:
        gc.enable()
    inside = {5, 6, 7, 8, 12, 13, 14, 15}
    assert seen == {step: (2 * (step in inside), step in inside) for step in range(1, 21)}
    assert run.capture.next_boundary == NEVER
    assert run.opened == [True, False, True, False]
    assert not torch.autograd._profiler_enabled()
    run.capture.wait()


def test_an_idle_capture_asks_for_nothing_between_windows(make_run: MakeRun) -> None:
    run = make_run(Recipe(name="late", schedule=Schedule(wait=1000, active=1)))
    run.train(50)
    assert run.capture.next_boundary == 1000
    off = make_run(Recipe.load("off"))
    off.train(3)
    assert off.capture.next_boundary == NEVER


@pytest.mark.parametrize(
    ("next_step", "recorded"), [(4, [7, 14]), (5, [7, 14]), (6, [14]), (8, [14]), (13, []), (99, [])]
)
def test_a_resumed_run_leaves_out_the_window_it_is_in_the_middle_of(
    make_run: MakeRun, next_step: int, recorded: list[int]
) -> None:
    run = make_run(TWO_WINDOWS)
    run.capture.start(next_step)
    run.train(max(next_step, 17), first=next_step)
    run.capture.wait()
    assert run.traces() == recorded


def test_a_schedule_without_warmup_records_from_the_first_step(make_run: MakeRun) -> None:
    run = make_run(Recipe(name="now", schedule=Schedule(warmup=0, active=2, repeat=2)))
    run.train(4)
    run.capture.wait()
    assert [name for name, _, _ in named(run.read(1), "ProfilerStep")] == ["ProfilerStep#1", "ProfilerStep#2"]
    assert [name for name, _, _ in named(run.read(3), "ProfilerStep")] == ["ProfilerStep#3", "ProfilerStep#4"]


def test_a_window_cut_by_an_exception_is_still_written(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)

    def fail(step: int) -> None:
        if step == 8:
            run.phase("forward")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run.train(20, each=fail)
    run.capture.cut("ZeroDivisionError")
    (trace,) = run.capture.wait()
    assert (trace.first_step, trace.last_step, trace.cut) == (7, 8, "ZeroDivisionError")
    assert [name for name, _, _ in named(run.read(7), "ProfilerStep")] == ["ProfilerStep#7", "ProfilerStep#8"]
    assert "ZeroDivisionError" in json.dumps({**run.read(7), "traceEvents": []})
    assert run.opened == [True, False]


def test_a_cut_in_place_of_the_last_steps_end_leaves_no_step_behind_it(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(6)
    run.work()
    run.capture.cut("end of training")
    (trace,) = run.capture.wait()
    assert (trace.first_step, trace.last_step) == (7, 7)
    assert [name for name, _, _ in named(run.read(7), "ProfilerStep")] == ["ProfilerStep#7"]


@pytest.mark.parametrize(("steps_ended", "in_progress"), [(4, True), (5, True), (6, False)])
def test_a_window_cut_before_its_first_recorded_step_is_dropped(
    make_run: MakeRun, tmp_path: Path, steps_ended: int, in_progress: bool
) -> None:
    run = make_run(TWO_WINDOWS)
    before = profile_objects()
    run.train(steps_ended)
    run.capture.cut("SIGTERM", step_in_progress=in_progress)
    assert run.capture.wait() == []
    health = run.capture.health()
    assert (health["windows_opened"], health["windows_dropped"], health["windows_failed"]) == (1, 1, 0)
    assert profile_objects() == before
    assert not (tmp_path / ".capture").exists()


def test_a_cut_outside_a_window_only_ends_the_capture(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(2)
    run.capture.cut("end of training")
    run.train(20, first=3)
    assert run.capture.wait() == []
    assert run.opened == []


def test_training_that_goes_on_after_a_cut_is_captured_again(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(7)
    run.capture.cut("end of training")
    run.capture.start(8)
    run.train(20, first=8)
    run.capture.wait()
    assert run.traces() == [7, 14]


def test_a_window_is_skipped_while_the_users_own_profiler_records(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(TWO_WINDOWS)
    with torch.profiler.profile() as theirs:
        run.train(9)
    run.train(20, first=10)
    run.capture.wait()
    assert run.traces() == [14]
    assert "aten::linear" in {event.key for event in theirs.key_averages()}
    assert run.capture.health()["windows_skipped"] == 1
    assert caplog.messages == ["steps 7 to 8 are not captured: another torch profiler is recording"]


def test_the_budget_of_traces_counts_those_of_earlier_attempts(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    endless = Recipe(
        name="endless",
        schedule=Schedule(wait=1, warmup=1, active=1, repeat=0),
        budget=Budget(max_traces=3),
    )
    run = make_run(endless, traces_before=1)
    with caplog.at_level(logging.INFO, logger="harness.capture"):
        run.train(30)
    run.capture.wait()
    assert run.traces() == [3, 6]
    assert run.capture.next_boundary == NEVER
    assert [record.message for record in caplog.records if "no further capture windows" in record.message] != []


def test_the_budget_of_bytes_ends_the_capture_once_known_sizes_reach_it(make_run: MakeRun) -> None:
    endless = Recipe(
        name="endless", schedule=Schedule(wait=1, warmup=1, active=1, repeat=0), budget=Budget(max_bytes=1)
    )
    run = make_run(endless)
    run.train(3)
    run.capture.wait()
    run.train(30, first=4)
    run.capture.wait()
    assert run.traces() == [3]


def test_a_rank_the_recipe_leaves_out_is_not_captured(make_run: MakeRun) -> None:
    run = make_run(replace(TWO_WINDOWS, ranks="first"), rank=1, world_size=2)
    run.train(20)
    assert run.opened == []


def test_system_samples_of_the_window_go_on_the_trace(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(20, each=lambda step: run.samples.append(SystemSample(time.time_ns(), {"step_count": float(step)})))
    run.capture.wait()
    values = [
        value
        for event in run.read(7)["traceEvents"]
        if event.get("ph") == "C"
        for value in event["args"].values()
        if value in (4, 5, 6, 7, 8, 9)
    ]
    assert values == [5, 6, 7, 8]


@pytest.mark.parametrize("name", ["memory", "stacks", "steady", "quick"])
def test_the_shipped_recipes_record_what_they_promise(make_run: MakeRun, name: str) -> None:
    recipe = replace(Recipe.load(name), schedule=Schedule(warmup=1, active=2))
    run = make_run(recipe)
    run.train(4)
    run.capture.wait()
    trace = run.read(2)
    has = {
        "memory": any(event.get("name") == "[memory]" for event in trace["traceEvents"]),
        "stacks": any(event.get("cat") == "python_function" for event in trace["traceEvents"]),
        "shapes": any("Input Dims" in event.get("args", {}) for event in trace["traceEvents"]),
    }
    assert name in known_recipes()
    assert has == {
        "memory": recipe.profile.profile_memory,
        "stacks": recipe.profile.with_stack,
        "shapes": recipe.profile.record_shapes,
    }


def test_a_root_with_characters_that_kineto_mishandles_gives_a_valid_trace(make_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / 'a"b\\..\\c\nü'
    folder.mkdir()
    run = make_run(TWO_WINDOWS, folder=folder)
    run.train(8)
    run.capture.wait()
    assert len(named(run.read(7), "ProfilerStep")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_a_phase_name_that_torch_would_lose_is_made_safe(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(8, each=lambda step: run.phase('größe"\n'))
    run.capture.wait()
    assert "phase/gr__e__" in [name for name, _, _ in named(run.read(7), "phase/")]


def test_an_export_into_a_folder_that_is_gone_is_counted_and_training_goes_on(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run = make_run(TWO_WINDOWS, folder=folder)

    def move_away(step: int) -> None:
        if step == 7:
            folder.rename(tmp_path / "moved")
        if step == 10:
            (tmp_path / "moved").rename(folder)

    run.train(20, each=move_away)
    run.capture.wait()
    health = run.capture.health()
    assert (health["windows_opened"], health["windows_failed"], health["traces_written"]) == (2, 1, 1)
    assert "steps 7 to 8 failed: FileNotFoundError" in health["errors"][0]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert run.traces() == [14]


def test_traces_left_by_a_killed_process_are_finished_at_the_next_start(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(8)
    (folder,) = (tmp_path / ".capture").iterdir()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    run.capture.wait()
    run.trace_path(7).unlink()
    # As a SIGKILL leaves it: a job whose child is gone, and an export that was not completed.
    folder.mkdir()
    for name in ("trace.json", "job.json"):
        (folder / name).write_bytes(kept[name])
    torn = tmp_path / ".capture" / "000014-abcdefgh"
    torn.mkdir()
    (torn / "trace.json.tmp").write_bytes(b'{"traceEvents": [')
    # A raw trace that was finished and could not be removed: its job went.
    done = tmp_path / ".capture" / "000021-abcdefgh"
    done.mkdir()
    (done / "trace.json").write_bytes(kept["trace.json"])
    again = make_run(TWO_WINDOWS)
    assert again.capture.salvage() == 1
    (trace,) = again.capture.wait()
    assert trace.ok
    assert again.traces() == [7]
    assert list((tmp_path / ".capture").iterdir()) == []


def test_a_raw_trace_that_waits_for_a_child_can_be_finished_after_a_kill(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(Recipe(name="own", schedule=Schedule(wait=0, warmup=0, active=1, repeat=6)))
    run.train(8)
    assert run.capture.health()["traces_pending"] > MAX_CHILDREN
    raw = list((tmp_path / ".capture").glob("*/trace.json"))
    assert len(raw) > MAX_CHILDREN
    assert all(path.with_name("job.json").exists() for path in raw if path.exists())
    assert len(run.capture.wait()) == 6


def test_waiting_is_bounded_and_tells_what_it_waits_for(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(8)
    assert run.capture.wait(timeout_s=0.0) == []
    assert "1 trace not finished after 0 s" in caplog.text
    assert run.capture.health()["traces_pending"] == 1
    lines: list[str] = []
    (trace,) = run.capture.wait(lines.append)
    assert trace.ok
    assert lines[0] == "finishing 1 trace (0 s)"
    assert run.capture.poll() == []


def test_health_accounts_for_time_bytes_and_children(make_run: MakeRun) -> None:
    run = make_run(TWO_WINDOWS)
    run.train(20)
    run.capture.wait()
    health = run.capture.health()
    assert health["trace_bytes"] == sum(run.trace_path(step).stat().st_size for step in (7, 14))
    assert min(health[name] for name in ("open_ns", "close_ns", "export_ns", "child_cpu_ns")) > 0
    assert (health["windows_opened"], health["traces_written"], health["traces_failed"]) == (2, 2, 0)
    assert health["errors"] == []
    json.dumps(health)
