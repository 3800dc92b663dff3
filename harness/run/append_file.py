"""A log that loses no line: unbuffered appends of whole lines, and an orderly wait when the disk is full.

Each write is one `write(2)` to a file opened with O_APPEND, so a kill loses nothing that was handed over.
When the disk refuses, what could not be written is kept and goes out first at the next write, from the byte
where it stopped: no line is torn, doubled or out of order once there is space again. The wait is bounded;
what does not fit is dropped by whole lines, oldest first, and counted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from harness.run.durable import (
    FILE_MODE,
    commit,
    create_file,
    disk_error,
    open_folder,
    remove_leftovers,
    temporary_path,
    write_all,
)

MAX_PENDING_BYTES = 8 * 1024 * 1024
"""How much an AppendFile keeps while the disk refuses."""
_DROP_BYTES = MAX_PENDING_BYTES // 8
"""At least this much is dropped at once, so that a long full disk does not move 8 MiB for every line."""
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class FileHealth:
    """What became of the lines handed to an AppendFile."""

    bytes_written: int
    """Bytes in the file from this process."""
    errors: int
    """Writes the disk refused, wholly or in part."""
    dropped_lines: int
    """Lines that will never be in the file."""
    last_error: str | None
    """The latest refusal in the system's words; None when there was none."""


class AppendFile:
    """An append-only text file of whole lines. Any thread may write; a forked child's writes do nothing.

    A last line that an earlier process left torn is ended first, so that it spoils no line of ours.

    Args:
        path: The file, made if it is not there. Its folder must exist; neither may be a symbolic link.

    Raises:
        RunDirError: The file cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = AppendFile(Path(folder) / "metrics-rank0.jsonl")
        ...     log.write(b'{"step":1}\\n')
        ...     log.close()
        ...     log.health.bytes_written
        11
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            fd, torn = _open_at_end(path)
        except OSError as error:
            raise disk_error("open", path, error) from error
        self._fd: int | None = fd
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._written_bytes = 0
        self._errors = 0
        self._dropped_lines = 0
        self._last_error: str | None = None
        self._pending = bytearray()
        # True while _pending begins inside a line whose first part is in the file already
        self._torn = torn
        if torn:
            self._pending += b"\n"

    @property
    def health(self) -> FileHealth:
        """A snapshot of the counters."""
        return FileHealth(
            bytes_written=self._written_bytes,
            errors=self._errors,
            dropped_lines=self._dropped_lines,
            last_error=self._last_error,
        )

    def write(self, data: bytes) -> None:
        """Append whole lines. Never raises OSError: a refusal is counted and the lines wait (see the module).

        Lines that come after `close` are counted as dropped.

        Args:
            data: One or more lines, the last newline included.

        Raises:
            ValueError: `data` does not end with a newline.
        """
        if data[-1:] != b"\n":
            raise ValueError(f"{self.path.name}: whole lines are written here, got {data[-40:]!r} without a newline")
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._fd is None:
                self._dropped_lines += data.count(b"\n")
            elif self._pending:
                self._pending += data
                self._drain(self._fd)
            else:
                self._append(self._fd, data)

    def close(self) -> None:
        """Try once more to write what waits, sync, and close. What still waits then is counted as dropped."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is None:
                return
            if self._pending:
                self._drain(fd)
                self._dropped_lines += self._pending.count(b"\n")
                self._pending.clear()
            try:
                os.fdatasync(fd)
            except OSError as error:
                self._refused(error)
            with contextlib.suppress(OSError):
                os.close(fd)

    def _append(self, fd: int, data: bytes) -> None:
        try:
            count = os.write(fd, data)
        except OSError as error:
            self._refused(error)
            count = 0
        self._written_bytes += count
        if count < len(data):
            self._torn = count > 0 and data[count - 1 : count] != b"\n"
            self._pending += data[count:]
            if count:
                self._drain(fd)

    def _drain(self, fd: int) -> None:
        """Write what waits, as far as the disk takes it, and keep the rest within its bound."""
        done = 0
        try:
            with memoryview(self._pending) as rest:
                while done < len(rest):
                    done += os.write(fd, rest[done:])
        except OSError as error:
            self._refused(error)
        if done:
            self._written_bytes += done
            self._torn = self._pending[done - 1] != ord("\n")
            del self._pending[:done]
        if len(self._pending) > MAX_PENDING_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        # the end of a line that is half in the file must stay, or the file would hold a torn line
        start = self._pending.index(b"\n") + 1 if self._torn else 0
        least = start + len(self._pending) - MAX_PENDING_BYTES + _DROP_BYTES
        newline = self._pending.find(b"\n", min(least, len(self._pending)) - 1)
        end = newline + 1 if newline >= 0 else len(self._pending)
        self._dropped_lines += self._pending.count(b"\n", start, end)
        del self._pending[start:end]

    def _refused(self, error: OSError) -> None:
        self._errors += 1
        self._last_error = error.strerror or str(error)


def _open_at_end(path: Path) -> tuple[int, bool]:
    """The descriptor, and whether the file ends inside a line."""
    # not blocking: a fifo planted under the name is refused below, not waited for
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with open_folder(path.parent) as folder:
        fd = os.open(path.name, flags, FILE_MODE, dir_fd=folder)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return fd, found.st_size > 0 and os.pread(fd, 1, found.st_size - 1) != b"\n"
    except BaseException:
        os.close(fd)
        raise


class _Line(msgspec.Struct):
    step: int | None = None


def cut_lines_after(path: Path, step: int) -> int:
    """Take a JSONL file back to `step`: the lines of later steps go, and so does a torn line.

    Lines without a `step` stay. The file is replaced in one step, and only when something goes. What a killed cut
    left beside it is removed: the run's lock must be held.

    Args:
        path: The file. One that is not there has nothing to cut.
        step: The last step that stays.

    Returns:
        The number of lines dropped, torn ones included.

    Raises:
        RunDirError: The file cannot be read or replaced; it is then as it was.
    """
    remove_leftovers(path)
    try:
        with open_folder(path.parent) as folder:
            source = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise disk_error("read", path, error) from error
    temporary = temporary_path(path)
    try:
        with os.fdopen(source, "rb") as lines:
            dropped = _copy_lines(lines, temporary, step)
        if dropped:
            commit(temporary, path)
    except OSError as error:
        raise disk_error("cut", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return dropped


def _copy_lines(source: BinaryIO, temporary: Path, step: int) -> int:
    decoder = msgspec.json.Decoder(_Line)
    target = create_file(temporary)
    dropped = 0
    try:
        while lines := source.readlines(_BLOCK_BYTES):
            kept = [line for line in lines if _stays(line, step, decoder)]
            dropped += len(lines) - len(kept)
            write_all(target, b"".join(kept))
    finally:
        os.close(target)
    return dropped


def _stays(line: bytes, step: int, decoder: msgspec.json.Decoder[_Line]) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        found = decoder.decode(line).step
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return found is None or found <= step
