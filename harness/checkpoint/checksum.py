"""CRC-32C of a checkpoint's bytes: taken while torch writes them, and again when a file is verified.

Each file also carries its own, as the comment at the end of the zip archive that it is. So it can be verified where
the side manifest was lost, does not know it, or was left behind when the file was copied. torch and zip tools read
such a file as any other.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np

from harness.checkpoint.index import IndexEntry
from harness.errors import CheckpointError
from harness.run.durable import create_file, write_all

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
_END_BYTES = 22
"""Of the record an archive without a comment ends in."""
_END_MAGIC = b"PK\x05\x06"
_NO_COMMENT = b"\0\0"
_SEAL_MAGIC = b"crc32c:"
_SEAL_LENGTH = (len(_SEAL_MAGIC) + 8).to_bytes(2, "little")
_SEAL_BYTES = len(_SEAL_LENGTH) + len(_SEAL_MAGIC) + 8
"""Of the comment with its length, which all bytes before are counted into."""


def read_crc32c(fd: int) -> str:
    """The checksum of an open file from where it stands to its end, eight hexadecimal digits. About 0.3 s per GB.

    Raises:
        OSError: It cannot be read.
    """
    return _crc32c_of_next(fd, None)


def check_seal(path: Path) -> bool:
    """See that a file is as it was written, by the checksum it carries. Reads all of it: about 0.3 s per GB.

    Returns:
        False where it carries none: another program than this harness wrote it.

    Raises:
        CheckpointError: It is not as it was written, or does not end as such an archive ends.
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size_bytes = os.fstat(fd).st_size
        end = os.pread(fd, _END_BYTES, max(0, size_bytes - _END_BYTES))
        if end.startswith(_END_MAGIC) and end.endswith(_NO_COMMENT):
            return False
        seal = end[-_SEAL_BYTES:]
        if not seal.startswith(_SEAL_LENGTH + _SEAL_MAGIC):
            raise CheckpointError(f"{path.name} does not end as a checkpoint ends: torn or overwritten")
        crc32c = _crc32c_of_next(fd, size_bytes - _SEAL_BYTES)
    finally:
        os.close(fd)
    if _seal(crc32c) != seal:
        carried = seal[-8:].decode("ascii", "replace")
        raise CheckpointError(f"{path.name} has checksum {crc32c} and carries {carried}: its content has changed")
    return True


def _seal(crc32c: str) -> bytes:
    return _SEAL_LENGTH + _SEAL_MAGIC + crc32c.encode()


def _crc32c_of_next(fd: int, num_bytes: int | None) -> str:
    crc = 0
    left = num_bytes
    while block := os.read(fd, _BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES)):
        crc = google_crc32c.extend(crc, block)
        left = None if left is None else left - len(block)
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
    """A new file for torch.save that takes the checksum of what goes by, and ends in it.

    `write` never raises: an exception would travel through torch's C++ writer, which writes again while it cleans up
    and then tells of positions in the archive instead. The first error is kept, and raised when the file is closed.
    Until then bytes are only counted, so that one knows how many were needed.

    Raises:
        OSError: There is a file of this name, or none can be made.
    """

    def __init__(self, path: Path) -> None:
        self._fd = create_file(path)
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
                    self._write_pending(but=_END_BYTES)
            else:
                self._write_pending()
                self._put(data)
        return size_bytes

    def flush(self) -> None:
        """Nothing: what is held back is written with what follows, or when the file is closed."""

    def _write_pending(self, *, but: int = 0) -> None:
        """Write what was held back, all but so many bytes: torch makes eight small writes for each tensor."""
        end = len(self._pending) - but
        if end > 0:
            pending, self._pending = self._pending[:end], self._pending[end:]
            self._put(pending)

    def _close_archive(self) -> None:
        """Write the rest, and the checksum in the place of the comment that an archive of torch's has not."""
        end = self._pending[-_END_BYTES:]
        if end.startswith(_END_MAGIC) and end.endswith(_NO_COMMENT):
            del self._pending[-len(_NO_COMMENT) :]
            self._write_pending()
            self.size_bytes += _SEAL_BYTES - len(_NO_COMMENT)
            self._put(_seal(self.hexdigest()))
        self._write_pending()

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
        self._close_archive()
        try:
            os.close(self._fd)
        except OSError as close_error:
            self._error = self._error or close_error
        if self._error is not None:
            raise self._error
