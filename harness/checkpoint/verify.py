"""Reads checkpoints whole and says which of them are what was saved.

A training process may save and rotate meanwhile. A fault counts only if the file is the same before and after the
look at it; one that has vanished is no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from harness.checkpoint.checksum import file_fault
from harness.checkpoint.index import IndexEntry
from harness.checkpoint.inventory import CheckpointFile, RankFolder, State
from harness.errors import CheckpointError

_LOOKS = 3
"""How often a file that is replaced while it is read is read again."""


def verify_files(
    folder: RankFolder, files: Iterable[CheckpointFile], on_read: Callable[[CheckpointFile], None] = lambda _: None
) -> list[CheckpointFile]:
    """The files with what reading them told, in the order they came. Those that vanished meanwhile are left out.

    Takes about 0.3 s per GB. One that is not listed is loaded to the CPU, which imports torch.

    Args:
        folder: Where they are.
        files: From `list_files`.
        on_read: Called after each.
    """
    verified = []
    for file in files:
        found = verify_file(folder, file)
        if found is not None:
            verified.append(found)
        on_read(file)
    return verified


def verify_file(folder: RankFolder, file: CheckpointFile) -> CheckpointFile | None:
    """The file with what reading it told; None if it vanished meanwhile."""
    if file.state is State.GONE:
        return file
    entry = file.entry
    for _ in range(_LOOKS):
        before = _identity(folder, file)
        if before is None:
            return None
        found = _read(folder, replace(file, entry=entry))
        if found.state is State.VERIFIED:
            return found
        entry_now = folder.read_index().get(file.name)
        if (before, entry) == (_identity(folder, file), entry_now):
            return found
        entry = entry_now
    # what never held still is being replaced: nothing is known of it
    return replace(file, state=State.NOT_LISTED, reason=None, entry=None)


def _identity(folder: RankFolder, file: CheckpointFile) -> tuple[int, ...] | None:
    """Tells a file from one that takes its place; None when there is none."""
    try:
        status = (folder.path / file.name).lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(folder: RankFolder, file: CheckpointFile) -> CheckpointFile:
    if file.entry is None:
        return _load(folder, file)
    fault = file_fault(folder.path / file.name, file.entry)
    if fault is None:
        return _good(file, file.entry.step, file.entry.epoch)
    return replace(file, state=_bad_state(file, file.entry), reason=fault)


def _bad_state(file: CheckpointFile, entry: IndexEntry) -> State:
    return State.DAMAGED if file.size_bytes == entry.size_bytes else State.WRONG_SIZE


def _load(folder: RankFolder, file: CheckpointFile) -> CheckpointFile:
    # torch takes a second, and is needed for this alone
    from harness.checkpoint.find import load_checkpoint
    from harness.checkpoint.state import NewerFormatError

    try:
        loaded = load_checkpoint(folder.path / file.name, run_name=folder.run_name, rank=folder.rank)
    except NewerFormatError as error:
        return replace(file, state=State.NEWER_FORMAT, reason=error.message)
    except CheckpointError as error:
        return replace(file, state=State.DAMAGED, reason=f"does not load: {error.message}")
    timestamp = loaded["timestamp"]
    if file.step not in (None, timestamp["batch"]):
        reason = f"was saved after step {timestamp['batch']}, not {file.step} as its name says"
        return replace(file, state=State.DAMAGED, reason=reason)
    epoch = timestamp.get("epoch")
    return _good(file, timestamp["batch"], epoch if isinstance(epoch, int) else file.epoch)


def _good(file: CheckpointFile, step: int, epoch: int | None) -> CheckpointFile:
    return replace(file, state=State.VERIFIED, reason=None, step=step, epoch=epoch)
