"""A TensorBoard event file that survives a full disk.

A reader stops for good at a record that is torn. So what the disk refuses is kept, and goes on at the next
write from the byte where it stopped.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path

from harness.loggers.event_wire import frame_size
from harness.run.append_file import FileHealth
from harness.run.durable import FILE_MODE, disk_error, open_folder

MAX_PENDING_BYTES = 8 * 1024 * 1024
"""How much is kept while the disk refuses; beyond it the oldest records go."""
_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_opened = 0


class EventFile:
    """A new event file in `folder`, named so that readers take it after those that are there.

    Args:
        folder: Must exist and be no symbolic link.

    Raises:
        RunDirError: The file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _new_name(folder)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open_folder(folder) as folder_fd:
                self._fd: int | None = os.open(self.path.name, flags, FILE_MODE, dir_fd=folder_fd)
        except OSError as error:
            raise disk_error("open", self.path, error) from error
        self._pending = b""
        self._torn_bytes = 0  # of _pending, which end a record whose start is in the file
        self._bytes_written = 0
        self._errors = 0
        self._dropped_records = 0
        self._last_error: str | None = None

    def write(self, records: bytes) -> None:
        """Append whole framed records. Never raises OSError; a refusal is counted and the records wait."""
        data = self._pending + records if self._pending else records
        if self._fd is None or not data:
            return
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._errors += 1
            self._last_error = f"{self.path.name}: {error.strerror or error}"
            written = 0
        self._bytes_written += written
        if written == len(data):
            self._pending, self._torn_bytes = b"", 0
        else:
            self._keep(data, written)

    def close(self) -> None:
        """Try once more, then close. What still waits is counted as dropped."""
        fd = self._fd
        if fd is None:
            return
        self.write(b"")
        self._fd = None
        position = self._torn_bytes
        self._dropped_records += position > 0
        while position < len(self._pending):
            position += frame_size(self._pending, position)
            self._dropped_records += 1
        self._pending = b""
        with contextlib.suppress(OSError):
            os.close(fd)

    @property
    def health(self) -> FileHealth:
        """A snapshot of the counts; a dropped line is a dropped record."""
        return FileHealth(
            bytes_written=self._bytes_written,
            errors=self._errors,
            dropped_lines=self._dropped_records,
            last_error=self._last_error,
        )

    def _keep(self, data: bytes, written: int) -> None:
        """Keep what was not written, the oldest whole records dropped when that is too much."""
        boundary = self._torn_bytes
        while boundary < written:
            boundary += frame_size(data, boundary)
        torn = boundary - written
        excess = len(data) - written - MAX_PENDING_BYTES
        end = boundary
        while end - boundary < excess:
            end += frame_size(data, end)
            self._dropped_records += 1
        self._pending = data[written:boundary] + data[end:]
        self._torn_bytes = torn


def _new_name(folder: Path) -> str:
    """`events.out.tfevents.{unix_s}.{hostname}.{pid}.{n}`, later in order than every event file there."""
    global _opened
    _opened += 1
    found = (_NAME.match(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    taken_s = [int(match[1]) for match in found if match]
    # Readers go by name: a clock that was set back must not put this file before the earlier ones.
    unix_s = max([int(time.time()), *(second + 1 for second in taken_s)])
    return f"events.out.tfevents.{unix_s:010d}.{socket.gethostname()}.{os.getpid()}.{_opened}"
