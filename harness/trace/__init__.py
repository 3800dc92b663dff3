"""Reads what a run wrote, traces and step files, as plain data; loads neither torch nor the training side."""

from __future__ import annotations

from harness.trace.reader import Trace, load
from harness.trace.spans import PhaseSpan, ProfilerStep, phase_spans, profiler_steps
from harness.trace.steps import StepTable, read_steps

__all__ = [
    "PhaseSpan",
    "ProfilerStep",
    "StepTable",
    "Trace",
    "load",
    "phase_spans",
    "profiler_steps",
    "read_steps",
]
