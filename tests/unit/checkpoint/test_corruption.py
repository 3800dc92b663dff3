"""Whatever became of the files, what is resumed from is a checkpoint as it was saved, or there is an error."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.find import Search, load_checkpoint, load_plain, newest_verified
from harness.checkpoint.paths import CheckpointFolder
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import NewerFormatError
from harness.errors import CheckpointError
from harness.run.directory import RunDirectory

MakeState = Callable[..., dict[str, Any]]
NUMEL = 16_384
STEPS = (1, 2, 10)
END_BYTES = 64
"""The checksum of the file's own and the end of the archive: here each bit counts."""


@pytest.fixture
def saved(folder: CheckpointFolder, make_state: MakeState) -> list[Path]:
    """Three good checkpoints of some 70 kB."""
    writer = CheckpointWriter(folder)
    return [save(writer, make_state(step, numel=NUMEL)) for step in STEPS]


def save(writer: CheckpointWriter, state: dict[str, Any]) -> Path:
    timestamp = state["timestamp"]
    return writer.save(state, {"epoch": timestamp["epoch"], "batch": timestamp["batch"]}).path


def listed(folder: CheckpointFolder) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(folder.index_path.read_text())
    return entries


def take_off_the_list(folder: CheckpointFolder, *paths: Path) -> None:
    entries = listed(folder)
    for path in paths:
        del entries[path.name]
    folder.index_path.write_text(json.dumps(entries))


def found_step(folder: CheckpointFolder) -> int | None:
    """The step that is found; its tensor has to be what was saved after that step."""
    found = newest_verified(folder).found
    if found is None:
        return None
    state = load_checkpoint(found.path, run_name=folder.run_name, rank=folder.rank)
    assert state["timestamp"]["batch"] == found.step
    assert state["state"]["model"]["weight"].eq(found.step).all()
    return found.step


def damaged(data: bytes) -> Iterator[bytes]:
    """Every cut at 4 KiB and at odd places, every bit of the end, and 200 bits of all there is."""
    size_bytes = len(data)
    assert size_bytes > 16 * 4096
    for cut in {*range(0, size_bytes, 4096), 1, 4095, 21, 22, *range(size_bytes - END_BYTES, size_bytes)}:
        yield data[:cut]
    chance = random.Random(1)
    bits = {(size_bytes - 1 - byte, bit) for byte in range(END_BYTES) for bit in range(8)}
    # one of each 200th of the file, so that no region is left out
    bits |= {(chance.randrange(size_bytes * n // 200, size_bytes * (n + 1) // 200), n % 8) for n in range(200)}
    for byte, bit in sorted(bits):
        yield data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


@pytest.mark.parametrize("on_the_list", [True, False])
def test_a_cut_or_flipped_file_is_passed_over_with_and_without_the_list(
    on_the_list: bool, folder: CheckpointFolder, saved: list[Path]
) -> None:
    if not on_the_list:
        take_off_the_list(folder, saved[2])
    good = saved[2].read_bytes()
    assert found_step(folder) == 10
    num_tried = 0
    for data in damaged(good):
        saved[2].write_bytes(data)
        search = newest_verified(folder)
        assert search.found is not None and search.found.step == 2
        (skipped,) = search.skipped
        assert (skipped.path, skipped.step) == (saved[2], 10)
        told = ("was saved with",) if on_the_list else ("torn", "content has changed")
        assert any(text in skipped.reason for text in told), skipped.reason
        num_tried += 1
    assert num_tried > 750
    saved[2].write_bytes(good)
    assert found_step(folder) == 10


def test_torch_itself_would_load_a_flipped_tensor(saved: list[Path]) -> None:
    """Why a checkpoint carries a checksum: without one, what the test above shows would not hold."""
    data = bytearray(saved[2].read_bytes())
    data[len(data) // 2] ^= 1
    saved[2].write_bytes(data)
    assert not torch.load(saved[2], weights_only=True)["state"]["model"]["weight"].eq(10).all()
    with pytest.raises(CheckpointError, match=r"ep1-ba10-rank0\.pt has checksum .* content has changed"):
        load_checkpoint(saved[2])


def test_a_copy_that_was_damaged_on_its_way_is_refused(saved: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "somewhere" / "best.pt"
    copy.parent.mkdir()
    shutil.copy(saved[2], copy)
    assert load_plain(copy)["timestamp"]["batch"] == 10
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"best\.pt has checksum .* content has changed"):
        load_plain(copy)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"ep1-ba10-rank0.pt": {"size_bytes": "x"}}', "\xff"])
def test_checkpoints_whose_list_is_lost_vouch_for_themselves(
    text: str | None, folder: CheckpointFolder, saved: list[Path]
) -> None:
    if text is None:
        folder.index_path.unlink()
    else:
        folder.index_path.write_text(text, encoding="latin-1")
    search = newest_verified(folder)
    assert search.found is not None
    assert (search.found.step, search.found.listed, search.skipped) == (10, False, ())
    data = bytearray(saved[2].read_bytes())
    data[len(data) // 2] ^= 1
    saved[2].write_bytes(data)
    assert found_step(folder) == 2


def test_a_file_without_any_checksum_is_the_last_resort(
    folder: CheckpointFolder, saved: list[Path], make_state: MakeState, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (11, 12):
        torch.save(make_state(step, numel=NUMEL), folder.path / f"ep1-ba{step}-rank0.pt")
    search = newest_verified(folder)
    assert search.found is not None and search.found.step == 10
    assert [skipped.step for skipped in search.skipped] == [12, 11]
    assert all("has no checksum" in skipped.reason for skipped in search.skipped)
    assert caplog.text == ""

    for path in saved:
        path.write_bytes(b"torn")
    search = newest_verified(folder)
    assert search.found is not None
    assert (search.found.step, search.skipped) == (12, ())
    assert "ep1-ba12-rank0.pt has no checksum" in caplog.text
    assert "there is no other" in caplog.text


def test_an_older_file_that_is_whole_holds_where_the_list_speaks_of_its_successor(
    open_folder: Callable[..., CheckpointFolder], make_state: MakeState
) -> None:
    """A kill between the list and the rename, when a checkpoint is to take the place of another."""
    folder = open_folder("ep{epoch}-rank{rank}.pt")
    path = save(CheckpointWriter(folder), make_state(7, numel=NUMEL))
    entries = listed(folder)
    entries[path.name].update(step=8, crc32c="00000000")
    folder.index_path.write_text(json.dumps(entries))
    search = newest_verified(folder)
    assert search.found is not None
    assert (search.found.step, search.found.listed) == (7, False)
    assert found_step(folder) == 7


def test_files_swapped_between_steps_are_noticed(folder: CheckpointFolder, saved: list[Path]) -> None:
    swap(saved[1], saved[2])
    search = newest_verified(folder)
    assert search.found is not None and search.found.step == 1
    assert [skipped.reason for skipped in search.skipped] == [
        "was saved after step 2, not 10 as its name says",
        "was saved after step 10, not 2 as its name says",
    ]
    folder.index_path.unlink()
    assert found_step(folder) == 1


@pytest.mark.parametrize("with_list", [True, False])
def test_files_swapped_between_runs_are_noticed(
    with_list: bool, folder: CheckpointFolder, saved: list[Path], make_state: MakeState, tmp_path: Path
) -> None:
    other = RunDirectory.claim(tmp_path / "runs", "bar")
    fields: dict[str, int | str] = {"run_name": "bar", "rank": 0}
    others = CheckpointFolder(folder._paths, other.resolve, fields)
    writer = CheckpointWriter(others)
    theirs = [save(writer, make_state(step, run_name="bar", numel=NUMEL)) for step in STEPS]
    other.release()
    swap(saved[2], theirs[2])
    if with_list:
        swap(folder.index_path, others.index_path)
        # by the list all is well: what is loaded must say whose it is
        for one in (folder, others):
            assert reached(newest_verified(one)) == 10
            with pytest.raises(CheckpointError, match="belongs to run_name"):
                load_checkpoint(one.path / saved[2].name, run_name=one.run_name, rank=one.rank)
    else:
        for one in (folder, others):
            assert found_step(one) == 2
            (skipped,) = newest_verified(one).skipped
            assert "content has changed" in skipped.reason or "belongs to run_name" in skipped.reason


def reached(search: Search) -> int | None:
    return None if search.found is None else search.found.step


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("kind", ["folder", "dangling", "outside", "file", "loop"])
def test_what_became_of_the_link_to_the_latest_plays_no_part(
    kind: str, folder: CheckpointFolder, saved: list[Path], make_state: MakeState, tmp_path: Path
) -> None:
    latest = folder.path / "latest-rank0.pt"
    latest.unlink()
    outside = tmp_path / "outside.pt"
    shutil.copy(saved[0], outside)
    before = outside.read_bytes()
    if kind == "folder":
        latest.mkdir()
    elif kind == "file":
        latest.write_bytes(b"not a link")
    else:
        latest.symlink_to({"dangling": "nowhere.pt", "outside": outside, "loop": latest.name}[kind])
    assert found_step(folder) == 10
    save(CheckpointWriter(folder), make_state(11, numel=NUMEL))
    assert found_step(folder) == 11
    assert outside.read_bytes() == before
    if kind != "folder":
        assert latest.is_symlink() and latest.resolve() == folder.path / "ep1-ba11-rank0.pt"


@pytest.mark.parametrize("on_the_list", [True, False])
def test_a_newer_format_is_an_error_and_no_older_checkpoint(
    on_the_list: bool, folder: CheckpointFolder, saved: list[Path], make_state: MakeState
) -> None:
    path = save(CheckpointWriter(folder), {**make_state(11, numel=NUMEL), "format": 2})
    if not on_the_list:
        take_off_the_list(folder, path)
    with pytest.raises(NewerFormatError, match=r"ep1-ba11-rank0\.pt has format 2.*reads up to 1"):
        search = newest_verified(folder)
        assert reached(search) == 11
        load_checkpoint(path)
