"""A checkpoint that is good and cannot be read now must not cost the steps since the one before."""

from __future__ import annotations

import os
import resource
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.find import newest_verified
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.save import CheckpointWriter
from harness.run.directory import RunDirectory

NOBODY = 65534
NUMEL = 30_000_000
"""Of a tensor of 120 MB."""


def in_child(job: Callable[[], str]) -> str:
    """What `job` gives in a process of its own, which may give up rights and memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = job()
        except BaseException:
            text = traceback.format_exc()
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def search(folder: CheckpointFolder) -> str:
    try:
        found = newest_verified(folder).found
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"found step {None if found is None else found.step}"


@pytest.fixture
def folder() -> Iterator[CheckpointFolder]:
    """In a folder that other users may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        run = RunDirectory.claim(Path(path) / "runs", "foo")
        paths = CheckpointPaths.compile(folder="{run_name}/checkpoints", filename="ba{batch}.pt", latest=None)
        made = CheckpointFolder(paths, run.resolve, {"run_name": "foo", "rank": 0})
        yield made
        run.release()


@pytest.mark.parametrize("on_the_list", [True, False])
def test_a_file_that_this_user_may_not_read_is_an_error_and_no_older_one_is_taken(
    on_the_list: bool, folder: CheckpointFolder, make_state: Callable[..., Any]
) -> None:
    writer = CheckpointWriter(folder)
    for step in (1, 2):
        writer.save(make_state(step), {"batch": step}).path.chmod(0o644)
    folder.index_path.chmod(0o644)
    if not on_the_list:
        folder.index_path.unlink()
    (folder.path / "ba2.pt").chmod(0)

    def as_nobody() -> str:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return search(folder)

    told = in_child(as_nobody)
    assert told.startswith("UnreadableError: ")
    assert "ba2.pt cannot be read: Permission denied" in told
    assert "hint: make it readable, or move it away" in told
    (folder.path / "ba2.pt").chmod(0o644)
    assert in_child(as_nobody) == "found step 2"


def test_a_good_file_that_the_memory_does_not_hold_is_an_error_and_no_older_one_is_taken(
    folder: CheckpointFolder, make_state: Callable[..., Any]
) -> None:
    writer = CheckpointWriter(folder)
    writer.save(make_state(1), {"batch": 1})
    writer.save(make_state(2, numel=NUMEL), {"batch": 2})
    folder.index_path.unlink()

    def with_little_memory() -> str:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + NUMEL, used_bytes + NUMEL))
        return search(folder)

    told = in_child(with_little_memory)
    assert told.startswith("UnreadableError: ba2.pt cannot be loaded: ")
    assert "memory" in told
    assert in_child(lambda: search(folder)) == "found step 2"
