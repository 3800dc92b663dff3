from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RunDirError
from harness.run.directory import RunDirectory
from harness.run.durable import temporary_path
from harness.run.manifest import RunFacts, read_listing, read_manifest
from harness.run.manifest_file import ManifestFile, iso_time


class Clock:
    """Counts up by one second and one millisecond at each look."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * 10**9

    def __call__(self) -> int:
        self.now_ns += 1_001_000_000
        return self.now_ns


def facts(**changes: Any) -> RunFacts:
    values: dict[str, Any] = {
        "run_name": "foo",
        "name_source": "run_name",
        "argv": ["harness", "train", "foo", "--api-key", "hunter2"],
        "pid": 42,
        "host": "node1",
        "cwd": "/home/me",
        "config": {"lr": 0.1, "wandb": {"api_key": "hunter2"}},
        "recipe": {"schedule": {"active": 2}},
        "versions": {"python": "3.11", "numpy": None},
        "git": {"commit": "abc", "dirty": True},
        "device": "cpu",
    }
    return RunFacts(**{**values, **changes})


def start(folder: Path, **changes: Any) -> ManifestFile:
    return ManifestFile.start(folder / "run.json", facts(), unix_ns=Clock(), **changes)


def test_times_are_iso_utc_with_milliseconds() -> None:
    assert iso_time(0) == "1970-01-01T00:00:00.000Z"
    assert iso_time(1_763_923_387_123_999_999) == "2025-11-23T18:43:07.123Z"


def test_a_start_is_on_disk_at_once_for_people_and_without_secrets(tmp_path: Path) -> None:
    start(tmp_path)
    text = (tmp_path / "run.json").read_text()
    assert "hunter2" not in text
    assert text.startswith('{\n  "format": 1,\n  "run_name": "foo",\n')
    manifest = json.loads(text)
    assert manifest["status"] == "running"
    assert manifest["git"] == {"commit": "abc", "dirty": True}
    assert manifest["config"]["lr"] == 0.1
    (attempt,) = manifest["attempts"]
    assert attempt["number"] == 1
    assert attempt["argv"][:4] == ["harness", "train", "foo", "--api-key"]
    assert attempt["started"] == "2023-11-14T22:13:21.001Z"
    assert attempt["ended"] is None


def test_an_attempt_that_ended_has_its_steps_status_and_error(tmp_path: Path) -> None:
    manifest = start(tmp_path)
    manifest.set_progress(1, 0)
    manifest.set_progress(30, 2)
    manifest.end_attempt("failed", "ValueError: boom")
    read = read_manifest(tmp_path / "run.json")
    assert (read.status, read.summary.step, read.summary.epoch) == ("failed", 30, 2)
    (attempt,) = read.attempts
    assert (attempt.first_step, attempt.last_step) == (1, 30)
    assert (attempt.status, attempt.error) == ("failed", "ValueError: boom")
    assert attempt.ended == read.summary.ended == "2023-11-14T22:13:22.002Z"


def test_an_attempt_without_a_step_has_no_first_one(tmp_path: Path) -> None:
    manifest = start(tmp_path)
    manifest.set_progress(0, 0)
    manifest.end_attempt("finished")
    (attempt,) = read_manifest(tmp_path / "run.json").attempts
    assert (attempt.first_step, attempt.last_step) == (None, None)


def test_a_resumed_run_keeps_its_attempts_and_marks_the_killed_one(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.set_progress(57, 1)
    first.save()
    second = ManifestFile.start(tmp_path / "run.json", facts(pid=43), resumed=True, unix_ns=Clock())
    assert second.attempt == 2
    second.set_resumed_from_step(50)
    assert second.snapshot().summary.step == 50
    second.set_progress(51, 1)
    second.set_progress(60, 2)
    second.end_attempt("finished")
    read = read_manifest(tmp_path / "run.json")
    killed, last = read.attempts
    assert (killed.status, killed.ended, killed.last_step) == ("crashed", None, 57)
    assert (last.pid, last.resumed_from_step, last.first_step, last.last_step) == (43, 50, 51, 60)
    assert (read.status, read.summary.step) == ("finished", 60)


@pytest.mark.parametrize("resumed", [True, False])
def test_a_start_removes_the_manifest_that_a_kill_left_half_written(tmp_path: Path, resumed: bool) -> None:
    if resumed:
        start(tmp_path)
    temporary_path(tmp_path / "run.json").write_bytes(b"{")
    ManifestFile.start(tmp_path / "run.json", facts(), resumed=resumed)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_resuming_a_manifest_that_cannot_be_read_is_an_error_and_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirError, match="no manifest"):
        start(tmp_path, resumed=True)
    assert (tmp_path / "run.json").read_text() == "{"


def test_artifacts_are_listed_once_counted_by_kind_and_can_go(tmp_path: Path) -> None:
    manifest = start(tmp_path)
    manifest.add_artifact("trace", "traces/a", size_bytes=1, step=12)
    manifest.add_artifact("checkpoint", "checkpoints/a", size_bytes=1, step=10, crc32c="0000000a")
    manifest.add_artifact("checkpoint", "checkpoints/b", size_bytes=1, step=20)
    manifest.add_artifact("checkpoint", "checkpoints/b", size_bytes=2, step=20)
    assert manifest.remove_artifact("checkpoints/a")
    assert not manifest.remove_artifact("checkpoints/a")
    manifest.save()
    read = read_manifest(tmp_path / "run.json")
    assert [(known.path, known.size_bytes) for known in read.artifacts] == [
        ("traces/a", 1),
        ("checkpoints/b", 2),
    ]
    assert (read.summary.traces, read.summary.checkpoints) == (1, 1)


def test_numbers_that_are_not_finite_and_odd_objects_leave_the_file_valid(tmp_path: Path) -> None:
    import numpy as np

    @dataclass
    class Health:
        errors: int

    manifest = start(tmp_path)
    manifest.set_own_cost({"loggers": float("inf"), "n": np.float32(0.5)}, own_cost_pct=float("nan"))
    manifest.set_health({"jsonl": Health(3), "path": tmp_path})
    manifest.set_step_times(median_step_us=183.25, p95_step_us=None)
    manifest.save()
    read = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert read["own_cost"] == {"loggers": None, "n": 0.5}
    assert read["health"] == {"jsonl": {"errors": 3}, "path": str(tmp_path)}
    assert read["summary"]["own_cost_pct"] is None
    listing = read_listing(tmp_path / "run.json")
    assert listing is not None
    assert (listing.median_step_us, listing.p95_step_us, listing.own_cost_pct) == (183.25, None, None)


def test_a_full_disk_in_the_middle_is_kept_told_once_and_forgotten_when_it_has_space(
    tmp_path: Path, file_size_limit: Callable[[int | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    manifest = start(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    manifest.set_progress(7, 0)
    file_size_limit(100)
    with caplog.at_level(logging.WARNING):
        assert not manifest.save()
        assert not manifest.save(durable=True)
    file_size_limit(None)
    assert len(caplog.records) == 1
    assert "File too large" in str(manifest.last_save_error)
    assert (tmp_path / "run.json").read_bytes() == before
    assert manifest.save()
    assert manifest.last_save_error is None
    assert read_manifest(tmp_path / "run.json").summary.step == 7


def test_a_full_disk_at_the_start_and_the_end_is_an_error(
    tmp_path: Path, file_size_limit: Callable[[int | None], None]
) -> None:
    file_size_limit(100)
    with pytest.raises(RunDirError, match="cannot write"):
        start(tmp_path)
    assert list(tmp_path.iterdir()) == []
    file_size_limit(None)
    manifest = start(tmp_path)
    file_size_limit(100)
    with pytest.raises(RunDirError, match="cannot write"):
        manifest.end_attempt("finished")
    file_size_limit(None)
    manifest.end_attempt("finished")  # it can be tried again
    assert read_manifest(tmp_path / "run.json").status == "finished"


@pytest.mark.parametrize("remade", [False, True], ids=["gone", "another run in its place"])
def test_a_run_directory_that_was_moved_gets_nothing_and_nothing_else_does(tmp_path: Path, remade: bool) -> None:
    run = RunDirectory.claim(tmp_path, "foo")
    manifest = start(run.path, guard=run.check_in_place)
    before = (run.path / "run.json").read_bytes()
    run.path.rename(tmp_path / "moved")
    other = RunDirectory.claim(tmp_path, "foo") if remade else None
    manifest.set_progress(5, 0)
    with pytest.raises(RunDirError, match="removed, renamed or replaced"):
        manifest.save()
    with pytest.raises(RunDirError, match="removed, renamed or replaced"):
        manifest.end_attempt("finished")
    assert (tmp_path / "moved" / "run.json").read_bytes() == before
    if other is None:
        assert not run.path.exists()
    else:
        assert [path.name for path in other.path.iterdir()] == [".lock"]
        other.release()
    (tmp_path / "foo").rename(tmp_path / "elsewhere") if remade else None
    (tmp_path / "moved").rename(tmp_path / "foo")
    manifest.end_attempt("finished")  # put back, it goes on
    run.release()


def test_a_removed_directory_is_an_error_without_a_guard_too(tmp_path: Path) -> None:
    (tmp_path / "foo").mkdir()
    manifest = start(tmp_path / "foo")
    (tmp_path / "foo").rename(tmp_path / "bar")
    with pytest.raises(RunDirError, match="cannot write"):
        manifest.save()
    assert not (tmp_path / "foo").exists()


def test_threads_that_change_and_save_leave_a_whole_file_with_everything(tmp_path: Path) -> None:
    manifest = start(tmp_path)
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(read_manifest(tmp_path / "run.json").artifacts))

    def add(name: str) -> None:
        for number in range(50):
            manifest.add_artifact("trace", f"{name}{number}", size_bytes=1)
            manifest.save()

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert read_manifest(tmp_path / "run.json").summary.traces == 150
    assert seen == sorted(seen)  # no save put an older manifest over a newer one
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_forked_child_saves_nothing(tmp_path: Path) -> None:
    manifest = start(tmp_path)
    before = (tmp_path / "run.json").stat()
    pid = os.fork()
    if pid == 0:
        with manifest._saving:  # as when another thread was in a save at the moment of the fork
            manifest.save()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.path.samestat(before, (tmp_path / "run.json").stat())
