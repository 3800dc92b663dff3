"""How the suite's tools end: 0 fine, 1 a check failed, 2 wrong use, with the reason and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Callable

from harness.errors import HarnessError

FINE = 0
FAILED = 1
WRONG_USE = 2


def run(main: Callable[[list[str]], int]) -> int:
    """Run a tool with the process's arguments; its exit code."""
    try:
        return main(sys.argv[1:])
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
