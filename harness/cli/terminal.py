"""Talk on stderr, data on stdout, and nothing in either that could steer the terminal.

Nobody reading any more (`harness ls | head`, a closed terminal) is no error, and never ends a training.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterable


class StdoutError(Exception):
    """stdout takes no more, on a full disk for instance. A reader that is gone is no error."""


def say(line: str) -> None:
    """Write a line for people to stderr."""
    if sys.stderr is None:  # closed before we began; print would take stdout
        return
    with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
        print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def write_lines(lines: Iterable[str]) -> None:
    """Write lines of data to stdout; control characters are escaped.

    Raises:
        StdoutError: stdout does not take them.
    """
    _write("\n".join(map(printable, lines)))


def write_json(data: object) -> None:
    """Write one JSON document to stdout, indented.

    Raises:
        StdoutError: stdout does not take it.
    """
    import msgspec

    _write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


def _write(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201
    except OSError as error:
        give_up_stdout(error)


def give_up_stdout(error: OSError) -> None:
    """stdout took no more: quiet where its reader is gone.

    Raises:
        StdoutError: There is a reader, and he lacks data.
    """
    # Else Python tries again while it ends, and complains.
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    if not isinstance(error, BrokenPipeError):
        raise StdoutError(f"cannot write to stdout: {error.strerror or error}") from error


def printable(text: str) -> str:
    """The text with its control characters escaped."""
    if text.isprintable():
        return text
    from harness.loggers.text import printable as escape

    return escape(text)


def set_up_streams() -> None:
    """Names that the terminal's encoding cannot show are shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def set_up_logging() -> None:
    """Log to stderr: everything of the harness from INFO on, warnings of all others."""
    root = logging.getLogger()
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        handler = _StderrHandler()
        handler.setFormatter(_ShortFormatter())
        root.addHandler(handler)
    logging.getLogger("harness").setLevel(logging.INFO)


class _StderrHandler(logging.Handler):
    """Writes to what is stderr at the time, a line at a time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).splitlines()
        except Exception:
            self.handleError(record)
            return
        for line in lines:
            say(line)


class _ShortFormatter(logging.Formatter):
    """`text`, and `warning: text` for what is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"
