"""Puts a checkpoint folder in order when its run goes on. The run's lock must be held."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from harness.checkpoint.find import FoundCheckpoint, SkippedCheckpoint
from harness.checkpoint.paths import DAMAGED_ENDING, CheckpointFolder
from harness.run.durable import open_folder, replace_symlink

_log = logging.getLogger(__name__)


def set_aside(skipped: Iterable[SkippedCheckpoint]) -> None:
    """Rename checkpoints that did not verify to `NAME.damaged`: kept to be looked at, and in nobody's way.

    Otherwise the run would come to the same step again and overwrite them. Each is told of in a warning.
    """
    for one in skipped:
        try:
            kept = _rename(one.path)
        except OSError as error:
            _log.warning("checkpoint %s is passed over: it %s (and stays: %s)", one.path, one.reason, error.strerror)
        else:
            _log.warning("checkpoint %s is passed over: it %s; kept as %s", one.path, one.reason, kept)


def _rename(path: Path) -> str:
    with open_folder(path.parent) as folder:
        for number in itertools.count(1):
            name = path.name + DAMAGED_ENDING + (str(number) if number > 1 else "")
            try:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
                return name
    raise AssertionError("unreachable")


def mend_latest(folder: CheckpointFolder, found: FoundCheckpoint) -> None:
    """Let `latest` point to the checkpoint the run goes on from, if it does not."""
    link = folder.latest_path
    if link is None:
        return
    target = None
    with contextlib.suppress(OSError):  # not there, or no link
        target = str(link.readlink())
    if target == found.path.name:
        return
    try:
        replace_symlink(link, found.path.name)
    except OSError as error:
        _log.warning("%s does not point to %s: %s", link, found.path.name, error)
    else:
        if target is not None:
            _log.warning("%s pointed to %s; it points to %s now", link, target, found.path.name)
