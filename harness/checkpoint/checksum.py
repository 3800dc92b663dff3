"""CRC-32C of a checkpoint's bytes: taken while torch writes them, and again when a file is verified."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np

from harness.checkpoint.index import IndexEntry
from harness.run.durable import FILE_MODE, write_all

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16


def read_crc32c(fd: int) -> str:
    """The checksum of an open file from where it stands to its end, eight hexadecimal digits. About 0.3 s per GB.

    Raises:
        OSError: It cannot be read.
    """
    crc = 0
    while block := os.read(fd, _BLOCK_BYTES):
        crc = google_crc32c.extend(crc, block)
    return f"{crc:08x}"


def file_fault(path: Path, entry: IndexEntry) -> str | None:
    """What is wrong with a file's bytes, by its entry in the side manifest; None if nothing is.

    Reads the whole file: about 0.3 s per GB.
    """
    try:
        # a fifo that took the file's place would be waited for
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes != entry.size_bytes:
                return f"has {size_bytes} bytes and was saved with {entry.size_bytes}: torn or overwritten"
            found = read_crc32c(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found != entry.crc32c:
        return f"has checksum {found} and was saved with {entry.crc32c}: its content has changed"
    return None


class ChecksumFile:
    """A new file for torch.save that takes the checksum of what goes by.

    `write` never raises: an exception would travel through torch's C++ writer, which writes again while it cleans up
    and then tells of positions in the archive instead. The first error is kept, and raised when the file is closed.
    Until then bytes are only counted, so that one knows how many were needed.

    Raises:
        OSError: There is a file of this name, or none can be made.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY
        self._fd = os.open(path, flags, FILE_MODE)
        self._crc = 0
        self._error: OSError | None = None
        self._pending = bytearray()
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Take all of `data`, or only count it after an error."""
        size_bytes = len(data)
        self.size_bytes += size_bytes
        if self._error is None:
            if size_bytes < _SMALL_BYTES:
                self._pending += data
                if len(self._pending) >= _BLOCK_BYTES:
                    self.flush()
            else:
                self.flush()
                self._put(data)
        return size_bytes

    def flush(self) -> None:
        """Write what was held back: torch makes eight small writes for each tensor."""
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            self._put(pending)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        if self._error is not None:
            return
        whole = memoryview(data)
        # In blocks: the checksum holds the interpreter, which training wants too.
        for start in range(0, len(whole), _BLOCK_BYTES):
            view = whole[start : start + _BLOCK_BYTES]
            try:
                write_all(self._fd, view)
            except OSError as error:
                self._error = error
                return
            # google_crc32c takes no memoryview; an array over the same memory copies nothing
            self._crc = google_crc32c.extend(self._crc, np.frombuffer(view, np.uint8))

    def hexdigest(self) -> str:
        """The checksum of the file once it is closed, eight hexadecimal digits."""
        return f"{self._crc:08x}"

    def __enter__(self) -> ChecksumFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()
        try:
            os.close(self._fd)
        except OSError as close_error:
            self._error = self._error or close_error
        if self._error is not None:
            raise self._error
