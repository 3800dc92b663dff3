"""How a file gets to its name whole: written beside it, synced, renamed over, and the folder synced.

A reader, a kill or a full disk at any instant finds the old file or the new one, never a part of one.
Temporary names are random and made with O_EXCL, so that nothing planted in a folder is followed or
overwritten; the folder itself is opened once, without following a link, and used by its descriptor from then
on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.errors import RunDirError
from harness.units import format_bytes

FILE_MODE = 0o600
"""Logs and manifests hold paths, host names and arguments: they are the user's own."""
_NAME_BYTES = 180
"""How much of the final name a temporary one repeats, so that both fit in the 255 bytes of a file name."""
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_HINTS = {
    errno.ENOENT: "the folder is not there: it was removed or renamed; put it back, or start the run again",
    errno.ELOOP: "a symbolic link is in the way, and none is followed below the root; remove the link",
    errno.EEXIST: "a file is where a folder must be; remove it, or give another --root",
    errno.ENOTDIR: "a file or a symbolic link is where a folder must be; remove it",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.EIO: "the disk or the connection to it fails; the kernel's log may say why (dmesg)",
    errno.EFBIG: "a limit on file size was reached (ulimit -f)",
}


def disk_error(action: str, path: Path, error: OSError) -> RunDirError:
    """Say in words what the system refused: `cannot {action} {path}: {reason}`, and what to do about it.

    The errno of `error` is kept, so that a caller can tell a full disk from a missing folder.
    """
    hint = _HINTS.get(error.errno or 0)
    if error.errno in _NO_SPACE:
        hint = f"free some space there ({_free_space(path)} left), or give another --root"
    elif error.errno in _NO_PERMISSION:
        hint = "give a folder that can be written with --root or HARNESS_ROOT"
    told = RunDirError(f"cannot {action} {path}: {error.strerror or error}", hint=hint)
    told.errno = error.errno
    return told


def _free_space(path: Path) -> str:
    for folder in path.parents:
        with contextlib.suppress(OSError):
            return format_bytes(shutil.disk_usage(folder).free)
    return "unknown space"


def temporary_path(final: Path) -> Path:
    """A new hidden, random name in the folder of `final`, for what is to be renamed to `final`."""
    return final.with_name(f"{_temporary_stem(final)}{secrets.token_hex(8)}.tmp")


def remove_leftovers(final: Path) -> None:
    """Remove the temporary files that a killed process left beside `final`, as far as that is possible.

    Nobody else may be writing `final` now: its temporary file looks the same. For a run's files, hold its lock.
    """
    pattern = re.compile(rf"{re.escape(_temporary_stem(final))}[0-9a-f]{{16}}\.tmp")
    with contextlib.suppress(OSError), open_folder(final.parent) as folder:
        for name in os.listdir(folder):  # noqa: PTH208 - by descriptor, so that no link is followed
            if pattern.fullmatch(name):
                os.unlink(name, dir_fd=folder)


def _temporary_stem(final: Path) -> str:
    return f".{final.name.encode()[:_NAME_BYTES].decode(errors='ignore')}."


def create_file(path: Path) -> int:
    """Make a new file of mode 0600 and open it for writing; returns its descriptor.

    Args:
        path: The file, which may not be there. Its folder must be there and may not be a symbolic link, not even one
            that was put in its place a moment ago.

    Raises:
        OSError: The system refused.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY
    with open_folder(path.parent) as folder:
        return os.open(path.name, flags, FILE_MODE, dir_fd=folder)


@contextlib.contextmanager
def open_folder(path: Path | str, *, dir_fd: int | None = None) -> Iterator[int]:
    """Open a folder, in the folder `dir_fd` if given, for use as `dir_fd`. Its last name may not be a link.

    Raises:
        OSError: It is not there, is a link, or is no folder.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` in one step, in place of what was there.

    Args:
        path: The file. Its folder must exist and may not be a symbolic link.
        data: The whole content.
        durable: Sync the file and its folder, so that a power cut keeps it too. About 0.6 ms, else 0.1.

    Raises:
        RunDirError: It could not be written. `path` is as it was, or new and whole; no temporary file stays.
    """
    temporary = temporary_path(path).name
    try:
        with open_folder(path.parent) as folder:
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY
            fd = os.open(temporary, flags, FILE_MODE, dir_fd=folder)
            with _removed_on_error(temporary, folder):
                _fill(fd, data, durable=durable)
                os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            if durable:
                os.fsync(folder)
    except OSError as error:
        raise disk_error("write", path, error) from error


def commit(tmp: Path, final: Path) -> None:
    """Sync the finished file `tmp`, rename it to `final` and sync the folder.

    Args:
        tmp: From `temporary_path(final)`, written and closed.
        final: The name to give it. Both are in one folder, which may not be a symbolic link.

    Raises:
        RunDirError: It could not be done. `tmp` is gone; `final` is as it was, or new and whole.
        ValueError: The two are not in one folder.
    """
    if tmp.parent != final.parent:
        raise ValueError(f"{tmp} and {final} are not in one folder: a rename between them may not be atomic")
    try:
        with open_folder(final.parent) as folder:
            with _removed_on_error(tmp.name, folder):
                _sync_file(tmp.name, folder)
                os.replace(tmp.name, final.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
    except OSError as error:
        raise disk_error("write", final, error) from error


def replace_symlink(link: Path, target_name: str) -> None:
    """Point the symbolic link `link` at `target_name`, without a moment in which it is missing.

    Args:
        link: The link, existing or not.
        target_name: A path relative to the link's folder, such as `ep1-ba57-rank0.pt`.

    Raises:
        RunDirError: The link could not be made. The old one is as it was.
        ValueError: `target_name` is empty or absolute.
    """
    if not target_name or target_name.startswith("/"):
        raise ValueError(f"a link inside a run needs a relative target, got {target_name!r}")
    temporary = temporary_path(link).name
    try:
        with open_folder(link.parent) as folder:
            os.symlink(target_name, temporary, dir_fd=folder)
            with _removed_on_error(temporary, folder):
                os.replace(temporary, link.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
    except OSError as error:
        raise disk_error("point the link", link, error) from error


def fsync_directory(path: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        RunDirError: The folder is not there, or the disk refused.
    """
    try:
        with open_folder(path) as folder:
            os.fsync(folder)
    except OSError as error:
        raise disk_error("sync", path, error) from error


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte, however short the single writes are.

    Raises:
        OSError: The disk refused. Part of the data may be in the file.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _fill(fd: int, data: bytes, *, durable: bool) -> None:
    try:
        write_all(fd, data)
        if durable:
            os.fsync(fd)
    except OSError:
        # the first error is the one to tell; a second of close would hide it
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def _sync_file(name: str, folder: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _removed_on_error(name: str, folder: int) -> Iterator[None]:
    """Unlink a temporary name when its block fails: after a failed fsync the file is not to be trusted."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
