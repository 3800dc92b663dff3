"""`harness show`: everything a run's files say about it, for people or as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import json_option, root_option
from harness.cli.table import Column, render_pairs, render_table
from harness.cli.terminal import write_json, write_lines

if TYPE_CHECKING:
    from harness.cli.run_files import RunFiles
    from harness.run.manifest import Attempt, Parent

_ATTEMPTS = (
    Column(title="attempt", right=True),
    Column(title="status"),
    Column(title="started (UTC)"),
    Column(title="ended (UTC)"),
    Column(title="steps"),
    Column(title="host"),
    Column(title="command"),
)
_ARTIFACTS = (
    Column(title="kind"),
    Column(title="step", right=True),
    Column(title="size", right=True),
    Column(title="path"),
)


@click.command
@click.argument("run_name", metavar="NAME")
@root_option
@json_option
def show(run_name: str, root: Path, as_json: bool) -> None:
    """Show one run: times, cost, files, problems.

    Its step times and their phases, what the harness cost, attempts, files, versions, and what went wrong without
    ending it.
    """
    from harness.cli.run_files import read_run

    run = read_run(root, run_name)
    if as_json:
        write_json(to_document(run))
    else:
        write_lines(_lines(run))


def to_document(run: RunFiles) -> dict[str, Any]:
    """All of a run as plain data: `run.json`, and what is computed from the other files."""
    import msgspec

    from harness.cli.problems import find_problems

    manifest = msgspec.to_builtins(run.manifest)
    return {
        **manifest,
        "directory": str(run.directory.path),
        "steps": None if run.steps is None else asdict(run.steps),
        "evaluation": None if run.evaluation is None else asdict(run.evaluation),
        "problems": [*([run.steps_error] if run.steps_error else []), *find_problems(run.manifest.health)],
    }


def _lines(run: RunFiles) -> Iterator[str]:
    from harness.cli.summary_table import summary_lines

    yield from summary_lines(run)
    yield ""
    yield from render_table(_ATTEMPTS, (_attempt_row(attempt) for attempt in run.manifest.attempts))
    yield from (f"attempt {one.number}: {one.error}" for one in run.manifest.attempts if one.error)
    yield ""
    yield from _artifact_lines(run)
    yield from render_pairs(_facts(run))


def _attempt_row(attempt: Attempt) -> tuple[str, ...]:
    steps = "-" if attempt.first_step is None else f"{attempt.first_step}-{attempt.last_step}"
    return (
        str(attempt.number),
        attempt.status,
        _time(attempt.started),
        _time(attempt.ended),
        steps,
        attempt.host,
        shlex.join(attempt.argv),
    )


def _artifact_lines(run: RunFiles) -> Iterator[str]:
    from harness.units import format_bytes

    artifacts = run.manifest.artifacts
    if artifacts:
        rows = (
            (one.kind, "-" if one.step is None else str(one.step), format_bytes(one.size_bytes), one.path)
            for one in artifacts
        )
        yield from render_table(_ARTIFACTS, rows)
        yield ""


def _facts(run: RunFiles) -> Iterator[tuple[str, str]]:
    manifest = run.manifest
    yield "device", manifest.device or "-"
    yield "recipe", str(manifest.recipe.get("name", "-"))
    if manifest.parent is not None:
        yield "parent", _parent(manifest.parent)
    if manifest.git is not None:
        changed = ", with changes" if manifest.git.get("dirty") else ""
        yield "git", f"{manifest.git.get('commit')}{changed}"
    yield "versions", ", ".join(f"{name} {version or '-'}" for name, version in manifest.versions.items())


def _parent(parent: Parent) -> str:
    """What the run was started from."""
    from harness.cli.summary_table import shown_path

    path = shown_path(Path(parent.path))
    what = "weights only" if parent.weights_only else "all of it"
    return (
        f"{what} ({path})"
        if parent.run_name is None
        else f"{parent.run_name} after step {parent.step}, {what} ({path})"
    )


def _time(iso: str | None) -> str:
    return (iso or "-").replace("T", " ")[:19]
