"""From an exception to what the user reads and the exit code.

0    fine
1    a check failed
2    wrong use: an option, a name, a directory or a file that cannot work; nothing was trained
3    a run failed
70   a bug of the harness, with its traceback
130  interrupted by Ctrl-C      143  ended by SIGTERM
"""

from __future__ import annotations

import importlib
import os
import traceback
from pathlib import Path
from types import TracebackType

import click

from harness.cli.terminal import StdoutError, say
from harness.errors import BenchError, HarnessError, RunDirExistsError, WorkloadError

USAGE = 2
RUN_FAILED = 3
BUG = 70
INTERRUPTED = 130

_PACKAGE = Path(__file__).resolve().parent.parent
_CALLERS = (importlib.__file__, *(str(_PACKAGE / "workloads" / name) for name in ("base.py", "load.py")))
"""What stands between the command and the code of a workload."""


class FailedTrainingError(Exception):
    """A training ended with an exception, its `__cause__`; the text says what that means."""


class FailedRunError(FailedTrainingError):
    """A run that stays on the disk failed.

    Args:
        run_name: The run.
        directory: Where to find what it wrote, as people type it.
    """

    def __init__(self, run_name: str, directory: str) -> None:
        super().__init__(f"run {run_name} failed; what it wrote until then is in {directory}")


def tell(error: BaseException) -> int:
    """Say on stderr what went wrong, if anything did.

    Returns:
        The exit code.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return _tell_usage(error)
    if isinstance(error, HarnessError):
        _tell_harness_error(error)
        # What ends a training is a FailedTrainingError.
        return RUN_FAILED if isinstance(error, BenchError) else USAGE
    if isinstance(error, FailedTrainingError):
        return _tell_failed_training(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        say("interrupted")
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return _code_of(error)
    if isinstance(error, StdoutError):
        say(f"error: {error}")
        return USAGE
    _say_traceback(error)
    say("error: this is a bug of the harness; please report it with the lines above")
    return BUG


def _tell_usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return USAGE
    say(f"error: {error.format_message()}")
    context = getattr(error, "ctx", None)
    say(f"hint: {context.command_path if context is not None else 'harness'} --help")
    return USAGE


def _tell_harness_error(error: HarnessError) -> None:
    if isinstance(error, WorkloadError) and error.__cause__ is not None:
        _say_traceback_of_user(error.__cause__)
    for number, line in enumerate(error.message.splitlines() or [""]):
        say(line if number else f"error: {line}")
    for note in getattr(error, "__notes__", ()):
        say(note)
    if error.hint is not None:
        say(f"hint: {error.hint}")
    if isinstance(error, RunDirExistsError) and "MAKELEVEL" in os.environ:
        say("hint: with make they are RESUME=1, OVERWRITE=1 and RUN=another-name")


def _tell_failed_training(error: FailedTrainingError) -> int:
    cause = error.__cause__
    if isinstance(cause, HarnessError):
        if cause.__cause__ is not None and not _is_raised_by_us(cause.__cause__):
            _say_traceback(cause.__cause__)
        _tell_harness_error(cause)
    elif cause is not None:
        _say_traceback(cause)
    say(f"error: {error}")
    return RUN_FAILED


def _code_of(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    say(str(error.code))
    return 1


def _say_traceback(error: BaseException) -> None:
    for block in traceback.format_exception(error):
        for line in block.splitlines():
            say(line)


def _say_traceback_of_user(error: BaseException) -> None:
    """The traceback from where the user's own code begins; nothing where none of it ran."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None and _is_ours(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    if frame is not None:
        _say_traceback(error.with_traceback(frame))


def _is_raised_by_us(error: BaseException) -> bool:
    """Whether a line of the harness raised it: then the message that it became says all."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_code.co_filename.startswith(f"{_PACKAGE}{os.sep}")


def _is_ours(filename: str) -> bool:
    return filename.startswith(("<frozen importlib", str(_PACKAGE / "cli"))) or filename in _CALLERS
