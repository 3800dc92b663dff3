"""Writes a state into a file with its checksum, and says in words what the disk refused."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint.checksum import ChecksumFile
from harness.checkpoint.state import cause
from harness.errors import CheckpointError
from harness.units import format_bytes

_SPARE_BYTES, _SPARE_SHARE = 1 << 16, 0.02
"""Beside the tensors: what else is in the file, and the side manifest."""
_FREE_SPACE = (
    "free some space, or keep fewer checkpoints (--keep, save_num_checkpoints_to_keep); a new one is written before an"
    " old one is removed"
)
_HINTS = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "a limit on file size was reached (ulimit -f)",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


class WriteError(OSError):
    """What the system refused, and how many bytes the file has when it is whole; 0 if that is not known."""

    def __init__(self, error: OSError, needed_bytes: int) -> None:
        super().__init__(error.errno, os.strerror(error.errno) if error.errno else str(error))
        self.needed_bytes = needed_bytes


def check_space(path: Path, num_bytes: int) -> None:
    """See that a file with tensors of this size has room, before anything is written.

    Args:
        path: The file.
        num_bytes: Of its tensors.

    Raises:
        CheckpointError: It has not; the message has the bytes needed and free.
    """
    needed_bytes = round(num_bytes * (1 + _SPARE_SHARE)) + _SPARE_BYTES
    with contextlib.suppress(OSError):  # whoever cannot say how much is free may still have enough
        if shutil.disk_usage(path.parent).free < needed_bytes:
            raise refused(path, WriteError(OSError(errno.ENOSPC, ""), needed_bytes))


def write_state(state: Mapping[str, Any], tmp: Path) -> tuple[int, str]:
    """Write a new file; not synced.

    Returns:
        Its size in bytes, and its CRC-32C as eight hexadecimal digits.

    Raises:
        WriteError: The disk refused.
        CheckpointError: torch cannot write the state.
    """
    needed_bytes = 0
    try:
        file = ChecksumFile(tmp)
        try:
            with file, _without_crc32():
                torch.save(state, file)  # type: ignore[arg-type]  # it asks for write and flush only
        finally:
            needed_bytes = file.size_bytes
    except OSError as error:
        raise WriteError(error, needed_bytes) from error
    except RuntimeError as error:
        raise CheckpointError(f"{tmp.name} could not be saved: {cause(error)}") from error
    return file.size_bytes, file.hexdigest()


def refused(path: Path, error: WriteError) -> CheckpointError:
    """What to tell the user."""
    message = f"{path.name} could not be saved in {path.parent}: {error.strerror}"
    if error.needed_bytes:
        message += f"; it needs {format_bytes(error.needed_bytes)}"
        with contextlib.suppress(OSError):
            message += f" and {format_bytes(shutil.disk_usage(path.parent).free)} are free"
    return CheckpointError(message, hint=_HINTS.get(error.errno or 0, "earlier checkpoints are as they were"))


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    """Switch torch's own CRC-32 off: two thirds of the time of a save, and no load looks at it."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
