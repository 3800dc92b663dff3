"""Makes the finished trace of a raw one: `python -m harness.capture.finish JOB.json`, at low priority.

Reads the raw file once, repairs it, adds the run's names and the system's counters, writes it as gzip beside
the target, reads it back, and only then renames it to its name and removes the raw file. Whatever goes wrong,
the raw file stays and the result says where. `harness.capture.trace_file` starts this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from harness.capture.additions import added_events, header_of, trace_name_of
from harness.capture.repair import clip_overlaps, rewrite_times
from harness.capture.trace_file import FinishJob, FinishResult
from harness.errors import CaptureError, HarnessError
from harness.run.durable import (
    commit,
    create_file,
    disk_error,
    remove_leftovers,
    temporary_path,
    write_atomically,
)
from harness.trace.document import Document, parse_document, read_document
from harness.trace.reader import Trace, to_columns
from harness.trace.spans import phase_spans, profiler_steps

_NICE = 19
_GZIP_LEVEL = 1
"""16 times faster than the level 9 of Python's gzip, for a file a third larger."""
_GZIP_WINDOW_BITS = 31
_EVENTS_PER_WRITE = 4096
EXIT_BUSY = 3
"""Another process is finishing this trace."""


def main(arguments: list[str]) -> int:
    """Finish the trace of one job file; the exit status says whether it worked.

    Writes the trace and the result file that the job names.
    """
    os.nice(_NICE)
    job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=FinishJob)
    try:
        with _open_raw(Path(job.raw_path)) as raw:
            result = finish(job, raw)
    except BlockingIOError:
        print(f"another process is finishing {job.final_path}", file=sys.stderr)  # noqa: T201 - the child's log
        return EXIT_BUSY
    except OSError as error:
        result = FinishResult(ok=False, error=f"{job.raw_path}: cannot be read: {error.strerror or error}")
    result = msgspec.structs.replace(result, cpu_ns=time.process_time_ns())
    write_atomically(Path(job.result_path), msgspec.json.encode(result), durable=False)
    return 0 if result.ok else 1


def finish(job: FinishJob, raw: BinaryIO) -> FinishResult:
    """Write the finished trace, then remove the raw one and its folder.

    Args:
        job: What to do.
        raw: The raw trace, opened and locked.

    Returns:
        The result; `ok` is False where the trace could not be written. The raw file is then still there.
    """
    final = Path(job.final_path)
    try:
        remove_leftovers(final)  # of a process that was killed over this trace; its lock is ours now
        trace, events, result = _prepare(job, raw)
        temporary = temporary_path(final)
        try:
            _write_gzip(temporary, _json_pieces(header_of(trace, job), events, trace_name_of(job)))
            num_events = len(events)
            del trace, events  # the check needs the memory
            _check(temporary, num_events)
            size_bytes = temporary.stat().st_size
            commit(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
    except (HarnessError, OSError, MemoryError) as error:
        return FinishResult(ok=False, error=_reason(error, final), kept_raw_path=job.raw_path)
    _remove_raw(Path(job.raw_path))
    return msgspec.structs.replace(result, ok=True, size_bytes=size_bytes)


def _reason(error: HarnessError | OSError | MemoryError, final: Path) -> str:
    if isinstance(error, HarnessError):
        return str(error)
    if isinstance(error, OSError):
        return str(disk_error("write", final, error))
    return f"cannot write {final}: not enough memory"


def _open_raw(path: Path) -> BinaryIO:
    """Open the raw trace, not through a link, and hold its lock: one process at a time works on it."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _prepare(job: FinishJob, raw: BinaryIO) -> tuple[Trace, list[msgspec.Raw | bytes], FinishResult]:
    """Read and repair the raw trace: its columns, the events to write, and what there is to report so far.

    Raises:
        TraceFormatError: It is no trace.
        CaptureError: It has no events.
    """
    document = parse_document(raw.read(), source=job.raw_path)
    if not document.events:
        raise CaptureError(f"{job.raw_path}: torch exported a trace without events")
    trace = to_columns(document, source=job.raw_path)
    changes = clip_overlaps(trace)
    events: list[msgspec.Raw | bytes] = list(document.events)
    for row, change in changes.items():
        position = int(trace.position[row])
        events[position] = rewrite_times(document.events[position], change)
    unbegun = _steps_after(trace, job.last_step)
    events = [event for position, event in enumerate(events) if position not in unbegun]
    events += added_events(trace, job)
    result = FinishResult(
        ok=False,
        events=len(events),
        repaired_overlaps=len(changes),
        repaired_names=document.repaired,
        dropped_events=document.dropped,
        profiler_steps=sorted({step.step for step in profiler_steps(trace) if step.step <= job.last_step}),
        phase_annotations=len(phase_spans(trace)),
    )
    return trace, events, result


def _steps_after(trace: Trace, last_step: int) -> set[int]:
    """Positions of `ProfilerStep#N` with a later N: torch opens the next step where one ends, and it never was."""
    numbers = (
        (index, name.removeprefix("ProfilerStep#"))
        for index, name in enumerate(trace.names)
        if name.startswith("ProfilerStep#")
    )
    late = [index for index, number in numbers if number.isdecimal() and int(number) > last_step]
    return set(trace.position[np.isin(trace.name, late)].tolist())


def _json_pieces(
    header: dict[str, msgspec.Raw], events: list[msgspec.Raw | bytes], trace_name: msgspec.Raw
) -> Iterator[bytes]:
    """The text of the finished trace: one top-level key, one event to a line."""
    yield b"{\n"
    for key, value in header.items():
        yield b"%s: %s,\n" % (msgspec.json.encode(key), bytes(value))
    yield b'"traceEvents": [\n'
    for start in range(0, len(events), _EVENTS_PER_WRITE):
        yield b",\n" if start else b""
        yield b",\n".join(events[start : start + _EVENTS_PER_WRITE])
    yield b'\n],\n"traceName": %s\n}\n' % bytes(trace_name)


def _write_gzip(path: Path, pieces: Iterable[bytes]) -> None:
    """Compress into a new file that nobody else can have put there."""
    engine = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    with os.fdopen(create_file(path), "wb") as file:
        for piece in pieces:
            file.write(engine.compress(piece))
        file.write(engine.flush())


def _check(path: Path, num_events: int) -> None:
    """Read the written file back from head to tail.

    Raises:
        CaptureError: It is not what was to be written.
    """
    written: Document = read_document(path)
    damaged = written.truncated or written.repaired or written.dropped
    if damaged or len(written.events) != num_events:
        raise CaptureError(f"{path}: reading back gave {len(written.events)} events of {num_events}")


def _remove_raw(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    with contextlib.suppress(OSError):  # the result file may lie in it
        path.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
