"""A measuring process of `harness bench`: its errors are told, and its exit codes are, those of the other commands.

python -m harness.cli.bench_child case|probe ROOT < SPEC.json > RESULT.json
"""

from __future__ import annotations

import sys

from harness.bench import process
from harness.cli.errors import FailedTrainingError, tell
from harness.cli.terminal import set_up_logging, set_up_streams
from harness.errors import HarnessError, LossError


def main(arguments: list[str]) -> int:
    """Do the work; an exception of the user's code is a training that failed, and no bug."""
    set_up_streams()
    set_up_logging()
    try:
        return process.main(arguments)
    except Exception as error:
        if isinstance(error, HarnessError) and not isinstance(error, LossError):
            return tell(error)  # found before a step was trained
        failed = FailedTrainingError("the workload cannot be measured: training it failed")
        failed.__cause__ = error
        return tell(failed)
    except (KeyboardInterrupt, SystemExit) as error:
        return tell(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
