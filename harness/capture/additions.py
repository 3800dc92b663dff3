"""What the harness adds to a trace: which run it is, and the system's metrics as counter tracks.

Samples are taken with the Unix clock and a trace counts from its `baseTimeNanoseconds`: a subtraction puts
them on one clock.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from harness.capture.repair import microseconds
from harness.capture.trace_file import FinishJob
from harness.trace.reader import Trace

_SYSTEM_PID = 10_000_000
"""Above every process id of Linux (at most 4,194,304) and every device number."""
_SYSTEM_TRACK = "system"


def header_of(trace: Trace, job: FinishJob) -> dict[str, msgspec.Raw]:
    """The top-level keys of the finished trace: the recorded ones and the run's.

    `distributedInfo` is written by torch only inside torch.distributed; other tools need it to know the rank.
    """
    ours: dict[str, object] = {
        "run_name": job.run_name,
        "rank": job.rank,
        "world_size": job.world_size,
        "attempt": job.attempt,
        "recipe": job.recipe,
        "first_step": job.first_step,
        "last_step": job.last_step,
        "cut": job.cut,
    }
    header = dict(trace.document.header)
    header.pop("traceName", None)  # the private path it was exported to
    if "distributedInfo" not in header:
        ours["distributedInfo"] = {"rank": job.rank, "world_size": job.world_size}
    return header | {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in ours.items()}


def trace_name_of(job: FinishJob) -> msgspec.Raw:
    """The value of `traceName`, which comes after the events: the finished file's name."""
    return msgspec.Raw(msgspec.json.encode(Path(job.final_path).name))


def added_events(trace: Trace, job: FinishJob) -> list[bytes]:
    """Events to append: a label for the training process, and one counter track for each system metric."""
    starts = trace.ts_ns[trace.spans]
    first_ns = int(starts.min()) if starts.size else 0
    events = [_label(pid, job, first_ns) for pid in _training_pids(trace)]
    counters = _counters(trace, job)
    if counters:
        pid = _free_pid(trace)
        events.append(_metadata("process_name", pid, first_ns, {"name": _SYSTEM_TRACK}))
        events.append(_label(pid, job, first_ns))
        events += [_counter(pid, *counter) for counter in counters]
    return events


def _counters(trace: Trace, job: FinishJob) -> list[tuple[str, int, float]]:
    """Metric, ns on the trace's clock, value. JSON has no NaN or infinity: such a value is no sample."""
    base_ns = trace.base_time_ns or 0
    return [
        (name, point.time_ns - base_ns, value)
        for point in job.system
        for name, value in point.values.items()
        if math.isfinite(value)
    ]


def _counter(pid: int, name: str, ts_ns: int, value: float) -> bytes:
    return b'{"ph": "C", "name": %s, "pid": %d, "tid": 0, "ts": %s, "args": {"value": %s}}' % (
        msgspec.json.encode(name),
        pid,
        microseconds(ts_ns),
        msgspec.json.encode(value),
    )


def _label(pid: int, job: FinishJob, ts_ns: int) -> bytes:
    return _metadata("process_labels", pid, ts_ns, {"labels": f"{job.run_name} rank {job.rank}"})


def _metadata(name: str, pid: int, ts_ns: int, args: dict[str, str]) -> bytes:
    """A name for a process. It has a time, within the trace, because readers take the first of all events."""
    ts = msgspec.Raw(microseconds(ts_ns))
    return msgspec.json.encode({"ph": "M", "name": name, "pid": pid, "tid": 0, "ts": ts, "args": args})


def _training_pids(trace: Trace) -> list[int]:
    """The processes that recorded annotations: one, the process that trains."""
    rows = np.flatnonzero(trace.spans & trace.mask(cat="user_annotation"))
    pids = (trace.pids[index] for index in np.unique(trace.pid[rows]).tolist())
    return [pid for pid in pids if isinstance(pid, int)]


def _free_pid(trace: Trace) -> int:
    pid = _SYSTEM_PID
    while pid in trace.pids:
        pid += 1
    return pid
