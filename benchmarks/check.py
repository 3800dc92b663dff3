"""Holds every budget of `budgets.toml` against a saved measurement.

    python benchmarks/check.py SAVED.json [--budgets FILE] [--short] [--force]

A budget is broken when the median is above its limit. The interval says how sure that is ("OVER, not surely": its low
end is below the limit), but does not excuse it: a budget that holds on half of the days does not hold. The short form,
for CI, holds the budgets marked `short` against wider limits, as the budget file says, so that it never fails by
chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from budgets import DEFAULT_PATH, Budgets, Judged, judge, read_budgets
from figures import show_bounds, show_limit
from saved import read_saved, refuse_other_machine, this_machine
from tool import FAILED, FINE, run

from harness.cli.table import Column, render_table

COLUMNS = (
    Column(title="what"),
    Column(title="measured [95 % interval]"),
    Column(title="budget", right=True),
    Column(title="verdict"),
)


def check_lines(judged: Sequence[Judged]) -> Iterator[str]:
    """A line for each budget, then one for each that is broken."""
    yield from render_table(
        COLUMNS,
        [(one.budget.what, show_bounds(one.budget.figure, one.interval), _limit(one), one.verdict) for one in judged],
    )
    for one in judged:
        if one.is_over:
            yield (
                f"breach: {one.budget.benchmark}{' minus ' + one.budget.minus if one.budget.minus else ''}: "
                f"{one.budget.figure} is {show_bounds(one.budget.figure, one.interval)}, budget {_limit(one)}"
            )


def node_ids(budgets: Budgets, *, short: bool) -> list[str]:
    """The benchmarks that the budgets need, as pytest wants them, each once."""
    names = [name for budget in budgets.held(short=short) for name in budget.names()]
    return [f"benchmarks/{name}" for name in dict.fromkeys(names)]


def _limit(judged: Judged) -> str:
    return show_limit(judged.budget.figure, judged.limit)


def main(arguments: list[str]) -> int:
    """The command line."""
    given = _parse(arguments)
    budgets = read_budgets(given.budgets)
    if given.names:
        print("\n".join(node_ids(budgets, short=given.short)))
        return FINE
    saved = read_saved(given.saved)
    refuse_other_machine(saved, this_machine(), force=given.force)
    judged = judge(saved, budgets, short=given.short)
    print(f"{saved.path}: {saved.machine}; commit {saved.commit}; {saved.datetime[:10]}")
    for line in check_lines(judged):
        print(line)
    return FAILED if any(one.is_over for one in judged) else FINE


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("saved", type=Path, nargs="?", metavar="SAVED.json", help="as --benchmark-json writes it")
    parser.add_argument(
        "--budgets", type=Path, default=DEFAULT_PATH, metavar="FILE", help="[default: benchmarks/budgets.toml]"
    )
    parser.add_argument("--short", action="store_true", help="hold the budgets marked short, with wider limits")
    parser.add_argument("--force", action="store_true", help="look also at what another machine or torch measured")
    parser.add_argument("--names", action="store_true", help="print which benchmarks are needed, for pytest, and end")
    given = parser.parse_args(arguments)
    if given.saved is None and not given.names:
        parser.error("SAVED.json is missing; `make benchmark` saves benchmarks/results/latest.json")
    return given


if __name__ == "__main__":
    sys.exit(run(main))
