from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import torch

from harness.checkpoint.checksum import ChecksumFile, check_seal, read_crc32c
from harness.errors import CheckpointError


def write(path: Path, state: Any) -> str:
    with ChecksumFile(path) as file:
        torch.save(state, file)  # type: ignore[arg-type]
    assert file.size_bytes == path.stat().st_size
    return file.hexdigest()


@pytest.mark.parametrize("num_tensors", [1, 3_000])
@pytest.mark.parametrize("numel", [1, 30_000])
def test_a_file_ends_in_the_checksum_of_what_is_before(tmp_path: Path, num_tensors: int, numel: int) -> None:
    tensor = torch.arange(float(numel))
    state = {"many": [torch.zeros(1) for _ in range(num_tensors)], "large": tensor}
    path = tmp_path / "a.pt"
    crc32c = write(path, state)
    data = path.read_bytes()
    assert data[-15:-8] == b"crc32c:"
    assert data[-8:].decode() == f"{google_crc32c.value(data[:-17]):08x}"
    assert crc32c == f"{google_crc32c.value(data):08x}"
    with path.open("rb") as file:
        assert read_crc32c(file.fileno()) == crc32c
    assert check_seal(path)


@pytest.mark.parametrize("before_bytes", [0, 1, (1 << 20) - 23, (1 << 20) - 22, (1 << 20) - 21, (1 << 20) + 5])
def test_the_end_of_an_archive_is_found_wherever_blocks_end(tmp_path: Path, before_bytes: int) -> None:
    path = tmp_path / "a.pt"
    body = os.urandom(before_bytes)
    with ChecksumFile(path) as file:
        for start in range(0, before_bytes, 1000):
            file.write(body[start : start + 1000])
        file.write(b"PK\x05\x06" + bytes(18))
    assert path.read_bytes().startswith(body + b"PK\x05\x06" + bytes(16) + b"\x0f\0crc32c:")
    assert check_seal(path)


def test_torch_and_zip_tools_read_it_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = {"weight": torch.arange(1000.0), "name": "x"}
    write(path, state)
    for options in ({}, {"mmap": True}, {"weights_only": False}):
        assert torch.load(path, **options)["weight"].equal(state["weight"])
    assert torch.load(io.BytesIO(path.read_bytes()))["name"] == "x"
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b"crc32c:")
        assert archive.testzip() is None
    subprocess.run([sys.executable, "-m", "zipfile", "-t", path], check=True, stdout=subprocess.DEVNULL)


def test_what_torch_saved_itself_carries_none(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "a.pt")
    assert check_seal(tmp_path / "a.pt") is False


@pytest.mark.parametrize("data", [b"", b"P", b"crc32c:00000000", b"PK\x05\x06" + bytes(16) + b"\x0f\0"])
def test_what_ends_otherwise_is_torn(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pt does not end as a checkpoint ends"):
        check_seal(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "a.pt", {})
    (tmp_path / "b.pt").symlink_to("a.pt")
    with pytest.raises(OSError, match="symbolic links"):
        check_seal(tmp_path / "b.pt")


def test_a_file_that_is_closed_half_written_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(ZeroDivisionError), ChecksumFile(path) as file:
        file.write(os.urandom(100))
        raise ZeroDivisionError
    assert path.stat().st_size == 100
    with pytest.raises(CheckpointError):
        check_seal(path)
