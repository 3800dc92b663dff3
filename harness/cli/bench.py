"""`harness bench`: what the harness costs on a workload of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.options import json_option, root_option, workload_options


@click.command
@click.argument("workload", default="digits", metavar="[WORKLOAD]")
@workload_options
@click.option(
    "--profile",
    default="quick",
    show_default=True,
    metavar="RECIPE",
    help="The recipe whose recorded steps are measured: a name that `harness profiles` lists, a .toml file, or off.",
)
@click.option(
    "--logger",
    "loggers",
    multiple=True,
    metavar="NAME",
    help="Measure this logger: tensorboard, progress, wandb, comet, mlflow, my_pkg:MyLogger, or none. "
    "May be repeated. [default: tensorboard]",
)
@click.option(
    "--loop",
    type=click.Choice(["trainer", "session"]),
    default="trainer",
    show_default=True,
    help="Trainer, or a loop of your own around harness.session with three phases.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="INTEGER",
    help="Fresh processes for each row; intervals need three or more. [default: 5, or 3 where steps are long]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=10),
    metavar="INTEGER",
    help="Steps of each loop in a process. [default: as many as fit into about three minutes for all]",
)
@root_option
@json_option
def bench(root: Path, as_json: bool, **values: Any) -> None:
    """Measure what the harness adds to a training step of WORKLOAD.

    WORKLOAD is digits, charlm, or your own, such as my_pkg.train:build. It is trained on the CPU with one thread,
    beside the same loop without the harness, step by step in turn. The measured runs are written to a temporary
    folder below --root, so that they meet the same disk, and removed.

    \b
    harness bench my_pkg.train:build
    harness bench my_pkg.train:build -o batch_size=8 --logger tensorboard --logger my_pkg:MyLogger
    harness bench charlm --json > cost.json
    """
    from harness.cli.bench_launch import BenchRequest, launch

    launch(BenchRequest(root=root, **values), as_json=as_json)
