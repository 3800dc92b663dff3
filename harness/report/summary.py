"""Turns the step table of a run into the few numbers people ask for first: how long is a step, and where does
its time go.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.trace.steps import CAPTURE_STATES, StepTable

_OFF = CAPTURE_STATES.index("off")
_US_PER_S = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """Step times and their parts.

    Figures of throughput are over the counted steps: those that no capture window slowed down. Where all
    steps lie in or next to windows, all are counted, and `counts_captured` says so.
    """

    num_steps: int
    """All steps."""
    num_counted: int
    """Steps the figures are made of."""
    num_left_out: int
    """Steps in or next to a capture window that were not counted."""
    counts_captured: bool
    """Whether steps of capture windows are counted, because there are no others."""
    median_step_us: float | None
    """Median step, µs; None without steps."""
    p95_step_us: float | None
    """95th percentile of the step, µs (interpolated); None without steps."""
    steps_per_s: float | None
    """Counted steps per second of their own time, evaluation left out; None where they took no time."""
    shares_pct: dict[str, float]
    """Part of each phase in the time of the counted steps, %; sums to 100. Empty where they took no time."""
    own_cost_pct: float | None
    """Part of the `harness` phase in the time of all steps, captured ones included, %; None without steps."""
    eval_s: float
    """Evaluation beside all steps, s."""


def summarise(steps: StepTable) -> RunSummary:
    """Summarise the steps of one rank.

    Args:
        steps: From `read_steps`; may be empty.
    """
    counted = steps.capture == _OFF
    counts_captured = len(steps) > 0 and not counted.any()
    if counts_captured:
        counted = np.ones(len(steps), np.bool_)
    num_counted = int(np.count_nonzero(counted))
    step_us = steps.step_us[counted]
    total_us = float(step_us.sum())
    return RunSummary(
        num_steps=len(steps),
        num_counted=num_counted,
        num_left_out=len(steps) - num_counted,
        counts_captured=counts_captured,
        median_step_us=float(np.median(step_us)) if num_counted else None,
        p95_step_us=float(np.percentile(step_us, 95)) if num_counted else None,
        steps_per_s=num_counted / total_us * _US_PER_S if total_us > 0 else None,
        shares_pct=_shares_pct(steps, counted),
        own_cost_pct=_shares_pct(steps, np.ones(len(steps), np.bool_)).get("harness"),
        eval_s=float(steps.eval_us.sum()) / _US_PER_S,
    )


def _shares_pct(steps: StepTable, counted: NDArray[np.bool_]) -> dict[str, float]:
    """Phase to its part of the time of these steps; the phases together are the whole."""
    sums_us = {name: float(values[counted].sum()) for name, values in steps.phases.items()}
    total_us = sum(sums_us.values())
    if total_us <= 0:
        return {}
    return {name: 100 * sum_us / total_us for name, sum_us in sums_us.items()}
