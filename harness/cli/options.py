"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click


def _root(_context: click.Context, _parameter: click.Parameter, value: str) -> Path:
    if not value:
        raise click.BadParameter("it is empty; give the folder that holds the runs")
    return Path(value)


root_option = click.option(
    "--root",
    envvar="HARNESS_ROOT",
    default="runs",
    show_default=True,
    show_envvar=True,
    metavar="FOLDER",
    callback=_root,
    help="Folder that holds the runs. It groups them: --root runs/team-a",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


def parse_assignments(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """`-o lr=0.1 -o batch_size=32` as a dictionary.

    Raises:
        click.BadParameter: There is no `=`, no name, or a name twice.
    """
    options: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        name = name.strip()
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not of the form key=value, such as lr=0.1", context, parameter)
        if name in options:
            raise click.BadParameter(f"{name!r} is given twice", context, parameter)
        options[name] = text
    return options


workload_options = click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=parse_assignments,
    help="An option of the workload, such as -o lr=0.01 -o batch_size=128. May be repeated.",
)
