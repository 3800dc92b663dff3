"""Saves a checkpoint so that a kill, a full disk or a power cut at any instant costs at most this one.

In this order: a temporary file beside the target, its size and checksum into the side manifest, fsync, rename, fsync
of the folder, `latest`, and only then are older ones removed. What `save` has returned is on the disk. The side
manifest comes first so that no file has its final name without a checksum; an entry without a file is nobody's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.checkpoint.best import SaveBest
from harness.checkpoint.find import load_checkpoint
from harness.checkpoint.index import IndexEntry, now, read_index, write_index
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.plain import check_plain
from harness.checkpoint.rotate import clean_leftovers, remove, superseded
from harness.checkpoint.staging import tensor_bytes
from harness.checkpoint.state import WEIGHTS_ONLY
from harness.checkpoint.write import WriteError, check_space, refused, write_state
from harness.errors import CheckpointError, ConfigError, RunDirError
from harness.run.durable import commit, create_file, replace_symlink, temporary_path

_log = logging.getLogger(__name__)


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
        best: Which stay however many are newer; `best-rank{rank}.pt` points to the first of them.
        overwrite: Whether a checkpoint may take the place of another step's that has its name.

    Raises:
        ConfigError: `keep` is neither -1 nor at least 1.
        CheckpointError: The folder cannot be written.
    """

    def __init__(
        self, folder: CheckpointFolder, *, keep: int = -1, best: SaveBest | None = None, overwrite: bool = False
    ) -> None:
        if keep != -1 and keep < 1:
            raise ConfigError(
                f"save_num_checkpoints_to_keep={keep} keeps no checkpoint",
                hint="give -1 to keep all, or 1 and up",
            )
        self.folder = folder
        self._keep = keep
        self._best = best
        self._overwrite = overwrite
        try:
            self._probe()
            left = clean_leftovers(folder)
            self._drop_entries_without_file()
        except OSError as error:
            raise CheckpointError(
                f"no checkpoint can be saved in {folder.path}: {error.strerror}",
                hint="give a folder that can be written, or save none",
            ) from error
        if left:
            _log.info("removed %d unfinished files of an earlier attempt in %s", len(left), folder.path)

    def _probe(self) -> None:
        probe = temporary_path(self.folder.index_path)
        os.close(create_file(probe))
        probe.unlink()

    def _drop_entries_without_file(self) -> None:
        """A save that was killed has listed a file that never came, and somebody may have removed some."""
        index = read_index(self.folder.index_path)
        there = {file.name for file in self.folder.stored(index)}
        if not index.keys() <= there:
            write_index(self.folder.index_path, {name: entry for name, entry in index.items() if name in there})

    def check_space(self, num_bytes: int) -> None:
        """See that there is room for a checkpoint with tensors of this size.

        Raises:
            CheckpointError: There is not; the message has the bytes needed and free.
        """
        check_space(self.folder.path / "a checkpoint", num_bytes)

    def save(
        self,
        state: Mapping[str, Any],
        fields: Mapping[str, int | str],
        *,
        value: float | None = None,
        for_best: bool = False,
    ) -> SavedCheckpoint:
        """Save a state and return when it is durable. An earlier file of the same step is replaced.

        Writes the checkpoint, `checkpoints-rank{rank}.json` and the links to the latest and the best. Copies nothing:
        the tensors must not change until it returns. Does not synchronise a device that the tensors are not on.

        Args:
            state: From `build_state`; plain types and tensors only.
            fields: Counts for the file's name, `epoch` and `batch` (or `step`) among them.
            value: Of the metric that `best` goes by, after this step.
            for_best: Whether it is saved for that alone: it goes when it is not one of the best any more.

        Raises:
            CheckpointError: The state holds something no load would read, the name belongs to another step,
                or the disk has no room or refused (the message has the bytes needed and free). Earlier checkpoints
                are as they were.
        """
        check_plain(state, "checkpoint")
        step = int(fields["batch"] if "batch" in fields else fields["step"])
        path = self._path(fields)
        check_space(path, tensor_bytes(state))
        index = read_index(self.folder.index_path)
        self._make_room(path, step, index)
        entry = IndexEntry(
            size_bytes=0,
            crc32c="",
            step=step,
            epoch=int(fields.get("epoch", 0)),
            saved=now(),
            metric=self._best.metric if self._best is not None and value is not None else None,
            value=value,
            for_best=for_best,
            weights_only=bool(state.get(WEIGHTS_ONLY)),
        )
        entry = self._write(state, path, index, entry)
        self._point(self.folder.latest_path, path.name)
        self._point_best(index)
        removed = self._rotate(index, path.name)
        return SavedCheckpoint(
            path=path,
            step=step,
            epoch=entry.epoch,
            size_bytes=entry.size_bytes,
            crc32c=entry.crc32c,
            removed=removed,
        )

    def note_value(self, name: str, value: float) -> None:
        """Add the metric's value to a checkpoint that was saved before it was known.

        Raises:
            CheckpointError: The side manifest cannot be read or written.
        """
        index = read_index(self.folder.index_path)
        if name in index and self._best is not None:
            index[name] = msgspec.structs.replace(index[name], metric=self._best.metric, value=value)
            self._list(index, f"the value of {self._best.metric} is not noted:")
            self._point_best(index)

    def _path(self, fields: Mapping[str, int | str]) -> Path:
        try:
            return self.folder.file(fields)
        except RunDirError as error:
            raise CheckpointError(f"no checkpoint can be saved: {error.message}", hint=error.hint) from error

    def _make_room(self, path: Path, step: int, index: dict[str, IndexEntry]) -> None:
        """Make room for a file of this name: refuse one of another step, and drop the entry of one of this
        step.

        The entry goes first: after a kill between rename and list, the new file must not be held against it.
        """
        if not path.exists():
            index.pop(path.name, None)
            return
        saved_step = self._saved_step(path, index)
        if saved_step is not None and saved_step != step and not self._overwrite:
            raise CheckpointError(
                f"the checkpoint of step {step} would overwrite {path.name}, which is of step {saved_step}",
                hint="put {batch} into save_filename, or give save_overwrite=True",
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

    def _write(
        self, state: Mapping[str, Any], path: Path, index: dict[str, IndexEntry], entry: IndexEntry
    ) -> IndexEntry:
        """Write, list and commit the file; returns its entry, which is also in `index` then.

        After an I/O error once more, into a new temporary file: the one that failed is never trusted again.
        """
        try:
            return self._write_once(state, path, index, entry)
        except WriteError as error:
            if error.errno != errno.EIO:
                raise refused(path, error) from error
            _log.warning("writing %s failed (%s); trying once more", path.name, error.strerror)
        try:
            return self._write_once(state, path, index, entry)
        except WriteError as error:
            raise refused(path, error) from error

    def _write_once(
        self, state: Mapping[str, Any], path: Path, index: dict[str, IndexEntry], entry: IndexEntry
    ) -> IndexEntry:
        tmp = temporary_path(path)
        try:
            size_bytes, crc32c = write_state(state, tmp)
            entry = msgspec.structs.replace(entry, size_bytes=size_bytes, crc32c=crc32c)
            # Where a file is replaced the entry comes afterwards: until then it would speak against the old one.
            replaces = path.exists()
            index[path.name] = entry
            if not replaces:
                self._list(index, f"{path.name} could not be saved:")
            try:
                commit(tmp, path)
            except OSError as error:
                del index[path.name]
                raise WriteError(error, size_bytes) from error
            if replaces:
                self._list(index, f"{path.name} is saved, but")
        finally:
            with contextlib.suppress(OSError):  # gone after the rename; otherwise the first error is the one to tell
                tmp.unlink()
        return entry

    def _list(self, index: Mapping[str, IndexEntry], before: str) -> None:
        try:
            write_index(self.folder.index_path, index)
        except RunDirError as error:
            name = self.folder.index_path.name
            raise CheckpointError(f"{before} {name} could not be written: {error.message}", hint=error.hint) from error

    def _point(self, link: Path | None, name: str) -> None:
        if link is None:
            return
        try:
            replace_symlink(link, name)
        except OSError as error:
            # the checkpoint is durable and listed; resuming never looks at the link
            _log.warning("%s is saved, but %s does not point to it: %s", name, link, error)

    def _point_best(self, index: Mapping[str, IndexEntry]) -> None:
        best = self._best.ranked(index) if self._best is not None else []
        if best:
            self._point(self.folder.best_path, best[0])

    def _rotate(self, index: dict[str, IndexEntry], saved_name: str) -> tuple[Path, ...]:
        removed = []
        best = self._best.ranked(index) if self._best is not None else []
        for name in superseded(self.folder.stored(index), index, saved_name=saved_name, keep=self._keep, best=best):
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
