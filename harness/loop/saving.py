"""When a checkpoint is saved: what goes into it, that no step is saved twice, and that the manifest knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.position import EpochPosition, EpochStart
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import build_state, gather
from harness.errors import ConfigError
from harness.loop.options import SessionOptions
from harness.loop.timestamp import Timestamp
from harness.run.directory import RunDirectory
from harness.run.manifest_file import ManifestFile


class Saver:
    """Saves a session's `state`.

    Args:
        options: What is saved, and how many are kept.
        paths: Where.
        timestamp: How far the run is.
        directory: The run's directory.
        fields: The template fields of this attempt.
        manifest: Lists the checkpoints.
        say: Takes a line for people.
        flush: Hands what was recorded and logged to the files. A run that is killed goes on from its newest
            checkpoint: no line of a step before that may be missing.
    """

    def __init__(
        self,
        options: SessionOptions,
        paths: CheckpointPaths,
        timestamp: Timestamp,
        *,
        directory: RunDirectory,
        fields: Mapping[str, int | str],
        manifest: ManifestFile,
        say: Callable[[str], None],
        flush: Callable[[], None],
    ) -> None:
        self.epoch_start: EpochStart | None = None
        """Where the epoch in progress began; None between epochs."""
        self.loader: Iterable[Any] = ()
        """What is iterated: between epochs, its generators are saved as they are."""
        self.before_save_hooks: list[Callable[[], None]] = []
        """Called before a checkpoint is written; one that raises keeps it from being written."""
        self._options = options
        self._timestamp = timestamp
        self._directory = directory
        self._fields = fields
        self._manifest = manifest
        self._say = say
        self._flush = flush
        self._saved_step = timestamp.batch if timestamp.batch else None
        self._num_saved = 0
        self._writer: CheckpointWriter | None = None
        if options.save_interval is not None:
            folder = CheckpointFolder(paths, directory.resolve, fields)
            self._writer = CheckpointWriter(folder, keep=options.save_num_checkpoints_to_keep)

    def save(self) -> None:
        """Save now, unless this step was saved already. Returns when it is durable.

        Raises:
            ConfigError: The session was made without `save_interval`.
            CheckpointError: It cannot be written; earlier checkpoints are as they were.
            RunDirError: The run directory was removed, renamed or replaced.
        """
        if self._writer is None:
            raise ConfigError("there is nowhere to save to", hint="give save_interval= and state= to the session")
        step = self._timestamp.batch
        if step == self._saved_step:
            return
        for hook in self.before_save_hooks:
            hook()
        self._directory.check_in_place()
        state = build_state(
            run_name=self._directory.run_name,
            rank=int(self._fields["rank"]),
            attempt=self._manifest.attempt,
            timestamp=self._timestamp.state_dict(),
            state=gather(self._options.state),
            position=self._position().to_state(),
        )
        self._flush()
        saved = self._writer.save(state, {**self._fields, **self._timestamp.fields()})
        self._saved_step = step
        self._num_saved += 1
        for removed in saved.removed:
            self._manifest.remove_artifact(self._directory.relative(removed))
        path = self._directory.relative(saved.path)
        self._manifest.add_artifact("checkpoint", path, size_bytes=saved.size_bytes, step=step, crc32c=saved.crc32c)
        self._manifest.set_progress(step, self._timestamp.epoch)
        self._manifest.save()
        self._say(f"saved {path}")

    def _position(self) -> EpochPosition:
        ts = self._timestamp
        start = self.epoch_start or EpochStart.capture(self.loader, epoch=ts.epoch)
        return EpochPosition(start=start, batch_in_epoch=ts.batch_in_epoch)

    def save_last(self) -> None:
        """Save the last step, if checkpoints are saved at all and it has not been."""
        if self._writer is not None and self._timestamp.batch:
            self.save()

    @property
    def num_saved(self) -> int:
        """Checkpoints written by this attempt."""
        return self._num_saved

    def health(self) -> dict[str, object]:
        """Counts for `run.json`."""
        return {"saved": self._num_saved, "last_step": self._saved_step}
