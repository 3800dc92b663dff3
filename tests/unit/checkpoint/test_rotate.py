from __future__ import annotations

from pathlib import Path

import pytest

from harness.checkpoint.index import IndexEntry
from harness.checkpoint.paths import CheckpointFolder, StoredFile
from harness.checkpoint.rotate import clean_leftovers, remove, superseded


def entry(step: int, size_bytes: int = 10) -> IndexEntry:
    return IndexEntry(size_bytes=size_bytes, crc32c="00000000", step=step, epoch=0, saved="")


def file(step: int, size_bytes: int = 10) -> StoredFile:
    return StoredFile(name=f"ba{step}", size_bytes=size_bytes, step=step)


def rotated(stored: list[StoredFile], listed: dict[int, int], saved: int, keep: int) -> list[str]:
    index = {f"ba{step}": entry(step, size) for step, size in listed.items()}
    return superseded(stored, index, saved_name=f"ba{saved}", keep=keep)


ALL = {1: 10, 2: 10, 3: 10, 4: 10}


@pytest.mark.parametrize(
    ("keep", "gone"),
    [(-1, []), (1, ["ba1", "ba2", "ba3"]), (2, ["ba1", "ba2"]), (3, ["ba1"]), (4, []), (9, [])],
)
def test_the_newest_stay(keep: int, gone: list[str]) -> None:
    assert rotated([file(step) for step in ALL], ALL, saved=4, keep=keep) == gone


def test_steps_are_numbers_and_no_texts() -> None:
    assert rotated([file(9), file(10), file(100)], {9: 10, 10: 10, 100: 10}, saved=100, keep=2) == ["ba9"]


def test_a_torn_file_does_not_count_and_is_left_to_be_looked_at() -> None:
    stored = [file(1), file(2), file(3, size_bytes=4), file(4)]
    assert rotated(stored, ALL, saved=4, keep=2) == ["ba1"]


def test_files_of_later_steps_are_left_alone_and_do_not_count() -> None:
    stored = [file(step) for step in (1, 2, 50)]
    assert rotated(stored, {1: 10, 2: 10, 50: 10}, saved=2, keep=1) == ["ba1"]


def test_a_file_nobody_listed_is_no_reason_to_remove_another() -> None:
    stored = [file(step) for step in (1, 2, 3, 4)]
    assert rotated(stored, {1: 10, 2: 10, 4: 10}, saved=4, keep=2) == ["ba1"]


def test_a_file_nobody_listed_goes_once_enough_good_ones_are_newer() -> None:
    stored = [file(step) for step in (1, 2, 3, 4)]
    assert rotated(stored, {3: 10, 4: 10}, saved=4, keep=2) == ["ba1", "ba2"]
    assert rotated(stored, {4: 10}, saved=4, keep=2) == []


def test_a_file_of_unknown_step_is_left_alone() -> None:
    stored = [StoredFile(name="ep1", size_bytes=10, step=None), file(4)]
    assert rotated(stored, {4: 10}, saved=4, keep=1) == []


def test_a_removed_file_is_gone_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    (tmp_path / "b.pt").touch()
    remove(tmp_path, "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["b.pt"]


def test_leftovers_of_this_run_and_rank_are_removed_and_nothing_else(folder: CheckpointFolder) -> None:
    token = "0123456789abcdef"
    ours = [
        f".ep0-ba3-rank0.pt.{token}.tmp",
        f".ep0-ba3-rank0.pt.{token}.trash",
        f".checkpoints-rank0.json.{token}.tmp",
        f".latest-rank0.pt.{token}.tmp",
    ]
    foreign = [
        f".ep0-ba3-rank1.pt.{token}.tmp",
        f".notes.txt.{token}.tmp",
        f"ep0-ba3-rank0.pt.{token}.tmp",
        ".ep0-ba3-rank0.pt.swp",
        "ep0-ba3-rank0.pt",
    ]
    for name in [*ours[:3], *foreign]:
        (folder.path / name).touch()
    (folder.path / ours[3]).symlink_to("nowhere")
    assert clean_leftovers(folder) == sorted(ours)
    assert sorted(path.name for path in folder.path.iterdir()) == sorted(foreign)
