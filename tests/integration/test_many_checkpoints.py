"""A thousand checkpoints in a folder: a save takes what it takes with three, and rotation reads none of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.find import newest_verified
from harness.checkpoint.index import IndexEntry, read_index, write_index
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import build_state
from harness.run.directory import RunDirectory

NUM_FILES = 1_000
NUM_SAVES = 20
KEEP = 3
MAX_EXTRA_MS = 20.0
"""CPU time that a save may take more for a thousand files: their names, and a list of 150 kB read and written."""

_opened: list[str] | None = None


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], (str, bytes, Path)):
        _opened.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def _audit() -> None:
    sys.addaudithook(_on_event)  # there is no way to take it away: it does nothing outside of `opened_files`


@pytest.fixture
def opened_files() -> Iterator[Callable[[Callable[[], Any]], list[str]]]:
    """Gives the names of all files that are opened while something is done."""
    global _opened

    def watch(action: Callable[[], Any]) -> list[str]:
        global _opened
        _opened = []
        try:
            action()
            return [Path(name).name for name in _opened]
        finally:
            _opened = None

    yield watch
    _opened = None


def state_of(step: int) -> dict[str, Any]:
    return build_state(
        run_name="foo",
        rank=0,
        attempt=1,
        timestamp={"epoch": 0, "batch": step},
        state={"model": {"weight": torch.full((100,), float(step))}},
        position={"batch_in_epoch": 0, "start": None},
        rng={},
    )


def save(writer: CheckpointWriter, step: int) -> Any:
    return writer.save(state_of(step), {"batch": step})


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Callable[[str], CheckpointFolder]]:
    runs = []

    def make(name: str) -> CheckpointFolder:
        run = RunDirectory.claim(tmp_path / name, "foo")
        runs.append(run)
        paths = CheckpointPaths.compile(folder="{run_name}/checkpoints", filename="ba{batch}.pt", latest="latest.pt")
        return CheckpointFolder(paths, run.resolve, {"run_name": "foo", "rank": 0})

    yield make
    for run in runs:
        run.release()


def fill(folder: CheckpointFolder, steps: range) -> None:
    """Checkpoints of these steps, all with the bytes of one: none of them may be looked at."""
    saved = save(CheckpointWriter(folder), steps[0])
    data = saved.path.read_bytes()
    entry = read_index(folder.index_path)[saved.path.name]
    entries = {}
    for step in steps:
        name = f"ba{step}.pt"
        (folder.path / name).write_bytes(data)
        entries[name] = IndexEntry(
            size_bytes=entry.size_bytes, crc32c=entry.crc32c, step=step, epoch=0, saved=entry.saved
        )
    write_index(folder.index_path, entries)


def test_rotation_removes_a_thousand_files_and_reads_none(
    open_run: Callable[[str], CheckpointFolder], opened_files: Callable[..., list[str]]
) -> None:
    folder = open_run("runs")
    fill(folder, range(1, NUM_FILES + 1))
    writer = CheckpointWriter(folder, keep=KEEP)
    opened = opened_files(lambda: save(writer, NUM_FILES + 1))
    left = sorted(path.name for path in folder.path.glob("ba*.pt"))
    assert left == sorted(f"ba{step}.pt" for step in range(NUM_FILES - 1, NUM_FILES + 2))
    assert set(read_index(folder.index_path)) == set(left)
    assert not [name for name in opened if name.startswith("ba")]
    search = newest_verified(folder)
    assert search.found is not None and search.found.step == NUM_FILES + 1


def test_a_save_beside_a_thousand_that_stay_costs_what_one_beside_three_does(
    open_run: Callable[[str], CheckpointFolder], opened_files: Callable[..., list[str]]
) -> None:
    """They are of later steps, from before the run was taken back: rotation leaves them alone."""
    few, many = open_run("few"), open_run("many")
    fill(few, range(5_000, 5_000 + KEEP))
    fill(many, range(5_000, 5_000 + NUM_FILES))
    writers = {folder: CheckpointWriter(folder, keep=KEEP) for folder in (few, many)}
    spent_ms: dict[CheckpointFolder, list[float]] = {few: [], many: []}
    opened: dict[CheckpointFolder, list[int]] = {few: [], many: []}
    for step in range(1, NUM_SAVES + 1):
        for folder, writer in writers.items():
            began = time.process_time()
            opened[folder].append(len(opened_files(lambda writer=writer, step=step: save(writer, step))))
            spent_ms[folder].append((time.process_time() - began) * 1e3)
    assert opened[many] == opened[few]
    for folder in (few, many):
        assert len([path for path in folder.path.glob("ba*.pt") if len(path.name) < len("ba5000.pt")]) == KEEP
    median = {folder: sorted(spent)[NUM_SAVES // 2] for folder, spent in spent_ms.items()}
    print(f"CPU of a save: {median[few]:.1f} ms beside {KEEP}, {median[many]:.1f} ms beside {NUM_FILES}")
    assert median[many] - median[few] < MAX_EXTRA_MS
    halves = spent_ms[many][: NUM_SAVES // 2], spent_ms[many][NUM_SAVES // 2 :]
    assert min(halves[1]) < 2 * min(halves[0]), "saves become dearer one after the other"
