"""`harness ls`: the runs of a folder, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import json_option, root_option
from harness.cli.table import Column, render_table
from harness.cli.terminal import say, write_json, write_lines

if TYPE_CHECKING:
    from harness.run.manifest import RunListing

_COLUMNS = (
    Column(title="name"),
    Column(title="status"),
    Column(title="started (UTC)"),
    Column(title="steps", right=True),
    Column(title="median step", right=True),
    Column(title="own cost", right=True),
    Column(title="traces", right=True),
    Column(title="checkpoints", right=True),
)


@click.command
@root_option
@json_option
def ls(root: Path, as_json: bool) -> None:
    """List the runs, newest first.

    Median step leaves out steps next to capture windows; own cost is the harness's share of the step time.
    """
    from harness.run.directory import list_runs

    runs = list_runs(root)[::-1]
    if as_json:
        write_json(runs)
    elif runs:
        write_lines(render_table(_COLUMNS, (_row(run) for run in runs)))
    if not runs:
        say(f"no runs in {root}; make one: harness profile foo")


def _row(run: RunListing) -> Sequence[str]:
    from harness.cli.summary_table import format_pct, format_us

    started = (run.started or "-").replace("T", " ")
    return (
        run.run_name,
        run.status,
        started[:19],
        str(run.step),
        format_us(run.median_step_us),
        format_pct(run.own_cost_pct),
        str(run.traces),
        str(run.checkpoints),
    )
