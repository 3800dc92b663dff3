"""Which checkpoints may go, and how they go without a moment in which a half of one is listed.

Works from what is on disk, so that a resumed run rotates what earlier attempts saved, and knows a folder's
own files by the template and the side manifest alone: nothing else is ever removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from harness.checkpoint.index import IndexEntry
from harness.checkpoint.paths import CheckpointFolder, StoredFile
from harness.run.durable import open_folder

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?:tmp|trash)")


def superseded(
    stored: Sequence[StoredFile],
    index: Mapping[str, IndexEntry],
    *,
    saved_name: str,
    keep: int,
    best: Collection[str] = (),
) -> list[str]:
    """The files that the checkpoint just saved makes superfluous.

    `keep` good ones stay: the one just saved and those before it. Good means listed, and of the listed size.
    Files of a later step are left alone: this run went on from before them, and they do not speak for it. One
    of a wrong size is left to be looked at. One that nobody listed (a kill between the rename and the list)
    is no reason to remove another, and goes once `keep` good ones are newer.

    Args:
        stored: The checkpoints in the folder, the one just saved among them.
        index: The side manifest, with the one just saved.
        saved_name: The one just saved. Never returned.
        keep: How many to keep; -1 keeps all.
        best: Names that stay however old they are. Those that were saved for that alone go when they are not in it.
    """
    saved_step = index[saved_name].step
    good: list[tuple[int, str]] = []
    outdone: list[tuple[int, str]] = []
    unlisted: list[tuple[int, str]] = []
    for file in stored:
        entry = index.get(file.name)
        step = file.step if entry is None else entry.step
        if file.name == saved_name or step is None or step > saved_step:
            continue
        if entry is None:
            unlisted.append((step, file.name))
        elif entry.size_bytes == file.size_bytes:
            (outdone if entry.for_best else good).append((step, file.name))
    good.sort(reverse=True)
    gone = outdone
    if keep != -1:
        kept = good[: keep - 1]
        gone += good[keep - 1 :]
        if len(kept) == keep - 1:
            oldest_step = kept[-1][0] if kept else saved_step
            gone += [(step, name) for step, name in unlisted if step < oldest_step]
    return [name for _, name in sorted(gone) if name not in best]


def remove(folder: Path, name: str) -> None:
    """Remove a file: renamed to a hidden name first, so that a kill in between leaves nothing that looks
    good.

    Raises:
        OSError: The system refused.
    """
    trash = f".{name}.{secrets.token_hex(8)}.trash"
    with open_folder(folder) as fd:
        os.replace(name, trash, src_dir_fd=fd, dst_dir_fd=fd)
        os.unlink(trash, dir_fd=fd)


def clean_leftovers(folder: CheckpointFolder) -> list[str]:
    """Remove what a killed save or rotation of this run and rank left behind; returns the names.

    Only names that this package makes for files of its own count. The run's lock must be held: a live
    writer's temporary file looks the same.

    Raises:
        OSError: The folder cannot be read.
    """
    own = {folder.index_path.name, folder.best_path.name}
    if folder.latest_path is not None:
        own.add(folder.latest_path.name)
    removed = []
    with open_folder(folder.path) as fd:
        for name in os.listdir(fd):  # noqa: PTH208 - by descriptor, so that no link is followed
            match = _LEFTOVER.fullmatch(name)
            if match and (match["name"] in own or folder.is_ours(match["name"])):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=fd)
                    removed.append(name)
    return sorted(removed)
