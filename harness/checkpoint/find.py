"""Finds the newest checkpoint that is whole, and says why newer ones are not.

A run that was killed, filled its disk or lost a bit must find its way back without anybody's help: what does
not verify is passed over and left where it is.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint.checksum import check_seal, file_fault
from harness.checkpoint.container import check_container
from harness.checkpoint.index import IndexEntry, read_index
from harness.checkpoint.paths import CheckpointFolder, StoredFile
from harness.checkpoint.state import NewerFormatError, cause, check_state
from harness.errors import CheckpointError

_log = logging.getLogger(__name__)
_DAMAGE = frozenset({errno.EIO, errno.ENOENT, errno.ELOOP, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN})
"""What a disk says of a file that is bad or gone; all else says something of this process or the moment."""
_NO_CHECKSUM = "has no checksum, neither in the side manifest nor of its own: what changed in it could not be noticed"


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read here and now, and nothing says that it is damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCheckpoint:
    """A checkpoint that verified."""

    path: Path
    """The file."""
    step: int
    """The step it was saved after."""
    size_bytes: int
    """Its size."""
    listed: bool
    """Whether size and checksum agreed with the side manifest; else the checksum it carries did, and it loads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedCheckpoint:
    """A newer checkpoint that did not verify. The file is left in place."""

    path: Path
    """The file."""
    step: int | None
    """The step its name or the side manifest tells."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What there is to resume from."""

    found: FoundCheckpoint | None
    """The newest checkpoint that verified; None if there is none."""
    skipped: tuple[SkippedCheckpoint, ...]
    """Newer ones that did not, newest first."""


def newest_verified(folder: CheckpointFolder) -> Search:
    """The checkpoint of the highest step whose size and checksum agree with the side manifest.

    One that is not in the side manifest, or that took the place of the one listed, must agree with the checksum it
    carries, load, and be of this run and rank. One without any checksum is taken, with a warning, only where there is
    no other. The `latest` link and the times of files play no part.

    Raises:
        CheckpointError: The folder cannot be read.
        NewerFormatError: The newest one was made by a newer version of the harness.
        UnreadableError: Whether the newest one is good cannot be told: this user may not read it, the memory does not
            suffice, or the like. To go on from an older one would throw away what was trained since.
    """
    index = read_index(folder.index_path)
    candidates, skipped = _candidates(folder, index)
    unproven: FoundCheckpoint | None = None
    num_newer = 0
    for step, file in candidates:
        try:
            found, proven = _verify(folder, file, step, index.get(file.name))
        except (NewerFormatError, UnreadableError):
            raise
        except CheckpointError as error:
            skipped.append(_skip(folder, file, step, error.message))
            continue
        if proven:
            return Search(found=found, skipped=tuple(skipped))
        if unproven is None:
            unproven, num_newer = found, len(skipped)
        skipped.append(_skip(folder, file, step, _NO_CHECKSUM))
    if unproven is None:
        return Search(found=None, skipped=tuple(skipped))
    _log.warning("%s %s; there is no other", unproven.path, _NO_CHECKSUM)
    return Search(found=unproven, skipped=tuple(skipped[:num_newer]))


def _candidates(
    folder: CheckpointFolder, index: Mapping[str, IndexEntry]
) -> tuple[list[tuple[int, StoredFile]], list[SkippedCheckpoint]]:
    """The files by step, highest first, and those whose step nothing tells."""
    candidates = []
    skipped = []
    for file in folder.stored(index):
        entry = index.get(file.name)
        step = file.step if entry is None else entry.step
        if step is None:
            step, reason = _step_inside(folder, file)
            if step is None:
                skipped.append(_skip(folder, file, None, reason))
                continue
        candidates.append((step, file))
    return sorted(candidates, key=lambda one: (one[0], one[1].name), reverse=True), skipped


def load_checkpoint(path: Path, *, run_name: str | None = None, rank: int | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU, if it agrees with the checksum it carries. No code in the file is run, whatever
    it holds.

    A file that carries none is read too: torch.save wrote it, and whether it has changed cannot be told.

    Args:
        path: The file.
        run_name: The run it must belong to; None takes any.
        rank: The rank it must belong to; None takes any.

    Returns:
        The dict that `harness.checkpoint.state` describes.

    Raises:
        CheckpointError: It has changed, is no checkpoint, is of another run or rank, or (NewerFormatError) was made by
            a newer version of the harness.
        UnreadableError: It cannot be read, or agrees with its checksum and torch does not load it all the same.
    """
    return _load(path, run_name=run_name, rank=rank)[0]


def load_plain(path: Path) -> Any:
    """Read what torch.save wrote to the CPU, whatever it is. No code in the file is run.

    Raises:
        CheckpointError: It has changed by the checksum it carries, or holds more than tensors and plain types.
        UnreadableError: It cannot be read, or agrees with its checksum and torch does not load it all the same.
    """
    return _load_plain(path)[0]


def _load(path: Path, *, run_name: str | None, rank: int | None) -> tuple[dict[str, Any], bool]:
    """The checkpoint, and whether it carries a checksum."""
    loaded, sealed = _load_plain(path)
    return check_state(loaded, path.name, run_name=run_name, rank=rank), sealed


def _load_plain(path: Path) -> tuple[Any, bool]:
    try:
        check_container(path)
        sealed = check_seal(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return torch.load(path, weights_only=True, map_location="cpu"), sealed
    except Exception as error:
        # torch tells a torn file in half a dozen error types; a missing codec, a refused type and a full
        # memory too
        kind = UnreadableError if sealed else CheckpointError
        raise kind(f"{path.name} cannot be loaded: {cause(error)}") from error


def _verify(
    folder: CheckpointFolder, file: StoredFile, step: int, entry: IndexEntry | None
) -> tuple[FoundCheckpoint, bool]:
    """A file that is whole, as far as can be told, and whether a checksum says so.

    Raises:
        CheckpointError: It is not; the message is the reason.
    """
    path = folder.path / file.name
    fault = None if entry is None else file_fault(path, entry)
    if entry is not None and fault is None:
        return FoundCheckpoint(path=path, step=step, size_bytes=file.size_bytes, listed=True), True
    try:
        loaded, sealed = _load(path, run_name=folder.run_name, rank=folder.rank)
    except (NewerFormatError, UnreadableError):
        raise
    except CheckpointError as error:
        raise CheckpointError(fault or f"does not load: {error.message}") from error
    if fault is not None and not sealed:
        raise CheckpointError(fault)
    saved_step = loaded["timestamp"]["batch"]
    if file.step not in (None, saved_step):
        raise CheckpointError(f"was saved after step {saved_step}, not {file.step} as its name says")
    return FoundCheckpoint(path=path, step=saved_step, size_bytes=file.size_bytes, listed=False), sealed


def _step_inside(folder: CheckpointFolder, file: StoredFile) -> tuple[int | None, str]:
    """The step of a file that neither its name nor the side manifest tells, or why it has none."""
    try:
        return int(load_checkpoint(folder.path / file.name)["timestamp"]["batch"]), ""
    except (NewerFormatError, UnreadableError):
        raise
    except CheckpointError as error:
        return None, f"does not load: {error.message}"


def _skip(folder: CheckpointFolder, file: StoredFile, step: int | None, reason: str) -> SkippedCheckpoint:
    return SkippedCheckpoint(path=folder.path / file.name, step=step, reason=reason)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    kind = CheckpointError if error.errno in _DAMAGE else UnreadableError
    return kind(
        f"{path} cannot be read: {error.strerror}",
        hint="make it readable, or move it away to go on from an older one",
    )
