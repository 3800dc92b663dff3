from __future__ import annotations

import os
import socket
import time
from collections import namedtuple
from pathlib import Path

import pytest

from harness.capture.host import DeviceBytes, Processors, busy_s, default_source, read_memory
from harness.capture.readings import Counter, rates

S = 1_000_000_000
Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


def two_readings(work) -> tuple[dict[str, float], dict[str, float]]:
    """Rates and gauges of the default source over `work`."""
    source = default_source()
    before = source.read()
    work()
    after = source.read()
    assert before.errors == after.errors == ()
    return rates(before.counters, after.counters).values, dict(after.gauges)


def burn(seconds: float) -> None:
    end_ns = time.process_time_ns() + round(seconds * S)
    while time.process_time_ns() < end_ns:
        pass


def test_busy_seconds_leave_out_idling_and_count_guests_once() -> None:
    times = Times(
        user=10,
        nice=1,
        system=5,
        idle=1000,
        iowait=100,
        irq=0.5,
        softirq=0.25,
        steal=2,
        guest=4,
        guest_nice=1,
    )
    assert busy_s(times) == 18.75


def test_busy_seconds_work_where_the_system_knows_fewer_kinds() -> None:
    assert busy_s(namedtuple("MacTimes", "user nice system idle")(3, 1, 2, 50)) == 6


def test_one_busy_thread_reads_as_about_100_pct_of_one_processor() -> None:
    started_ns = time.monotonic_ns()
    values, _ = two_readings(lambda: burn(0.3))
    wall_s = (time.monotonic_ns() - started_ns) / S
    # 0.3 s of CPU over what the wall clock says it took: exact whatever else the machine does
    assert values["process_cpu_pct"] == pytest.approx(100 * 0.3 / wall_s, rel=0.1)
    assert values["system_cpu_pct"] > 0


def test_processors_together_are_the_mean_of_each() -> None:
    processors = Processors()
    together = processors.read(0).counters["system_cpu_pct"].total
    each = [counter.total for counter in processors.read_each(0).counters.values()]
    assert len(each) == os.cpu_count()
    # centiseconds pass between the two readings
    assert together == pytest.approx(sum(each) / len(each), rel=1e-3, abs=100)


def test_touching_memory_shows_in_rss_and_in_minor_faults() -> None:
    size = 64 << 20
    _, before = two_readings(lambda: None)
    kept = []
    values, gauges = two_readings(lambda: kept.append(bytearray(size)))
    assert gauges["process_rss_bytes"] - before["process_rss_bytes"] == pytest.approx(size, rel=0.2)
    assert values["page_faults_minor_per_s"] > 0


def test_waiting_shows_as_voluntary_context_switches() -> None:
    def wait() -> None:
        for _ in range(50):
            time.sleep(0.002)

    values, _ = two_readings(wait)
    # 50 waits in at least 0.1 s
    assert 50 < values["context_switches_voluntary_per_s"] < 5000


def test_memory_gauges_agree_with_each_other() -> None:
    gauges = read_memory(0).gauges
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert gauges["memory_used_pct"] == pytest.approx(100 * (1 - gauges["memory_available_bytes"] / total), abs=1)


def test_written_and_synced_file_shows_in_the_disk_counter(tmp_path: Path) -> None:
    size = 8 << 20
    disks = DeviceBytes.of_disks()
    before = disks.read(0).counters
    with (tmp_path / "big").open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
    after = disks.read(1).counters
    if not before or before["disk_write_bytes_per_s"].total == after["disk_write_bytes_per_s"].total:
        pytest.skip("this machine does not count the writes of the folder for temporary files")
    assert after["disk_write_bytes_per_s"].total - before["disk_write_bytes_per_s"].total >= size


def device_tree(root: Path, hardware: list[str], virtual: list[str]) -> Path:
    for name in hardware:
        (root / name / "device").mkdir(parents=True)
    for name in virtual:
        (root / name).mkdir()
    return root


def test_disks_are_summed_without_partitions_and_mappers_on_top_of_them(tmp_path: Path) -> None:
    devices = {"vda": (100, 10), "vda1": (90, 9), "dm-0": (100, 10), "nvme0n1": (1000, 200), "loop0": (7, 0)}
    disks = DeviceBytes(
        ("in", "out"),
        lambda: devices,
        sysfs=device_tree(tmp_path, ["vda", "nvme0n1"], ["vda1", "dm-0", "loop0"]),
        only_hardware=True,
    )
    assert disks.read(5).counters == {"in": Counter(1100, 5), "out": Counter(210, 5)}


def test_machine_without_a_real_disk_has_no_disk_values(tmp_path: Path) -> None:
    disks = DeviceBytes(
        ("in", "out"),
        lambda: {"loop0": (7, 0)},
        sysfs=device_tree(tmp_path, [], ["loop0"]),
        only_hardware=True,
    )
    assert disks.read(5).counters == {}


def test_container_with_virtual_interfaces_only_counts_those(tmp_path: Path) -> None:
    network = DeviceBytes(
        ("in", "out"),
        lambda: {"eth0": (70, 7), "eth1": (1, 1)},
        sysfs=device_tree(tmp_path, [], ["eth0", "eth1"]),
        only_hardware=False,
    )
    assert network.read(5).counters == {"in": Counter(71, 5), "out": Counter(8, 5)}


def test_interface_that_leaves_gives_no_negative_rate(tmp_path: Path) -> None:
    devices = {"eth0": (100, 100), "usb0": (5000, 5000)}
    network = DeviceBytes(
        ("in", "out"),
        lambda: devices,
        sysfs=device_tree(tmp_path, ["eth0", "usb0"], []),
        only_hardware=False,
    )
    before = network.read(0).counters
    del devices["usb0"]
    assert rates(before, network.read(S).counters) == ({}, 2)


def test_loopback_traffic_is_no_network_traffic_even_where_all_interfaces_are_virtual(tmp_path: Path) -> None:
    network = DeviceBytes.of_network(sysfs=tmp_path)
    before = network.read(0).counters
    if not before:
        pytest.skip("this machine has no interface besides loopback")
    sender, receiver = (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    )
    with sender, receiver:
        receiver.bind(("127.0.0.1", 0))
        for _ in range(200):
            sender.sendto(bytes(60_000), receiver.getsockname())
            receiver.recv(65_536)
    after = network.read(1).counters
    assert after["net_sent_bytes_per_s"].total - before["net_sent_bytes_per_s"].total < 6_000_000
