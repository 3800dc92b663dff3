"""Links that somebody planted in a run directory: nothing outside is written, whatever they point to and whenever."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import build_state
from harness.errors import CheckpointError, RunDirError
from harness.run.append_file import cut_lines_after
from harness.run.directory import RunDirectory
from harness.run.durable import open_folder

OPTIONS: Mapping[str, Any] = {"save_interval": "5ba", "profile": "quick", "loggers": ["tensorboard"]}
NOT_OPENED = ["steps-rank0.jsonl", "metrics-rank0.jsonl", "system-rank0.jsonl", "logs-rank0.txt", "run.json", ".lock"]
REPLACED = ["recipe.toml", "checkpoints/latest-rank0.pt", "checkpoints/checkpoints-rank0.json"]
SWAP = """
import ctypes, os, sys, time
folder, link, pause_s = sys.argv[1:]
AT_FDCWD, RENAME_EXCHANGE = -100, 2
renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
print("ready", flush=True)
while True:
    if renameat2(AT_FDCWD, os.fsencode(folder), AT_FDCWD, os.fsencode(link), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")
    time.sleep(float(pause_s))
"""
RACE_S = 1.5


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trained(make_trainer: Callable[..., Any], written: Callable[..., Any]) -> Path:
    """A run of 30 steps with checkpoints and a trace."""
    make_trainer(max_duration="30ba", **OPTIONS).fit()
    path: Path = written().path
    assert (path / "traces").is_dir() and (path / "checkpoints" / "ep2-ba30-rank0.pt").is_file()
    return path


def plant(path: Path, outside: Path) -> Path:
    """Put a link in the place of a file or folder; what was there is what the link points to."""
    outside.mkdir()
    victim = outside / path.name
    path.rename(victim)
    path.symlink_to(victim)
    return victim


@pytest.mark.parametrize("name", NOT_OPENED)
def test_a_file_that_became_a_link_is_an_error_and_its_target_is_as_it_was(
    name: str, trained: Path, make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    plant(trained / name, tmp_path / "outside")
    before = content(tmp_path / "outside")
    with pytest.raises(RunDirError, match=r"symbolic link|no regular file"):
        make_trainer(resume=True, max_duration="40ba", **OPTIONS).fit()
    assert content(tmp_path / "outside") == before


@pytest.mark.parametrize("name", REPLACED)
def test_a_link_in_the_place_of_a_file_that_is_replaced_goes_and_its_target_is_as_it_was(
    name: str, trained: Path, make_trainer: Callable[..., Any], tmp_path: Path, written: Callable[..., Any]
) -> None:
    outside = tmp_path / "outside"
    if name == "checkpoints/latest-rank0.pt":
        outside.mkdir()
        (outside / "victim.pt").write_bytes(b"as it was")
        (trained / name).unlink()
        (trained / name).symlink_to(outside / "victim.pt")
    else:
        plant(trained / name, outside)
    before = content(outside)
    make_trainer(resume=True, max_duration="40ba", **OPTIONS).fit()
    assert written().steps() == list(range(1, 41))
    assert content(outside) == before
    if name == "checkpoints/latest-rank0.pt":
        assert str((trained / name).readlink()) == "ep3-ba40-rank0.pt"
    else:
        assert not (trained / name).is_symlink()


@pytest.mark.parametrize("name", [".capture", "traces", "checkpoints"])
def test_a_folder_that_became_a_link_gets_nothing(
    name: str, trained: Path, make_trainer: Callable[..., Any], tmp_path: Path, written: Callable[..., Any]
) -> None:
    (trained / name).mkdir(exist_ok=True)
    plant(trained / name, tmp_path / "outside")
    before = content(tmp_path / "outside")
    trainer = functools.partial(make_trainer, resume=True, max_duration="60ba", **OPTIONS)
    if name != "traces":
        with pytest.raises(RunDirError, match="symbolic link"):
            trainer().fit()
    else:  # a run goes on without its traces
        trainer().fit()
        assert written().steps() == list(range(1, 61))
        assert written().manifest.health["capture"]["windows_failed"] >= 1
    assert content(tmp_path / "outside") == before


def test_a_checkpoint_that_became_a_link_is_not_resumed_from_and_not_written_through(
    trained: Path, make_trainer: Callable[..., Any], tmp_path: Path, written: Callable[..., Any]
) -> None:
    plant(trained / "checkpoints" / "ep2-ba30-rank0.pt", tmp_path / "outside")
    before = content(tmp_path / "outside")
    trainer = make_trainer(resume=True, max_duration="30ba", **OPTIONS)
    assert trainer.state.timestamp.batch == 25
    trainer.fit()
    assert content(tmp_path / "outside") == before
    assert written().steps() == list(range(1, 31))
    assert not (trained / "checkpoints" / "ep2-ba30-rank0.pt").is_symlink()


def test_a_run_directory_that_became_a_link_is_not_resumed(
    trained: Path, make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    plant(trained, tmp_path / "outside")
    before = content(tmp_path / "outside")
    with pytest.raises(RunDirError):
        make_trainer(resume=True, max_duration="40ba", **OPTIONS)
    with pytest.raises(RunDirError):
        make_trainer(overwrite=True, max_duration="40ba", **OPTIONS)
    assert content(tmp_path / "outside") == before


@contextlib.contextmanager
def swapping(folder: Path, outside: Path, *, pause_s: float) -> Iterator[None]:
    """A process that lets a folder and a link change places, again and again; the folder has its own in the end."""
    link = folder.with_name("link")
    link.symlink_to(outside)
    command = [sys.executable, "-c", SWAP, str(folder), str(link), str(pause_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == "ready\n"
            yield
            assert swapper.poll() is None, "nothing was swapped"
        finally:
            swapper.kill()
            swapper.wait()
            if folder.is_symlink():
                folder.unlink()
                link.rename(folder)


def test_a_folder_that_is_swapped_for_a_link_while_checkpoints_are_saved_lets_nothing_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run = RunDirectory.claim(tmp_path / "runs", "foo")
    paths = CheckpointPaths.compile(folder="{run_name}/checkpoints", filename="ba{batch}.pt", latest="latest.pt")
    folder = CheckpointFolder(paths, run.resolve, {"run_name": "foo", "rank": 0})
    writer = CheckpointWriter(folder, keep=2)
    for name in ("latest.pt", "checkpoints-rank0.json", *(f"ba{step}.pt" for step in range(50))):
        (outside / name).write_text("a victim")
    before = content(outside)
    step = num_refused = 0

    def save() -> None:
        nonlocal step
        step += 1
        state = build_state(
            run_name="foo",
            rank=0,
            attempt=1,
            timestamp={"epoch": 0, "batch": step},
            state={"model": {"weight": torch.zeros(10)}},
            position={},
            rng={},
        )
        writer.save(state, {"batch": step})

    with swapping(folder.path, outside, pause_s=0.0002):
        deadline = time.monotonic() + RACE_S
        while time.monotonic() < deadline:
            try:
                save()
            except (CheckpointError, RunDirError):
                num_refused += 1
            assert content(outside) == before, f"save {step}"
    assert num_refused
    save()
    assert content(outside) == before
    assert (folder.path / f"ba{step}.pt").exists()
    run.release()


def test_a_folder_that_is_swapped_for_a_link_while_a_log_is_cut_lets_nothing_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "metrics.jsonl").write_text('{"step":9}\n')
    before = content(outside)
    folder = tmp_path / "foo"
    folder.mkdir()
    log = folder / "metrics.jsonl"
    lines = b'{"step":1}\n{"step":9}\n'
    num_refused = 0
    with open_folder(folder) as held, swapping(folder, outside, pause_s=0):
        deadline = time.monotonic() + RACE_S
        while time.monotonic() < deadline:
            fd = os.open(log.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=held)
            os.write(fd, lines)
            os.close(fd)
            try:
                cut_lines_after(log, 1)
            except RunDirError:
                num_refused += 1
            assert content(outside) == before
    assert num_refused
