"""When a checkpoint is saved: what goes into it, that no step is saved twice, and that the manifest knows of it.

Training waits for a copy in memory only; a thread writes it. One save is under way at a time, the next one waits for
it. What goes wrong in the thread is raised at the end of the step in progress, or counted, as `on_save_error` says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.checkpoint.background import BackgroundSave
from harness.checkpoint.best import BestSoFar
from harness.checkpoint.index import read_index
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.plain import check_plain
from harness.checkpoint.position import EpochPosition, EpochStart
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.staging import StagedState, Staging, tensor_bytes
from harness.checkpoint.state import WEIGHTS_ONLY, build_state, gather, weights
from harness.errors import CheckpointError, ConfigError, HarnessError
from harness.loop.options import SessionOptions
from harness.loop.timestamp import Timestamp
from harness.run.directory import RunDirectory
from harness.run.manifest_file import ManifestFile

_log = logging.getLogger(__name__)


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
        self.on_failure: Callable[[], None] = lambda: None
        """Called from the saving thread when there is something for `raise_failure`."""
        self._options = options
        self._timestamp = timestamp
        self._directory = directory
        self._fields = fields
        self._manifest = manifest
        self._say = say
        self._flush = flush
        self._saved_step = timestamp.batch if timestamp.batch else None
        self._saved_path: Path | None = None
        self._failure: Exception | None = None
        self._counts = {"saved": 0, "failed": 0, "held": 0, "held_ns": 0, "waited": 0, "waited_ns": 0}
        self._unsaved: str | None = None
        self._background = BackgroundSave(on_error=self._on_background_error)
        self._staging = Staging()
        self._writer: CheckpointWriter | None = None
        self._best: BestSoFar | None = None
        self._offered: float | None = None
        self._value: float | None = None
        if options.save_interval is not None or options.best is not None:
            folder = CheckpointFolder(paths, directory.resolve, fields)
            self._writer = CheckpointWriter(
                folder,
                keep=options.save_num_checkpoints_to_keep,
                best=options.best,
                overwrite=options.save_overwrite,
            )
            if options.best is not None:
                self._best = BestSoFar(options.best, read_index(folder.index_path))
            self._check_space()

    def _check_space(self) -> None:
        """Find a full disk now and not at the first checkpoint. What the optimizer will keep is not known yet."""
        assert self._writer is not None
        state = weights(self._options.state) if self._options.save_weights_only else gather(self._options.state)
        try:
            self._writer.check_space(tensor_bytes(state))
        except CheckpointError as error:
            if self._options.on_save_error == "raise":
                raise
            _log.warning("%s", error.message)

    def save_beside(self, *, for_best: bool) -> None:
        """Save without waiting for the disk, unless `save_async` is off, and count how long training is held.

        Args:
            for_best: Whether it is saved for `save_best` alone.

        Raises:
            HarnessError: As `save`.
        """
        began_ns = time.perf_counter_ns()
        self.save(wait=not self._options.save_async, for_best=for_best)
        self._counts["held"] += 1
        self._counts["held_ns"] += time.perf_counter_ns() - began_ns

    def save(self, *, wait: bool = True, for_best: bool = False) -> None:
        """Save now, unless this step was saved already.

        Args:
            wait: Return when it is durable. Else return when it is copied; `raise_failure` tells what went wrong.
            for_best: Whether it is saved for `save_best` alone.

        Raises:
            ConfigError: The session was made without `save_interval` and `save_best`.
            CheckpointError: It cannot be written, or the one before could not; earlier checkpoints are as they were.
            RunDirError: The run directory was removed, renamed or replaced.
        """
        if self._writer is None:
            raise ConfigError("there is nowhere to save to", hint="give save_interval= and state= to the session")
        if self._timestamp.batch == self._saved_step:
            if wait:
                self.finish()
            self._note_value()
            return
        for hook in self.before_save_hooks:
            hook()
        self._directory.check_in_place()
        self._wait_for_earlier()
        self.raise_failure()
        state = self._state()
        write = partial(
            self._write,
            fields={**self._fields, **self._timestamp.fields()},
            value=self._value,
            for_best=for_best,
        )
        self._value = None
        self._saved_step = self._timestamp.batch
        if wait:
            try:
                write(state)
            except HarnessError as error:
                self._note_failure(error)
                self.raise_failure()
        else:
            check_plain(state, "checkpoint")
            staged = self._staging.copy(state)
            self._background.start(partial(_write_staged, staged, write))

    def _state(self) -> dict[str, Any]:
        build = partial(
            build_state,
            run_name=self._directory.run_name,
            rank=int(self._fields["rank"]),
            attempt=self._manifest.attempt,
            timestamp=self._timestamp.state_dict(),
        )
        if self._options.save_weights_only:
            return {**build(state=weights(self._options.state), position={}, rng={}), WEIGHTS_ONLY: True}
        return build(state=gather(self._options.state), position=self._position().to_state())

    def _position(self) -> EpochPosition:
        ts = self._timestamp
        start = self.epoch_start or EpochStart.capture(self.loader, epoch=ts.epoch)
        return EpochPosition(start=start, batch_in_epoch=ts.batch_in_epoch)

    def _write(
        self, state: Mapping[str, Any], *, fields: Mapping[str, int | str], value: float | None, for_best: bool
    ) -> None:
        assert self._writer is not None
        self._flush()
        saved = self._writer.save(state, fields, value=value, for_best=for_best)
        self._saved_path = saved.path
        self._counts["saved"] += 1
        self._unsaved = None
        for removed in saved.removed:
            self._manifest.remove_artifact(self._directory.relative(removed))
        path = self._directory.relative(saved.path)
        self._manifest.add_artifact(
            "checkpoint", path, size_bytes=saved.size_bytes, step=saved.step, crc32c=saved.crc32c
        )
        self._manifest.set_progress(self._timestamp.batch, self._timestamp.epoch)
        self._manifest.save()
        self._say(f"saved {path}")

    def _wait_for_earlier(self) -> None:
        if self._background.is_running:
            began_ns = time.perf_counter_ns()
            self._background.wait()
            self._counts["waited"] += 1
            self._counts["waited_ns"] += time.perf_counter_ns() - began_ns
        self._background.wait()

    def finish(self) -> None:
        """Wait for a save that is under way.

        Raises:
            CheckpointError: It could not be written.
        """
        self._background.wait()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what the saving thread could not do, once.

        Raises:
            CheckpointError: A checkpoint could not be written; earlier ones are as they were.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _on_background_error(self, error: Exception) -> None:
        self._note_failure(error)
        self.on_failure()

    def _note_failure(self, error: Exception) -> None:
        step, self._saved_step = self._saved_step, None
        self._counts["failed"] += 1
        self._unsaved = f"the checkpoint of step {step} was not saved: {getattr(error, 'message', error)}"
        if self._options.on_save_error == "warn" and isinstance(error, (HarnessError, OSError)):
            _log.warning("%s", self._unsaved)
            self._say(self._unsaved)
        else:
            self._failure = error

    def offer(self, metrics: Mapping[str, Any]) -> None:
        """Look whether metrics of the step have the one that `save_best` goes by. Reads it from its device."""
        if self._best is not None and self._best.metric in metrics:
            self._offered = float(metrics[self._best.metric])

    def takes_best(self) -> bool:
        """Whether this step's metric makes its state one of the best. To be asked after each step, once."""
        self._value, self._offered = self._offered, None
        return self._value is not None and self._best is not None and self._best.take(self._value)

    def _note_value(self) -> None:
        """The metric of a step that is saved came after its checkpoint."""
        value, self._value = self._value, None
        if value is None or self._writer is None or self._saved_path is None:
            return
        self._background.wait()
        self._writer.note_value(self._saved_path.name, value)

    def save_last(self) -> None:
        """Save the last step, if checkpoints are saved at all and it has not been.

        Raises:
            CheckpointError: It cannot be written, or the one under way could not.
        """
        failure = None
        try:
            self.finish()
        except Exception as error:  # there may be room for this one
            failure = error
        is_best = self.takes_best()
        if self._timestamp.batch and (self._options.save_interval is not None or is_best):
            self.save(for_best=self._options.save_interval is None)
        if self._best is not None and not self._best.is_known:
            _log.warning("save_best goes by %r, which was never logged", self._best.metric)
        if failure is not None and self._unsaved is not None:
            raise failure

    @property
    def held_us(self) -> float | None:
        """How long a save in the middle of training held it up, on average; None without any."""
        return self._counts["held_ns"] / self._counts["held"] / 1e3 if self._counts["held"] else None

    @property
    def cpu_ns(self) -> int:
        """CPU time of the saving thread."""
        return self._background.cpu_ns

    def health(self) -> dict[str, object]:
        """Counts for `run.json`."""
        return {**self._counts, "last_step": self._saved_step, "unsaved": self._unsaved}


def _write_staged(staged: StagedState, write: Callable[[Mapping[str, Any]], None]) -> None:
    staged.wait()
    write(staged.content)
