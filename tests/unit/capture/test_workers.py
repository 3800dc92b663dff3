from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from harness.capture.readings import rates
from harness.capture.workers import ProcessStat, WorkerProcesses, parse_stat

S = 1_000_000_000
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class FakeProc:
    """A process file system in a folder, with this process in it as `self`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.task("self", "1", [])

    def task(self, process: str, task: str, children: list[int]) -> None:
        folder = self.root / process / "task" / task
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "children").write_text("".join(f"{pid} " for pid in children))

    def process(
        self,
        pid: int,
        name: str,
        *,
        utime: int = 0,
        stime: int = 0,
        start: int = 1,
        rss: int = 0,
        state: str = "S",
    ) -> None:
        fields = [state, 1, 1, 1, 0, -1, 0, 0, 0, 0, 0, utime, stime, 0, 0, 20, 0, 1, 0, start, 9999, rss, 0]
        (self.root / str(pid)).mkdir(exist_ok=True)
        (self.root / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")
        self.task(str(pid), str(pid), [])


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def test_process_name_with_spaces_and_parentheses_does_not_shift_the_fields(proc: FakeProc) -> None:
    proc.process(9, "a) S (b", utime=3, stime=4, start=77, rss=12)
    line = (proc.root / "9" / "stat").read_bytes()
    assert parse_stat(line) == ProcessStat(name=b"a) S (b", state=b"S", cpu_ticks=7, start_ticks=77, rss_pages=12)


def test_stat_of_this_process_is_read_right() -> None:
    stat = parse_stat(Path("/proc/self/stat").read_bytes())
    assert stat.cpu_ticks / TICK == pytest.approx(time.process_time(), abs=0.5)
    assert stat.state == b"R"


def test_workers_of_all_threads_are_found_and_other_children_are_not(proc: FakeProc) -> None:
    proc.task("self", "1", [10, 11])
    proc.task("self", "2", [12, 13])
    proc.process(10, "pt_data_worker", rss=100)
    proc.process(11, "python", rss=1000)
    proc.process(12, "pt_data_worker", rss=50)
    proc.process(13, "pt_data_worker", rss=7, state="Z")
    gauges = WorkerProcesses(proc.root).read(0).gauges
    assert gauges == {"num_workers": 2.0, "workers_rss_bytes": 150.0 * PAGE}


def test_workers_of_a_forkserver_are_found(proc: FakeProc) -> None:
    proc.task("self", "1", [10])
    proc.process(10, "python")
    proc.task("10", "10", [20, 21])
    proc.process(20, "pt_data_worker")
    proc.process(21, "python")
    assert WorkerProcesses(proc.root).read(0).gauges["num_workers"] == 1


def test_cpu_is_summed_over_workers_in_percent_of_one_processor(proc: FakeProc) -> None:
    proc.task("self", "1", [10, 11])
    proc.process(10, "pt_data_worker", utime=1000, stime=0)
    proc.process(11, "pt_data_worker", utime=0, stime=500)
    workers = WorkerProcesses(proc.root)
    before = workers.read(0).counters
    proc.process(10, "pt_data_worker", utime=1000 + TICK, stime=TICK // 2)
    proc.process(11, "pt_data_worker", utime=0, stime=500 + TICK // 4)
    after = workers.read(2 * S).counters
    # 1.5 s and 0.25 s of CPU in 2 s
    assert rates(before, after).values == {"workers_cpu_pct": pytest.approx(87.5)}


def test_worker_that_ends_lowers_no_counter_and_a_new_one_with_its_number_counts_from_zero(
    proc: FakeProc,
) -> None:
    proc.task("self", "1", [10])
    proc.process(10, "pt_data_worker", utime=50 * TICK, start=1)
    workers = WorkerProcesses(proc.root)
    first = workers.read(0).counters
    proc.task("self", "1", [])
    second = workers.read(1 * S).counters
    proc.task("self", "1", [10])
    proc.process(10, "pt_data_worker", utime=TICK // 2, start=2)
    third = workers.read(2 * S).counters
    assert rates(first, second) == ({"workers_cpu_pct": 0.0}, 0)
    assert rates(second, third) == ({"workers_cpu_pct": pytest.approx(50.0)}, 0)


def test_child_that_ends_while_it_is_looked_at_is_skipped(proc: FakeProc) -> None:
    proc.task("self", "1", [404])
    assert WorkerProcesses(proc.root).read(0).gauges["num_workers"] == 0


def test_system_without_lists_of_children_is_told_apart(tmp_path: Path, proc: FakeProc) -> None:
    assert WorkerProcesses(proc.root).available
    assert not WorkerProcesses(tmp_path / "nothing").available


class BusyItems(Dataset):
    """Items that cost CPU, and pages."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> torch.Tensor:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        return torch.tensor(index)


@pytest.mark.skipif(not WorkerProcesses().available, reason="this system lists no children")
def test_real_dataloader_workers_are_counted_and_an_ordinary_child_is_not() -> None:
    workers = WorkerProcesses()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    batches = iter(DataLoader(BusyItems(), batch_size=2, num_workers=2))
    try:
        next(batches)
        before, started_ns = workers.read(time.monotonic_ns()), time.monotonic_ns()
        while time.monotonic_ns() - started_ns < 0.3 * S:
            next(batches)
        after = workers.read(time.monotonic_ns())
    finally:
        del batches
        child.communicate()
    assert before.gauges["num_workers"] == after.gauges["num_workers"] == 2
    assert after.gauges["workers_rss_bytes"] > 10e6
    assert 10 < rates(before.counters, after.counters).values["workers_cpu_pct"] < 250
    assert workers.read(0).gauges["num_workers"] == 0
