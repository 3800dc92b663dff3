"""One live process per run: an advisory lock that the kernel drops when its owner dies.

The lock is `flock` on a file in the run directory, so a killed owner leaves nothing to clean up and a pid
that is used again means nothing. The file's text says who holds it, for the error message only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

import msgspec

from harness.errors import RunDirError, RunLockedError
from harness.run.durable import FILE_MODE, disk_error

_TRIES = 6
_PAUSE_S = 0.02
"""Between tries. `is_locked` holds a free lock for some µs: that must not look like an owner."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_held: set[RunLock] = set()
"""The locks of this process, for the fork hook."""
_hooked = False


class LockOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock, as written in the lock file."""

    pid: int
    host: str
    boot_id: str
    """Tells two boots of one host apart; empty where the kernel does not say."""
    started: str
    """When the lock was taken, ISO-8601 UTC."""


class RunLock:
    """A held lock. Made by `acquire`; forked children drop their copy, so the owner's death frees it.

    Attributes:
        path: The lock file.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    @classmethod
    def acquire(cls, path: Path) -> RunLock:
        """Take the lock at `path`, or say who has it. Waits at most about 0.1 s.

        The file is made if it is not there, and is never removed: a removed lock file could be held twice.

        Raises:
            RunLockedError: A live process holds it; names its pid and host.
            RunDirError: The file cannot be opened or locked.
        """
        _drop_in_forked_children()
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S)
            try:
                fd = _try_lock(path)
            except OSError as error:
                raise disk_error("lock", path, error) from error
            if fd is not None:
                lock = cls(path, fd)
                _held.add(lock)
                return lock
        raise _locked_error(path)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock: False after `release` and in a forked child."""
        return self._fd is not None

    def in_place(self) -> bool:
        """Whether the lock file is still the one at `path`: False when its folder was moved or removed."""
        return self._fd is not None and _is_at(self._fd, self.path)

    def release(self) -> None:
        """Let go. A second call, or one in a forked child, does nothing."""
        fd, self._fd = self._fd, None
        _held.discard(self)
        if fd is None:
            return
        # unlock, not only close: a child forked behind Python's back may hold a copy of the descriptor
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def _forget(self) -> None:
        """In a forked child: close the copy. Unlocking it would unlock the parent's."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock at `path`. A missing file is held by nobody.

    Raises:
        RunDirError: The file is there and cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_error("look at", path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise disk_error("look at", path, error) from error
    finally:
        os.close(fd)
    return False


def read_owner(path: Path) -> LockOwner | None:
    """Who took the lock last; None when the file does not say. Nothing tells whether it is still held."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=LockOwner)
    except (OSError, msgspec.MsgspecError):
        return None


def _try_lock(path: Path) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # the folder may have been moved aside between the open and the lock: then this is nobody's lock
        if _is_at(fd, path):
            _write_owner(fd)
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _is_at(fd: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _write_owner(fd: int) -> None:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    owner = LockOwner(pid=os.getpid(), host=socket.gethostname(), boot_id=_boot_id(), started=started)
    os.ftruncate(fd, 0)
    os.pwrite(fd, msgspec.json.encode(owner) + b"\n", 0)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _locked_error(path: Path) -> RunDirError:
    owner = read_owner(path)
    who = "a live process" if owner is None else f"process {owner.pid} on {owner.host} since {owner.started}"
    return RunLockedError(
        f"{path.parent} is in use: {who} is running it",
        hint="wait for it to end, stop it, or give this run another name",
    )


def _drop_in_forked_children() -> None:
    global _hooked
    if not _hooked:
        os.register_at_fork(after_in_child=_forget_all)
        _hooked = True


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()
    _held.clear()
