"""Prints what a saved file holds: each benchmark with its figures, median and 95 % interval.

python benchmarks/table.py SAVED.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from figures import show_bounds
from saved import Benchmark, Saved, read_saved
from tool import FINE, run

from harness.cli.table import Column, render_table

COLUMNS = (
    Column(title="benchmark"),
    Column(title="values", right=True),
    Column(title="figure"),
    Column(title="median [95 % interval]"),
)


def table_lines(saved: Saved) -> Iterator[str]:
    """The lines: where it was measured, then a table for each group, the benchmarks in the order they ran."""
    yield f"{saved.machine}; commit {saved.commit}; {saved.datetime[:10]}"
    for group, benchmarks in by_group(saved).items():
        yield ""
        yield group
        yield from render_table(COLUMNS, [row for benchmark in benchmarks for row in _rows(benchmark)])


def by_group(saved: Saved) -> dict[str, list[Benchmark]]:
    """The benchmarks by group, in the order they ran."""
    groups: dict[str, list[Benchmark]] = {}
    for benchmark in saved.benchmarks.values():
        groups.setdefault(benchmark.group, []).append(benchmark)
    return groups


def _rows(benchmark: Benchmark) -> Iterator[tuple[str, str, str, str]]:
    """The figure that stands for the benchmark first; the name once."""
    name = benchmark.name
    for figure in sorted(benchmark.values, key=lambda figure: figure != benchmark.value):
        yield name, str(len(benchmark.values[figure])), figure, show_bounds(figure, benchmark.interval(figure))
        name = ""


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("saved", type=Path, metavar="SAVED.json")
    given = parser.parse_args(arguments)
    for line in table_lines(read_saved(given.saved)):
        print(line)
    return FINE


if __name__ == "__main__":
    sys.exit(run(main))
