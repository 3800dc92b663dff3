"""From what each process measured to the rows of `peers.json`; README.md beside this file says what they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cells import FRAMEWORKS, Cell

from harness.intervals import Interval, difference_interval, median_interval

FIGURES = (
    "bare_us",
    "thread_us",
    "background_us",
    "children_us",
    "total_us",
    "added_pct",
    "wall_us",
    "null_us",
)
CONFIDENCE = 0.95
_DIGITS = 4

Outcome = Mapping[str, Any]
"""What `measure.py` wrote, or `{"failed": MESSAGE}`."""


def rows(outcomes: Mapping[Cell, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """A row for each cell, in the order of `outcomes`; a cell has one outcome or more."""
    values = {cell: _values(each) for cell, each in outcomes.items()}
    return [
        _row(cell, each, values[cell], values.get(Cell(cell.framework, cell.workload, "off"), {}))
        for cell, each in outcomes.items()
    ]


def versions(outcomes: Mapping[Cell, Sequence[Outcome]]) -> dict[str, str | None]:
    """Of each framework that was asked for; None where no process could import it."""
    found: dict[str, str | None] = {cell.framework: None for cell in outcomes}
    for cell, each in outcomes.items():
        found[cell.framework] = next(
            (outcome["version"] for outcome in each if "version" in outcome), found[cell.framework]
        )
    return found


def all_fine(table: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every cell was measured and trained to the bare loop's weights."""
    return all(row["status"] == "measured" and row["weights_equal"] for row in table)


def as_text(table: Sequence[Mapping[str, Any]]) -> str:
    """For a terminal: the medians, in µs per step and in percent of the bare step."""
    lines = [
        f"{'framework':26}{'workload':9}{'case':15}{'bare µs':>10}{'added µs':>10}{'of it thread':>13}{'percent':>9}"
    ]
    for row in table:
        name = f"{FRAMEWORKS[row['framework']].title:26}{row['workload']:9}{row['case']:15}"
        mid = {figure: row["figures"][figure]["mid"] for figure in row["figures"]}
        numbers = (
            f"{mid['bare_us']:10.1f}{mid['total_us']:10.1f}{mid['thread_us']:13.1f}{mid['added_pct']:9.2f}"
            if mid
            else ""
        )
        lines.append(f"{name}{numbers}{_remark(row)}")
    return "\n".join(lines)


def _row(
    cell: Cell, outcomes: Sequence[Outcome], values: Mapping[str, list[float]], off: Mapping[str, list[float]]
) -> dict[str, Any]:
    measured = [outcome for outcome in outcomes if "measured" in outcome]
    status, message = _status(outcomes)
    on_top = cell.case != "off" and values and off
    return {
        "framework": cell.framework,
        "workload": cell.workload,
        "case": cell.case,
        "status": status,
        "message": message,
        "note": measured[0]["note"] if measured else None,
        "num_processes": len(measured),
        "weights_equal": all(outcome["weights_equal"] for outcome in measured) if measured else None,
        "batches_ahead": max(outcome["batches_ahead"] for outcome in measured) if measured else None,
        "figures": {
            name: as_json(median_interval(each, confidence=CONFIDENCE)) for name, each in values.items()
        },
        "on_top_us": as_json(difference_interval(off["total_us"], values["total_us"], confidence=CONFIDENCE))
        if on_top
        else None,
        "values": values,
    }  # fmt: skip


def _status(outcomes: Sequence[Outcome]) -> tuple[str, str | None]:
    for status in ("missing", "failed"):
        for outcome in outcomes:
            if status in outcome:
                return status, outcome[status]
    return "measured", None


def _values(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    measured = [outcome["measured"] for outcome in outcomes if "measured" in outcome]
    figures = [{**each, "added_pct": 100 * each["total_us"] / each["bare_us"]} for each in measured]
    return {name: [round(each[name], _DIGITS) for each in figures] for name in FIGURES} if figures else {}


def as_json(interval: Interval) -> dict[str, float | None]:
    """JSON has no infinity: a bound that one value alone cannot have is null."""
    bounds = {"low": interval.low, "mid": interval.mid, "high": interval.high}
    return {name: round(value, _DIGITS) if math.isfinite(value) else None for name, value in bounds.items()}


def _remark(row: Mapping[str, Any]) -> str:
    if row["status"] != "measured":
        return f"  {row['status']}: {row['message']}"
    return "" if row["weights_equal"] else "  weights differ from the bare loop's"
