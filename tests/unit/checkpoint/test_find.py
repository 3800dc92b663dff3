from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.find import load_checkpoint, newest_verified
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.save import CheckpointWriter
from harness.errors import CheckpointError

MakeState = Callable[..., dict[str, Any]]


def fields(step: int) -> dict[str, int | str]:
    return {"epoch": step // 10, "batch": step}


@pytest.fixture
def saved(folder: CheckpointFolder, make_state: MakeState) -> list[Path]:
    """Three good checkpoints, of steps 1, 2 and 10."""
    writer = CheckpointWriter(folder)
    return [writer.save(make_state(step), fields(step)).path for step in (1, 2, 10)]


def found_step(folder: CheckpointFolder) -> int | None:
    found = newest_verified(folder).found
    return None if found is None else found.step


def test_the_highest_step_is_found_whatever_the_times_of_files(folder: CheckpointFolder, saved: list[Path]) -> None:
    os.utime(saved[0])
    os.utime(saved[2], (1, 1))
    search = newest_verified(folder)
    assert search.found is not None
    assert (search.found.step, search.found.path, search.found.listed) == (10, saved[2], True)
    assert search.skipped == ()


def test_an_empty_folder_has_none(folder: CheckpointFolder) -> None:
    assert newest_verified(folder).found is None


def test_a_torn_file_is_passed_over_and_left(folder: CheckpointFolder, saved: list[Path]) -> None:
    size_bytes = saved[2].stat().st_size
    os.truncate(saved[2], size_bytes - 1)
    search = newest_verified(folder)
    assert search.found is not None
    assert search.found.step == 2
    (skipped,) = search.skipped
    assert (skipped.path, skipped.step) == (saved[2], 10)
    assert skipped.reason.startswith(f"has {size_bytes - 1} bytes and was saved with {size_bytes}")
    assert saved[2].exists()


def test_the_list_leads_nowhere_else(folder: CheckpointFolder, saved: list[Path], tmp_path: Path) -> None:
    shutil.copy(saved[2], tmp_path / "elsewhere.pt")
    listed = json.loads(folder.index_path.read_text())
    listed["../../../elsewhere.pt"] = {**listed[saved[2].name], "step": 99}
    folder.index_path.write_text(json.dumps(listed))
    assert found_step(folder) == 10


def test_a_file_under_another_steps_name_is_passed_over(folder: CheckpointFolder, saved: list[Path]) -> None:
    shutil.copy(saved[0], folder.path / "ep9-ba99-rank0.pt")
    search = newest_verified(folder)
    assert search.found is not None
    assert search.found.step == 10
    assert search.skipped[0].reason == "was saved after step 1, not 99 as its name says"


def test_another_runs_or_ranks_file_is_passed_over(folder: CheckpointFolder, make_state: MakeState) -> None:
    torch.save(make_state(5, run_name="bar"), folder.path / "ep0-ba5-rank0.pt")
    torch.save(make_state(6, rank=1), folder.path / "ep0-ba6-rank0.pt")
    search = newest_verified(folder)
    assert search.found is None
    assert [skipped.reason.rsplit("belongs to ", 1)[1] for skipped in search.skipped] == [
        "rank 1, not 0",
        "run_name 'bar', not 'foo'",
    ]


def test_links_play_no_part(folder: CheckpointFolder, saved: list[Path]) -> None:
    latest = folder.path / "latest-rank0.pt"
    latest.unlink()
    latest.symlink_to("nowhere.pt")
    assert found_step(folder) == 10
    saved[2].rename(folder.path / "elsewhere.bin")
    saved[2].symlink_to("elsewhere.bin")
    assert found_step(folder) == 2


def test_names_without_a_step_are_ordered_by_what_they_hold(
    open_folder: Callable[..., CheckpointFolder], make_state: MakeState
) -> None:
    folder = open_folder("ep{epoch}-rank{rank}.pt")
    writer = CheckpointWriter(folder)
    for epoch, step in ((2, 20), (10, 100), (9, 90)):
        writer.save(make_state(step), {"epoch": epoch, "batch": step})
    assert found_step(folder) == 100
    folder.index_path.unlink()
    assert found_step(folder) == 100
    (folder.path / "ep11-rank0.pt").write_bytes(b"torn")
    search = newest_verified(folder)
    assert search.found is not None
    assert search.found.step == 100
    assert search.skipped[0].step is None


def test_checkpoints_of_an_earlier_template_are_found(
    open_folder: Callable[..., CheckpointFolder], saved: list[Path]
) -> None:
    assert found_step(open_folder("step{step:06d}.pt", latest="newest.pt")) == 10


def test_a_malicious_pickle_is_not_run(folder: CheckpointFolder, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {canary}",)

    path = folder.path / "ep0-ba1-rank0.pt"
    torch.save({"format": 1, "x": Payload()}, path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match="torn or no checkpoint"):
        load_checkpoint(path)
    search = newest_verified(folder)
    assert search.found is None
    assert len(search.skipped) == 1
    assert not canary.exists()


def test_a_small_file_that_unfolds_into_a_huge_one_is_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"format": 1, "x": torch.zeros(4_000_000)}, whole)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for info in source.infolist():
            bomb.writestr(info.filename, source.read(info), compress_type=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "link", "fifo"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"No such file|no regular file"):
        load_checkpoint(path)
