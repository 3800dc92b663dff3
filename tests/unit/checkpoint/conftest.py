"""A run's directory with a checkpoint folder in it, and states to save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.inventory import CheckpointFile, RankFolder, find_folders, list_files
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.state import build_state
from harness.run.directory import RunDirectory
from harness.run.manifest import RunFacts
from harness.run.manifest_file import ManifestFile

RUN_FIELDS: dict[str, int | str] = {"run_name": "foo", "rank": 0, "world_size": 1}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    claimed = RunDirectory.claim(tmp_path / "runs", "foo")
    yield claimed
    claimed.release()


@pytest.fixture
def open_folder(directory: RunDirectory) -> Callable[..., CheckpointFolder]:
    """Makes the run's checkpoint folder, with other templates if asked."""

    def make(
        filename: str = "ep{epoch}-ba{batch}-rank{rank}.pt",
        latest: str | None = "latest-rank{rank}.pt",
        rank: int = 0,
    ) -> CheckpointFolder:
        paths = CheckpointPaths.compile(folder="{run_name}/checkpoints", filename=filename, latest=latest, world_size=1)
        return CheckpointFolder(paths, directory.resolve, {**RUN_FIELDS, "rank": rank})

    return make


@pytest.fixture
def folder(open_folder: Callable[..., CheckpointFolder]) -> CheckpointFolder:
    return open_folder()


@pytest.fixture
def make_state() -> Callable[..., dict[str, Any]]:
    """A small state of a step; its tensor holds the step's number."""

    def make(step: int, run_name: str = "foo", rank: int = 0, numel: int = 64) -> dict[str, Any]:
        return build_state(
            run_name=run_name,
            rank=rank,
            attempt=0,
            timestamp={"epoch": step // 10, "batch": step},
            state={"model": {"weight": torch.full((numel,), float(step))}},
            position={"batch_in_epoch": 0, "start": None},
        )

    return make


@pytest.fixture
def manifest(directory: RunDirectory) -> ManifestFile:
    """The run's `run.json`."""
    facts = RunFacts(run_name="foo", name_source="run_name", argv=["train"], pid=1, host="here")
    return ManifestFile.start(directory.manifest_path, facts)


@pytest.fixture
def look(directory: RunDirectory, manifest: ManifestFile) -> Callable[..., tuple[RankFolder, list[CheckpointFile]]]:
    """Lists the run's only folder with checkpoints, as a command does that knows no templates."""

    def find(*, is_alive: bool = False) -> tuple[RankFolder, list[CheckpointFile]]:
        (found,) = find_folders(directory, manifest.snapshot())
        return found, list_files(found, lambda: is_alive)

    return find
