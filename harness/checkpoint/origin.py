"""Finds the newest good checkpoint of a run that somebody else owns, and that may be going on.

Its options are not known here. Where its checkpoints lie is told by `run.json` and by the side manifests, and nothing
is made or moved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from harness.checkpoint.find import FoundCheckpoint, SkippedCheckpoint, newest_verified
from harness.checkpoint.index import index_name
from harness.checkpoint.paths import DEFAULT_FILENAME, DEFAULT_FOLDER, CheckpointFolder, CheckpointPaths
from harness.errors import CheckpointError, TemplateError
from harness.run.layout import MANIFEST_NAME
from harness.run.manifest import Manifest, read_manifest

_log = logging.getLogger(__name__)
_USUAL_PLACE = PurePosixPath(DEFAULT_FOLDER).relative_to("{run_name}")
_SHOWN = 3


def newest_of_run(directory: Path, *, rank: int) -> Path | None:
    """The newest checkpoint of a run that verifies, as resuming would find it. Newer ones that do not are named in a
    warning.

    Args:
        directory: The run's directory, absolute and without links.
        rank: Whose checkpoint.

    Returns:
        None where the run, which is going on, has removed meanwhile what was there: look again.

    Raises:
        CheckpointError: It has none.
        NewerFormatError: The newest one was made by a newer version of the harness.
        RunDirError: Its `run.json` cannot be read.
    """
    manifest = read_manifest(directory / MANIFEST_NAME)
    searches = [newest_verified(folder) for folder in _folders(directory, manifest, rank)]
    skipped = [one for search in searches for one in search.skipped]
    bad = [one for one in skipped if one.path.exists()]
    found = max((one.found for one in searches if one.found), key=_step, default=None)
    if found is None:
        if len(bad) < len(skipped):
            return None
        raise _none(directory, manifest, bad)
    for one in bad:
        if one.step is None or one.step >= found.step:
            _log.warning("checkpoint %s is passed over: it %s", one.path, one.reason)
    return found.path


def _step(found: FoundCheckpoint) -> int:
    return found.step


def _none(directory: Path, manifest: Manifest, bad: list[SkippedCheckpoint]) -> CheckpointError:
    if bad:
        reasons = "; ".join(f"{one.path} {one.reason}" for one in bad[:_SHOWN])
        message = f"no checkpoint of the run {manifest.run_name!r} in {directory} is good: {reasons}"
        return CheckpointError(message, hint="give another run, or weights from elsewhere")
    return CheckpointError(
        f"the run {manifest.run_name!r} in {directory} has no checkpoint to load",
        hint="give another run, or let this one save some (save_interval)",
    )


def _folders(directory: Path, manifest: Manifest, rank: int) -> Iterator[CheckpointFolder]:
    """The folders of a run that may hold checkpoints of a rank."""
    places = {_USUAL_PLACE}
    places |= {PurePosixPath(one.path).parent for one in manifest.artifacts if one.kind == "checkpoint"}
    places |= {PurePosixPath(one.parent.relative_to(directory)) for one in directory.rglob(index_name(rank))}
    for place in sorted(places):
        path = directory / place
        # what leads elsewhere, by a link or by `..`, is none of its checkpoints
        if path.is_dir() and path.resolve() == path:
            yield _folder(directory, place, manifest, rank)


def _folder(directory: Path, place: PurePosixPath, manifest: Manifest, rank: int) -> CheckpointFolder:
    def resolve(relative: str) -> Path:
        # the directory may have another name than the run: a copy, or somebody renamed it
        return directory / PurePosixPath(relative).relative_to(manifest.run_name)

    fields: dict[str, Any] = {
        "run_name": manifest.run_name,
        "rank": rank,
        "local_rank": rank,
        "node_rank": 0,
        "world_size": manifest.world_size,
        "local_world_size": manifest.world_size,
        "hostname": manifest.attempts[-1].host if manifest.attempts else "",
    }
    folder = "/".join(("{run_name}", *place.parts))
    try:
        paths = CheckpointPaths.compile(folder=folder, filename=_template(manifest), latest=None)
    except TemplateError:
        paths = CheckpointPaths.compile(folder=folder, filename=DEFAULT_FILENAME, latest=None)
    return CheckpointFolder(paths, resolve, fields)


def _template(manifest: Manifest) -> str:
    """The run's `save_filename`, where its configuration tells it."""
    told = manifest.config.get("save_filename")
    return told if isinstance(told, str) else DEFAULT_FILENAME
