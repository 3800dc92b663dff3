"""System metrics of the DataLoader workers, which are processes of their own.

Looking through all processes of a machine for children costs a millisecond and more; the kernel lists them
for each thread in a file. Workers are told from other children by the name torch gives them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from harness.capture.readings import Counter, Reading

_WORKER_NAME = b"pt_data_worker"
"""torch.utils.data names the process of every worker so."""


class ProcessStat(NamedTuple):
    """The part of `/proc/PID/stat` that is of use here."""

    name: bytes
    state: bytes
    """One letter; Z is a process that has ended and waits to be collected."""
    cpu_ticks: int
    """User and kernel time since its start."""
    start_ticks: int
    """Start since boot: tells a process from a later one with the same number."""
    rss_pages: int


def parse_stat(line: bytes) -> ProcessStat:
    """Read one line of `/proc/PID/stat`; the name may hold spaces and parentheses."""
    head, _, tail = line.rpartition(b")")
    fields = tail.split()
    return ProcessStat(
        name=head.partition(b"(")[2],
        state=fields[0],
        cpu_ticks=int(fields[11]) + int(fields[12]),
        start_ticks=int(fields[19]),
        rss_pages=int(fields[21]),
    )


class WorkerProcesses:
    """Number, CPU and memory of this process's DataLoader workers.

    Children are looked through, and the children of other children, as the workers of a forkserver are. The
    CPU time of a worker between its last reading and its end is lost. Resident memory of forked workers holds
    the pages they share with the training process, counted once for each of them.

    Args:
        proc: The process file system.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._seen_ticks: dict[tuple[int, int], int] = {}
        self._sum_ticks = 0

    @property
    def available(self) -> bool:
        """Whether this system lists children in files (Linux, in nearly every kernel)."""
        return any((self._proc / "self" / "task").glob("*/children"))

    def read(self, now_ns: int) -> Reading:
        """Read the workers alive now. CPU % is of one processor, summed over the workers."""
        workers = self._find()
        seen = {(pid, stat.start_ticks): stat.cpu_ticks for pid, stat in workers.items()}
        # Summed here and not over the living: the sum must not fall when a worker ends.
        self._sum_ticks += sum(ticks - self._seen_ticks.get(key, 0) for key, ticks in seen.items())
        self._seen_ticks = seen
        rss_pages = sum(stat.rss_pages for stat in workers.values())
        return Reading(
            gauges={
                "num_workers": float(len(workers)),
                "workers_rss_bytes": float(rss_pages * self._page_bytes),
            },
            counters={"workers_cpu_pct": Counter(100.0 * self._sum_ticks * self._tick_s, now_ns)},
        )

    def _find(self) -> dict[int, ProcessStat]:
        workers: dict[int, ProcessStat] = {}
        for pid in self._children("self"):
            stat = self._stat(pid)
            if stat is not None and stat.name == _WORKER_NAME:
                workers[pid] = stat
            elif stat is not None:
                workers |= self._workers_of(pid)
        return workers

    def _workers_of(self, parent: int) -> dict[int, ProcessStat]:
        found = ((pid, self._stat(pid)) for pid in self._children(str(parent)))
        return {pid: stat for pid, stat in found if stat is not None and stat.name == _WORKER_NAME}

    def _children(self, process: str) -> list[int]:
        pids: list[int] = []
        tasks = f"{self._proc}/{process}/task"
        for task in _list(tasks):
            pids += (int(pid) for pid in (_read(f"{tasks}/{task}/children") or b"").split())
        return pids

    def _stat(self, pid: int) -> ProcessStat | None:
        line = _read(f"{self._proc}/{pid}/stat")
        if line is None:
            return None
        stat = parse_stat(line)
        return None if stat.state in (b"Z", b"X") else stat


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  half the cost of Path.iterdir, for every thread
    except (FileNotFoundError, ProcessLookupError):
        return []


def _read(path: str) -> bytes | None:
    """The file's bytes, or None when the process or thread has ended in the meantime."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        return os.read(fd, 65536)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
