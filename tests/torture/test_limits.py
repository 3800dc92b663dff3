"""Limits of the process that are reached while it trains, and processes that end before a save has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evidence import Evidence, complaints_after_kill, complaints_at_end, look
from nursery import Nursery

DURATION = "16ba"
TrainWhole = Callable[[str], Evidence]


@pytest.mark.parametrize(
    ("limit", "words", "hint"),
    [
        ({"name": "RLIMIT_FSIZE", "more": 100_000}, "File too large", "ulimit -f"),
        ({"name": "RLIMIT_NOFILE", "more": 0}, "Too many open files", "ulimit -n"),
    ],
    ids=["file_size", "open_files"],
)
def test_a_limit_that_is_reached_is_told_and_the_run_goes_on_when_it_is_lifted(
    limit: dict[str, object], words: str, hint: str, nursery: Nursery, tmp_path: Path, train_whole: TrainWhole
) -> None:
    ended = nursery.run("train", tmp_path, max_duration=DURATION, limit={**limit, "after": 9})
    assert ended.code == 3, ended.stderr
    assert words in ended.stderr
    assert hint in ended.stderr
    assert "Traceback" not in ended.stderr
    evidence = look(tmp_path)
    assert complaints_after_kill(evidence) == []
    assert evidence.temporary == []
    assert (evidence.found, evidence.num_good) == (8, 2)
    ended = nursery.run("train", tmp_path, max_duration=DURATION, resume=True)
    assert ended.code == 0, ended.stderr
    assert complaints_at_end(look(tmp_path), train_whole(DURATION)) == []


@pytest.fixture
def small_group(tmp_path: Path) -> Iterator[Path]:
    """A control group with little memory; needs root."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent) / f"harness-torture-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(64 << 20))
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no control group can be made here (needs root and cgroups)")


def test_a_process_that_the_oom_killer_ends_goes_on_from_its_last_checkpoint(
    small_group: Path, nursery: Nursery, tmp_path: Path, train_whole: TrainWhole
) -> None:
    ended = nursery.run("train", tmp_path, max_duration=DURATION, use_up_memory={"group": small_group, "after": 9})
    assert ended.killed
    evidence = look(tmp_path)
    assert complaints_after_kill(evidence) == []
    assert evidence.status == "crashed"
    assert evidence.found in (4, 8)  # the save of step 8 may have been under way
    assert nursery.run("train", tmp_path, max_duration=DURATION, resume=True).code == 0
    assert complaints_at_end(look(tmp_path), train_whole(DURATION)) == []


@pytest.mark.parametrize("how", ["exit", "os._exit"])
def test_a_process_that_ends_without_leaving_its_session_has_saved_what_it_waited_for(
    how: str, nursery: Nursery, tmp_path: Path
) -> None:
    ended = nursery.run("save_and_leave", tmp_path, how=how)
    assert ended.code == 0, ended.stderr
    evidence = look(tmp_path)
    assert complaints_after_kill(evidence) == []
    assert evidence.found == 3
    assert evidence.temporary == []
