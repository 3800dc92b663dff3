"""A loop of one's own around `harness.session`: what it counts, what it writes, and what leaving it early means."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import session
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.errors import ConfigError, DataError
from harness.loggers.jsonl import JsonlLogger
from harness.loggers.text import TextLogger
from harness.trace.reader import load
from harness.trace.spans import phase_spans, profiler_steps

BATCHES = [torch.ones(4, 2) for _ in range(10)]


def train(run: Any, max_duration: str = "1ep", loader: Any = BATCHES) -> list[int]:
    """Run steps that do nothing; their numbers."""
    return [run.step for _ in run.steps(loader, max_duration)]


def test_a_run_is_one_directory_whose_files_agree(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root, config={"lr": 0.1}) as run:
        for batch in run.steps(BATCHES, "2ep"):
            with run.phase("forward"):
                total = batch.sum()
            run.log({"total": total, "twice": 2 * run.step})
    foo = written()
    assert foo.status == "finished"
    assert foo.steps() == list(range(1, 21))
    assert foo.by_step("twice") == {step: 2 * step for step in range(1, 21)}
    assert set(foo.values("total")) == {8.0}
    assert [line["epoch"] for line in foo.lines("steps")] == [0] * 10 + [1] * 10
    summary = foo.manifest.summary
    assert (summary.step, summary.epoch) == (20, 2)
    assert summary.median_step_us is not None and summary.median_step_us > 0
    assert foo.manifest.config == {"lr": 0.1}
    assert foo.manifest.attempts[0].ended is not None
    assert run.timestamp.sample == 80


def test_the_step_in_the_body_is_the_one_in_the_files(root: Path) -> None:
    with session("foo", root=root) as run:
        assert run.step == 0
        assert train(run) == list(range(1, 11))
        assert run.step == 10


def test_break_ends_the_step_it_is_in_and_the_step_counts(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "1ep"):
            run.log({"number": run.step})
            if run.step == 4:
                break
        assert run.step == 4
    foo = written()
    assert foo.status == "finished"
    assert foo.steps() == [1, 2, 3, 4]
    assert foo.values("number")[-1] == 4
    assert foo.manifest.summary.step == 4


def test_break_counts_also_when_somebody_keeps_the_iterator(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        steps = run.steps(BATCHES, "1ep")
        for _ in steps:
            if run.step == 3:
                break
    assert written().steps() == [1, 2, 3]
    assert next(steps, "ended") == "ended"


def test_what_comes_after_a_break_is_no_part_of_the_step(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "1ep"):
            with run.phase("forward"):
                time.sleep(0.002)
            break
        with run.phase("afterwards"):
            time.sleep(0.05)
        run.log({"afterwards": 1})
    (line,) = written().lines("steps")
    assert 2_000 <= line["forward_us"] <= line["step_us"] < 45_000
    assert "afterwards_us" not in line
    assert all(value >= 0 for name, value in line.items() if name.endswith("_us")), line
    assert written().by_step("afterwards") == {1: 1}


def test_an_exception_in_the_body_is_kept_and_its_step_does_not_count(root: Path, written: Callable[..., Any]) -> None:
    def body(run: Any) -> None:
        run.log({"half": 1})
        if run.step == 4:
            raise ZeroDivisionError("half a step")

    with pytest.raises(ZeroDivisionError, match="half a step") as caught, session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "1ep"):
            body(run)
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-1] == "body"
    assert caught.value.__context__ is None
    foo = written()
    assert foo.status == "failed"
    assert foo.steps() == [1, 2, 3]
    assert list(foo.by_step("half")) == [1, 2, 3]
    assert foo.manifest.summary.step == 3
    assert foo.manifest.attempts[0].error == "ZeroDivisionError: half a step"
    assert "failed: ZeroDivisionError: half a step" in foo.text


def test_an_exception_does_not_count_the_step_when_somebody_keeps_the_iterator(
    root: Path, written: Callable[..., Any]
) -> None:
    with pytest.raises(ZeroDivisionError), session("foo", root=root) as run:
        steps = run.steps(BATCHES, "1ep")
        for _ in steps:
            if run.step == 3:
                raise ZeroDivisionError
    assert written().steps() == [1, 2]


def test_an_exception_before_the_first_step_leaves_an_account_of_the_run(
    root: Path, written: Callable[..., Any]
) -> None:
    with pytest.raises(KeyError), session("foo", root=root):
        raise KeyError("not trained at all")
    assert written().status == "failed"
    assert written().steps() == []
    assert written().manifest.summary.step == 0


def test_nested_phases_share_the_time_without_overlap(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "3ba"):
            with run.phase("forward"):
                time.sleep(0.004)
                with run.phase("attention"):
                    time.sleep(0.008)
                time.sleep(0.002)
            with run.phase("backward"):
                time.sleep(0.003)
    for line in written().lines("steps"):
        assert 6_000 <= line["forward_us"] < 14_000, line  # 14 ms, were the inner phase counted twice
        assert line["attention_us"] >= 8_000, line
        assert line["backward_us"] >= 3_000, line
        parts = sum(value for name, value in line.items() if name.endswith("_us") and name != "step_us")
        assert parts == pytest.approx(line["step_us"], rel=1e-3)


def test_time_outside_phases_is_called_other(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "2ba"):
            time.sleep(0.005)
    assert all(line["other_us"] >= 5_000 for line in written().lines("steps"))


def test_waiting_for_the_dataloader_is_data(root: Path, written: Callable[..., Any]) -> None:
    def slow() -> Iterator[torch.Tensor]:
        for batch in BATCHES[:3]:
            time.sleep(0.005)
            yield batch

    with session("foo", root=root) as run:
        train(run, "3ba", slow())
    assert all(line["data_us"] >= 5_000 for line in written().lines("steps"))


def test_log_before_between_and_after_the_steps_goes_to_the_step_that_ended_last(
    root: Path, written: Callable[..., Any]
) -> None:
    with session("foo", root=root, log_interval="4ba") as run:
        run.log({"before": 1})
        train(run, "5ba")
        run.log({"between": 2})
        train(run, "1ep")
        run.log({"after": 3})
    foo = written()
    assert (foo.by_step("before"), foo.by_step("between"), foo.by_step("after")) == ({0: 1}, {5: 2}, {10: 3})


def test_a_logger_with_names_of_its_own_takes_the_place_of_the_one_every_run_has(
    root: Path, written: Callable[..., Any]
) -> None:
    loggers = [JsonlLogger(metrics="{run_name}/mine.jsonl"), TextLogger(path="{run_name}/mine.txt")]
    with session("foo", root=root, loggers=loggers) as run:
        for _ in run.steps(BATCHES, "4ba"):
            run.log({"loss": 1.0})
    files = {path.name for path in (root / "foo").iterdir()}
    assert {"mine.jsonl", "mine.txt"} <= files
    assert not {"metrics-rank0.jsonl", "logs-rank0.txt"} & files
    times = [line["time"] for line in written().lines("system")]
    assert len(times) == len(set(times)), "one logger writes it"


def test_log_interval_takes_only_its_steps(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root, log_interval="4ba") as run:
        for _ in run.steps(BATCHES, "1ep"):
            run.log({"sparse": run.step})
            run.log({"always": run.step}, always=True)
    assert written().values("sparse") == [4, 8]
    assert written().values("always") == list(range(1, 11))


def test_log_interval_in_epochs_takes_the_first_step_of_each(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root, log_interval="1ep") as run:
        for _ in run.steps(BATCHES, "3ep"):
            run.log({"sparse": run.step})
    assert written().values("sparse") == [1, 11, 21]


def test_several_logs_in_a_step_become_one_line_and_the_last_value_counts(
    root: Path, written: Callable[..., Any]
) -> None:
    with session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "2ba"):
            run.log({"a": 1, "b": 1})
            run.log({"b": torch.tensor(2.5), "c": True})
    lines = [{k: v for k, v in line.items() if k != "time"} for line in written().lines("metrics")]
    assert lines == [{"step": step, "a": 1, "b": 2.5, "c": 1} for step in (1, 2)]


def test_a_value_that_cannot_be_logged_names_itself(root: Path) -> None:
    with pytest.raises(ConfigError, match="loss"), session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "1ep"):
            run.log({"loss": "low"})


def test_steps_can_be_called_again_and_goes_on_counting(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        assert train(run, "1ep") == list(range(1, 11))
        assert train(run, "1ep") == []
        assert train(run, "2ep") == list(range(11, 21))
    assert written().steps() == list(range(1, 21))
    assert written().manifest.summary.epoch == 2


def test_steps_called_again_in_an_epoch_goes_on_in_it(root: Path, make_loader: Callable[..., Any]) -> None:
    loader = make_loader(shuffle=True)
    seen: list[torch.Tensor] = []
    with session("foo", root=root) as run:
        for batch in run.steps(loader, "4ba"):
            seen.append(batch[0])
        torch.rand(100)  # whatever is drawn between
        for batch in run.steps(loader, "1ep"):
            seen.append(batch[0])
            if run.step == 7:
                break
        for batch in run.steps(loader, "1ep"):
            seen.append(batch[0])
        assert (run.timestamp.epoch, run.timestamp.batch) == (1, 10)
    rows = torch.cat(seen).tolist()
    assert sorted(rows) == sorted(make_loader().dataset.tensors[0].tolist()), "each sample once in the epoch"


def test_steps_called_again_with_other_data_starts_with_its_first_batch(root: Path) -> None:
    other = [torch.full((2, 2), float(i)) for i in range(3)]
    with session("foo", root=root) as run:
        train(run, "8ba")
        seen = [batch[0, 0].item() for batch in run.steps(other, "10ba")]
    assert seen == [0.0, 1.0]


def test_steps_called_again_with_an_iterator_skips_nothing_of_it(root: Path) -> None:
    numbers = (torch.full((2,), float(i)) for i in itertools.count())
    with session("foo", root=root) as run:
        first = [batch[0].item() for batch in run.steps(numbers, "3ba")]
        second = [batch[0].item() for batch in run.steps(numbers, "6ba")]
    assert first + second == [0, 1, 2, 3, 4, 5]


def test_an_epoch_that_ends_with_the_limit_is_an_epoch(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        train(run, "10ba")
        assert (run.timestamp.epoch, run.timestamp.batch_in_epoch) == (1, 0)
    assert written().manifest.summary.epoch == 1


@pytest.mark.parametrize(
    ("max_duration", "expected_steps"), [("3ba", 3), ("2ep", 20), (1, 10), ("18sp", 5), ("100tok", 4)]
)
def test_durations_end_where_they_say(root: Path, max_duration: Any, expected_steps: int) -> None:
    with session("foo", root=root) as run:
        steps = run.steps(BATCHES, max_duration, get_num_tokens=lambda batch: 30)
        assert sum(1 for _ in steps) == expected_steps


def test_a_duration_in_seconds_ends_on_the_clock(root: Path) -> None:
    begin = time.monotonic()
    with session("foo", root=root) as run:
        for _ in run.steps(itertools.repeat(torch.ones(2)), "0.3sec"):
            time.sleep(0.01)
        assert 0.3 <= time.monotonic() - begin < 1.5
        assert 10 <= run.step <= 31


def test_a_clock_that_is_set_back_shifts_no_duration(
    root: Path, written: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shift_ns = time.time_ns, [0]
    monkeypatch.setattr(time, "time_ns", lambda: real() + shift_ns[0])
    with session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "1ep"):
            shift_ns[0] = -3600 * 10**9 if run.step > 5 else 365 * 86400 * 10**9
            run.log({"number": run.step})
            time.sleep(0.002)
    foo = written()
    assert all(2_000 <= line["step_us"] < 100_000 for line in foo.lines("steps"))
    assert foo.steps() == foo.values("number") == list(range(1, 11))


def test_stop_ends_after_the_step_in_progress_and_says_why(root: Path, written: Callable[..., Any]) -> None:
    with session("foo", root=root) as run:
        for _ in run.steps(BATCHES, "1ep"):
            if run.step == 4:
                run.stop("good enough")
        assert train(run, "2ep") == []
    assert written().steps() == [1, 2, 3, 4]
    assert written().status == "finished"
    assert "stopping: good enough" in written().text


@pytest.mark.parametrize(
    ("device", "in_use", "expected", "activities"),
    [
        (None, False, "cpu", ["CPU"]),
        (None, True, "cuda", ["CPU", "CUDA"]),
        ("cpu", True, "cpu", ["CPU"]),
        ("cuda:1", True, "cuda:1", ["CPU", "CUDA"]),
    ],
)
def test_cuda_is_recorded_where_the_process_uses_it_unless_the_user_names_another_device(
    device: str | None,
    in_use: bool,
    expected: str,
    activities: list[str],
    root: Path,
    written: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is asked of torch.profiler; without a GPU it then records the CPU only."""
    asked: list[list[str]] = []

    class Spy(torch.profiler.profile):
        def __init__(self, *, activities: Any, **options: Any) -> None:
            asked.append([activity.name for activity in activities])
            super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **options)

    monkeypatch.setattr(torch.profiler, "profile", Spy)
    with session("foo", root=root, profile=TestCapture.RECIPE, device=device) as run:
        # In use from here on: a loop may build its model after it has opened the session.
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("harness.checkpoint.position.collect_rng", dict)
        train(run, "4ba")
    assert asked[0] == activities
    assert written().manifest.device == expected


class TestCapture:
    RECIPE = Recipe(name="own", schedule=Schedule(skip_first=1, wait=0, warmup=1, active=2, repeat=0))

    def test_phases_of_a_loop_of_ones_own_lie_over_their_ops(
        self, root: Path, written: Callable[..., Any], intervals: Callable[..., Any]
    ) -> None:
        linear = torch.nn.Linear(2, 2)
        recipe = Recipe(name="own", schedule=Schedule(skip_first=1, warmup=1, active=2))
        with session("foo", root=root, profile=recipe) as run:
            for batch in run.steps(BATCHES, "6ba"):
                with run.phase("encoder.v1-x"):
                    linear(batch)
        (path,) = written().traces()
        trace = load(path)
        spans = [span for span in phase_spans(trace) if span.phase == "encoder.v1-x"]
        assert [span.step for span in spans] == [3, 4]
        ops = intervals(trace, "aten::linear")
        for span, (start, end) in zip(spans, ops, strict=True):
            assert span.ts_ns <= start <= end <= span.ts_ns + span.dur_ns

    def test_a_phase_inside_another_leaves_the_users_own_annotation_and_operators_whole(
        self, root: Path, written: Callable[..., Any], intervals: Callable[..., Any]
    ) -> None:
        linear = torch.nn.Linear(2, 2)

        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
                with run.phase("inner"):
                    return value.sinh()

        with session("foo", root=root, profile=self.RECIPE) as run:
            for batch in run.steps(BATCHES, "4ba"):
                with run.phase("forward"), torch.profiler.record_function("mine"):
                    output = linear(batch)
                    with run.phase("attention"):
                        output = output.tanh()
                    Doubled.apply(output)
                    run.log({"mean": output.mean()})
        trace = load(written().traces()[0])
        whole = {name: intervals(trace, name) for name in ("phase/forward", "mine", "Doubled", "aten::linear")}
        inner = {
            name: intervals(trace, name) for name in ("phase/attention", "aten::tanh", "phase/inner", "aten::sinh")
        }
        assert [len(found) for found in (whole | inner).values()] == [2] * 8
        for step in range(2):
            forward, mine, function, op = (found[step] for found in whole.values())
            attention, tanh, inside, sinh = (found[step] for found in inner.values())
            for outer, one in [
                (forward, mine), (mine, op), (mine, attention), (attention, tanh), (mine, function),
                (function, inside), (inside, sinh),
            ]:  # fmt: skip
                assert outer[0] <= one[0] <= one[1] <= outer[1], (outer, one)

    def test_a_window_cut_by_break_has_the_steps_that_were_done(self, root: Path, written: Callable[..., Any]) -> None:
        with session("foo", root=root, profile=self.RECIPE) as run:
            for _ in run.steps(BATCHES, "1ep"):
                if run.step == 3:
                    break
            with run.phase("afterwards"):
                torch.ones(2).sum()
        (path,) = written().traces()
        assert [step.step for step in profiler_steps(load(path))] == [3]
        assert "afterwards" not in {span.phase for span in phase_spans(load(path))}

    def test_a_window_cut_by_an_exception_is_written(self, root: Path, written: Callable[..., Any]) -> None:
        with pytest.raises(ZeroDivisionError), session("foo", root=root, profile=self.RECIPE) as run:
            for batch in run.steps(BATCHES, "1ep"):
                batch.sum()
                if run.step == 4:
                    raise ZeroDivisionError
        (path,) = written().traces()
        assert profiler_steps(load(path))[0].step == 3
        assert written().manifest.summary.traces == 1

    def test_a_second_call_of_steps_captures_too(self, root: Path, written: Callable[..., Any]) -> None:
        with session("foo", root=root, profile=self.RECIPE) as run:
            train(run, "4ba")
            train(run, "10ba")
        names = [path.name for path in written().traces()]
        assert names[0] == "rank0.000003.pt.trace.json.gz"
        assert len(names) >= 2
        recorded = [step.step for path in written().traces() for step in profiler_steps(load(path))]
        assert recorded == sorted(set(recorded))
        states = {line["step"]: line["capture"] for line in written().lines("steps")}
        assert {step for step, state in states.items() if state == "active"} == set(recorded)

    def test_a_recipe_that_can_never_open_warns_with_the_numbers(
        self, root: Path, written: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING), session("foo", root=root, profile="quick") as run:
            train(run)
        (record,) = [record for record in caplog.records if record.name.startswith("harness")]
        assert "10" in record.getMessage() and "26" in record.getMessage()
        assert written().traces() == []


class TestCheckpoints:
    def test_an_error_between_two_steps_saves_the_last_good_one(self, root: Path, written: Callable[..., Any]) -> None:
        def broken() -> Iterator[torch.Tensor]:
            yield from BATCHES[:3]
            raise OSError("the disk with the data is gone")

        model = torch.nn.Linear(1, 1)
        with (
            pytest.raises(OSError, match="with the data is gone") as caught,
            session("foo", root=root, state={"model": model}, save_interval="1ep") as run,
        ):
            train(run, "1ep", broken())
        assert caught.value.__notes__ == ["while the dataloader loaded the batch of step 4"]
        assert written().checkpoints() == ["ep0-ba3-rank0.pt"]
        assert "step 4" in (written().manifest.attempts[0].error or "")

    def test_an_error_inside_a_step_saves_nothing(self, root: Path, written: Callable[..., Any]) -> None:
        model = torch.nn.Linear(1, 1)
        with (
            pytest.raises(ZeroDivisionError),
            session("foo", root=root, state={"model": model}, save_interval="1ep") as run,
        ):
            for _ in run.steps(BATCHES, "1ep"):
                if run.step == 3:
                    raise ZeroDivisionError
        assert written().checkpoints() == []

    @pytest.mark.parametrize("saves_itself", [True, False], ids=["in-a-step", "at-the-end"])
    def test_a_checkpoint_that_no_interval_asked_for_is_in_the_account(
        self, saves_itself: bool, root: Path, written: Callable[..., Any]
    ) -> None:
        state = {"model": torch.nn.Linear(2, 2)}
        with session("foo", root=root, state=state, save_interval="100ba") as run:
            for _ in run.steps(BATCHES, "4ba"):
                if saves_itself and run.step == 4:
                    run.save_checkpoint()
        foo = written()
        assert len(foo.checkpoints()) == 1 + saves_itself
        cost = foo.manifest.own_cost
        assert cost["training_thread_ns"]["checkpoint"] > 100_000
        # By far the longest part of a run of four steps that do nothing; before, it was nobody's.
        assert cost["training_thread_ns"]["checkpoint"] > 0.5 * cost["training_ns"]

    def test_save_checkpoint_saves_now_and_not_twice(self, root: Path, written: Callable[..., Any]) -> None:
        model = torch.nn.Linear(1, 1)
        with session("foo", root=root, state={"model": model}, save_interval="1ep") as run:
            train(run, "3ba")
            run.save_checkpoint()
            run.save_checkpoint()
            assert written().checkpoints() == ["ep0-ba3-rank0.pt"]
        assert written().manifest.summary.checkpoints == 1

    def test_no_line_of_a_step_before_a_checkpoint_is_missing_when_it_is_there(
        self, root: Path, written: Callable[..., Any]
    ) -> None:
        # A run that is killed goes on from its newest checkpoint: what is not on the disk by then never will be.
        model = torch.nn.Linear(1, 1)
        seen = set()
        with session("foo", root=root, state={"model": model}, save_interval="2ba") as run:
            for _ in run.steps(BATCHES, "3ep"):
                run.log({"number": run.step})
                if run.step % 5 == 0:
                    run.saver.finish()
                names = written().checkpoints()
                saved = max((int(name.split("-")[1][2:]) for name in names), default=0)
                seen.add(saved)
                assert written().steps()[:saved] == list(range(1, saved + 1))
                assert written().values("number")[:saved] == list(range(1, saved + 1))
        assert len(seen) > 4

    def test_a_fraction_of_the_run_is_due_inside_an_epoch(self, root: Path, written: Callable[..., Any]) -> None:
        model = torch.nn.Linear(1, 1)
        with session("foo", root=root, state={"model": model}, save_interval="0.25dur") as run:
            train(run, "2ep")
        steps = sorted(int(name.split("-")[1][2:]) for name in written().checkpoints())
        assert steps == [5, 10, 15, 20]

    def test_a_last_checkpoint_that_cannot_be_saved_fails_the_run(
        self, root: Path, written: Callable[..., Any]
    ) -> None:
        class Unsaveable(torch.nn.Linear):
            def state_dict(self, *args: Any, **kwargs: Any) -> Any:
                return {"weight": object()}

        with (
            pytest.raises(RuntimeError, match="no safe load could read back"),
            session("foo", root=root, state={"model": Unsaveable(1, 1)}, save_interval="2ep") as run,
        ):
            train(run)
        assert written().status == "failed"
        assert written().steps() == list(range(1, 11))

    def test_a_break_whose_checkpoint_fails_still_closes_everything(
        self, root: Path, written: Callable[..., Any]
    ) -> None:
        class Unsaveable(torch.nn.Linear):
            def state_dict(self, *args: Any, **kwargs: Any) -> Any:
                return {"weight": object()}

        with (
            pytest.raises(RuntimeError, match="no safe load could read back"),
            session("foo", root=root, state={"model": Unsaveable(1, 1)}, save_interval="3ba") as run,
        ):
            for _ in run.steps(BATCHES, "1ep"):
                if run.step == 3:
                    break
        assert written().status == "failed"
        assert written().steps() == [1, 2, 3]


class TestForks:
    def test_a_forked_child_logs_nothing_holds_no_lock_and_ends(self, root: Path, written: Callable[..., Any]) -> None:
        stop = threading.Event()
        with session("foo", root=root) as run:

            def hammer() -> None:
                while not stop.is_set():
                    run.log_text("hammering")

            thread = threading.Thread(target=hammer)
            thread.start()
            try:
                for _ in run.steps(BATCHES, "2ep"):
                    pid = os.fork()
                    if pid == 0:
                        run.log({"child": 1})
                        run.log_text("from the child")
                        run.attempt.manifest.save()
                        run.attempt.fanout.close()
                        run.attempt.writer.close()
                        os._exit(0)
                    assert _wait_for_child(pid) == 0
            finally:
                stop.set()
                thread.join()
        assert written().steps() == list(range(1, 21))
        assert written().values("child") == []
        assert "from the child" not in written().text

    def test_a_child_that_outlives_the_run_does_not_hold_it(self, root: Path) -> None:
        reading, writing = os.pipe()
        with session("foo", root=root) as run:
            for _ in run.steps(BATCHES, "1ba"):
                pid = os.fork()
                if pid == 0:
                    os.close(writing)
                    os.read(reading, 1)
                    os._exit(0)
        try:
            with session("foo", root=root, resume="auto"):
                pass
        finally:
            os.close(writing)
            os.close(reading)
            assert _wait_for_child(pid) == 0


def _wait_for_child(pid: int) -> int:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


class TestTheDirectoryVanishes:
    def test_a_removed_directory_stays_removed_and_ends_in_an_error(self, root: Path) -> None:
        with pytest.raises(OSError, match="removed, renamed or replaced"), session("foo", root=root) as run:
            for _ in run.steps(BATCHES, "1ep"):
                if run.step == 5:
                    shutil.rmtree(root / "foo")
            assert run.step == 10, "training itself went on"
        assert list(root.iterdir()) == []

    def test_nothing_is_written_into_a_directory_that_took_the_place(
        self, root: Path, written: Callable[..., Any]
    ) -> None:
        model = torch.nn.Linear(1, 1)
        with (
            pytest.raises(OSError, match="removed, renamed or replaced"),
            session("foo", root=root, state={"model": model}, save_interval="2ep") as run,
        ):
            for _ in run.steps(BATCHES, "1ep"):
                run.log({"number": run.step})
                if run.step == 5:
                    (root / "foo").rename(root / "moved")
                    (root / "foo").mkdir()
        assert list((root / "foo").iterdir()) == []
        moved = written("moved")
        assert moved.steps() == moved.values("number") == list(range(1, 11)), "open files went with the directory"

    def test_the_exception_of_the_body_is_not_hidden_by_it(self, root: Path) -> None:
        with pytest.raises(ZeroDivisionError) as caught, session("foo", root=root) as run:
            for _ in run.steps(BATCHES, "1ep"):
                (root / "foo").rename(root / "moved")
                raise ZeroDivisionError
        assert caught.value.__context__ is None


class TestUse:
    def test_a_session_that_was_not_entered_says_how_it_is_used(self, root: Path) -> None:
        run = session("foo", root=root)
        try:
            with pytest.raises(ConfigError, match="is not open.*\n.*with harness.session"):
                run.log({"a": 1})
            with pytest.raises(ConfigError, match="is not open"):
                train(run)
        finally:
            run.directory.release()

    def test_a_session_is_entered_once(self, root: Path) -> None:
        with session("foo", root=root) as run:
            pass
        with pytest.raises(ConfigError, match="was opened before"), run:
            pass

    def test_steps_of_an_iterator_that_is_used_up_is_an_error(self, root: Path, written: Callable[..., Any]) -> None:
        with pytest.raises(DataError, match="no batch in epoch 2"), session("foo", root=root) as run:
            train(run, "2ep", iter(BATCHES))
        assert written().steps() == list(range(1, 11))

    def test_a_session_works_outside_the_main_thread(self, root: Path, written: Callable[..., Any]) -> None:
        def work() -> None:
            with session("foo", root=root) as run:
                train(run)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert written().steps() == list(range(1, 11))

    def test_two_sessions_at_once_keep_apart(self, root: Path, written: Callable[..., Any]) -> None:
        with session("foo", root=root) as foo, session("bar", root=root) as bar:
            for (_, _), number in zip(
                zip(foo.steps(BATCHES, "1ep"), bar.steps(BATCHES, "1ep"), strict=True), itertools.count(), strict=False
            ):
                foo.log({"n": number})
                bar.log({"n": -number})
        assert written("foo").values("n") == list(range(10))
        assert written("bar").values("n") == [-n for n in range(10)]

    def test_a_generated_name_is_the_directory_and_in_every_file(self, root: Path) -> None:
        with session(root=root) as run:
            train(run)
        name = run.run_name
        assert [path.name for path in root.iterdir()] == [name]
        manifest = json.loads((root / name / "run.json").read_text())
        assert (manifest["run_name"], manifest["name_source"]) == (name, "generated")

    def test_the_name_comes_from_the_environment(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RUN_NAME", "third")
        monkeypatch.setenv("COMPOSER_RUN_NAME", "second")
        monkeypatch.setenv("HARNESS_ROOT", str(root))
        with session() as run:
            pass
        assert run.run_name == "second"
        assert (root / "second").is_dir()
