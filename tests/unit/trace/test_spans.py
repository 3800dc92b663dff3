"""Steps and phases by their names."""

from __future__ import annotations

import json
from pathlib import Path

from harness.trace.reader import Trace, load
from harness.trace.spans import PhaseSpan, ProfilerStep, phase_spans, profiler_steps


def span(name: str, ts: float, dur: float, cat: str = "user_annotation", pid: int = 1) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": 2, "ts": ts, "dur": dur}


def trace_of(tmp_path: Path, *events: dict[str, object]) -> Trace:
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": events}))
    return load(tmp_path / "t.json")


def test_steps_are_in_order_of_time_with_the_number_in_their_name(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        span("ProfilerStep#13", 200, 100),
        span("ProfilerStep#12", 100, 99.5),
        span("ProfilerStep#12", 150, 10, cat="gpu_user_annotation", pid=0),
        span("ProfilerStep#x", 1, 1),
        span("ProfilerStep#14 ", 1, 1),
        {"ph": "i", "name": "ProfilerStep#15", "ts": 1},
    )
    assert profiler_steps(trace) == [
        ProfilerStep(step=12, ts_ns=100_000, dur_ns=99_500, pid=1, tid=2),
        ProfilerStep(step=13, ts_ns=200_000, dur_ns=100_000, pid=1, tid=2),
    ]


def test_a_phase_belongs_to_the_step_it_starts_in(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        span("ProfilerStep#1", 100, 50),
        span("phase/data", 90, 5),
        span("phase/forward", 100, 10),
        span("phase/my.loss-2", 149, 10),
        span("phase/harness", 150, 1),
        span("forward", 100, 10),
        span("phase/forward", 100, 10, cat="gpu_user_annotation", pid=0),
    )
    found = [(phase.phase, phase.step, phase.ts_ns, phase.dur_ns) for phase in phase_spans(trace)]
    assert found == [
        ("data", None, 90_000, 5_000),
        ("forward", 1, 100_000, 10_000),
        ("my.loss-2", 1, 149_000, 10_000),
        ("harness", None, 150_000, 1_000),
    ]
    assert isinstance(phase_spans(trace)[0], PhaseSpan)
