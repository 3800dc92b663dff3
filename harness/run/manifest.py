"""What is known about a run, in one file: `run.json`, format 1.

These are the shapes and the reading; `harness.run.manifest_file` keeps the file current. What `harness ls`
shows stands first and is small, so that ten thousand manifests are listed without building ten thousand of
them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from harness.errors import RunDirError
from harness.run.durable import disk_error

FORMAT = 1
"""The version of the format; readers refuse a later one."""


class Summary(msgspec.Struct, kw_only=True):
    """The line of `harness ls`."""

    step: int = 0
    """The last step that ended, over all attempts."""
    epoch: int = 0
    """Epochs completed."""
    started: str | None = None
    """Start of the last attempt, ISO-8601 UTC."""
    ended: str | None = None
    """End of the last attempt; None while it runs and after a kill."""
    median_step_us: float | None = None
    p95_step_us: float | None = None
    own_cost_pct: float | None = None
    """What the harness took of the time, in percent."""
    traces: int = 0
    checkpoints: int = 0


class Attempt(msgspec.Struct, kw_only=True):
    """One process launch of the run."""

    number: int
    """Counted from 1."""
    status: str
    """running, finished, failed, interrupted, or crashed: killed without a chance to say so."""
    started: str
    ended: str | None = None
    argv: list[str]
    """The command line, secrets left out."""
    cwd: str | None = None
    pid: int
    host: str
    resumed_from_step: int | None = None
    """The step of the checkpoint it went on from; None for a fresh start."""
    first_step: int | None = None
    last_step: int | None = None
    error: str | None = None
    """Why it failed, in one line."""


class Artifact(msgspec.Struct, kw_only=True):
    """A finished file of the run."""

    kind: str
    """trace, checkpoint, log, …"""
    path: str
    """Relative to the run directory."""
    size_bytes: int
    step: int | None = None
    crc32c: str | None = None
    """Checksum of the content as eight hexadecimal digits."""


class Parent(msgspec.Struct, kw_only=True, frozen=True):
    """The checkpoint that a run was started from, with `load_path`."""

    run_name: str | None = None
    """The run that saved it; None for weights from elsewhere."""
    path: str
    """The file, absolute and without links."""
    step: int | None = None
    """The step it was saved after; None for weights from elsewhere."""
    crc32c: str
    """Checksum of the file as eight hexadecimal digits."""
    weights_only: bool
    """Whether only weights were taken: the run then began at step 1."""


class Manifest(msgspec.Struct, kw_only=True):
    """The whole of `run.json`. Times are ISO-8601 UTC with milliseconds."""

    format: int = FORMAT
    run_name: str
    name_source: str
    """Where the name came from: an argument, an environment variable, or generated."""
    status: str
    """The last attempt's."""
    summary: Summary = msgspec.field(default_factory=Summary)
    attempts: list[Attempt] = []
    config: dict[str, Any] = {}
    """The resolved configuration, secrets left out."""
    recipe: dict[str, Any] = {}
    versions: dict[str, str | None] = {}
    git: dict[str, Any] | None = None
    """`commit` and `dirty`; None outside a git checkout."""
    device: str | None = None
    world_size: int = 1
    rank: int = 0
    parent: Parent | None = None
    """What the run was started from; None for one that began from nothing."""
    artifacts: list[Artifact] = []
    own_cost: dict[str, Any] = {}
    health: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What an attempt knows about itself before its first step."""

    run_name: str
    """The run's name."""
    name_source: str
    """Where the name came from."""
    argv: Sequence[str]
    """The command line; secrets are left out when it is written."""
    pid: int
    """This process."""
    host: str
    """This machine."""
    cwd: str | None = None
    """The folder it was started in."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration; secrets are left out when it is written."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """From `harness.run.provenance.versions`."""
    git: Mapping[str, Any] | None = None
    """`commit` and `dirty`, or None."""
    device: str | None = None
    """Such as `cpu` or `cuda:0`."""
    world_size: int = 1
    """Number of ranks."""
    rank: int = 0
    """The rank that writes this manifest."""
    parent: Parent | None = None
    """What this attempt loaded with `load_path`; None leaves what an earlier attempt said."""


class RunListing(msgspec.Struct, kw_only=True, frozen=True):
    """What `harness ls` shows of a run."""

    run_name: str
    status: str
    """As in the manifest; `unreadable` when its `run.json` cannot be read."""
    started: str | None = None
    ended: str | None = None
    step: int = 0
    epoch: int = 0
    median_step_us: float | None = None
    p95_step_us: float | None = None
    own_cost_pct: float | None = None
    traces: int = 0
    checkpoints: int = 0

    def crashed(self) -> RunListing:
        """The same run, known to be dead."""
        return msgspec.structs.replace(self, status="crashed")


class _Head(msgspec.Struct):
    """The part of a manifest that a listing needs; the rest is skipped, not built."""

    format: int
    run_name: str
    status: str
    summary: Summary


_manifests = msgspec.json.Decoder(Manifest)
_heads = msgspec.json.Decoder(_Head)
_versions = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_manifest(path: Path) -> Manifest:
    """Read a `run.json`.

    Raises:
        RunDirError: It is not there, cannot be read, is no manifest, or is of a later format.
    """
    try:
        data = _read_regular(path)
    except OSError as error:
        raise disk_error("read", path, error) from error
    try:
        if int(bytes(_versions.decode(data)["format"])) > FORMAT:
            raise RunDirError(
                f"{path} has a format later than {FORMAT}, the latest this version of the harness knows",
                hint="use the version of the harness that wrote it, or a later one",
            )
        return _manifests.decode(data)
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError) as error:
        if isinstance(error, RunDirError):
            raise
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise RunDirError(
            f"{path} is no manifest of a run: {reason}",
            hint="the harness replaces this file whole, so something else changed it; restore it from a copy",
        ) from error


def read_listing(path: Path) -> RunListing | None:
    """The listed part of a `run.json`; None when there is none. A bad one is `unreadable`, never an error.

    The name listed is the directory's, which is the run's even where somebody renamed it.
    """
    run_name = path.parent.name
    try:
        head = _heads.decode(_read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return RunListing(run_name=run_name, status="unreadable")
    if head.format > FORMAT:
        return RunListing(run_name=run_name, status="unreadable")
    shown = head.summary
    return RunListing(
        run_name=run_name,
        status=head.status,
        started=shown.started,
        ended=shown.ended,
        step=shown.step,
        epoch=shown.epoch,
        median_step_us=shown.median_step_us,
        p95_step_us=shown.p95_step_us,
        own_cost_pct=shown.own_cost_pct,
        traces=shown.traces,
        checkpoints=shown.checkpoints,
    )


def _read_regular(path: Path) -> bytes:
    # a link or a fifo under this name was not made by the harness, and a fifo would be waited for
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        data = os.read(fd, found.st_size + 1)
        while block := os.read(fd, found.st_size + 1):  # a read may be short
            data += block
        return data
    finally:
        os.close(fd)
