"""Checkpoints that somebody made to run code or to take all memory: refused, with nothing run and nothing taken."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import struct
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.checksum import ChecksumFile
from harness.checkpoint.find import load_checkpoint
from harness.checkpoint.index import IndexEntry, now, write_index
from harness.errors import CheckpointError

MAX_TAKEN_BYTES = 64 << 20
LIMIT_BYTES = 512 << 20
HUGE = 2_000_000_000
NUM_ELEMENTS = 1_000

Data = Callable[[Path], bytes]


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def saved(obj: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(obj, file, **options)
    return file.getvalue()


def checkpoint_of(step: int, extra: object = None) -> dict[str, Any]:
    """What looks like a checkpoint of `foo`, whose state holds something more."""
    return {
        "format": 1,
        "run_name": "foo",
        "rank": 0,
        "attempt": 1,
        "timestamp": {"batch": step, "epoch": 1},
        "state": {"model": {"weight": torch.zeros(NUM_ELEMENTS)}, "extra": extra},
        "rng": {},
        "position": {"batch_in_epoch": 0, "start": None},
    }


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """An archive as torch writes it, with another pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return made.getvalue()


def in_the_state(canary: Path) -> bytes:
    return saved(checkpoint_of(99, RunsCode(canary)))


def as_the_whole(canary: Path) -> bytes:
    return with_pickle(saved(checkpoint_of(99)), lambda _: pickle.dumps(RunsCode(canary), protocol=2))


def in_the_legacy_format(canary: Path) -> bytes:
    return saved(checkpoint_of(99, RunsCode(canary)), _use_new_zipfile_serialization=False)


def as_a_bare_pickle(canary: Path) -> bytes:
    return pickle.dumps(RunsCode(canary))


def as_a_script(canary: Path) -> bytes:
    """What torch takes for TorchScript, with a pickle of constants."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"archive/{name}", pickle.dumps(RunsCode(canary), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/code/__torch__.py", f"import os; os.system('touch {canary}')")
    return made.getvalue()


MALICIOUS: list[Data] = [in_the_state, as_the_whole, in_the_legacy_format, as_a_bare_pickle, as_a_script]


def test_the_payload_runs_where_nothing_holds_it_back(tmp_path: Path) -> None:
    """The control: each of them would have done it."""
    for make in (in_the_state, as_the_whole, in_the_legacy_format):
        canary = tmp_path / make.__name__
        torch.load(io.BytesIO(make(canary)), weights_only=False)
        assert canary.exists()
    pickle.loads(as_a_bare_pickle(tmp_path / "bare"))
    assert (tmp_path / "bare").exists()


@pytest.mark.parametrize("make", MALICIOUS)
def test_a_malicious_checkpoint_runs_nothing_when_it_is_loaded(
    make: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's own way to have no safety anywhere; a load that says what it wants is not moved by it
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, path = tmp_path / "canary", tmp_path / "ep1-ba99-rank0.pt"
    path.write_bytes(make(canary))
    with pytest.raises(CheckpointError, match=r"cannot be loaded|torn or no checkpoint"):
        load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("make", MALICIOUS)
def test_a_malicious_checkpoint_in_a_run_is_passed_over(
    make: Data, make_trainer: Callable[..., Any], written: Callable[..., Any], tmp_path: Path
) -> None:
    make_trainer(save_interval="4ba", max_duration="8ba").fit()
    canary = tmp_path / "canary"
    (written().path / "checkpoints" / "ep1-ba99-rank0.pt").write_bytes(make(canary))
    trainer = make_trainer(resume=True, save_interval="4ba")
    assert trainer.state.timestamp.batch == 8
    trainer.fit()
    assert written().steps() == list(range(1, 11))
    assert not canary.exists()


@pytest.mark.parametrize("make", MALICIOUS)
def test_a_malicious_checkpoint_with_right_checksums_is_an_error(
    make: Data, make_trainer: Callable[..., Any], written: Callable[..., Any], tmp_path: Path
) -> None:
    """A checksum speaks of the disk, not of who wrote: who can write the file can write the list too."""
    make_trainer(save_interval="4ba", max_duration="8ba").fit()
    canary = tmp_path / "canary"
    folder = written().path / "checkpoints"
    with ChecksumFile(folder / "ep1-ba99-rank0.pt") as file:
        file.write(make(canary))
    entry = IndexEntry(size_bytes=file.size_bytes, crc32c=file.hexdigest(), step=99, epoch=1, saved=now())
    write_index(folder / "checkpoints-rank0.json", {"ep1-ba99-rank0.pt": entry})
    with pytest.raises(CheckpointError, match=r"ep1-ba99-rank0\.pt (cannot be loaded|is torn or no checkpoint)"):
        make_trainer(resume=True, save_interval="4ba")
    assert not canary.exists()
    assert (folder / "ep1-ba99-rank0.pt").exists()


def zeros(call: bytes) -> bytes:
    return with_pickle(saved(checkpoint_of(1)), lambda _: b"\x80\x02" + call + b".")


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def inflated() -> bytes:
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(torch.zeros(50_000_000)))) as source,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return made.getvalue()


def declares(size_bytes: int, name: bytes = b"data/0") -> bytes:
    """The directory of the archive says that an entry, such as the tensor, has so many bytes."""
    data = bytearray(saved(checkpoint_of(1)))
    start = data.find(b"PK\x01\x02")
    while start >= 0:
        length = struct.unpack_from("<H", data, start + 28)[0]
        if data[start + 46 : start + 46 + length].endswith(name):
            struct.pack_into("<II", data, start + 20, size_bytes, size_bytes)
        start = data.find(b"PK\x01\x02", start + 4)
    return bytes(data)


def asks_for(num_elements: int) -> bytes:
    """The pickle says that the tensor has so many numbers."""
    small = b"M" + NUM_ELEMENTS.to_bytes(2, "little")
    return with_pickle(saved(checkpoint_of(1)), lambda pickled: pickled.replace(small, number(num_elements)))


def nested(depth: int) -> bytes:
    return zeros(b"]" * depth + b"a" * (depth - 1))


BOMBS = {
    "inflated": inflated,
    "declared": lambda: declares(HUGE),
    "declared-most": lambda: declares(2**32 - 2),
    "declared-pickle": lambda: declares(HUGE, b"data.pkl"),
    "numel": lambda: asks_for(HUGE),
    "numel-most": lambda: asks_for(2**62),
    "bytearray": lambda: zeros(b"cbuiltins\nbytearray\n" + number(HUGE) + b"\x85R"),
    "bytearray-python2": lambda: zeros(b"c__builtin__\nbytearray\n" + number(HUGE) + b"\x85R"),
    "bytearray-tuple-from-memo": lambda: zeros(number(HUGE) + b"\x85q\x000cbuiltins\nbytearray\nh\x00R"),
    "bytearray-from-memo": lambda: zeros(b"cbuiltins\nbytearray\nq\x00)R" + b"h\x00" + number(HUGE) + b"\x85R"),
    "bytearray-slot-of-encode": lambda: zeros(
        b"(c_codecs\nencode\nq\x00" + number(HUGE) + b"q\x00" + b"cbuiltins\nbytearray\nh\x00\x85Rt"
    ),
    "nested": lambda: nested(200_000),
}


def in_child(job: Callable[[], str]) -> tuple[str, int]:
    """What a job says in a process with half a gigabyte to spare, and the memory that it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + LIMIT_BYTES, used_bytes + LIMIT_BYTES))
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            told = job()
        except BaseException:
            told = "not an error of ours: " + traceback.format_exc()
        taken_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        os.write(writing, f"{taken_kib} {told}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        taken_kib, told = said.read().split(" ", 1)
    os.waitpid(child, 0)
    return told, int(taken_kib) << 10


def load(path: Path) -> str:
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        return error.message
    return "loaded"


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "ep0-ba1-rank0.pt"
    path.write_bytes(BOMBS[bomb]())
    assert path.stat().st_size < 1 << 20
    told, taken_bytes = in_child(lambda: load(path))
    assert told.startswith("ep0-ba1-rank0.pt "), told
    assert "emory" not in told or "asks for memory" in told, told
    assert taken_bytes < MAX_TAKEN_BYTES


def mutants(data: bytes, number: int, seed: int) -> Iterator[bytes]:
    """The data with some bits, bytes or pieces changed, cut out or doubled; and cut off at each 64th."""
    chance = random.Random(seed)
    for part in range(64):
        yield data[: len(data) * part // 64]
    for _ in range(number):
        mutant = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            at, length = chance.randrange(len(mutant)), chance.randrange(1, 64)
            piece = bytes(mutant[at : at + length])
            kind = chance.randrange(5)
            if kind == 0:
                mutant[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                mutant[at] = chance.choice((0, 127, 128, 255))
            elif kind == 2:
                del mutant[at : at + length]
            else:
                mutant[at:at] = piece if kind == 3 else b"\xff" * 4
        yield bytes(mutant)


@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_mutant_is_more_than_refused(number: int, tmp_path: Path) -> None:
    """Of a file that carries no checksum, so that torch gets to see what became of it."""
    data = saved(checkpoint_of(1, {"array": bytearray(b"abc"), "tensor": torch.arange(5)}))
    path = tmp_path / "ep0-ba1-rank0.pt"

    def load_all() -> str:
        told: Counter[str] = Counter()
        for mutant in mutants(data, number, seed=1):
            path.write_bytes(mutant)
            told["loaded" if load(path) == "loaded" else "refused"] += 1
        return f"{told['loaded'] > 0} {told['refused'] > number // 3} {told.total() == number + 64}"

    told, taken_bytes = in_child(load_all)
    assert told == "True True True"
    assert taken_bytes < MAX_TAKEN_BYTES


def test_byte_arrays_that_were_saved_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "ep0-ba1-rank0.pt"
    same = bytearray(b"twice")
    arrays = [bytearray(b"abc"), bytearray(b"x"), bytearray(b"x"), bytearray(), same, same, bytearray(range(256))]
    with ChecksumFile(path) as file:
        torch.save(checkpoint_of(1, {"bytearray": arrays, "text": "bytearray", "bytes": b"x"}), file)  # type: ignore[arg-type]
    assert load_checkpoint(path)["state"]["extra"]["bytearray"] == arrays
