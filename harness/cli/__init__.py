"""The command `harness`: the only place that knows argv, stdout and exit codes.

stdout is data, stderr is talk. Each command is a module of its own, and imports what is heavy when it runs:
`harness --help` must be instant.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import click
import click.utils

from harness import __version__
from harness.cli.bench import bench
from harness.cli.checkpoints import checkpoints
from harness.cli.errors import tell
from harness.cli.ls import ls
from harness.cli.profiles import profiles
from harness.cli.show import show
from harness.cli.tensorboard import tensorboard
from harness.cli.terminal import give_up_stdout, set_up_logging, set_up_streams
from harness.cli.train import profile, train

__all__ = ["main"]

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="harness")
def harness() -> None:
    """Name a PyTorch training run, profile it, and see where its time goes.

    \b
    Everything of a run is in one directory, runs/NAME.
    Exit codes: 0 fine, 1 a check failed, 2 wrong use, 3 a run failed, 130 and 143 interrupted.
    """


for command in (train, profile, ls, show, checkpoints, profiles, tensorboard, bench):
    harness.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its words, without `harness`; those of the process unless given.

    Returns:
        The exit code, see `harness.cli.errors`.
    """
    set_up_streams()
    set_up_logging()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
    except BaseException as error:
        return tell(error)
    return 0


def _run(arguments: list[str]) -> None:
    try:
        # Not click's own main: it takes an EOFError of the user's training for a Ctrl-D.
        with harness.make_context("harness", arguments) as context:
            harness.invoke(context)
    except OSError as error:
        if not _is_of_click(error):
            raise
        give_up_stdout(error)


def _is_of_click(error: OSError) -> bool:
    """Whether click could not print a help text or the version."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_code.co_filename == click.utils.__file__
