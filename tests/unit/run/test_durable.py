from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from harness.errors import RunDirError
from harness.run.durable import (
    commit,
    create_file,
    disk_error,
    fsync_directory,
    remove_leftovers,
    replace_symlink,
    temporary_path,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new", durable=False)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["run.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_temporary_name_is_hidden_random_beside_the_file_and_never_too_long(tmp_path: Path) -> None:
    final = tmp_path / ("é" * 127)
    first, second = temporary_path(final), temporary_path(final)
    assert first.parent == tmp_path
    assert first != second
    assert first.name.startswith(".")
    first.write_bytes(b"")  # the file system takes the name
    assert len(first.name.encode()) <= 255


def test_a_write_replaces_a_planted_link_and_leaves_its_target_alone(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "run.json").symlink_to(victim)
    write_atomically(tmp_path / "run.json", b"mine")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "run.json").is_symlink()


def test_a_folder_that_is_a_link_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "traces").symlink_to("elsewhere")
    with pytest.raises(RunDirError, match=r"cannot write .*traces/a") as caught:
        write_atomically(tmp_path / "traces" / "a", b"x")
    assert "link" in str(caught.value.hint)
    assert names(tmp_path / "elsewhere") == []


def test_a_missing_folder_is_an_error_that_keeps_its_errno_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunDirError) as caught:
        write_atomically(tmp_path / "gone" / "run.json", b"x")
    assert caught.value.errno == errno.ENOENT
    assert names(tmp_path) == []


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"old")
    script = f"""
        import errno, resource
        from pathlib import Path
        from harness.errors import RunDirError
        from harness.run.durable import write_atomically
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            write_atomically(Path({str(path)!r}), b"x" * 5000)
        except RunDirError as error:
            print(error.errno == errno.EFBIG, error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True)
    assert done.stdout.startswith(b"True cannot write")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["run.json"]


def test_running_out_of_descriptors_is_a_clear_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(RunDirError) as caught:
            write_atomically(tmp_path / "run.json", b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in str(caught.value)
    assert names(tmp_path) == []


def test_a_new_file_is_made_only_where_there_is_none_and_behind_no_link(tmp_path: Path) -> None:
    os.close(create_file(tmp_path / "new"))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("new", "link"):
        with pytest.raises(FileExistsError):
            create_file(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "way").symlink_to("folder")
    with pytest.raises(OSError, match="way"):
        create_file(tmp_path / "way" / "new")
    assert names(tmp_path / "folder") == []


def test_commit_gives_a_finished_file_its_name(tmp_path: Path) -> None:
    final = tmp_path / "ep1.pt"
    final.write_bytes(b"old")
    tmp = temporary_path(final)
    tmp.write_bytes(b"weights")
    commit(tmp, final)
    assert final.read_bytes() == b"weights"
    assert names(tmp_path) == ["ep1.pt"]


def test_commit_that_fails_removes_the_temporary_file(tmp_path: Path) -> None:
    final = tmp_path / "taken"
    final.mkdir()
    tmp = temporary_path(final)
    tmp.write_bytes(b"weights")
    with pytest.raises(RunDirError):
        commit(tmp, final)
    assert names(tmp_path) == ["taken"]


def test_commit_between_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one folder"):
        commit(tmp_path / "a" / "x", tmp_path / "x")


def test_a_link_is_replaced_and_stays_relative(tmp_path: Path) -> None:
    link = tmp_path / "latest-rank0.pt"
    (tmp_path / "ep2.pt").write_bytes(b"two")
    replace_symlink(link, "ep1.pt")
    replace_symlink(link, "ep2.pt")
    assert str(link.readlink()) == "ep2.pt"
    assert link.read_bytes() == b"two"
    assert names(tmp_path) == ["ep2.pt", "latest-rank0.pt"]


def test_a_link_that_cannot_be_made_leaves_no_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(RunDirError, match="point the link"):
        replace_symlink(tmp_path / "latest", "ep1.pt")
    assert names(tmp_path) == ["latest"]


@pytest.mark.parametrize("target", ["", "/etc/passwd"])
def test_a_link_out_of_the_run_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(ValueError, match="relative target"):
        replace_symlink(tmp_path / "latest", target)


def test_syncing_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    fsync_directory(tmp_path)
    with pytest.raises(RunDirError):
        fsync_directory(tmp_path / "gone")


@pytest.mark.parametrize("name", ["run.json", "é" * 100 + ".json", "odd[1]*.json"])
def test_what_a_killed_write_left_beside_a_file_is_removed_and_nothing_else(tmp_path: Path, name: str) -> None:
    left = [temporary_path(tmp_path / name) for _ in range(2)]
    stays = [
        tmp_path / name,
        temporary_path(tmp_path / "other.json"),
        tmp_path / f".{name[:80]}.tmp",
        tmp_path / "x.tmp",
    ]
    for path in (*left, *stays):
        path.touch()
    remove_leftovers(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == sorted(stays)
    remove_leftovers(tmp_path / "not" / "there")


def test_a_disk_that_fails_is_told_with_where_to_look(tmp_path: Path) -> None:
    error = disk_error("write", tmp_path / "run.json", OSError(errno.EIO, "Input/output error"))
    assert error.message == f"cannot write {tmp_path}/run.json: Input/output error"
    assert error.hint is not None
    assert "dmesg" in error.hint
    assert error.errno == errno.EIO
