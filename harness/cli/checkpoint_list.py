"""The checkpoints of a run as a table or a JSON document, read without touching the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import click

from harness.checkpoint.inventory import BAD, CheckpointFile, RankFolder, find_folders, list_files, resume_choice
from harness.cli.run_files import find_run
from harness.cli.table import Column, render_table
from harness.cli.terminal import say, write_json, write_lines
from harness.run.directory import RunDirectory
from harness.units import format_bytes

_METRIC = Column(title="metric")
"""What the best are chosen by."""
_COLUMNS = (
    Column(title="file"),
    Column(title="step", right=True),
    Column(title="epoch", right=True),
    Column(title="size", right=True),
    Column(title="saved (UTC)"),
    Column(title="state"),
    _METRIC,
    Column(title="note"),
)
CHECK_FAILED = 1
_PROGRESS_S = 2.0
_LOOKS = 20
"""How often a folder is looked at anew whose checkpoints were all rotated away while they were read."""


@dataclass(frozen=True, slots=True)
class Row:
    """A checkpoint and where it is."""

    directory: RunDirectory
    """The run's."""
    folder: RankFolder
    """The folder."""
    file: CheckpointFile
    """The file in it."""
    is_next: bool = False
    """Whether a resumed run goes on from it."""

    @property
    def path(self) -> str:
        """Relative to the run directory."""
        return self.directory.relative(self.folder.path / self.file.name)

    def cells(self) -> Sequence[str]:
        """The line of the table."""
        file = self.file
        marks = {
            "weights only": file.entry is not None and file.entry.weights_only,
            "resume": self.is_next,
            f"it {file.reason}": file.reason is not None,
        }
        notes = [*file.links, *(mark for mark, is_so in marks.items() if is_so)]
        return (
            self.path,
            "-" if file.step is None else str(file.step),
            "-" if file.epoch is None else str(file.epoch),
            format_bytes(file.size_bytes),
            "-" if file.entry is None else file.entry.saved.replace("T", " ")[:19],
            file.state,
            self._metric(),
            ", ".join(notes),
        )

    def _metric(self) -> str:
        entry = self.file.entry
        return "" if entry is None or entry.value is None else f"{entry.metric} {entry.value:.6g}"

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        file = self.file
        return {
            "path": self.path,
            "rank": self.folder.rank,
            "step": file.step,
            "epoch": file.epoch,
            "size_bytes": file.size_bytes,
            "crc32c": None if file.entry is None else file.entry.crc32c,
            "saved": None if file.entry is None else file.entry.saved,
            "metric": None if file.entry is None else file.entry.metric,
            "value": None if file.entry is None else file.entry.value,
            "weights_only": None if file.entry is None else file.entry.weights_only,
            "state": file.state.value,
            "reason": file.reason,
            "links": list(file.links),
            "resume": self.is_next,
        }


class ReadingProgress:
    """Says every few seconds how much has been read, so that a long reading does not look like a hang.

    Args:
        files: What is going to be read, or may be.
    """

    def __init__(self, files: Iterable[CheckpointFile]) -> None:
        sizes = [file.size_bytes for file in files]
        self._total = f"of {len(sizes)} checkpoints, %s of {format_bytes(sum(sizes))}"
        self._num_read = 0
        self._read_bytes = 0
        self._said_s = time.monotonic()

    def count(self, file: CheckpointFile) -> None:
        """One more was read."""
        self._num_read += 1
        self._read_bytes += file.size_bytes
        if time.monotonic() - self._said_s >= _PROGRESS_S:
            self._said_s = time.monotonic()
            say(f"read {self._num_read} {self._total % format_bytes(self._read_bytes)}")


def list_checkpoints(root: Path, run_name: str, *, verify: bool, as_json: bool) -> None:
    """Print the checkpoints of a run, newest first. Ends with code 1 if they are verified and one is damaged.

    Raises:
        RunDirError: There is no such run, or its `run.json` cannot be read.
        CheckpointError: A folder cannot be read.
    """
    directory, manifest = find_run(root, run_name)
    read = _read_verified if verify else list_files
    rows = [
        row
        for folder in find_folders(directory, manifest)
        for row in make_rows(directory, folder, read(folder, directory.is_alive))
    ]
    if as_json:
        write_rows_json(directory, {"checkpoints": rows})
    elif rows:
        write_lines(_table(rows))
    if not rows:
        say_none(run_name)
    damaged = [row for row in rows if row.file.state in BAD]
    if verify and damaged:
        say(f"error: damaged: {len(damaged)} of {len(rows)} checkpoints; a resumed run passes them over")
        click.get_current_context().exit(CHECK_FAILED)


def _read_verified(folder: RankFolder, is_alive: Callable[[], bool]) -> list[CheckpointFile]:
    # before the listing: a run that saves often has rotated all of it away by the time this is imported
    from harness.checkpoint.verify import verify_files

    for _ in range(_LOOKS):
        files = list_files(folder, is_alive)
        verified = verify_files(folder, files, ReadingProgress(files).count)
        if verified or not files:
            break
    return verified


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the table; the metric has a column where one was noted."""
    cells = [row.cells() for row in rows]
    shown = [any(row[place] for row in cells) or column != _METRIC for place, column in enumerate(_COLUMNS)]
    return render_table(list(compress(_COLUMNS, shown)), (list(compress(row, shown)) for row in cells))


def make_rows(directory: RunDirectory, folder: RankFolder, files: Sequence[CheckpointFile]) -> list[Row]:
    """The rows of a folder, newest first."""
    choice = resume_choice(files)
    return [Row(directory, folder, file, is_next=file is choice) for file in reversed(files)]


def write_rows_json(directory: RunDirectory, rows: dict[str, list[Row]]) -> None:
    """Print lists of rows as one JSON document."""
    documents = {name: [row.document() for row in some] for name, some in rows.items()}
    write_json({"run_name": directory.run_name, "directory": str(directory.path), **documents})


def say_none(run_name: str) -> None:
    """Say that there is nothing."""
    say(f"run {run_name} has no checkpoints; harness train saves them unless told --save-interval none")
