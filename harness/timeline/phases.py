"""The parts of a step, as small integers that the hot path can append to a list.

A step's time is divided completely: every nanosecond between its first and its last mark belongs to exactly one
phase. `harness` is the sum of the parts of our own.
"""

from __future__ import annotations

import re
from typing import Final

from harness.errors import ConfigError

# Marks that are no phases.
STEP_BEGIN: Final = -1
"""A step begins, in phase `data`."""
STEP_END: Final = -2
"""The step is over; until the next mark the loop does what it does between two steps."""
STEP_ABORT: Final = -3
"""The step that was begun never was: the dataloader had no batch left, or its body raised."""

BETWEEN: Final = 0
OTHER: Final = 1
DATA: Final = 2
FORWARD: Final = 3
BACKWARD: Final = 4
OPTIMIZER: Final = 5
EVAL: Final = 6
LOOP: Final = 7
LOGGERS: Final = 8
CHECKPOINT: Final = 9
CAPTURE: Final = 10
CALLBACKS: Final = 11

NAMES: Final = (
    "between",
    "other",
    "data",
    "forward",
    "backward",
    "optimizer",
    "eval",
    "loop",
    "loggers",
    "checkpoint",
    "capture",
    "callbacks",
)
HARNESS_PARTS: Final = {LOOP: "loop", LOGGERS: "loggers", CHECKPOINT: "checkpoint", CAPTURE: "capture"}
"""What counts as the harness's own time on the training thread. Callbacks are the user's code."""

MAX_PHASES: Final = 64
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,48}")
_RESERVED = frozenset({"between", "step", "time", "epoch", "capture", "harness", *HARNESS_PARTS.values()})


def phase_after(what: int) -> int:
    """The phase that begins with a mark."""
    if what == STEP_BEGIN:
        return DATA
    return LOOP if what == STEP_END else max(what, BETWEEN)


class PhaseTable:
    """Phase names and their numbers; a user's own phases get numbers after the built-in ones.

    Attributes:
        names: By number, as in the step file.
        labels: By number, as on a trace; None for what is not shown there.
    """

    def __init__(self) -> None:
        self.names: list[str] = list(NAMES)
        self.labels: list[str | None] = [_label(number) for number in range(len(NAMES))]
        self._ids = {name: number for number, name in enumerate(NAMES)}

    def id_of(self, name: str) -> int:
        """The number of a phase, new if the name is.

        Raises:
            ConfigError: The name has characters that a trace label cannot carry safely, is one of the harness's
                own, or there are too many phases.
        """
        number = self._ids.get(name)
        if number is not None and number not in HARNESS_PARTS and number != BETWEEN:
            return number
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
            raise ConfigError(
                f"phase name {name!r} cannot be used",
                hint="1-48 characters of letters, digits, '_', '.', '-'; reserved: " + ", ".join(sorted(_RESERVED)),
            )
        if len(self.names) >= MAX_PHASES:
            raise ConfigError(
                f"phase {name!r} would be number {MAX_PHASES + 1}; at most {MAX_PHASES} phases fit",
                hint="a phase is a kind of work, not one piece of it: leave numbers out of the names",
            )
        self._ids[name] = len(self.names)
        self.names.append(name)
        self.labels.append(name)
        return self._ids[name]


def _label(number: int) -> str | None:
    """What a built-in phase is called on a trace; None where nothing is shown."""
    if number in (BETWEEN, OTHER):
        return None
    return "harness" if number in HARNESS_PARTS else NAMES[number]
