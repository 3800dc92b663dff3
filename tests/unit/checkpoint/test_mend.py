from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.find import newest_verified
from harness.checkpoint.mend import mend_latest, set_aside
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.save import CheckpointWriter


@pytest.fixture
def saved(folder: CheckpointFolder, make_state: Callable[..., dict[str, Any]]) -> CheckpointFolder:
    writer = CheckpointWriter(folder)
    for step in (1, 2, 3):
        writer.save(make_state(step), {"epoch": 0, "batch": step})
    return folder


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def test_a_damaged_checkpoint_is_kept_under_another_name_each_time(
    saved: CheckpointFolder, make_state: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    path = saved.path / "ep0-ba3-rank0.pt"
    for ending in (".damaged", ".damaged2"):
        tear(path)
        torn = path.read_bytes()
        with caplog.at_level(logging.WARNING):
            set_aside(newest_verified(saved).skipped)
        assert not path.exists()
        assert path.with_name(path.name + ending).read_bytes() == torn
        assert f"kept as {path.name}{ending}" in caplog.text
        CheckpointWriter(saved).save(make_state(3), {"epoch": 0, "batch": 3})
    search = newest_verified(saved)
    assert search.found is not None and search.found.step == 3
    assert search.skipped == ()


def test_one_that_is_gone_meanwhile_is_only_told_of(saved: CheckpointFolder, caplog: pytest.LogCaptureFixture) -> None:
    tear(saved.path / "ep0-ba3-rank0.pt")
    search = newest_verified(saved)
    (saved.path / "ep0-ba3-rank0.pt").unlink()
    with caplog.at_level(logging.WARNING):
        set_aside(search.skipped)
    assert "and stays: No such file" in caplog.text


@pytest.mark.parametrize("pointed", ["nowhere.pt", "ep0-ba1-rank0.pt", "../../../outside", None])
def test_latest_points_to_the_one_the_run_goes_on_from(saved: CheckpointFolder, pointed: str | None) -> None:
    assert saved.latest_path is not None
    saved.latest_path.unlink()
    if pointed is not None:
        saved.latest_path.symlink_to(pointed)
    found = newest_verified(saved).found
    assert found is not None
    mend_latest(saved, found)
    assert str(saved.latest_path.readlink()) == "ep0-ba3-rank0.pt"


def test_a_folder_in_the_place_of_latest_is_told_of_and_stays(
    saved: CheckpointFolder, caplog: pytest.LogCaptureFixture
) -> None:
    assert saved.latest_path is not None
    saved.latest_path.unlink()
    saved.latest_path.mkdir()
    found = newest_verified(saved).found
    assert found is not None
    with caplog.at_level(logging.WARNING):
        mend_latest(saved, found)
    assert saved.latest_path.is_dir()
    assert "does not point to ep0-ba3-rank0.pt" in caplog.text
