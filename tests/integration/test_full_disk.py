"""The files of a run on a disk that is full, or read-only."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from small_disk import on_small_disk


def printed_on_small_disk(folder: Path, script: str) -> list[str]:
    """What a script printed that ran with a 1 MiB disk at `folder`, as its own user's root."""
    command = [*on_small_disk(folder, "1m"), sys.executable, "-c", textwrap.dedent(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


PRELUDE = """
import errno, os, subprocess, sys
from pathlib import Path
from harness.errors import RunDirError
from harness.run import ManifestFile, RunDirectory, RunFacts, read_manifest
from harness.run.append_file import AppendFile

root = Path(sys.argv[1])
facts = RunFacts(run_name="foo", name_source="x", argv=[], pid=1, host="h")

def fill():
    with open(root / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(512))
        except OSError as error:
            assert error.errno == errno.ENOSPC
"""


def test_a_disk_that_fills_up_and_is_freed_costs_no_line(tmp_path: Path) -> None:
    script = """
        run = RunDirectory.claim(root, "foo")
        manifest = ManifestFile.start(run.manifest_path, facts, guard=run.check_in_place)
        log = AppendFile(run.resolve("foo/metrics-rank0.jsonl"))
        for number in range(200):
            if number == 50:
                fill()
            if number == 150:
                print(manifest.save(), manifest.last_save_error, log.health.errors > 0, log.health.last_error)
                (root / "filler").unlink()
            log.write(b'{"step":%d}' % number + b" " * 90 + b"\\n")
        log.close()
        numbers = [int(line.split(b":")[1].split(b"}")[0]) for line in log.path.read_bytes().splitlines()]
        print(numbers == list(range(200)), log.health.dropped_lines)
        manifest.set_progress(200, 1)
        print(manifest.save(), read_manifest(run.manifest_path).summary.step)
    """
    full, lines, saved = printed_on_small_disk(tmp_path, PRELUDE + textwrap.dedent(script))
    assert full.startswith("False cannot write ")
    assert full.endswith("No space left on device True No space left on device")
    assert lines == "True 0"
    assert saved == "True 200"


def test_a_full_disk_and_a_read_only_one_are_told_at_the_start(tmp_path: Path) -> None:
    script = """
        RunDirectory.claim(root, "old").release()
        fill()
        try:
            run = RunDirectory.claim(root, "foo")
            ManifestFile.start(run.manifest_path, facts, guard=run.check_in_place)
        except RunDirError as error:
            print(error.message)
            print(error.hint)
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        for name in ("new", "old"):
            try:
                RunDirectory.claim(root, name)
            except RunDirError as error:
                print(error.message)
    """
    message, hint, *read_only = printed_on_small_disk(tmp_path, PRELUDE + textwrap.dedent(script))
    assert message.startswith("cannot ")
    assert message.endswith("No space left on device")
    assert hint.startswith("free some space there (")
    assert len(read_only) == 2
    assert all("cannot be written: it is read-only" in line for line in read_only)
