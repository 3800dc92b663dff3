"""What `harness bench` prints: two tables for people, or one document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from harness.bench.figures import FORMAT, Figure, RowFigures, bare_step
from harness.bench.spec import CaseResult
from harness.bench.suite import Plan, SuiteOptions
from harness.cli.bench_machine import machine
from harness.cli.table import Column, render_table
from harness.intervals import CONFIDENCE
from harness.run.provenance import git_state, versions
from harness.units import NS_PER_US, format_duration_ns

_COLUMNS = (
    Column(title="µs per step"),
    Column(title="thread", right=True),
    Column(title="others", right=True),
    Column(title="children", right=True),
    Column(title=f"all [{CONFIDENCE * 100:.0f} % interval]", right=True),
    Column(title="of a step", right=True),
    Column(title="wall", right=True),
    Column(title="more than recorder", right=True),
)
_ACCOUNT_COLUMNS = (
    Column(title="measured / by the run"),
    Column(title="thread", right=True),
    Column(title="others", right=True),
    Column(title="children", right=True),
    Column(title="wall", right=True),
)
_ACCOUNTED = ("thread_us", "background_us", "children_us", "wall_us")
_NONE = "-"
_NOTES = (
    "CPU time of the training thread, of the harness's other threads, and of child processes; wall is the wall clock.",
    "null is the bare loop beside itself: what cannot be told from zero. Rows with + have a recorder too.",
    "A recorded step, the end of a window and a checkpoint are for one of them, and are in no other row.",
)


def table_lines(
    options: SuiteOptions, plan: Plan, results: Sequence[Sequence[CaseResult]], rows: Sequence[RowFigures]
) -> Iterator[str]:
    """Both tables, with what has to be known to read them."""
    step = bare_step(result for found in results for result in found)
    yield (
        f"{options.workload}: a bare step takes {format_duration_ns(step.median * NS_PER_US)}. Added to it, "
        f"medians of {plan.num_processes} processes:"
    )
    yield ""
    yield from render_table(_COLUMNS, map(_row, rows))
    yield ""
    yield from _NOTES
    yield ""
    yield "The run's own account, as in its run.json, beside what was measured from outside:"
    yield ""
    yield from render_table(_ACCOUNT_COLUMNS, (_account(row) for row in rows if row.own_account))
    yield ""
    yield "On the training thread the account is a lower bound, often half of it: docs/architecture.md, Own cost."


def document(
    options: SuiteOptions,
    plan: Plan,
    results: Sequence[Sequence[CaseResult]],
    rows: Sequence[RowFigures],
    *,
    began: datetime,
    took_s: float,
) -> dict[str, object]:
    """The document of `--json`; docs/architecture.md describes it."""
    git = git_state(Path.cwd())
    return {
        "format": FORMAT,
        "workload": options.workload,
        "workload_options": options.workload_options,
        "options": {
            "loop": options.loop,
            "loggers": list(options.loggers),
            "profile": options.profile,
            "processes": plan.num_processes,
            "steps": plan.num_steps,
            "warmup_steps": plan.warmup_steps,
        },
        "began": began.isoformat(timespec="seconds"),
        "took_s": took_s,
        "machine": machine(),
        "versions": versions(),
        "git": asdict(git) if git is not None else None,
        "confidence": CONFIDENCE,
        "bare_step_us": asdict(bare_step(result for found in results for result in found)),
        "rows": [asdict(row) for row in rows],
    }


def _row(row: RowFigures) -> list[str]:
    figures = row.figures
    return [
        row.what,
        _us(figures.get("thread_us")),
        _us(figures.get("background_us")),
        _us(figures.get("children_us")),
        _with_bounds(figures.get("total_us")),
        _share(figures.get("of_step_pct")),
        _us(figures.get("wall_us")),
        _us(row.over_recorder),
    ]


def _account(row: RowFigures) -> list[str]:
    cells = [row.what]
    for name in _ACCOUNTED:
        measured, told = row.figures.get(name), row.own_account.get(name)
        cells.append(_NONE if measured is None or told is None else f"{_us(measured)} / {_us(told)}")
    return cells


def _us(figure: Figure | None) -> str:
    return _NONE if figure is None else _number(figure.median)


def _with_bounds(figure: Figure | None) -> str:
    if figure is None:
        return _NONE
    if figure.low is None or figure.high is None:
        return f"{_us(figure)} [one value]"
    return f"{_us(figure)} [{_number(figure.low)}, {_number(figure.high)}]"


def _share(figure: Figure | None) -> str:
    """Percent of a bare step; what takes longer than ten of them, in steps."""
    if figure is None:
        return _NONE
    pct = figure.median
    if abs(pct) >= 1000:
        return f"{pct / 100:,.0f} steps"
    return f"{pct:.0f} %" if abs(pct) >= 100 else f"{pct:.2f} %"


def _number(us: float) -> str:
    text = f"{us:,.0f}" if abs(us) >= 1000 else f"{us:.1f}"
    return "0.0" if text == "-0.0" else text
