from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from harness.errors import RunDirError
from harness.run.append_file import MAX_PENDING_BYTES, AppendFile, cut_lines_after
from harness.run.durable import temporary_path


def line(number: int, size: int = 64) -> bytes:
    return (b'{"step":%d}' % number).ljust(size - 1) + b"\n"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_lines_are_in_the_file_as_soon_as_they_are_written(tmp_path: Path) -> None:
    log = AppendFile(tmp_path / "log")
    log.write(b"one\n")
    log.write(b"two\nthree\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"
    assert log.health.bytes_written == 14
    log.close()
    assert log.health.errors == 0
    assert log.health.last_error is None


def test_an_existing_file_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first attempt\n")
    log = AppendFile(tmp_path / "log")
    log.write(b"second\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"first attempt\nsecond\n"


def test_a_torn_last_line_of_a_killed_process_is_ended_first(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"step":1}\n{"st')
    log = AppendFile(tmp_path / "log")
    log.write(b'{"step":2}\n')
    log.write(b'{"step":3}\n')
    log.close()
    assert (tmp_path / "log").read_bytes().splitlines() == [
        b'{"step":1}',
        b'{"st',
        b'{"step":2}',
        b'{"step":3}',
    ]


def test_part_of_a_line_is_refused(tmp_path: Path) -> None:
    log = AppendFile(tmp_path / "log")
    with pytest.raises(ValueError, match="whole lines"):
        log.write(b"no newline")
    with pytest.raises(ValueError, match="whole lines"):
        log.write(b"")
    log.close()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "no folder"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "link":
        path.symlink_to(tmp_path / "victim")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "gone" / "log"
    with pytest.raises(RunDirError, match="cannot open"):
        AppendFile(path)
    assert not (tmp_path / "victim").exists()


def test_a_full_disk_delays_lines_and_tears_none(tmp_path: Path, file_size_limit) -> None:
    path = tmp_path / "log"
    log = AppendFile(path)
    file_size_limit(1000)  # not a multiple of a line: the 16th is cut short
    for number in range(50):
        log.write(line(number))
    assert path.stat().st_size == 1000
    assert log.health.errors > 0
    assert log.health.last_error == "File too large"
    file_size_limit(2010)
    log.write(line(50))
    assert path.stat().st_size == 2010
    file_size_limit(None)
    log.write(line(51))
    log.close()
    assert path.read_bytes() == b"".join(line(number) for number in range(52))
    assert log.health.dropped_lines == 0
    assert log.health.bytes_written == path.stat().st_size


@pytest.mark.parametrize("limit", [1000, 1024])  # inside a line, and between two
def test_what_does_not_fit_is_dropped_oldest_first_by_whole_lines(tmp_path: Path, file_size_limit, limit: int) -> None:
    size = 64 * 1024
    path = tmp_path / "log"
    log = AppendFile(path)
    file_size_limit(limit)
    for number in range(16):
        log.write(line(number))
    total = 2 * MAX_PENDING_BYTES // size
    for number in range(16, total):
        log.write(line(number, size))
    file_size_limit(None)
    log.write(line(total))
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    numbers = [int(text.split(b":")[1].split(b"}")[0]) for text in lines]
    assert all(text in (line(number), line(number, size)) for number, text in zip(numbers, lines, strict=True))
    assert numbers == sorted(numbers)
    assert numbers[:16] == list(range(16))
    assert numbers[-1] == total
    assert log.health.dropped_lines == total + 1 - len(numbers)
    assert log.health.dropped_lines > 0
    # all that fits is kept: at least seven eighths of the bound
    assert path.stat().st_size > MAX_PENDING_BYTES * 7 // 8 - 2 * size


def test_a_line_that_a_later_write_tore_is_ended_before_what_was_kept(tmp_path: Path, file_size_limit) -> None:
    size = 64 * 1024
    path = tmp_path / "log"
    log = AppendFile(path)
    file_size_limit(1024)
    for number in range(20):
        log.write(line(number))
    file_size_limit(1100)  # inside the 18th line, which waited
    total = 2 * MAX_PENDING_BYTES // size
    for number in range(20, total):
        log.write(line(number, size))
    file_size_limit(None)
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:18] == [line(number) for number in range(18)]
    assert all(len(text) == size for text in lines[18:])
    assert log.health.dropped_lines == total - len(lines)


def test_what_still_waits_at_the_end_is_counted_as_dropped(tmp_path: Path, file_size_limit) -> None:
    log = AppendFile(tmp_path / "log")
    file_size_limit(64)
    for number in range(3):
        log.write(line(number))
    log.close()
    assert (tmp_path / "log").read_bytes() == line(0)
    assert log.health.dropped_lines == 2


def test_a_line_after_close_is_counted_and_not_written(tmp_path: Path) -> None:
    log = AppendFile(tmp_path / "log")
    log.write(b"a\n")
    log.close()
    log.close()
    log.write(b"b\nc\n")
    assert (tmp_path / "log").read_bytes() == b"a\n"
    assert log.health.dropped_lines == 2


def test_a_forked_child_writes_nothing_even_when_the_lock_was_held(tmp_path: Path) -> None:
    log = AppendFile(tmp_path / "log")
    with log._lock:  # as when another thread is in a write at the moment of the fork
        pid = os.fork()
        if pid == 0:
            log.write(b"child\n")
            log.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    log.write(b"parent\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"parent\n"


def test_lines_of_several_threads_do_not_mix_and_a_close_in_between_is_safe(tmp_path: Path) -> None:
    log = AppendFile(tmp_path / "log")

    def add(name: bytes) -> None:
        for _ in range(2000):
            log.write(name * 20 + b"\n")

    threads = [threading.Thread(target=add, args=(name,)) for name in (b"a", b"b")]
    for thread in threads:
        thread.start()
    threads[0].join()
    log.close()
    threads[1].join()
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert set(lines) <= {b"a" * 20, b"b" * 20}
    assert lines.count(b"a" * 20) == 2000
    assert len(lines) + log.health.dropped_lines == 4000


def test_cutting_keeps_the_lines_up_to_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics-rank0.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2,"loss":"NaN"}\n{"time":3.5}\n{"step":3}\n{"step":4}\n')
    assert cut_lines_after(path, 2) == 2
    assert path.read_bytes() == b'{"step":1}\n{"step":2,"loss":"NaN"}\n{"time":3.5}\n'
    assert names(tmp_path) == [path.name]


def test_cutting_drops_torn_lines_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "metrics-rank0.jsonl"
    path.write_bytes(b'{"step":1}\n{"st\n\xff\xfe\n[1]\n{"step":2}\n{"step":2}')
    assert cut_lines_after(path, 2) == 4
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n'


def test_cutting_removes_what_a_killed_cut_left(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"step":1}\n')
    temporary_path(path).write_bytes(b'{"step":')
    assert cut_lines_after(path, 1) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_cutting_a_file_with_nothing_to_cut_leaves_the_very_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics-rank0.jsonl"
    path.write_bytes(b'{"step":1}\n')
    before = path.stat()
    assert cut_lines_after(path, 1) == 0
    assert os.path.samestat(before, path.stat())
    assert names(tmp_path) == [path.name]


def test_cutting_a_file_larger_than_a_block_keeps_every_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics-rank0.jsonl"
    text = b"".join(line(number, 200) for number in range(20_000))
    path.write_bytes(text)
    assert cut_lines_after(path, 14_999) == 5000
    assert path.read_bytes() == text[: 15_000 * 200]


def test_cutting_a_missing_file_cuts_nothing_and_a_link_is_refused(tmp_path: Path) -> None:
    assert cut_lines_after(tmp_path / "gone", 1) == 0
    (tmp_path / "victim").write_bytes(b'{"step":9}\n')
    (tmp_path / "log").symlink_to("victim")
    with pytest.raises(RunDirError, match="cannot read"):
        cut_lines_after(tmp_path / "log", 1)
    assert (tmp_path / "victim").read_bytes() == b'{"step":9}\n'
