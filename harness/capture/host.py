"""System metrics of the host and of this process, through psutil.

Which sources there are and how often each may be read is decided here. A reading costs 25 to 50 µs in a tight
loop, but up to 200 µs when it comes after 50 ms of other work and finds the caches cold: so only what can
move within 50 ms is read as often.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from harness.capture.nvidia import find_nvidia
from harness.capture.readings import Counter, Reading, Source, SourceGroup
from harness.capture.workers import WorkerProcesses
from harness.units import NS_PER_S

_SLOW_S = 1.0
# The driver averages a GPU's utilisation over 1/6 s and more; disks and networks have buffers.
_MEDIUM_S = 0.2
_BUSY_KINDS = ("user", "nice", "system", "irq", "softirq", "steal")
_LOOPBACK = frozenset({"lo", "lo0"})


def default_source(*, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> SourceGroup:
    """Everything this machine can say: the process, the host, DataLoader workers and NVIDIA devices.

    What the machine does not expose (disks in some containers, workers without `/proc`) has no value at all.
    """
    processors = Processors()
    sources = [
        Source(name="process", read=ProcessUse().read),
        Source(name="processors", read=processors.read),
        Source(name="memory", read=read_memory, min_interval_s=_MEDIUM_S),
        Source(name="network", read=DeviceBytes.of_network().read, min_interval_s=_MEDIUM_S),
        Source(name="disks", read=DeviceBytes.of_disks().read, min_interval_s=_MEDIUM_S),
        Source(name="each processor", read=processors.read_each, min_interval_s=_SLOW_S),
        Source(name="load", read=read_load, min_interval_s=_SLOW_S),
    ]
    workers = WorkerProcesses()
    if workers.available:
        sources.append(Source(name="workers", read=workers.read, min_interval_s=_SLOW_S))
    nvidia = find_nvidia()
    if nvidia is not None:
        sources.append(Source(name="nvidia", read=nvidia.read, min_interval_s=_MEDIUM_S))
    return SourceGroup(sources, monotonic_ns=monotonic_ns)


class ProcessUse:
    """CPU time, memory, page faults and context switches of this process, all its threads together."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def read(self, now_ns: int) -> Reading:
        """Read the process. CPU % is of one processor: two busy threads are 200 %."""
        use = resource.getrusage(resource.RUSAGE_SELF)
        # Not psutil's CPU times: those come in ticks of 10 ms, 20 % of one processor in a sample of 50 ms.
        cpu_s = time.process_time_ns() / NS_PER_S
        return Reading(
            gauges={"process_rss_bytes": float(self._process.memory_info().rss)},
            counters={
                "process_cpu_pct": Counter(100.0 * cpu_s, now_ns),
                "page_faults_major_per_s": Counter(use.ru_majflt, now_ns),
                "page_faults_minor_per_s": Counter(use.ru_minflt, now_ns),
                "context_switches_voluntary_per_s": Counter(use.ru_nvcsw, now_ns),
                "context_switches_involuntary_per_s": Counter(use.ru_nivcsw, now_ns),
            },
        )


def busy_s(times: Any) -> float:
    """Seconds in which a processor did not idle, from its times by kind as psutil gives them.

    Waiting for a disk is idle; time the hypervisor took away counts as busy, as it was not there to be used.
    Idle time takes no part: in Linux it can go backwards.
    """
    # guest and guest_nice are in user and nice already
    return sum(float(getattr(times, kind, 0.0)) for kind in _BUSY_KINDS)


class Processors:
    """How busy the machine's processors are, with all processes on it.

    The system counts in ticks of 10 ms, so a single short sample can be off by a tick for each processor, to
    either side; the mean over samples is right.
    """

    def __init__(self) -> None:
        self._num = psutil.cpu_count() or 1

    def read(self, now_ns: int) -> Reading:
        """All of them together: 100 % is all of them busy."""
        pct_s = 100.0 * busy_s(psutil.cpu_times()) / self._num
        return Reading(counters={"system_cpu_pct": Counter(pct_s, now_ns)})

    def read_each(self, now_ns: int) -> Reading:
        """Every one for itself, by the system's number."""
        each = enumerate(psutil.cpu_times(percpu=True))
        return Reading(
            counters={f"system_cpu{number}_pct": Counter(100.0 * busy_s(times), now_ns) for number, times in each}
        )


def read_memory(now_ns: int) -> Reading:  # noqa: ARG001  gauges only
    """Memory of the machine, not of a container's limit."""
    memory = psutil.virtual_memory()
    return Reading(
        gauges={
            "memory_available_bytes": float(memory.available),
            "memory_used_pct": 100.0 * (memory.total - memory.available) / memory.total,
        }
    )


def read_load(now_ns: int) -> Reading:  # noqa: ARG001  a gauge
    """Processes that ran or waited for a processor or disk, averaged over a minute."""
    return Reading(gauges={"load_1min": os.getloadavg()[0]})


class DeviceBytes:
    """Bytes in and out of all devices of a kind, each byte counted once.

    The system also counts a byte in partitions, mappers, bridges and mirrors on top of a device, so that a
    plain sum is too much. Devices with hardware behind them (a `device` entry in sysfs) are summed.

    Args:
        values: Names of the two values: what comes in, what goes out.
        read_devices: Gives (in, out) bytes by device name, counted since boot.
        sysfs: Folder with an entry for each device.
        only_hardware: Whether a machine without any hardware device has no value. If not, all devices are
            summed.
    """

    def __init__(
        self,
        values: tuple[str, str],
        read_devices: Callable[[], Mapping[str, tuple[float, float]]],
        *,
        sysfs: Path,
        only_hardware: bool,
    ) -> None:
        self._values = values
        self._read_devices = read_devices
        self._sysfs = sysfs
        self._only_hardware = only_hardware
        self._is_hardware: dict[str, bool] = {}

    @classmethod
    def of_disks(cls, sysfs: Path = Path("/sys/class/block")) -> DeviceBytes:
        """Bytes read from and written to disks, by the whole machine."""
        return cls(("disk_read_bytes_per_s", "disk_write_bytes_per_s"), _disks, sysfs=sysfs, only_hardware=True)

    @classmethod
    def of_network(cls, sysfs: Path = Path("/sys/class/net")) -> DeviceBytes:
        """Bytes received and sent by the whole machine, loopback left out.

        A container sees only virtual interfaces, so there all of them count.
        """
        return cls(("net_recv_bytes_per_s", "net_sent_bytes_per_s"), _interfaces, sysfs=sysfs, only_hardware=False)

    def read(self, now_ns: int) -> Reading:
        """Sum over the devices that count."""
        devices = self._read_devices()
        counted = self._counted(devices)
        if not counted:
            return Reading()
        bytes_in = sum(devices[name][0] for name in counted)
        bytes_out = sum(devices[name][1] for name in counted)
        name_in, name_out = self._values
        return Reading(counters={name_in: Counter(bytes_in, now_ns), name_out: Counter(bytes_out, now_ns)})

    def _counted(self, names: Iterable[str]) -> list[str]:
        names = list(names)
        for name in names:
            if name not in self._is_hardware:
                self._is_hardware[name] = (self._sysfs / name / "device").exists()
        hardware = [name for name in names if self._is_hardware[name]]
        return hardware if hardware or self._only_hardware else names


def _disks() -> dict[str, tuple[float, float]]:
    # nowrap=False: psutil's own wrap repair keeps state between callers; a wrap is seen in `rates`.
    try:
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
    except NotImplementedError:  # this machine exposes none, and never will
        return {}
    return {name: (io.read_bytes, io.write_bytes) for name, io in counters.items()}


def _interfaces() -> dict[str, tuple[float, float]]:
    counters = psutil.net_io_counters(pernic=True, nowrap=False) or {}
    return {name: (io.bytes_recv, io.bytes_sent) for name, io in counters.items() if name not in _LOOPBACK}
