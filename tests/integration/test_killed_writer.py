"""kill -9 at any moment: what was acknowledged is in the files, and the files can be read."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import NoReturn

from harness.run.append_file import AppendFile
from harness.run.durable import replace_symlink, write_atomically

TRIALS = 60


def write_until_killed(folder: Path, acknowledge: int) -> NoReturn:
    log = AppendFile(folder / "log")
    number = 0
    while True:
        number += 1
        log.write(b"%d " % number + b"x" * (number % 3000) + b"\n")
        write_atomically(folder / "state", b"%d\n" % number * 2000, durable=number % 4 == 0)
        replace_symlink(folder / "latest", f"ep{number}.pt")
        os.write(acknowledge, number.to_bytes(8, "little"))


def killed_after(folder: Path, seconds: float) -> int:
    """The last number a writer acknowledged before it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write_until_killed(folder, writing)
        finally:
            os._exit(1)
    os.close(writing)
    last = os.read(reading, 8)  # at least one
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with os.fdopen(reading, "rb") as acknowledged:
        rest = acknowledged.read()
    return int.from_bytes((last + rest)[-8:], "little")


def test_a_kill_loses_nothing_acknowledged_and_leaves_no_half_file(tmp_path: Path) -> None:
    moments = random.Random(1)
    for trial in range(TRIALS):
        folder = tmp_path / str(trial)
        folder.mkdir()
        last = killed_after(folder, moments.uniform(0, 0.015))
        lines = (folder / "log").read_bytes().splitlines(keepends=True)
        assert lines[last - 1] == b"%d " % last + b"x" * (last % 3000) + b"\n"
        state = (folder / "state").read_bytes().split(b"\n")
        assert len(state) == 2001
        assert len(set(state[:-1])) == 1
        assert int(state[0]) in (last, last + 1)
        assert int((folder / "latest").readlink().name.removeprefix("ep").removesuffix(".pt")) >= last
