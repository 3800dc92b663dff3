from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import RunDirError, RunLockedError
from harness.run.lock import RunLock, is_locked, read_owner

HOLD = """
import sys, time
from pathlib import Path
from harness.run.lock import RunLock
lock = RunLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path)
    lock = RunLock.acquire(path)
    assert lock.held
    assert is_locked(path)
    lock.release()
    lock.release()
    assert not lock.held
    assert not is_locked(path)
    RunLock.acquire(path).release()


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(RunLockedError) as caught:
        RunLock.acquire(tmp_path / ".lock")
    assert f"process {holder.pid} on {socket.gethostname()}" in caught.value.message
    assert is_locked(tmp_path / ".lock")


def test_the_lock_of_a_killed_owner_is_free_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert not is_locked(tmp_path / ".lock")
    lock = RunLock.acquire(tmp_path / ".lock")
    owner = read_owner(tmp_path / ".lock")
    assert owner is not None
    assert owner.pid == os.getpid()
    lock.release()


def test_a_forked_child_neither_holds_the_lock_nor_frees_the_parents(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock = RunLock.acquire(path)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.release()
        os.write(writing, b"held" if lock.held else b"free")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(reading, 4) == b"free"
        assert is_locked(path)  # the child's release did not unlock it
        lock.release()
        assert not is_locked(path)  # and the living child does not keep it
        RunLock.acquire(path).release()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def test_a_descriptor_leaked_to_a_child_does_not_outlive_the_release(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path / ".lock")
    assert lock._fd is not None
    # a fork made in C code runs no Python hook: its copy of the descriptor shares the lock
    copy = os.dup(lock._fd)
    lock.release()
    assert not is_locked(tmp_path / ".lock")
    os.close(copy)


def test_looking_at_a_free_lock_does_not_make_a_claim_fail(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    RunLock.acquire(path).release()
    looker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from harness.run.lock import is_locked\n"
            "print(flush=True)\nwhile True: is_locked(Path(sys.argv[1]))",
            str(path),
        ],
        stdout=subprocess.PIPE,
    )
    with looker:
        assert looker.stdout is not None
        looker.stdout.readline()
        try:
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                RunLock.acquire(path).release()
        finally:
            looker.kill()


def test_a_lock_notices_that_its_folder_was_moved_or_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "foo"
    folder.mkdir()
    lock = RunLock.acquire(folder / ".lock")
    assert lock.in_place()
    folder.rename(tmp_path / "bar")
    assert not lock.in_place()
    folder.mkdir()
    other = RunLock.acquire(folder / ".lock")  # another lock under the same name
    assert other.in_place()
    assert not lock.in_place()
    lock.release()
    other.release()


def test_a_lock_whose_folder_is_replaced_between_open_and_lock_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "foo"
    folder.mkdir()
    others: list[RunLock] = []
    flock = fcntl.flock

    def overwritten_meanwhile(fd: int, operation: int) -> None:
        if not (tmp_path / "trash").exists():
            folder.rename(tmp_path / "trash")
            folder.mkdir()
            others.append(RunLock.acquire(folder / ".lock"))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", overwritten_meanwhile)
    with pytest.raises(RunLockedError):
        RunLock.acquire(folder / ".lock")
    assert others[0].in_place()
    others[0].release()


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(RunDirError, match="cannot lock"):
        RunLock.acquire(tmp_path / ".lock")
    with pytest.raises(RunDirError):
        is_locked(tmp_path / ".lock")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"[1]", b'{"pid":"x"}'])
def test_an_owner_that_cannot_be_read_is_a_live_process_all_the_same(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ".lock"
    lock = RunLock.acquire(path)
    path.write_bytes(content)
    with pytest.raises(RunLockedError, match="a live process"):
        RunLock.acquire(path)
    lock.release()
