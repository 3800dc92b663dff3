"""Saves a checkpoint so that a kill, a full disk or a power cut at any instant costs at most this one.

In this order: a temporary file beside the target, fsync, rename, fsync of the folder, the side manifest,
`latest`, and only then are older ones removed. What `save` has returned is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint.checksum import ChecksumFile
from harness.checkpoint.find import load_checkpoint
from harness.checkpoint.index import IndexEntry, now, read_index, write_index
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.plain import check_plain
from harness.checkpoint.rotate import clean_leftovers, remove, superseded
from harness.checkpoint.state import cause
from harness.errors import CheckpointError, ConfigError, RunDirError
from harness.run.durable import FILE_MODE, commit, replace_symlink, temporary_path
from harness.units import format_bytes

_log = logging.getLogger(__name__)
_FREE_SPACE = "free some space, or keep fewer checkpoints with save_num_checkpoints_to_keep"
_HINTS = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "a limit on file size was reached (ulimit -f)",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that is on the disk."""

    path: Path
    """The file."""
    step: int
    """The step it was saved after."""
    epoch: int
    """Epochs completed then."""
    size_bytes: int
    """Its size."""
    crc32c: str
    """CRC-32C of its bytes, eight hexadecimal digits."""
    removed: tuple[Path, ...]
    """Older checkpoints that were removed for it."""


class CheckpointWriter:
    """Saves one rank's checkpoints into its folder. One per rank; the run's lock must be held.

    Construction checks that the folder can be written and removes what killed saves left there.

    Args:
        folder: Where, and under which names.
        keep: How many checkpoints stay; -1 keeps all.

    Raises:
        ConfigError: `keep` is neither -1 nor at least 1.
        CheckpointError: The folder cannot be written.
    """

    def __init__(self, folder: CheckpointFolder, *, keep: int = -1) -> None:
        if keep != -1 and keep < 1:
            raise ConfigError(
                f"save_num_checkpoints_to_keep={keep} keeps no checkpoint",
                hint="give -1 to keep all, or 1 and up",
            )
        self.folder = folder
        self._keep = keep
        try:
            self._probe()
            left = clean_leftovers(folder)
        except OSError as error:
            raise CheckpointError(
                f"no checkpoint can be saved in {folder.path}: {error.strerror}",
                hint="give a folder that can be written, or save none",
            ) from error
        if left:
            _log.info("removed %d unfinished files of an earlier attempt in %s", len(left), folder.path)

    def _probe(self) -> None:
        probe = temporary_path(self.folder.index_path)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY, FILE_MODE))
        probe.unlink()

    def save(self, state: Mapping[str, Any], fields: Mapping[str, int | str]) -> SavedCheckpoint:
        """Save a state and return when it is durable. An earlier file of the same step is replaced.

        Writes the checkpoint, `checkpoints-rank{rank}.json` and the link to the latest. Copies nothing: the
        tensors must not change until it returns. Does not synchronise a device that the tensors are not on.

        Args:
            state: From `build_state`; plain types and tensors only.
            fields: Counts for the file's name, `epoch` and `batch` (or `step`) among them.

        Raises:
            CheckpointError: The state holds something no load would read, the name belongs to another step,
                or the disk refused (the message has the bytes needed and free). Earlier checkpoints are as
                they were.
        """
        check_plain(state, "checkpoint")
        step = int(fields["batch"] if "batch" in fields else fields["step"])
        epoch = int(fields.get("epoch", 0))
        path = self._path(fields)
        index = self._read_index()
        self._forget(path, step, index)
        size_bytes, crc32c = self._write(state, path)
        index[path.name] = IndexEntry(size_bytes=size_bytes, crc32c=crc32c, step=step, epoch=epoch, saved=now())
        self._list(index, f"{path.name} is saved, but")
        self._point_latest(path)
        removed = self._rotate(index, path.name)
        return SavedCheckpoint(path=path, step=step, epoch=epoch, size_bytes=size_bytes, crc32c=crc32c, removed=removed)

    def _path(self, fields: Mapping[str, int | str]) -> Path:
        try:
            return self.folder.file(fields)
        except RunDirError as error:
            raise CheckpointError(f"no checkpoint can be saved: {error.message}", hint=error.hint) from error

    def _forget(self, path: Path, step: int, index: dict[str, IndexEntry]) -> None:
        """Make room for a file of this name: refuse one of another step, and drop the entry of one of this
        step.

        The entry goes first: after a kill between rename and list, the new file must not be held against it.
        """
        if not path.exists():
            index.pop(path.name, None)
            return
        saved_step = self._saved_step(path, index)
        if saved_step is not None and saved_step != step:
            raise CheckpointError(
                f"the checkpoint of step {step} would overwrite {path.name}, which is of step {saved_step}",
                hint="put {batch} into save_filename",
            )
        if index.pop(path.name, None) is not None:
            self._list(index, f"{path.name} cannot be replaced:")

    def _saved_step(self, path: Path, index: Mapping[str, IndexEntry]) -> int | None:
        if path.name in index:
            return index[path.name].step
        step = self.folder.step_in(path.name)
        if step is None:
            with contextlib.suppress(CheckpointError):  # torn: it may be overwritten
                step = int(load_checkpoint(path)["timestamp"]["batch"])
        return step

    def _write(self, state: Mapping[str, Any], path: Path) -> tuple[int, str]:
        """Write and commit the file; returns its size and checksum.

        After an I/O error once more, into a new temporary file: the one that failed is never trusted again.
        """
        try:
            return self._write_once(state, path)
        except _WriteError as error:
            if error.errno != errno.EIO:
                raise _refused(path, error) from error
            _log.warning("writing %s failed (%s); trying once more", path.name, error.strerror)
        try:
            return self._write_once(state, path)
        except _WriteError as error:
            raise _refused(path, error) from error

    def _write_once(self, state: Mapping[str, Any], path: Path) -> tuple[int, str]:
        tmp = temporary_path(path)
        needed_bytes = 0
        try:
            file = ChecksumFile(tmp)
            try:
                with file, _without_crc32():
                    torch.save(state, file)  # type: ignore[arg-type]  # it asks for write and flush only
            finally:
                needed_bytes = file.size_bytes
            commit(tmp, path)
        except OSError as error:
            raise _WriteError(error, needed_bytes) from error
        except RuntimeError as error:
            raise CheckpointError(f"{path.name} could not be saved: {cause(error)}") from error
        finally:
            with contextlib.suppress(OSError):  # gone after the rename; otherwise the first error is the one to tell
                tmp.unlink()
        return file.size_bytes, file.hexdigest()

    def _read_index(self) -> dict[str, IndexEntry]:
        try:
            return read_index(self.folder.index_path)
        except OSError as error:
            raise CheckpointError(f"{self.folder.index_path} cannot be read: {error.strerror}") from error

    def _list(self, index: Mapping[str, IndexEntry], before: str) -> None:
        try:
            write_index(self.folder.index_path, index)
        except OSError as error:
            raise CheckpointError(f"{before} {self.folder.index_path.name} could not be written: {error}") from error

    def _point_latest(self, path: Path) -> None:
        if self.folder.latest_path is None:
            return
        try:
            replace_symlink(self.folder.latest_path, path.name)
        except OSError as error:
            # the checkpoint is durable and listed; resuming never looks at the link
            _log.warning("%s is saved, but %s does not point to it: %s", path.name, self.folder.latest_path, error)

    def _rotate(self, index: dict[str, IndexEntry], saved_name: str) -> tuple[Path, ...]:
        removed = []
        for name in superseded(self.folder.stored(index), index, saved_name=saved_name, keep=self._keep):
            try:
                remove(self.folder.path, name)
            except OSError as error:
                _log.warning("the old checkpoint %s could not be removed: %s", name, error.strerror)
                continue
            index.pop(name, None)
            removed.append(self.folder.path / name)
        if removed:
            # an entry without a file is ignored, so this needs no sync
            with contextlib.suppress(OSError):
                write_index(self.folder.index_path, index, durable=False)
        return tuple(removed)


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    """Switch torch's own CRC-32 off: two thirds of the time of a save, and no load looks at it."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class _WriteError(OSError):
    """What the system refused, and how many bytes the file has when it is whole; 0 if that is not known."""

    def __init__(self, error: OSError, needed_bytes: int) -> None:
        super().__init__(error.errno, os.strerror(error.errno) if error.errno else str(error))
        self.needed_bytes = needed_bytes


def _refused(path: Path, error: _WriteError) -> CheckpointError:
    message = f"{path.name} could not be saved in {path.parent}: {error.strerror}"
    if error.needed_bytes:
        message += f"; it needs {format_bytes(error.needed_bytes)}"
        with contextlib.suppress(OSError):
            message += f" and {format_bytes(shutil.disk_usage(path.parent).free)} are free"
    return CheckpointError(message, hint=_HINTS.get(error.errno or 0, "earlier checkpoints are as they were"))
