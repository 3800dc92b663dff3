from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.find import newest_verified
from harness.checkpoint.index import IndexEntry, read_index, write_index
from harness.checkpoint.inventory import CheckpointFile, RankFolder, State, find_folders, list_files, resume_choice
from harness.checkpoint.mend import set_aside
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.save import CheckpointWriter
from harness.run.directory import RunDirectory
from harness.run.manifest_file import ManifestFile

MakeState = Callable[..., dict[str, Any]]
Look = Callable[..., tuple[RankFolder, list[CheckpointFile]]]


def save(folder: CheckpointFolder, make_state: MakeState, *steps: int) -> list[Path]:
    writer = CheckpointWriter(folder)
    return [writer.save(make_state(step), {"epoch": step // 10, "batch": step}).path for step in steps]


def unlist(folder: CheckpointFolder, *names: str) -> None:
    index = read_index(folder.index_path)
    write_index(folder.index_path, {name: entry for name, entry in index.items() if name not in names})


def states(files: list[CheckpointFile]) -> dict[int | None, State]:
    return {file.step: file.state for file in files}


def choice(files: list[CheckpointFile]) -> int | None:
    chosen = resume_choice(files)
    return None if chosen is None else chosen.step


def test_saved_ones_are_listed_by_step_with_what_is_known(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    saved = save(folder, make_state, 2, 10, 1)
    found, files = look()
    assert (found.path, found.rank) == (folder.path, 0)
    assert [(file.step, file.epoch, file.state) for file in files] == [
        (1, 0, State.LISTED),
        (2, 0, State.LISTED),
        (10, 1, State.LISTED),
    ]
    assert [file.size_bytes for file in files] == [saved[n].stat().st_size for n in (2, 0, 1)]
    assert {file.step: file.links for file in files} == {1: ("latest-rank0.pt",), 2: (), 10: ()}
    assert choice(files) == 10


def test_foreign_and_unfinished_files_are_not_listed(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    (path,) = save(folder, make_state, 1)
    for name in ("notes.txt", "ep0-ba2-rank1.pt", f".{path.name}.0123456789abcdef.tmp", "ep0-ba1-rank0.pt.bak"):
        (folder.path / name).write_bytes(b"x")
    (folder.path / "ep0-ba3-rank0.pt").mkdir()
    assert [file.name for file in look()[1]] == [path.name]


def test_one_that_nobody_listed_is_there_and_may_be_resumed_from(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    paths = save(folder, make_state, 1, 2)
    unlist(folder, paths[1].name)
    files = look()[1]
    assert states(files) == {1: State.LISTED, 2: State.NOT_LISTED}
    assert choice(files) == 2


def test_before_anything_is_listed_the_usual_folder_is_looked_into(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    save(folder, make_state, 1)
    folder.index_path.unlink()
    assert states(look()[1]) == {1: State.NOT_LISTED}


@pytest.mark.parametrize("filename", ["model_{batch:06d}.pt", "{run_name}+{epoch}+{batch}.ckpt"])
def test_names_of_another_template_are_known_by_those_that_are_listed(
    filename: str, open_folder: Callable[..., CheckpointFolder], make_state: MakeState, look: Look
) -> None:
    folder = open_folder(filename=filename)
    paths = save(folder, make_state, 1, 20)
    unlist(folder, paths[1].name)
    (folder.path / "model.pt").write_bytes(b"x")
    files = look()[1]
    assert {file.name: file.state for file in files} == {paths[0].name: State.LISTED, paths[1].name: State.NOT_LISTED}
    assert choice(files) == 1, "the step of the other is not known before it is read"


def test_the_manifest_tells_folder_and_step_where_the_side_manifest_is_gone(
    directory: RunDirectory, manifest: ManifestFile, look: Look
) -> None:
    path = directory.resolve("foo/deep/er/mine.pt")
    path.write_bytes(b"x")
    manifest.add_artifact("checkpoint", "deep/er/mine.pt", size_bytes=1, step=7)
    manifest.add_artifact("checkpoint", "../bar/other.pt", size_bytes=1, step=7)
    found, files = look()
    assert found.path == path.parent
    assert states(files) == {7: State.NOT_LISTED}


def test_each_rank_has_its_own(
    open_folder: Callable[..., CheckpointFolder], make_state: MakeState, directory: RunDirectory, manifest: ManifestFile
) -> None:
    for rank in (0, 1):
        folder = open_folder(rank=rank)
        CheckpointWriter(folder).save(make_state(3, rank=rank), {"epoch": 0, "batch": 3})
        CheckpointWriter(folder).save(make_state(4, rank=rank), {"epoch": 0, "batch": 4})
        unlist(folder, f"ep0-ba4-rank{rank}.pt")
    folders = find_folders(directory, manifest.snapshot())
    assert [(folder.rank, folder.alone) for folder in folders] == [(0, False), (1, False)]
    names = [[file.name for file in list_files(folder, lambda: False)] for folder in folders]
    assert names == [[f"ep0-ba{step}-rank{rank}.pt" for step in (3, 4)] for rank in (0, 1)]


def test_a_torn_one_is_told_and_the_one_before_it_is_next(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    paths = save(folder, make_state, 1, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    files = look()[1]
    assert states(files) == {1: State.LISTED, 2: State.WRONG_SIZE}
    assert "100 bytes" in str(files[1].reason)
    assert choice(files) == 1


def test_a_listed_one_without_a_file_is_gone_unless_the_run_is_rotating(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    paths = save(folder, make_state, 1, 2)
    paths[1].unlink()
    files = look()[1]
    assert states(files) == {1: State.LISTED, 2: State.GONE}
    assert files[1].links == ("latest-rank0.pt",)
    assert choice(files) == 1
    assert states(look(is_alive=True)[1]) == {1: State.LISTED}


def test_one_that_was_set_aside_says_under_which_name_it_is_kept(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    paths = save(folder, make_state, 1, 2)
    paths[1].write_bytes(b"torn")
    set_aside(newest_verified(folder).skipped)
    files = look()[1]
    assert states(files) == {1: State.LISTED, 2: State.GONE}
    assert f"kept as {paths[1].name}.damaged" in str(files[1].reason)


def test_a_listed_one_that_became_a_link_is_no_checkpoint(
    folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    paths = save(folder, make_state, 1, 2)
    paths[1].unlink()
    paths[1].symlink_to(paths[0].name)
    files = look()[1]
    assert states(files) == {1: State.LISTED, 2: State.DAMAGED}
    assert choice(files) == 1


def test_a_folder_behind_a_link_is_left_out_with_a_warning(
    directory: RunDirectory, manifest: ManifestFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ep0-ba1-rank0.pt").write_bytes(b"x")
    (directory.path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert find_folders(directory, manifest.snapshot()) == []
    assert "behind a symbolic link" in caplog.text


@pytest.mark.parametrize("damage", ["none", "torn", "unlisted", "gone"])
def test_what_is_called_next_is_what_resuming_finds(
    damage: str, folder: CheckpointFolder, make_state: MakeState, look: Look
) -> None:
    newest = save(folder, make_state, 9, 10, 11)[-1]
    if damage == "torn":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif damage == "unlisted":
        unlist(folder, newest.name)
    elif damage == "gone":
        newest.unlink()
    search = newest_verified(folder)
    assert search.found is not None
    assert choice(look()[1]) == search.found.step


def test_looking_writes_nothing(folder: CheckpointFolder, make_state: MakeState, look: Look) -> None:
    save(folder, make_state, 1, 2)
    before = {path: path.lstat().st_mtime_ns for path in folder.path.parent.rglob("*")}
    look()
    assert {path: path.lstat().st_mtime_ns for path in folder.path.parent.rglob("*")} == before | {
        folder.path.parent / "run.json": (folder.path.parent / "run.json").lstat().st_mtime_ns
    }


def test_a_thousand_are_listed_in_no_time(folder: CheckpointFolder, look: Look) -> None:
    index = {}
    for step in range(1000):
        path = folder.file({"epoch": 0, "batch": step})
        path.write_bytes(b"x" * 10)
        index[path.name] = IndexEntry(size_bytes=10, crc32c="00000000", step=step, epoch=0, saved="")
    write_index(folder.index_path, index)
    look()
    start = time.process_time()
    files = look()[1]
    assert time.process_time() - start < 0.3
    assert len(files) == 1000
