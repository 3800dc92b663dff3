from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.errors import CheckpointError, TemplateError
from harness.run.directory import RunDirectory

DEFAULT = {
    "folder": "{run_name}/checkpoints",
    "filename": "ep{epoch}-ba{batch}-rank{rank}.pt",
    "latest": "latest-rank{rank}.pt",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": "rank{rank}.pt"}, "save_filename.*gives every checkpoint the same name"),
        ({"filename": "ba{batch}.pt"}, "save_filename.*gives 2 ranks one file"),
        ({"latest": "latest.pt"}, "save_latest_filename.*gives 2 ranks one file"),
        ({"filename": "sub/ba{batch}-rank{rank}.pt"}, "save_filename.*has a folder in it"),
        ({"latest": "../latest-rank{rank}.pt"}, "save_latest_filename"),
        ({"folder": "checkpoints"}, "save_folder.*is the same for every run"),
        ({"folder": "{run_name}/ep{epoch}"}, "save_folder.*epoch"),
        ({"latest": "latest-ba{batch}-rank{rank}.pt"}, "save_latest_filename.*batch"),
        ({"filename": "{batch}-rank{rank}.pt", "latest": "0-rank{rank}.pt"}, "reads as a checkpoint"),
        ({"filename": "checkpoints-rank{rank}.jso{batch}", "latest": "checkpoints-rank{rank}.json"}, "side manifest"),
        ({"filename": "ba{btach}-rank{rank}.pt"}, "save_filename.*btach"),
    ],
)
def test_templates_that_cannot_work_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        CheckpointPaths.compile(**{**DEFAULT, **change}, world_size=2)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"latest": None},
        {"filename": "step{step:08d}-rank{rank}.pt"},
        {"filename": "ep{epoch}-rank{rank}.pt"},
        {"folder": "{run_name}/ckpt/rank{rank}", "filename": "ba{batch}.pt", "latest": "latest.pt"},
    ],
)
def test_templates_that_work_pass(change: dict[str, str | None]) -> None:
    CheckpointPaths.compile(**{**DEFAULT, **change}, world_size=2)  # type: ignore[arg-type]


def test_a_link_that_only_a_run_name_makes_a_checkpoint_is_refused_when_the_name_is_known(tmp_path: Path) -> None:
    paths = CheckpointPaths.compile(folder="{run_name}", filename="ba{batch}.pt", latest="{run_name}.pt")
    with pytest.raises(TemplateError, match=r"'ba5\.pt'.*reads as a checkpoint"):
        CheckpointFolder(paths, lambda relative: tmp_path / relative, {"run_name": "ba5", "rank": 0})


def test_only_regular_files_of_this_run_and_rank_are_stored(folder: CheckpointFolder) -> None:
    for name in ("ep1-ba20-rank0.pt", "ep0-ba3-rank0.pt", "ep0-ba100-rank0.pt"):
        (folder.path / name).write_bytes(b"12345")
    for foreign in (
        "ep0-ba3-rank1.pt",
        "ep0-ba3-rank0.pt.bak",
        "mine.pt",
        ".ep0-ba4-rank0.pt.0.tmp",
        "ep0-ba-rank0.pt",
    ):
        (folder.path / foreign).touch()
    (folder.path / "ep0-ba7-rank0.pt").mkdir()
    (folder.path / "ep0-ba8-rank0.pt").symlink_to("ep0-ba3-rank0.pt")
    assert [(file.step, file.size_bytes) for file in folder.stored()] == [(3, 5), (20, 5), (100, 5)]


def test_a_listed_file_of_another_template_is_stored(folder: CheckpointFolder) -> None:
    (folder.path / "old-5.ckpt").touch()
    assert [(file.name, file.step) for file in folder.stored({"old-5.ckpt"})] == [("old-5.ckpt", None)]


def test_a_name_without_its_step_tells_none(open_folder: Callable[..., CheckpointFolder]) -> None:
    folder = open_folder("ep{epoch}-rank{rank}.pt")
    assert folder.is_ours("ep3-rank0.pt")
    assert folder.step_in("ep3-rank0.pt") is None
    assert open_folder("{step:06d}-rank{rank}.pt").step_in("000012-rank0.pt") == 12


def test_a_folder_that_was_removed_is_a_clear_error(folder: CheckpointFolder) -> None:
    folder.path.rmdir()
    with pytest.raises(CheckpointError, match=r"checkpoint folder .* cannot be read: No such file"):
        folder.stored()


def test_a_folder_that_leads_out_of_the_run_is_refused(directory: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (directory.path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="checkpoints"):
        CheckpointFolder(CheckpointPaths.compile(**DEFAULT), directory.resolve, {"run_name": "foo", "rank": 0})
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_paths_are_known_without_torch() -> None:
    code = "import sys, harness.checkpoint, harness.checkpoint.rotate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
