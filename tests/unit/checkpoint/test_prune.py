from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.find import newest_verified
from harness.checkpoint.index import read_index, write_index
from harness.checkpoint.inventory import CheckpointFile, RankFolder, State
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.prune import Pruned, prune
from harness.checkpoint.save import CheckpointWriter

MakeState = Callable[..., dict[str, Any]]
Look = Callable[..., tuple[RankFolder, list[CheckpointFile]]]


@pytest.fixture
def saved(folder: CheckpointFolder, make_state: MakeState) -> dict[int, Path]:
    writer = CheckpointWriter(folder)
    return {step: writer.save(make_state(step), {"epoch": 0, "batch": step}).path for step in (1, 2, 3, 9, 10)}


def unlist(path: Path) -> None:
    index_path = path.with_name("checkpoints-rank0.json")
    write_index(index_path, {name: entry for name, entry in read_index(index_path).items() if name != path.name})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def steps(files: tuple[CheckpointFile, ...]) -> list[int | None]:
    return [file.step for file in files]


def keep(look: Look, num: int, **options: Any) -> Pruned:
    folder, files = look()
    return prune(folder, files, keep=num, **options)


@pytest.mark.parametrize(("num", "removed"), [(1, [1, 2, 3, 9]), (3, [1, 2]), (5, []), (99, [])])
def test_the_newest_stay_and_the_side_manifest_follows(
    num: int, removed: list[int], saved: dict[int, Path], look: Look, folder: CheckpointFolder
) -> None:
    pruned = keep(look, num)
    left = [step for step in saved if step not in removed]
    assert (steps(pruned.removed), steps(pruned.kept)) == (removed, left)
    assert [step for step, path in saved.items() if path.exists()] == left
    assert list(read_index(folder.index_path)) == [saved[step].name for step in left]
    assert not any(path.name.startswith(".") for path in folder.path.iterdir())


def test_only_as_many_are_read_as_have_to_be_good(saved: dict[int, Path], look: Look) -> None:
    read: list[CheckpointFile] = []
    keep(look, 2, on_read=read.append)
    assert [file.step for file in read] == [10, 9]


def test_a_damaged_one_does_not_count_and_is_left_to_be_looked_at(saved: dict[int, Path], look: Look) -> None:
    flip(saved[9])
    pruned = keep(look, 2)
    assert (steps(pruned.removed), steps(pruned.kept)) == ([1, 2], [3, 9, 10])
    assert pruned.kept[1].state is State.DAMAGED


def test_where_the_newest_is_damaged_the_newest_good_one_stays(
    saved: dict[int, Path], look: Look, folder: CheckpointFolder
) -> None:
    flip(saved[10])
    flip(saved[9])
    pruned = keep(look, 1)
    assert (steps(pruned.removed), steps(pruned.kept)) == ([1, 2], [3, 9, 10])
    found = newest_verified(folder).found
    assert found is not None
    assert found.step == 3


def test_where_none_verifies_nothing_is_removed(saved: dict[int, Path], look: Look) -> None:
    for path in saved.values():
        flip(path)
    pruned = keep(look, 1)
    assert (steps(pruned.removed), len(pruned.kept)) == ([], 5)
    assert all(path.exists() for path in saved.values())


def test_one_that_nobody_listed_is_no_reason_to_remove_another(saved: dict[int, Path], look: Look) -> None:
    unlist(saved[10])
    unlist(saved[2])
    pruned = keep(look, 2)
    assert (steps(pruned.removed), steps(pruned.kept)) == ([1, 2], [3, 9, 10])


def test_foreign_files_stay(saved: dict[int, Path], look: Look, folder: CheckpointFolder) -> None:
    foreign = [folder.path / name for name in ("notes.txt", "ep0-ba1-rank1.pt", "ep0-ba1-rank0.pt.bak")]
    for path in foreign:
        path.write_bytes(b"x")
    keep(look, 1)
    assert all(path.exists() for path in foreign)


def test_what_a_link_points_to_stays_and_is_told(saved: dict[int, Path], look: Look, folder: CheckpointFolder) -> None:
    (folder.path / "best.pt").symlink_to(saved[2].name)
    pruned = keep(look, 1)
    assert (steps(pruned.removed), steps(pruned.kept), steps(pruned.held)) == ([1, 3, 9], [2, 10], [2])


def test_lines_without_a_file_are_taken_off_the_side_manifest(
    saved: dict[int, Path], look: Look, folder: CheckpointFolder
) -> None:
    saved[3].unlink()
    pruned = keep(look, 9)
    assert (steps(pruned.removed), steps(pruned.kept)) == ([], [1, 2, 9, 10])
    assert saved[3].name not in read_index(folder.index_path)
