"""Reads the JSON files beside the saved measurement, each of one type and format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from harness.errors import ConfigError


class Formatted(Protocol):
    """What each such file has."""

    @property
    def format(self) -> int:
        """Raised when a reader could trip over a change."""


File = TypeVar("File", bound=Formatted)


def read_kept(path: Path, kind: type[File], *, option: str, target: str, known_format: int) -> File:
    """Read a file.

    Args:
        path: Where it is.
        kind: What it holds.
        option: The option that named it.
        target: The make target that writes such files.
        known_format: The one that `kind` describes.

    Raises:
        ConfigError: It cannot be read, or has another format.
    """
    hint = f"`make {target}` writes one"
    try:
        read = msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(f"{option}={path} cannot be read: {error.strerror}", hint=hint) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}={path} is no file of `make {target}`: {error}", hint=hint) from error
    if read.format != known_format:
        raise ConfigError(f"{option}={path} has format {read.format}; expected {known_format}", hint=hint)
    return read
