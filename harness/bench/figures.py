"""From what each process measured to the figures of a row: medians over processes, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.bench.measured import Aside, Measured
from harness.bench.spec import CaseResult, CaseSpec
from harness.bench.suite import RECORDER, Case, Row
from harness.intervals import Interval, difference_interval, median_interval

FORMAT = 1
"""Of the JSON document. A change that a reader could trip over raises it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A median over processes. Bounds are None where one process alone says nothing about the spread."""

    median: float
    """In the unit that the figure's name ends in."""
    low: float | None
    """Lower end of the bootstrap interval."""
    high: float | None
    """Upper end."""
    values: tuple[float, ...] = ()
    """Of each process, in order; empty for a difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFigures:
    """A line of the table with its numbers."""

    name: str
    """Its key."""
    what: str
    """For people."""
    per: str
    """What its figures are for one of: `step`, `recorded step`, `window`, `checkpoint`."""
    figures: dict[str, Figure]
    """Measured from outside: what is added to the bare loop's step."""
    own_account: dict[str, Figure]
    """What the run says of itself, under the names of the figures it is to be compared with."""
    over_recorder: Figure | None
    """`total_us` less that of the row `recorder`."""


def row_figures(cases: Iterable[tuple[Case, Sequence[CaseResult]]]) -> list[RowFigures]:
    """The rows of all cases, in order."""
    rows: list[RowFigures] = []
    for case, results in cases:
        for row in case.rows:
            measured = _columns([measured_figures(row, result) for result in results])
            told = _columns([told_figures(row, case.spec, result) for result in results])
            base = next((one.figures["total_us"].values for one in rows if one.name == RECORDER), None)
            compares = base is not None and row.per == "step"
            rows.append(
                RowFigures(
                    name=row.name,
                    what=row.what,
                    per=row.per,
                    figures={name: _figure(median_interval(values), values) for name, values in measured.items()},
                    own_account={name: _figure(median_interval(values), values) for name, values in told.items()},
                    over_recorder=(
                        _figure(difference_interval(base, measured["total_us"]))
                        if compares and base is not None
                        else None
                    ),
                )
            )
    return rows


def measured_figures(row: Row, result: CaseResult) -> dict[str, float]:
    """One process's figures for a row, in µs and percent; empty where it has none (no window was whole)."""
    measured = result.measured
    if row.per == "step":
        figures = {
            "thread_us": measured.thread_us,
            "background_us": measured.background_us,
            "children_us": measured.children_us,
            "total_us": measured.total_us,
            "wall_us": measured.wall_us,
        }
    elif row.per == "recorded step":
        figures = _aside(result.window)
    elif result.apart is None:
        figures = {}
    else:
        figures = _aside(result.apart)
        if row.per == "window":
            figures["children_us"] = measured.children_us * measured.num_steps / result.apart.num_steps
            figures["total_us"] += figures["children_us"]
    if figures:
        figures["bare_us"] = measured.bare_us
        figures["of_step_pct"] = 100 * figures["total_us"] / measured.bare_us
    return figures


def told_figures(row: Row, spec: CaseSpec, result: CaseResult) -> dict[str, float]:
    """What the run's own account says, named as the figure that it answers to."""
    ledger, measured = result.ledger, result.measured
    if ledger is None:
        return {}
    if row.per == "step":
        return {
            "thread_us": ledger.typical_thread_us,
            "background_us": ledger.background_us,
            "children_us": ledger.children_us * _all_steps(spec) / measured.num_steps,
        }
    if row.per == "checkpoint" and result.save_us is not None:
        return {"wall_us": result.save_us}
    if row.per == "window" and result.apart is not None:
        return {"children_us": ledger.children_us * _all_steps(spec) / result.apart.num_steps}
    return {}


def _all_steps(spec: CaseSpec) -> int:
    return spec.warmup_steps + spec.num_steps


def _aside(aside: Aside | None) -> dict[str, float]:
    if aside is None:
        return {}
    return {"thread_us": aside.thread_us, "total_us": aside.thread_us, "wall_us": aside.wall_us}


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _figure(interval: Interval, values: Sequence[float] = ()) -> Figure:
    low, high = (None if abs(bound) == float("inf") else bound for bound in (interval.low, interval.high))
    return Figure(median=interval.mid, low=low, high=high, values=tuple(values))


def bare_step(results: Iterable[CaseResult]) -> Figure:
    """Median bare step over all processes, in µs."""
    values = [_bare_us(result.measured) for result in results]
    return _figure(median_interval(values), values)


def _bare_us(measured: Measured) -> float:
    return measured.bare_us
