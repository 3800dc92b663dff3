"""`harness checkpoints NAME --keep N`: fewer checkpoints, of a run that nobody is working on."""

from __future__ import annotations

from pathlib import Path

import click

from harness.checkpoint.inventory import RankFolder, State, find_folders, list_files
from harness.checkpoint.prune import Pruned, prune
from harness.cli.checkpoint_list import CHECK_FAILED, ReadingProgress, Row, make_rows, say_none, write_rows_json
from harness.cli.run_files import find_run
from harness.cli.terminal import say, write_lines
from harness.run.directory import RunDirectory
from harness.run.manifest import read_manifest
from harness.run.manifest_file import ManifestFile
from harness.units import format_bytes


def keep_newest(root: Path, run_name: str, keep: int, *, as_json: bool) -> None:
    """Remove all checkpoints of each rank but the newest `keep` that verify, and say which.

    Holds the run's lock meanwhile. Ends with code 1 where none verifies or one could not be removed.

    Raises:
        RunLockedError: The run is going on.
        RunDirError: There is no such run, or its files cannot be written.
        CheckpointError: A folder cannot be read.
    """
    find_run(root, run_name)  # names others like it where there is none
    directory = RunDirectory.claim(root, run_name, resume=True)
    try:
        manifest = read_manifest(directory.manifest_path)
        pruned = [(folder, _prune(folder, keep)) for folder in find_folders(directory, manifest)]
        _update_manifest(directory, pruned)
    finally:
        directory.release()
    removed = [Row(directory, folder, file) for folder, one in pruned for file in reversed(one.removed)]
    kept = [row for folder, one in pruned for row in make_rows(directory, folder, one.kept)]
    if as_json:
        write_rows_json(directory, {"removed": removed, "kept": kept})
    elif removed:
        write_lines(f"removed {row.path} ({format_bytes(row.file.size_bytes)})" for row in removed)
    _tell(run_name, removed, kept, [one for _, one in pruned])
    if not all(_is_done(one) for _, one in pruned):
        click.get_current_context().exit(CHECK_FAILED)


def _prune(folder: RankFolder, keep: int) -> Pruned:
    files = list_files(folder, lambda: False)
    return prune(folder, files, keep=keep, on_read=ReadingProgress(files[-keep:]).count)


def _update_manifest(directory: RunDirectory, pruned: list[tuple[RankFolder, Pruned]]) -> None:
    """Take off the list in `run.json` what is there no more, also what a killed rotation left on it."""
    manifest = ManifestFile(
        directory.manifest_path, read_manifest(directory.manifest_path), guard=directory.check_in_place
    )
    changed = False
    for folder, one in pruned:
        for name in folder.recorded.keys() - {file.name for file in one.kept}:
            changed |= manifest.remove_artifact(directory.relative(folder.path / name))
    if changed:
        manifest.save(durable=True)


def _tell(run_name: str, removed: list[Row], kept: list[Row], pruned: list[Pruned]) -> None:
    if not removed and not kept:
        say_none(run_name)
        return
    freed_bytes = sum(row.file.size_bytes for row in removed)
    say(f"removed: {len(removed)} of {len(removed) + len(kept)} checkpoints ({format_bytes(freed_bytes)})")
    for row in kept:
        if row.file.reason is not None:
            say(f"left to be looked at: {row.path} {row.file.reason}")
    for file in (file for one in pruned for file in one.held):
        say(f"{file.name} stays, because {' and '.join(file.links)} points to it")
    for file in (file for one in pruned for file in one.refused):
        say(f"error: {file.name} {file.reason}")
    if kept and not any(row.file.state is State.VERIFIED for row in kept):
        say("error: none of them verifies, so none was removed")


def _is_done(one: Pruned) -> bool:
    has_good = any(file.state is State.VERIFIED for file in one.kept)
    return not one.refused and (has_good or not one.kept)
