"""Figures of a run, against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from harness.report.summary import summarise
from harness.trace.steps import CAPTURE_STATES, StepTable


def table(step_us: list[float], capture: list[str], **phases: list[float]) -> StepTable:
    count = len(step_us)
    return StepTable(
        step=np.arange(1, count + 1),
        time_s=np.zeros(count),
        epoch=np.zeros(count, np.int64),
        step_us=np.array(step_us, np.float64),
        eval_us=np.full(count, 500_000.0),
        phases={name: np.array(values, np.float64) for name, values in phases.items()},
        capture=np.array([CAPTURE_STATES.index(state) for state in capture], np.uint8),
        torn=False,
    )


def test_steps_in_and_next_to_windows_are_left_out_of_throughput() -> None:
    states = ["off", "adjacent", "warmup", "active", "adjacent", "off", "off"]
    steps = table([100, 9000, 9000, 9000, 9000, 200, 300], states, forward=[100, *[9000] * 4, 200, 300])
    summary = summarise(steps)
    assert (summary.num_steps, summary.num_counted, summary.num_left_out) == (7, 3, 4)
    assert summary.median_step_us == 200
    assert summary.p95_step_us == pytest.approx(290)
    assert summary.steps_per_s == pytest.approx(3 / 600e-6)
    assert not summary.counts_captured
    assert summary.eval_s == 3.5


def test_shares_are_of_the_counted_steps_and_sum_to_a_hundred() -> None:
    steps = table(
        [100, 1000, 300],
        ["off", "active", "off"],
        data=[10, 900, 30],
        forward=[60, 0, 100],
        harness=[5, 100, 15],
        other=[25, 0, 55],
        my_phase=[0, 0, 100],
    )
    summary = summarise(steps)
    assert summary.shares_pct == pytest.approx({"data": 10, "forward": 40, "harness": 5, "other": 20, "my_phase": 25})
    assert sum(summary.shares_pct.values()) == pytest.approx(100)
    assert summary.own_cost_pct == pytest.approx(100 * 120 / 1400)


def test_a_run_that_lies_in_windows_as_a_whole_counts_all_and_says_so() -> None:
    summary = summarise(table([10, 30], ["warmup", "active"], forward=[10, 30]))
    assert (summary.num_counted, summary.num_left_out, summary.counts_captured) == (2, 0, True)
    assert summary.median_step_us == 20
    assert summary.shares_pct == {"forward": 100}


def test_a_run_without_steps_has_no_figures() -> None:
    summary = summarise(table([], [], data=[], harness=[]))
    assert (summary.num_steps, summary.num_counted, summary.num_left_out) == (0, 0, 0)
    assert summary.median_step_us is None
    assert summary.p95_step_us is None
    assert summary.steps_per_s is None
    assert summary.own_cost_pct is None
    assert summary.shares_pct == {}
    assert not summary.counts_captured


def test_steps_that_took_no_time_have_no_shares() -> None:
    summary = summarise(table([0, 0], ["off", "off"], data=[0, 0]))
    assert summary.median_step_us == 0
    assert summary.steps_per_s is None
    assert summary.shares_pct == {}
