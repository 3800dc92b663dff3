"""Removes old checkpoints of a run that is not going on, by the rules of rotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.checkpoint.index import write_index
from harness.checkpoint.inventory import CheckpointFile, RankFolder, State
from harness.checkpoint.paths import StoredFile
from harness.checkpoint.rotate import remove, superseded
from harness.checkpoint.verify import verify_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What became of the checkpoints of a folder."""

    removed: tuple[CheckpointFile, ...]
    """Those that were removed, by step."""
    kept: tuple[CheckpointFile, ...]
    """Those that stay, by step, with what is known of them now."""
    refused: tuple[CheckpointFile, ...]
    """Of those that stay, the ones that should have gone and that the system would not remove, with its reason."""
    held: tuple[CheckpointFile, ...]
    """Of those that stay, the ones that would have gone if no link pointed to them."""


def prune(
    folder: RankFolder,
    files: Sequence[CheckpointFile],
    *,
    keep: int,
    on_read: Callable[[CheckpointFile], None] = lambda _: None,
) -> Pruned:
    """Remove all but the newest `keep` that verify. The run's lock must be held.

    Reads the newest ones until `keep` of them have verified. As in rotation, what is damaged or foreign is left to be
    looked at, and what nobody listed is no reason to remove another. What a link in the folder points to stays as
    well. Where none verifies, nothing is removed. Writes the side manifest.

    Args:
        folder: Where they are.
        files: From `list_files`.
        keep: How many, at least 1.
        on_read: Called after each that was read.

    Raises:
        RunDirError: The side manifest could not be written.
        CheckpointError: It could not be read.
    """
    known = _verify_newest(folder, files, keep, on_read)
    doomed = _superseded(known, keep)
    held = tuple(file for file in known if file.name in doomed and file.links)
    removed: list[CheckpointFile] = []
    refused: list[CheckpointFile] = []
    for file in known:
        if file.name in doomed and not file.links:
            try:
                remove(folder.path, file.name)
            except OSError as error:
                refused.append(replace(file, reason=f"could not be removed: {error.strerror}"))
            else:
                removed.append(file)
    kept = tuple(file for file in known if file not in removed and file.state is not State.GONE)
    _unlist(folder, {file.name for file in known} - {file.name for file in kept})
    return Pruned(removed=tuple(removed), kept=kept, refused=tuple(refused), held=held)


def _verify_newest(
    folder: RankFolder, files: Sequence[CheckpointFile], keep: int, on_read: Callable[[CheckpointFile], None]
) -> list[CheckpointFile]:
    """The files by step, the newest listed ones read until `keep` of them are good."""
    known = []
    missing = keep
    for file in sorted(files, key=lambda file: file.order, reverse=True):
        found: CheckpointFile | None = file
        if missing and file.state is State.LISTED:
            found = verify_file(folder, file)
            on_read(file)
            missing -= found is not None and found.state is State.VERIFIED
        if found is not None:
            known.append(found)
    return known[::-1]


def _superseded(known: Sequence[CheckpointFile], keep: int) -> set[str]:
    good = [file for file in known if file.state is State.VERIFIED]
    if not good:
        return set()
    stored = [
        StoredFile(name=file.name, size_bytes=file.size_bytes, step=file.step)
        for file in known
        if file.state in {State.VERIFIED, State.LISTED, State.NOT_LISTED}
    ]
    index = {file.name: file.entry for file in known if file.entry is not None}
    return set(superseded(stored, index, saved_name=good[-1].name, keep=keep))


def _unlist(folder: RankFolder, names: set[str]) -> None:
    index = folder.read_index()
    if names & index.keys():
        write_index(folder.index_path, {name: entry for name, entry in index.items() if name not in names})
