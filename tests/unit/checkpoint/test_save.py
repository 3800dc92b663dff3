from __future__ import annotations

import errno
import json
import os
import re
import resource
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import torch

from harness.checkpoint import checksum, save
from harness.checkpoint.find import load_checkpoint, newest_verified
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.save import CheckpointWriter
from harness.errors import CheckpointError, ConfigError

MakeState = Callable[..., dict[str, Any]]
Limit = Callable[[int], AbstractContextManager[None]]
OpenFolder = Callable[..., CheckpointFolder]


def fields(step: int) -> dict[str, int | str]:
    return {"epoch": step // 10, "batch": step}


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_a_saved_state_is_loaded_as_it_was(folder: CheckpointFolder, make_state: MakeState) -> None:
    state = make_state(12)
    saved = CheckpointWriter(folder).save(state, fields(12))
    assert saved.path == folder.path / "ep1-ba12-rank0.pt"
    assert (saved.step, saved.epoch) == (12, 1)
    loaded = load_checkpoint(saved.path, run_name="foo", rank=0)
    assert torch.equal(loaded["state"]["model"]["weight"], state["state"]["model"]["weight"])
    assert loaded["timestamp"] == state["timestamp"]


def test_size_and_checksum_are_those_of_the_bytes_on_disk(folder: CheckpointFolder, make_state: MakeState) -> None:
    saved = CheckpointWriter(folder).save(make_state(12, numel=300_000), fields(12))
    data = saved.path.read_bytes()
    assert saved.size_bytes == len(data)
    assert saved.crc32c == f"{google_crc32c.value(data):08x}"
    listed = json.loads(folder.index_path.read_text())
    assert set(listed) == {"ep1-ba12-rank0.pt"}
    assert {key: listed["ep1-ba12-rank0.pt"][key] for key in ("size_bytes", "crc32c", "step", "epoch")} == {
        "size_bytes": len(data),
        "crc32c": saved.crc32c,
        "step": 12,
        "epoch": 1,
    }


def test_the_folder_holds_checkpoints_list_and_link_and_nothing_else(
    folder: CheckpointFolder, make_state: MakeState
) -> None:
    writer = CheckpointWriter(folder, keep=2)
    removed = [saved for step in range(1, 5) for saved in writer.save(make_state(step), fields(step)).removed]
    assert names(folder) == ["checkpoints-rank0.json", "ep0-ba3-rank0.pt", "ep0-ba4-rank0.pt", "latest-rank0.pt"]
    assert [path.name for path in removed] == ["ep0-ba1-rank0.pt", "ep0-ba2-rank0.pt"]
    assert (folder.path / "latest-rank0.pt").readlink() == Path("ep0-ba4-rank0.pt")
    assert list(json.loads(folder.index_path.read_text())) == ["ep0-ba3-rank0.pt", "ep0-ba4-rank0.pt"]
    assert stat.S_IMODE((folder.path / "ep0-ba4-rank0.pt").stat().st_mode) == 0o600


def test_keep_one_keeps_the_newest(folder: CheckpointFolder, make_state: MakeState) -> None:
    writer = CheckpointWriter(folder, keep=1)
    for step in (1, 2, 3):
        writer.save(make_state(step), fields(step))
        assert [file.step for file in folder.stored()] == [step]


def test_a_resumed_run_rotates_what_earlier_attempts_saved(folder: CheckpointFolder, make_state: MakeState) -> None:
    for step in (1, 2, 3):
        CheckpointWriter(folder).save(make_state(step), fields(step))
    CheckpointWriter(folder, keep=2).save(make_state(4), fields(4))
    assert [file.step for file in folder.stored()] == [3, 4]


def test_another_ranks_files_are_not_touched(open_folder: OpenFolder, make_state: MakeState) -> None:
    CheckpointWriter(open_folder(rank=1), keep=1).save(make_state(1, rank=1), fields(1))
    for step in (1, 2):
        CheckpointWriter(open_folder(rank=0), keep=1).save(make_state(step), fields(step))
    assert [file.step for file in open_folder(rank=1).stored()] == [1]
    assert newest_verified(open_folder(rank=1)).found is not None


def test_no_link_is_made_where_none_is_asked_for(open_folder: OpenFolder, make_state: MakeState) -> None:
    folder = open_folder(latest=None)
    CheckpointWriter(folder).save(make_state(1), fields(1))
    assert names(folder) == ["checkpoints-rank0.json", "ep0-ba1-rank0.pt"]


def test_the_same_step_may_be_saved_again(folder: CheckpointFolder, make_state: MakeState) -> None:
    writer = CheckpointWriter(folder)
    writer.save(make_state(1), fields(1))
    writer.save(make_state(1, numel=999), fields(1))
    found = newest_verified(folder).found
    assert found is not None
    assert load_checkpoint(found.path)["state"]["model"]["weight"].numel() == 999


def test_a_name_of_another_step_is_never_overwritten(open_folder: OpenFolder, make_state: MakeState) -> None:
    folder = open_folder("ep{epoch}-rank{rank}.pt")
    writer = CheckpointWriter(folder)
    writer.save(make_state(12), {"epoch": 1, "batch": 12})
    with pytest.raises(CheckpointError, match=r"step 13 would overwrite ep1-rank0\.pt, which is of step 12"):
        writer.save(make_state(13), {"epoch": 1, "batch": 13})
    folder.index_path.unlink()  # nor when only the file itself tells
    with pytest.raises(CheckpointError, match="which is of step 12"):
        writer.save(make_state(13), {"epoch": 1, "batch": 13})
    found = newest_verified(folder).found
    assert found is not None
    assert found.step == 12


def test_a_custom_object_is_an_error_when_saving_and_not_when_loading(
    folder: CheckpointFolder, make_state: MakeState
) -> None:
    state = make_state(1)
    state["state"]["sampler"] = {"order": [1, object()]}
    with pytest.raises(CheckpointError, match=r'\["state"\]\["sampler"\]\["order"\]\[1\] is a builtins.object'):
        CheckpointWriter(folder).save(state, fields(1))
    assert names(folder) == []


@pytest.mark.parametrize("keep", [0, -2])
def test_keeping_none_is_refused(folder: CheckpointFolder, keep: int) -> None:
    with pytest.raises(ConfigError, match=f"save_num_checkpoints_to_keep={keep}"):
        CheckpointWriter(folder, keep=keep)


def test_leftovers_of_a_killed_save_are_removed_at_the_start(folder: CheckpointFolder) -> None:
    (folder.path / ".ep0-ba3-rank0.pt.0123456789abcdef.tmp").touch()
    CheckpointWriter(folder)
    assert names(folder) == []


def test_a_folder_that_cannot_be_written_is_an_error_before_the_first_step(folder: CheckpointFolder) -> None:
    folder.path.chmod(0o555)
    if os.access(folder.path, os.W_OK):
        folder.path.rmdir()  # root may write anywhere: take the folder away instead
    try:
        with pytest.raises(CheckpointError, match="no checkpoint can be saved in"):
            CheckpointWriter(folder)
    finally:
        if folder.path.exists():
            folder.path.chmod(0o755)


def test_a_save_without_room_leaves_the_earlier_checkpoint_and_no_torn_file(
    folder: CheckpointFolder, make_state: MakeState, no_file_larger_than: Limit
) -> None:
    writer = CheckpointWriter(folder, keep=1)
    writer.save(make_state(1), fields(1))
    before = names(folder)
    with no_file_larger_than(100_000), pytest.raises(CheckpointError) as error:
        writer.save(make_state(2, numel=1_000_000), fields(2))
    assert "ep0-ba2-rank0.pt could not be saved" in error.value.message
    assert re.search(r"File too large; it needs 4\.0\d MB and .* are free", error.value.message)
    assert "ulimit -f" in str(error.value)
    assert names(folder) == before
    found = newest_verified(folder).found
    assert found is not None
    assert found.step == 1
    writer.save(make_state(2, numel=1_000_000), fields(2))
    assert [file.step for file in folder.stored()] == [2]


@pytest.mark.parametrize("room_bytes", [0, 1, 100, 5_000, 50_000])
def test_wherever_the_room_ends_the_error_is_the_systems(
    folder: CheckpointFolder, make_state: MakeState, room_bytes: int, no_file_larger_than: Limit
) -> None:
    with no_file_larger_than(room_bytes), pytest.raises(CheckpointError, match="File too large"):
        CheckpointWriter(folder).save(make_state(1, numel=20_000), fields(1))
    assert names(folder) == []


def test_too_many_open_files_is_said(folder: CheckpointFolder, make_state: MakeState) -> None:
    writer = CheckpointWriter(folder)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free_fd = os.open("/dev/null", os.O_RDONLY)
    os.close(free_fd)
    for num_left in range(2):  # a save holds two descriptors at a time
        resource.setrlimit(resource.RLIMIT_NOFILE, (free_fd + num_left, before[1]))
        try:
            with pytest.raises(CheckpointError, match="Too many open files"):
                writer.save(make_state(1), fields(1))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert names(folder) == []


class FailingCommit:
    """Stands in front of the real commit and lets the first few fail, as a disk with a bad moment does."""

    def __init__(self, num_failures: int, number: int) -> None:
        self.num_left = num_failures
        self.number = number
        self.tried: list[Path] = []
        self._commit = save.commit

    def __call__(self, tmp: Path, final: Path) -> None:
        self.tried.append(tmp)
        if self.num_left:
            self.num_left -= 1
            raise OSError(self.number, os.strerror(self.number))
        self._commit(tmp, final)


def test_one_io_error_is_tried_again_in_a_new_file(
    folder: CheckpointFolder, make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = FailingCommit(1, errno.EIO)
    monkeypatch.setattr(save, "commit", commit)
    CheckpointWriter(folder).save(make_state(1), fields(1))
    assert len(set(commit.tried)) == 2
    assert newest_verified(folder).found is not None


@pytest.mark.parametrize(("num_failures", "number"), [(2, errno.EIO), (1, errno.ENOSPC)])
def test_a_file_that_cannot_be_synced_is_not_saved(
    folder: CheckpointFolder,
    make_state: MakeState,
    monkeypatch: pytest.MonkeyPatch,
    num_failures: int,
    number: int,
) -> None:
    writer = CheckpointWriter(folder)
    writer.save(make_state(1), fields(1))
    before = names(folder)
    commit = FailingCommit(num_failures, number)
    monkeypatch.setattr(save, "commit", commit)
    with pytest.raises(CheckpointError, match=os.strerror(number)):
        writer.save(make_state(2), fields(2))
    assert len(commit.tried) == num_failures
    assert names(folder) == before


def test_a_kill_between_rename_and_list_of_a_step_saved_again_loses_nothing(
    folder: CheckpointFolder, make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(folder)
    writer.save(make_state(1), fields(1))
    commit = save.commit

    def commit_and_die(tmp: Path, final: Path) -> None:
        commit(tmp, final)
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "commit", commit_and_die)
    with pytest.raises(KeyboardInterrupt):
        writer.save(make_state(1, numel=999), fields(1))
    search = newest_verified(folder)
    assert search.skipped == ()
    assert search.found is not None
    assert load_checkpoint(search.found.path)["state"]["model"]["weight"].numel() == 999


def test_a_folder_in_the_place_of_the_link_is_a_warning(
    folder: CheckpointFolder, make_state: MakeState, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.path / "latest-rank0.pt").mkdir()
    CheckpointWriter(folder).save(make_state(1), fields(1))
    assert "latest-rank0.pt does not point to it" in caplog.text
    assert newest_verified(folder).found is not None


def test_a_damaged_list_is_replaced_and_no_checkpoint_is_lost(
    folder: CheckpointFolder, make_state: MakeState, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter(folder, keep=3)
    for step in (1, 2):
        writer.save(make_state(step), fields(step))
    folder.index_path.write_text('{"ep0')
    writer.save(make_state(3), fields(3))
    assert "is damaged" in caplog.text
    assert [file.step for file in folder.stored()] == [1, 2, 3]


def test_torchs_own_checksum_setting_is_as_before(folder: CheckpointFolder, make_state: MakeState) -> None:
    assert torch.serialization.get_crc32_options() is True
    CheckpointWriter(folder).save(make_state(1), fields(1))
    assert torch.serialization.get_crc32_options() is True


def test_a_planted_link_at_the_target_is_replaced_and_not_followed(
    folder: CheckpointFolder, make_state: MakeState, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    (folder.path / "ep0-ba1-rank0.pt").symlink_to(victim)
    saved = CheckpointWriter(folder).save(make_state(1), fields(1))
    assert victim.read_text() == "keep me"
    assert not saved.path.is_symlink()


def test_no_descriptor_is_leaked(folder: CheckpointFolder, make_state: MakeState, no_file_larger_than: Limit) -> None:
    writer = CheckpointWriter(folder, keep=1)
    writer.save(make_state(1), fields(1))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for step in range(2, 6):
        writer.save(make_state(step), fields(step))
    with no_file_larger_than(10), pytest.raises(CheckpointError):
        writer.save(make_state(7), fields(7))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_checksum_file_never_opens_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError):
        checksum.ChecksumFile(tmp_path / "there")
