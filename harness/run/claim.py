"""How a run gets a directory of its own, when others may want the same name at the same moment.

`mkdir` decides who makes a directory and the lock in it who owns it; both are atomic, and an owner needs the
lock. A directory that is there is only looked at with its lock held, and is only replaced by renaming it
aside, so a kill at any instant leaves a run, a run in the trash, or an empty directory that the next claim
takes.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from harness.errors import ConfigError, RunDirError, RunDirExistsError, RunLockedError, RunNameError
from harness.naming.run_name import validate_run_name
from harness.run.durable import disk_error
from harness.run.layout import (
    DIRECTORY_MODE,
    LOCK_NAME,
    MANIFEST_LEFTOVER,
    MANIFEST_NAME,
    TRASH,
    TRASH_PREFIX,
)
from harness.run.lock import RunLock
from harness.run.manifest import read_listing, read_manifest

logger = logging.getLogger(__name__)

Resume = bool | Literal["auto"]
_MAX_DRAWS = 10_000
_MAX_ROUNDS = 10
"""How often a directory may vanish under a claim before it gives up."""


class DrawsNames(Protocol):
    """What makes up run names: `harness.naming.run_name.NameGenerator`, or a test's own."""

    def generate(self) -> str:
        """A valid run name, another one at each call if need be."""
        ...


def prepare_root(root: Path) -> Path:
    """Make the root if it is not there, resolve it once, and see that runs can be made in it.

    Raises:
        RunDirError: It cannot be made, is no directory, or cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        resolved = root.resolve(strict=True)
    except OSError as error:
        raise disk_error("make the root of runs", root, error) from error
    if not os.access(resolved, os.W_OK | os.X_OK):
        raise RunDirError(
            f"the root of runs {resolved} cannot be written: it is read-only, or this user may not",
            hint="give another root with --root or HARNESS_ROOT, or change the permissions of this one",
        )
    return resolved


def claim_name(root: Path, run_name: str, *, resume: Resume, overwrite: bool) -> tuple[RunLock, bool]:
    """Own `root/run_name`: a new directory, or the one that is there if the options say so.

    Args:
        root: From `prepare_root`.
        run_name: The run's name, checked here.
        resume: True: it must be there. "auto": it may be.
        overwrite: What is there is replaced, if it is a run.

    Returns:
        The held lock, and whether there is a run to go on with.

    Raises:
        ConfigError: Both options are given, or the name breaks the rules.
        RunDirExistsError: There is a run of this name and no option says what to do with it.
        RunLockedError: A live process holds it.
        RunDirError: There is nothing to resume, what is there is no run, or the disk refused.
    """
    if resume and overwrite:
        raise ConfigError(
            f"resume={resume!r} and overwrite=True for {run_name!r}: one keeps the run, the other removes it",
            hint="give one of the two",
        )
    path = root / validate_run_name(run_name)
    for _ in range(_MAX_ROUNDS):
        if resume is not True and make_new(path):
            return RunLock.acquire(path / LOCK_NAME), False
        claimed = _claim_existing(path, resume=resume, overwrite=overwrite)
        if claimed is not None:
            return claimed
    raise RunDirError(f"{path} comes and goes: other processes make and remove it", hint="give another name")


def claim_generated(root: Path, generator: DrawsNames) -> tuple[str, RunLock]:
    """Own a new directory under a generated name; a name that is taken is drawn again.

    Raises:
        RunDirError: No free name was found in 10,000 draws, or the disk refused.
    """
    for _ in range(_MAX_DRAWS):
        name = generator.generate()
        path = root / validate_run_name(name, source="generated")
        if make_new(path):
            # somebody may have asked for this very name since: then it is theirs
            with contextlib.suppress(RunLockedError):
                return name, RunLock.acquire(path / LOCK_NAME)
    raise RunDirError(f"no free name in {root} after {_MAX_DRAWS} draws", hint="give a run name")


def make_new(path: Path) -> bool:
    """Make a directory; False when the name is taken, by whatever it is.

    Raises:
        RunDirError: The disk refused.
    """
    try:
        path.mkdir(mode=DIRECTORY_MODE)
    except FileExistsError:
        return False
    except OSError as error:
        raise disk_error("make the run directory", path, error) from error
    return True


def _claim_existing(path: Path, *, resume: Resume, overwrite: bool) -> tuple[RunLock, bool] | None:
    """As `claim_name`, for a name that was taken; None when it has become free meanwhile."""
    entries = _entries(path)
    if entries is None:
        if resume is True:
            raise nothing_to_resume(path)
        return None
    if LOCK_NAME not in entries and MANIFEST_NAME not in entries and entries:
        raise _no_run(path)  # before a lock file is left in somebody else's directory
    try:
        lock = RunLock.acquire(path / LOCK_NAME)
    except RunDirError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    try:
        claimed = _decide(path, lock, resume=resume, overwrite=overwrite)
    except BaseException:
        lock.release()
        raise
    if claimed[0] is not lock:
        lock.release()
    return claimed


def _decide(path: Path, lock: RunLock, *, resume: Resume, overwrite: bool) -> tuple[RunLock, bool]:
    """What to do with a directory whose lock is held."""
    entries = _entries(path) or set()
    if MANIFEST_NAME not in entries:
        if any(not MANIFEST_LEFTOVER.fullmatch(name) for name in entries - {LOCK_NAME}):
            raise _no_run(path)
        if resume is True:
            raise nothing_to_resume(path)
        return lock, False  # its maker was killed before the first manifest
    if overwrite:
        return _replace(path), False
    read_manifest(path / MANIFEST_NAME)  # one that is broken is no run to go on with, nor to name the ways on for
    if resume:
        return lock, True
    raise _exists(path)


def _replace(path: Path) -> RunLock:
    """Move the run at `path`, whose lock the caller holds, into the trash and make a new directory there."""
    listing = read_listing(path / MANIFEST_NAME)
    if listing is None or listing.status == "unreadable":
        raise RunDirError(
            f"{path} is not overwritten: its {MANIFEST_NAME} is not one of a run",
            hint="look at it, and remove the directory by hand if nothing in it is needed",
        )
    trash = path.with_name(f"{TRASH_PREFIX}{path.name}-{secrets.token_hex(8)}")
    try:
        path.rename(trash)
    except OSError as error:
        raise disk_error("move aside", path, error) from error
    if not make_new(path):
        raise RunLockedError(
            f"{path} was taken by another process while it was being overwritten", hint="give another name"
        )
    lock = RunLock.acquire(path / LOCK_NAME)
    empty_trash(path.parent)
    return lock


def empty_trash(root: Path) -> None:
    """Remove the runs that were moved aside in `root`, by killed overwrites too, following no link."""
    with os.scandir(root) as entries:
        found = [entry.path for entry in entries if _is_trash(entry)]
    for path in found:
        shutil.rmtree(path, onerror=_trash_stays)


def _is_trash(entry: os.DirEntry[str]) -> bool:
    return TRASH.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def _trash_stays(_function: Callable[..., object], path: str, info: tuple[object, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):  # another process empties the same trash
        logger.warning("cannot remove %s of an overwritten run: %s", path, info[1])


def _entries(path: Path) -> set[str] | None:
    """The names in a run directory; None when it is not there."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            return set(os.listdir(path))  # noqa: PTH208 - names are wanted, not paths
    except FileNotFoundError:
        return None
    except OSError as error:
        raise disk_error("look into", path, error) from error
    kind = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
    raise RunDirError(f"{path} is {kind}, not the directory of a run", hint="give another name, or remove it")


def _no_run(path: Path) -> RunDirError:
    return RunDirError(
        f"{path} is there and is no run: it has no {MANIFEST_NAME}",
        hint=f"it is left as it is; give another name{_free_name(path)}, or move it away",
    )


def nothing_to_resume(path: Path) -> RunDirError:
    """The error for a run directory that should be there; names those that are."""
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    near = difflib.get_close_matches(path.name, names, n=3)
    known = f"runs with a name like it: {', '.join(near)}; " if near else ""
    return RunDirError(
        f"there is no run {path.name!r} in {path.parent} to resume",
        hint=f"{known}to start it, leave out --resume (resume=True)",
    )


def _exists(path: Path) -> RunDirExistsError:
    listing = read_listing(path / MANIFEST_NAME)
    status = "unreadable" if listing is None else listing.status
    # its lock was free, so one that calls itself running was killed
    status = "crashed" if status == "running" else status
    return RunDirExistsError(
        f"there is a run {path.name!r} in {path.parent} already ({status})",
        hint="continue it with --resume (resume=True), replace it with --overwrite (overwrite=True), "
        f"or give another name{_free_name(path)}",
    )


def _free_name(path: Path) -> str:
    """`, such as foo-2`: a name that is free at this moment, or nothing."""
    for number in range(2, 100):
        name = f"{path.name}-{number}"
        with contextlib.suppress(RunNameError):
            if not os.path.lexists(path.with_name(validate_run_name(name))):
                return f", such as {name}"
    return ""
