"""Standard streams that are closed, and why that matters to a process that opens files.

A file gets the lowest number that is free. Where a program was started without stderr, the first file it opens becomes
number 2, and whatever a C++ library (torch's profiler, for one) says to stderr is written into that file.
"""

from __future__ import annotations

import contextlib
import os
import sys

_STANDARD_STREAMS = (0, 1, 2)


def occupy_closed_streams() -> None:
    """Open `/dev/null` under the numbers of the standard streams that are closed. To be called before files are."""
    for number in _STANDARD_STREAMS:
        try:
            os.fstat(number)
        except OSError:
            # The lower ones are taken by now, so this is the number it gets. Not closed again: that is the point.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def announce(line: str) -> None:
    """Write a line for people to stderr, wherever that goes (a notebook's too)."""
    if sys.stderr is not None:  # closed before we began; print would take stdout
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
            print(line, file=sys.stderr, flush=True)  # noqa: T201


def say(text: str) -> None:
    """Write to stderr from a signal handler: unbuffered, without a lock, and without a word where it is closed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), text.encode())
