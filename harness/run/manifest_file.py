"""Keeping `run.json` current while the run goes: small changes in memory, one atomic write at each save.

Any thread may change and save. A disk that refuses in the middle of a run must not end it: the refusal is
kept, told once, and the next save tries again; at the start and the end of an attempt it is an error.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from harness.errors import RunDirError
from harness.run.durable import remove_leftovers, write_atomically
from harness.run.manifest import Artifact, Attempt, Manifest, RunFacts, Summary, read_manifest
from harness.run.redact import redact_argv, redact_config
from harness.units import NS_PER_MS, NS_PER_S

logger = logging.getLogger(__name__)

EndStatus = Literal["finished", "failed", "interrupted"]
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def _nothing_to_check() -> None:
    """The guard of a manifest whose directory nobody watches."""


def iso_time(unix_ns: int) -> str:
    """A Unix time in nanoseconds as ISO-8601 UTC with milliseconds: `2025-11-23T19:07:00.123Z`."""
    seconds, rest = divmod(unix_ns, NS_PER_S)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // NS_PER_MS:03d}Z"


class ManifestFile:
    """The manifest of a run that is going on, and the file it is saved to. Made by `start`.

    In a forked child, saves do nothing.

    Attributes:
        path: The `run.json`.
        last_save_error: Why the latest save failed; None after one that did not.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        guard: Callable[[], None] = _nothing_to_check,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self.last_save_error: str | None = None
        self._manifest = manifest
        self._guard = guard
        self._unix_ns = unix_ns
        self._pid = os.getpid()
        # a change never waits for a disk, so it has a lock of its own; the other keeps saves in order
        self._changing = threading.Lock()
        self._saving = threading.Lock()

    @classmethod
    def start(
        cls,
        path: Path,
        facts: RunFacts,
        *,
        resumed: bool = False,
        resumed_from_step: int | None = None,
        guard: Callable[[], None] = _nothing_to_check,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> ManifestFile:
        """Begin an attempt and write it down durably, as `running`. Removes what a killed write left beside the file.

        Args:
            path: The `run.json`.
            facts: What is known before the first step.
            resumed: Go on with the manifest that is there.
            resumed_from_step: The step of the checkpoint the attempt goes on from; `set_resumed_from_step`
                tells it later where it is not known yet.
            guard: Called before each write; raises RunDirError when the run directory is no longer in its
                place (`RunDirectory.check_in_place`).
            unix_ns: The clock.

        Raises:
            RunDirError: The manifest that is there cannot be read, or the new one not written.
        """
        manifest = read_manifest(path) if resumed else _new_manifest(facts)
        remove_leftovers(path)
        file = cls(path, manifest, guard=guard, unix_ns=unix_ns)
        file.begin_attempt(facts, resumed_from_step=resumed_from_step)
        return file

    @property
    def attempt(self) -> int:
        """The number of the attempt that runs, from 1."""
        return self._manifest.attempts[-1].number

    @property
    def started(self) -> str:
        """When the first attempt began, ISO-8601 UTC."""
        return self._manifest.attempts[0].started

    def snapshot(self) -> Manifest:
        """A copy of the manifest as it is now."""
        with self._changing:
            return msgspec.json.decode(self._encode(), type=Manifest)

    def begin_attempt(self, facts: RunFacts, *, resumed_from_step: int | None = None) -> None:
        """Append an attempt and save durably. An earlier one that never ended was killed: `crashed`.

        Raises:
            RunDirError: It could not be written.
        """
        started = iso_time(self._unix_ns())
        with self._changing:
            manifest = self._manifest
            for earlier in manifest.attempts:
                if earlier.status == "running":
                    earlier.status = "crashed"
            manifest.attempts.append(_new_attempt(facts, len(manifest.attempts) + 1, started))
            manifest.status = "running"
            manifest.summary.started, manifest.summary.ended = started, None
            manifest.config = redact_config(facts.config)
            manifest.recipe = redact_config(facts.recipe)
            manifest.versions = dict(facts.versions)
            manifest.git = None if facts.git is None else dict(facts.git)
            manifest.device, manifest.world_size, manifest.rank = facts.device, facts.world_size, facts.rank
            manifest.parent = facts.parent or manifest.parent
        if resumed_from_step is not None:
            self.set_resumed_from_step(resumed_from_step)
        self._write(durable=True)

    def set_resumed_from_step(self, step: int) -> None:
        """The attempt goes on after `step`: what came later in earlier attempts does not count."""
        with self._changing:
            self._manifest.attempts[-1].resumed_from_step = step
            self._manifest.summary.step = step

    def set_progress(self, step: int, epoch: int) -> None:
        """The last step that ended, and the epochs completed."""
        with self._changing:
            attempt, summary = self._manifest.attempts[-1], self._manifest.summary
            summary.step, summary.epoch = step, epoch
            before = attempt.resumed_from_step or 0
            if step > before:
                attempt.first_step = before + 1
                attempt.last_step = step

    def set_step_times(self, *, median_step_us: float | None, p95_step_us: float | None) -> None:
        """The step times of the summary, in µs."""
        with self._changing:
            self._manifest.summary.median_step_us = median_step_us
            self._manifest.summary.p95_step_us = p95_step_us

    def set_own_cost(self, own_cost: Mapping[str, Any], *, own_cost_pct: float | None = None) -> None:
        """What the harness cost, by part, and as percent of the run's time."""
        with self._changing:
            self._manifest.own_cost = dict(own_cost)
            self._manifest.summary.own_cost_pct = own_cost_pct

    def set_health(self, health: Mapping[str, Any]) -> None:
        """How loggers, sampler and files are doing: dictionaries and dataclasses of plain values."""
        with self._changing:
            self._manifest.health = dict(health)

    def set_device(self, device: str) -> None:
        """Where the run trains: known for sure only when it has."""
        with self._changing:
            self._manifest.device = device

    def add_artifact(
        self, kind: str, path: str, *, size_bytes: int, step: int | None = None, crc32c: str | None = None
    ) -> None:
        """List a finished file; one listed under the same path is replaced.

        Args:
            kind: trace, checkpoint, log, …
            path: Relative to the run directory (`RunDirectory.relative`).
            size_bytes: Its size.
            step: The step it belongs to.
            crc32c: Its checksum as eight hexadecimal digits.
        """
        artifact = Artifact(kind=kind, path=path, size_bytes=size_bytes, step=step, crc32c=crc32c)
        with self._changing:
            kept = [known for known in self._manifest.artifacts if known.path != path]
            self._set_artifacts([*kept, artifact])

    def remove_artifact(self, path: str) -> bool:
        """Take a file off the list; whether it was on it."""
        with self._changing:
            kept = [known for known in self._manifest.artifacts if known.path != path]
            found = len(kept) < len(self._manifest.artifacts)
            self._set_artifacts(kept)
        return found

    def end_attempt(self, status: EndStatus, error: str | None = None) -> None:
        """Write down durably how the attempt ended.

        Args:
            status: finished, failed or interrupted.
            error: Why it failed, in one line.

        Raises:
            RunDirError: It could not be written.
        """
        ended = iso_time(self._unix_ns())
        with self._changing:
            manifest = self._manifest
            attempt = manifest.attempts[-1]
            attempt.status, attempt.ended, attempt.error = status, ended, error
            manifest.status, manifest.summary.ended = status, ended
        self._write(durable=True)

    def save(self, *, durable: bool = False) -> bool:
        """Write the manifest as it is now, in one step; whether that worked (see the module).

        Args:
            durable: Sync it to the disk too.

        Raises:
            RunDirError: The run directory is no longer in its place. Nothing was written anywhere.
        """
        try:
            self._write(durable=durable)
        except RunDirError as error:
            if error.errno is None or error.errno in _GONE:
                raise
            if self.last_save_error is None:
                logger.warning("%s; the next save tries again", error.message)
            self.last_save_error = error.message
            return False
        return True

    def _write(self, *, durable: bool) -> None:
        if os.getpid() != self._pid:
            return
        with self._saving:
            self._guard()
            with self._changing:
                data = self._encode()
            write_atomically(self.path, data, durable=durable)
            self.last_save_error = None

    def _encode(self) -> bytes:
        # msgspec writes NaN and infinities as null, so the file is valid JSON whatever was measured
        return msgspec.json.format(msgspec.json.encode(self._manifest, enc_hook=_plain), indent=2) + b"\n"

    def _set_artifacts(self, artifacts: list[Artifact]) -> None:
        self._manifest.artifacts = artifacts
        self._manifest.summary.traces = sum(known.kind == "trace" for known in artifacts)
        self._manifest.summary.checkpoints = sum(known.kind == "checkpoint" for known in artifacts)


def _new_manifest(facts: RunFacts) -> Manifest:
    return Manifest(run_name=facts.run_name, name_source=facts.name_source, status="running", summary=Summary())


def _new_attempt(facts: RunFacts, number: int, started: str) -> Attempt:
    return Attempt(
        number=number,
        status="running",
        started=started,
        argv=redact_argv(facts.argv),
        cwd=facts.cwd,
        pid=facts.pid,
        host=facts.host,
    )


def _plain(value: Any) -> Any:
    """What JSON has no form for: numbers of other libraries as numbers, the rest by name."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else str(value)
