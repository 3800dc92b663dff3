"""One run of 2,000 steps, looked at from every file it wrote: they must tell the same story on the same clock."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.trace.reader import Trace, load
from harness.trace.spans import phase_spans, profiler_steps
from harness.trainer.trainer import Trainer

NUM_STEPS, NUM_PER_EPOCH = 2000, 300
SCHEDULE = Schedule(skip_first=10, wait=600, warmup=2, active=3, repeat=2)
RECORDED = [[613, 614, 615], [1218, 1219, 1220]]
LOSS = "loss/train/total"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one run that all tests of this file look at."""
    root = tmp_path_factory.mktemp("agreement") / "runs"
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(NUM_PER_EPOCH * 2, 8), torch.randint(3, (NUM_PER_EPOCH * 2,)))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    Trainer(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)),
        loader,
        max_duration=f"{NUM_STEPS}ba",
        loss_fn=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1]),
        eval_dataloader=[next(iter(loader))],
        eval_interval="1ep",
        run_name="foo",
        root=root,
        device="cpu",
        profile=Recipe(name="own", schedule=SCHEDULE),
        save_interval="500ba",
        loggers=["tensorboard"],
    ).fit()
    return root


@pytest.fixture
def foo(root: Path, written: Callable[..., Any]) -> Any:
    return written("foo")


@pytest.fixture(scope="module")
def traces(root: Path) -> list[Trace]:
    return [load(path) for path in sorted((root / "foo" / "traces").glob("*.pt.trace.json.gz"))]


def test_the_manifest_counts_what_the_files_hold(foo: Any) -> None:
    manifest = foo.manifest
    assert manifest.summary.step == manifest.attempts[0].last_step == NUM_STEPS
    assert manifest.summary.epoch == NUM_STEPS // NUM_PER_EPOCH
    assert foo.steps() == list(range(1, NUM_STEPS + 1))
    assert list(foo.by_step(LOSS)) == foo.steps()
    assert [line["epoch"] for line in foo.lines("steps")] == [step // NUM_PER_EPOCH for step in range(NUM_STEPS)]
    for artifact in manifest.artifacts:
        assert (foo.path / artifact.path).stat().st_size == artifact.size_bytes
    listed = sorted(artifact.path for artifact in manifest.artifacts)
    assert listed == [f"checkpoints/{name}" for name in foo.checkpoints()] + [
        f"traces/{path.name}" for path in foo.traces()
    ]
    assert sorted(artifact.step for artifact in manifest.artifacts) == [500, 613, 1000, 1218, 1500, 2000]


def test_tensorboard_has_each_step_with_the_same_values(foo: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(foo.path), size_guidance={"scalars": 0}).Reload()
    values = {event.step: event.value for event in board.Scalars(LOSS)}
    expected = foo.by_step(LOSS)
    assert list(values) == list(expected)
    assert list(values.values()) == pytest.approx(list(expected.values()), rel=1e-6)
    times = {line["step"]: line["time"] for line in foo.lines("metrics") if LOSS in line}
    assert max(abs(event.wall_time - times[event.step]) for event in board.Scalars(LOSS)) < 1e-3
    assert [event.step for event in board.Scalars("loss/eval/total")] == [300 * n for n in range(1, 7)] + [NUM_STEPS]


def test_phase_times_sum_to_the_step_time(foo: Any) -> None:
    lines = foo.lines("steps")
    parts = np.array(
        [[v for k, v in line.items() if k.endswith("_us") and k not in ("step_us", "eval_us")] for line in lines]
    )
    steps = np.array([line["step_us"] for line in lines])
    assert np.abs(parts.sum(axis=1) / steps - 1).max() < 0.01
    assert (parts >= 0).all()


def test_steps_begin_one_after_the_other_and_take_what_lies_between(foo: Any) -> None:
    lines = foo.lines("steps")
    begins = np.array([line["time"] for line in lines])
    whole_us = np.array([line["step_us"] + line.get("eval_us", 0) for line in lines])
    gaps_us = np.diff(begins) * 1e6 - whole_us[:-1]
    inside = np.array([line["step"] % NUM_PER_EPOCH != 0 and line["step"] % 500 != 0 for line in lines[:-1]])
    # A block's clocks are read anew, a few µs apart; between steps there is nothing but the end of an epoch and a
    # checkpoint. Now and then another thread or process has its turn just there.
    assert np.median(np.abs(gaps_us[inside])) < 100


def test_metrics_are_logged_while_their_step_runs(foo: Any) -> None:
    times = {line["step"]: line["time"] for line in foo.lines("metrics") if LOSS in line}
    outside = []
    for line in foo.lines("steps"):
        begin, end = line["time"], line["time"] + line["step_us"] / 1e6
        outside.append(max(begin - times[line["step"]], times[line["step"]] - end))
    assert np.median(outside) < 1e-3


def test_capture_states_are_those_of_the_schedule(foo: Any) -> None:
    states = {line["step"]: line["capture"] for line in foo.lines("steps")}
    assert [step for step, state in states.items() if state == "active"] == [*RECORDED[0], *RECORDED[1]]
    assert [step for step, state in states.items() if state == "warmup"] == [611, 612, 1216, 1217]
    assert [step for step, state in states.items() if state == "adjacent"] == [610, 616, 1215, 1221]


def test_the_own_cost_is_what_the_step_lines_say(foo: Any) -> None:
    cost = foo.manifest.own_cost
    lines = foo.lines("steps")
    assert cost["steps_ns"] / 1e3 == pytest.approx(sum(line["step_us"] for line in lines), rel=1e-3)
    in_steps_ns = sum(line["harness_us"] for line in lines) * 1e3
    total_ns = sum(cost["training_thread_ns"].values())
    assert in_steps_ns <= total_ns * 1.001
    assert cost["training_thread_ns"]["checkpoint"] > 0
    assert cost["threads_cpu_ns"]["writer"] > 0
    assert cost["children_cpu_ns"]["traces"] > 0


class TestTraces:
    def test_profiler_steps_are_global_steps(self, traces: list[Trace], foo: Any) -> None:
        assert [[step.step for step in profiler_steps(trace)] for trace in traces] == RECORDED
        assert [path.name for path in foo.traces()] == [f"rank0.{steps[0]:06d}.pt.trace.json.gz" for steps in RECORDED]

    def test_every_step_has_its_phases_in_order(self, traces: list[Trace]) -> None:
        for trace, steps in zip(traces, RECORDED, strict=True):
            for step in steps:
                phases = [span.phase for span in phase_spans(trace) if span.step == step]
                phases = [phase for phase, _ in itertools.groupby(phases)]  # harness: loggers, capture, …
                assert phases == ["data", "forward", "backward", "optimizer", "harness"], (step, phases)

    def test_phases_do_not_overlap_and_lie_in_their_step(self, traces: list[Trace]) -> None:
        for trace in traces:
            spans = phase_spans(trace)
            for one, next_one in itertools.pairwise(spans):
                assert one.ts_ns + one.dur_ns <= next_one.ts_ns
            steps = {step.step: step for step in profiler_steps(trace)}
            for span in spans:
                step = steps[span.step]
                assert step.ts_ns <= span.ts_ns
                assert span.ts_ns + span.dur_ns <= step.ts_ns + step.dur_ns

    @pytest.mark.parametrize(
        ("op", "phase", "at_least"),
        [
            ("aten::linear", "forward", 2),
            ("aten::cross_entropy_loss", "forward", 1),
            ("autograd::engine::evaluate_function", "backward", 5),
            ("Optimizer.step#AdamW.step", "optimizer", 1),
            ("enumerate(DataLoader)", "data", 1),
        ],
    )
    def test_ops_lie_under_the_phase_that_caused_them(
        self, op: str, phase: str, at_least: int, traces: list[Trace], intervals: Callable[..., Any]
    ) -> None:
        for trace in traces:
            spans = [(s.ts_ns, s.ts_ns + s.dur_ns) for s in phase_spans(trace) if s.phase == phase]
            ops = intervals(trace, op)
            assert len(ops) >= at_least * 3, op
            for begin, end in ops:
                assert any(first <= begin and end <= last for first, last in spans), (op, begin, end)

    def test_phase_times_in_trace_and_step_file_agree(self, traces: list[Trace], foo: Any) -> None:
        lines = {line["step"]: line for line in foo.lines("steps")}
        # Not the harness's: the last of a window is cut off where its trace is written.
        spans = [span for trace in traces for span in phase_spans(trace) if span.phase != "harness"]
        apart_us = [abs(span.dur_ns / 1e3 - lines[span.step][f"{span.phase}_us"]) for span in spans]
        assert len(apart_us) == 4 * 6
        assert np.median(apart_us) < 100, apart_us

    def test_the_trace_lies_on_the_clock_of_the_step_file(self, traces: list[Trace], foo: Any) -> None:
        lines = {line["step"]: line for line in foo.lines("steps")}
        for trace in traces:
            assert trace.base_time_ns is not None
            for step in profiler_steps(trace):
                in_trace_s = (trace.base_time_ns + step.ts_ns) / 1e9
                assert abs(in_trace_s - lines[step.step]["time"]) < 0.02, step

    def test_the_trace_says_whose_it_is(self, foo: Any) -> None:
        import gzip

        for path in foo.traces():
            document = json.loads(gzip.decompress(path.read_bytes()))
            text = json.dumps({key: value for key, value in document.items() if key != "traceEvents"})
            assert '"foo"' in text
            assert document["distributedInfo"]["rank"] == 0
            assert document["distributedInfo"]["world_size"] == 1
