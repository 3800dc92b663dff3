"""Listing, verifying and exporting while a real process saves and rotates: no failure, and no false alarm."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from harness.checkpoint.inventory import State, find_folders, list_files, resume_choice
from harness.checkpoint.verify import verify_files
from harness.cli import main
from harness.run.directory import RunDirectory
from harness.run.manifest import read_manifest

WATCH_S = 2.0

SAVER = """
import random, sys
from pathlib import Path
import torch
from harness.checkpoint.paths import DEFAULT_FILENAME, DEFAULT_FOLDER, DEFAULT_LATEST, CheckpointFolder, CheckpointPaths
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import build_state
from harness.run.directory import RunDirectory
from harness.run.manifest import RunFacts
from harness.run.manifest_file import ManifestFile

torch.set_num_threads(1)
directory = RunDirectory.claim(Path(sys.argv[1]), "foo")
facts = RunFacts(run_name="foo", name_source="run_name", argv=["train"], pid=1, host="here")
manifest = ManifestFile.start(directory.manifest_path, facts)
paths = CheckpointPaths.compile(folder=DEFAULT_FOLDER, filename=DEFAULT_FILENAME, latest=DEFAULT_LATEST)
folder = CheckpointFolder(paths, directory.resolve, {"run_name": "foo", "rank": 0})
writer = CheckpointWriter(folder, keep=2 if sys.argv[2] == "rotate" else -1)
chance = random.Random(1)
step = 0
while True:
    # either step after step, which rotates, or three steps over and over, which replaces files
    step = step + 1 if sys.argv[2] == "rotate" else step % 3 + 1
    saved = writer.save(
        build_state(
            run_name="foo", rank=0, attempt=1, timestamp={"epoch": 0, "batch": step},
            state={"model": {"weight": torch.full((chance.randrange(1000, 60_000),), float(step))}},
            position={"batch_in_epoch": 0, "start": None},
        ),
        {"epoch": 0, "batch": step},
    )
    for removed in saved.removed:
        manifest.remove_artifact(directory.relative(removed))
    manifest.add_artifact("checkpoint", directory.relative(saved.path), size_bytes=saved.size_bytes, step=step)
    manifest.save()
"""


@pytest.fixture(params=["rotate", "replace"])
def saving(request: pytest.FixtureRequest, root: Path, start_script: Callable[..., Any]) -> Iterator[RunDirectory]:
    """A run whose process saves as fast as it can."""
    saver = start_script(SAVER, root, request.param)
    deadline = time.monotonic() + 60
    while not list(root.glob("foo/checkpoints/*-ba3-*")):
        assert saver.process.poll() is None, saver.end()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    yield RunDirectory.find(root, "foo")
    assert saver.process.poll() is None, "the saver died meanwhile, so nothing was shown"


def test_a_reader_sees_good_checkpoints_only(saving: RunDirectory) -> None:
    seen: set[tuple[str, str | None]] = set()
    num_vanished = 0
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        for folder in find_folders(saving, read_manifest(saving.manifest_path)):
            listed = list_files(folder, saving.is_alive)
            assert {file.state for file in listed} <= {State.LISTED, State.NOT_LISTED}, listed
            verified = verify_files(folder, listed)
            assert {file.state for file in verified} <= {State.VERIFIED}, verified
            num_vanished += len(listed) - len(verified)
            chosen = resume_choice(listed)
            assert chosen is not None
            seen |= {(file.name, file.entry and file.entry.crc32c) for file in listed}
    assert len(seen) > 20, "hardly anything was saved meanwhile: this has shown nothing"
    if len({name for name, _ in seen}) > 3:
        assert num_vanished > 0, "nothing was rotated away under the reader: this has shown nothing"


def test_a_quick_look_sees_no_torn_file(saving: RunDirectory) -> None:
    (folder,) = find_folders(saving, read_manifest(saving.manifest_path))
    states = Counter[State]()
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        listed = list_files(folder, saving.is_alive)
        states.update(file.state for file in listed)
        assert all(file.state is not State.WRONG_SIZE for file in listed), listed
    assert states[State.LISTED] > 100


def test_the_commands_work_meanwhile_and_leave_the_run_alone(
    saving: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ("--root", str(saving.root))
    for _ in range(5):
        assert main(["checkpoints", "foo", "--verify", "--json", *root]) == 0
        rows = json.loads(capsys.readouterr().out)["checkpoints"]
        assert {row["state"] for row in rows} == {"verified"}
        assert main(["checkpoints", "foo", "--export", str(tmp_path / "w.safetensors"), "--overwrite", *root]) == 0
        with safe_open(tmp_path / "w.safetensors", "pt") as file:
            weight, step = file.get_tensor("weight"), int(file.metadata()["step"])
        assert weight.eq(step).all()
        capsys.readouterr()
    assert main(["checkpoints", "foo", "--keep", "1", *root]) == 2
    assert "is in use: process " in capsys.readouterr().err
