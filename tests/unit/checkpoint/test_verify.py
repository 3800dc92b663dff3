from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.index import read_index, write_index
from harness.checkpoint.inventory import CheckpointFile, RankFolder, State, resume_choice
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import FORMAT
from harness.checkpoint.verify import verify_file, verify_files

MakeState = Callable[..., dict[str, Any]]
Look = Callable[..., tuple[RankFolder, list[CheckpointFile]]]


@pytest.fixture
def saved(folder: CheckpointFolder, make_state: MakeState) -> list[Path]:
    writer = CheckpointWriter(folder)
    return [writer.save(make_state(step), {"epoch": 0, "batch": step}).path for step in (1, 2, 3)]


def unlist(path: Path) -> None:
    index_path = path.with_name("checkpoints-rank0.json")
    write_index(index_path, {name: entry for name, entry in read_index(index_path).items() if name != path.name})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def states(look: Look) -> dict[int | None, State]:
    return {file.step: file.state for file in verify_files(*look())}


@pytest.mark.usefixtures("saved")
def test_good_ones_verify_and_each_is_counted(look: Look) -> None:
    read: list[CheckpointFile] = []
    folder, files = look()
    verified = verify_files(folder, files, read.append)
    assert [file.state for file in verified] == [State.VERIFIED] * 3
    assert read == files


def test_a_flipped_bit_is_found_by_reading_only(saved: list[Path], look: Look) -> None:
    flip(saved[2])
    assert {file.state for file in look()[1]} == {State.LISTED}
    verified = verify_files(*look())
    assert [file.state for file in verified] == [State.VERIFIED, State.VERIFIED, State.DAMAGED]
    assert "its content has changed" in str(verified[2].reason)
    chosen = resume_choice(verified)
    assert chosen is not None
    assert chosen.step == 2


def test_a_truncated_one_keeps_its_state(saved: list[Path], look: Look) -> None:
    saved[0].write_bytes(saved[0].read_bytes()[:-5])
    assert states(look) == {1: State.WRONG_SIZE, 2: State.VERIFIED, 3: State.VERIFIED}


def test_what_is_not_listed_is_loaded(saved: list[Path], look: Look) -> None:
    unlist(saved[1])
    unlist(saved[2])
    saved[2].write_bytes(saved[2].read_bytes()[:-300])
    assert states(look) == {1: State.VERIFIED, 2: State.VERIFIED, 3: State.DAMAGED}


def test_one_of_another_run_or_step_is_damage(saved: list[Path], look: Look, make_state: MakeState) -> None:
    unlist(saved[1])
    unlist(saved[2])
    torch.save(make_state(2, run_name="bar"), saved[1])
    torch.save(make_state(4), saved[2])
    verified = verify_files(*look())
    assert [file.state for file in verified] == [State.VERIFIED, State.DAMAGED, State.DAMAGED]
    assert "'bar'" in str(verified[1].reason)
    assert "step 4, not 3" in str(verified[2].reason)


def test_one_of_a_newer_format_is_neither_good_nor_bad(saved: list[Path], look: Look, make_state: MakeState) -> None:
    unlist(saved[2])
    torch.save({**make_state(3), "format": FORMAT + 1}, saved[2])
    verified = verify_files(*look())
    assert verified[2].state is State.NEWER_FORMAT
    assert resume_choice(verified) is None


def test_a_step_that_no_name_tells_is_read_from_the_file(
    open_folder: Callable[..., CheckpointFolder], make_state: MakeState, look: Look
) -> None:
    writer = CheckpointWriter(open_folder(filename="epoch{epoch}.pt"))
    paths = [writer.save(make_state(step), {"epoch": step, "batch": step}).path for step in (5, 6)]
    unlist(paths[1])
    assert [file.step for file in look()[1]] == [None, 5]
    assert states(look) == {5: State.VERIFIED, 6: State.VERIFIED}


def test_one_that_vanishes_after_the_listing_is_no_fault(saved: list[Path], look: Look) -> None:
    unlist(saved[1])
    folder, files = look()
    saved[0].unlink()
    saved[1].unlink()
    assert [file.step for file in verify_files(folder, files)] == [3]


def test_one_that_is_saved_anew_after_the_listing_is_no_fault(
    saved: list[Path], look: Look, folder: CheckpointFolder, make_state: MakeState
) -> None:
    found, files = look()
    CheckpointWriter(folder).save(make_state(3, numel=500), {"epoch": 0, "batch": 3})
    assert verify_files(found, files)[2].state is State.VERIFIED


def test_one_that_cannot_be_read_says_why(saved: list[Path], look: Look) -> None:
    folder, files = look()
    saved[2].unlink()
    os.mkfifo(saved[2])  # opened without care it would be waited for
    found = verify_file(folder, files[2])
    assert found is not None
    assert found.state in {State.DAMAGED, State.WRONG_SIZE}
