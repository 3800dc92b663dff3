"""`harness train` and `harness profile`: the same command with another default recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from harness.cli.options import root_option, workload_options

_DURATION = "2ep, 100ba (steps), 5000sp (samples), 1000000tok (tokens), 90sec, 1h30m"
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: tuple[Any, ...] = (
    click.option(
        "--workload",
        default="digits",
        show_default=True,
        metavar="NAME|MODULE:FUNCTION",
        help="What to train: digits, charlm, or your own, such as my_pkg.train:build, which returns a Workload.",
    ),
    click.option(
        "--max-duration",
        metavar="DURATION",
        help=f"Length of the whole run, resumed parts included: {_DURATION}. [default: the workload's]",
    ),
    click.option(
        "--eval-interval",
        default="1ep",
        show_default=True,
        metavar="DURATION",
        help="How often to evaluate: a duration, or 0.25dur for a quarter of the run. The end is always evaluated.",
    ),
    click.option(
        "--save-interval",
        default="1ep",
        show_default=True,
        metavar="DURATION|none",
        help="How often to save a checkpoint, such as 500ba, 10min or 0.25dur; none saves none.",
    ),
    click.option(
        "--keep",
        "save_num_checkpoints_to_keep",
        type=int,
        default=-1,
        metavar="INTEGER",
        help="How many checkpoints stay on disk. [default: all]",
    ),
    click.option(
        "--save-best",
        metavar="METRIC:min|max[:K]",
        help="Keep the best K too, and save whenever one is: loss/eval/total:min, metrics/eval/accuracy:max:3.",
    ),
    click.option("--save-weights-only", is_flag=True, help="Save the model alone. Such a run cannot be resumed."),
    click.option(
        "--save-sync",
        "save_async",
        flag_value=False,
        default=True,
        help="Let training wait until a checkpoint is on disk.",
    ),
    click.option(
        "--on-save-error",
        type=click.Choice(["raise", "warn"]),
        default="raise",
        show_default=True,
        help="When a checkpoint cannot be written: end the run, or go on and say so at the end.",
    ),
    click.option(
        "--grace",
        default="25s",
        show_default=True,
        metavar="TIME",
        help="How long after SIGTERM or SIGUSR1 the process may take to save and close.",
    ),
    click.option(
        "--seed",
        type=int,
        metavar="INTEGER",
        help="Seed of python, numpy and torch, set before the workload is built. [default: left alone]",
    ),
    click.option(
        "--logger",
        "loggers",
        multiple=True,
        metavar="NAME",
        help="Log to this too, besides jsonl and text, which are always on: tensorboard, progress, wandb, "
        "comet, mlflow, my_pkg:MyLogger, or none. May be repeated. [default: tensorboard and progress]",
    ),
    click.option(
        "--log-interval",
        default="1ba",
        show_default=True,
        metavar="DURATION",
        help="How often metrics are taken, such as 10ba.",
    ),
    root_option,
    click.option("--resume", is_flag=True, help="Go on with the run NAME from its newest checkpoint."),
    click.option(
        "--auto-resume",
        is_flag=True,
        help="As --resume where there is a run NAME, else start it.",
    ),
    click.option("--overwrite", is_flag=True, help="Remove the run NAME first, if there is one."),
    click.option(
        "--load-path",
        metavar="PATH",
        help="Start the new run from a checkpoint of another one: a file, or a run's directory, such as runs/foo, for "
        "its newest good one. All is loaded, as on --resume. A run that is resumed goes on from its own.",
    ),
    click.option(
        "--load-weights-only",
        is_flag=True,
        help="Load the weights alone and begin at step 1; --load-path may then be a file of model.state_dict() too.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "amp_bf16", "amp_fp16"]),
        default="fp32",
        show_default=True,
        help="Numbers of the forward pass; amp_ is torch's autocast.",
    ),
    click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:0. [default: CUDA where there is one]"),
    workload_options,
)


def _training_command(*, default_profile: str) -> Callable[[_Command], _Command]:
    profile_option = click.option(
        "--profile",
        default=default_profile,
        show_default=True,
        metavar="RECIPE",
        help="When to capture traces: a recipe that `harness profiles` lists, a .toml file, or off.",
    )
    decorators = (click.argument("run_name", metavar="[NAME]", required=False), profile_option, *_OPTIONS)

    def decorate(command: _Command) -> _Command:
        for one in reversed(decorators):
            command = one(command)
        return command

    return decorate


@click.command
@_training_command(default_profile="off")
def train(**values: Any) -> None:
    """Train a workload as the run NAME.

    Without NAME one is generated and printed.

    \b
    harness train foo
    harness train foo --max-duration 20ep --resume
    harness train bar --workload my_pkg.train:build -o lr=0.01
    """
    _launch(values)


@click.command
@_training_command(default_profile="quick")
def profile(**values: Any) -> None:
    """Train, and capture traces.

    The same as `harness train --profile quick`; without NAME one is generated and printed.

    \b
    harness profile foo
    harness profile foo --overwrite --profile stacks
    harness profile --workload charlm --profile ./mine.toml --max-duration 200ba
    """
    _launch(values)


def _launch(values: dict[str, Any]) -> None:
    from harness.cli.launch import TrainRequest, launch

    launch(TrainRequest(**values))
