"""Finds the steps and phases of training in a trace, by the names of their annotations."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness.trace.reader import Trace

PHASE_PREFIX = "phase/"
"""Names of the annotations that the harness opens around the phases of a step."""
_STEP_NAME = re.compile(r"ProfilerStep#(\d{1,18})")
_DEVICE_COPY = "gpu_user_annotation"
"""kineto repeats an annotation on the device's track, over the kernels it caused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfilerStep:
    """One recorded step."""

    step: int
    """The N of `ProfilerStep#N`: the global step in traces of ours, the profiler's own count in others."""
    ts_ns: int
    """Start, ns after the trace's base time."""
    dur_ns: int
    """Length, ns."""
    pid: int | str
    tid: int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSpan:
    """One phase of a step."""

    phase: str
    """`data`, `forward`, `backward`, `optimizer`, `harness`, `other` or a name of the user's."""
    step: int | None
    """The step in which it starts; None outside all recorded steps."""
    ts_ns: int
    """Start, ns after the trace's base time."""
    dur_ns: int
    """Length, ns; phases that lie inside this one are in it, unlike in the step file."""
    pid: int | str
    tid: int | str


def profiler_steps(trace: Trace) -> list[ProfilerStep]:
    """The recorded steps, by start time."""
    matches = ((index, _STEP_NAME.fullmatch(name)) for index, name in enumerate(trace.names))
    numbers = {index: int(match[1]) for index, match in matches if match}
    steps = [
        ProfilerStep(
            step=numbers[int(trace.name[row])],
            ts_ns=int(trace.ts_ns[row]),
            dur_ns=int(trace.dur_ns[row]),
            pid=trace.pids[trace.pid[row]],
            tid=trace.tids[trace.tid[row]],
        )
        for row in _rows(trace, list(numbers))
    ]
    return sorted(steps, key=lambda step: (step.ts_ns, step.step))


def phase_spans(trace: Trace) -> list[PhaseSpan]:
    """The phases of the recorded steps, by start time."""
    steps = profiler_steps(trace)
    starts = [step.ts_ns for step in steps]
    names = [index for index, name in enumerate(trace.names) if name.startswith(PHASE_PREFIX)]
    spans = [
        PhaseSpan(
            phase=trace.names[trace.name[row]].removeprefix(PHASE_PREFIX),
            step=_step_at(int(trace.ts_ns[row]), steps, starts),
            ts_ns=int(trace.ts_ns[row]),
            dur_ns=int(trace.dur_ns[row]),
            pid=trace.pids[trace.pid[row]],
            tid=trace.tids[trace.tid[row]],
        )
        for row in _rows(trace, names)
    ]
    return sorted(spans, key=lambda span: (span.ts_ns, -span.dur_ns))


def _rows(trace: Trace, names: list[int]) -> Iterator[int]:
    """Rows of the spans with one of these names, without the device's copies."""
    chosen = trace.spans & np.isin(trace.name, names) & ~trace.mask(cat=_DEVICE_COPY)
    yield from np.flatnonzero(chosen).tolist()


def _step_at(ts_ns: int, steps: list[ProfilerStep], starts: list[int]) -> int | None:
    index = bisect_right(starts, ts_ns) - 1
    if index < 0 or ts_ns >= steps[index].ts_ns + max(steps[index].dur_ns, 1):
        return None
    return steps[index].step
