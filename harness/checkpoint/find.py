"""Finds the newest checkpoint that is whole, and says why newer ones are not.

A run that was killed, filled its disk or lost a bit must find its way back without anybody's help: what does
not verify is passed over and left where it is.
"""

from __future__ import annotations

import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint.checksum import file_fault
from harness.checkpoint.index import IndexEntry, read_index
from harness.checkpoint.paths import CheckpointFolder, StoredFile
from harness.checkpoint.state import NewerFormatError, cause, check_state
from harness.errors import CheckpointError


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
    """Whether size and checksum agreed with the side manifest; else it was verified by loading it."""


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

    One that is not in the side manifest (a kill came between the rename and the list) is verified by loading
    it. The `latest` link and the times of files play no part.

    Raises:
        CheckpointError: The folder cannot be read.
        NewerFormatError: The newest one was made by a newer version of the harness.
    """
    index = _read_index(folder)
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
        candidates.append((step, file.name, file))
    for step, _, file in sorted(candidates, key=lambda one: one[:2], reverse=True):
        fault = _fault(folder, file, step, index.get(file.name))
        if fault is None:
            found = FoundCheckpoint(
                path=folder.path / file.name,
                step=step,
                size_bytes=file.size_bytes,
                listed=file.name in index,
            )
            return Search(found=found, skipped=tuple(skipped))
        skipped.append(_skip(folder, file, step, fault))
    return Search(found=None, skipped=tuple(skipped))


def load_checkpoint(path: Path, *, run_name: str | None = None, rank: int | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU. No code in the file is run, whatever it holds.

    Args:
        path: The file.
        run_name: The run it must belong to; None takes any.
        rank: The rank it must belong to; None takes any.

    Returns:
        The dict that `harness.checkpoint.state` describes.

    Raises:
        CheckpointError: It cannot be read, is no checkpoint, is of another run or rank, or (NewerFormatError)
            was made by a newer version of the harness.
    """
    return check_state(load_plain(path), path.name, run_name=run_name, rank=rank)


def load_plain(path: Path) -> Any:
    """Read what torch.save wrote to the CPU, whatever it is. No code in the file is run.

    Raises:
        CheckpointError: It cannot be read, or holds more than tensors and plain types.
    """
    _check_container(path)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # torch tells a torn file in half a dozen error types; a missing codec, a refused type and a full
        # memory too
        raise CheckpointError(f"{path.name} cannot be loaded: {cause(error)}") from error


def _fault(folder: CheckpointFolder, file: StoredFile, step: int, entry: IndexEntry | None) -> str | None:
    path = folder.path / file.name
    if entry is not None:
        return file_fault(path, entry)
    try:
        loaded = load_checkpoint(path, run_name=folder.run_name, rank=folder.rank)
    except NewerFormatError:
        raise
    except CheckpointError as error:
        return f"does not load: {error.message}"
    saved_step = loaded["timestamp"]["batch"]
    return None if saved_step == step else f"was saved after step {saved_step}, not {step} as its name says"


def _step_inside(folder: CheckpointFolder, file: StoredFile) -> tuple[int | None, str]:
    """The step of a file that neither its name nor the side manifest tells, or why it has none."""
    try:
        return int(load_checkpoint(folder.path / file.name)["timestamp"]["batch"]), ""
    except NewerFormatError:
        raise
    except CheckpointError as error:
        return None, f"does not load: {error.message}"


def _skip(folder: CheckpointFolder, file: StoredFile, step: int | None, reason: str) -> SkippedCheckpoint:
    return SkippedCheckpoint(path=folder.path / file.name, step=step, reason=reason)


def _read_index(folder: CheckpointFolder) -> dict[str, IndexEntry]:
    try:
        return read_index(folder.index_path)
    except OSError as error:
        raise CheckpointError(f"{folder.index_path} cannot be read: {error.strerror}") from error


def _check_container(path: Path) -> None:
    """Refuse what is no plain file and no archive as torch writes it, before memory is given to it."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointError(f"{path.name} is no regular file")
        with zipfile.ZipFile(path) as archive:
            inflated = [info.filename for info in archive.infolist() if info.compress_size != info.file_size]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path.name} is torn or no checkpoint: {cause(error)}") from error
    if inflated:
        # torch stores without compression; a small file that unfolds into a huge one is an attack
        raise CheckpointError(f"{path.name} is compressed, which no checkpoint is: {inflated[0]}")
